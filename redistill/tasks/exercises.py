"""Small programming exercises, made from steps: a list of whole numbers or a text goes through some steps and ends in one value.

Each step is a sentence, a line of Python for the worked solution, and the function that says what is right. The functions are
ours and run here; the lines never do (a test runs every one of them in the sandbox and compares).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from redistill.core import rng


@dataclass(frozen=True)
class Step:
    """One step with a number `k` from `low` to `high` in its sentence (`{k}`), its line (`{k}`, on `x`) and its function (x, k)."""

    sentence: str
    line: str
    work: Callable[[Any, int], Any]
    low: int = 0
    high: int = 0


def _rotated(x: Any, k: int) -> Any:
    return x[k % len(x) :] + x[: k % len(x)] if x else x


LIST_STEPS = (
    Step("Keep only the numbers that are divisible by {k}.", "x = [n for n in x if n % {k} == 0]",
         lambda x, k: [n for n in x if n % k == 0], 2, 5),
    Step("Remove the numbers that are divisible by {k}.", "x = [n for n in x if n % {k} != 0]",
         lambda x, k: [n for n in x if n % k], 2, 5),
    Step("Keep only the numbers greater than {k}.", "x = [n for n in x if n > {k}]",
         lambda x, k: [n for n in x if n > k], -5, 8),
    Step("Keep only the numbers less than {k}.", "x = [n for n in x if n < {k}]",
         lambda x, k: [n for n in x if n < k], -2, 12),
    Step("Add {k} to every number.", "x = [n + {k} for n in x]", lambda x, k: [n + k for n in x], 1, 9),
    Step("Multiply every number by {k}.", "x = [n * {k} for n in x]", lambda x, k: [n * k for n in x], 2, 6),
    Step("Replace every number by its square.", "x = [n * n for n in x]", lambda x, k: [n * n for n in x]),
    Step("Replace every number by its absolute value.", "x = [abs(n) for n in x]", lambda x, k: [abs(n) for n in x]),
    Step("Reverse the order.", "x = x[::-1]", lambda x, k: x[::-1]),
    Step("Sort from small to large.", "x = sorted(x)", lambda x, k: sorted(x)),
    Step("Remove repeated numbers and keep the first of each.", "x = list(dict.fromkeys(x))",
         lambda x, k: list(dict.fromkeys(x))),
    Step("Remove the first {k} numbers.", "x = x[{k}:]", lambda x, k: x[k:], 1, 3),
    Step("Keep every number whose position, counted from 0, is divisible by {k}.", "x = x[::{k}]",
         lambda x, k: x[::k], 2, 3),
    Step("Move the first {k} numbers to the end, one after the other (nothing happens to an empty list).",
         "x = x[{k} % len(x):] + x[:{k} % len(x)] if x else x", _rotated, 1, 4),
    Step("Replace every number by the sum of it and all before it.",
         "x = [sum(x[:i + 1]) for i in range(len(x))]", lambda x, k: np.cumsum(x, dtype=int).tolist()),
)  # fmt: skip
LIST_ENDS = (
    Step("Return the list.", "return x", lambda x, k: x),
    Step("Return the sum (0 for an empty list).", "return sum(x)", lambda x, k: sum(x)),
    Step("Return how many numbers are left.", "return len(x)", lambda x, k: len(x)),
    Step("Return the largest number (0 for an empty list).", "return max(x, default=0)", lambda x, k: max(x, default=0)),
    Step("Return the smallest number (0 for an empty list).", "return min(x, default=0)",
         lambda x, k: min(x, default=0)),
    Step("Return the largest number minus the smallest (0 for an empty list).",
         "return max(x, default=0) - min(x, default=0)", lambda x, k: max(x, default=0) - min(x, default=0)),
)  # fmt: skip
TEXT_STEPS = (
    Step("Reverse the text.", "x = x[::-1]", lambda x, k: x[::-1]),
    Step("Write it in capital letters.", "x = x.upper()", lambda x, k: x.upper()),
    Step("Remove the vowels (a, e, i, o, u, small or capital).", "x = ''.join(c for c in x if c not in 'aeiouAEIOU')",
         lambda x, k: x.translate(dict.fromkeys(map(ord, "aeiouAEIOU")))),
    Step("Remove the first {k} characters.", "x = x[{k}:]", lambda x, k: x[k:], 1, 3),
    Step("Keep every character whose position, counted from 0, is divisible by {k}.", "x = x[::{k}]",
         lambda x, k: x[::k], 2, 3),
    Step("Write every character {k} times.", "x = ''.join(c * {k} for c in x)",
         lambda x, k: "".join(c * k for c in x), 2, 3),
    Step("Put the words (separated by spaces) in the opposite order, one space between them.",
         "x = ' '.join(x.split()[::-1])", lambda x, k: " ".join(reversed(x.split()))),
    Step("Keep only the words of at least {k} letters, one space between them.",
         "x = ' '.join(w for w in x.split() if len(w) >= {k})",
         lambda x, k: " ".join(w for w in x.split() if len(w) >= k), 3, 5),
    Step("Replace every space by a hyphen.", "x = x.replace(' ', '-')", lambda x, k: x.replace(" ", "-")),
)  # fmt: skip
TEXT_ENDS = (
    Step("Return the text.", "return x", lambda x, k: x),
    Step("Return its length.", "return len(x)", lambda x, k: len(x)),
    Step("Return the number of words (separated by spaces).", "return len(x.split())", lambda x, k: len(x.split())),
    Step("Return how many different characters it has.", "return len(set(x))", lambda x, k: len(set(x))),
    Step("Return whether it reads the same backwards (True or False).", "return x == x[::-1]", lambda x, k: x == x[::-1]),
)  # fmt: skip
KINDS = (("a list of whole numbers", LIST_STEPS, LIST_ENDS), ("a text", TEXT_STEPS, TEXT_ENDS))
WORDS = (
    "a",
    "level",
    "stone",
    "of",
    "Anna",
    "river",
    "blue",
    "noon",
    "tree",
    "it",
    "Moon",
    "garden",
    "x",
    "eye",
    "lamp",
)
EDGES: tuple[Sequence[Any], Sequence[Any]] = (([], [0], [-3, -3, 5, 12]), ("", "a", "noon  Moon"))
"""Inputs that every exercise is tested with in private, of either kind."""


@dataclass(frozen=True)
class Exercise:
    """What is asked, a worked solution, and inputs with right outputs."""

    text: str
    solution: str
    public: Sequence[tuple[Any, Any]]
    private: Sequence[tuple[Any, Any]]


def _draw(count: int, *key: Any) -> int:
    return int(float(rng.uniform("exercises", *key)) * count)


def _input(kind: int, *key: Any) -> Any:
    if kind == 0:
        return [_draw(31, *key, "value", i) - 10 for i in range(3 + _draw(6, *key, "length"))]
    return " ".join(WORDS[_draw(len(WORDS), *key, "word", i)] for i in range(2 + _draw(4, *key, "length")))


def exercise(steps: int, *key: Any) -> Exercise:
    """The exercise of a key, with that many steps before its last: a pure function of both. Inputs are keyed by what is asked,
    so the same question always has the same tests; one that a constant would solve is drawn again."""
    drawn = (_drawn(steps, *key, attempt) for attempt in range(10**6))
    return next(one for one in drawn if _varied(one.public) and _varied(one.private))


def _varied(cases: Sequence[tuple[Any, Any]]) -> bool:
    return len({repr(output) for _, output in cases}) > 1


def _drawn(steps: int, *key: Any) -> Exercise:
    kind = _draw(2, *key, "kind")
    what, middle, ends = KINDS[kind]
    chosen = [middle[_draw(len(middle), *key, "step", i)] for i in range(steps)] + [ends[_draw(len(ends), *key, "end")]]
    numbers = [step.low + _draw(step.high - step.low + 1, *key, "number", i) for i, step in enumerate(chosen)]
    asked = [f"{i}. {step.sentence.format(k=k)}" for i, (step, k) in enumerate(zip(chosen, numbers), start=1)]
    lines = [step.line.format(k=k) for step, k in zip(chosen, numbers)]

    def right(value: Any) -> Any:
        for step, k in zip(chosen, numbers):
            value = step.work(value, k)
        return value

    made = [_input(kind, "\n".join(asked), i) for i in range(9)]
    text = "\n".join([f"Write a Python function solve(x). x is {what}. The function does this, in this order:", *asked])
    return Exercise(
        text=text,
        solution="\n    ".join(["def solve(x):", *lines]),
        public=[(value, right(value)) for value in made[:3]],
        private=[(value, right(value)) for value in (*made[3:], *EDGES[kind])],
    )
