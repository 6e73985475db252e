"""Checks of the survey of on-policy distillation (arXiv 2604.00626) that belong to no single method, and its mode test."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from redistill.core.specs import DivergenceKind
from redistill.objectives.advantages import returns_to_go, teacher_advantages
from redistill.objectives.divergence import divergence
from torch import Tensor


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl"])
def test_check_3_at_high_temperature_distillation_matches_logits(kind: str) -> None:
    """tau^2 times the gradient of the KL of softened distributions tends to (z_S - z_T) / V for logits of mean 0."""
    draw = torch.Generator().manual_seed(0)
    z, teacher = (torch.randn(7, generator=draw, dtype=torch.float64) for _ in range(2))
    z, teacher = (z - z.mean()).requires_grad_(), teacher - teacher.mean()
    tau = 1e4
    loss = divergence(DivergenceKind(kind), student=(z / tau).log_softmax(-1), teacher=(teacher / tau).log_softmax(-1))
    (slope,) = torch.autograd.grad(tau**2 * loss, z)
    torch.testing.assert_close(slope, (z.detach() - teacher) / 7, rtol=0, atol=1e-3)


class Chain:
    """Three tokens out of three: logits of each prefix, in one vector."""

    def __init__(self, seed: int) -> None:
        self.prefixes = [p for length in range(3) for p in itertools.product(range(3), repeat=length)]
        draw = torch.Generator().manual_seed(seed)
        self.z = torch.randn(len(self.prefixes), 3, generator=draw, dtype=torch.float64)

    def logp(self, z: Tensor, prefix: tuple[int, ...]) -> Tensor:
        return z[self.prefixes.index(prefix)].log_softmax(-1)

    def steps(self, z: Tensor, y: tuple[int, ...]) -> Tensor:
        return torch.stack([self.logp(z, y[:t])[y[t]] for t in range(3)])


@pytest.mark.parametrize("discount", [1.0, 0.0])
def test_check_5_policy_gradients_by_enumeration(discount: float) -> None:
    """With all future log-ratios the expected gradient is that of the sequence's reverse KL; with the token's own alone it is
    that of the sum of per-step KLs on the student's prefixes, through which nothing flows."""
    student, teacher = Chain(0), Chain(1)
    every = list(itertools.product(range(3), repeat=3))
    z = student.z.clone().requires_grad_()
    surrogate = torch.zeros((), dtype=torch.float64)
    for y in every:
        own, theirs = student.steps(z, y), teacher.steps(teacher.z, y)
        gain = returns_to_go(teacher_advantages(student_logp_N=own, teacher_logp_N=theirs), [3], discount)
        surrogate = surrogate - own.sum().exp().detach() * (gain * own).sum()
    (found,) = torch.autograd.grad(surrogate, z)
    exact = torch.zeros((), dtype=torch.float64)
    for y in every:
        if discount == 1.0:
            own = student.steps(z, y)
            exact = exact + own.sum().exp() * (own.sum() - teacher.steps(teacher.z, y).sum())
        else:
            chance = student.steps(z, y).sum().exp().detach()
            for t in range(3):
                own, theirs = student.logp(z, y[:t]), teacher.logp(teacher.z, y[:t])
                exact = exact + chance * (own.exp() * (own - theirs)).sum()
    (wanted,) = torch.autograd.grad(exact, z)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def fitted(kind: str) -> Tensor:
    """Probabilities [grid] of the discretised Gaussian nearest to a mixture of two modes at -2 and 2."""
    x = torch.linspace(-5, 5, 201, dtype=torch.float64)
    teacher = torch.logsumexp(torch.stack([-((x - 2) ** 2) / 0.18, -((x + 2) ** 2) / 0.18]), 0).log_softmax(-1)
    at = torch.tensor([0.6, math.log(1.0)], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([at], lr=0.03)
    for _ in range(600):
        optimiser.zero_grad()
        student = (-((x - at[0]) ** 2) / (2 * torch.exp(2 * at[1]))).log_softmax(-1)
        divergence(DivergenceKind.parse(kind), student=student, teacher=teacher).backward()
        optimiser.step()
    return torch.stack([at[0].detach(), at[1].detach().exp()])


def test_mode_test_forward_kl_straddles_and_reverse_kl_sits_on_one_mode() -> None:
    """The survey's first experiment: mean and width of the best Gaussian."""
    forward, reverse, middle = fitted("forward_kl"), fitted("reverse_kl"), fitted("jsd(0.5)")
    assert abs(float(forward[0])) < 0.1
    assert float(forward[1]) > 1.8
    assert float(reverse[0]) == pytest.approx(2.0, abs=0.05)
    assert float(reverse[1]) == pytest.approx(0.3, abs=0.03)
    assert float(reverse[1]) <= float(middle[1]) < float(forward[1])
