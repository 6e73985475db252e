"""DiffusionNFT: the checks of the forward-process loss (specification of Astrolabe, 1 to 4), options and mistakes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from redistill.core.episode import Group
from redistill.core.options import options_of
from redistill.core.signal import Signal
from redistill.errors import UserError
from redistill.generation.quantities import VelocityError
from redistill.generation.terms import FlowMatching
from redistill.methods.nft import NFT
from torch import Tensor

from generation_lab import Lab, rewarded

PLAIN = {"space": "velocity", "adaptive": "false", "anchor": 0}


def at_work(**given: Any) -> tuple[Lab, list[Group], dict[str, Tensor]]:
    lab = Lab("nft", **given)
    first = {name: p.detach().clone() for name, p in lab.domain.players["student"].parameters.items()}
    groups = lab.collect()
    lab.nudge()
    return lab, groups, first


def velocities(lab: Lab, signal: Signal, first: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(student, old, v*, t) of the rows, outside the domain's measuring."""
    x0, eps = (torch.stack([getattr(row.trajectory, name) for row in signal.rows]) for name in ("x0", "eps"))
    t = torch.tensor([row.trajectory.t for row in signal.rows], dtype=torch.float64)
    x, label = (
        (1 - t[:, None, None]) * x0 + t[:, None, None] * eps,
        torch.tensor([row.context.label for row in signal.rows]),
    )
    module = lab.domain.model.module
    return module(x, t, label), torch.func.functional_call(module, first, (x, t, label)).detach(), eps - x0, t


def share_of(signal: Signal) -> Tensor:
    share = signal.terms[0].weight_N
    assert share is not None
    return share


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_check_1_the_loss_is_a_quadratic_around_the_old_model(beta: float) -> None:
    lab, groups, first = at_work(beta=beta, **PLAIN)
    signal = lab.signal(groups)
    v, old, target, _ = velocities(lab, signal, first)
    u, d, r = v - old, target - old, share_of(signal)
    mean = (1, 2)
    expected = beta**2 * u.square().mean(mean) - 2 * beta * (2 * r - 1) * (u * d).mean(mean) + d.square().mean(mean)
    loss, gradient = lab.gradient(signal)
    assert loss == pytest.approx(float(5 / beta * expected.mean().detach()), rel=1e-9)
    # Its gradient in v vanishes at v_old + (2r - 1) d / b and nowhere on the way.
    player = lab.domain.players["student"]
    (5 / beta * expected.mean()).backward()
    reference = torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in player.parameters.values()]
    )
    player.optimiser.zero_grad()
    torch.testing.assert_close(gradient, reference, rtol=1e-8, atol=1e-12)
    free = torch.zeros_like(d).requires_grad_()
    at_best = beta**2 * free.square().mean(mean) - 2 * beta * (2 * r - 1) * (free * d).mean(mean)
    (slope,) = torch.autograd.grad(at_best.sum(), free)
    torch.testing.assert_close(-slope / (2 * beta**2 / 64), (2 * r - 1)[:, None, None] * d / beta)


def test_check_2_the_ends_of_r() -> None:
    lab, groups, first = at_work(**PLAIN)
    signal = lab.signal(groups)
    both: list[tuple[float, Tensor]] = []
    for r in (1.0, 0.0):
        n = torch.full((len(signal.rows),), r, dtype=torch.float64)
        from dataclasses import replace

        ends = [
            replace(signal.terms[0], weight_N=n, coefficient=1.0),
            replace(signal.terms[1], weight_N=1 - n, coefficient=1.0),
        ]
        both.append(lab.gradient(Signal(signal.rows, ends)))
    # r = 1, b = 1: plain flow matching on the sample.
    loss, gradient = lab.gradient(Signal(signal.rows, [FlowMatching()]))
    assert both[0][0] == pytest.approx(loss, rel=1e-12)
    torch.testing.assert_close(both[0][1], gradient)
    # r = 0: towards the reflection 2 v_old - v*.
    v, old, target, _ = velocities(lab, signal, first)
    assert both[1][0] == pytest.approx(float((v - (2 * old - target)).square().mean().detach()), rel=1e-12)


def test_check_3_clean_images_errors_are_t_squared_times_velocities() -> None:
    lab, groups, first = at_work(**{**PLAIN, "space": "x0"})
    signal = lab.signal(groups)
    v, old, target, t = velocities(lab, signal, first)
    r = share_of(signal)
    loss = t**2 * (r * (v - target).square().mean((1, 2)) + (1 - r) * (2 * old - v - target).square().mean((1, 2)))
    assert lab.gradient(signal)[0] == pytest.approx(float(5 * loss.mean().detach()), rel=1e-10)


@pytest.mark.parametrize("given", [PLAIN, {"anchor": 0}])
def test_check_4_equal_rewards_teach_nothing_at_the_old_model(given: dict[str, Any]) -> None:
    lab = Lab("nft", **given)
    groups = rewarded(lab.collect(), torch.full((3, 4), 0.3))
    signal = lab.signal(groups)
    assert share_of(signal).tolist() == [0.5] * len(signal.rows)
    _, gradient = lab.gradient(signal)
    assert float(gradient.abs().max()) < 1e-15
    _, moved = lab.gradient(lab.signal(lab.collect()))
    assert float(moved.norm()) > 1e-6


def test_the_whole_loss_against_a_reference() -> None:
    lab, groups, first = at_work(beta=0.5, anchor=0.2)
    signal = lab.signal(groups)
    R = torch.stack([group.rewards for group in groups])
    A = (R - R.mean(1, keepdim=True)) / (R.std(correction=0) + 1e-5)
    r = (A[:, None].expand(3, 2, 4).flatten() / 5).clamp(-1, 1) / 2 + 0.5
    v, old, target, t = velocities(lab, signal, first)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(signal.rows)):
        parts = []
        for reach in (0.5, -0.5):
            error = t[i] * ((1 - reach) * old[i] + reach * v[i] - target[i])
            parts.append(error.square().mean() / error.detach().abs().mean())
        total = total + 5 / 0.5 * (r[i] * parts[0] + (1 - r[i]) * parts[1]) + 0.2 * (v[i] - old[i]).square().mean()
    player = lab.domain.players["student"]
    (total / len(signal.rows)).backward()
    expected = torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in player.parameters.values()]
    )
    player.optimiser.zero_grad()
    loss, gradient = lab.gradient(signal)
    assert loss == pytest.approx(float(total.detach()) / len(signal.rows), rel=1e-9)
    torch.testing.assert_close(gradient, expected, rtol=1e-7, atol=1e-11)


def test_the_old_model_samples_and_follows() -> None:
    lab = Lab("nft", old="frozen")
    first = [episode.text for group in lab.collect() for episode in group]
    lab.nudge()
    assert [episode.text for group in lab.collect() for episode in group] == first
    method = NFT()
    assert [1 - method.old.rate_at(t) for t in (0, 100, 500, 900)] == pytest.approx([0.0, 0.1, 0.5, 0.5])


def test_samples_of_a_group_have_times_of_their_own() -> None:
    lab = Lab("nft", group_size=8, sampling_steps=20)
    signal = lab.signal(lab.collect())
    first_times = {row.trajectory.t for row in signal.rows[:8]}
    assert len(first_times) > 3
    error = lab.domain.score(signal.rows, [VelocityError()])[VelocityError()]
    assert len(error.unique()) == len(signal.rows)


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "beta": ({"old": "frozen"}, {"old": "frozen", "beta": 0.5}), "space": ({}, {"space": "velocity"}), "adaptive": ({}, {"adaptive": "false"}),
    "std": ({}, {"std": "group"}), "advantage_bound": ({}, {"advantage_bound": 0.5}), "times": ({}, {"times": 1}),
    "time_share": ({}, {"time_share": 0.4}), "old": ({}, {"old": "frozen"}), "anchor": ({}, {"anchor": 1.0}),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_option_changes_the_result(name: str) -> None:
    ends = []
    for given in CHANGES[name]:
        lab = Lab("nft", **given)
        lab.advance(2)
        ends.append(lab.weights())
    assert float((ends[0] - ends[1]).abs().max()) > 1e-9


def test_every_option_is_in_the_table() -> None:
    assert set(CHANGES) == set(options_of(NFT))


def test_mistakes_are_one_sentence() -> None:
    with pytest.raises(UserError, match="group_size=1 gives nft no group"):
        Lab("nft", group_size=1)
    with pytest.raises(UserError, match="old=stored has no weights to sample with"):
        Lab("nft", old="stored")
    with pytest.raises(UserError, match="did you mean 'velocity'"):
        Lab("nft", space="velocty")
