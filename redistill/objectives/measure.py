"""From logits to quantities, for any domain whose steps are choices among outcomes (tokens, classes)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from redistill.core.signal import (
    CapturedMass,
    DivergenceOf,
    EntropyOf,
    LogProb,
    PlackettLuce,
    Quantity,
    Teacher,
    TeacherEntropy,
    TeacherLogProb,
)
from redistill.objectives.divergence import divergence, narrowed, outcomes
from redistill.objectives.entropy import entropy
from redistill.objectives.ranking import plackett_luce


class TeacherAt(Protocol):
    """A teacher at some steps. `valid_n` is False where the row has no context: its values are then 0."""

    @property
    def valid_n(self) -> Tensor:
        """Which steps have a teacher, bool [n]."""
        ...

    def log_probs(self, temperature: Tensor | float) -> Tensor:
        """log q [n, V] with logits divided by `temperature`, a number or [n, 1]."""
        ...


WITHOUT_GRADIENT = (TeacherLogProb, TeacherEntropy, CapturedMass)
"""Quantities that are measured and not differentiated."""

Memo = dict[tuple[Any, ...], tuple[Tensor, Tensor, Tensor]]
"""Of a divergence over K outcomes: their indices [n, K], and the log-probs there (and of the rest) [n, K'] of teacher and
student. Small enough to keep from one evaluation of the same steps to the next, which then needs no teacher; the student's,
because a slope may have a jump where both are equal, and they must be equal to the last bit there."""


def memo_key(quantity: DivergenceOf) -> tuple[Any, ...]:
    """What the entry of a memo depends on."""
    return (quantity.teacher, quantity.support, quantity.temperature, quantity.advantage_clip)


def warmed(logits_nV: Tensor, temperature: Tensor) -> Tensor:
    """Logits at a temperature (a number or [n, 1]); the logits themselves at 1."""
    return logits_nV if bool((temperature == 1.0).all()) else logits_nV / temperature


def measure_choices(
    logits_nV: Tensor, target_n: Tensor, temperature_n: Tensor, teachers: Mapping[Teacher, TeacherAt],
    quantities: Sequence[Quantity], memo: Memo | None = None,
) -> dict[Quantity, Tensor]:  # fmt: skip
    """Values [n] of each quantity, differentiable in the logits. Raises TypeError for one that is not of this kind.

    Log-probs and entropies are taken at the step's own temperature, divergences at theirs. A `memo` is filled, or read
    where it has been filled for the same steps.
    """
    warm_n1 = temperature_n[:, None]
    own_nV = F.log_softmax(warmed(logits_nV, warm_n1), dim=-1)
    found: dict[Quantity, Tensor] = {}
    for quantity in quantities:
        if isinstance(quantity, LogProb):
            found[quantity] = own_nV.gather(-1, target_n[:, None])[:, 0]
        elif isinstance(quantity, EntropyOf):
            found[quantity] = entropy(own_nV)
        elif isinstance(quantity, TeacherLogProb):
            teacher = teachers[quantity.teacher]
            taken_n = teacher.log_probs(warm_n1).gather(-1, target_n[:, None])[:, 0]
            found[quantity] = torch.where(teacher.valid_n, taken_n, torch.zeros_like(taken_n))
        elif isinstance(quantity, TeacherEntropy):
            teacher = teachers[quantity.teacher]
            spread_n = entropy(teacher.log_probs(warm_n1)).to(own_nV)
            found[quantity] = torch.where(teacher.valid_n, spread_n, torch.zeros_like(spread_n))
        elif isinstance(quantity, PlackettLuce):
            teacher = teachers[quantity.teacher]
            ranked_n = plackett_luce(
                student=logits_nV, teacher=teacher.log_probs(1.0), k=quantity.k, reverse=quantity.reverse
            )
            found[quantity] = torch.where(teacher.valid_n, ranked_n, torch.zeros_like(ranked_n))
        elif isinstance(quantity, DivergenceOf):
            # Both sides rounded alike, or a temperature of 1.1 would never equal itself.
            same = bool((temperature_n == temperature_n.new_tensor(quantity.temperature)).all())
            student_nV = own_nV if same else F.log_softmax(logits_nV / quantity.temperature, dim=-1)
            found[quantity], captured_n = _divergence(quantity, student_nV, teachers[quantity.teacher], memo)
            found[CapturedMass(quantity.teacher, quantity.support, quantity.temperature)] = captured_n
        elif not isinstance(quantity, CapturedMass):
            raise TypeError(f"a choice among outcomes has no {type(quantity).__name__}")
    return {quantity: found[quantity] for quantity in quantities}


def teacher_seen(quantity: DivergenceOf, student_nV: Tensor, teacher: TeacherAt) -> Tensor:
    """The teacher's log-probs [n, V] that a divergence compares the student's with."""
    teacher_nV = teacher.log_probs(quantity.temperature).to(student_nV)
    if quantity.advantage_clip is None:
        return teacher_nV
    here = student_nV.detach()
    return here + (teacher_nV - here).clamp(-quantity.advantage_clip, quantity.advantage_clip)


def _divergence(
    quantity: DivergenceOf, student_nV: Tensor, teacher: TeacherAt, memo: Memo | None
) -> tuple[Tensor, Tensor]:
    known = (memo or {}).get(memo_key(quantity))
    tail = quantity.support.tail
    if known is None:
        teacher_nV = teacher_seen(quantity, student_nV, teacher)
        index_nK = outcomes(quantity.support, student_logp_NV=student_nV, teacher_logp_NV=teacher_nV)
        if index_nK is None:
            value_n = divergence(quantity.kind, student=student_nV, teacher=teacher_nV, clip=quantity.clip)
            return torch.where(teacher.valid_n, value_n, torch.zeros_like(value_n)), torch.ones_like(value_n).detach()
        teacher_nK = narrowed(teacher_nV, index_nK, tail)[0].detach()
    else:
        index_nK, teacher_nK, _ = known
    student_nK, captured_n = narrowed(student_nV, index_nK, tail)
    if memo is not None:
        memo.setdefault(memo_key(quantity), (index_nK, teacher_nK, student_nK.detach()))
    value_n = divergence(quantity.kind, student=student_nK, teacher=teacher_nK, clip=quantity.clip)
    nothing_n = torch.zeros_like(captured_n)
    return torch.where(teacher.valid_n, value_n, nothing_n), torch.where(teacher.valid_n, captured_n, nothing_n)
