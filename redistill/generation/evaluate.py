"""Evaluation of a generator: the trained reward, what was not trained on, and how far it has gone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from redistill.core.task import Prompt
from redistill.evaluation.intervals import t_interval
from redistill.generation.models import judge, real_digits
from redistill.generation.tasks import CLASSES, DigitTask, to_bytes


def frechet(mean1: Tensor, covariance1: Tensor, mean2: Tensor, covariance2: Tensor) -> float:
    """Squared Frechet distance between two Gaussians: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2)."""
    values, vectors = torch.linalg.eigh(covariance1)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariance2 @ root).clamp(min=0).sqrt().sum()
    return float((mean1 - mean2).square().sum() + covariance1.trace() + covariance2.trace() - 2.0 * cross)


def within_class_spread(images_nSS: Tensor, label_n: Tensor) -> float:
    """Root mean square distance of a pixel from the mean image of its class, the mean over classes."""
    found = []
    for label in range(CLASSES):
        own = images_nSS[label_n == label].double()
        if len(own) > 1:
            found.append(own.var(0).mean().sqrt())
    return float(torch.stack(found).mean())


@torch.no_grad()
def evaluate(task: DigitTask, prompts: Sequence[Prompt], images_nSS: Tensor) -> dict[str, Any]:
    """`reward` (mean, 95% `low` and `high`, `outcomes` a prompt) and, by a judge that is never trained on, `legible` (the
    probability of the prompt's class), `correct` (a share) and `frechet` (distance to real digits in its features);
    `ink` (mean brightness), `spread` within classes relative to real digits', and `size`, the root mean square of a
    latent pixel (1 at most for a legal image)."""
    labels = [prompt.content["label"] for prompt in prompts]
    label_n = torch.tensor(labels)
    finished = to_bytes(images_nSS)
    pixels = finished.float() / 255.0
    reward_n = task.rewards(labels, finished).double()
    other, real = judge("held_out"), real_digits()
    p_nC = other(pixels).softmax(-1)
    features = other.features(pixels).double()
    share = t_interval(reward_n.tolist())
    return {
        "metric": "reward", "reward": share.estimate, "low": share.low, "high": share.high,
        "legible": float(p_nC[torch.arange(len(labels)), label_n].double().mean()),
        "correct": float((p_nC.argmax(-1) == label_n).double().mean()),
        "frechet": frechet(features.mean(0), features.T.cov(), real["mean"], real["covariance"]),
        "ink": float(pixels.double().mean()),
        "spread": within_class_spread(pixels, label_n) / within_class_spread(real["images"], real["labels"]),
        "size": float(images_nSS.double().square().mean().sqrt()), "prompts": len(labels), "outcomes": reward_n.tolist(),
    }  # fmt: skip
