"""Views: what a reader sees, character by character, and None where evidence is missing."""

from __future__ import annotations

import copy
from itertools import product

import pytest
from redistill.text.views import ENGLISH, TERSE, VIEWS, Evidence

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1+2="},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "Again."},
]
NEEDS = {
    "plain": (),
    "with_solution": ("solution",),
    "with_feedback": ("feedback",),
    "with_attempt": ("attempt",),
    "with_hint": ("hint",),
    "with_skill": ("skill",),
    "critique": ("attempt",),
    "contrast": ("solution", "attempt"),
    "demonstrated": ("solution",),
}
EVERY = ("solution", "feedback", "attempt", "hint", "skill")


@pytest.mark.parametrize("present", list(product([False, True], repeat=5)))
def test_a_view_is_none_exactly_when_its_evidence_is_missing(present: tuple[bool, ...]) -> None:
    given = {name: f"<{name}>" for name, there in zip(EVERY, present) if there}
    for name, view in VIEWS.items():
        read = view(CHAT, Evidence(**given), TERSE)
        if name == "hindsight":
            there = "solution" in given or "feedback" in given
        else:
            there = all(need in given for need in NEEDS[name])
        assert (read is not None) == there, name


def test_the_terse_sections_stand_in_a_fixed_order_after_the_last_question() -> None:
    everything = Evidence(solution="s", feedback="f", attempt="a", hint="h", skill="k")
    read = {name: view(CHAT, everything, TERSE)[-1]["content"] for name, view in VIEWS.items()}
    assert read == {
        "plain": "Again.", "with_solution": "Again.Ss", "with_feedback": "Again.Ff", "with_attempt": "Again.AaFf",
        "with_hint": "Again.Hh", "with_skill": "Again.Kk", "critique": "Again.AaC", "contrast": "Again.AaSs",
        "demonstrated": "Again.SsHh", "hindsight": "Again.AaSsFf",
    }  # fmt: skip


def test_other_turns_and_the_input_are_left_as_they_are() -> None:
    before = copy.deepcopy(CHAT)
    for view in VIEWS.values():
        read = view(CHAT, Evidence(solution="s", feedback="f", attempt="a", hint="h", skill="k"), ENGLISH)
        assert read[:-1] == CHAT[:-1]
        assert [turn["role"] for turn in read] == [turn["role"] for turn in CHAT]
        read[0]["content"] = "changed"
    assert before == CHAT


def test_evidence_with_braces_is_text() -> None:
    read = VIEWS["with_solution"](CHAT, Evidence(solution="{0} {x} {}"), ENGLISH)
    assert "{0} {x} {}" in read[-1]["content"]


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("empty", ["", "  ", "\n"])
def test_evidence_is_never_an_empty_string(name: str, empty: str) -> None:
    with pytest.raises(ValueError, match=f"evidence {name}"):
        Evidence(**{name: empty})


def test_no_view_shows_what_it_is_not_named_for() -> None:
    secret = Evidence(solution="SECRET-s", feedback="SECRET-f", attempt="SECRET-a", hint="SECRET-h")
    for name, letters in (("plain", ""), ("with_solution", "s"), ("with_feedback", "f"), ("with_hint", "h")):
        text = str(VIEWS[name](CHAT, secret, ENGLISH))
        assert {letter for letter in "sfah" if f"SECRET-{letter}" in text} == set(letters)
