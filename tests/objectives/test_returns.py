"""Advantages against the definitions written out as loops, in float64; the value's loss; standardisation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from redistill.objectives.returns import gae, standardised, value_loss

GAMMA, DECAY = 0.93, 0.8
G = torch.Generator().manual_seed(0)
LENGTHS = [5, 1, 3]
REWARD = torch.randn(3, 5, generator=G, dtype=torch.float64)
VALUE = torch.randn(3, 6, generator=G, dtype=torch.float64)
ENDED = torch.tensor([False, True, True])


def returns_of(i: int, t: int, gamma: float) -> list[float]:
    """Every n-step return of the episode from action t: n rewards, and the value behind them unless the world has ended."""
    found, length = [], LENGTHS[i]
    for n in range(1, length - t + 1):
        rewards = sum(gamma**k * float(REWARD[i, t + k]) for k in range(n))
        over = bool(ENDED[i]) and t + n == length
        found.append(rewards + (0.0 if over else gamma**n * float(VALUE[i, t + n])))
    return found


def found(finite: bool, **given: Any) -> torch.Tensor:
    return gae(REWARD, VALUE, LENGTHS, ENDED, **{"gamma": GAMMA, "decay": DECAY, "finite_horizon": finite, **given})


def test_finite_horizon_is_the_weighted_mean_of_the_returns_there_are() -> None:
    advantage = found(True)
    for i, length in enumerate(LENGTHS):
        for t in range(length):
            each = returns_of(i, t, GAMMA)
            weights = [DECAY**n for n in range(len(each))]
            expected = sum(w * g for w, g in zip(weights, each)) / sum(weights) - float(VALUE[i, t])
            assert float(advantage[i, t]) == pytest.approx(expected, rel=1e-12)


def test_usual_gae_is_the_discounted_sum_of_temporal_differences() -> None:
    advantage = found(False)
    for i, length in enumerate(LENGTHS):
        deltas = []
        for t in range(length):
            after = 0.0 if ENDED[i] and t + 1 == length else float(VALUE[i, t + 1])
            deltas.append(float(REWARD[i, t]) + GAMMA * after - float(VALUE[i, t]))
        for t in range(length):
            expected = sum((GAMMA * DECAY) ** k * delta for k, delta in enumerate(deltas[t:]))
            assert float(advantage[i, t]) == pytest.approx(expected, rel=1e-12)


def test_one_terminal_action_is_worth_its_reward() -> None:
    for finite in (True, False):
        assert float(found(finite)[1, 0]) == pytest.approx(float(REWARD[1, 0] - VALUE[1, 0]), rel=1e-12)


def test_without_decay_every_return_has_the_same_weight() -> None:
    advantage = found(True, decay=1.0)
    for t in range(5):
        each = returns_of(0, t, GAMMA)
        assert float(advantage[0, t]) == pytest.approx(sum(each) / len(each) - float(VALUE[0, t]), rel=1e-12)


def test_far_from_the_end_the_two_agree() -> None:
    """With a horizon that is long beside 1 / (1 - decay) the weights that are missing do not matter."""
    reward, value = (
        torch.rand(1, 400, generator=G, dtype=torch.float64),
        torch.rand(1, 401, generator=G, dtype=torch.float64),
    )
    one, other = (
        gae(reward, value, [400], torch.tensor([False]), gamma=0.9, decay=0.8, finite_horizon=finite)
        for finite in (True, False)
    )
    torch.testing.assert_close(one[:, :200], other[:, :200], rtol=1e-12, atol=1e-12)
    assert float((one[:, -1] - other[:, -1]).abs()) < 1e-12
    assert float((one[:, -3] - other[:, -3]).abs()) > 1e-3


@pytest.mark.parametrize("finite", [True, False])
def test_what_is_behind_the_end_is_not_read(finite: bool) -> None:
    reward, value = REWARD.clone(), VALUE.clone()
    for i, length in enumerate(LENGTHS):
        reward[i, length:], value[i, length + 1 :] = torch.nan, torch.nan
        if ENDED[i]:
            value[i, length] = 1e9
    again = gae(reward, value, LENGTHS, ENDED, gamma=GAMMA, decay=DECAY, finite_horizon=finite)
    assert torch.equal(again, found(finite))
    assert all(bool((again[i, length:] == 0).all()) for i, length in enumerate(LENGTHS))


def test_value_loss_and_its_clip() -> None:
    value = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64, requires_grad=True)
    target, before = torch.tensor([0.0, 5.0, -1.0]).double(), torch.tensor([0.5, 1.9, 3.0]).double()
    assert value_loss(value, target, before, None).tolist() == [0.5, 4.5, 0.0]
    clipped = value_loss(value, target, before, 0.2)
    assert clipped.tolist() == pytest.approx([0.5, 4.5, 0.5 * 3.8**2])
    (slope,) = torch.autograd.grad(clipped.sum(), value)
    assert slope.tolist() == [1.0, -3.0, 0.0]


def test_standardised() -> None:
    value, kept = torch.tensor([1.0, 2.0, 6.0, 99.0]).double(), torch.tensor([True, True, True, False])
    z = standardised(value, kept)
    expected = (value[:3] - 3) / (7.0**0.5 + 1e-8)
    torch.testing.assert_close(z[:3], expected)
    assert float(z[3]) == 0.0
    assert standardised(value, torch.zeros(4, dtype=torch.bool)).tolist() == [0.0] * 4
    assert standardised(value[:1], kept[:1]).tolist() == [0.0]
