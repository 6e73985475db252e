"""Law 4 for the methods with an external teacher: the same kind of reference as test_reference.py, with its helpers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import test_reference as base
import torch
from lab import CASES, Lab, assert_same, flat_gradient, tiny_model
from redistill.core.specs import DivergenceKind, Normaliser
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


def weighted(spec: Any, losses: list[Tensor], weights: list[float]) -> Tensor:
    """A weighted reduction by words: rows of weight 0 are left out; rows=weighted is a weighted mean of rows or tokens."""
    kept = [(loss, w) for loss, w in zip(losses, weights) if w and len(loss)]
    if spec.name == "token":
        count = sum((w if spec.rows == "weighted" else 1) * len(loss) for loss, w in kept)
        return sum((w * loss.sum() for loss, w in kept), torch.zeros(())) / count
    count = sum(w for _, w in kept) if spec.rows == "weighted" else len(kept)
    return sum((w * loss.mean() for loss, w in kept), torch.zeros(())) / count


def full(lab: Lab, kind: Any, context: Any, row: Any) -> Tensor:
    """A divergence [steps] at temperature 1 over the whole vocabulary."""
    log_q = logits_at(lab.domain.lm.module, row.context, row).log_softmax(-1)
    with torch.no_grad():
        if str(lab.method.teacher) in OTHERS:
            log_p = logits_at(tiny_model(seed=7).module, context, row).log_softmax(-1)
        else:
            (copy,) = lab.domain.bank.copies.values()
            log_p = logits_at(lab.domain.lm.module, context, row, copy).log_softmax(-1)
    return base.divergence(kind.name, kind.beta, log_p, log_q)


def paced(lab: Lab, groups: list[Any]) -> Tensor:
    m, losses, weights = lab.method, [], []
    for group in groups:
        p = sum(row.reward >= 1 for row in group) / len(group.episodes)
        w = float(m.keep_above < p < m.keep_below) if m.weighting == "filter" else p**m.a * (1 - p) ** m.b
        for row in group:
            context = row.context
            if m.teacher_view != "plain":
                context = base.shown(lab, row.prompt, solution=row.prompt.solution)
            losses.append(full(lab, m.divergence, context, row))
            weights.append(w)
    return weighted(m.normaliser, losses, weights)


def scope(lab: Lab, groups: list[Any]) -> Tensor:
    """Written per group: sums with weights that add up to 1, or mean-1 weights and token means."""
    m, right_loss, wrong_loss = lab.method, [], []
    tokens = {"right": 0, "wrong": 0, "all": 0}
    for group in groups:
        right = [row for row in group if m.route and row.reward >= 1]
        wrong = [row for row in group if row not in right]
        for rows, kind, bag in ((right, m.student_weight, right_loss), (wrong, m.teacher_weight, wrong_loss)):
            scores = []
            for row in rows:
                by_teacher = taken(by(lab, m.teacher, row.context, row), row)
                logs = row.behaviour_logp_T.double() if rows is right else by_teacher
                scores.append(float(logs.mean()) if len(logs) else 0.0)
            signed = [{"high": -s, "low": s, "none": 0.0}[kind] / m.temperature_of_weights for s in scores]
            whole = sum(math.exp(s) for s in signed)
            for row, s in zip(rows, signed):
                w = math.exp(s) / whole * (1 if m.aggregation == "paper" else len(rows))
                log_q, old = taken(own(lab, row), row), row.behaviour_logp_T.double()
                ratio = (log_q - old).exp()
                gap = taken(by(lab, m.teacher, row.context, row), row) - old
                if rows is right:
                    loss = surrogate(ratio, 1.0, 0.2, 0.2, 3.0)
                elif m.support.name == "sampled":
                    loss = surrogate(ratio, gap, 0.2, 0.2, 3.0)
                else:
                    loss = full(lab, DivergenceKind("reverse_kl"), row.context, row)
                bag.append(w * loss.sum())
                tokens["right" if rows is right else "wrong"] += len(loss)
                tokens["all"] += len(loss)
    zero = torch.zeros((), dtype=torch.float64)
    imitated, distilled = m.imitation * sum(right_loss, zero), sum(wrong_loss, zero)
    if m.aggregation == "paper":
        return (imitated + distilled) / len(groups)
    imitated = imitated / tokens["right"] if tokens["right"] else zero
    return imitated + distilled / tokens["all" if m.aggregation == "released" else "wrong"]


def kepo(lab: Lab, groups: list[Any]) -> Tensor:
    m, losses, distilled, passed, kls = lab.method, [], [], [], []
    for group in groups:
        rewards = [row.reward + float(row.verdict.format_ok) for row in group]
        mean = sum(rewards) / len(rewards)
        spread = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1)) + 1e-4
        for row, r in zip(group, rewards):
            advantage = (r - mean) / (spread if m.std == "sample" else 1.0)
            logp = taken(own(lab, row), row)
            losses.append(-advantage * (logp - logp.detach()).exp())
            distilled.append(full(lab, m.divergence, row.context, row))
            passed.append(r >= m.gate)
            if m.rl_kl:
                kls.append(sampled("k3", logp, taken(by(lab, "frozen", row.context, row), row)))
    value = reduced(m.normaliser, losses, [True] * len(losses))
    value = value + m.distillation * reduced(Normaliser(), distilled, passed)
    return value + m.rl_kl * reduced(m.normaliser, kls, [True] * len(kls)) if m.rl_kl else value


def tsd_kd(lab: Lab, groups: list[Any]) -> Tensor:
    m, paths = lab.method, {"ranking": [], "direct": [], "entropy": []}
    for row, _ in pairs(groups):
        logits = logits_at(lab.domain.lm.module, row.context, row)
        log_q, log_p = logits.log_softmax(-1), by(lab, m.teacher, row.context, row)
        spread = -(log_q.exp() * log_q).sum(-1)
        known = spread.detach()
        sure = -(log_p.exp() * log_p).sum(-1)
        gate = 1 / (1 + ((sure - spread) / m.gate_temperature).detach().exp()) if m.gate else torch.ones_like(spread)
        paths["direct"].append(gate * base.divergence(m.divergence.name, m.divergence.beta, log_p, log_q))
        ranked = []
        for t in range(len(logits)):
            best = sorted(
                logits[t].argsort(descending=True)[: m.candidates].tolist(), key=lambda v: -float(log_p[t, v])
            )
            best = best[::-1] if m.release_order else best
            z = logits[t][best]
            ranked.append(sum(torch.logsumexp(z[j:], 0) - z[j] for j in range(len(best))))
        so_far, count = 0.0, 0
        while count < len(known) and so_far < m.opener * float(known.sum()) * (1 - 1e-12):
            so_far += float(known[count])
            count += 1
        empty = torch.zeros(0, dtype=torch.float64)
        paths["ranking"].append(torch.stack(ranked[:count]) if count else empty)
        top = spread.argsort(descending=True)[: math.ceil(round(m.entropy_share * len(spread), 9))]
        paths["entropy"].append(spread[top])
    total = reduced(m.normaliser, paths["direct"], [True] * len(paths["direct"]))
    total = total + m.ranking * reduced(m.normaliser, paths["ranking"], [True] * len(paths["ranking"]))
    return total + m.entropy * reduced(m.normaliser, paths["entropy"], [True] * len(paths["entropy"]))


REFERENCES: dict[str, Loss] = {
    "kdrl": kdrl, "rlad": rlad, "g-opd": g_opd, "paced": paced, "scope": scope, "kepo": kepo, "tsd-kd": tsd_kd,
}  # fmt: skip


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
