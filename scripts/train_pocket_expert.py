"""Train the teachers of `pocket`, which ship beside it, from `pocket` itself on one core (about ten minutes for all).

    OMP_NUM_THREADS=1 python scripts/train_pocket_expert.py [NAME ...] [--work FOLDER]

Each is a chain of ordinary runs: what one saves, the next starts from. `pocket-expert` is supervised on worked sums until
it is nearly always right; `pocket-pairs` the same on another sub-task, sums of two terms, which `pocket` cannot do at all;
`pocket-adept` is `pocket` after some GRPO and no solutions, better than `pocket` and far from perfect: a teacher that can be
surpassed. Their cards (expert.json) hold the settings and the accuracies on held-out prompts.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from redistill.build import prepare
from redistill.core.runs import versions
from redistill.evaluation.saved import evaluate_saved
from redistill.reporting.terminal import reporter

ASSETS = Path(__file__).resolve().parents[1] / "redistill" / "assets"
TRIPLES, PAIRS = "sums:terms=3,digits=2", "sums:terms=2,digits=2"
COMMON = {
    "seed": 77, "max_new_tokens": 16, "eval_prompts": 200, "utility": "false", "save_every": 100000, "weight_decay": 0.01,
    "warmup_steps": 20,
}  # fmt: skip
SUPERVISED = {"prompts_per_step": 64, "steps": 900, "learning_rate": 1e-3}
SETTLED = {"prompts_per_step": 64, "steps": 300, "learning_rate": 1e-4, "seed": 78}
RL = {
    "prompts_per_step": 16,
    "group_size": 8,
    "steps": 300,
    "learning_rate": 1.5e-4,
    "std": "none",
    "normaliser": "token",
}

TEACHERS: Mapping[str, tuple[str, Sequence[tuple[str, Mapping[str, Any]]]]] = {
    "pocket-expert": (TRIPLES, [("sft", SUPERVISED), ("sft", SETTLED)]),
    "pocket-pairs": (PAIRS, [("sft", SUPERVISED), ("sft", SETTLED)]),
    "pocket-adept": (TRIPLES, [("grpo", RL)]),
}


def train(name: str, work: Path) -> None:
    """Run a teacher's chain and put its model and card where `checkpoint(NAME)` finds it."""
    task, chain = TEACHERS[name]
    began, model, runs = time.monotonic(), "pocket", []
    for at, (method, own) in enumerate(chain):
        folder = work / f"{name}-{at}"
        shutil.rmtree(folder, ignore_errors=True)
        given = {**COMMON, **own, "task": task, "model": model}
        run = prepare(method, given, out=folder, report=reporter(quiet=True, silent=True))
        result = run.go(False)
        run.close()
        model = str(folder / "model")
        after = result["evaluations"]["after"]
        runs.append({"method": method, "settings": {**COMMON, **own}})
        print(
            f"{name}: {method} {result['steps']} steps, accuracy {after['accuracy']:.3f}, {result['seconds']:.0f} s",
            flush=True,
        )
    spent = time.monotonic() - began
    found = {
        each: evaluate_saved(model, each, 4, 1000, {"max_new_tokens": "24", "utility": "false"}) for each in (TRIPLES, PAIRS)
    }  # fmt: skip
    card = {
        "from": "pocket", "task": task, "runs": runs, "minutes": round(spent / 60, 1), "held_out_prompts": 1000,
        "accuracy": {each: {"greedy": round(f["accuracy"], 4), "avg_at_4": round(f["avg_at_k"], 4)} for each, f in found.items()},
        "versions": versions(),
    }  # fmt: skip
    target = ASSETS / name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(model, target)
    (target / "expert.json").write_text(json.dumps(card, indent=2) + "\n")
    print(json.dumps({name: card["accuracy"]}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the teachers of pocket on one core.")
    parser.add_argument("names", nargs="*", default=list(TEACHERS), metavar="NAME", help=", ".join(TEACHERS))
    parser.add_argument("--work", type=Path, default=Path("runs") / "teachers")
    options = parser.parse_args()
    for name in options.names:
        if name not in TEACHERS:
            parser.error(f"{name!r} is none of {', '.join(TEACHERS)}")
        train(name, options.work)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
