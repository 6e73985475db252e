"""The decode step's arithmetic outside the matrix products, in C++ (native.cpp), compiled once on the user's machine.

The compiler is the system's g++ (or $CXX); what it makes is kept in the cache folder under a hash of source, flags,
compiler and processor. Where there is no compiler the torch versions in portable.py do the same work slower, and `get`
says so in one line, once. REDISTILL_NATIVE=0 turns the kernels off.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import secrets
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from redistill.text.cache import SharedSlots
from redistill.text.wheels import cache_root

__all__ = ["Kernels", "get", "pack_head"]

_SOURCE = Path(__file__).with_name("native.cpp")
_FLAGS = (
    "-O3",
    "-march=native",
    "-std=c++17",
    "-fPIC",
    "-shared",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-w",
)
_P, _I, _L, _F = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
_ATTEND = (_P,) * 10 + (_I, _I, _I, _I, _L, _I, _F, _F)
_READ = _ATTEND[2:]
_ADD_NORM = (_P,) * 5 + (_I, _I, _F)
_ARGUMENTS = {
    "attend_f": _ATTEND,
    "attend_h": _ATTEND,
    "read_f": _READ,
    "read_h": _READ,
    "head_h": (_P, _P, _P, _I, _I, _I),
    "add_norm_ff": _ADD_NORM,
    "add_norm_hh": _ADD_NORM,
    "add_norm_hf": _ADD_NORM,
    "gated_f": (_P, _P, _I, _I, _I),
    "gated_h": (_P, _P, _I, _I, _I),
    "pick_f": (_P, _P, _P, _P, _I, _I, _F),
}
_LETTER = {torch.float32: "f", torch.bfloat16: "h"}
_log = logging.getLogger(__name__)


class Kernels:
    """The compiled functions on contiguous CPU tensors; see native.cpp for what each does."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.call: dict[str, Any] = {}
        for name, arguments in _ARGUMENTS.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, None
            self.call[name] = function
        self.has_head = bool(library.has_head())

    def attend(
        self, qkv_NE: Tensor, slots: SharedSlots, cos: Tensor, sin: Tensor, norms: tuple[Tensor | None, Tensor | None],
        window: int | None, eps: float, scale: float,
    ) -> Tensor:  # fmt: skip
        """Attention of one new token a row: rotate, write its key and value to the row's own columns, attend to the
        prompt's columns and to those. Returns [N, heads * width]."""
        rows, (_, kv_heads, columns, width) = len(qkv_NE), slots.keys.shape
        heads = qkv_NE.shape[1] // width - 2 * kv_heads
        out_NE = qkv_NE.new_empty(rows, heads * width)
        self.call["attend_" + _LETTER[qkv_NE.dtype]](
            qkv_NE.data_ptr(), out_NE.data_ptr(), slots.keys.data_ptr(), slots.values.data_ptr(),
            slots.prompts_N2.data_ptr(), slots.rows_3N.data_ptr(), cos.data_ptr(), sin.data_ptr(), _at(norms[0]),
            _at(norms[1]), rows, heads, kv_heads, width, columns, window or 0, eps, scale,
        )  # fmt: skip
        return out_NE

    def read(
        self, qkv_ME: Tensor, prompts: int, kv_heads: int, width: int, cos: Tensor, sin: Tensor,
        norms: tuple[Tensor | None, Tensor | None], window: int | None, eps: float, scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Causal attention of prompts of equal length, one after the other in [M, E]: what the tokens see
        [M, heads * width], and keys and values [prompts, heads, length, width]."""
        length, heads = len(qkv_ME) // prompts, qkv_ME.shape[1] // width - 2 * kv_heads
        out_ME = qkv_ME.new_empty(len(qkv_ME), heads * width)
        keys, values = (qkv_ME.new_empty(prompts, kv_heads, length, width) for _ in range(2))
        self.call["read_" + _LETTER[qkv_ME.dtype]](
            qkv_ME.data_ptr(), out_ME.data_ptr(), keys.data_ptr(), values.data_ptr(), cos.data_ptr(), sin.data_ptr(),
            _at(norms[0]), _at(norms[1]), prompts, heads, kv_heads, width, length, window or 0, eps, scale,
        )  # fmt: skip
        return out_ME, keys, values

    def head(self, hidden_ND: Tensor, packed: Tensor, vocabulary: int, out_NV: Tensor | None = None) -> Tensor:
        """float32 logits [N, V] of bfloat16 states and a weight that `pack_head` laid out; into `out_NV` if given."""
        logits_NV = torch.empty(len(hidden_ND), vocabulary) if out_NV is None else out_NV
        self.call["head_h"](
            hidden_ND.data_ptr(),
            packed.data_ptr(),
            logits_NV.data_ptr(),
            len(hidden_ND),
            hidden_ND.shape[1] // 2,
            vocabulary,
        )
        return logits_NV

    def add_norm(
        self, x_ND: Tensor, y_ND: Tensor | None, post_D: Tensor | None, weight_D: Tensor, eps: float, dtype: torch.dtype
    ) -> Tensor:
        """x += y (normed and times `post` if given), in place in float32; returns norm(x) * weight in `dtype`."""
        out_ND = torch.empty(x_ND.shape, dtype=dtype)
        of = _LETTER[dtype] if y_ND is None else _LETTER[y_ND.dtype]
        self.call[f"add_norm_{of}{_LETTER[dtype]}"](
            x_ND.data_ptr(), _at(y_ND), _at(post_D), weight_D.data_ptr(), out_ND.data_ptr(), *x_ND.shape, eps
        )
        return out_ND

    def gated(self, both_NF: Tensor, kind: int) -> Tensor:
        """act(gate) * up of rows [gate | up]; kind 0 is silu, 1 gelu by tanh."""
        rows, width = both_NF.shape[0], both_NF.shape[1] // 2
        out_NF = both_NF.new_empty(rows, width)
        self.call["gated_" + _LETTER[both_NF.dtype]](both_NF.data_ptr(), out_NF.data_ptr(), rows, width, kind)
        return out_NF

    def pick(self, logits_NV: Tensor, uniforms_N: Tensor | None, inverse: float) -> tuple[Tensor, Tensor]:
        """Ids [N] at which the distribution function of softmax(inverse * logits) passes the uniforms (float64), and
        their log-probs [N]; the likeliest ids without uniforms; id -1 where the logits are not finite."""
        rows = len(logits_NV)
        ids_N, logp_N = torch.empty(rows, dtype=torch.int64), torch.empty(rows)
        self.call["pick_f"](
            logits_NV.data_ptr(), _at(uniforms_N), ids_N.data_ptr(), logp_N.data_ptr(), rows, logits_NV.shape[1],
            inverse,
        )  # fmt: skip
        return ids_N, logp_N


def pack_head(weight_VD: Tensor) -> Tensor:
    """A bfloat16 copy of an output layer [V, D], D even, as `Kernels.head` reads it: [V / 32, D / 2, 32, 2]."""
    vocabulary, width = weight_VD.shape
    blocks = -(-vocabulary // 32)
    whole = torch.zeros(blocks * 32, width, dtype=torch.bfloat16)
    whole[:vocabulary] = weight_VD
    pairs = whole.view(torch.int32).view(blocks, 32, width // 2)
    return pairs.transpose(1, 2).contiguous().view(torch.bfloat16)


def _at(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@functools.cache
def get() -> Kernels | None:
    """The kernels, compiled at the first call (about two seconds, once a machine); None where they cannot be had."""
    if os.environ.get("REDISTILL_NATIVE") == "0":
        return None
    try:
        return Kernels(ctypes.CDLL(str(_built())))
    except (OSError, subprocess.SubprocessError, FileNotFoundError) as error:
        said = getattr(error, "stderr", None) or str(error)
        _log.warning("sampling without compiled kernels, slower: %s", " ".join(said.split())[:200])
        return None


def _built() -> Path:
    """The shared library, from the cache or compiled; appears in one step, so that processes may race."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise FileNotFoundError("there is no C++ compiler (g++, or $CXX)")
    version = _run([compiler, "--version"]).splitlines()[0]
    facts = [_SOURCE.read_text(), *_FLAGS, version, platform.machine(), _processor()]
    name = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:24]
    folder = cache_root() / "native"
    library = folder / f"{name}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f".{name}.{os.getpid()}-{secrets.token_hex(4)}.so"
        try:
            _run([compiler, *_FLAGS, str(_SOURCE), "-o", str(draft)])
            os.replace(draft, library)
        finally:
            draft.unlink(missing_ok=True)
    return library


def _run(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def _processor() -> str:
    """What -march=native depends on."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(errors="replace").splitlines() if listing.exists() else []
    return next((line for line in lines if line.lower().startswith(("flags", "features"))), sys.platform)
