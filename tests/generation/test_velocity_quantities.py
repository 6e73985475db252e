"""Every quantity of the generation domain against a reference of its own, in float64; gradients by finite differences."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from redistill.core.episode import Episode, flat
from redistill.core.signal import EntropyOf, LogProb, Quantity, Signal, Teacher, TeacherLogProb
from redistill.core.specs import TeacherWeights
from redistill.generation.quantities import (
    MixedError,
    StepDivergence,
    TeacherVelocityError,
    VelocityError,
    VelocityGap,
)
from redistill.generation.trajectories import Condition
from redistill.objectives.terms import Likelihood
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from generation_lab import Lab

FROZEN = TeacherWeights("frozen")


def made(kind: str, **given: object) -> tuple[Lab, list[Episode], Tensor]:
    """A lab whose student has left its frozen copy, rows of a kind, and the first weights."""
    lab = Lab("crd" if kind == "noised" else "flow-grpo", **given)
    first = {name: p.detach().clone() for name, p in lab.domain.players["student"].parameters.items()}
    groups = lab.collect()
    lab.nudge()
    rows = list(lab.domain.noised(groups, 2, 1.0, True).rows) if kind == "noised" else flat(groups)
    return lab, rows, first


def plain(lab: Lab, weights: dict[str, Tensor] | None, x: Tensor, t: Tensor, labels: list[int], s: float) -> Tensor:
    """v_u + s (v_c - v_u) by torch.func, one sample at a time, so nothing of the domain's batching is used."""
    module = lab.domain.model.module
    now = dict(module.named_parameters())
    pieces = []
    for i, label in enumerate(labels):
        one = [
            torch.func.functional_call(module, weights or now, (x[i : i + 1], t[i : i + 1], torch.tensor([of])))
            for of in (label, 10)
        ]
        pieces.append(one[1] + s * (one[0] - one[1]))
    return torch.cat(pieces)


def noised_parts(rows: list[Episode]) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    x0, eps = (torch.stack([getattr(row.trajectory, name) for row in rows]) for name in ("x0", "eps"))
    t = torch.tensor([row.trajectory.t for row in rows], dtype=torch.float64)
    s = t[:, None, None]
    return (1 - s) * x0 + s * eps, t, eps - x0, [row.context.label for row in rows]


def score(lab: Lab, rows: list[Episode], quantity: Quantity) -> Tensor:
    return lab.domain.score(rows, [quantity])[quantity]


@pytest.mark.parametrize("guidance", [1.0, 0.0, 4.5])
def test_errors_of_velocity(guidance: float) -> None:
    lab, rows, first = made("noised")
    x, t, target, labels = noised_parts(rows)
    own, old = plain(lab, None, x, t, labels, 1.0), plain(lab, first, x, t, labels, guidance)
    teacher = lab.domain.teacher(FROZEN, rows, guidance)
    gap, theirs = own - target, old - target
    mean = (1, 2)
    expected = {
        VelocityError(): gap.square().mean(mean),
        VelocityError(True): gap.square().mean(mean) / gap.abs().mean(mean),
        TeacherVelocityError(teacher): theirs.square().mean(mean),
        TeacherVelocityError(teacher, True): theirs.square().mean(mean) / theirs.abs().mean(mean),
        VelocityGap(teacher): (own - old).square().mean(mean),
    }
    for share in (0.7, -0.7):
        mixed = (1 - share) * old + share * own - target
        clean = t[:, None, None] * mixed
        expected[MixedError(teacher, share, "velocity", False)] = mixed.square().mean(mean)
        expected[MixedError(teacher, share, "x0", False)] = clean.square().mean(mean)
        expected[MixedError(teacher, share, "x0", True)] = clean.square().mean(mean) / clean.abs().mean(mean)
    for quantity, value in expected.items():
        torch.testing.assert_close(score(lab, rows, quantity), value.detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kernel", ["flow", "constant"])
@pytest.mark.parametrize("over", ["mean", "sum"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_log_probs_and_divergences_of_denoising_steps(kernel: str, over: str, guidance: float) -> None:
    lab, rows, first = made("chain", kernel=kernel, logp_over=over, guidance=guidance, group_size=2)
    times = torch.linspace(1, 0, 6, dtype=torch.float64)
    own_logp, old_logp, kl, kl_code = [], [], [], []
    for row in rows:
        states = row.trajectory.states
        for k in range(5):
            t, d = times[k], times[k] - times[k + 1]
            g = 0.7 if kernel == "constant" else 0.7 * float(t / (1 - (times[1] if k == 0 else t))) ** 0.5
            steps = []
            for weights in (None, first):
                v = plain(lab, weights, states[k][None], t[None], [row.context.label], guidance)[0]
                score_ = -(states[k] + (1 - t) * v) / t
                steps.append(Normal(states[k] - d * v + 0.5 * g**2 * d * score_, g * float(d) ** 0.5))
            reduce = torch.sum if over == "sum" else torch.mean
            own_logp.append(reduce(steps[0].log_prob(states[k + 1])))
            old_logp.append(reduce(steps[1].log_prob(states[k + 1])))
            kl.append(reduce(kl_divergence(steps[0], steps[1])))
            kl_code.append(kl[-1] * d)
    teacher = lab.domain.teacher(FROZEN, rows)
    for quantity, value in {
        LogProb(): own_logp, TeacherLogProb(teacher): old_logp, StepDivergence(teacher): kl,
        StepDivergence(teacher, False): kl_code,
    }.items():  # fmt: skip
        torch.testing.assert_close(score(lab, rows, quantity), torch.stack(value).detach(), rtol=1e-8, atol=1e-10)


def test_the_sampler_recorded_the_log_prob_that_is_measured() -> None:
    lab = Lab("flow-grpo")
    rows = flat(lab.collect())
    recorded = torch.cat([row.behaviour_logp_T for row in rows])
    torch.testing.assert_close(score(lab, rows, LogProb()), recorded, rtol=1e-9, atol=1e-11)


def test_the_adaptive_weight_has_no_gradient() -> None:
    lab, rows, _ = made("noised")
    player = lab.domain.players["student"]

    def gradient(quantity: Quantity) -> tuple[Tensor, Tensor]:
        player.optimiser.zero_grad()
        value = lab.domain.measure(Signal(rows[:1], []), [0], [quantity]).values[quantity][0]
        value.backward()
        return value.detach(), torch.cat([p.grad.flatten() for p in player.parameters.values() if p.grad is not None])

    plain_value, plain_gradient = gradient(VelocityError())
    value, weighted = gradient(VelocityError(True))
    torch.testing.assert_close(weighted, plain_gradient * (value / plain_value))

    # And the plain gradient is that of finite differences along a direction.
    direction = [torch.sin(torch.arange(p.numel(), dtype=p.dtype)).view_as(p) for p in player.parameters.values()]
    values = []
    for sign in (1, -1):
        for p, d in zip(player.parameters.values(), direction):
            p.data.add_(sign * 1e-6 * d)
        values.append(float(score(lab, rows[:1], VelocityError())[0]))
        for p, d in zip(player.parameters.values(), direction):
            p.data.sub_(sign * 1e-6 * d)
    along = sum(float((p.grad * d).sum()) for p, d in zip(player.parameters.values(), direction) if p.grad is not None)
    scale = float(plain_value / value)
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(along * scale, rel=1e-6)


def test_a_row_without_a_teacher_is_unknown_and_harms_nobody() -> None:
    lab, rows, _ = made("noised")
    rows = rows[:4]
    full = lab.domain.teacher(FROZEN, rows)
    some = Teacher(FROZEN, (full.contexts[0], None, *full.contexts[2:]))
    value = lab.domain.measure(Signal(rows, []), range(4), [VelocityGap(some)]).values[VelocityGap(some)]
    assert value.isnan().tolist() == [False, True, False, False]
    torch.testing.assert_close(value[[0, 2, 3]].detach(), score(lab, rows, VelocityGap(full))[[0, 2, 3]])
    value[[0, 2, 3]].sum().backward()
    grads = [p.grad for p in lab.domain.players["student"].parameters.values() if p.grad is not None]
    assert all(bool(grad.isfinite().all()) for grad in grads)


def test_a_quantity_that_the_steps_do_not_have_is_an_error() -> None:
    lab, noised, _ = made("noised")
    _, chains, _ = made("chain")
    teacher = lab.domain.teacher(FROZEN, noised)
    for rows, quantity in ((noised, LogProb()), (noised, StepDivergence(teacher)), (chains, VelocityError())):
        with pytest.raises(ValueError, match="and some rows are not"):
            score(lab, rows, quantity)
    with pytest.raises(ValueError, match="is not a quantity of the generation domain"):
        score(lab, noised, EntropyOf())
    with pytest.raises(ValueError, match="has no steps to train on"):
        score(lab, flat(lab.collect()), LogProb())


def test_a_mixture_of_weights_mixes_velocities() -> None:
    lab, rows, first = made("noised", old="trust_region(0.25)")
    x, t, _, labels = noised_parts(rows)
    mixed = 0.75 * plain(lab, first, x, t, labels, 1.0) + 0.25 * plain(lab, None, x, t, labels, 1.0)
    conditions = [Condition(label) for label in labels]
    found = lab.domain.predict_with(TeacherWeights("trust_region", 0.25), x, t, conditions)
    torch.testing.assert_close(found, mixed.detach())


def test_likelihood_of_chains_is_a_term_like_any_other() -> None:
    lab, rows, _ = made("chain")
    loss, gradient = lab.gradient(Signal(rows, [Likelihood()]))
    assert loss == pytest.approx(-float(score(lab, rows, LogProb()).mean()))
    assert float(gradient.norm()) > 0
    with pytest.raises(ValueError, match="steps"):
        Signal([replace(rows[0])], [Likelihood(mask_N=torch.ones(3))])
