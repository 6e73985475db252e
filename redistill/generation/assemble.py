"""Generation put together from settings: the task and the domain of a run."""

from __future__ import annotations

import torch

from redistill.core.domain import Domain
from redistill.core.task import Task
from redistill.errors import UserError
from redistill.generation.domain import GenerationDomain
from redistill.generation.models import make_model
from redistill.generation.settings import Settings
from redistill.generation.tasks import CLASSES, SIDE, load_task


def assemble(config: Settings) -> tuple[Task, Domain]:
    """Load the task and the model of a run; a fresh model's weights are a function of the run's seed."""
    task = load_task(config.task)
    dtype = torch.float64 if config.dtype == "float64" else torch.float32
    model = make_model(config.model, seed=config.seed, dtype=dtype)
    if (model.options.side, model.options.classes) != (SIDE, CLASSES):
        raise UserError(
            f"model {config.model!r} makes {model.options.side}x{model.options.side} images of {model.options.classes} "
            f"classes, task {config.task!r} judges {SIDE}x{SIDE} images of {CLASSES}"
        )
    return task, GenerationDomain(model, task, config)
