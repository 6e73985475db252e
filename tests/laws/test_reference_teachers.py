"""Law 4 for the methods with an external teacher: the same kind of reference as test_reference.py, with its helpers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import test_reference as base
import torch
from lab import CASES, Lab, assert_same, flat_gradient, tiny_model
from test_reference import Loss, logits_at, reduced, sampled, taken
from torch import Tensor

OTHERS = {"checkpoint(other)": 7, "checkpoint(third)": 8}
"""Seeds of the lab's other models."""


def by(lab: Lab, weights: Any, context: Any, row: Any) -> Tensor:
    """Log-probs [steps, V] by another model or the initial student, at the row's temperature; no gradient."""
    warm = row.sampling.temperature
    with torch.no_grad():
        if str(weights) in OTHERS:
            return (logits_at(tiny_model(seed=OTHERS[str(weights)]).module, context, row) / warm).log_softmax(-1)
        (copy,) = lab.domain.bank.copies.values()
        return (logits_at(lab.domain.lm.module, context, row, copy) / warm).log_softmax(-1)


def own(lab: Lab, row: Any) -> Tensor:
    return (logits_at(lab.domain.lm.module, row.context, row) / row.sampling.temperature).log_softmax(-1)


def group_advantage(row: Any, group: Sequence[Any], std: str) -> float:
    rewards = [each.reward for each in group]
    mean = sum(rewards) / len(rewards)
    if std == "none" or len(set(rewards)) == 1:
        return row.reward - mean if len(set(rewards)) > 1 else 0.0
    spread = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (len(rewards) - (std == "sample")))
    return (row.reward - mean) / (spread + 1e-6)


def surrogate(ratio: Tensor, advantage: Any, low: float, high: float, dual: float | None = None) -> Tensor:
    """-min(r A, clip(r) A), bounded by -c A for A < 0."""
    advantage = torch.as_tensor(advantage, dtype=torch.float64).expand_as(ratio)
    value = torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    if dual is not None:
        value = torch.where(advantage < 0, torch.maximum(value, dual * advantage), value)
    return -value


def pairs(groups: Sequence[Any]) -> list[tuple[Any, Any]]:
    return [(row, group) for group in groups for row in group]


def kdrl(lab: Lab, groups: list[Any]) -> Tensor:
    m, losses, distilled, kept = lab.method, [], [], []
    for row, group in pairs(groups):
        log_q, log_p = own(lab, row), by(lab, m.teacher, row.context, row)
        gap = taken(log_p, row) - taken(log_q, row)
        right = [each.reward >= 1 for each in group]
        kept.append({"none": True, "response": row.reward < 1, "group": not any(right)}[m.mask])
        advantage = m.reward * group_advantage(row, group, m.std)
        if m.fusion == "advantage":
            advantage = advantage + m.beta * kept[-1] * gap.detach()
        ratio = (taken(log_q, row) - row.behaviour_logp_T.double()).exp()
        losses.append(surrogate(ratio, advantage, m.clip_low, m.clip_high))
        if m.support.name == "sampled":
            distilled.append(sampled(m.estimator, taken(log_q, row), taken(log_p, row)))
        else:
            distilled.append(base.divergence("reverse_kl", None, *base.narrowed(m.support, log_p, log_q)))
    total = reduced(m.normaliser, losses, [True] * len(losses))
    return total if m.fusion == "advantage" else total + m.beta * reduced(m.normaliser, distilled, kept)


def rlad(lab: Lab, groups: list[Any]) -> Tensor:
    m, losses, alive, kls = lab.method, [], [], []
    for row, group in pairs(groups):
        logp, log_t = taken(own(lab, row), row), taken(by(lab, m.teacher, row.context, row), row)
        gap = logp - log_t
        if m.clamp is not None:
            cut = gap.clamp(-m.clamp, m.clamp)
            gap = cut if not m.clamp_gradient else cut.detach() + logp - logp.detach()
        ratio = (m.alpha * (logp - row.behaviour_logp_T.double()) + (1 - m.alpha) * gap).exp()
        losses.append(surrogate(ratio, group_advantage(row, group, m.std), m.clip_low, m.clip_high))
        alive.append(not m.drop_dead_groups or len({each.reward for each in group}) > 1)
        if m.kl:
            kls.append(sampled("k3", logp, taken(by(lab, "frozen", row.context, row), row)))
    total = reduced(m.normaliser, losses, alive)
    return total + m.kl * reduced(m.normaliser, kls, [True] * len(kls)) if m.kl else total


def g_opd(lab: Lab, groups: list[Any]) -> Tensor:
    m, losses = lab.method, []
    for row, _ in pairs(groups):
        weights = m.teacher if m.teacher is not None else m.named()[row.prompt.data["domain"]]
        context = row.context
        if m.teacher_view != "plain":
            context = base.shown(lab, row.prompt, solution=row.prompt.solution)
        logp = taken(own(lab, row), row)
        reference = taken(by(lab, m.reference, row.context, row), row)
        reward = taken(by(lab, weights, context, row), row) - reference
        if m.reward_clip is not None:
            reward = reward.clamp(-m.reward_clip, m.reward_clip)
        each = (m.scale * reward - (logp - reference)).detach()
        powers = torch.tensor(
            [[m.discount ** (j - i) if j >= i else 0.0 for j in range(len(each))] for i in range(len(each))]
        )
        advantage = powers.double().view(len(each), len(each)) @ each
        ratio = (logp - row.behaviour_logp_T.double()).exp()
        losses.append(surrogate(ratio, advantage, m.clip, m.clip, m.dual_clip))
    return reduced(m.normaliser, losses, [True] * len(losses))


REFERENCES: dict[str, Loss] = {"kdrl": kdrl, "rlad": rlad, "g-opd": g_opd}


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case][0] in REFERENCES])
def test_law_4_loss_and_gradient_agree_with_the_reference(case: str) -> None:
    slug, options = CASES[case]
    lab = Lab(slug, **options)
    lab.shake_teachers()
    groups = lab.collected()
    found = lab.gradient(lab.signal(groups))
    player = lab.domain.players["student"]
    for p in player.parameters.values():
        p.grad = None
    loss = REFERENCES[slug](lab, groups)
    loss.backward()
    assert_same(found, (float(loss.detach()), flat_gradient(player.parameters.values())))


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case][0] in REFERENCES])
def test_law_3_another_teacher_changes_the_gradient(case: str) -> None:
    slug, options = CASES[case]
    lab, other = Lab(slug, **options), Lab(slug, **options)
    lab.shake_teachers()
    other.shake_teachers(0.2)
    for name in other.domain.bank.others:
        other.domain.bank.others[name] = tiny_model(seed=20)
    one, two = lab.gradient(lab.signal(lab.groups()))[1], other.gradient(other.signal(other.groups()))[1]
    assert float((one - two).norm()) > 1e-3 * float(one.norm())


def test_every_case_has_a_reference() -> None:
    assert {slug for slug, _ in CASES.values()} <= {*base.REFERENCES, *REFERENCES}
