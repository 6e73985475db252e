"""What an episode of the generation domain is: its context, the record of how it was sampled, and its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from redistill.core.episode import Episode
from redistill.generation.flow import Kernel, noised


class Condition(NamedTuple):
    """What a reader is given: a class label and the scale of classifier-free guidance (1: none, 0: no class)."""

    label: int
    guidance: float = 1.0


@dataclass(frozen=True, eq=False)
class Clean:
    """A sample of the ODE: only the clean image x0 [S, S] (model space) is kept."""

    x0: Tensor


@dataclass(frozen=True, eq=False)
class Noised:
    """One point of the forward process of a sample: (x0, t, eps). A row of crd and nft, with one step."""

    x0: Tensor
    t: float
    eps: Tensor


@dataclass(frozen=True, eq=False)
class Chain:
    """A sample of the SDE: its states [K + 1, S, S] at times [K + 1], and the kernel. K steps, each with a log-prob."""

    states: Tensor
    times: Tensor
    kernel: Kernel


@dataclass(frozen=True, eq=False)
class Steps:
    """The n steps of some rows side by side. `target` is v* of forward-process steps, NaN on chains; `next`, `next_t`
    and `g` belong to the steps of chains, NaN elsewhere."""

    x_nSS: Tensor
    t_n: Tensor
    target_nSS: Tensor
    next_nSS: Tensor
    next_t_n: Tensor
    g_n: Tensor
    row_of_n: Tensor

    def __len__(self) -> int:
        return len(self.t_n)


def clean_image(row: Episode) -> Tensor:
    """The finished image [S, S] of an episode, model space."""
    made = row.trajectory
    x0: Tensor = made.states[-1] if isinstance(made, Chain) else made.x0
    return x0


def steps_of(rows: Sequence[Episode], dtype: torch.dtype) -> Steps:
    """Lay out the steps of some rows in order. Raises ValueError for a finished ODE sample, which has none: it becomes
    rows by the domain's `noised`."""
    pieces: list[tuple[Tensor, ...]] = []
    for row in rows:
        made = row.trajectory
        if isinstance(made, Chain):
            times = made.times.to(dtype)
            unknown = torch.full_like(made.states[:-1], torch.nan)
            pieces.append((
                made.states[:-1], times[:-1], unknown, made.states[1:], times[1:], made.kernel.scales(times),
            ))  # fmt: skip
        elif isinstance(made, Noised):
            x0, eps, t = made.x0[None].to(dtype), made.eps[None].to(dtype), torch.tensor([made.t], dtype=dtype)
            unknown, no_time = torch.full_like(x0, torch.nan), torch.full_like(t, torch.nan)
            pieces.append((noised(x0, eps, t), t, eps - x0, unknown, no_time, no_time))
        else:
            raise ValueError("an ODE sample has no steps to train on: make rows of it with domain.noised")
    x, t, target, after, next_t, g = (torch.cat([piece[i] for piece in pieces]).to(dtype) for i in range(6))
    row_of_n = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(piece[1]) for piece in pieces]))
    return Steps(x, t, target, after, next_t, g, row_of_n)
