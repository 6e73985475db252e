"""Which routine multiplies float32 matrices on this processor: speed alone, the products stay float32."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

EXACT = 2e-6
"""Largest relative error (Frobenius) of a product of two 512-wide normal matrices that counts as float32: rounding is 3e-7 to
6e-7 with any order of summation, TF32 inputs give 3e-4 and bfloat16 ones 3e-3."""


def cpu_flags() -> set[str]:
    """Instruction sets (and the vendor) that the kernel lists; empty where it does not say."""
    listing = Path("/proc/cpuinfo")
    if not listing.exists():
        return set()
    lines = listing.read_text(errors="replace").splitlines()
    return {word for line in lines if line.lower().startswith(("flags", "features", "vendor")) for word in line.split()}


@functools.cache
def fast_float32() -> str:
    """Let PyTorch multiply float32 matrices by oneDNN where its BLAS is slow, and say which one multiplies now.

    MKL runs its AVX2 kernels on AMD's processors; oneDNN's AVX-512 ones are more than twice as fast there. PyTorch hands
    float32 products to oneDNN only when it may lower their precision ("medium"), which oneDNN can do on processors with AMX
    alone: without it the products are those of float32. Both are checked, the processor by name (so that every run on a
    machine takes the same routine) and the product by its error; a setting that the user has made is left alone.
    """
    flags = cpu_flags()
    slow_blas = {"AuthenticAMD", "avx512f"} <= flags and not any(flag.startswith("amx") for flag in flags)
    usable = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    untouched = usable and torch.backends.mkldnn.matmul.fp32_precision == "none"  # type: ignore[attr-defined]
    if not (slow_blas and untouched) or torch.cuda.is_available():
        return "as set"
    torch.set_float32_matmul_precision("medium")
    if float32_error() < EXACT:
        return "oneDNN"
    torch.set_float32_matmul_precision("highest")
    return "BLAS"


def float32_error() -> float:
    """Relative error of a float32 product as it is computed now."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 512, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    return float(((a @ b).double() - exact).norm() / exact.norm())
