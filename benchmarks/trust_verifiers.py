"""Hostile replies against every verifier: none may raise, hang, or earn the reward of an answer that it does not give.

`python -m benchmarks.trust_verifiers [--quick]` prints what `figures` returns; `make trust` adds it to its own.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from redistill.core.task import Prompt, Task, checked_verdict
from redistill.tasks import gym, verifiers
from redistill.tasks.confidence import Confident
from redistill.tasks.files import FileTask
from redistill.tasks.gym import GymTask, gym_names
from redistill.tasks.sums import Sums

SECONDS = 0.3
"""Processor seconds for judging one reply here: hostile ones use them up."""
DIGITS = ("\uff10", "\u0660", "\u06f0", "\u0966", "\U0001d7ce", "\U0001d7d8")
"""The zeros of scripts whose digits Python reads as numbers."""
ATTACKS = (
    "", " ", "\n" * 100, "\x00", "\ud800", "\u202e24", "\u200b", "\\", "{", "}" * 5000, "[" * 5000, "(" * 5000, "-" * 5000,
    "nan", "inf", "-inf", "NaN", "Infinity", "None", "null", "True", "1e999999999", "-1e999999999", "1e-999999999",
    "9" * 5000, "0." + "0" * 5000 + "1", "1/0", "0/0", "10**10**10", "10^10^10", "10^{10^{10}}", "9**9**9**9", "((9!)!)!",
    "2**(2**(2**100))", "(1+1)**(10**8)", "x**x**x**x", "\\frac{1}{0}", "\\sum_{n=1}^{10^{12}} n", "\\binom{10^9}{5}",
    "\\boxed{" * 2000 + "1" + "}" * 2000, "\\boxed{1} \\boxed{2}", "\\boxed{\\boxed{1} \\boxed{2}}", "\\boxed{", "\\boxed{}",
    "<answer>" * 1000, "<answer></answer>", "answer is " * 2000, "= " * 5000, "a" * 30_000 + "!", "__import__('os').getcwd()",
    "().__class__.__base__.__subclasses__()", "lambda: 0", "f'{1}'", "[x for x in range(10**9)]", "'a' * 10**10",
    "[1] * 10**10", "range(10**18)", '{"a": ' * 3000, "<a>" * 3000, "%s%n%d", "$(id)", "; DROP TABLE x", "\U0001f600" * 2000,
)  # fmt: skip
_ALPHABET = "0123456789+-*/^(){}[]=.,eE \n\\boxed$x<answer>/\u0664\uff14\u22121\u00b2\u200d"


def random_replies(count: int, seed: int) -> Iterator[str]:
    """Random text of what answers are made of."""
    draw = random.Random(seed)
    for _ in range(count):
        yield "".join(draw.choices(_ALPHABET, k=draw.randint(0, 200)))


def in_digits(text: str, zero: str) -> str:
    """`text` with its digits written in another script."""
    return "".join(chr(ord(zero) + int(each)) if each in "0123456789" else each for each in text)


def unearned(prompt: Prompt, draw: random.Random) -> Iterator[str]:
    """Replies that look like the right answer, hold it among others, or repeat the question: none gives it."""
    right = prompt.answer or ""
    if any(each in "0123456789" for each in right):
        yield from (in_digits(right, zero) for zero in DIGITS)
    if right.lstrip("-").isdigit() and right.isascii():
        others = [str(int(right) + draw.choice([-1, 1]) * draw.randint(1, 99)) for _ in range(20)]
        yield from (joint.join([right, *others]) for joint in (" ", ", ", "\n", " or ", " = "))
        yield "\\boxed{" + ", ".join([*others, right]) + "}"
        yield "\\boxed{" + right + "} " + " ".join(f"\\boxed{{{each}}}" for each in others)


def rows(folder: Path) -> Iterator[tuple[str, Task]]:
    """A file task for each verifier and format."""
    question = "Which of these is the sum of twelve and thirty, please: 41 or 42 or 43 or 44?"
    data: dict[str, Any] = {"prompt": question, "answer": "42", "choices": ["41", "42", "43", "44"], "split": "train"}
    (folder / "rows.jsonl").write_text(json.dumps(data) + "\n")
    (folder / "patterns.jsonl").write_text(json.dumps({**data, "answer": "(4|44)+2|(a|aa)+"}) + "\n")
    (folder / "hostile_checks.py").write_text(
        "import re\ndef judge(prompt, reply):\n    return float(bool(re.fullmatch(r'(a|aa|42)+', reply.strip())))\n"
    )
    for name in (*verifiers.VERIFIERS, str(folder / "hostile_checks") + ":judge"):
        path = folder / ("patterns.jsonl" if name == "pattern" else "rows.jsonl")
        for answer_format in ("plain", "boxed", "tag"):
            yield f"{name} {answer_format}", FileTask(str(path), name.removeprefix(f"{folder}/"), answer_format)


def tasks(folder: Path, quick: bool) -> Iterator[tuple[str, Task]]:
    """Everything that judges text."""
    yield from rows(folder)
    yield "sums", Sums()
    yield "confident sums", Confident(Sums())
    names = [name for name in gym_names() if name != "composite"]
    for name in names[:: 12 if quick else 1]:
        yield name, GymTask(name)


def attack(name: str, task: Task, found: dict[str, Any], quick: bool) -> None:
    """All hostile replies against one task; what came of them is added to `found`."""
    prompt, draw = task.train(0, 0), random.Random(name)
    replies = [(each, False) for each in (*ATTACKS, *random_replies(10 if quick else 40, len(name)))]
    closed = name == "sums" or name.split()[0] in ("number", "math", "exact")
    replies += [(each, closed or isinstance(task, GymTask)) for each in unearned(prompt, draw)]
    for reply, guarded in replies:
        found["inputs_fuzzed"] += 1
        began = time.monotonic()
        try:
            verdict = checked_verdict(task, prompt, task.verify(prompt, reply))
        except Exception as error:
            found["crashes"] += 1
            found["worst"].append(f"{name}: {type(error).__name__} on {reply[:60]!r}")
            continue
        found["given_up"] += verdict.limit is not None
        if guarded and verdict.reward >= 1.0:
            found["unearned_rewards"] += 1
            found["worst"].append(f"{name}: {reply[:60]!r} earned {verdict.reward}")
        found["slowest_seconds"] = max(found["slowest_seconds"], round(time.monotonic() - began, 1))


def figures(quick: bool = False) -> dict[str, Any]:
    """inputs_fuzzed, crashes, unearned_rewards, given_up (judging stopped at its limit), slowest_seconds, and `worst`: what
    went wrong, a line each."""
    found: dict[str, Any] = {
        "inputs_fuzzed": 0, "crashes": 0, "unearned_rewards": 0, "given_up": 0, "slowest_seconds": 0.0, "worst": [],
    }  # fmt: skip
    kept = verifiers.ANSWER_SECONDS, gym.ANSWER_SECONDS
    verifiers.ANSWER_SECONDS = gym.ANSWER_SECONDS = SECONDS
    with tempfile.TemporaryDirectory() as name:
        sys.path.append(name)
        try:
            for what, task in tasks(Path(name), quick):
                attack(what, task, found, quick)
        finally:
            sys.path.remove(name)
            verifiers.ANSWER_SECONDS, gym.ANSWER_SECONDS = kept
    return found


if __name__ == "__main__":
    print(json.dumps(figures("--quick" in sys.argv), indent=1))
