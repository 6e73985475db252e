"""reasoning-gym's CodeI/O turned round: where that asks what a function returns, the model writes the function.

Each of its rows describes a function in words and brings a reference and a generator of inputs, both code of others: they run in the
sandbox only, to make the tests. `assets/codeio.json` lists the rows that can be used (scripts/codeio_rows.py made it): those that
need the standard library only, return plain values, return the same twice and not always the same.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from redistill.core.rng import permutation
from redistill.core.state import digest
from redistill.core.task import Prompt, content_uid, is_held_out
from redistill.errors import UserError
from redistill.sandbox import Case, Limits, Program, judge, plain

PUBLIC, PRIVATE = 3, 6
"""Tests of either kind."""
ROWS = Path(__file__).parents[1] / "assets" / "codeio.json"
FUNCTION = "main_solution"
MAKER = """

def make_a_test(seed):
    import copy
    given = generate_inputs(Random(seed))
    return given, main_solution(**copy.deepcopy(given))
"""


def path() -> Path:
    """The data file inside the package reasoning-gym, which is found but not imported (its import takes seconds)."""
    found = importlib.util.find_spec("reasoning_gym")
    if found is None or found.origin is None:
        raise UserError(
            "task code source=codeio needs the package reasoning-gym: pip install 'reasoning-gym>=0.1.23,<0.2'"
        )
    return Path(found.origin).with_name("data") / "codeio.jsonl.gz"


@lru_cache(maxsize=1)
def rows() -> Sequence[Mapping[str, Any]]:
    """All rows of the data file."""
    with gzip.open(path(), "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@lru_cache(maxsize=1)
def usable() -> Sequence[int]:
    """Numbers of the rows that can be used. Raises UserError when the installed data file is another than they were found in."""
    told = json.loads(ROWS.read_text())
    if digest(path()) != told["sha256"]:
        raise UserError(
            f"task code source=codeio knows the data of reasoning-gym {told['version']}: install that version"
        )
    found: list[int] = told["rows"]
    return found


def maker(row: Mapping[str, Any]) -> str:
    """The program that makes a row's tests."""
    return "from random import Random\n" + row["code_sample"] + "\n\n" + row["input_generator"] + MAKER


def question(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """What the model is asked."""
    told = f"{row['task_description'].strip()}\n\n{row['input_output_spec'].strip()}"
    request = (
        f"Write a Python function {FUNCTION} that takes the inputs above as named arguments and returns the output. "
        "Reply with the program in one Python code block."
    )
    return [{"role": "user", "content": f"{told}\n\n{request}"}]


@lru_cache(maxsize=4096)
def tests(number: int, limits: Limits, unsafe: bool) -> tuple[str, str]:
    """(public, private) tests of a row as JSON, made by its reference and generator in the sandbox."""
    cases = [Case(((seed,), {}), None) for seed in range(PUBLIC + PRIVATE)]
    program = Program(maker(rows()[number]), "make_a_test", cases, all_tests=True)
    (outcome,) = judge([program], limits, unsafe=unsafe)
    if len(outcome.outputs) < len(cases):
        told = outcome.failure.told if outcome.failure is not None else ""
        raise UserError(
            f"the reference of row {number} of CodeI/O did not run here ({told or 'no output'}): widen seconds or memory_mb"
        )
    made = [{"input": given, "output": output} for given, output in map(plain.value, outcome.outputs)]
    return json.dumps(made[:PUBLIC]), json.dumps(made[PUBLIC:])


@dataclass(frozen=True)
class CodeIO:
    """The prompts of both splits; the hash of a question's text decides which it is in."""

    limits: Limits
    unsafe: bool

    def prompt(self, number: int) -> Prompt:
        """The prompt of a row."""
        from redistill.tasks.code import asked

        public, private = tests(number, self.limits, self.unsafe)
        told = {"public_tests": json.loads(public), "private_tests": json.loads(private)}
        return asked(question(rows()[number]), FUNCTION, told, rows()[number]["code_sample"].strip())

    def train(self, index: int, seed: int) -> Prompt:
        """Every training row once an epoch, in another order each epoch."""
        numbers = _split()[False]
        epoch, position = divmod(index, len(numbers))
        return self.prompt(numbers[int(permutation(len(numbers), "codeio", seed, epoch)[position])])

    def held_out(self, count: int) -> Sequence[Prompt]:
        """The first `count` held-out rows; fewer when there are fewer."""
        return [self.prompt(number) for number in _split()[True][: max(count, 0)]]


@lru_cache(maxsize=1)
def _split() -> Mapping[bool, Sequence[int]]:
    """Usable rows by whether they are held out; a question that is there twice is used once."""
    found: dict[bool, list[int]] = {False: [], True: []}
    seen: set[str] = set()
    for number in usable():
        uid = content_uid(question(rows()[number]))
        if uid not in seen:
            found[is_held_out(uid)].append(number)
        seen.add(uid)
    return found
