"""From logits to quantities. A prediction has few classes, so nothing is chunked; the objectives are everybody's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from redistill.core.signal import Quantity, Teacher
from redistill.objectives.measure import measure_choices


@dataclass(frozen=True)
class TeacherLogits:
    """A teacher at n predictions: (share in log space, logits [n, V]) of its parts; `valid_n` False where the row has
    no context (its values are then 0). Stored log-probs are logits too."""

    parts: Sequence[tuple[float, Tensor]]
    valid_n: Tensor

    def log_probs(self, temperature: Tensor | float = 1.0) -> Tensor:
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
    return measure_choices(logits_nV, target_n, logits_nV.new_ones(len(logits_nV)), teachers, quantities)
