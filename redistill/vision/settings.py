"""Settings of a vision run. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from redistill.config import RunConfig
from redistill.core.options import option
from redistill.errors import UserError


@dataclass(frozen=True)
class Settings(RunConfig):
    """The common settings with an image classifier's values, and what only vision has."""

    task: str = option("digits", "digits or mnist5k, with options, name:train=500,noise=0.3,augment=1")
    model: str = option("cnn", "cnn or resnet with options, name:width=16,norm=batch, or a saved model's folder")
    steps: int = option(600, "updates of the main stage", low=1)
    prompts_per_step: int = option(50, "images in an update; must divide the training images", low=1)
    group_size: int = option(1, "labels sampled for each image, where a method samples", low=1)

    optimiser: str = option("sgd", "sgd (Nesterov) or adamw", choices=("sgd", "adamw"))
    learning_rate: float = option(0.05, "learning rate", above=0, high=1e6)
    momentum: float = option(0.9, "momentum of sgd", low=0, high=0.9999)
    weight_decay: float = option(5e-4, "weight decay", low=0)
    milestones: str = option("", "epochs of a stage after which the learning rate is multiplied by `decay`, e.g. 30,45")
    decay: float = option(0.1, "factor of the learning rate at each milestone", above=0)
    grad_clip: float = option(1e6, "global gradient norm bound (the default never binds)", above=0)
    micro_batch: int = option(0, "images in one forward pass of an update; 0 is all (batch norm needs all)", low=0)
    dtype: str = option("float32", "compute and weight dtype", choices=("float32", "float64"))
    teacher_norm: str = option(
        "saved", "statistics of a teacher's batch norm: its own saved ones, or those of the batch it reads",
        choices=("saved", "batch"),
    )  # fmt: skip

    eval_prompts: int = option(10000, "held-out images of an evaluation (fewer when there are fewer)", low=1)
    ece_bins: int = option(15, "bins of the calibration error (ps-kd's code has 10)", low=1)
    save_every: int = option(100, "updates between checkpoints", low=1)
    save_model: bool = option(True, "save the trained model (safetensors and config.json) at the end")


def milestones_of(config: Settings) -> tuple[int, ...]:
    """The milestones as epochs, in order; a UserError where they are not whole numbers above 0 in rising order."""
    try:
        epochs = tuple(int(part) for part in config.milestones.split(",")) if config.milestones.strip() else ()
    except ValueError:
        epochs = (0,)
    if any(epoch < 1 for epoch in epochs) or list(epochs) != sorted(set(epochs)):
        raise UserError(
            f"milestones={config.milestones!r} is not a list of rising epochs such as 30,45 (empty: no milestones)"
        )
    return epochs
