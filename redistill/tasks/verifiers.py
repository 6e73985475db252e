"""Verifiers for the rows of a user's file: exact, number, math, contains, pattern, or a user's own function.

Each is total and quick: any text gets a verdict, in time linear in its length or within ANSWER_SECONDS (then in a helper
process, which is killed). How the final answer is found is told in answers.py. What a reply copies from the question is
no answer to it; digits of other scripts are no digits.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

from redistill.core.task import Prompt, Verdict
from redistill.errors import UserError, nearest
from redistill.tasks import hints
from redistill.tasks.answers import (
    Final,
    after_marker,
    final_number,
    final_text,
    foreign_digit,
    last_boxed,
    number_value,
    without_echo,
)
from redistill.tasks.worker import ANSWER_SECONDS, MAKE_SECONDS, WorkerError, WorkerTimeout, call, call_users

MAX_FORMULA = 2_000
"""Characters of a formula that are compared; a longer one gets reward 0."""
_FRACTION = re.compile(r"[-\u2212]?[0-9]{1,200}\s{0,2}/\s{0,2}[0-9]{1,200}")

Verifier = Callable[[Prompt, str, str], Verdict]
"""(prompt, reply, answer format) -> verdict."""


def _right(prompt: Prompt) -> str:
    if prompt.answer is None:
        raise UserError(f"prompt {prompt.uid} has no answer to compare with")
    return prompt.answer


def _malformed(final: Final) -> Verdict:
    return Verdict(0.0, feedback=final.problem, format_ok=False)


def _own_words(prompt: Prompt, reply: str, right: str) -> str | None:
    """The reply without what it copies from the question; None when nothing is left of it."""
    question = "\n".join(str(message["content"]) for message in prompt.content)
    rest = without_echo(question, reply, right)
    return rest if rest.strip() or not reply.strip() else None


_ECHO = Verdict(0.0, feedback="The reply only repeats the question.", format_ok=False)


def _judged(right: bool, told: Callable[[str, str], str], given: str, truth: str) -> Verdict:
    """The verdict on an answer that was read; what is wrong with it, where it is wrong."""
    return Verdict(1.0 if right else 0.0, feedback=None if right else told(given, truth), answer=given)


def exact(prompt: Prompt, reply: str, answer_format: str = "plain") -> Verdict:
    """1 when the final answer is the right one, letter for letter but for white space at its ends."""
    right = _right(prompt)
    final = final_text(reply, answer_format, right)
    if final.text is None:
        return _malformed(final)
    same = final.text.strip() == right.strip()
    return _judged(same, hints.wrong_text, final.text, right)


def number(prompt: Prompt, reply: str, answer_format: str = "plain") -> Verdict:
    """1 when the final number equals the right one exactly (as a fraction: 0.5 = 1/2, 1,000 = 1000 = 1e3). A reply
    may give a fraction a/b only when the right answer is written as one."""
    right = _right(prompt)
    value = number_value(right)
    if value is None:
        raise UserError(
            f"verifier=number needs a number as answer, got {hints.shorten(right)!r} in prompt {prompt.uid}"
        )
    own = _own_words(prompt, reply, right)
    if own is None:
        return _ECHO
    final = _fraction(own, answer_format, right) if "/" in right else final_number(own, answer_format)
    if final.text is None:
        return _malformed(final)
    same = number_value(final.text) == value
    return _judged(same, hints.wrong, final.text, right)


def _fraction(reply: str, answer_format: str, right: str) -> Final:
    final = final_text(reply, answer_format, right)
    if final.text is None:
        return final
    found = _FRACTION.findall(final.text)
    return Final(found[-1]) if found else final_number(reply, answer_format)


def contains(prompt: Prompt, reply: str, answer_format: str = "plain") -> Verdict:
    """1 when the right answer occurs in the final answer (for a plain reply: anywhere in it) as whole words,
    whatever the case, and none of the row's other `choices` (a column) does. Without that column it is easily gamed by
    replies that list many answers: prefer another verifier for training."""
    right = _right(prompt)
    own = _own_words(prompt, reply, right)
    if own is None:
        return _ECHO
    final = final_text(own, answer_format)
    if final.text is None:
        return _malformed(final)
    where = _words(own if answer_format == "plain" else final.text)
    if not _within(_words(right), where):
        return Verdict(0.0, feedback="The right answer does not occur in the reply.", answer=final.text)
    others = [each for each in prompt.data.get("columns", {}).get("choices") or () if _words(each) != _words(right)]
    if any(_within(_words(each), where) for each in others):
        return Verdict(0.0, feedback="The reply names more than one of the choices.", answer=final.text)
    return Verdict(1.0, answer=final.text)


def _within(text: str, where: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(text)}(?!\w)", where) is not None


def _words(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def pattern(prompt: Prompt, reply: str, answer_format: str = "plain") -> Verdict:
    """1 when the right answer, a regular expression of Python's, matches the whole final answer. It is matched in the
    helper process: an expression that takes exponential time on a reply is given up after ANSWER_SECONDS."""
    right = _right(prompt)
    final = final_text(reply, answer_format, "")
    if final.text is None:
        return _malformed(final)
    try:
        found = call("matches", ANSWER_SECONDS, pattern=right, text=final.text)
    except WorkerTimeout:
        return _late(final.text)
    except WorkerError as error:
        raise UserError(f"prompt {prompt.uid}: the pattern {hints.shorten(right)!r} cannot be used: {error}") from None
    return _judged(found, lambda given, _: f"The answer {hints.shorten(given)!r} has another form.", final.text, right)


def _late(answer: str) -> Verdict:
    late = f"The answer could not be compared within {ANSWER_SECONDS:g} seconds."
    return Verdict(0.0, feedback=late, answer=answer, limit="time")


def math(prompt: Prompt, reply: str, answer_format: str = "plain") -> Verdict:
    """1 when math-verify finds the final formula equal to the right one (LaTeX or plain). An answer that is no
    formula is compared as text. The comparison runs in the helper process, so it is safe in threads and stopped
    after ANSWER_SECONDS."""
    right = _right(prompt)
    own = _own_words(prompt, reply, right)
    if own is None:
        return _ECHO
    final, boxed = _formula(own, answer_format)
    if final.text is None:
        return _malformed(final)
    if len(final.text) > MAX_FORMULA:
        size = f"The final answer has {len(final.text)} characters; at most {MAX_FORMULA} are compared."
        return Verdict(0.0, feedback=size, format_ok=False, limit="length")
    problem = _no_formula(final.text, right)
    if problem is not None:
        return Verdict(0.0, feedback=problem, format_ok=False)
    if final.text.strip() == right.strip():
        return Verdict(1.0, answer=final.text)
    try:
        seen = call("formulas", ANSWER_SECONDS, right=right, answer=final.text, boxed=boxed)
    except WorkerTimeout:
        return _late(final.text)
    except WorkerError:
        seen = {"reference": True, "read": False, "equal": False}
    if seen["equal"]:
        return Verdict(1.0, answer=final.text)
    if seen["reference"] and not seen["read"]:
        return Verdict(0.0, feedback="The final answer could not be read as a formula.", format_ok=False)
    if number_value(final.text) is None or number_value(right) is None:
        return _judged(False, lambda given, _: f"The answer {hints.shorten(given)} is wrong.", final.text, right)
    return _judged(False, hints.wrong_number, final.text, right)


def _no_formula(text: str, right: str) -> str | None:
    """What keeps a final answer from being one formula, in words: digits that only look right, boxes in a box, more than
    one value in one ("4 or 5", "5 plus or minus 1") where the right answer has not that form either."""
    digit = foreign_digit(text)
    if digit is not None and digit not in right:
        return f"{digit!r} is not a digit from 0 to 9."
    if "\\boxed" in text:
        return "There is more than one box in the final answer."
    for mark in ("\\pm", "\\mp", "\u00b1", "\\neg", "\u00ac"):
        if mark in text and mark not in right:
            return f"{mark} leaves open which value is meant."
    return None


def _formula(reply: str, answer_format: str) -> tuple[Final, bool]:
    """The final formula and whether it came out of a box or a tag: in a plain reply without either, the line after the
    last "answer is", else the last line."""
    final = final_text(reply, answer_format)
    if final.text is None or answer_format != "plain" or last_boxed(reply) is not None:
        return final, True
    lines = [line for line in final.text.splitlines() if line.strip()]
    line = lines[0 if after_marker(reply) is not None else -1].strip()
    return Final(line[:-1].strip() or line if line.endswith(".") else line), False


VERIFIERS: MappingProxyType[str, Verifier] = MappingProxyType(
    {"exact": exact, "number": number, "math": math, "contains": contains, "pattern": pattern}
)


def find_verifier(name: str) -> Verifier:
    """The verifier called `name`, or the user's function for "module:function". Raises UserError."""
    if name in VERIFIERS:
        return VERIFIERS[name]
    module, colon, function = name.partition(":")
    if not (colon and module and function):
        raise UserError(f"verifier={name!r} is unknown and not module:function{nearest(name, [*VERIFIERS, 'code'])}")
    return _users(name, str(Path.cwd()))


def _users(name: str, folder: str) -> Verifier:
    """The user's function behind the helper process; UserError when it is not there."""
    where = {"folder": folder, "paths": [path for path in sys.path if path], "name": name}
    try:
        problem = call_users("find", MAKE_SECONDS, **where)
    except (WorkerError, WorkerTimeout) as error:
        raise UserError(f"verifier={name!r} cannot be imported: {hints.shorten(str(error))}") from None
    if problem:
        raise UserError(problem)

    def verify(prompt: Prompt, reply: str, answer_format: str = "plain") -> Verdict:
        asked = {**vars(prompt), "data": dict(prompt.data)}
        try:
            call_users("find", MAKE_SECONDS, **where)  # a process made anew has to import it first
            told = call_users("judge", ANSWER_SECONDS, **where, prompt=asked, reply=reply)
        except WorkerTimeout:
            late = f"The answer could not be judged within {ANSWER_SECONDS:g} seconds."
            return Verdict(0.0, feedback=late, limit="time")
        except WorkerError as error:
            raise UserError(f"verifier={name!r} failed on prompt {prompt.uid}: {hints.shorten(str(error))}") from None
        if "problem" in told:
            raise UserError(told["problem"])
        return Verdict(**told)

    return verify
