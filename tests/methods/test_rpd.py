"""RPD: the specification's numbered checks, its losses against references, options and mistakes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from redistill.build import settings
from redistill.core.options import options_of
from redistill.core.signal import Signal
from redistill.core.specs import TeacherWeights
from redistill.core.update import update
from redistill.embodied.terms import Imitation
from redistill.errors import UserError
from redistill.methods.ppo import PPO
from redistill.methods.rpd import RPD
from test_ppo import CHANGES as OF_PPO

from embodied_lab import SMALL, Lab, saved_policy


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_policy(tmp_path_factory.mktemp("teacher")) + ",noise=0.3"


def pull(lab: Lab, signal: Signal) -> Signal:
    """The signal with its teacher term alone."""
    return Signal(signal.rows, [term for term in signal.terms if term.name == "imitation"])


def gradients(lab: Lab, signal: Signal) -> dict[str, torch.Tensor]:
    """The gradient by parameter."""
    _, flat = lab.gradient(signal)
    named = lab.domain.players["student"].parameters
    parts = flat.split([p.numel() for p in named.values()])
    return {name: part.view_as(named[name]) for name, part in zip(named, parts)}


# --- check 1 ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_check_1_weight_0_is_ppo_bit_for_bit(teacher: str, dtype: str) -> None:
    ends = []
    for slug, given in (("ppo", {}), ("rpd", {"weight": 0, "teacher": teacher}), ("rpd", {"teacher": teacher})):
        lab = Lab(slug, **given, epochs=2, minibatches=3, dtype=dtype)
        lab.advance(3)
        ends.append(lab.weights())
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


# --- check 2 ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("loss", ["mse", "bc"])
def test_check_2_gradients_of_mean_and_deviation(teacher: str, loss: str) -> None:
    """With no advantage and no value the gradient is the teacher's alone: 2 lambda (mu - a) / (B D) for the mean and none
    for the deviation with mse; for bc the log deviation's is mean_B (1 - ((a - mu) / sigma)^2)."""
    lab = Lab("rpd", teacher=teacher, loss=loss, weight=0.7, value_weight=0)
    signal = lab.signal(lab.collect())
    zero = replace(signal.terms[0], advantage_N=torch.zeros_like(signal.terms[0].advantage_N))  # type: ignore[call-arg,attr-defined]
    signal = Signal(signal.rows, [zero, *signal.terms[1:]])
    found = gradients(lab, signal)
    module = lab.domain.model.module
    seen = torch.stack([row.context for row in signal.rows])
    wanted = torch.stack(signal.terms[-1].teacher.contexts)[:, 0]  # type: ignore[attr-defined]
    mu = module.mean(seen)
    if loss == "mse":
        slope = 0.7 * 2 * (mu - wanted).detach() / mu.numel()
        assert float(found["log_std"].abs().max()) == 0.0
    else:
        var = (2 * module.log_std).exp().detach()
        slope = 0.7 * ((mu - wanted).detach() / var) / len(mu)
        expected = 0.7 * (1 - (wanted - mu).square() / var).mean(0)
        torch.testing.assert_close(found["log_std"], expected.detach(), rtol=1e-8, atol=1e-12)
    mu.backward(slope)
    for name, p in module.named_parameters():
        if name.startswith("actor"):
            torch.testing.assert_close(found[name], p.grad, rtol=1e-8, atol=1e-12)


# --- check 3 ----------------------------------------------------------------------------------------------------------
def test_check_3_ppd_at_ratio_one_is_the_mean_kl(teacher: str) -> None:
    lab = Lab("rpd", teacher=teacher, loss="ppd", samples=6)
    signal = pull(lab, lab.signal(lab.collect()))
    proposed = torch.stack(signal.terms[0].teacher.contexts)  # type: ignore[attr-defined]
    m, s = proposed.mean(1), proposed.std(1).clamp(min=0.1)
    assert bool((proposed.std(1) < 0.1).any()), "some are all at the edge"
    module = lab.domain.model.module
    seen = torch.stack([row.context for row in signal.rows])
    mu, sigma = module.mean(seen).detach(), module.log_std.exp().detach()
    each = torch.log(s / sigma) + (sigma**2 + (mu - m) ** 2) / (2 * s**2) - 0.5
    assert lab.gradient(signal)[0] == pytest.approx(float(each.sum(1).mean()), rel=1e-9)


def test_ppd_weighs_by_the_ratio_bounded_below_with_its_gradient(teacher: str) -> None:
    lab = Lab("rpd", teacher=teacher, loss="ppd", samples=6, clip=0.05)
    signal = pull(lab, lab.signal(lab.collect()))
    lab.nudge(0.05)
    proposed = torch.stack(signal.terms[0].teacher.contexts)  # type: ignore[attr-defined]
    theirs = torch.distributions.Independent(
        torch.distributions.Normal(proposed.mean(1), proposed.std(1).clamp(min=0.1)), 1
    )
    module = lab.domain.model.module
    seen, action = (torch.stack([getattr(row, name) for row in signal.rows]) for name in ("context", "trajectory"))
    own = torch.distributions.Independent(torch.distributions.Normal(module.mean(seen), module.log_std.exp()), 1)
    ratio = (own.log_prob(action) - torch.cat([row.behaviour_logp_T for row in signal.rows])).exp()
    assert bool((ratio < 0.95).any())
    assert bool((ratio > 1.05).any())
    loss = (torch.distributions.kl_divergence(own, theirs) * ratio.clamp(min=0.95)).mean()
    loss.backward()
    named = lab.domain.players["student"].parameters.values()
    expected = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in named])
    found = lab.gradient(signal)
    assert found[0] == pytest.approx(float(loss.detach()), rel=1e-9)
    torch.testing.assert_close(found[1], expected, rtol=1e-7, atol=1e-10)


# --- check 4 ----------------------------------------------------------------------------------------------------------
def test_check_4_a_teacher_at_the_student_s_mean_changes_nothing() -> None:
    lab, plain = Lab("ppo"), Lab("ppo")
    signal = lab.signal(lab.collect())
    own = lab.domain.teacher(TeacherWeights("live"), signal.rows)
    with_own = replace(signal, terms=[*signal.terms, Imitation(teacher=own)])
    assert lab.gradient(Signal(signal.rows, [Imitation(teacher=own)]))[0] == 0.0
    update(with_own, lab.domain)
    update(plain.signal(plain.collect()), plain.domain)
    torch.testing.assert_close(lab.weights(), plain.weights(), rtol=0, atol=1e-15)


# --- check 5 is of the advantage: tests/objectives/test_returns.py ------------------------------------------------------
# --- check 6 ----------------------------------------------------------------------------------------------------------
def test_check_6_the_weight_falls_as_a_cosine() -> None:
    method, _ = settings("rpd", {**SMALL, "teacher": "expert", "anneal_steps": 1000, "weight": 1.0})
    assert isinstance(method, RPD)
    assert method.pull(0) == 1.0
    assert method.pull(500) == pytest.approx(0.5)
    assert method.pull(250) == pytest.approx(0.5 * math.cos(math.pi / 4) + 0.5)
    assert (method.pull(1000), method.pull(5000)) == (0.0, 0.0)
    constant, _ = settings("rpd", {**SMALL, "teacher": "expert", "weight": 0.3})
    assert isinstance(constant, RPD)
    assert {constant.pull(n) for n in (0, 1000, 10**7)} == {0.3}


def test_annealing_counts_the_actions_of_training_and_then_asks_no_more(teacher: str) -> None:
    lab = Lab("rpd", teacher=teacher, anneal_steps=150)
    pulls = []
    for _ in range(6):
        lab.advance(1)
        pulls.append(lab.logged["pull"])
        steps = lab.domain.progress.env_steps
        expected = 0.0 if steps >= 150 else 0.5 * math.cos(math.pi * steps / 150) + 0.5
        assert pulls[-1] == pytest.approx(expected)
    assert pulls == sorted(pulls, reverse=True)
    assert pulls[-1] == 0.0
    assert [term.name for term in lab.signal(lab.collect()).terms] == ["policy_gradient", "value"]


# --- the teacher ------------------------------------------------------------------------------------------------------
def test_a_good_teacher_is_imitated(teacher: str) -> None:
    """The pull alone (no learning signal from rewards) brings the student's mean to the teacher's."""
    lab = Lab(
        "rpd",
        teacher=teacher.replace("noise=0.3", "noise=0"),
        weight=10,
        value_weight=0,
        learning_rate=3e-2,
        model="mlp:width=32,depth=1",
    )
    gaps = []
    for _ in range(40):
        signal = lab.signal(lab.collect())
        gaps.append(lab.gradient(pull(lab, signal))[0])
        lab.advance(1)
    assert gaps[-1] < 0.2 * gaps[0]


def test_noise_and_shift_are_the_teacher_s(teacher: str) -> None:
    folder = teacher.partition(",")[0]
    wanted = {}
    for name, text in (("clean", folder), ("noisy", f"{folder},noise=0.3"), ("shifted", f"{folder},shift=0.5")):
        lab = Lab("rpd", teacher=text)
        rows = lab.domain.transitions(lab.collect())
        wanted[name] = torch.stack(lab.domain.proposals(rows, 2).contexts)
    assert torch.equal(wanted["clean"][:, 0], wanted["clean"][:, 1])
    gap = wanted["noisy"] - wanted["clean"]
    inside = wanted["noisy"].abs() < 1
    assert float(gap[inside].std()) == pytest.approx(0.3, rel=0.25)
    assert float((wanted["shifted"] - wanted["clean"]).abs().max()) > 0.05
    assert all(float(each.abs().max()) <= 1.0 for each in wanted.values())


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **OF_PPO, "weight": ({}, {"weight": 0.5}), "loss": ({}, {"loss": "l1"}), "samples": ({}, {"samples": 3}),
    "anneal_steps": ({}, {"anneal_steps": 200}),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_option_changes_the_result(name: str, teacher: str) -> None:
    ends = []
    for given in CHANGES[name]:
        lab = Lab("rpd", **{"epochs": 2, "minibatches": 3, "grad_clip": 1e6, "teacher": teacher, **given})
        lab.advance(2)
        ends.append(lab.weights())
    assert float((ends[0] - ends[1]).abs().max()) > 1e-6


@pytest.mark.parametrize("loss", ["l1", "bc", "ppd"])
def test_every_loss_is_another(loss: str, teacher: str) -> None:
    ends = []
    for kind in ("mse", loss):
        lab = Lab("rpd", teacher=teacher, loss=kind, samples=3)
        lab.advance(1)
        ends.append(lab.weights())
    assert float((ends[0] - ends[1]).abs().max()) > 1e-6


def test_the_least_deviation_changes_the_result(teacher: str) -> None:
    ends = []
    for least in (0.1, 0.4):
        lab = Lab("rpd", teacher=teacher, loss="ppd", samples=3, teacher_least_std=least)
        lab.advance(1)
        ends.append(lab.weights())
    assert float((ends[0] - ends[1]).abs().max()) > 1e-6


def test_every_option_is_in_the_table() -> None:
    assert set(CHANGES) == set(options_of(RPD))
    assert set(options_of(RPD)) - set(options_of(PPO)) == {"weight", "loss", "samples", "anneal_steps"}


def test_mistakes_are_one_sentence(teacher: str) -> None:
    with pytest.raises(UserError, match="rpd needs a teacher: write teacher=expert:noise=1"):
        Lab("rpd", teacher="none")
    with pytest.raises(UserError, match="samples=1 gives loss=ppd no deviation of the teacher: it must be >= 2"):
        Lab("rpd", teacher=teacher, loss="ppd")
    with pytest.raises(UserError, match="did you mean 'mse'"):
        Lab("rpd", teacher=teacher, loss="mes")
    assert Lab("rpd", teacher="none", weight=0).method.slug == "rpd"
