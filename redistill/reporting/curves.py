"""Plots of evidence: learning curves of every arm, one thin line a seed and a thick mean."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from redistill.experiments.base import Experiment


def plot_evidence(
    path: Path, experiment: Experiment, verdict: Mapping[str, Any], results: Mapping[str, list[dict[str, Any]]]
) -> None:
    """Write a PNG: the metric against steps, an arm a colour."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.8))
    for number, (arm, rows) in enumerate(results.items()):
        colour = f"C{number}"
        curves = []
        for result in rows:
            points = sorted((e["step"], e[experiment.metric]) for e in result["evaluations"].values())
            curves.append(points)
            axes.plot(*zip(*points), color=colour, alpha=0.3, linewidth=0.8)
        mean = [(step, sum(curve[i][1] for curve in curves) / len(curves)) for i, (step, _) in enumerate(curves[0])]
        dash = "-" if number < 10 else "--"  # the ten colours come round again
        axes.plot(*zip(*mean), color=colour, linewidth=2, label=arm, linestyle=dash)
    reference = f"teacher_{experiment.metric}"
    for level in sorted(
        {e[reference] for rows in results.values() for r in rows for e in r["evaluations"].values() if reference in e}
    ):
        axes.axhline(level, color="grey", linestyle=":", linewidth=1, label=f"teacher alone: {level:.2f}")
    gap = verdict["difference"]
    axes.set_title(
        f"{experiment.slug}: {verdict['verdict']}   {gap['of']} = {gap['estimate']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]",
        fontsize=10,
    )
    axes.set_xlabel("updates")
    axes.set_ylabel(f"held-out {experiment.metric}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_plane(path: Path, experiment: Experiment, results: Mapping[str, list[dict[str, Any]]]) -> None:
    """Write a PNG: an experiment's two traces against each other, an arm a path from its first evaluation to its last (dot)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    across, up = experiment.traces
    figure, axes = plt.subplots(figsize=(6.4, 4.8))
    for number, (arm, rows) in enumerate(results.items()):
        for seed, result in enumerate(rows):
            evaluations = sorted(result["evaluations"].values(), key=lambda e: e["step"])
            xs, ys = [e[across] for e in evaluations], [e[up] for e in evaluations]
            axes.plot(xs, ys, color=f"C{number}", alpha=0.7, linewidth=1.2, label=arm if seed == 0 else None)
            axes.plot(xs[-1:], ys[-1:], "o", color=f"C{number}", markersize=4)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.set_title(experiment.slug, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
