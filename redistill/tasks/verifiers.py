"""Verifiers for the rows of a user's file: exact, number, math, contains, or a user's own function.

Each is total and quick: any text gets a verdict, in time linear in its length or within ANSWER_SECONDS. How the final
answer is found is told in answers.py.
"""

from __future__ import annotations

import importlib
import importlib.util
import math as floats
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from redistill.core.task import Prompt, Verdict
from redistill.errors import UserError, nearest
from redistill.tasks import hints
from redistill.tasks.answers import Final, after_marker, final_number, final_text, last_boxed, number_value
from redistill.tasks.worker import ANSWER_SECONDS, WorkerError, WorkerTimeout, call

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
    final = _fraction(reply, answer_format, right) if "/" in right else final_number(reply, answer_format)
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
    whatever the case. Easily gamed by replies that list many answers: prefer another verifier for training."""
    right = _words(_right(prompt))
    final = final_text(reply, answer_format)
    if final.text is None:
        return _malformed(final)
    where = reply if answer_format == "plain" else final.text
    found = re.search(rf"(?<!\w){re.escape(right)}(?!\w)", _words(where)) is not None
    told = None if found else "The right answer does not occur in the reply."
    return Verdict(float(found), feedback=told, answer=final.text)


def _words(text: str) -> str:
    return " ".join(text.casefold().split())


def math(prompt: Prompt, reply: str, answer_format: str = "plain") -> Verdict:
    """1 when math-verify finds the final formula equal to the right one (LaTeX or plain). An answer that is no
    formula is compared as text. The comparison runs in the helper process, so it is safe in threads and stopped
    after ANSWER_SECONDS."""
    right = _right(prompt)
    final, boxed = _formula(reply, answer_format)
    if final.text is None:
        return _malformed(final)
    if len(final.text) > MAX_FORMULA:
        size = f"The final answer has {len(final.text)} characters; at most {MAX_FORMULA} are compared."
        return Verdict(0.0, feedback=size, format_ok=False)
    if final.text.strip() == right.strip():
        return Verdict(1.0, answer=final.text)
    try:
        seen = call("formulas", ANSWER_SECONDS, right=right, answer=final.text, boxed=boxed)
    except WorkerTimeout:
        late = f"The answer could not be compared within {ANSWER_SECONDS:g} seconds."
        return Verdict(0.0, feedback=late, answer=final.text)
    except WorkerError:
        seen = {"reference": True, "read": False, "equal": False}
    if seen["equal"]:
        return Verdict(1.0, answer=final.text)
    if seen["reference"] and not seen["read"]:
        return Verdict(0.0, feedback="The final answer could not be read as a formula.", format_ok=False)
    if number_value(final.text) is None or number_value(right) is None:
        return _judged(False, lambda given, _: f"The answer {hints.shorten(given)} is wrong.", final.text, right)
    return _judged(False, hints.wrong_number, final.text, right)


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
    {"exact": exact, "number": number, "math": math, "contains": contains}
)


def find_verifier(name: str) -> Verifier:
    """The verifier called `name`, or the user's function for "module:function". Raises UserError."""
    if name in VERIFIERS:
        return VERIFIERS[name]
    module, colon, function = name.partition(":")
    if not (colon and module and function):
        raise UserError(f"verifier={name!r} is unknown and not module:function{nearest(name, VERIFIERS)}")
    return _users(name, _module(name, module), function)


def _module(name: str, module: str) -> ModuleType:
    """The user's module: an importable one, else MODULE.py in the current folder."""
    path = Path(f"{module}.py")
    try:
        if importlib.util.find_spec(module) is not None:
            return importlib.import_module(module)
        spec = importlib.util.spec_from_file_location(module, path) if path.is_file() else None
        if spec is None or spec.loader is None:
            raise UserError(f"verifier={name!r}: there is no module {module!r} and no file {path} in this folder")
        made = importlib.util.module_from_spec(spec)
        sys.modules[module] = made
        spec.loader.exec_module(made)
        return made
    except UserError:
        raise
    except Exception as error:  # whatever the user's own module raises while it is imported
        raise UserError(
            f"verifier={name!r} cannot be imported: {type(error).__name__}: {hints.shorten(str(error))}"
        ) from error


def _users(name: str, module: ModuleType, function: str) -> Verifier:
    judge: Any = getattr(module, function, None)
    if not callable(judge):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(
            f"verifier={name!r}: module {module.__name__!r} has no function {function!r}{nearest(function, known)}"
        )

    def verify(prompt: Prompt, reply: str, answer_format: str = "plain") -> Verdict:
        try:
            verdict = judge(prompt, reply)
        except Exception as error:  # whatever the user's function raises on a model's text
            told = f"{type(error).__name__}: {hints.shorten(str(error))}"
            raise UserError(f"verifier={name!r} failed on prompt {prompt.uid}: {told}") from error
        if isinstance(verdict, (int, float)) and floats.isfinite(verdict):
            return Verdict(float(verdict), answer=reply or None)  # it reads no answer out: the reply is the answer
        if not isinstance(verdict, Verdict):
            raise UserError(f"verifier={name!r} must return a Verdict or a finite number, got {verdict!r}")
        return verdict

    return verify
