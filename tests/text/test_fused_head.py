"""The fused head against whole tensors and autograd, value and gradient, for every quantity and option."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from redistill.core.signal import (
    CapturedMass,
    DivergenceOf,
    EntropyOf,
    LogProb,
    Quantity,
    Teacher,
    TeacherEntropy,
    TeacherLogProb,
)
from redistill.core.specs import DivergenceKind, Support, TeacherWeights
from redistill.objectives import slopes
from redistill.objectives.divergence import likeliest
from redistill.text import head as heads
from redistill.text.head import TeacherPart, TeacherStates, measure, measure_whole
from redistill.text.models import Head

TEACHER, OTHER = (Teacher(TeacherWeights(name), ()) for name in ("live", "frozen"))
KINDS = ["forward_kl", "reverse_kl", "jsd(0.5)", "jsd(0.1)", "tvd", "skew_forward_kl(0.1)", "skew_reverse_kl(0.1)"]
SUPPORTS = ["full", "top_k(7)", "top_k(7, of=teacher)", "top_k(7, tail=false)", "top_k(7, of=teacher, tail=false)"]
N, V, D = 23, 160, 12


def of(kind: str, support: str = "full", teacher: Teacher = TEACHER, **options: Any) -> DivergenceOf:
    return DivergenceOf(teacher, DivergenceKind.parse(kind), Support.parse(support), **options)


class Setting:
    """Random hidden states and heads; chunks of 8 steps in blocks of 3."""

    def __init__(self, dtype: torch.dtype = torch.float32, spread: float = 1.0, **head: Any) -> None:
        source = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> torch.Tensor:
            return (torch.randn(*shape, generator=source, dtype=torch.float64) * spread).to(dtype)

        self.hidden, self.weight, self.bias = normal(N, D), normal(V, D) * 0.7, normal(V)
        self.options = head
        self.biased = head.pop("biased", False)
        self.target = torch.randint(V, (N,), generator=source)
        self.warm = torch.where(torch.arange(N) % 4 == 0, 0.7, 1.0).to(dtype)
        parts = [(TEACHER, [1.0]), (OTHER, [0.25, 0.75])]
        self.states = {
            teacher: TeacherStates(
                [TeacherPart(share, normal(N, D), Head(normal(V, D) * 0.7, softcap=5.0)) for share in shares],
                torch.arange(N) % 5 != 3,
            )
            for teacher, shares in parts
        }

    def run(self, how: Any, quantities: list[Quantity], warm: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Values, and the gradients of hidden states, weight and bias for random slopes."""
        leaves = [self.hidden, self.weight] + [self.bias] * self.biased
        leaves = [leaf.clone().requires_grad_() for leaf in leaves]
        head = Head(leaves[1], leaves[2] if self.biased else None, **self.options)
        found = how(leaves[0], head, self.target, self.warm if warm is None else warm, self.states, quantities)
        source = torch.Generator().manual_seed(1)
        values = [found[quantity] for quantity in quantities]
        mixes = [torch.randn(N, generator=source, dtype=torch.float64).to(value) for value in values]
        pairs = [(value, mix) for value, mix in zip(values, mixes) if value.requires_grad]
        grads = torch.autograd.grad([value for value, _ in pairs], leaves, [mix for _, mix in pairs])
        return [value.detach() for value in values] + list(grads)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "CHUNK_BYTES", 8 * V * 4)
    monkeypatch.setattr(heads, "BLOCK_BYTES", 3 * V * 4)


def agree(one: list[torch.Tensor], two: list[torch.Tensor], relative: float) -> None:
    """Each tensor within a share of its largest entry."""
    for a, b in zip(one, two, strict=True):
        assert float((a - b).abs().max()) <= relative * float(b.abs().max()), (a, b)


HEADS: dict[str, dict[str, Any]] = {
    "plain": {}, "bias": {"biased": True}, "scaled": {"scale": 0.3}, "capped": {"softcap": 4.0},
    "all": {"biased": True, "scale": 0.5, "softcap": 3.0},
}  # fmt: skip
ALL: list[Quantity] = [LogProb(), EntropyOf(), TeacherLogProb(TEACHER), TeacherEntropy(OTHER), of("jsd(0.5)"),
       of("reverse_kl", "top_k(7)", OTHER, temperature=1.3), CapturedMass(OTHER, Support.parse("top_k(7)"), 1.3),
       of("forward_kl", teacher=OTHER, clip=0.05)]  # fmt: skip


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_every_head_and_several_teachers(head: str, dtype: torch.dtype, relative: float) -> None:
    setting = Setting(dtype, **HEADS[head])
    agree(setting.run(measure, ALL), setting.run(measure_whole, ALL), relative)


@pytest.mark.parametrize("options", [{}, {"clip": 0.02}, {"advantage_clip": 0.5}, {"temperature": 0.6}])
@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_divergence(kind: str, support: str, options: dict[str, float]) -> None:
    setting, wanted = Setting(), of(kind, support, **options)
    agree(setting.run(measure, [wanted]), setting.run(measure_whole, [wanted]), 1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("support", SUPPORTS)
def test_closed_forms_are_used_and_are_autograds(kind: str, support: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[Quantity] = [LogProb(), EntropyOf(), of(kind, support)]
    setting = Setting(torch.float64)
    expected = setting.run(measure_whole, wanted)

    def never(*_: Any) -> torch.Tensor:
        raise AssertionError("no closed form was used")

    monkeypatch.setattr(slopes, "by_autograd", never)
    agree(setting.run(measure, wanted), expected, 1e-12)


def test_without_closed_forms_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quantity that is new here goes through autograd a block at a time."""
    setting = Setting(torch.float64)
    expected = setting.run(measure, ALL)
    monkeypatch.setattr(slopes, "logit_slopes", slopes.by_autograd)
    monkeypatch.setattr(heads, "logit_slopes", slopes.by_autograd)
    agree(setting.run(measure, ALL), expected, 1e-12)


@pytest.mark.parametrize("support", ["full", "top_k(7)"])
@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd(0.5)"])
def test_outcomes_without_mass_on_either_side(kind: str, support: str) -> None:
    """Log-probs of -inf (ids that a model cannot say) and tails below what float64 can hold go the careful way."""
    setting = Setting(torch.float64, spread=3.0, biased=True)
    setting.bias[V - 9 :] = -torch.inf
    for states in setting.states.values():
        for part in states.parts:
            part.head.weight_VD[V - 9 :] = 0.0
    setting.target.clamp_(max=V - 10)
    wanted: list[Quantity] = [LogProb(), EntropyOf(), of(kind, support)]
    one, two = setting.run(measure, wanted), setting.run(measure_whole, wanted)
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, equal_nan=True)


def test_a_single_chunk_is_kept_and_a_second_backward_makes_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "CHUNK_BYTES", 2**26)
    setting = Setting(torch.float64, softcap=4.0)
    hidden = setting.hidden.clone().requires_grad_()
    head = Head(setting.weight, softcap=4.0)
    found = measure(hidden, head, setting.target, setting.warm, setting.states, ALL)
    loss = sum(value.sum() for value in found.values() if value.requires_grad)
    first, second = (torch.autograd.grad(loss, hidden, retain_graph=True)[0] for _ in range(2))
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-14)


def test_one_loss_of_several_gets_only_its_own_gradient() -> None:
    setting = Setting(torch.float64)
    hidden = setting.hidden.clone().requires_grad_()
    both = measure(hidden, Head(setting.weight), setting.target, setting.warm, setting.states, ALL)
    alone = measure(hidden, Head(setting.weight), setting.target, setting.warm, setting.states, [LogProb()])
    one, two = (torch.autograd.grad(found[LogProb()].sum(), hidden)[0] for found in (both, alone))
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-14)
    assert not both[TeacherLogProb(TEACHER)].requires_grad


@pytest.mark.parametrize(("v", "k"), [(160, 7), (163, 7), (4096, 100), (50, 49), (1000, 1)])
def test_the_likeliest_are_those_of_a_sort(v: int, k: int) -> None:
    values = torch.randn(6, v, generator=torch.Generator().manual_seed(v))
    values[3] = values[3].round()  # many equals
    values[4, : v // 2] = -torch.inf
    index = likeliest(values, k)
    assert all(len(set(row)) == k for row in index.tolist())
    assert torch.equal(values.gather(-1, index).sort().values, values.topk(k).values.sort().values)


@pytest.mark.parametrize("products", [torch.float32, torch.bfloat16])
def test_adding_in_place_is_what_autograd_adds(products: torch.dtype) -> None:
    """Two backward passes into a weight: the second adds to the first one's tensor itself."""
    grads = []
    for adding in (False, True):
        torch.manual_seed(0)
        weight, hidden = torch.randn(V, D).requires_grad_(), torch.randn(N, D).requires_grad_()
        head = Head(weight, products=products)
        place = 0
        for _ in range(2):
            target, warm = torch.arange(N) % V, torch.ones(N)
            measure(hidden, head, target, warm, {}, [LogProb()], adding=adding)[LogProb()].sum().backward()
            assert weight.grad is not None
            assert not adding or place in (0, weight.grad.data_ptr())
            place = weight.grad.data_ptr()
        grads.append((weight.grad.clone(), hidden.grad))
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-6, atol=1e-6)
    assert float(grads[0][0].abs().max()) > 0.1
