"""Language put together from settings: the task and the domain of a run."""

from __future__ import annotations

from redistill.core.domain import Domain
from redistill.core.task import Task
from redistill.tasks.loading import load_task
from redistill.text.domain import TextDomain
from redistill.text.examine import examine
from redistill.text.models import load_model
from redistill.text.preflight import preflight
from redistill.text.settings import Settings

__all__ = ["assemble", "examine", "preflight"]


def assemble(config: Settings, task: Task | None = None) -> tuple[Task, Domain]:
    """Load the model of a run, and its task where `preflight` has not done it."""
    task = load_task(config.task) if task is None else task
    lm = load_model(config.model, dtype=config.dtype, lora_rank=config.lora_rank, lora_alpha=config.lora_alpha)
    return task, TextDomain(lm, task, config)
