"""Held-out evaluation of a classifier: accuracy with its interval, likelihood, calibration and selective risk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from redistill.evaluation.calibration import aurc, calibration_error, excess_aurc, nll
from redistill.evaluation.intervals import wilson
from redistill.vision.settings import Settings
from redistill.vision.tasks import ImageTask

LogProbs = Callable[[Sequence[tuple[int, int, int]]], Tensor]


def evaluate(log_probs: LogProbs, task: ImageTask, config: Settings) -> dict[str, Any]:
    """`accuracy` with Wilson's 95% `low` and `high` and 0/1 `outcomes` an image; `nll` (nats), `ece`, `aurc`, `eaurc`
    and mean `confidence` (all shares, not percent) on held-out images; `train_accuracy` against the labels given in
    training, unshifted."""
    prompts = task.held_out(config.eval_prompts)
    logp_NV = log_probs([(prompt.content["image"], 0, 0) for prompt in prompts]).double().numpy()
    label_N = np.array([int(prompt.answer or -1) for prompt in prompts])
    right_N = logp_NV.argmax(-1) == label_N
    confidence_N = np.exp(logp_NV.max(-1))
    share = wilson(int(right_N.sum()), len(right_N))
    seen = task.training_set(config.seed)
    fitted_N = log_probs([(int(image), 0, 0) for image in seen.image_N]).argmax(-1).numpy()
    return {
        "metric": "accuracy", "accuracy": share.estimate, "low": share.low, "high": share.high,
        "nll": nll(logp_NV, label_N), "ece": calibration_error(confidence_N, right_N, config.ece_bins),
        "aurc": aurc(confidence_N, right_N), "eaurc": excess_aurc(confidence_N, right_N),
        "confidence": float(confidence_N.mean()), "train_accuracy": float((fitted_N == seen.label_N).mean()),
        "prompts": len(prompts), "outcomes": right_N.astype(int).tolist(),
    }  # fmt: skip
