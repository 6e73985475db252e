"""From logits to quantities. A prediction has few classes, so nothing is chunked; the objectives are everybody's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from redistill.core.signal import CapturedMass, DivergenceOf, EntropyOf, LogProb, Quantity, Teacher, TeacherLogProb
from redistill.objectives.divergence import divergence, restrict
from redistill.objectives.entropy import entropy


@dataclass(frozen=True)
class TeacherLogits:
    """A teacher at n predictions: (share in log space, logits [n, V]) of its parts; `valid_n` False where the row has
    no context (its values are then 0). Stored log-probs are logits too."""

    parts: Sequence[tuple[float, Tensor]]
    valid_n: Tensor

    def log_probs(self, temperature: float = 1.0) -> Tensor:
        """log q [n, V] at a temperature: the (geometric) mixture of the parts, normalised."""
        (share, first), *others = self.parts
        # A part of share 1 alone is not multiplied: 1 * -inf is fine, but 0 * -inf of a mixture would not be.
        logits = first if not others else share * first
        for weight, part in others:
            logits = logits + weight * part
        return F.log_softmax(logits / temperature, dim=-1)


def measure(
    logits_nV: Tensor, target_n: Tensor, teachers: Mapping[Teacher, TeacherLogits], quantities: Sequence[Quantity]
) -> dict[Quantity, Tensor]:
    """Values [n] of each quantity, differentiable in the logits. Raises TypeError for a quantity it cannot measure."""
    own = F.log_softmax(logits_nV, dim=-1)
    found: dict[Quantity, Tensor] = {}
    for quantity in quantities:
        if isinstance(quantity, LogProb):
            found[quantity] = own.gather(-1, target_n[:, None])[:, 0]
        elif isinstance(quantity, EntropyOf):
            found[quantity] = entropy(own)
        elif isinstance(quantity, TeacherLogProb):
            state = teachers[quantity.teacher]
            taken = state.log_probs().gather(-1, target_n[:, None])[:, 0]
            found[quantity] = torch.where(state.valid_n, taken, torch.zeros_like(taken))
        elif isinstance(quantity, DivergenceOf):
            value, captured = _divergence(quantity, logits_nV, own, teachers[quantity.teacher])
            found[quantity] = value
            found[CapturedMass(quantity.teacher, quantity.support, quantity.temperature)] = captured
        elif not isinstance(quantity, CapturedMass):
            raise TypeError(f"vision cannot measure {type(quantity).__name__}")
    return {quantity: found[quantity] for quantity in quantities}


def _divergence(
    quantity: DivergenceOf, logits_nV: Tensor, own_nV: Tensor, state: TeacherLogits
) -> tuple[Tensor, Tensor]:
    student = own_nV if quantity.temperature == 1.0 else F.log_softmax(logits_nV / quantity.temperature, dim=-1)
    teacher = state.log_probs(quantity.temperature).to(student)
    if quantity.advantage_clip is not None:
        here = student.detach()
        teacher = here + (teacher - here).clamp(-quantity.advantage_clip, quantity.advantage_clip)
    student_k, teacher_k, captured, _ = restrict(quantity.support, student_logp_NV=student, teacher_logp_NV=teacher)
    value = divergence(quantity.kind, student=student_k, teacher=teacher_k, clip=quantity.clip)
    return torch.where(state.valid_n, value, torch.zeros_like(value)), captured.detach()
