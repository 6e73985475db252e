"""What the sandbox holds and how fast it judges: the figures of `make trust` (python -m benchmarks.trust_sandbox prints them).

The hostile programs and the things outside that they go for are those of tests/sandbox.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

from redistill.sandbox import Case, Limits, Pool, Program

SECONDS = 8.0
"""How long the judging of honest programs is timed."""
HONEST = """
from collections import Counter
import math

def summary(words):
    counts = Counter(words)
    longest = max(map(len, words), default=0)
    return [sorted(counts.items()), longest, math.isqrt(sum(counts.values()))]
"""
"""A program of the usual kind: two imports, a function, five tests."""


def _honest() -> Program:
    inputs = [["a"], ["b", "a", "b"], [], ["stone"] * 9, list("redistill")]
    right = [
        [[["a", 1]], 1, 1], [[["a", 1], ["b", 2]], 1, 1], [[], 0, 0], [[["stone", 9]], 5, 3],
        [[["d", 1], ["e", 1], ["i", 2], ["l", 2], ["r", 1], ["s", 1], ["t", 1]], 1, 3],
    ]  # fmt: skip
    return Program(HONEST, "summary", [Case(((given,), {}), output) for given, output in zip(inputs, right)])


def judged_per_second(seconds: float = SECONDS, workers: int = 0) -> float:
    """Honest programs judged a second, each in a jail of its own, on this machine's cores."""
    pool, program, count = Pool(Limits(), workers=workers), _honest(), 0
    try:
        pool.judge([program] * 4)
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            passed = [outcome.passed for outcome in pool.judge([program] * 16)]
            assert passed == [5] * 16, "an honest program was judged wrong"
            count += len(passed)
        return count / (time.perf_counter() - began)
    finally:
        pool.close()


def figures() -> dict[str, float | int]:
    """`hostile_programs` tried, `escapes` (things outside that are not as they were, and processes that are left),
    `forged_rewards` (programs that earned anything), `late` (programs not gone within their limit), `judged_per_second`.
    Raises UserError where there can be no jail."""
    from tests.sandbox.lab import MARGIN, Outside, hostile, left_over, marked, try_all

    limits, names = marked(), list(hostile())
    with tempfile.TemporaryDirectory() as folder, Outside(Path(folder)) as outside:
        trials = try_all(outside, names, limits).values()
        escapes = len(outside.changes()) + len(left_over(limits))
    return {
        "hostile_programs": len(names),
        "escapes": escapes,
        "forged_rewards": sum(trial.outcome.passed > 0 for trial in trials),
        "late": sum(trial.seconds > limits.wall + MARGIN for trial in trials),
        "judged_per_second": round(judged_per_second(), 1),
    }


if __name__ == "__main__":
    print(json.dumps(figures(), indent=1))
