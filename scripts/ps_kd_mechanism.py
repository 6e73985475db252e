"""How PS-KD treats right and wrong labels: evidence/ps-kd/mechanism.json and mechanism.png.

Trains the experiment's noisy arm over seeds and keeps, for each epoch, the median over images of the share that the
given label has in its target, 1 - alpha + alpha P_{t-1}(y); and for the last epoch the rescaling of each image's
gradient, 1 - alpha gamma_{t-1} / gamma_t, where gamma is the probability of being wrong.

    python scripts/ps_kd_mechanism.py [--seeds 0,1,2,3,4] [--out evidence/ps-kd]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from redistill.build import prepare
from redistill.experiments import experiment_of
from redistill.methods.ps_kd import PSKD

EDGES = np.linspace(-1.0, 1.0, 21)
"""Edges of the histogram; what lies below -1 is counted in the first bin."""


def watch(seed: int, learning_rate: float, folder: Path) -> dict[str, Any]:
    """Train one seed: medians of the target's share by epoch, and the last epoch's rescalings, by kind of label."""
    experiment = experiment_of("ps-kd")
    seen: dict[str, Any] = {"target": [], "gamma": []}

    def report(event: str, facts: Mapping[str, Any]) -> None:
        if event != "step" or facts["step"] % run.domain.epoch_steps:
            return
        p_N = method.table.logp_NV.double().exp().gather(-1, label_N1)[:, 0]
        # The table holds this epoch's predictions by now; the targets were made of the last one's (one-hot before any).
        last_N = 1.0 - seen["gamma"][-1] if seen["gamma"] else torch.ones_like(p_N)
        target_N = 1.0 - facts["alpha"] + facts["alpha"] * last_N
        seen["gamma"] = [*seen["gamma"][-1:], 1.0 - p_N]
        seen["target"].append([float(target_N[mask_N].median()) for mask_N in (right_N, ~right_N)])
        seen["alpha"] = facts["alpha"]

    given = {**experiment.base, "learning_rate": learning_rate, "eval_every": 0, "seed": seed}
    run = prepare("ps-kd", given, out=folder, report=report)
    method = run.method
    assert isinstance(method, PSKD)
    chosen = run.domain.task.training_set(seed)
    right_N, label_N1 = torch.from_numpy(chosen.right_N), torch.from_numpy(chosen.label_N)[:, None]
    run.go(False)
    run.close()
    before_N, now_N = seen["gamma"]
    scale_N = 1.0 - seen["alpha"] * before_N / now_N.clamp(min=1e-12)
    return {
        "target": seen["target"],
        "rescaling": {"right": scale_N[right_N].tolist(), "wrong": scale_N[~right_N].tolist()},
    }


def main() -> None:
    """Run the seeds, write numbers and picture."""
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("--seeds", default="0,1,2,3,4")
    reader.add_argument("--learning-rate", type=float, default=0.05)
    reader.add_argument("--out", type=Path, default=Path("evidence/ps-kd"))
    given = reader.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        runs = [watch(seed, given.learning_rate, Path(folder) / str(seed)) for seed in seeds]
    target_E2 = np.mean([run["target"] for run in runs], axis=0)
    scales = {what: np.concatenate([run["rescaling"][what] for run in runs]) for what in ("right", "wrong")}
    found = {
        "seeds": seeds, "learning_rate": given.learning_rate, "edges": EDGES.round(6).tolist(),
        "target_share_of_given_label": {"right": target_E2[:, 0].tolist(), "wrong": target_E2[:, 1].tolist()},
        "rescaling": {
            what: {
                "median": float(np.median(scale)), "quartiles": np.quantile(scale, [0.25, 0.75]).tolist(),
                "histogram": np.histogram(scale.clip(-1.0, 1.0), EDGES)[0].tolist(),
            }
            for what, scale in scales.items()
        },
    }  # fmt: skip
    (given.out / "mechanism.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(given.out / "mechanism.png", found)
    print(f"target of a wrong label {target_E2[-1, 1]:.2f}, of a right one {target_E2[-1, 0]:.2f}; in {given.out}")


def draw(path: Path, found: Mapping[str, Any]) -> None:
    """Two panels: the share by epoch, and the last epoch's rescaling."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for what, colour in (("right", "C0"), ("wrong", "C3")):
        share = found["target_share_of_given_label"][what]
        left.plot(range(1, len(share) + 1), share, color=colour, label=f"{what} label")
        counts = np.array(found["rescaling"][what]["histogram"])
        right.stairs(counts / counts.sum(), found["edges"], color=colour, label=f"{what} label", linewidth=1.5)
    left.set(xlabel="epoch", ylabel="share of the given label in its target (median)")
    right.set(xlabel="1 - alpha gamma(t-1) / gamma(t), last epoch (below -1: first bin)", ylabel="share of images")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
