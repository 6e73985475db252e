"""Sums: arithmetic against Python's own, splits that never meet, feedback that tells the truth."""

from __future__ import annotations

import re

import pytest
from redistill.core.task import Task, is_held_out
from redistill.errors import UserError
from redistill.tasks.sums import MAX_TEXT, Sums, digit_pattern, worked


def question(prompt) -> str:
    return prompt.content[-1]["content"]


def test_is_a_task() -> None:
    task: Task = Sums()
    assert isinstance(task, Task)
    assert (task.name, task.wording, task.reward_range) == ("sums", "terse", (0.0, 1.0))


@pytest.mark.parametrize("options", [(2, 1), (3, 2), (5, 3), (8, 9)])
def test_every_link_of_the_chain_is_the_sum(options) -> None:
    task = Sums(*options)
    for index in range(50):
        prompt = task.train(index, seed=3)
        numbers = [int(n) for n in question(prompt).removesuffix("=").split("+")]
        assert len(numbers) == task.terms
        assert all(len(str(n)) == task.digits for n in numbers)
        links = prompt.solution.split("=")
        assert all(sum(map(int, link.split("+"))) == sum(numbers) for link in links)
        assert links[-1] == prompt.answer == str(sum(numbers))
        assert task.verify(prompt, prompt.solution).reward == 1.0


def test_worked_texts() -> None:
    assert worked((12, 34, 56)) == "46+56=102"
    assert worked((12, 34)) == "46"
    assert worked((12, 34, 56, 78)) == "46+56+78=102+78=180"


def test_train_is_pure_and_seeded() -> None:
    task = Sums()
    forwards = [task.train(i, seed=1).uid for i in range(200)]
    assert forwards == [Sums().train(i, seed=1).uid for i in reversed(range(200))][::-1]
    assert len(set(forwards) & {task.train(i, seed=2).uid for i in range(200)}) < 5
    assert len(set(forwards)) > 195


def test_splits_never_meet() -> None:
    task = Sums()
    held_out = task.held_out(500)
    assert len({p.uid for p in held_out}) == 500
    assert all(is_held_out(p.uid) for p in held_out)
    assert not any(is_held_out(task.train(i, seed=0).uid) for i in range(500))
    assert [p.uid for p in task.held_out(20)] == [p.uid for p in held_out[:20]]
    assert task.held_out(0) == []


def test_a_small_task_has_fewer_held_out() -> None:
    task = Sums(terms=2, digits=1)
    everything = {f"{a}+{b}=" for a in range(1, 10) for b in range(1, 10)}
    held_out = {question(p) for p in task.held_out(1000)}
    train = {question(task.train(i, seed=0)) for i in range(2000)}
    assert held_out | train == everything
    assert not held_out & train


def test_numbers_are_uniform() -> None:
    numbers = [int(n) for i in range(2000) for n in question(Sums().train(i, 0)).removesuffix("=").split("+")]
    assert (min(numbers), max(numbers)) == (10, 99)
    assert sum(numbers) / len(numbers) == pytest.approx(54.5, abs=4 * 26 / 6000**0.5)


@pytest.mark.parametrize(
    ("text", "reward", "feedback", "format_ok"),
    [
        ("46+56=102", 1.0, None, True),
        ("102", 1.0, None, True),
        ("46 + 56 = 102\n", 1.0, None, True),
        ("46+56=112", 0.0, "=1?2", True),
        ("46+56=12", 0.0, "=#?2", True),
        ("46+56=1102", 0.0, "=#?102", True),
        ("46+56=0102", 0.0, "=#?102", True),
        ("102=999", 0.0, "=???", True),
        ("46+56=102=", 0.0, "!n", False),
        ("46+56=102 or 103", 0.0, "!n", False),
        ("46+56=١٠٢", 0.0, "!n", False),
        ("46+56=1_02", 0.0, "!n", False),
        ("", 0.0, "!n", False),
        ("\x00\ud800", 0.0, "!n", False),
        ("=102".rjust(MAX_TEXT + 1), 0.0, "!l", False),
        ("=" + "1" * 3000, 0.0, "!n", False),
    ],
)
def test_verdicts(text, reward, feedback, format_ok) -> None:
    task = Sums()
    verdict = task.verify(task.prompt((12, 34, 56)), text)
    assert (verdict.reward, verdict.feedback, verdict.format_ok) == (reward, feedback, format_ok)


def test_feedback_is_consistent_with_the_answer() -> None:
    """Whatever the attempt, each digit that feedback shows is the true one at that place, counted from the right."""
    for truth in ("102", "99", "287"):
        for attempt in map(str, range(1, 1300, 7)):
            pattern = digit_pattern(attempt, truth)
            shown = pattern.removeprefix("#")
            assert pattern.startswith("#") == (len(attempt) != len(truth))
            assert len(shown) == len(attempt)
            aligned = truth.zfill(len(shown))[-len(shown) :]
            known = re.compile(shown.replace("?", "."))
            if len(attempt) <= len(truth):
                assert known.fullmatch(aligned)
            assert (pattern == truth) == (attempt == truth)


def test_partial_reward() -> None:
    task = Sums(partial=True)
    prompt = task.prompt((12, 34, 56))
    assert task.verify(prompt, "46+56=102").reward == 1.0
    assert task.verify(prompt, "46+56=112").reward == pytest.approx(2 / 3)
    assert task.verify(prompt, "46+56=0102").reward == pytest.approx(3 / 4)
    assert task.verify(prompt, "46+56=12").reward == pytest.approx(1 / 3)
    assert task.verify(prompt, "x").reward == 0.0


@pytest.mark.parametrize(("options", "words"), [({"terms": 1}, "terms=1"), ({"digits": 10}, "digits=10")])
def test_options_out_of_range(options, words) -> None:
    with pytest.raises(UserError, match=words):
        Sums(**options)
