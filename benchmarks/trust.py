"""Trust in figures: `make trust`, or `python -m benchmarks.trust [--only services,verifiers] [--quick] [--check]`.

Four parts are measured: programs in the sandbox, kills and damaged files, faults of a served teacher, replies that are made to
please a verifier. What each found in detail goes to benchmarks/results/trust-details.json as it comes (so that a part can be
measured again alone), the figures to trust.json once there are all, and the tables of docs/reliability.md are made from them.
Exit status 0 only when every goal is met.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from redistill.core.runs import versions

from benchmarks.run import machine

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "reliability.md"
PARTS = {name: f"benchmarks.trust_{name}" for name in ("services", "verifiers", "sandbox", "resume")}
TAKES_QUICK = ("services", "verifiers", "resume")
GOALS: Mapping[str, tuple[str, str]] = {
    "kills": (">= 50", "runs killed (SIGKILL) at random moments, while a checkpoint is written and while the disk is full among them"),
    "resumed_exact": ("= kills", "of these, ended after a resume with the weights of an undisturbed run, bit for bit"),
    "hostile_programs": (">= 40", "programs that attack the sandbox, the tester or the machine"),
    "escapes": ("= 0", "things outside of the sandbox that one of them changed or left"),
    "forged_rewards": ("= 0", "rewards that a hostile program, or a reply made to please a verifier, earned"),
    "inputs_fuzzed": (">= 1000", "damaged checkpoints and files, and hostile replies to every verifier"),
    "crashes": ("= 0", "of these, anything but a verdict or one plain sentence"),
    "faults_injected": (">= 20", "faults of a served teacher (40 kinds, each at up to four moments of a run), over HTTP"),
    "faults_survived": ("= faults_injected", "of these, the run ended with the weights of an undisturbed run, at once or resumed after one plain sentence"),
    "states_covered": ("= states_registered", "parts that evolve and that a resume test covers"),
    "states_registered": (">= 1", "parts that evolve and are registered, over all methods and domains"),
    "judged_per_second": (">= 30", "programs judged in the sandbox in a second, on this machine"),
}  # fmt: skip
"""What each figure has to be, and what it counts."""


def met(figures: Mapping[str, Any], name: str) -> bool:
    """Whether a figure reaches its goal."""
    relation, goal = GOALS[name][0].split()
    bound = figures[goal] if goal in figures else float(goal)
    return bool(figures[name] >= bound if relation == ">=" else figures[name] == bound)


def merged(details: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The figures out of the parts."""
    services, verifiers, sandbox, resume = (details[name] for name in PARTS)
    return {
        "kills": resume["kills"], "resumed_exact": resume["resumed_exact"], "hostile_programs": sandbox["hostile_programs"],
        "escapes": sandbox["escapes"], "forged_rewards": sandbox["forged_rewards"] + verifiers["unearned_rewards"],
        "inputs_fuzzed": resume["inputs_fuzzed"] + verifiers["inputs_fuzzed"], "crashes": resume["crashes"] + verifiers["crashes"],
        "faults_injected": services["faults_injected"], "faults_survived": services["faults_survived"],
        "states_covered": resume["states_covered"], "states_registered": resume["states_registered"],
        "judged_per_second": sandbox["judged_per_second"],
    }  # fmt: skip


def measure(name: str, quick: bool) -> dict[str, Any]:
    """One part, with the minutes it took. SystemExit in words when its module is not there."""
    try:
        module = import_module(PARTS[name])
    except ModuleNotFoundError as error:
        raise SystemExit(f"the part {name!r} cannot be measured: there is no module {error.name}") from None
    began = time.monotonic()
    found = dict(module.figures(quick=quick) if name in TAKES_QUICK else module.figures())
    return {**found, "minutes": round((time.monotonic() - began) / 60, 1), "quick": quick}


def rows(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """A table of the page."""
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in body), ""]


def figures_block(found: Mapping[str, Any] | None, details: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of figures, or what is missing for it."""
    if found is None:
        missing = ", ".join(name for name in PARTS if name not in details)
        body = [[name, str(value)] for part in details.values() for name, value in part.items() if name in GOALS]
        return "\n".join(
            [
                f"Not all parts have been measured yet (missing: {missing}). So far:",
                "",
                *rows(("what", "measured"), body),
            ]
        )
    who, names = found["machine"], ("python", "torch", "transformers", "safetensors")
    used = ", ".join(f"{name} {found['versions'][name]}" for name in names)
    body = [
        [f"`{name}`", what, goal, str(found[name]), "yes" if met(found, name) else "**no**"]
        for name, (goal, what) in GOALS.items()
    ]
    head = f"Measured {found['date']} on {who['cpu']}, {who['threads']} threads, {who['memory_gb']:.0f} GB ({used}), in {found['minutes']} minutes."
    return "\n".join([head, "", *rows(("figure", "what it counts", "goal", "measured", "met"), body)])


def bounds_block(bounds: Mapping[str, Any]) -> str:
    """Versions and outcome at both ends of the ranges."""
    if not bounds:
        return "Not measured yet.\n"
    names = sorted({name for end in bounds.values() for name in end["versions"]})
    body = [[name, *(end["versions"].get(name, "") for end in bounds.values())] for name in names]
    tests = [
        "**smoke tests**",
        *(", ".join(f"{n} {word}" for word, n in end["tests"].items()) for end in bounds.values()),
    ]
    return "\n".join(
        rows(
            ("package", *(f"{name} end ({end['date']}, Python {end['python']})" for name, end in bounds.items())),
            [tests, *body],
        )
    )


def page_with(page: str, name: str, block: str) -> str:
    """The page with the block between <!-- name --> and <!-- /name --> replaced. ValueError without these markers."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"docs/reliability.md lacks {begin} ... {end}")
    return f"{before}{begin}\n{block.rstrip()}\n{end}{after}"


def fresh_page() -> str:
    """The page as the results make it."""
    details = load("trust-details.json") or {}
    page = page_with(PAGE.read_text(), "figures", figures_block(load("trust.json"), details))
    return page_with(page, "bounds", bounds_block(load("bounds.json") or {}))


def load(name: str) -> Any:
    """A file of results; None where there is none."""
    path = RESULTS / name
    return json.loads(path.read_text()) if path.is_file() else None


def main() -> int:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(PARTS), help="parts to measure again; the others are kept")
    parser.add_argument("--quick", action="store_true", help="a few of each, to see that it works; nothing is written")
    parser.add_argument("--page", action="store_true", help="write docs/reliability.md only")
    parser.add_argument("--check", action="store_true", help="fail when docs/reliability.md is stale")
    given = parser.parse_args()
    if given.check or given.page:
        stale = fresh_page() != PAGE.read_text()
        if given.page:
            PAGE.write_text(fresh_page())
        elif stale:
            print("docs/reliability.md is stale: run python -m benchmarks.trust --page")
        return int(stale and given.check)
    wanted = [name for name in given.only.split(",") if name]
    if unknown := [name for name in wanted if name not in PARTS]:
        parser.error(f"--only {unknown[0]}: the parts are {', '.join(PARTS)}")
    details: dict[str, Any] = {} if given.quick else load("trust-details.json") or {}
    for name in wanted:
        details[name] = measure(name, given.quick)
        print(f"{name}: {json.dumps(details[name])}", flush=True)
        if not given.quick:
            RESULTS.mkdir(parents=True, exist_ok=True)
            (RESULTS / "trust-details.json").write_text(json.dumps(details, indent=1) + "\n")
    if missing := [name for name in PARTS if name not in details]:
        print(f"trust.json needs all parts; not measured: {', '.join(missing)}")
        if not given.quick:
            PAGE.write_text(fresh_page())
        return 2
    threads = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    found = {
        **merged(details), "machine": machine(threads), "versions": versions(), "date": datetime.date.today().isoformat(),
        "minutes": round(sum(part["minutes"] for part in details.values()), 1),
    }  # fmt: skip
    if not given.quick:
        (RESULTS / "trust.json").write_text(json.dumps(found, indent=1) + "\n")
        PAGE.write_text(fresh_page())
    for name, (goal, what) in GOALS.items():
        print(f"{name:20} {found[name]:>8}  {'ok ' if met(found, name) else 'NOT'} {goal:>20}  {what}")
    return int(not all(met(found, name) for name in GOALS) and not given.quick)


if __name__ == "__main__":
    sys.exit(main())
