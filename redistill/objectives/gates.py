"""Weights and gates per step that a method computes before the update, from quantities without gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from redistill.errors import UserError


def entropy_weights(entropy_N: Tensor, beta: float, mask_N: Tensor) -> Tensor:
    """exp(-beta H) over the steps of the mask, divided by its mean over them (SRPO, arXiv 2604.02288): [N] -> [N].

    The mean weight of the masked steps is exactly 1 (to rounding), so a confident teacher weighs more and the size of the
    loss stays; 0 outside of the mask. `entropy_N` in nats, `beta` 0 or more (0 weighs all alike). An empty mask gives
    zeros. Raises UserError for a negative beta.
    """
    if not beta >= 0:
        raise UserError(f"beta of entropy weights needs a number of 0 or more, got {beta:g}")
    weight_N = torch.zeros_like(entropy_N)
    if bool(mask_N.any()):
        inside_n = entropy_N.detach()[mask_N]
        raw_n = torch.exp(-beta * (inside_n - inside_n.min()))  # the shift cancels in the quotient and avoids underflow
        weight_N[mask_N] = raw_n / raw_n.mean()
    return weight_N


def beta_kernel(p: Tensor, a: float, b: float) -> Tensor:
    """p^a (1-p)^b for pass rates between 0 and 1, with 0^0 = 1 (PACED, arXiv 2603.11178); its peak is at a / (a + b).

    Raises UserError for a negative exponent, which would weigh the hopeless and the solved without bound.
    """
    for name, exponent in (("a", a), ("b", b)):
        if not exponent >= 0:
            raise UserError(f"exponent {name} of the pass-rate kernel needs a number of 0 or more, got {exponent:g}")
    return p**a * (1.0 - p) ** b


def sureness_gate(student_entropy_N: Tensor, teacher_entropy_N: Tensor, temperature: float) -> Tensor:
    """sigmoid((H_S - H_T) / temperature) per step [N], detached: near 1 where the student is unsure and the teacher sure
    (TSD-KD, arXiv 2603.13260). Raises UserError for a temperature not above 0."""
    if not temperature > 0:
        raise UserError(f"temperature of the gate needs a number above 0, got {temperature:g}")
    return torch.sigmoid((student_entropy_N - teacher_entropy_N).detach() / temperature)


def opening(entropy_N: Tensor, lengths: Sequence[int], share: float) -> Tensor:
    """The fewest first steps of each row that hold at least `share` (0 to 1) of its summed entropy, bool [N]
    (TSD-KD's opener). A row without steps has none; one without entropy opens with its first step."""
    masks = []
    for row in entropy_N.detach().double().split(list(lengths)):
        if not len(row):
            masks.append(torch.zeros(0, dtype=torch.bool))
            continue
        so_far = row.cumsum(0)
        first = int((so_far >= share * so_far[-1] * (1.0 - 1e-12)).int().argmax())
        masks.append(torch.arange(len(row)) <= first)
    return torch.cat(masks) if masks else torch.zeros(0, dtype=torch.bool)


def most_uncertain(entropy_N: Tensor, lengths: Sequence[int], share: float) -> Tensor:
    """The ceil(share * n) steps of highest entropy among the n of each row, bool [N]; earlier steps first among equals."""
    masks = []
    for row in entropy_N.detach().split(list(lengths)):
        chosen = torch.zeros(len(row), dtype=torch.bool)
        count = math.ceil(round(share * len(row), 9))
        chosen[row.argsort(descending=True, stable=True)[:count]] = True
        masks.append(chosen)
    return torch.cat(masks) if masks else torch.zeros(0, dtype=torch.bool)
