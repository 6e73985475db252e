"""Feedback on a wrong final answer: what is wrong, in words, without giving the whole right answer away."""

from __future__ import annotations

import re

from redistill.tasks.answers import number_value

SHOWN = 80
"""Characters of a wrong answer that feedback repeats."""
_FEW_WAYS = frozenset({"true", "false", "yes", "no", "on", "off"})


def shorten(text: str) -> str:
    """`text` on one line, cut to SHOWN characters."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else line[: SHOWN - 3] + "..."


def digit_mask(answer: str, right: str) -> str | None:
    """`answer` with its wrong digits as "?" (compared place by place, aligned at the decimal point), or None when
    there is nothing safe to show: no digit is right, or the mask would show all digits of `right`."""
    if not all(re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", text) for text in (answer, right)):
        return None
    whole, _, decimals = answer.lstrip("-").partition(".")
    right_whole, _, right_decimals = right.lstrip("-").partition(".")
    padded = right_whole.rjust(len(whole), " ")[-len(whole) :]
    masked = "".join(a if a == b else "?" for a, b in zip(whole, padded, strict=True))
    masked_decimals = "".join(a if a == b else "?" for a, b in zip(decimals, right_decimals.ljust(len(decimals))))
    shown = sum(symbol.isdigit() for symbol in masked + masked_decimals)
    if shown == 0 or shown >= sum(symbol.isdigit() for symbol in right):
        return None
    return masked + ("." + masked_decimals if decimals else "")


def wrong_number(answer: str, right: str) -> str:
    """Feedback on a wrong number: which of its digits are right."""
    mask = digit_mask(answer, right)
    told = f"The answer {shorten(answer)} is wrong."
    return told if mask is None else f"{told} Its correct digits, others hidden: {mask}"


def wrong_text(answer: str, right: str) -> str:
    """Feedback on a wrong text: how many of its tokens (or characters, for one word) are right and where the first
    error is."""
    told = f"The answer {shorten(answer)!r} is wrong."
    if right.strip().lower() in _FEW_WAYS:
        return told
    kind, given, wanted = "token", _tokens(answer), _tokens(right)
    if len(wanted) == 1:
        kind, given, wanted = "character", list(answer.strip()), list(right.strip())
    if given == wanted:
        return f"{told} Its tokens are right, but not its layout (spaces, commas, line breaks or brackets)."
    if len(wanted) < 2:
        return told
    hits = sum(a == b for a, b in zip(given, wanted))
    first = next((i for i, (a, b) in enumerate(zip(given, wanted)) if a != b), min(len(given), len(wanted)))
    size = f" It has {len(given)} {kind}(s), the right one has {len(wanted)}." if len(given) != len(wanted) else ""
    where = f"; the first wrong one is {kind} {first + 1}" if first < len(given) else ""
    return f"{told}{size} {hits} of {len(wanted)} {kind}s are right{where}."


def wrong(answer: str, right: str) -> str:
    """Feedback on a wrong answer whose one right answer is `right`."""
    both_numbers = number_value(answer) is not None and number_value(right) is not None
    return wrong_number(answer, right) if both_numbers else wrong_text(answer, right)


def _tokens(text: str) -> list[str]:
    return [token for token in re.split(r"[\s,]+", text.strip()) if token]
