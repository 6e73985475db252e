"""Views: what a reader of a prompt gets to see (prompt, evidence) -> chat messages, or None when evidence is missing.

A view never invents an empty section: None drives masks and routing (which rows a term covers), so a missing solution is
None and never "". The layout follows SDPO (arXiv 2601.20802, reprompt) and OPSD (arXiv 2601.18734, teacher prompt): system
turns unchanged; the last user turn holds the question, then one section for each piece of evidence, then a closing request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

Message = dict[str, str]
Messages = Sequence[Message]


@dataclass(frozen=True)
class Evidence:
    """What a privileged reader may be shown beside the question. A field is None when there is none."""

    solution: str | None = None
    feedback: str | None = None
    attempt: str | None = None
    hint: str | None = None
    skill: str | None = None

    def __post_init__(self) -> None:
        for name in ("solution", "feedback", "attempt", "hint", "skill"):
            value = getattr(self, name)
            if value is not None and not value.strip():
                raise ValueError(f"evidence {name} is None when missing, never an empty string")


@dataclass(frozen=True)
class Wording:
    """The sentences around evidence. `{}` is where the evidence goes."""

    solution: str
    feedback: str
    attempt: str
    hint: str
    skill: str
    critique: str
    """Asks for a critique of an attempt (rltf's feedback modelling)."""
    closing: str
    contrast: str
    """Shows a right and a wrong answer and asks for a robust solution (ssb); `{right}` and `{wrong}`."""
    rephrase: str
    """What the policy itself is made to say after a right answer, before it says it again (sd-zero)."""
    redo: str
    """The same after a wrong answer, before it starts again."""


ENGLISH = Wording(
    solution="\n\nHere is a correct solution of this question:\n{}",
    feedback="\n\nAn earlier attempt at this question failed. What was wrong with it:\n{}",
    attempt="\n\nAn earlier attempt at this question:\n{}",
    hint="\n\nHint: {}",
    skill="\n\nWhat was learnt from earlier attempts at this task:\n{}",
    critique="\n\nAn attempt at this question:\n{}\n\nWrite a short critique: what is wrong with it, without giving the answer.",
    closing="\n\nNow answer the question.",
    contrast=(
        "\n\nTwo students answered this question, one rightly and one wrongly.\n\nThe right answer:\n{right}\n\nThe wrong "
        "answer:\n{wrong}\n\nWrite a complete solution that stands on its own, reaches the right result in the form asked for, "
        "and warns of the mistakes that are easy to make on the way. Do not mention that you were shown any answers."
    ),
    rephrase="\n\nThe solution above is correct. Let me say it again, more clearly.\n\n",
    redo="\n\nWait, the answer above is not correct. Let me start again.\n\n",
)
TERSE = Wording(
    solution="S{}", feedback="F{}", attempt="A{}", hint="H{}", skill="K{}", critique="A{}C", closing="",
    contrast="A{wrong}S{right}", rephrase=";", redo="!",
)  # fmt: skip
"""For character-level models, where a sentence costs a hundred steps."""

WORDINGS = MappingProxyType({"english": ENGLISH, "terse": TERSE})


def _with_sections(
    messages: Messages, wording: Wording, sections: Sequence[tuple[str, str | None]]
) -> list[Message] | None:
    present = [(name, text) for name, text in sections if text is not None]
    if not present:
        return None
    turns = [dict(message) for message in messages]
    last_user = max(i for i, message in enumerate(turns) if message["role"] == "user")
    added = "".join(getattr(wording, name).format(text) for name, text in present)
    turns[last_user]["content"] = turns[last_user]["content"] + added + wording.closing
    return turns


def plain(messages: Messages, evidence: Evidence, wording: Wording) -> list[Message] | None:
    """The question alone; never None."""
    return [dict(message) for message in messages]


def with_solution(messages: Messages, evidence: Evidence, wording: Wording) -> list[Message] | None:
    """The question and a correct solution."""
    return _with_sections(messages, wording, [("solution", evidence.solution)])


def with_feedback(messages: Messages, evidence: Evidence, wording: Wording) -> list[Message] | None:
    """The question and what was wrong with an earlier attempt (the attempt itself is not shown)."""
    return _with_sections(messages, wording, [("feedback", evidence.feedback)])


def with_attempt(messages: Messages, evidence: Evidence, wording: Wording) -> list[Message] | None:
    """The question, an earlier attempt and, where there is any, what was wrong with it. None without an attempt."""
    if evidence.attempt is None:
        return None
    return _with_sections(messages, wording, [("attempt", evidence.attempt), ("feedback", evidence.feedback)])


def with_hint(messages: Messages, evidence: Evidence, wording: Wording) -> list[Message] | None:
    """The question and a hint."""
    return _with_sections(messages, wording, [("hint", evidence.hint)])


def with_skill(messages: Messages, evidence: Evidence, wording: Wording) -> list[Message] | None:
    """The question and a skill: what earlier trajectories of the task taught."""
    return _with_sections(messages, wording, [("skill", evidence.skill)])


def critique(messages: Messages, evidence: Evidence, wording: Wording) -> list[Message] | None:
    """The question, an attempt, and the request to say what is wrong with it; None without an attempt."""
    sections = [("critique", evidence.attempt)]
    return _with_sections(messages, replace(wording, closing=""), sections)


def contrast(messages: Messages, evidence: Evidence, wording: Wording) -> list[Message] | None:
    """The question, a right answer and a typical wrong one, and the request for a robust solution (SSB, arXiv 2512.05105).
    None without both: `solution` is the right one, `attempt` the wrong one."""
    if evidence.solution is None or evidence.attempt is None:
        return None
    turns = [dict(message) for message in messages]
    last_user = max(i for i, message in enumerate(turns) if message["role"] == "user")
    turns[last_user]["content"] += wording.contrast.format(right=evidence.solution, wrong=evidence.attempt)
    return turns


def demonstrated(messages: Messages, evidence: Evidence, wording: Wording) -> list[Message] | None:
    """The question, a demonstration (`solution`), and a hint where there is any (CaOPD's note). None without the former."""
    if evidence.solution is None:
        return None
    return _with_sections(messages, wording, [("solution", evidence.solution), ("hint", evidence.hint)])


def hindsight(messages: Messages, evidence: Evidence, wording: Wording) -> list[Message] | None:
    """SDPO's reprompt: whatever there is of attempt, solution and feedback; None when there is nothing."""
    sections = [("attempt", evidence.attempt), ("solution", evidence.solution), ("feedback", evidence.feedback)]
    if evidence.solution is None and evidence.feedback is None:
        return None
    return _with_sections(messages, wording, sections)


View = Callable[[Messages, Evidence, Wording], "list[Message] | None"]
VIEWS: MappingProxyType[str, View] = MappingProxyType(
    {
        view.__name__: view
        for view in (
            plain,
            with_solution,
            with_feedback,
            with_attempt,
            with_hint,
            with_skill,
            critique,
            contrast,
            demonstrated,
            hindsight,
        )
    }
)


def view_of(evidence: Evidence) -> str:
    """The view that shows what there is, for an evaluation: a hint or a skill by itself, else SDPO's reprompt."""
    if evidence == Evidence():
        return "plain"
    if evidence == Evidence(hint=evidence.hint):
        return "with_hint"
    return "with_skill" if evidence == Evidence(skill=evidence.skill) else "hindsight"
