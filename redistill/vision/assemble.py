"""Vision put together from settings: the task and the domain of a run."""

from __future__ import annotations

import torch

from redistill.core.domain import Domain
from redistill.core.task import Task
from redistill.vision.domain import VisionDomain
from redistill.vision.models import make_model
from redistill.vision.settings import Settings
from redistill.vision.tasks import load_task


def assemble(config: Settings) -> tuple[Task, Domain]:
    """Load the images and make the model of a run; its initial weights are a function of the run's seed."""
    task = load_task(config.task)
    dtype = torch.float64 if config.dtype == "float64" else torch.float32
    model = make_model(config.model, side=task.data.side, classes=task.data.classes, seed=config.seed, dtype=dtype)
    return task, VisionDomain(model, task, config)
