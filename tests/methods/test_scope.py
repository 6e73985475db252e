"""The checks of SCOPE's specification, by number."""

from __future__ import annotations

import pytest
import torch
from redistill.core.signal import LogProb, TeacherLogProb
from redistill.errors import UserError
from redistill.objectives.advantages import shares

EXPERT = {"teacher": "checkpoint(pocket-expert)", "temperature": 1.0}
MIXED = [[True, True, False, False], [False, False, False, False], [True, True, True, True]]


@pytest.mark.parametrize("aggregation", ["paper", "path", "released"])
def test_check_1_weights_add_up_inside_each_set(bench, aggregation):
    method = bench("scope", **EXPERT, aggregation=aggregation).method
    score = torch.tensor([-0.1, -0.5, -0.9, -0.2, -0.3], dtype=torch.float64)
    chosen = torch.tensor([True, True, False, True, False])
    weight = method.weights(score, chosen, "high", [3, 2])
    sums = [float(part.sum()) for part in weight.split([3, 2])]
    assert sums == pytest.approx([1.0, 1.0] if aggregation == "paper" else [2.0, 1.0])
    assert weight[~chosen].tolist() == [0.0, 0.0]
    assert float(weight[3]) == pytest.approx(1.0)  # alone in its set
    even = method.weights(torch.full((3,), -0.4, dtype=torch.float64), torch.ones(3, dtype=torch.bool), "low", [3])
    assert even.tolist() == pytest.approx([float(even[0])] * 3)


def test_check_2_the_unlikely_right_one_and_the_likely_wrong_one_weigh_more(bench):
    method = bench("scope", **EXPERT, aggregation="paper").method
    score, both = torch.tensor([-0.2, -1.2], dtype=torch.float64), torch.ones(2, dtype=torch.bool)
    assert method.weights(score, both, method.student_weight, [2]).tolist() == pytest.approx([0.2689, 0.7311], abs=5e-5)
    assert method.weights(score, both, method.teacher_weight, [2]).tolist() == pytest.approx([0.7311, 0.2689], abs=5e-5)


def test_check_3_an_infinite_temperature_is_uniform():
    score, members = torch.tensor([-0.2, -1.2, -9.0]), torch.tensor([True, True, False])
    assert shares(score, members, 1e6).tolist() == pytest.approx([0.5, 0.5, 0.0], abs=1e-5)
    assert shares(score, torch.zeros(3, dtype=torch.bool), 1.0).tolist() == [0.0, 0.0, 0.0]


def test_check_3_all_right_is_imitation_alone_and_the_teacher_is_never_read(bench):
    ours = bench("scope", **EXPERT, student_weight="none")
    ours.domain.bank.others.clear()  # asking the teacher anything would be a KeyError
    groups = ours.groups([[True] * 4, [True] * 4])
    (term,) = ours.signal(groups).terms
    assert term.name == "imitation"
    rows = [row for group in groups for row in group]
    rft = bench("rft", distinct="false")
    torch.testing.assert_close(ours.gradient(groups), rft.gradient(groups), rtol=1e-4, atol=1e-7)
    assert len(rows) == 8


def test_check_3_all_wrong_is_distillation_alone(bench):
    ours = bench("scope", **EXPERT)
    (term,) = ours.signal(ours.groups([[False] * 4])).terms
    assert term.name == "distillation"


@pytest.mark.parametrize("support", ["sampled", "full"])
def test_check_4_without_weights_and_routing_it_is_opd(bench, support):
    ours = bench("scope", **EXPERT, route="false", teacher_weight="none", support=support, dual_clip="none")
    opd = bench("opd", teacher=EXPERT["teacher"], support=support)
    groups = ours.groups(MIXED)
    torch.testing.assert_close(ours.gradient(groups), opd.gradient(groups), rtol=1e-3, atol=1e-6)


def test_check_5_slopes_of_both_paths_at_ratio_1(bench):
    """d(-rho) = -grad log p, and the distilled token's slope is (lp - lpT) grad log p."""
    ours = bench("scope", **EXPERT, student_weight="none", teacher_weight="none", dual_clip="none")
    groups = ours.groups(MIXED[:1])
    signal = ours.signal(groups)
    found = ours.domain.score(signal.rows, [LogProb()])
    logp = found[LogProb()].clone().requires_grad_()
    imitation, distillation = signal.terms
    (slope,) = torch.autograd.grad(
        imitation.losses({LogProb(): logp}, torch.arange(len(logp)), signal.lengths).loss_n.sum(), logp
    )
    torch.testing.assert_close(slope, -torch.ones_like(slope), rtol=1e-4, atol=1e-5)
    (slope,) = torch.autograd.grad(
        distillation.losses({LogProb(): logp}, torch.arange(len(logp)), signal.lengths).loss_n.sum(), logp
    )
    teacher = ours.domain.teacher(ours.method.teacher, signal.rows, "plain", [_evidence()] * len(signal.rows))
    gap = logp.detach() - ours.domain.score(signal.rows, [TeacherLogProb(teacher)])[TeacherLogProb(teacher)]
    wrong = distillation.mask_N
    torch.testing.assert_close(slope[wrong], gap[wrong].to(slope), rtol=1e-3, atol=1e-4)


def _evidence():
    from redistill.text.views import Evidence

    return Evidence()


def test_check_6_weights_do_not_depend_on_length(bench):
    from redistill.methods.scope import _means

    logp = torch.tensor([-0.1, -0.7, -0.4], dtype=torch.float64)
    assert _means(torch.cat([logp, logp, logp]), [3, 6])[0] == pytest.approx(float(_means(logp.repeat(2), [6])[0]))
    assert _means(torch.cat([logp]), [3, 0]).tolist() == pytest.approx([-0.4, 0.0])


def test_paper_aggregation_is_sums_over_tokens_and_a_mean_over_prompts(bench):
    """Doubling a batch of prompts by itself changes nothing; the loss of one all-right prompt is its -sum w_i |y_i|."""
    ours = bench("scope", **EXPERT, aggregation="paper", student_weight="none")
    groups = ours.groups([[True] * 4])
    from redistill.core.update import Tally, accumulate

    steps = sum(row.steps for row in groups[0]) / 4
    assert accumulate(ours.signal(groups), ours.domain, Tally()) == pytest.approx(-steps, rel=1e-4)
    assert accumulate(ours.signal(groups + groups), ours.domain, Tally()) == pytest.approx(-steps, rel=1e-4)


@pytest.mark.parametrize(
    ("given", "words"),
    [({}, "needs a teacher"), ({"teacher": "live"}, "student itself"), ({**EXPERT, "top_p": 0.9}, "top_p"), ({**EXPERT, "student_weight": "hi"}, "student_weight")],
)  # fmt: skip
def test_what_cannot_mean_anything_is_refused(bench, given, words):
    with pytest.raises(UserError, match=words):
        bench("scope", **given)
