"""Replies that are made to please a verifier: none earns what it does not answer, none hangs or ends the run."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from benchmarks.trust_verifiers import DIGITS, in_digits
from hypothesis import given, settings
from hypothesis import strategies as st
from redistill.core.loop import describe_groups
from redistill.core.task import Prompt, checked_verdict
from redistill.errors import UserError
from redistill.tasks.answers import foreign_digit, without_echo
from redistill.tasks.files import FileTask
from redistill.tasks.gym import GymTask
from redistill.tasks.verifiers import VERIFIERS, contains, find_verifier, math, number, pattern


def ask(answer: str, question: str = "", **columns: object) -> Prompt:
    content = [{"role": "user", "content": question}] if question else []
    return Prompt("0" * 16, content, answer=answer, data={"columns": columns})


# --- every candidate ---------------------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-99, 999), min_size=2, max_size=8, unique=True),
    st.sampled_from([" ", ", ", "\n", " or ", " and ", "; ", " = ", "|"]),
    st.sampled_from(["exact", "number", "math"]),
)
def test_only_the_last_of_several_candidates_counts(values: list[int], joint: str, name: str) -> None:
    *others, last = map(str, values)
    listed = joint.join([*others, last])
    for other in others:
        assert VERIFIERS[name](ask(other), listed).reward == 0.0
        assert VERIFIERS[name](ask(other), "\n".join(f"The answer is {each}" for each in values)).reward == 0.0
        for box in (f"\\boxed{{{listed}}}", " ".join(f"\\boxed{{{each}}}" for each in values)):
            assert VERIFIERS[name](ask(other), box, "boxed").reward == 0.0
        assert VERIFIERS[name](ask(other), "<answer>" + listed + "</answer>", "tag").reward == 0.0


@pytest.mark.parametrize(
    "reply",
    [
        "\\boxed{\\boxed{4} \\boxed{5}}", "\\boxed{\\boxed{5} \\boxed{4}}", "\\boxed{x \\boxed{4}}", "\\boxed{4 \\pm 0}",
        "\\boxed{\\neg 4}", "\\boxed{\\{4, 5\\}}", "\\boxed{4 \\text{ or } 5}", "\\boxed{4=5}", "$4$ or $5$", "4\\\\5",
    ],
)  # fmt: skip
def test_a_formula_is_one_value(reply: str) -> None:
    assert math(ask("4"), reply).reward == 0.0


def test_a_form_that_the_right_answer_has_is_no_trick() -> None:
    assert math(ask("x \\pm 1"), "\\boxed{x \\pm 1}").reward == 1.0
    assert math(ask("4"), "\\boxed{\\boxed{4}}").reward == 1.0


def test_contains_with_choices() -> None:
    prompt = ask("Paris", choices=["Paris", "London", "Rome"])
    assert contains(prompt, "It is paris.").reward == 1.0
    verdict = contains(prompt, "Paris, London, Rome")
    assert (verdict.reward, verdict.feedback) == (0.0, "The reply names more than one of the choices.")
    assert contains(ask("Paris"), "Paris, London, Rome").reward == 1.0


# --- digits that only look right ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("zero", [*DIGITS, "\u2460"])
@pytest.mark.parametrize("name", list(VERIFIERS))
def test_digits_of_other_scripts_are_none(name: str, zero: str) -> None:
    text = in_digits("42", zero)
    assert text != "42"
    assert text[0].isdigit()
    assert VERIFIERS[name](ask("42"), text).reward == 0.0
    assert VERIFIERS[name](ask("42"), f"\\boxed{{{text}}}", "boxed").reward == 0.0


def test_generators_read_no_other_digits_either() -> None:
    task = GymTask("number_sorting")
    prompt = task._item(("test",), 0)
    right = str(prompt.answer)
    assert task.verify(prompt, right).reward == 1.0
    verdict = task.verify(prompt, in_digits(right, "\uff10"))
    assert verdict.reward == 0.0
    assert "is not a digit from 0 to 9" in str(verdict.feedback)
    assert foreign_digit("x\u00b2") == "\u00b2"
    assert foreign_digit("\u4e00 one 1") is None


def test_letters_that_look_alike_are_others() -> None:
    assert contains(ask("Paris"), "P\u0430ris").reward == 0.0
    assert contains(ask("Paris"), "Paris\u0301").reward == 0.0
    assert contains(ask("\u00e9t\u00e9"), "e\u0301te\u0301").reward == 1.0


# --- the question as an answer -----------------------------------------------------------------------------------------
QUESTION = "Anna has 3 apples and buys some more. Is it now 7 or 9 apples that she has: 9?"


@pytest.mark.parametrize("name", ["number", "math", "contains"])
def test_the_question_is_no_answer(name: str) -> None:
    verdict = VERIFIERS[name](ask("9", QUESTION), QUESTION)
    assert (verdict.reward, verdict.feedback) == (0.0, "The reply only repeats the question.")
    assert VERIFIERS[name](ask("9", QUESTION), f"{QUESTION.upper()}\nThe answer is 9").reward == 1.0
    assert VERIFIERS[name](ask("9", QUESTION), f"The answer is: {QUESTION}").reward == 0.0


def test_what_is_cut_out_of_a_reply() -> None:
    question = "one two three four five six seven"
    assert without_echo(question, "so ONE two\nthree four five is it", "x").split() == ["so", "is", "it"]
    assert without_echo(question, "two three four five", "x") == "two three four five", "four words are no copy"
    assert without_echo(question, question, "three four five six").split() == [], "the whole of a question always is"
    assert without_echo("2 + 3", "2 + 3 = 5", "5").split() == ["=", "5"]
    assert without_echo("Paris", "Paris", "Paris") == "Paris"
    assert without_echo("say it again", "say it again", "say it again") == "say it again"
    assert contains(ask("three four", question), "three four").reward == 1.0, "a passage may be the answer"
    assert contains(ask("three four", question), question).reward == 0.0


# --- time, memory and other ends ---------------------------------------------------------------------------------------
def test_a_pattern_that_takes_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redistill.tasks.verifiers.ANSWER_SECONDS", 0.5)
    monkeypatch.setattr("redistill.tasks.worker.PATIENCE", 1000.0)  # so that the clock alone would take two minutes
    began = time.monotonic()
    verdict = pattern(ask("(a|aa)+"), "a" * 200 + "!")
    assert time.monotonic() - began < 60
    assert (verdict.reward, verdict.limit) == (0.0, "time")
    assert verdict.feedback == "The answer could not be compared within 0.5 seconds."
    assert pattern(ask("(a|aa)+"), "I think:\naaa").reward == 1.0
    assert pattern(ask("[A-Z]{2}[0-9]+"), "The answer is AB12.").reward == 1.0
    assert pattern(ask("[A-Z]{2}"), "ABC").feedback == "The answer 'ABC' has another form."


@pytest.mark.parametrize("formula", ["10^{10^{10}}", "((9!)!)!", "\\sum_{n=1}^{10^{12}} n!", "1e999999999"])
def test_formulas_without_end(formula: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redistill.tasks.verifiers.ANSWER_SECONDS", 0.5)
    assert math(ask("4"), formula).reward == 0.0
    assert number(ask("4"), formula).reward == 0.0


def test_a_pattern_in_a_file_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "Code?", "answer": "[A-Z"}\n')
    with pytest.raises(UserError, match=r"row 1 column 'answer' must be a regular expression for verifier=pattern"):
        FileTask(str(path), "pattern")
    path.write_text('{"prompt": "Code?", "answer": "A", "choices": "A, B"}\n')
    with pytest.raises(UserError, match="row 1 column 'choices' must be a list of texts"):
        FileTask(str(path), "contains")


def test_a_users_function_may_hang_or_end_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("redistill.tasks.verifiers.ANSWER_SECONDS", 0.3)
    (tmp_path / "my_ends.py").write_text(
        "import ctypes, os, re, sys\n"
        "def judge(prompt, reply):\n"
        "    if reply == 'pattern': re.match('(a|aa)+$', 'a' * 200 + '!')\n"
        "    if reply == 'memory': bytearray(10**12)\n"
        "    if reply == 'exit': sys.exit(0)\n"
        "    if reply == 'print': print('{\"ok\": 1}', flush=True); os.write(1, b'x\\n')\n"
        "    if reply == 'kill': ctypes.string_at(0)\n"
        "    return 0.75\n"
    )
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "?", "split": "train"}) + "\n")
    task = FileTask("rows.jsonl", "my_ends:judge", low=-1.0)
    prompt = task.train(0, 0)
    verdict = checked_verdict(task, prompt, task.verify(prompt, "pattern"))
    assert (verdict.reward, verdict.limit) == (-1.0, "time"), "the lowest reward of the task, and why"
    for reply, told in (("memory", "MemoryError"), ("exit", "SystemExit")):
        with pytest.raises(UserError, match=told):
            task.verify(prompt, reply)
    assert task.verify(prompt, "kill").limit == "time"
    for reply in ("print", "anything"):
        assert task.verify(prompt, reply).reward == 0.75
    judge = find_verifier("my_ends:judge")
    monkeypatch.chdir("/")
    assert judge(prompt, "x").reward == 0.75, "found where the run began"


def test_what_was_given_up_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    from redistill.core.episode import Episode, Group

    monkeypatch.setattr("redistill.tasks.verifiers.ANSWER_SECONDS", 0.3)
    prompt = ask("(a|aa)+")
    made = [
        Episode(prompt=prompt, context=(1,), trajectory=(), steps=1, text=text, sampled_under="plain",
                trained_under="plain", verdict=pattern(prompt, text))
        for text in ("a" * 200 + "!", "aa")
    ]  # fmt: skip
    assert describe_groups([Group(prompt, made)])["given_up"] == 1.0
