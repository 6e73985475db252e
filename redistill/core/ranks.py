"""Data-parallel ranks: one verb. Counts and gradients are summed over ranks when torch.distributed is up, else left alone."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def total(value: Tensor) -> Tensor:
    """Sum a tensor over ranks, in place, and return it; the identity in a single process."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(value)
    return value
