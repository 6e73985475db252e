"""What a language model computes in: which dtype, and weights cast to it once for many forward passes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from redistill.core.arithmetic import cpu_flags
from redistill.errors import UserError, nearest

DTYPES = ("float32", "bfloat16", "auto")


def compute_dtype(dtype: str, device: str) -> tuple[torch.dtype, str]:
    """The dtype that a setting means on a device, and why; UserError for an unknown one."""
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is unknown{nearest(dtype, DTYPES)}")
    if dtype != "auto":
        return getattr(torch, dtype), "as asked"
    if device.startswith("cuda"):
        fast, of = torch.cuda.is_bf16_supported(including_emulation=False), "GPU"
    else:
        fast, of = device == "cpu" and bool({"avx512_bf16", "amx_bf16", "bf16"} & cpu_flags()), device
    how = "multiplies bfloat16 natively" if fast else "has no native bfloat16 multiplication"
    return (torch.bfloat16 if fast else torch.float32), f"auto: {of} {how}"


@contextmanager
def linear_layers_in(causal: Any, dtype: torch.dtype) -> Iterator[None]:
    """Inside the block the linear layers of a transformers causal LM, all but the output layer, hold their float32 weights
    in `dtype`. No-grad only: a graph must not be built or walked while the weights are away."""
    output = causal.get_output_embeddings()
    layers = [m for m in causal.modules() if isinstance(m, (nn.Linear, Conv1D)) and m is not output]
    found = {id(p): p for layer in layers for p in layer.parameters(recurse=False)}
    own = [(p, p.data) for p in found.values() if p.dtype == torch.float32 != dtype]
    try:
        for parameter, data in own:
            parameter.data = data.to(dtype)
        yield
    finally:
        for parameter, data in own:
            parameter.data = data
