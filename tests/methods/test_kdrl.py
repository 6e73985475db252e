"""The checks of KDRL's specification, by number."""

from __future__ import annotations

import pytest
import torch
from redistill.errors import UserError
from redistill.objectives.estimators import k1, k2, k3

EXPERT = {"teacher": "checkpoint(pocket-expert)"}
MIXED = [[True, False, False, True], [False, False, False, False], [True, True, True, True]]


def test_check_1_beta_0_is_grpo_bit_for_bit(bench):
    ours = bench("kdrl", **EXPERT, beta=0.0, beta_min=0.0)
    grpo = bench("grpo", normaliser="token")
    groups = ours.groups(MIXED)
    assert torch.equal(ours.gradient(groups), grpo.gradient(groups))


def test_check_1_without_reward_it_is_distillation_by_k2(bench):
    ours = bench("kdrl", **EXPERT, beta=1.0, beta_decay=0.0, reward=0.0)
    opd = bench("opd", **EXPERT, support="sampled", estimator="k2")
    groups = ours.groups(MIXED)
    assert torch.equal(ours.gradient(groups), opd.gradient(groups))


def test_check_2_expected_gradients_of_the_estimators():
    """Enumerated over V = 6 outcomes: k2 has the gradient of KL(pi || pi_T), k3 that of KL(pi_T || pi), k1 none."""
    generator = torch.Generator().manual_seed(0)
    z, teacher = (torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(2))
    logp_T = teacher.log_softmax(-1)

    def gradient(value):
        at = z.clone().requires_grad_()
        (slope,) = torch.autograd.grad(value(at.log_softmax(-1)), at)
        return slope

    def expected(estimate):
        return gradient(lambda logp: (logp.exp().detach() * estimate(logp, logp_T)).sum())

    reverse = gradient(lambda logp: (logp.exp() * (logp - logp_T)).sum())
    forward = gradient(lambda logp: (logp_T.exp() * (logp_T - logp)).sum())
    torch.testing.assert_close(expected(k2), reverse, rtol=0, atol=1e-8)
    torch.testing.assert_close(expected(k3), forward, rtol=0, atol=1e-8)
    torch.testing.assert_close(expected(k1), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-12)
    assert float((reverse - forward).norm()) > 0.1


@pytest.mark.parametrize("options", [{}, {"estimator": "k3"}, {"support": "full"}, {"fusion": "advantage"}])
def test_check_3_a_teacher_that_is_the_student_adds_nothing(bench, options):
    ours = bench("kdrl", teacher="frozen", beta=0.5, reward=0.0, **options)
    assert float(ours.gradient(ours.groups(MIXED)).abs().max()) < 2e-6


@pytest.mark.parametrize("fusion", ["loss", "advantage"])
@pytest.mark.parametrize(
    ("mask", "kept"), [("none", [True] * 12), ("response", [r is False for g in MIXED for r in g]), ("group", [i in range(4, 8) for i in range(12)])]
)  # fmt: skip
def test_check_4_masks_drop_what_is_right_already(bench, mask, kept, fusion):
    ours = bench("kdrl", **EXPERT, beta=0.5, mask=mask, fusion=fusion, reward=0.0)
    groups = ours.groups(MIXED)
    assert ours.method.distilled(groups) == kept
    alone = [float(ours.gradient([group]).abs().max()) > 0 for group in groups]
    assert alone == [any(kept[at : at + 4]) for at in (0, 4, 8)]


def test_check_4_the_kl_is_the_mean_over_kept_steps(bench):
    ours, whole = (bench("kdrl", **EXPERT, beta=0.5, mask=mask, reward=0.0) for mask in ("response", "none"))
    groups = ours.groups(MIXED)
    wrong = [type(group)(group.prompt, [e for e in group if e.reward == 0]) for group in groups[:2]]
    torch.testing.assert_close(ours.gradient(groups), whole.gradient(wrong), rtol=1e-4, atol=1e-7)


def test_check_5_annealing(bench):
    method = bench("kdrl", **EXPERT).method
    assert [method.beta_at(update) for update in (0, 40, 80, 500)] == pytest.approx([5e-3, 3e-3, 1e-3, 1e-3])
    assert bench("kdrl", **EXPERT, beta=2e-3, beta_decay=0.0).method.beta_at(10**6) == 2e-3


def test_check_5_the_weight_counts_the_updates_of_its_stage(bench):
    ours = bench("kdrl", **EXPERT, reward=0.0)
    groups = ours.groups(MIXED)
    first = ours.gradient(groups)
    ours.step, ours.stage_step = 140, 40
    torch.testing.assert_close(ours.gradient(groups), first * 3 / 5, rtol=1e-4, atol=1e-8)
    assert ours.logged["beta"] == pytest.approx(3e-3)


@pytest.mark.parametrize("normaliser", ["token", "sequence"])
def test_check_6_joint_and_additive_gradients_agree_at_ratio_1(bench, normaliser):
    joint, added = (bench("kdrl", **EXPERT, beta=0.3, fusion=f, normaliser=normaliser) for f in ("loss", "advantage"))
    groups = joint.groups(MIXED)
    torch.testing.assert_close(joint.gradient(groups), added.gradient(groups), rtol=1e-3, atol=1e-6)


def test_the_switch_distils_first_and_is_grpo_then(bench):
    ours = bench("kdrl", **EXPERT, switch=5)
    opd, grpo = bench("opd", **EXPERT, support="sampled", estimator="k2"), bench("grpo", normaliser="token")
    groups = ours.groups(MIXED)
    ours.stage_step = 4
    assert torch.equal(ours.gradient(groups), opd.gradient(groups))
    ours.stage_step = 5
    assert torch.equal(ours.gradient(groups), grpo.gradient(groups))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "needs a teacher"),
        ({"teacher": "live"}, "student itself"),
        ({**EXPERT, "group_size": 1}, "group_size"),
        ({**EXPERT, "top_p": 0.9}, "top_p"),
        ({**EXPERT, "beta": 1e-4}, "beta_min"),
        ({**EXPERT, "fusion": "advantage", "support": "full"}, "fusion"),
        ({**EXPERT, "estimator": "k3", "support": "full"}, "estimator"),
        ({**EXPERT, "estimator": "k1"}, "estimator"),
    ],
)
def test_what_cannot_mean_anything_is_refused(bench, given, words):
    with pytest.raises(UserError, match=words):
        bench("kdrl", **given)
