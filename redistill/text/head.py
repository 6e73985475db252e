"""From hidden states to quantities, a chunk of steps at a time: no [N, V] tensor outlives its chunk (law 7).

This is the seam where a fused kernel goes. Today each chunk is a checkpointed function: its small outputs [n] are kept,
its logits are recomputed in the backward pass (a single chunk within the budget is simply kept). Teachers come as hidden states, never as logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from redistill.core.signal import Quantity, Teacher
from redistill.objectives.measure import measure_choices
from redistill.text.models import Head

CHUNK_BYTES = 64 * 2**20
"""Memory budget of one [chunk, V] float32 tensor; a chunk holds a handful of them."""


class StatesAt(Protocol):
    """What a teacher is at the steps at hand, however it is held; `valid_n` False where the row has no context."""

    @property
    def valid_n(self) -> Tensor:
        """Which steps have a teacher, bool [n]."""
        ...

    def chunk(self, low: int, high: int) -> StatesAt:
        """The steps from low to high."""
        ...

    def log_probs(self, temperature: Tensor | float) -> Tensor:
        """log q [n, V] at a temperature."""
        ...


@dataclass(frozen=True)
class TeacherPart:
    """One component of a teacher at the steps at hand: its share in log space, hidden states and its own head."""

    share: float
    hidden_nD: Tensor
    head: Head


@dataclass(frozen=True)
class TeacherStates:
    """A teacher at the steps at hand; `valid_n` False where the row has no context (its values are then 0)."""

    parts: Sequence[TeacherPart]
    valid_n: Tensor

    def chunk(self, low: int, high: int) -> TeacherStates:
        """The steps from low to high."""
        parts = [TeacherPart(part.share, part.hidden_nD[low:high], part.head) for part in self.parts]
        return TeacherStates(parts, self.valid_n[low:high])

    def log_probs(self, temperature: Tensor | float) -> Tensor:
        """log q [n, V] at a temperature: the (geometric) mixture of the parts, normalised."""
        logits = None
        for part in self.parts:
            own = at_least_float32(part.head.logits(part.hidden_nD))
            # A mixture of log-probs and one of logits differ by a constant per step only, which normalising removes.
            logits = part.share * own if logits is None else logits + part.share * own
        assert logits is not None
        return F.log_softmax(logits / temperature, dim=-1)


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def chunk_steps(vocabulary: int) -> int:
    """Steps of one chunk within the memory budget, at least 1."""
    return max(1, CHUNK_BYTES // (4 * vocabulary))


def measure(
    hidden_nD: Tensor, head: Head, target_n: Tensor, temperature_n: Tensor,
    teachers: Mapping[Teacher, StatesAt], quantities: Sequence[Quantity],
) -> dict[Quantity, Tensor]:  # fmt: skip
    """Values [n] of each quantity, differentiable in `hidden_nD` and the head's own parameters."""
    if not len(target_n):
        return dict.fromkeys(quantities, hidden_nD.new_zeros(0))
    step = chunk_steps(head.weight_VD.shape[0])
    pieces: list[tuple[Tensor, ...]] = []
    for low in range(0, len(target_n), step):
        high = min(low + step, len(target_n))
        states = {teacher: state.chunk(low, high) for teacher, state in teachers.items()}
        one = partial(_chunk, head, target_n[low:high], temperature_n[low:high], states, tuple(quantities))
        wanted = torch.is_grad_enabled() and (hidden_nD.requires_grad or head.weight_VD.requires_grad)
        if wanted and len(target_n) > step:
            pieces.append(checkpoint(one, hidden_nD[low:high], use_reentrant=False, preserve_rng_state=False))
        else:
            pieces.append(one(hidden_nD[low:high]))
    return {quantity: torch.cat([piece[i] for piece in pieces]) for i, quantity in enumerate(quantities)}


def _chunk(
    head: Head, target_n: Tensor, temperature_n: Tensor, states: Mapping[Teacher, StatesAt],
    quantities: Sequence[Quantity], hidden_nD: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    logits = at_least_float32(head.logits(hidden_nD))
    return tuple(measure_choices(logits, target_n, temperature_n, states, quantities).values())
