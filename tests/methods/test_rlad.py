"""The checks of RLAD's specification, by number."""

from __future__ import annotations

import math

import pytest
import torch
from redistill.core.signal import LogProb, TeacherLogProb
from redistill.errors import UserError
from redistill.objectives.policy_gradient import anchored_log_ratio, policy_gradient

EXPERT = {"teacher": "checkpoint(pocket-expert)"}
MIXED = [[True, False, False, True], [False, False, False, False], [True, True, True, True]]
CLIPS = {"clip_low": 0.2, "clip_high": 0.28}


def off_policy(groups):
    """Behaviour log-probs that differ from the student's, by another amount at each token."""
    for i, episode in enumerate(e for group in groups for e in group):
        shift = (-1) ** i * torch.linspace(0.05, 0.3, episode.steps)
        object.__setattr__(episode, "behaviour_logp_T", episode.behaviour_logp_T + shift)
    return groups


def test_check_1_alpha_1_is_grpo_bit_for_bit(bench):
    ours, grpo = bench("rlad", **EXPERT, alpha=1.0), bench("grpo", std="population", **CLIPS)
    groups = off_policy(ours.groups(MIXED))
    assert torch.equal(ours.gradient(groups), grpo.gradient(groups))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.9])
def test_check_2_a_teacher_that_is_the_old_policy_is_grpo_for_every_alpha(bench, alpha):
    ours, grpo = bench("rlad", teacher="frozen", alpha=alpha), bench("grpo", std="population", **CLIPS)
    groups = ours.groups(MIXED)
    torch.testing.assert_close(ours.gradient(groups), grpo.gradient(groups), rtol=1e-4, atol=1e-7)


def test_check_3_without_advantage_there_is_no_gradient(bench):
    ours = bench("rlad", **EXPERT)
    groups = off_policy(ours.groups([[False] * 4, [True] * 4]))
    assert float(ours.gradient(groups).abs().max()) == 0.0


@pytest.mark.parametrize("slug", ["rlad", "kdrl"])
def test_check_3_the_coefficient_has_the_sign_of_the_advantage(bench, slug):
    """Slope of the loss in log pS, token by token: never against the advantage, where kdrl's added advantage is."""
    more = {} if slug == "rlad" else {"fusion": "advantage", "beta": 5.0}
    ours = bench(slug, **EXPERT, **more)
    groups = off_policy(ours.groups(MIXED[:1]))
    signal = ours.signal(groups)
    (term,) = signal.terms
    found = ours.domain.score(signal.rows, list(term.quantities()))
    logp = found[LogProb()].clone().requires_grad_()
    losses = term.losses({**found, LogProb(): logp}, torch.arange(len(logp)), signal.lengths)
    (slope,) = torch.autograd.grad(losses.loss_n.sum(), logp)
    sign = torch.tensor([[-1.0, 1.0][int(row.reward)] for row in signal.rows]).repeat_interleave(
        torch.tensor(signal.lengths)
    )
    against = float((-slope * sign < 0).float().mean())
    assert float((slope != 0).float().mean()) > 0.2
    assert against == 0.0 if slug == "rlad" else against > 0.0


def coefficient(student_over_teacher: float, advantage: float, alpha: float = 0.5, bound: float | None = None) -> float:
    """-dL / dlog pS of one token at pS = p_old."""
    logp = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([-1.0 - math.log(student_over_teacher)], dtype=torch.float64)
    ratio = anchored_log_ratio(logp, logp.detach(), teacher, alpha, bound=bound)
    loss, _ = policy_gradient(
        logp, logp.detach(), torch.tensor([advantage], dtype=torch.float64), log_ratio_N=ratio, **CLIPS
    )
    (slope,) = torch.autograd.grad(loss.sum(), logp)
    return -float(slope)


@pytest.mark.parametrize(
    ("over", "advantage", "expected"),
    [
        (2.0, 1.0, 0.0),
        (2.0, -1.0, -math.sqrt(2)),
        (0.5, -1.0, 0.0),
        (0.5, 1.0, math.sqrt(0.5)),
        (1.63, 1.0, math.sqrt(1.63)),
        (1.65, 1.0, 0.0),
        (0.65, -1.0, -math.sqrt(0.65)),
        (0.63, -1.0, 0.0),
    ],
)
def test_check_4_closed_form(over, advantage, expected):
    assert coefficient(over, advantage) == pytest.approx(expected, abs=1e-12)


def test_check_5_the_clamp_bounds_the_teachers_factor():
    logp = torch.tensor([-0.5], dtype=torch.float64)
    ratio = anchored_log_ratio(logp, logp, logp - 3.0, 0.5, bound=1.0)
    assert float(ratio.exp()) == pytest.approx(math.exp(0.5))
    assert float(anchored_log_ratio(logp, logp, logp + 3.0, 0.5, bound=1.0).exp()) == pytest.approx(math.exp(-0.5))


@pytest.mark.parametrize(("keep", "slope"), [(False, 0.5), (True, 1.0)])
def test_the_clamped_factor_gives_its_gradient_only_when_asked(keep, slope):
    logp = torch.tensor([-0.5], dtype=torch.float64, requires_grad=True)
    ratio = anchored_log_ratio(logp, logp.detach(), logp.detach() - 3.0, 0.5, bound=1.0, keep_gradient=keep)
    assert float(torch.autograd.grad(ratio.sum(), logp)[0]) == pytest.approx(slope)
    assert float(ratio.exp().detach()) == pytest.approx(math.exp(0.5))


def test_check_6_dpo_limit():
    """alpha = 0, unclipped, near the teacher: the sum over a pair of A r is the difference of log pS - log pT."""
    gap = torch.tensor([2e-4, -3e-4], dtype=torch.float64)
    teacher = torch.tensor([-1.0, -2.0], dtype=torch.float64)
    ratio = anchored_log_ratio(teacher + gap, teacher, teacher, 0.0)
    advantage = torch.tensor([1.0, -1.0], dtype=torch.float64)
    loss, clipped = policy_gradient(teacher + gap, teacher, advantage, clip_low=None, clip_high=None, log_ratio_N=ratio)
    assert not bool(clipped.any())
    assert float(-loss.sum()) == pytest.approx(float(gap[0] - gap[1]), rel=1e-3)


def test_the_share_of_clipped_tokens_is_observed(bench):
    """On policy GRPO clips nothing; the teacher's factor clips from the first update on."""
    ours = bench("rlad", **EXPERT)
    signal = ours.signal(ours.groups(MIXED[:1]))
    (term,) = signal.terms
    found = ours.domain.score(signal.rows, [LogProb(), TeacherLogProb(term.ratio.teacher)])
    losses = term.losses(found, torch.arange(sum(signal.lengths)), signal.lengths)
    assert 0.0 < float(losses.observed["clipped"].float().mean()) < 1.0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "needs a teacher"),
        ({"teacher": "live"}, "student itself"),
        ({**EXPERT, "alpha": 1.5}, "alpha"),
        ({**EXPERT, "group_size": 1}, "group_size"),
        ({**EXPERT, "top_k": 5}, "top_k"),
    ],
)
def test_what_cannot_mean_anything_is_refused(bench, given, words):
    with pytest.raises(UserError, match=words):
        bench("rlad", **given)
