"""f-divergences by their generator: the survey's checks 1 and 2 (arXiv 2604.00626), and what is no generator."""

from __future__ import annotations

import math

import pytest
import torch
from redistill.core.specs import GENERATORS, DivergenceKind
from redistill.errors import UserError
from redistill.objectives.divergence import divergence, f_divergence, generator

WRITTEN = {
    "forward_kl": "u*log(u)",
    "reverse_kl": "-log(u)",
    "jsd(0.5)": "0.5*(u*log(2*u/(u+1)) + log(2/(u+1)))",
    "tvd": "0.5*abs(u-1)",
    "jsd(0.3)": "0.3*u*log(u/(0.3*u+0.7)) - 0.7*log(0.3*u+0.7)",
    "skew_forward_kl(0.1)": "u*log(u/(0.1*u+0.9))",
    "skew_reverse_kl(0.1)": "-log(0.9*u+0.1)",
    **GENERATORS,
}
"""The survey's table, and the kinds that are nothing but their generator."""


DIRECT = {
    "forward_kl": lambda p, q: p * math.log(p / q),
    "reverse_kl": lambda p, q: q * math.log(q / p),
    "jsd(0.5)": lambda p, q: 0.5 * (p * math.log(2 * p / (p + q)) + q * math.log(2 * q / (p + q))),
    "tvd": lambda p, q: 0.5 * abs(p - q),
    "jsd(0.3)": lambda p, q: 0.3 * p * math.log(p / (0.3 * p + 0.7 * q)) + 0.7 * q * math.log(q / (0.3 * p + 0.7 * q)),
    "skew_forward_kl(0.1)": lambda p, q: p * math.log(p / (0.1 * p + 0.9 * q)),
    "skew_reverse_kl(0.1)": lambda p, q: q * math.log(q / (0.9 * p + 0.1 * q)),
    "squared_hellinger": lambda p, q: (math.sqrt(p) - math.sqrt(q)) ** 2,
    "pearson": lambda p, q: (p - q) ** 2 / q,
    "neyman": lambda p, q: (p - q) ** 2 / p,
    "jeffreys": lambda p, q: (p - q) * math.log(p / q),
}
"""What the table says each equals, an outcome's share of it."""


def pair(seed: int = 0, steps: int = 5, outcomes: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, steps, outcomes, generator=draw, dtype=torch.float64) * 2
    return logits[0], logits[1].log_softmax(-1)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_written_generator_is_the_named_divergence(name: str) -> None:
    z, teacher = pair()
    slopes, values = [], []
    for kind in (DivergenceKind.parse(name), DivergenceKind.parse(f"f({WRITTEN[name]})")):
        at = z.clone().requires_grad_()
        value_N = divergence(kind, student=at.log_softmax(-1), teacher=teacher)
        slopes.append(torch.autograd.grad(value_N.sum(), at)[0])
        values.append(value_N.detach())
        assert float(divergence(kind, student=teacher, teacher=teacher).abs().max()) < 1e-12
    torch.testing.assert_close(values[0], values[1], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", WRITTEN)
def test_check_1_values_by_the_direct_formula(name: str) -> None:
    z, teacher = pair(1, 3, 5)
    kind = DivergenceKind.parse(f"f({WRITTEN[name]})")
    found = divergence(kind, student=z.log_softmax(-1), teacher=teacher)
    for q_V, p_V, value in zip(z.softmax(-1).tolist(), teacher.exp().tolist(), found.tolist(), strict=True):
        direct = sum(DIRECT[name](p, q) for p, q in zip(p_V, q_V, strict=True))
        assert value == pytest.approx(direct, rel=1e-10)


@pytest.mark.parametrize("name", WRITTEN)
def test_check_2_the_gradient_rule(name: str) -> None:
    """dD/dz_i = Q_i (g_i - E_Q g), g(u) = f(u) - u f'(u), f' by central differences."""
    z, teacher = pair(2)
    at = z.clone().requires_grad_()
    kind = DivergenceKind.parse(f"f({WRITTEN[name]})")
    (slope,) = torch.autograd.grad(divergence(kind, student=at.log_softmax(-1), teacher=teacher).sum(), at)
    q, f = z.softmax(-1), generator(kind)
    u = teacher.exp() / q
    g = f(u) - u * (f(u * (1 + 1e-6)) - f(u * (1 - 1e-6))) / (2e-6 * u)
    torch.testing.assert_close(slope, q * (g - (q * g).sum(-1, keepdim=True)), rtol=0, atol=1e-6)
    other = z.clone().requires_grad_()
    (autograd,) = torch.autograd.grad(f_divergence(f, student=other.log_softmax(-1), teacher=teacher).sum(), other)
    torch.testing.assert_close(slope, autograd, rtol=1e-8, atol=1e-10)


def test_masses_of_0() -> None:
    """u = 0: the limit of f; both 0: nothing; infinite where f is."""
    teacher = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64).log()
    student = torch.tensor([[0.25, 0.25, 0.5]], dtype=torch.float64).log()
    forward = divergence(DivergenceKind.parse("f(u*log(u))"), student=student, teacher=teacher)
    assert float(forward) == pytest.approx(math.log(2))
    assert float(divergence(DivergenceKind.parse("f(-log(u))"), student=student, teacher=teacher)) == math.inf
    both = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64).log()
    assert float(divergence(DivergenceKind.parse("f(u*log(u))"), student=both, teacher=teacher)) == pytest.approx(0.0)


def test_float32_stays_float32() -> None:
    z, teacher = pair(3)
    found = divergence(DivergenceKind("neyman"), student=z.log_softmax(-1).float(), teacher=teacher.float())
    assert found.dtype == torch.float32


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("f", "needs the formula"),
        ("f()", "needs the formula"),
        ("f(u)", "at u = 1"),
        ("f(-u*log(u))", "not convex"),
        ("f(log(u))", "not convex"),
        ("f(v*log(v))", "'v'"),
        ("f(sin(u))", "'sin'"),
        ("f(u.real - 1)", "not arithmetic"),
        ("f(__import__('os'))", "__import__"),
        ("f((lambda: 0)())", "calls"),
        ("f(u*log(u)", "form"),
        ("f(log(u - 5))", "finite number"),
        ("f(0*u)", "the same for every u"),
        ("f(9^9^9^9)", "finite number"),
        ("f(True*u)", "not a number"),
        ("pearsn", "pearson"),
        ("pearson(2)", "no number"),
    ],
)
def test_what_generates_no_divergence_is_refused(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        DivergenceKind.parse(text)


def test_a_formula_prints_as_it_is_written() -> None:
    kind = DivergenceKind.parse("f((sqrt(u) - 1)^2)")
    assert str(kind) == "f((sqrt(u) - 1)^2)"
    assert DivergenceKind.parse(str(kind)) == kind
