"""The compiled kernels against the same arithmetic in torch, and what happens without a compiler."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from redistill.text import native
from redistill.text.cache import SharedCache
from redistill.text.portable import Portable

FLOAT, HALF = torch.float32, torch.bfloat16
TOLERANCE = {FLOAT: {"rtol": 1e-5, "atol": 2e-6}, HALF: {"rtol": 2**-7, "atol": 1e-3}}


@pytest.fixture
def kernels() -> native.Kernels:
    found = native.get()
    if found is None:
        pytest.skip("no C++ compiler here")
    return found


@pytest.mark.parametrize("dtype", [FLOAT, HALF], ids=str)
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(9, 3, 64), (4, 4, 24), (4, 2, 8), (5, 1, 256), (7, 1, 16)])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("norms", [False, True])
def test_attend(
    kernels: native.Kernels, dtype: torch.dtype, heads: int, kv_heads: int, width: int, window: int | None, norms: bool
) -> None:
    """Rows of two prompts at columns of their own, some with nothing but the prompt behind them; also what is written."""
    torch.manual_seed(heads)
    prompt, more, length = 9, 12, np.array([7, 9, 7, 9, 9, 7])
    column = torch.tensor([7, 20, 11, 9, 12, 18])
    rows, columns = len(column), prompt + more
    qkv = torch.randn(rows, (heads + 2 * kv_heads) * width).to(dtype)
    read = torch.randn(2, 2, kv_heads, prompt, width).to(dtype)
    own = torch.randn(2, rows, kv_heads, more, width).to(dtype)
    angle = torch.arange(columns)[:, None] * torch.rand(width // 2).repeat(2)
    factors = (torch.rand(width) + 0.5, torch.rand(width) + 0.5) if norms else (None, None)
    rest = angle.cos(), angle.sin(), factors, window, 1e-5, width**-0.5

    shared = SharedCache(rows)
    shared.start([(read[0], read[1])], (length == 9).astype(np.int64), length, 0, more)
    shared.own[0][0][:], shared.own[0][1][:] = own[0], own[1]
    shared.point(column, 21)
    ours = kernels.attend(qkv, shared.layer(0), *rest)
    whole = torch.zeros(2, rows, kv_heads, columns, width, dtype=dtype)
    for row, cut in enumerate(length):
        whole[:, row, :, :cut] = read[:, int(cut == 9), :, :cut]
        whole[:, row, :, cut : cut + more] = own[:, row]
    theirs = Portable().attend(qkv, (whole[0], whole[1], column), *rest)
    # torch rounds the weights of the mean to bfloat16, the kernel does not
    torch.testing.assert_close(ours, theirs, rtol=TOLERANCE[dtype]["rtol"], atol=2e-6 if dtype == FLOAT else 0.03)
    for mine, other in zip(shared.own[0], whole, strict=True):
        for row, cut in enumerate(length):
            torch.testing.assert_close(mine[row], other[row, :, cut : cut + more], **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [FLOAT, HALF], ids=str)
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(9, 3, 64), (4, 2, 8), (5, 1, 128)])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("norms", [False, True])
def test_read(
    kernels: native.Kernels, dtype: torch.dtype, heads: int, kv_heads: int, width: int, window: int | None, norms: bool
) -> None:
    torch.manual_seed(heads)
    prompts, length = 3, 13
    qkv = torch.randn(prompts * length, (heads + 2 * kv_heads) * width).to(dtype)
    angle = torch.arange(length + 4)[:, None] * torch.rand(width // 2).repeat(2)
    factors = (torch.rand(width) + 0.5, torch.rand(width) + 0.5) if norms else (None, None)
    rest = prompts, kv_heads, width, angle.cos(), angle.sin(), factors, window, 1e-5, width**-0.5
    ours, theirs = kernels.read(qkv, *rest), Portable().read(qkv, *rest)
    torch.testing.assert_close(ours[0], theirs[0], rtol=TOLERANCE[dtype]["rtol"], atol=2e-6 if dtype == FLOAT else 0.03)
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        torch.testing.assert_close(mine, other, **TOLERANCE[dtype])


@pytest.mark.parametrize("rows", [1, 3, 21])
@pytest.mark.parametrize("vocabulary", [5, 32, 50, 111])
def test_head(kernels: native.Kernels, rows: int, vocabulary: int) -> None:
    """Products of bfloat16 numbers with float32 sums, against float64; rows do not depend on those beside."""
    if not kernels.has_head:
        pytest.skip("this processor does not multiply bfloat16")
    torch.manual_seed(rows)
    states, weight = torch.randn(rows, 38).to(HALF), torch.randn(vocabulary, 38)
    logits = kernels.head(states, native.pack_head(weight), vocabulary)
    exact = states.double() @ weight.to(HALF).double().T
    torch.testing.assert_close(logits.double(), exact, rtol=1e-5, atol=1e-5)
    assert torch.equal(kernels.head(states[-1:], native.pack_head(weight), vocabulary), logits[-1:])


@pytest.mark.parametrize("dtype", [FLOAT, HALF], ids=str)
@pytest.mark.parametrize("post", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_add_norm(kernels: native.Kernels, dtype: torch.dtype, post: bool, last: bool) -> None:
    torch.manual_seed(1)
    x, y, weight = torch.randn(5, 37), torch.randn(5, 37).to(dtype), torch.rand(37)
    factor = torch.rand(37) if post else None
    to = FLOAT if last else dtype
    results = []
    for one in (kernels, Portable()):
        mine = x.clone()
        results.append((one.add_norm(mine, y, factor, weight, 1e-5, to), mine))
        results[-1] += (one.add_norm(x.clone(), None, None, weight, 1e-5, to),)
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, **TOLERANCE[ours.dtype])


@pytest.mark.parametrize("dtype", [FLOAT, HALF], ids=str)
@pytest.mark.parametrize("kind", [0, 1])
def test_gated(kernels: native.Kernels, dtype: torch.dtype, kind: int) -> None:
    """Over the whole range of gates, where exp would overflow too."""
    gate = torch.cat([torch.linspace(-120, 120, 1201), torch.linspace(-3, 3, 601)])
    both = torch.stack([torch.cat([gate, torch.ones_like(gate)]), torch.cat([gate, -2 * torch.ones_like(gate)])]).to(
        dtype
    )
    torch.testing.assert_close(
        kernels.gated(both, kind), Portable().gated(both.float(), kind).to(dtype), **TOLERANCE[dtype]
    )


@pytest.mark.parametrize("vocabulary", [5, 300, 5000])
@pytest.mark.parametrize("inverse", [1.0, 2.5])
def test_pick(kernels: native.Kernels, vocabulary: int, inverse: float) -> None:
    torch.manual_seed(2)
    logits, uniforms = torch.randn(200, vocabulary) * 3, torch.rand(200, dtype=torch.float64)
    for given in (uniforms, None):
        ids, logp = kernels.pick(logits, given, inverse)
        other_ids, other_logp = Portable().pick(logits, given, inverse)
        assert torch.equal(ids, other_ids)
        torch.testing.assert_close(logp, other_logp, rtol=1e-6, atol=2e-6)


def test_the_library_is_compiled_once(monkeypatch: pytest.MonkeyPatch, kernels: native.Kernels) -> None:
    ran: list[Any] = []
    run = native._run
    monkeypatch.setattr(native, "_run", lambda command: ran.append(command) or run(command))
    assert native._built().exists()
    assert [command[1] for command in ran] == ["--version"]


@pytest.fixture
def fresh() -> Iterator[None]:
    """`get` forgets what it found, before and after."""
    native.get.cache_clear()
    yield
    native.get.cache_clear()


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fresh: None) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with caplog.at_level(logging.WARNING):
        assert native.get() is None
        assert native.get() is None
    assert [record.getMessage() for record in caplog.records] == [
        "sampling without compiled kernels, slower: there is no C++ compiler (g++, or $CXX)"
    ]


def test_a_compiler_that_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Any, fresh: None
) -> None:
    """Another cache folder, so that it has to compile; `false` answers nothing and fails."""
    monkeypatch.setenv("REDISTILL_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "false")
    with caplog.at_level(logging.WARNING):
        assert native.get() is None
    assert len(caplog.records) == 1
    assert not list(tmp_path.rglob("*.so"))
