"""The clipped policy gradient against its definition, case by case, and the ratios that go into it."""

import math

import numpy as np
import pytest
import torch
from redistill.errors import UserError
from redistill.objectives.policy_gradient import policy_gradient, sequence_log_ratio, shaped_ratio


def grid() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Every ratio of interest times every sign of the advantage: (logp, behaviour, advantage)."""
    ratios = torch.tensor([1e-3, 0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 1.27, 1.29, 2.9, 3.1, 50.0], dtype=torch.float64)
    advantages = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0], dtype=torch.float64)
    ratio, advantage = (x.flatten() for x in torch.meshgrid(ratios, advantages, indexing="ij"))
    behaviour = torch.full_like(ratio, -0.7)
    return (behaviour + ratio.log()).requires_grad_(), behaviour, advantage


def reference(ratio: float, advantage: float, low: float | None, high: float | None, dual: float | None) -> float:
    """The PPO objective as papers print it, with a minus sign."""
    lower = -math.inf if low is None else 1 - low
    upper = math.inf if high is None else 1 + high
    objective = min(ratio * advantage, min(max(ratio, lower), upper) * advantage)
    if dual is not None and advantage < 0:
        objective = max(objective, dual * advantage)
    return -objective


@pytest.mark.parametrize("dual", [None, 3.0])
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.2, 0.28), (None, 0.2), (0.2, None), (None, None), (0.0, 0.0)])
def test_value_gradient_and_clipped_mark(low: float | None, high: float | None, dual: float | None) -> None:
    logp, behaviour, advantage = grid()
    loss, clipped = policy_gradient(logp, behaviour, advantage, clip_low=low, clip_high=high, dual_clip=dual)
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    for i, (x, b, a) in enumerate(zip(logp.tolist(), behaviour.tolist(), advantage.tolist())):
        ratio = math.exp(x - b)
        assert loss[i].item() == pytest.approx(reference(ratio, a, low, high, dual), rel=1e-12, abs=1e-15)
        if min(abs(x - b - math.log(edge)) for edge in (0.8, 1.2, 1.28, 3.0, 1.0)) < 1e-4 and (low, high) == (0.0, 0.0):
            continue  # at the corner itself the derivative is a choice
        step = 1e-6
        up, down = (reference(math.exp(x + s * step - b), a, low, high, dual) for s in (1, -1))
        assert gradient[i].item() == pytest.approx((up - down) / (2 * step), rel=1e-7, abs=1e-8)
        assert clipped[i].item() == (a != 0 and gradient[i].item() == 0.0)


def test_first_step_on_policy_is_reinforce() -> None:
    logp = torch.tensor([-0.3, -2.0, -5.0], requires_grad=True)
    advantage = torch.tensor([1.5, -0.5, 0.0])
    loss, clipped = policy_gradient(logp, logp.detach(), advantage, clip_low=0.2, clip_high=0.28, dual_clip=3.0)
    loss.sum().backward()
    assert torch.equal(logp.grad, -advantage)
    assert not clipped.any()


def test_log_ratio_is_bounded_and_replaced() -> None:
    logp = torch.tensor([-1.0, -500.0, 0.0], requires_grad=True)
    behaviour = torch.tensor([-500.0, -1.0, 0.0])
    loss, _ = policy_gradient(logp, behaviour, torch.ones(3), clip_low=None, clip_high=None)
    assert loss[0].item() == pytest.approx(-math.exp(20), rel=1e-6)
    assert loss[1].item() == pytest.approx(-math.exp(-20), rel=1e-6)
    loss.sum().backward()
    assert logp.grad is not None
    assert logp.grad[:2].tolist() == [0.0, 0.0]
    # rlad: log r = log pi_S - a log pi_old - (1-a) log pi_T acts from the first step.
    anchored = torch.tensor([0.1, -0.4, 0.9], requires_grad=True)
    loss, clipped = policy_gradient(
        logp, behaviour, torch.tensor([1.0, -1.0, 1.0]), clip_low=0.2, clip_high=0.28, log_ratio_N=anchored
    )
    assert loss.tolist() == pytest.approx([-math.exp(0.1), 0.8, -1.28])
    assert clipped.tolist() == [False, True, True]


def test_nothing_but_the_ratio_gets_gradient() -> None:
    logp, behaviour, advantage = (torch.randn(4, requires_grad=True) for _ in range(3))
    policy_gradient(logp, behaviour, advantage, clip_low=0.2, clip_high=0.2)[0].sum().backward()
    assert behaviour.grad is None
    assert advantage.grad is None
    assert logp.grad is not None


def test_bad_bounds_are_named() -> None:
    x = torch.zeros(1)
    with pytest.raises(UserError, match=r"clip_low needs a number of 0 or more .* got -0.1"):
        policy_gradient(x, x, x, clip_low=-0.1, clip_high=0.2)
    with pytest.raises(UserError, match=r"clip_high needs a number of 0 or more .* got nan"):
        policy_gradient(x, x, x, clip_low=0.1, clip_high=math.nan)
    with pytest.raises(UserError, match=r"dual_clip needs a number above 1 .* got 1"):
        policy_gradient(x, x, x, clip_low=0.1, clip_high=0.2, dual_clip=1.0)


LENGTHS = [3, 0, 1, 4]


@pytest.mark.parametrize("per_token", [False, True])
def test_sequence_ratio_is_the_rows_geometric_mean(per_token: bool) -> None:
    source = np.random.default_rng(0)
    logp, behaviour = (torch.from_numpy(source.normal(-2, 1, 8)) for _ in range(2))
    logp.requires_grad_()
    got = sequence_log_ratio(logp, behaviour, LENGTHS, per_token=per_token)
    gap = (logp - behaviour).detach().numpy()
    starts = np.cumsum([0, *LENGTHS])
    want = np.concatenate([np.full(n, gap[s : s + n].mean()) for s, n in zip(starts, LENGTHS) if n])
    np.testing.assert_allclose(got.detach().numpy(), want, rtol=1e-12)
    # With one advantage a row, both have GSPO's gradient: s_i A_i sum_t grad log p_t (before the 1/length).
    advantage = torch.tensor([1.0, 1.0, 1.0, -0.5, 2.0, 2.0, 2.0, 2.0], dtype=torch.float64)
    loss, _ = policy_gradient(logp, behaviour, advantage, clip_low=None, clip_high=None, log_ratio_N=got)
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    np.testing.assert_allclose(gradient.numpy(), -np.exp(want) * advantage.numpy(), rtol=1e-12)


def test_per_token_form_differs_when_advantages_differ_within_a_row() -> None:
    logp = torch.tensor([-1.0, -2.0], requires_grad=True)
    behaviour, advantage = torch.tensor([-1.5, -1.0]), torch.tensor([1.0, 0.0])
    gradients = []
    for per_token in (False, True):
        ratio = sequence_log_ratio(logp, behaviour, [2], per_token=per_token)
        loss, _ = policy_gradient(logp, behaviour, advantage, clip_low=None, clip_high=None, log_ratio_N=ratio)
        gradients.append(torch.autograd.grad(loss.sum(), logp)[0].tolist())
    s = math.exp(-0.25)
    assert gradients[0] == pytest.approx([-s / 2, -s / 2])
    assert gradients[1] == pytest.approx([-s, 0.0])


def test_sequence_ratio_does_not_grow_with_length_and_checks_it() -> None:
    short, long = (sequence_log_ratio(torch.full((n,), -1.0), torch.full((n,), -1.1), [n]) for n in (5, 5000))
    assert short[0].item() == pytest.approx(0.1, abs=1e-6)
    assert long[0].item() == pytest.approx(0.1, abs=1e-5)
    assert sequence_log_ratio(torch.zeros(0), torch.zeros(0), [0, 0]).shape == (0,)
    with pytest.raises(ValueError, match="add up to 4, log-probs to 5"):
        sequence_log_ratio(torch.zeros(5), torch.zeros(5), [1, 3])


def test_shaped_ratio_and_where_its_gradient_is_largest() -> None:
    log_ratio = torch.linspace(-8, 8, 1601, dtype=torch.float64, requires_grad=True)
    shaped = shaped_ratio(log_ratio.exp(), 0.1)
    r = np.exp(log_ratio.detach().numpy())
    np.testing.assert_allclose(shaped.detach().numpy(), r / (r + 0.1), rtol=1e-13)
    (slope,) = torch.autograd.grad(shaped.sum(), log_ratio)
    np.testing.assert_allclose(slope.numpy(), r * 0.1 / (r + 0.1) ** 2, rtol=1e-10)
    assert r[slope.argmax()] == pytest.approx(0.1, rel=0.01)
    quantile = torch.tensor(0.3, requires_grad=True)  # guide's percentile: a detached statistic
    value = shaped_ratio(torch.ones(2, requires_grad=True), quantile).sum()
    assert torch.autograd.grad(value, quantile, allow_unused=True)[0] is None
    with pytest.raises(UserError, match="gamma of a shaped ratio needs a number above 0"):
        shaped_ratio(torch.ones(2), 0.0)
