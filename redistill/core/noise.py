"""Keyed normal draws (law 10)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from redistill.core import rng


def normal(*key: Any) -> Tensor:
    """Standard normal draws, float64, one for each key; shape is the broadcast shape of the key's parts. The inverse
    distribution function in the middle of the uniform's 2^-53 cell, from the nearer end, so never infinite."""
    u = torch.as_tensor(rng.uniform(*key))
    half = 2.0**-54
    return torch.where(u < 0.5, torch.special.ndtri(u + half), -torch.special.ndtri(1.0 - u - half))
