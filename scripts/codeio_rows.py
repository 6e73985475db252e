"""Finds the rows of reasoning-gym's CodeI/O that `code:source=codeio` can use, and writes redistill/assets/codeio.json.

python scripts/codeio_rows.py            (some minutes; everything runs in the sandbox)
"""

from __future__ import annotations

import json
import re
from importlib.metadata import version

from redistill.core.state import digest
from redistill.sandbox import Case, Limits, Outcome, Pool, Program, plain
from redistill.tasks import codeio

LONGEST = 1500
"""Characters of a test."""
BLOCK = 100
UNSURE = re.compile(
    r"\b(random\.|randint|shuffle|time\.|datetime\.now|today\(|urandom|uuid|secrets|numpy|sympy|open\()"
)


def wanted(row: dict[str, object]) -> bool:
    """Whether a row's reference looks as if it gave the same everywhere."""
    return not UNSURE.search(str(row["code_sample"]).replace("import random", ""))


def fits(first: Outcome, second: Outcome) -> bool:
    """Whether a row's tests are all there, the same twice, of JSON values, short and not all of one output."""
    if len(first.outputs) < codeio.PUBLIC + codeio.PRIVATE or first.outputs != second.outputs:
        return False
    try:
        made = [plain.value(output) for output in first.outputs]
        texts = [json.dumps(one, allow_nan=False) for one in made]
        again = [json.loads(text) for text in texts]
    except (TypeError, ValueError):
        return False
    outputs = [json.dumps(output) for _, output in made]
    public, private = outputs[: codeio.PUBLIC], outputs[codeio.PUBLIC :]
    named = all(isinstance(given, dict) for given, _ in made)
    same = again == [list(one) for one in made]
    return named and same and max(map(len, texts)) <= LONGEST and len(set(public)) > 1 and len(set(private)) > 2


def main() -> None:
    """Run every row's reference twice."""
    pool = Pool(Limits(seconds=1))
    cases = [Case(((seed,), {}), None) for seed in range(codeio.PUBLIC + codeio.PRIVATE)]
    kept: list[int] = []
    numbers = [number for number, row in enumerate(codeio.rows()) if wanted(dict(row))]
    for start in range(0, len(numbers), BLOCK):
        block = numbers[start : start + BLOCK]
        programs = [Program(codeio.maker(codeio.rows()[n]), "make_a_test", cases, all_tests=True) for n in block]
        outcomes = pool.judge([*programs, *programs])
        kept += [n for n, a, b in zip(block, outcomes, outcomes[len(block) :]) if fits(a, b)]
        print(f"{start + len(block)} of {len(numbers)} rows, {len(kept)} kept", flush=True)
    told = {"sha256": digest(codeio.path()), "version": version("reasoning-gym"), "rows": kept}
    codeio.ROWS.write_text(json.dumps(told) + "\n")
    pool.close()


if __name__ == "__main__":
    main()
