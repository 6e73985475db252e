"""The output layer's products in bfloat16: inputs rounded, sums kept in float32.

What a layer under autocast does, but for the logits, which stay float32 as they come out of the sums (oneDNN, as torch calls
it, would round them to bfloat16). The sampler's head (text/decoder.py) computes the same.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from redistill.text import native

__all__ = ["Halved", "halved"]

KEPT = 3
"""Output layers whose bfloat16 copies are kept: the student's and those of two teachers."""


@dataclass(frozen=True)
class Halved:
    """An output layer [V, D] rounded to bfloat16, laid out for each of its three products."""

    plain_VD: Tensor

    @cached_property
    def packed(self) -> Tensor | None:
        """As the compiled kernel reads it; None where there is no such kernel for it."""
        kernels = native.get() if self.plain_VD.device.type == "cpu" else None
        fits = kernels is not None and kernels.has_head and self.plain_VD.shape[1] % 2 == 0
        return native.pack_head(self.plain_VD) if fits else None

    def logits_(self, hidden_nD: Tensor, out_nV: Tensor) -> None:
        """Write h W^T, float32."""
        half_nD = hidden_nD.to(torch.bfloat16).contiguous()
        if self.packed is None:
            torch.mm(half_nD.float(), self.plain_VD.float().t(), out=out_nV)
            return
        kernels = native.get()
        assert kernels is not None
        kernels.head(half_nD, self.packed, len(self.plain_VD), out_nV)


_kept: OrderedDict[tuple[object, ...], Halved] = OrderedDict()


def halved(weight_VD: Tensor) -> Halved:
    """The bfloat16 copy of an output layer, made again when its values change (told by place, version counter and some of
    the values, since swapped-in weights are written without the counter)."""
    weight_VD = weight_VD.detach()
    flat = weight_VD.reshape(-1)
    some = flat[:: max(1, len(flat) // 4096)].float().cpu().numpy().tobytes()
    key = (weight_VD.data_ptr(), weight_VD._version, tuple(weight_VD.shape), hash(some))
    if key not in _kept:
        for old in [other for other in _kept if other[0] == key[0]] or list(_kept)[: len(_kept) - KEPT + 1]:
            del _kept[old]
        _kept[key] = Halved(weight_VD.to(torch.bfloat16))
    _kept.move_to_end(key)
    return _kept[key]
