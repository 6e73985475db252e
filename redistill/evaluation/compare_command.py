"""The verb `compare` of the command line: its arguments, and what it does with them."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from redistill.core.stopping import Interrupted, Stop
from redistill.errors import UserError


def add_compare(verbs: Any) -> None:
    """Declare the verb."""
    one = verbs.add_parser(
        "compare",
        help="methods on one task and model, with equal budgets: curves, differences with intervals, cost",
        description="The first method is the baseline. A method is METHOD, METHOD:key=value,... or NAME=METHOD:key=value,...",
    )
    one.add_argument("methods", nargs="+", metavar="METHOD", help="two or more, e.g. grpo sdpo:teacher=ema(0.1)")
    one.add_argument("--task", required=True, help="task, e.g. chain_sum:min_terms=2,max_terms=4")
    one.add_argument("--model", help="model name, folder or hub id (default: pocket, or the domain's own)")
    one.add_argument(
        "--budget", required=True, help="of every run: rollouts=N, tokens=N (generated) or seconds=N (of training)"
    )
    one.add_argument("--seeds", default="0,1,2", help="comma-separated (default 0,1,2)")
    one.add_argument(
        "--out", type=Path, help="folder; runs that it holds are not repeated (default: runs/compare-<task>-<model>)"
    )
    one.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of all runs, e.g. learning_rate=1e-4"
    )
    one.add_argument("--quiet", action="store_true", help="plain lines instead of a progress bar")
    one.add_argument("--json", action="store_true", help="print JSON only")


def compare_command(arguments: argparse.Namespace) -> int:
    """Run the comparison; the exit status."""
    from redistill.config import parse_pairs
    from redistill.evaluation.compare import compare
    from redistill.reporting.compare_terminal import print_comparison, watcher

    seeds = whole_numbers(arguments.seeds)
    words = shlex.join(arguments.words)
    report, stop = watcher(quiet=arguments.quiet, silent=arguments.json), Stop()
    try:
        with stop.listening():
            found = compare(
                arguments.methods, task=arguments.task, model=arguments.model, budget=arguments.budget, seeds=seeds,
                out=arguments.out, common=parse_pairs(arguments.set), report=report, stop=stop, command=f"redistill {words}",
            )  # fmt: skip
    except (Interrupted, KeyboardInterrupt):
        print(f"redistill: stopped; the same command goes on from here: redistill {words}", file=sys.stderr)
        return stop.status
    finally:
        report("end", {})
    if arguments.json:
        print(json.dumps(found))
    else:
        print_comparison(found)
    return 0


def whole_numbers(text: str) -> list[int]:
    """Read the seeds."""
    try:
        seeds = [int(seed) for seed in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds {text!r} is not a comma-separated list of whole numbers") from None
    if min(seeds) < 0:
        raise UserError(f"--seeds {text!r}: a seed is 0 or more")
    return seeds
