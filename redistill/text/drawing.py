"""One token a row from logits under a sampling spec, with its log-prob. The vocabulary is never sorted for it."""

from __future__ import annotations

import numpy as np
import torch

from redistill.errors import UserError
from redistill.text import native
from redistill.text.portable import Portable
from redistill.text.truncation import Sampling, truncate

__all__ = ["draw"]


def draw(logits_NV: torch.Tensor, uniforms_N: np.ndarray, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one token a row: ids [N] and their float32 log-probs [N] under `sampling` (greedy: at temperature 1).

    Token i is taken when the mass of tokens 0..i-1 is <= u < the mass of tokens 0..i. `uniforms_N` is in [0, 1).
    """
    logits_NV, inverse, uniforms = logits_NV.float(), 1.0, None
    if not sampling.greedy:
        uniforms = torch.from_numpy(np.ascontiguousarray(uniforms_N, dtype=np.float64)).to(logits_NV.device)
        if sampling.truncated:
            logits_NV = truncate(logits_NV, sampling)
        else:
            inverse = 1.0 / sampling.temperature
    kernels = (native.get() if logits_NV.device.type == "cpu" else None) or Portable()
    ids_N, logp_N = kernels.pick(logits_NV.contiguous(), uniforms, inverse)
    if bool((ids_N < 0).any()):
        raise UserError("the model's logits are not finite (NaN or infinite): its weights are damaged or diverged")
    return ids_N, logp_N
