"""Players: AdamW by its formula, warm-up, clipping, and updates that are not finite."""

from __future__ import annotations

import math

import pytest
import torch
from redistill.core.state import Piece
from toy import ToyDomain, weights


def give(domain: ToyDomain, seed: int, scale: float = 1.0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    for p in domain.player.parameters.values():
        p.grad = scale * torch.randn(p.shape, generator=g, dtype=p.dtype)
    return torch.cat([p.grad.flatten() for p in domain.player.parameters.values()])


def test_steps_are_adamw_with_warm_up_and_clipping() -> None:
    options = {"learning_rate": 0.1, "warmup_steps": 3, "weight_decay": 0.02, "beta2": 0.95, "grad_clip": 0.5}
    domain = ToyDomain(**options)
    w, m, v = weights(domain), 0.0, 0.0
    for t in range(1, 7):
        g = give(domain, t)
        norm, stepped = domain.player.step()
        assert stepped
        assert norm == pytest.approx(float(g.norm()))
        g = g * min(1.0, 0.5 / (float(g.norm()) + 1e-6))
        rate = 0.1 * min(1.0, t / 4)
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        w = w - rate * 0.02 * w
        w = w - rate * (m / (1 - 0.9**t)) / ((v / (1 - 0.95**t)).sqrt() + 1e-8)
        torch.testing.assert_close(weights(domain), w, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing_but_the_counters(bad: float) -> None:
    domain = ToyDomain()
    give(domain, 1)
    domain.player.step()
    before, moments = weights(domain), {k: t.clone() for k, t in domain.player.state().tensors.items()}
    give(domain, 2)
    next(iter(domain.player.parameters.values())).grad[0, 0] = bad
    _, stepped = domain.player.step()
    assert not stepped
    assert torch.equal(weights(domain), before)
    assert all(torch.equal(t, moments[k]) for k, t in domain.player.state().tensors.items())
    assert (domain.player.skipped, domain.player.bad_in_a_row, domain.player.updates) == (1, 1, 1)
    assert all(p.grad is None for p in domain.player.parameters.values())
    give(domain, 3)
    domain.player.step()
    assert (domain.player.skipped, domain.player.bad_in_a_row, domain.player.updates) == (1, 0, 2)


@pytest.mark.parametrize("algorithm", ["adamw", "sgd"])
def test_state_and_restore_continue_bit_for_bit(algorithm: str) -> None:
    options = {"warmup_steps": 4, "weight_decay": 0.1, "algorithm": algorithm}
    one, other = ToyDomain(**options), ToyDomain(**options)
    for t in range(3):
        give(one, t)
        one.player.step()
    piece = one.player.state()
    other.player.restore(Piece({k: t.clone() for k, t in piece.tensors.items()}, dict(piece.facts)))
    for t in range(3, 6):
        for domain in (one, other):
            give(domain, t)
            domain.player.step()
    assert torch.equal(weights(one), weights(other))
    assert one.player.state().facts == other.player.state().facts


def test_a_fresh_optimiser_forgets_moments_and_warms_up_again() -> None:
    domain = ToyDomain(warmup_steps=9)
    for t in range(3):
        give(domain, t)
        domain.player.step()
    domain.player.fresh_optimiser()
    before = weights(domain)
    give(domain, 5)
    domain.player.step()
    largest = float((weights(domain) - before).abs().max())
    assert largest == pytest.approx(0.1 / 10, rel=1e-3)  # Adam's first step is the learning rate, warmed up anew
