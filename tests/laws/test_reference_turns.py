"""Law 4 for the methods of several attempts and turns (rltf, skill-sd): references like those of test_reference.py."""

from __future__ import annotations

from typing import Any

import pytest
import test_reference as base
import test_reference_teachers as teachers
import torch
from lab import CASES, Lab, assert_same, flat_gradient
from redistill.text.views import Evidence
from test_reference import Loss, logits_at, reduced, sampled, taken
from test_reference_teachers import own, surrogate
from torch import Tensor


def under(lab: Lab, row: Any, context: Any) -> Tensor:
    """Log-probs [steps] of a row's response read under another context, at the row's temperature."""
    logits = logits_at(lab.domain.lm.module, context, row) / row.sampling.temperature
    return taken(logits.log_softmax(-1), row)


def critique_nll(lab: Lab, first: Any) -> Tensor:
    """Minus the log-prob of the critique and its end after question and attempt, summed, at temperature 1."""
    told = "?" if lab.method.critic == "correctness" else first.verdict.feedback
    context = lab.domain.render("critique", first.prompt, Evidence(attempt=first.text))
    ids = [*lab.domain.lm.tokenizer.encode(told, add_special_tokens=False), lab.domain.lm.eos_ids[0]]
    logits = lab.domain.lm.module(torch.tensor([[*context, *ids]])).logits[0, len(context) - 1 : -1]
    return -logits.log_softmax(-1).gather(-1, torch.tensor(ids)[:, None]).sum()


def second_loss(lab: Lab, second: Any, advantage: float) -> Tensor:
    """SD's part of one second attempt, summed over its tokens."""
    m = lab.method
    logp, old = under(lab, second, second.trajectory.after.context), second.behaviour_logp_T.double()
    ratio = (logp - old).exp()
    if m.ratio == "ppo":
        return surrogate(ratio, advantage, 0.2, 0.2).sum()
    if m.ratio == "cispo":
        return -(advantage * ratio.detach().clamp(0.8, 1.2) * (logp - logp.detach()).exp()).sum()
    kept = (logp.detach() >= m.mask_below).double()
    return -(m.sd_weight * kept * advantage * (logp - logp.detach()).exp()).sum()


def rltf(lab: Lab, groups: list[Any]) -> Tensor:
    m, total, tokens = lab.method, torch.zeros((), dtype=torch.float64), 0
    for group in groups:
        firsts = [row for row in group if row.trajectory.after is None]
        seconds = [row for row in group if row.trajectory.after is not None]
        r = {id(row): row.reward - 0.1 * (not row.verdict.format_ok) for row in group}
        later = {id(row.trajectory.after): r[id(row)] for row in seconds}
        returns = [r[id(row)] + 0.1 * later.get(id(row), 0.0) for row in firsts]
        again = [r[id(row)] for row in seconds]
        centred = [x - sum(returns) / len(returns) for x in returns] + [x - sum(again) / len(again) for x in again]
        for row, advantage in zip([*firsts, *seconds], centred):
            logp = taken(own(lab, row), row)
            total = total - (advantage * (logp - row.behaviour_logp_T.double()).exp()).sum()
            tokens += len(logp)
        before = [r[id(row)] for row in firsts] if m.baseline == "first" else again
        for row, reward in zip(seconds, again):
            if m.variant in ("sd", "both"):
                total = total + second_loss(lab, row, reward - sum(before) / len(before))
            if m.variant in ("fm", "both"):
                total = total + m.fm_weight * critique_nll(lab, row.trajectory.after)
    return total / (tokens if m.normaliser.name == "token" else m.normaliser.n)


def standardised(row: Any, group: Any) -> float:
    """Reward minus the group's mean, over the population's deviation plus 1e-8 (0 where all rewards are one)."""
    rewards = torch.tensor([each.reward for each in group], dtype=torch.float64)
    return float((row.reward - rewards.mean()) / (rewards.std(correction=0) + 1e-8))


def skill_sd(lab: Lab, groups: list[Any]) -> Tensor:
    m, acted, taught = lab.method, [], []
    for group in groups:
        for row in group:
            logp, old = taken(own(lab, row), row), row.behaviour_logp_T.double()
            ratio = (logp - old).exp()
            acted.append(surrogate(ratio, standardised(row, group), m.clip_low, m.clip_high))
            context = lab.domain.render("with_skill", row.prompt, Evidence(skill=str(row.prompt.solution)))
            assert context != row.context
            told = taken(base.teacher_logp(lab, context, row, row.sampling.temperature), row)
            weight = {"attached": ratio, "detached": ratio.detach(), "none": torch.ones_like(ratio)}[m.ratio]
            taught.append(weight * sampled(m.estimator, logp, told))
    every = [True] * len(acted)
    return m.grpo_weight * reduced(m.normaliser, acted, every) + m.skill_weight * reduced(m.normaliser, taught, every)


REFERENCES: dict[str, Loss] = {"rltf": rltf, "skill-sd": skill_sd}


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


def test_every_case_has_a_reference() -> None:
    assert {slug for slug, _ in CASES.values()} <= {*base.REFERENCES, *teachers.REFERENCES, *REFERENCES}
