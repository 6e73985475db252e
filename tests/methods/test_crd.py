"""CRD: the specification's numbered checks, a reference of the whole loss, options and mistakes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from redistill.build import settings
from redistill.core.episode import Group
from redistill.core.options import options_of
from redistill.core.signal import Signal, Teacher
from redistill.core.specs import TeacherWeights
from redistill.core.update import update
from redistill.errors import UserError
from redistill.generation.centring import advantages, group_mean, optimality, pool_weights, softmax_weights
from redistill.generation.quantities import TeacherVelocityError, VelocityError
from redistill.generation.terms import CentredReward
from redistill.methods.crd import CRD
from torch import Tensor

from generation_lab import Lab, only, rewarded

FROZEN = TeacherWeights("frozen")


def at_work(**given: Any) -> tuple[Lab, list[Group], Tensor]:
    """A lab off its copies, its groups, and their rewards [P, G], spread so that no clip binds."""
    lab = Lab("crd", **given)
    groups = lab.collect()
    lab.nudge()
    rewards = torch.linspace(0.1, 0.9, 12, dtype=torch.float64)[
        torch.randperm(12, generator=torch.Generator().manual_seed(0))
    ]
    return lab, rewarded(groups, rewards.view(3, 4)), rewards.view(3, 4)


def centred(lab: Lab, signal: Signal, **changes: Any) -> Signal:
    one = only(signal, "centred_reward")
    return Signal(one.rows, [replace(one.terms[0], **changes)])


def term_of(signal: Signal) -> CentredReward:
    term = signal.terms[0]
    assert isinstance(term, CentredReward)
    return term


# --- the numbered checks ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("temperature", [None, 0.1])
def test_check_1_a_constant_of_the_prompt_changes_nothing(temperature: float | None) -> None:
    lab, groups, rewards = at_work(std="none", temperature="none" if temperature is None else temperature)
    signal = only(lab.signal(groups), "centred_reward")
    loss, gradient = lab.gradient(signal)
    shifted = only(lab.signal(rewarded(groups, rewards + torch.tensor([[0.03], [-0.05], [0.08]]))), "centred_reward")
    moved = lab.gradient(shifted)
    assert moved[0] == pytest.approx(loss, abs=1e-12)
    torch.testing.assert_close(moved[1], gradient, rtol=1e-9, atol=1e-12)

    # The same for the implicit reward: a constant of the group, added to the old model's error.
    term = term_of(signal)
    n = torch.arange(len(signal.rows))
    values = dict(lab.domain.score(signal.rows, term.quantities()))
    before = term.losses(values, n, signal.lengths).loss_n
    theirs = TeacherVelocityError(term.teacher, True)
    values[theirs] = values[theirs] + 7.0 * term.group_N
    torch.testing.assert_close(term.losses(values, n, signal.lengths).loss_n, before, rtol=1e-9, atol=1e-9)


def test_check_2_the_gradient_through_the_mean_is_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    rhat = torch.randn(12, generator=generator, dtype=torch.float64, requires_grad=True)
    reward, group = torch.rand(12, generator=generator, dtype=torch.float64), torch.arange(3).repeat_interleave(4)
    gradients = []
    for mean in (group_mean(rhat, group), group_mean(rhat, group).detach()):
        loss = (2.0 * (rhat - mean) - (reward - group_mean(reward, group))).square().mean()
        gradients.append(torch.autograd.grad(loss, rhat, retain_graph=True)[0])
    assert float((gradients[0] - gradients[1]).abs().max()) < 1e-15


def test_check_3_at_the_old_model_it_is_advantage_weighted_flow_matching() -> None:
    lab = Lab("crd", beta=2.0)
    groups = lab.collect()  # nothing has moved: student = old
    signal = only(lab.signal(groups), "centred_reward")
    term = term_of(signal)
    loss, gradient = lab.gradient(signal)
    variances = [term.reward_N[term.group_N == cell].var(correction=0) for cell in term.group_N.unique()]
    assert loss == pytest.approx(float(torch.stack(variances).mean()), rel=1e-9)

    centred_N = term.reward_N - group_mean(term.reward_N, term.group_N)
    assert float(group_mean(centred_N, term.group_N).abs().max()) < 1e-15
    player = lab.domain.players["student"]
    player.optimiser.zero_grad()
    error = lab.domain.measure(signal, range(len(signal.rows)), [VelocityError(True)]).values[VelocityError(True)]
    (2.0 * 2.0 / len(error) * (centred_N * error).sum()).backward()
    expected = torch.cat([p.grad.flatten() for p in player.parameters.values() if p.grad is not None])
    assert float(gradient.norm()) > 1e-6
    torch.testing.assert_close(gradient[gradient != 0], expected[expected != 0], rtol=1e-8, atol=1e-12)

    flat_loss, flat = lab.gradient(only(lab.signal(rewarded(groups, torch.full((3, 4), 0.4))), "centred_reward"))
    assert flat_loss == 0.0
    assert float(flat.abs().max()) == 0.0


@pytest.mark.parametrize(("beta", "slope"), [(1.0, 1.0), (2.0, 3.0)])
def test_check_4_the_minimiser_is_the_reward_s_slope_over_beta(beta: float, slope: float) -> None:
    """p = N(theta, 1), p_old = N(0, 1): log-ratio theta x - theta^2 / 2, reward slope x: theta = slope / beta, wherever
    the samples are."""
    x = torch.randn(12, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 1.7
    group = torch.arange(3).repeat_interleave(4)
    teacher = Teacher(FROZEN, (None,) * 12)
    term = CentredReward(
        teacher=teacher, reward_N=slope * x, group_N=group, size_N=torch.full((12,), 4), beta=beta, adaptive=False
    )

    def loss(theta: Tensor) -> Tensor:
        values = {VelocityError(): -(theta * x - theta**2 / 2), TeacherVelocityError(teacher): torch.zeros(12)}
        return term.losses(values, torch.arange(12), [1] * 12).loss_n.mean()

    best = torch.tensor(slope / beta, dtype=torch.float64, requires_grad=True)
    assert float(loss(best).detach()) < 1e-20
    for theta in (0.0, slope / beta - 0.1, slope / beta + 0.1):
        assert float(loss(torch.tensor(theta, dtype=torch.float64))) > 1e-4


def test_check_5_the_schedules_of_old_model_and_sampler() -> None:
    method = CRD()
    old = [1 - method.old.rate_at(t) for t in (0, 100, 150)]
    assert old == pytest.approx([0.25, 0.75, 0.999])
    assert [1 - method.sampler.rate_at(t) for t in (75, 209)] == pytest.approx([0.0, 0.999])
    lab = Lab("crd", old="ema(1)", sampler="ema(0)")
    before = lab.weights()
    lab.advance(2)
    copies = {key.split("-")[1]: copy for key, copy in lab.domain.bank.copies.items() if key != "frozen"}
    copied, frozen = (torch.cat([t.flatten() for t in copies[rate].values()]) for rate in ("1.0", "0.0"))
    assert torch.equal(copied, lab.weights())
    assert torch.equal(frozen, before)
    assert lab.domain.gap(lab.method.old) == 0.0  # type: ignore[attr-defined]
    assert lab.logged["gap_sampler"] > 0.0


def test_check_6_the_anchor_s_weight_at_both_ends() -> None:
    for anchor in (0.1, 0.5):
        weights = anchor * CRD(anchor=anchor).anchor_weights(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
        assert weights.tolist() == pytest.approx([1e-4, 0.5 * (1e-4 + anchor), anchor])


# --- against a reference ------------------------------------------------------------------------------------------------
def reference(lab: Lab, signal: Signal, first: dict[str, Tensor], method: CRD, A_N: Tensor) -> tuple[float, Tensor]:
    """The whole loss written again, sample by sample; old model, initial model and `first` are the same weights."""
    module, player = lab.domain.model.module, lab.domain.players["student"]
    now = dict(module.named_parameters())

    def v(weights: dict[str, Tensor], x: Tensor, t: Tensor, label: int) -> Tensor:
        return torch.func.functional_call(module, weights, (x[None], t[None], torch.tensor([label])))[0]

    rhat, gaps = [], []
    for row in signal.rows:
        t, label = torch.tensor(row.trajectory.t, dtype=torch.float64), row.context.label
        x, target = (1 - t) * row.trajectory.x0 + t * row.trajectory.eps, row.trajectory.eps - row.trajectory.x0
        own, old, free = v(now, x, t, label), v(first, x, t, label), v(first, x, t, 10)
        e, e_old = own - target, old - target
        w, w_old = (d.detach().abs().mean() if method.adaptive else 1.0 for d in (e, e_old))
        rhat.append(e_old.square().mean().detach() / w_old - e.square().mean() / w)
        gaps.append((own - (free + method.anchor_guidance * (old - free)).detach()).square().mean())
    reward = (A_N.clamp(-5, 5) / 10 + 0.5).clamp(0, 1)
    cells = [[r for r in range(len(signal.rows)) if int(term_of(signal).group_N[r]) == c] for c in range(6)]
    total = torch.zeros((), dtype=torch.float64)
    for cell in cells:
        R, h = reward[cell], torch.stack([rhat[r] for r in cell])
        if method.temperature is None:
            weightings = [torch.full_like(R, 1 / len(cell))]
        elif method.temperature > 0:
            weightings = [torch.softmax(sign * R / method.temperature, 0) for sign in (1, -1)]
        else:
            weightings = [(s * (R - 0.5) > 0).double() for s in (1, -1)]
            weightings = [p / p.sum() if p.sum() else torch.full_like(R, 1 / len(cell)) for p in weightings]
        for p in weightings:
            implicit = method.beta * (h - (p * h).sum().detach())
            external = R - (p * R).sum()
            if method.loss == "bce":
                q = external.sigmoid()
                losses = -(q * implicit.sigmoid().log() + (1 - q) * (1 - implicit.sigmoid()).log())
            else:
                losses = (implicit - external).square()
            total = total + losses.sum() / len(weightings)
    weight = (
        (1e-4 + reward * (method.anchor - 1e-4)) if method.anchor_by_reward else method.anchor * torch.ones_like(reward)
    )
    loss = 5 / method.beta * total / len(signal.rows) + (weight * torch.stack(gaps)).mean()
    player.optimiser.zero_grad()
    loss.backward()
    gradient = torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in player.parameters.values()]
    )
    player.optimiser.zero_grad()
    return float(loss.detach()), gradient


@pytest.mark.parametrize(
    "given",
    [{}, {"beta": 2.0, "adaptive": "false"}, {"temperature": 0.05}, {"temperature": 0}, {"loss": "bce"}, {"anchor_by_reward": "false", "anchor": 0.3}],
)  # fmt: skip
def test_law_4_the_whole_loss_against_a_reference(given: dict[str, Any]) -> None:
    lab = Lab("crd", **given)
    first = {name: p.detach().clone() for name, p in lab.domain.players["student"].parameters.items()}
    groups = lab.collect()
    lab.nudge()
    signal = lab.signal(groups)
    R = torch.stack([group.rewards for group in groups])
    A = (R - R.mean(1, keepdim=True)) / R.std(correction=0)
    cells = A[:, None].expand(3, 2, 4).flatten()  # rows go by group, time, sample
    assert isinstance(lab.method, CRD)
    loss, gradient = lab.gradient(signal)
    expected = reference(lab, signal, first, lab.method, cells)
    assert loss == pytest.approx(expected[0], rel=1e-9)
    torch.testing.assert_close(gradient, expected[1], rtol=1e-7, atol=1e-11)


def test_advantages_and_optimality() -> None:
    rewards = [torch.tensor([0.0, 1.0], dtype=torch.float64), torch.tensor([0.5, 0.5], dtype=torch.float64)]
    spread = torch.cat(rewards).std(correction=0)
    batch = advantages(rewards, std="batch", floor=1e-6)
    assert batch[0].tolist() == pytest.approx([-0.5 / float(spread), 0.5 / float(spread)])
    assert batch[1].tolist() == [0.0, 0.0]
    assert advantages(rewards, std="group", floor=1e-6)[0].tolist() == pytest.approx([-1.0, 1.0])
    assert advantages(rewards, std="none", floor=1e-6)[0].tolist() == [-0.5, 0.5]
    assert advantages(rewards, std="group", floor=0.5, added=True)[0].tolist() == pytest.approx([-0.5, 0.5])
    same = [torch.tensor([0.1, 0.1, 0.1], dtype=torch.float64)] * 2  # the rounding of a mean is not blown up
    assert torch.cat(advantages(same, std="batch", floor=1e-6)).tolist() == [0.0] * 6
    assert optimality(torch.tensor([-9.0, -5.0, 0.0, 2.5, 7.0]), 5.0).tolist() == [0.0, 0.0, 0.5, 0.75, 1.0]


def test_weights_inside_groups() -> None:
    score, group = torch.tensor([1.0, 2.0, 100.0, 3.0, 200.0], dtype=torch.float64), torch.tensor([5, 5, 2, 5, 2])
    found = softmax_weights(score, group, 2.0)
    torch.testing.assert_close(found[[0, 1, 3]], torch.softmax(torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64), 0))
    torch.testing.assert_close(found[[2, 4]], torch.softmax(torch.tensor([50.0, 100.0], dtype=torch.float64), 0))
    pools = pool_weights(torch.tensor([True, False, False, True, False]), group)
    assert pools.tolist() == [1.0, 0.0, 1.0, 1.0, 1.0]  # group 2 has none chosen: all of it


# --- options and mistakes -----------------------------------------------------------------------------------------------
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "beta": ({}, {"beta": 2.0}), "loss": ({}, {"loss": "bce"}), "adaptive": ({}, {"adaptive": "false"}),
    "temperature": ({}, {"temperature": 0.05}), "centring": ({}, {"centring": "batch"}), "std": ({}, {"std": "group"}),
    "advantage_bound": ({}, {"advantage_bound": 0.5}), "times": ({}, {"times": 1}), "time_share": ({}, {"time_share": 0.4}),
    "old": ({}, {"old": "frozen"}), "sampler": ({}, {"sampler": "frozen"}), "anchor": ({}, {"anchor": 0}),
    "anchor_guidance": ({}, {"anchor_guidance": 1}), "anchor_by_reward": ({}, {"anchor_by_reward": "false"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_option_changes_the_result(name: str) -> None:
    ends = []
    for given in CHANGES[name]:
        lab = Lab("crd", **given)
        lab.advance(2)
        ends.append(lab.weights())
    assert float((ends[0] - ends[1]).abs().max()) > 1e-9


def test_every_option_is_in_the_table() -> None:
    assert set(CHANGES) == set(options_of(CRD))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"group_size": 1}, "group_size=1 gives crd no group to centre over"),
        ({"anchor": 1e-5}, "anchor=1e-05 is below 0.0001, which samples of reward 0 get"),
        ({"epochs": 2}, "epochs=2 would tear groups apart"),
        ({"sampler": "stored"}, "sampler=stored has no weights"),
        ({"old": "slowing_ema(0.5)"}, "is not of the form slowing_ema"),
        ({"temperature": -1}, "temperature=-1 is out of range"),
        ({"loss": "mes"}, "did you mean 'mse'"),
        ({"task": "digits-thik"}, "generation task 'digits-thik' is unknown; did you mean 'digits-thick'"),
        (
            {"model": "flow-digit"},
            "model 'flow-digit' is neither a known name nor a folder; did you mean 'flow-digits'",
        ),
        ({"model": "dit:wdth=8"}, "model dit has no option 'wdth'; did you mean 'width'"),
        ({"model": "dit:width=6,heads=4"}, "must divide"),
        ({"model": "dit:width=8,heads=2,classes=3"}, "of 3 classes"),
    ],
)
def test_mistakes_are_one_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence.replace("(", r"\(")):
        Lab("crd", **given)


def test_more_times_than_the_schedule_has_are_refused() -> None:
    lab = Lab("crd", times=5)
    with pytest.raises(UserError, match="times=5 is more than the 4 training times"):
        lab.signal(lab.collect())


def test_minibatches_that_cut_a_group_are_refused_and_whole_ones_are_not() -> None:
    lab, groups, _ = at_work()
    with pytest.raises(UserError, match="minibatches cuts a prompt's group"):
        update(lab.signal(groups), lab.domain, 5)
    assert update(lab.signal(groups), lab.domain, 2)["skipped"] == 0.0
    assert lab.domain.players["student"].updates == 2


def test_settings_are_the_paper_s() -> None:
    method, config = settings("crd", {})
    assert str(method.old) == "slowing_ema(0.75, 0.005, 0.001, 0)"  # type: ignore[attr-defined]
    assert str(method.sampler) == "slowing_ema(1, 0.0075, 0.001, 75)"  # type: ignore[attr-defined]
    assert (config.weight_decay, config.grad_clip, config.sampling_steps) == (1e-4, 1.0, 10)  # type: ignore[attr-defined]
