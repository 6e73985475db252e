"""Embodied runs put together from settings: the task and the domain of a run."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from redistill.core.domain import Domain, Ready
from redistill.core.specs import TeacherWeights
from redistill.core.task import Task
from redistill.embodied.domain import EmbodiedDomain
from redistill.embodied.models import ControlModel, make_model
from redistill.embodied.settings import Settings
from redistill.embodied.tasks import ControlTask, load_task
from redistill.embodied.teachers import check_teacher


def preflight(config: Settings, teachers: Sequence[TeacherWeights]) -> Ready:
    """Check packages, task, policy and teacher, and count the numbers of a checkpoint."""
    task = load_task(config.task)
    check_teacher(config.teacher, task)
    numbers = sum(p.numel() for p in _model(config, task).module.parameters())
    copies = {str(spec) for spec in teachers if spec.name in ("frozen", "trust_region", "ema", "slowing_ema", "sync")}
    width = 8 if config.dtype == "float64" else 4
    return Ready(task, width * numbers * (3 + len(copies)), width * numbers if config.save_model else 0)


def _model(config: Settings, task: ControlTask) -> ControlModel:
    dtype = torch.float64 if config.dtype == "float64" else torch.float32
    return make_model(config.model, observations=task.observations, actions=task.actions, seed=config.seed, dtype=dtype)


def assemble(config: Settings, task: Task | None = None) -> tuple[Task, Domain]:
    """Make the policy of a run, and its task where `preflight` has not; fresh weights are a function of the run's seed."""
    known = task if isinstance(task, ControlTask) else load_task(config.task)
    return known, EmbodiedDomain(_model(config, known), known, config)
