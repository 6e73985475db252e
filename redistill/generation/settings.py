"""Settings of a generation run. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from redistill.config import RunConfig
from redistill.core.options import option


@dataclass(frozen=True)
class Settings(RunConfig):
    """The common settings with a small flow model's values, and what only generation has."""

    task: str = option("digits-thick", "digits-thick, digits-legible or digits-ink: what is rewarded")
    model: str = option(
        "flow-digits", "flow-digits (pretrained), dit:width=64,depth=3 (fresh), or a saved model's or run's folder"
    )
    steps: int = option(100, "updates of the main stage", low=1)
    group_size: int = option(16, "images sampled for each prompt", low=1)

    sampling_steps: int = option(10, "denoising steps of a training sample", low=1)
    guidance: float = option(1.0, "classifier-free guidance of training samples; 1 is none", low=0)
    shift: float = option(1.0, "times of samplers and of training: t <- s t / (1 + (s-1) t)", above=0)
    logp_over: str = option(
        "mean", "log-prob of a denoising step: mean over pixels (the released trainers) or their sum",
        choices=("mean", "sum"),
    )  # fmt: skip

    learning_rate: float = option(3e-4, "AdamW learning rate", above=0, high=1e6)
    weight_decay: float = option(1e-4, "AdamW weight decay", low=0)
    micro_batch: int = option(
        0, "rows in one forward pass of an update (whole groups are kept together); 0 is all", low=0
    )
    dtype: str = option("float32", "compute and weight dtype", choices=("float32", "float64"))

    eval_prompts: int = option(200, "held-out prompts (class and initial noise) of an evaluation", low=20)
    eval_sampling_steps: int = option(20, "denoising steps of an evaluation (ODE)", low=1)
    eval_guidance: float = option(1.0, "classifier-free guidance of an evaluation; 1 is none", low=0)
    save_every: int = option(100, "updates between checkpoints", low=1)
    save_model: bool = option(True, "save the trained model (safetensors and config.json) and a sample grid at the end")
