"""Group advantages: the numbers of the papers, exact zeros, and the estimators they are meant for."""

import itertools
import math
import statistics

import pytest
import torch
from redistill.errors import UserError
from redistill.objectives.advantages import group_advantages, leave_one_out, zero_variance


def vector(*rewards: float) -> torch.Tensor:
    return torch.tensor(rewards, dtype=torch.float64)


def test_guide_check_4_and_ampo_check_2() -> None:
    (a,) = group_advantages([vector(1, 1, 1, 0, 0, 0, 0, 0)], std="sample", eps=1e-6)
    assert a.tolist() == pytest.approx([1.20761] * 3 + [-0.72457] * 5, abs=5e-6)
    (a,) = group_advantages([vector(1, 1, 0, 0, 0, 0, 0, 0)], std="sample", eps=0.0)
    assert a.tolist() == pytest.approx([1.62019] * 2 + [-0.54006] * 6, abs=5e-6)
    (a,) = group_advantages([vector(1, 1, 0, 0, 0, 0, 0, 0)])
    assert a.tolist() == pytest.approx([0.75] * 2 + [-0.25] * 6)


@pytest.mark.parametrize(("std", "deviation"), [("population", statistics.pstdev), ("sample", statistics.stdev)])
def test_deviation_and_place_of_eps(std: str, deviation: object) -> None:
    rewards = [0.3, 1.7, -0.2, 0.9, 0.9]
    (a,) = group_advantages([vector(*rewards)], std=std, eps=0.5)
    mean, spread = statistics.fmean(rewards), deviation(rewards)  # type: ignore[operator]
    assert a.tolist() == pytest.approx([(r - mean) / (spread + 0.5) for r in rewards])


def test_groups_of_different_sizes_and_a_matrix() -> None:
    uneven = group_advantages([vector(1, 0), vector(1, 0, 0, 0), vector()])
    assert [a.numel() for a in uneven] == [2, 4, 0]
    matrix = torch.tensor([[1.0, 0.0, 0.0], [2.0, 5.0, 2.0]])
    for row, got in zip(matrix, group_advantages(matrix, std="sample")):
        assert torch.equal(got, group_advantages([row], std="sample")[0])
    assert group_advantages([torch.tensor([1, 0])])[0].tolist() == [0.5, -0.5]  # whole-number rewards


@pytest.mark.parametrize("std", ["none", "population", "sample"])
def test_equal_rewards_have_exactly_no_advantage(std: str) -> None:
    """In float32 the mean of seven times 0.1 is not 0.1; divided by eps the difference would be a real advantage."""
    flat = torch.full((7,), 0.1)
    for rewards in (flat, torch.tensor([0.7])):
        (a,) = group_advantages([rewards], std=std, eps=1e-9)
        assert (a == 0).all()


def test_zero_variance() -> None:
    groups = [vector(1, 1, 1), vector(0, 1), vector(0.1), vector(), vector(0.1, 0.1 + 1e-16), vector(1, math.nan)]
    assert zero_variance(groups).tolist() == [True, False, True, True, False, False]
    assert zero_variance(torch.tensor([[1.0, 1.0], [1.0, 0.0]])).tolist() == [True, False]


def test_leave_one_out_is_the_reward_minus_the_mean_of_the_others() -> None:
    rewards = [0.3, 1.7, -0.2, 0.9]
    (a,) = leave_one_out([vector(*rewards)])
    others = [statistics.fmean(rewards[:i] + rewards[i + 1 :]) for i in range(4)]
    assert a.tolist() == pytest.approx([r - o for r, o in zip(rewards, others)])
    assert leave_one_out([vector(2, 2)])[0].tolist() == [0.0, 0.0]
    with pytest.raises(UserError, match="groups of 2 or more, got a group of 1"):
        leave_one_out([vector(1)])


def test_leave_one_out_is_unbiased_and_the_plain_mean_shrinks_by_one_over_g() -> None:
    """Two arms, groups of 3, all 8 groups: REINFORCE with each baseline against the exact policy gradient."""
    logit = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    p, payoff = torch.sigmoid(logit), (0.2, 1.0)
    exact = torch.autograd.grad(payoff[1] * p + payoff[0] * (1 - p), logit, retain_graph=True)[0].item()
    means = {leave_one_out: 0.0, group_advantages: 0.0}
    for arms in itertools.product((0, 1), repeat=3):
        logp = torch.stack([torch.log(p if arm else 1 - p) for arm in arms])
        rewards = vector(*(payoff[arm] for arm in arms))
        for estimator in means:
            gain = (estimator([rewards])[0] * logp).mean()
            slope = torch.autograd.grad(gain, logit, retain_graph=True)[0].item()
            means[estimator] += logp.detach().sum().exp().item() * slope
    assert means[leave_one_out] == pytest.approx(exact, rel=1e-12)
    assert means[group_advantages] == pytest.approx(exact * 2 / 3, rel=1e-12)


def test_shift_and_scale_of_the_reward() -> None:
    rewards = vector(0.1, 0.9, 0.4)
    for std, factor in (("none", 3.0), ("population", 1.0), ("sample", 1.0)):
        plain, moved = (group_advantages([x], std=std, eps=0.0)[0] for x in (rewards, 3 * rewards + 7))
        torch.testing.assert_close(moved, factor * plain)


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match=r"advantage std 'samples' is unknown; did you mean 'sample'\?"):
        group_advantages([vector(1, 0)], std="samples")
    with pytest.raises(UserError, match="advantage eps needs a number of 0 or more, got -1"):
        group_advantages([vector(1, 0)], eps=-1.0)
    with pytest.raises(ValueError, match="one vector"):
        group_advantages(vector(1, 0))
