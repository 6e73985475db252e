"""Quantities of the embodied domain and how they are measured.

Suffixes: n steps at hand, D entries of an action, S actions that a teacher proposes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from redistill.core.signal import DivergenceOf, EntropyOf, LogProb, Quantity, Teacher, TeacherLogProb
from redistill.objectives.gaussian import entropy, imitation_error, kl, log_prob


@dataclass(frozen=True)
class Value(Quantity):
    """The critic's value of the state. Differentiable."""


@dataclass(frozen=True)
class ImitationError(Quantity):
    """Distance of the student's Gaussian from the actions a teacher proposes: "mse", "l1" or "bc"."""

    teacher: Teacher
    kind: str


@dataclass(frozen=True, eq=False)
class TeacherActions:
    """A teacher at some steps: proposed actions [n, S, D], its Gaussian (mean and log of the deviation, [n, D]; the
    deviation is NaN where one sample tells none), and which steps have it. No gradient."""

    proposed_nSD: Tensor
    mean_nD: Tensor
    log_std_nD: Tensor
    valid_n: Tensor


@dataclass(frozen=True, eq=False)
class Student:
    """The student's own side; `value_n` is None where nobody asked."""

    mean_nD: Tensor
    log_std_D: Tensor
    value_n: Tensor | None


def measure(
    student: Student, action_nD: Tensor, teachers: Mapping[Teacher, TeacherActions], quantities: Sequence[Quantity]
) -> dict[Quantity, Tensor]:
    """Values [n] of quantities; NaN where a row has no such teacher. Raises TypeError for one that actions do not have."""
    found: dict[Quantity, Tensor] = {}
    mean_nD, log_std_nD = student.mean_nD, student.log_std_D.expand_as(student.mean_nD)
    for quantity in quantities:
        if isinstance(quantity, LogProb):
            found[quantity] = log_prob(action_nD, mean_nD, log_std_nD)
        elif isinstance(quantity, EntropyOf):
            found[quantity] = entropy(log_std_nD)
        elif isinstance(quantity, Value):
            assert student.value_n is not None
            found[quantity] = student.value_n
        elif isinstance(quantity, (TeacherLogProb, DivergenceOf, ImitationError)):
            teacher = teachers[quantity.teacher]
            value_n = _with_teacher(quantity, action_nD, mean_nD, log_std_nD, teacher)
            found[quantity] = torch.where(teacher.valid_n, value_n, torch.full_like(value_n, torch.nan))
        else:
            raise TypeError(f"an action has no {type(quantity).__name__}")
    return found


def _with_teacher(
    quantity: TeacherLogProb | DivergenceOf | ImitationError, action_nD: Tensor, mean_nD: Tensor, log_std_nD: Tensor,
    teacher: TeacherActions,
) -> Tensor:  # fmt: skip
    theirs = (teacher.mean_nD, teacher.log_std_nD)
    if isinstance(quantity, ImitationError):
        return imitation_error(quantity.kind, teacher.proposed_nSD, mean_nD, log_std_nD)
    if isinstance(quantity, TeacherLogProb):
        return log_prob(action_nD, *theirs)
    own, kind = (mean_nD, log_std_nD), quantity.kind.name
    if kind not in ("reverse_kl", "forward_kl") or quantity.support.name != "full" or quantity.clip is not None:
        raise TypeError(
            f"Gaussians have reverse_kl and forward_kl over the full support, without a clip, not {quantity.kind}"
        )
    return kl(first=own, second=theirs) if kind == "reverse_kl" else kl(first=theirs, second=own)
