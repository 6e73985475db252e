"""Float32 products stay float32, whichever routine multiplies."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from redistill.core import arithmetic


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    arithmetic.fast_float32.cache_clear()
    if before == "highest":
        torch.backends.mkldnn.matmul.fp32_precision = "none"
    torch.set_float32_matmul_precision(before)
    arithmetic.fast_float32()


def test_products_have_the_error_of_float32() -> None:
    assert arithmetic.fast_float32() in ("oneDNN", "BLAS", "as set")
    assert arithmetic.float32_error() < arithmetic.EXACT


def test_a_routine_that_rounds_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "cpu_flags", lambda: {"AuthenticAMD", "avx512f"})
    monkeypatch.setattr(arithmetic, "float32_error", lambda: 3e-3)
    arithmetic.fast_float32.cache_clear()
    torch.backends.mkldnn.matmul.fp32_precision = "none"
    assert arithmetic.fast_float32() in ("BLAS", "as set")
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("flags", [set(), {"GenuineIntel", "avx512f"}, {"AuthenticAMD", "avx512f", "amx_bf16"}])
def test_other_processors_are_left_alone(flags: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "cpu_flags", lambda: flags)
    arithmetic.fast_float32.cache_clear()
    assert arithmetic.fast_float32() == "as set"
