"""PPO: its loss against a reference written here, mini-batches, the early stop, options and mistakes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from redistill.core.episode import behaviour, flat
from redistill.core.options import options_of
from redistill.core.update import update
from redistill.errors import UserError
from redistill.methods.ppo import PPO
from torch.distributions import Independent, Normal

from embodied_lab import Lab


def test_the_whole_loss_off_policy_against_a_reference() -> None:
    """CleanRL's way to write it, with torch's own Gaussian."""
    lab = Lab("ppo", entropy=0.03, value_weight=0.7, clip=0.1)
    groups = lab.collect()
    signal = lab.signal(groups)
    advantage, target, _ = lab.domain.advantages(groups, gamma=0.8, decay=0.9, finite_horizon=True)
    lab.nudge(0.05)
    module, rows = lab.domain.model.module, signal.rows
    seen, action = torch.stack([r.context for r in rows]), torch.stack([r.trajectory for r in rows])
    policy = Independent(Normal(module.mean(seen), module.log_std.exp()), 1)
    ratio = (policy.log_prob(action) - behaviour(rows)).exp()
    A = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    surrogate = torch.max(-A * ratio, -A * ratio.clamp(0.9, 1.1))
    assert bool((surrogate != -A * ratio).any())
    loss = surrogate.mean() + 0.7 * 0.5 * (module.value(seen) - target).square().mean() - 0.03 * policy.entropy().mean()
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in lab.domain.players["student"].parameters.values()])
    found = lab.gradient(signal)
    assert found[0] == pytest.approx(float(loss.detach()), rel=1e-10)
    torch.testing.assert_close(found[1], expected, rtol=1e-8, atol=1e-12)


def test_returns_are_what_the_rewards_say() -> None:
    """With gamma and decay 1 and a world that ends the episode, the finite-horizon return is the mean of the n-step ones."""
    lab = Lab("ppo")
    groups = lab.collect()
    _, target, value = lab.domain.advantages(groups, gamma=1.0, decay=1.0, finite_horizon=False)
    at = 0
    for episode in flat(groups):
        played = episode.trajectory
        over = 0.0 if played.terminated else float(played.values[-1])
        for t in range(episode.steps):
            assert float(target[at]) == pytest.approx(float(played.rewards[t:].sum()) + over, rel=1e-9)
            assert float(value[at]) == float(played.values[t])
            at += 1
    assert {episode.trajectory.terminated for episode in flat(groups)} == {True, False}


def test_advantages_are_standardised_in_each_mini_batch() -> None:
    lab = Lab("ppo")
    signal = lab.signal(lab.collect())
    for rows in ([0, 5, 9, 11], range(len(signal.rows))):
        advantage = signal.subset(rows).prepared().terms[0].advantage_N  # type: ignore[attr-defined]
        assert float(advantage.mean()) == pytest.approx(0.0, abs=1e-12)
        assert float(advantage.std()) == pytest.approx(1.0, rel=1e-6)


def test_the_update_stops_once_the_policy_has_moved() -> None:
    far, near = (Lab("ppo", target_kl=bound, epochs=6, minibatches=4, learning_rate=0.05) for bound in ("0.02", "none"))
    for lab in (far, near):
        signal = lab.signal(lab.collect())
        seen = update(signal, lab.domain, 4, lab.orders(len(signal.rows)))
        lab.logged["stopped"] = seen.get("stopped_early", 0.0)
    assert near.domain.players["student"].updates == 24
    assert 0 < far.domain.players["student"].updates < 24
    assert (far.logged["stopped"], near.logged["stopped"]) == (1.0, 0.0)


def test_ppo_learns_to_go_to_the_goal() -> None:
    lab = Lab(
        "ppo", prompts_per_step=32, epochs=4, minibatches=4, learning_rate=3e-3, model="mlp:width=32", eval_prompts=40
    )
    before = lab.domain.evaluate("before")["success"]
    lab.advance(25)
    assert lab.domain.evaluate("after")["success"] >= before + 0.4


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gamma": ({}, {"gamma": 0.99}), "gae_decay": ({}, {"gae_decay": 0.5}), "finite_horizon": ({}, {"finite_horizon": "false"}),
    "clip": ({}, {"clip": 0.01}), "standardise": ({}, {"standardise": "false"}), "value_weight": ({}, {"value_weight": 2.0}),
    "value_clip": ({}, {"value_clip": 0.001}), "entropy": ({}, {"entropy": 0.1}), "target_kl": ({}, {"target_kl": 1e-4}),
}  # fmt: skip


def outcome(slug: str, given: dict[str, Any]) -> torch.Tensor:
    lab = Lab(slug, **{"epochs": 2, "minibatches": 3, "grad_clip": 1e6, **given})
    lab.advance(2)
    return lab.weights()


@pytest.mark.parametrize("name", CHANGES)
def test_option_changes_the_result(name: str) -> None:
    one, other = (outcome("ppo", given) for given in CHANGES[name])
    assert float((one - other).abs().max()) > 1e-6


def test_every_option_is_in_the_table() -> None:
    assert set(CHANGES) == set(options_of(PPO))


SETTINGS = {
    "model": "mlp:width=9,depth=1", "epsilon": 0.1, "grad_clip": 0.01, "epochs": 3, "minibatches": 2, "group_size": 2,
    "prompts_per_step": 5, "learning_rate": 1e-3, "seed": 1, "warmup_steps": 5, "weight_decay": 0.5, "beta2": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_setting_changes_the_result(name: str) -> None:
    one, other = (outcome("ppo", given) for given in ({}, {name: SETTINGS[name]}))
    assert one.shape != other.shape or float((one - other).abs().max()) > 1e-9


def test_mistakes_are_one_sentence() -> None:
    with pytest.raises(UserError, match="minibatches=9 is more than the 8 episodes of an update"):
        Lab("ppo", minibatches=9)
    with pytest.raises(UserError, match=r"gamma=1\.5 is out of range"):
        Lab("ppo", gamma=1.5)
