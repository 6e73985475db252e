"""What a generator's reward costs: held-out measures at equal reward, evidence/crd/frontier.json, frontier.png, grids.

Reads the finished runs of `redistill reproduce crd`. For every arm and seed the evaluations along training give curves
of each measure against the reward; where a curve first reaches a reward, the others are interpolated linearly.

    python scripts/crd_frontier.py [--runs runs/reproduce/crd] [--out evidence/crd] [--seeds 0,1,2,3,4]
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from redistill.evaluation.intervals import t_interval
from redistill.experiments import experiment_of

MEASURES = ("step", "frechet", "spread", "legible", "correct", "ink", "drift", "size")
LEVELS = (0.6, 0.8, 0.9)


def crossing(curve: Sequence[Mapping[str, float]], level: float) -> dict[str, float] | None:
    """Every measure where the reward first reaches `level`; None when it never does."""
    for before, after in pairwise(curve):
        if before["reward"] < level <= after["reward"]:
            share = (level - before["reward"]) / (after["reward"] - before["reward"])
            return {name: before[name] + share * (after[name] - before[name]) for name in MEASURES}
    return None


def curve_of(folder: Path) -> list[dict[str, float]]:
    """The evaluations of a run in order of steps."""
    evaluations = json.loads((folder / "result.json").read_text())["evaluations"].values()
    return sorted(evaluations, key=lambda evaluation: evaluation["step"])


def compare(at: Mapping[str, list[dict[str, float] | None]], one: str, other: str) -> dict[str, Any]:
    """Paired differences of measures over the seeds in which both arms reach the reward."""
    pairs = [(a, b) for a, b in zip(at[one], at[other]) if a is not None and b is not None]
    found: dict[str, Any] = {"seeds": len(pairs)}
    for name in MEASURES if len(pairs) > 1 else ():
        gap = t_interval([a[name] - b[name] for a, b in pairs])
        found[name] = {"estimate": round(gap.estimate, 4), "low": round(gap.low, 4), "high": round(gap.high, 4)}
    return found


def plot(path: Path, curves: Mapping[str, list[list[dict[str, float]]]]) -> None:
    """Reward against samples, and three measures against the reward."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 8))
    views = [("step", "reward"), ("reward", "frechet"), ("reward", "spread"), ("reward", "legible")]
    for number, (arm, seeds) in enumerate(curves.items()):
        for axis, (x, y) in zip(axes.flat, views):
            for seed, curve in enumerate(seeds):
                axis.plot(
                    [e[x] for e in curve], [e[y] for e in curve], color=f"C{number}", alpha=0.6, linewidth=1,
                    label=arm if seed == 0 else None,
                )  # fmt: skip
            axis.set_xlabel("updates (128 images each)" if x == "step" else "trained reward")
            axis.set_ylabel(y)
            axis.grid(alpha=0.3)
    axes.flat[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    """Read the runs and write the evidence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduce/crd"))
    parser.add_argument("--out", type=Path, default=Path("evidence/crd"))
    parser.add_argument("--seeds", default="0,1,2,3,4")
    args = parser.parse_args()
    seeds = [int(part) for part in args.seeds.split(",")]
    arms = list(experiment_of("crd").arms)
    curves = {arm: [curve_of(args.runs / f"{arm.replace(' ', '_')}-s{seed}") for seed in seeds] for arm in arms}
    written: dict[str, Any] = {"seeds": seeds, "start": {name: curves[arms[0]][0][0][name] for name in MEASURES}}
    for level in LEVELS:
        at = {arm: [crossing(curve, level) for curve in curves[arm]] for arm in arms}
        means = {}
        for arm, found in at.items():
            reached = [values for values in found if values is not None]
            means[arm] = {"reached": len(reached)} | {
                name: round(sum(values[name] for values in reached) / len(reached), 4) for name in MEASURES if reached
            }
        others = {f"crd - {arm}": compare(at, "crd", arm) for arm in arms if arm != "crd"}
        written[f"at reward {level:g}"] = {"means": means, "differences": others}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "frontier.json").write_text(json.dumps(written, indent=1) + "\n")
    plot(args.out / "frontier.png", curves)
    for arm in arms:
        name = arm.replace(" ", "_")
        shutil.copy(args.runs / f"{name}-s{seeds[0]}" / "model" / "samples.png", args.out / f"samples-{name}.png")


if __name__ == "__main__":
    main()
