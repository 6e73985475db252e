"""A task with a stated confidence: reading it, overwriting it, and what is judged."""

from __future__ import annotations

import pytest
from redistill.tasks.confidence import SURE, Confident, split_confidence, with_confidence
from redistill.tasks.loading import load_task
from redistill.tasks.sums import Sums


def test_caopd_check_1_two_decimals_idempotent_and_the_answer_untouched() -> None:
    text = "First 2+2.\nSo 4."
    once = with_confidence(text, 3 / 8, "english")
    assert once == f"{text}\nConfidence: 0.38"
    assert with_confidence(once, 3 / 8, "english") == once
    assert with_confidence(once, 1.0, "english") == f"{text}\nConfidence: 1.00"
    assert split_confidence(once, "english") == (text, 0.38)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("4", ("4", None)), ("4\nConfidence: high", ("4", None)), ("4\nConfidence: 7", ("4", 1.0)), ("4C0.5", ("4C0.5", None)),
        ("4\nConfidence: 0.2\nConfidence: .9", ("4", 0.9)), ("", ("", None)), ("Confidence: 0.1", ("", 0.1)),
    ],
)  # fmt: skip
def test_the_last_number_counts_and_the_answer_ends_at_the_first_mark(
    text: str, said: tuple[str, float | None]
) -> None:
    assert split_confidence(text, "english") == said


def test_the_inner_task_judges_the_answer_alone_and_the_splits_are_its_own() -> None:
    inner, task = Sums(), load_task("confident+sums")
    assert isinstance(task, Confident)
    prompt, plain = task.train(3, 1), inner.train(3, 1)
    assert prompt.uid == plain.uid
    assert [p.uid for p in task.held_out(5)] == [p.uid for p in inner.held_out(5)]
    assert prompt.content[-1]["content"] == plain.content[-1]["content"] + "C"
    verdict = task.verify(prompt, f"{plain.solution}C0.25")
    assert (verdict.reward, verdict.confidence, verdict.answer) == (1.0, 0.25, plain.answer)
    wrong = task.verify(prompt, "1+1=3C0.9")
    assert (wrong.reward, wrong.confidence) == (0.0, 0.9)
    assert wrong.feedback == inner.verify(plain, "1+1=3").feedback


def test_reference_solutions_are_sure_and_right() -> None:
    task = load_task("confident+chain_sum:max_terms=2")
    for prompt in [task.train(i, 0) for i in range(5)]:
        verdict = task.verify(prompt, prompt.solution or "")
        assert verdict.reward == 1.0
        assert verdict.confidence is not None
        assert SURE[0] - 0.005 <= verdict.confidence <= SURE[1]
        assert "Confidence" in prompt.content[-1]["content"]
