"""Flow-GRPO: policy gradients on denoising steps against references; DanceGRPO as a setting; options and mistakes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from redistill.core.episode import flat
from redistill.core.options import options_of
from redistill.core.signal import LogProb
from redistill.core.update import Tally, accumulate, update
from redistill.errors import UserError
from redistill.generation.quantities import StepDivergence
from redistill.methods.flow_grpo import FlowGRPO

from generation_lab import Lab, only, rewarded


@pytest.mark.parametrize("given", [{}, {"kernel": "constant", "noise": 0.3, "kl": 0}, {"logp_over": "sum"}])
def test_on_policy_the_ratio_is_one_and_nothing_is_clipped(given: dict[str, Any]) -> None:
    lab = Lab("flow-grpo", **given)
    tally = Tally()
    accumulate(lab.signal(lab.collect()), lab.domain, tally)
    seen = tally.means()
    assert seen["policy_gradient/ratio"] == pytest.approx(1.0, abs=1e-9)
    assert seen["policy_gradient/clipped"] == 0.0


def test_the_gradient_is_the_advantage_weighted_score() -> None:
    """At ratio 1: -mean over trained steps of A grad log p, with A = (R - group mean) / (std of all + 1e-4)."""
    lab = Lab("flow-grpo", step_share=1.0)
    groups = lab.collect()
    signal = only(lab.signal(groups), "policy_gradient")
    _, gradient = lab.gradient(signal)
    R = torch.stack([group.rewards for group in groups])
    A = ((R - R.mean(1, keepdim=True)) / (R.std(correction=0) + 1e-4)).clamp(-5, 5).flatten().repeat_interleave(5)
    player = lab.domain.players["student"]
    logp = lab.domain.measure(signal, range(12), [LogProb()]).values[LogProb()]
    (-(A * logp).mean()).backward()
    expected = torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in player.parameters.values()]
    )
    player.optimiser.zero_grad()
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-10)


def test_the_whole_loss_off_policy_against_a_reference() -> None:
    lab = Lab("flow-grpo", clip=0.05, kl=0.3, step_share=0.6)
    groups = lab.collect()
    lab.nudge(0.1)
    signal = lab.signal(groups)
    rows = flat(groups)
    teacher = signal.terms[1].teacher  # type: ignore[attr-defined]
    values = lab.domain.score(rows, [LogProb(), StepDivergence(teacher)])
    R = torch.stack([group.rewards for group in groups])
    A = ((R - R.mean(1, keepdim=True)) / (R.std(correction=0) + 1e-4)).flatten().repeat_interleave(5)
    ratio = (values[LogProb()] - torch.cat([row.behaviour_logp_T for row in rows])).exp()
    kept = torch.tensor([True, True, True, False, False] * 12)
    surrogate = torch.minimum(ratio * A, ratio.clamp(0.95, 1.05) * A)
    assert bool((surrogate != ratio * A)[kept].any())
    expected = -surrogate[kept].mean() + 0.3 * values[StepDivergence(teacher)][kept].mean()
    assert lab.gradient(signal)[0] == pytest.approx(float(expected), rel=1e-8)


def test_constants_and_equal_rewards_teach_nothing() -> None:
    lab = Lab("flow-grpo")
    groups = lab.collect()
    R = torch.stack([group.rewards for group in groups])
    _, gradient = lab.gradient(lab.signal(rewarded(groups, 0.5 * R)))
    # A constant of the prompt leaves the centred rewards, but not the spread of the batch: std=none sees no change at all.
    bare = Lab("flow-grpo", std="none")
    shifts = torch.tensor([[0.1], [0.2], [0.0]])
    one, other = (bare.gradient(bare.signal(rewarded(groups, r)))[1] for r in (0.5 * R, 0.5 * R + shifts))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    _, nothing = lab.gradient(lab.signal(rewarded(groups, torch.full((3, 4), 0.7))))
    assert float(nothing.abs().max()) < 1e-12
    assert float(gradient.norm()) > 1e-6


def test_chains_share_their_first_noise_only_when_asked() -> None:
    for shared, count in (("true", 1), ("false", 4)):
        group = Lab("flow-grpo", shared_noise=shared).collect()[0]
        starts = torch.stack([episode.trajectory.states[0] for episode in group])
        ends = torch.stack([episode.trajectory.states[-1] for episode in group])
        assert len(starts.flatten(1).unique(dim=0)) == count
        assert len(ends.flatten(1).unique(dim=0)) == 4


def test_little_noise_is_the_ode() -> None:
    noisy, quiet = (Lab("flow-grpo", noise=level).collect()[0].episodes for level in (0.7, 1e-6))
    straight = Lab("crd").collect()[0].episodes
    torch.testing.assert_close(quiet[0].trajectory.states[-1], straight[0].trajectory.x0, rtol=1e-4, atol=1e-4)
    assert float((noisy[0].trajectory.states[-1] - straight[0].trajectory.x0).abs().max()) > 0.1


def test_the_reward_is_of_the_image_that_was_written_down() -> None:
    lab = Lab("flow-grpo")
    for episode in flat(lab.collect()):
        assert lab.task.verify(episode.prompt, episode.text).reward == pytest.approx(episode.reward, abs=1e-6)


def test_minibatches_leave_the_policy_that_sampled() -> None:
    lab = Lab("flow-grpo", learning_rate=1e-2)
    seen = update(lab.signal(lab.collect()), lab.domain, 3)
    assert lab.domain.players["student"].updates == 3
    assert seen["policy_gradient/clipped"] > 0.0


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "kernel": ({}, {"kernel": "constant"}), "noise": ({}, {"noise": 0.5}), "shared_noise": ({}, {"shared_noise": "true"}),
    "std": ({}, {"std": "group"}), "std_added": ({}, {"std_added": 0.5}), "advantage_bound": ({}, {"advantage_bound": 0.5}),
    "clip": ({"minibatches": 3}, {"minibatches": 3, "clip": 0.5}), "step_share": ({}, {"step_share": 0.4}),
    "kl": ({}, {"kl": 1.0}), "kl_exact": ({}, {"kl_exact": "false"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_option_changes_the_result(name: str) -> None:
    ends = []
    for given in CHANGES[name]:
        lab = Lab("flow-grpo", **given)
        if "minibatches" in given:
            update(lab.signal(lab.collect()), lab.domain, int(given["minibatches"]))
        else:
            lab.advance(2)
        ends.append(lab.weights())
    assert float((ends[0] - ends[1]).abs().max()) > 1e-9


def test_every_option_is_in_the_table() -> None:
    assert set(CHANGES) == set(options_of(FlowGRPO))


def test_mistakes_are_one_sentence() -> None:
    with pytest.raises(UserError, match="group_size=1 gives flow-grpo no group"):
        Lab("flow-grpo", group_size=1)
    with pytest.raises(UserError, match="did you mean 'flow'"):
        Lab("flow-grpo", kernel="flwo")
    with pytest.raises(UserError, match="noise=0 is out of range: it must be > 0"):
        Lab("flow-grpo", noise=0)
