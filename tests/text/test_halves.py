"""The output layer's products in bfloat16: against float64 products of the rounded inputs, and autograd through them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from redistill.core.signal import DivergenceOf, EntropyOf, LogProb, Teacher
from redistill.core.specs import DivergenceKind, Support, TeacherWeights
from redistill.text import halves, native
from redistill.text.halves import halved
from redistill.text.head import TeacherPart, TeacherStates, measure, measure_whole
from redistill.text.models import Head
from torch import Tensor

N, D, V = 37, 24, 211


@pytest.fixture(params=[True, False], ids=["compiled", "torch"])
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """With the compiled kernel (where this machine has one) and without."""
    halves._kept.clear()
    kernels = native.get()
    if request.param and (kernels is None or not kernels.has_head):
        pytest.skip("no compiled bfloat16 kernel on this machine")
    if not request.param:
        monkeypatch.setattr(native, "get", lambda: None)
    yield request.param
    halves._kept.clear()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_logits_are_float32_sums_of_rounded_products(compiled: bool) -> None:
    hidden_nD, weight_VD = normal(N, D), normal(V, D, seed=1)
    out_nV = torch.empty(N, V)
    halved(weight_VD).logits_(hidden_nD, out_nV)
    exact_nV = hidden_nD.bfloat16().double() @ weight_VD.bfloat16().double().t()
    torch.testing.assert_close(out_nV.double(), exact_nV, rtol=1e-5, atol=1e-5)
    assert (halved(weight_VD).packed is not None) == compiled
    # Were the sums rounded to bfloat16 the error would be a hundred times that.
    assert (exact_nV.bfloat16().double() - exact_nV).abs().max() > 1e-3


def test_the_copy_follows_the_weights(compiled: bool) -> None:
    weight_VD = torch.nn.Parameter(normal(V, D))
    first = halved(weight_VD)
    assert halved(weight_VD) is first
    with torch.no_grad():
        weight_VD.add_(1.0)
    assert halved(weight_VD) is not first
    second, own = halved(weight_VD), weight_VD.data
    weight_VD.data = normal(V, D, seed=5)  # as a teacher's weights are swapped in: no version counter tells of it
    torch.testing.assert_close(halved(weight_VD).plain_VD, weight_VD.bfloat16())
    weight_VD.data = own
    torch.testing.assert_close(halved(weight_VD).plain_VD, second.plain_VD)


def test_no_more_copies_are_kept_than_there_are_heads() -> None:
    halves._kept.clear()
    held = [normal(V, D, seed=i) for i in range(6)]
    for weight_VD in held:
        halved(weight_VD)
    assert len(halves._kept) == halves.KEPT
    halves._kept.clear()


@pytest.mark.parametrize("chunk", [64, 2**27], ids=["many chunks", "one chunk"])
@pytest.mark.parametrize(
    "options", [{}, {"scale": 0.5, "softcap": 4.0}, {"bias": True}], ids=["plain", "capped", "bias"]
)
def test_values_and_gradients_are_those_of_rounded_inputs(
    compiled: bool, options: dict[str, float], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference is autograd in float32 through the products of the rounded inputs; what is left is the rounding of the
    gradients themselves (2^-9 a factor)."""
    monkeypatch.setattr("redistill.text.head.CHUNK_BYTES", chunk * 4 * V)
    shape = {key: value for key, value in options.items() if key != "bias"}
    teacher = Teacher(TeacherWeights.parse("frozen"), ((1,),))
    states = {
        teacher: TeacherStates(
            [TeacherPart(1.0, normal(N, D, seed=2), Head(normal(V, D, seed=3), products=torch.bfloat16))],
            torch.ones(N, dtype=torch.bool),
        )
    }
    rounded = {
        teacher: TeacherStates(
            [TeacherPart(1.0, normal(N, D, seed=2).bfloat16().float(), Head(normal(V, D, seed=3).bfloat16().float()))],
            torch.ones(N, dtype=torch.bool),
        )
    }
    target_n = torch.arange(N) * 5 % V
    warm_n = torch.ones(N)
    quantities = [
        LogProb(),
        EntropyOf(),
        DivergenceOf(teacher, DivergenceKind.parse("reverse_kl"), Support.parse("full")),
    ]
    found = []
    for dtype, taught, function in ((torch.bfloat16, states, measure), (torch.float32, rounded, measure_whole)):
        leaves = [normal(N, D), normal(V, D, seed=1), normal(V, seed=4)]
        leaves = [
            (leaf if dtype == torch.bfloat16 else leaf.bfloat16().float()).requires_grad_() for leaf in leaves[:2]
        ] + [leaves[2].requires_grad_()]
        head = Head(leaves[1], leaves[2] if "bias" in options else None, products=dtype, **shape)
        values = function(leaves[0], head, target_n, warm_n, taught, quantities)
        loss = sum((value * normal(N, seed=7 + i)).sum() for i, value in enumerate(values.values()))
        assert isinstance(loss, Tensor)
        loss.backward()
        found.append((values, [leaf.grad for leaf in leaves if leaf.grad is not None]))
    for quantity in quantities:
        torch.testing.assert_close(found[0][0][quantity], found[1][0][quantity], rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(found[0][1], found[1][1], strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 4e-3
