"""The checks of PACED's specification, by number."""

from __future__ import annotations

import itertools

import pytest
import torch
from redistill.core.episode import Group
from redistill.errors import UserError
from redistill.methods.paced import TEACHER
from redistill.objectives.gates import beta_kernel

EXPERT = {"teacher": "checkpoint(pocket-expert)"}
OWN = {**EXPERT, "answers": "student"}
UNEVEN = [[True, False, False, False], [True, True, False, False], [False, False, False, False]]


def test_check_1_the_kernel():
    p = torch.linspace(0, 1, 1001, dtype=torch.float64)
    w = beta_kernel(p, 1.0, 1.0)
    assert (float(w[0]), float(w[-1]), float(w[500])) == (0.0, 0.0, 0.25)
    torch.testing.assert_close(w, w.flip(0))
    for a, b in ((1.0, 2.0), (3.0, 1.0), (2.0, 0.5)):
        assert float(p[beta_kernel(p, a, b).argmax()]) == pytest.approx(a / (a + b), abs=1e-3)
    assert torch.equal(beta_kernel(p, 0.0, 0.0), torch.ones_like(p))


def test_check_1_exponents_of_0_are_plain_distillation(bench):
    ours = bench("paced", **OWN, a=0.0, b=0.0)
    plain = bench("opd", **EXPERT, divergence="forward_kl", normaliser="sequence")
    groups = ours.groups(UNEVEN)
    torch.testing.assert_close(ours.gradient(groups), plain.gradient(groups), rtol=1e-5, atol=1e-8)


def test_check_2_the_estimate_is_biased_by_a_constant():
    """E[p(1-p)] over binomial counts of K = 8 at p = .3 is (1 - 1/K) p (1-p) = .18375; the factor cancels in the mean."""
    from math import comb

    counts = torch.arange(9, dtype=torch.float64)
    chance = torch.tensor([comb(8, k) * 0.3**k * 0.7 ** (8 - k) for k in range(9)], dtype=torch.float64)
    assert float((chance * beta_kernel(counts / 8, 1.0, 1.0)).sum()) == pytest.approx(0.18375, abs=1e-12)
    assert pytest.approx(0.18375) == (1 - 1 / 8) * 0.3 * 0.7


def test_check_3_efficiency_under_misjudged_weights():
    """w_i = w*_i (1 + e_i), |e_i| <= delta: the worst SNR^2 ratio over a grid is 1 - delta^2."""
    delta, worst = 0.3, 1.0
    for share in torch.linspace(0.0, 1.0, 401, dtype=torch.float64).tolist():
        for low, high in itertools.product((-delta, 0.0, delta), repeat=2):
            a = torch.tensor([share, 1 - share], dtype=torch.float64)
            e = 1 + torch.tensor([low, high], dtype=torch.float64)
            worst = min(worst, float((a * e).sum() ** 2 / (a.sum() * (a * e**2).sum())))
    assert worst == pytest.approx(1 - delta**2, abs=1e-4)


def test_check_4_scaling_all_weights_changes_nothing_and_one_weight_is_that_problems_loss(bench):
    ours = bench("paced", **OWN)
    plain = bench("opd", **EXPERT, divergence="forward_kl", normaliser="sequence")
    groups = ours.groups([[True, False, False, False], [True] * 4, [False] * 4])
    torch.testing.assert_close(ours.gradient(groups), plain.gradient(groups[:1]), rtol=1e-4, atol=1e-7)
    signal = ours.signal(ours.groups(UNEVEN))
    (term,) = signal.terms
    from dataclasses import replace

    from redistill.core.update import Tally, accumulate

    scaled = replace(signal, terms=[replace(term, weight_N=term.weight_N * 40)])
    one, other = accumulate(signal, ours.domain, Tally()), accumulate(scaled, ours.domain, Tally())
    assert one == pytest.approx(other, rel=1e-5)


def test_check_5_the_gradient_is_the_weighted_mean_of_the_problems(bench):
    ours = bench("paced", **OWN, a=1.0, b=2.0)
    plain = bench("opd", **EXPERT, divergence="forward_kl", normaliser="sequence")
    groups = ours.groups(UNEVEN)
    w = [beta_kernel(torch.tensor(p), 1.0, 2.0).item() for p in (0.25, 0.5, 0.0)]
    alone = [plain.gradient([group]) for group in groups]
    expected = sum(each * g for each, g in zip(w, alone, strict=True)) / sum(w)
    torch.testing.assert_close(ours.gradient(groups), expected, rtol=1e-3, atol=1e-6)


def test_check_6_the_weight_is_the_population_variance_of_binary_rewards():
    for right in range(9):
        rewards = torch.tensor([1.0] * right + [0.0] * (8 - right), dtype=torch.float64)
        assert float(rewards.var(unbiased=False)) == pytest.approx(float(beta_kernel(rewards.mean(), 1.0, 1.0)))


def test_the_teachers_answers_are_what_is_distilled_and_do_not_count_as_the_students(bench):
    ours = bench("paced", **EXPERT, a=0.0, b=0.0)
    groups = ours.method.collect(ours)
    assert [len(group) for group in groups] == [5, 5, 5]
    rows = ours.signal(groups).rows
    assert [row.sampled_under for row in rows] == [TEACHER] * 3
    assert [row.reward for row in rows] == [1.0] * 3  # the expert knows
    assert all(row.context == ours.domain.render("plain", row.prompt) for row in rows)
    own = [Group(g.prompt, [e for e in g if e.sampled_under != TEACHER]) for g in groups]
    assert ours.logged["pass_rate"] == pytest.approx(sum(g.pass_rate(1.0) for g in own) / 3)
    assert ours.domain.lm.name == "pocket"  # the student is back


def test_a_teacher_of_the_same_weights_writes_with_them_and_gives_them_back(bench):
    ours = bench("paced", teacher="frozen", teacher_view="with_solution")
    before = {name: tensor.clone() for name, tensor in ours.domain.players["student"].tensors.items()}
    for tensor in ours.domain.players["student"].tensors.values():
        tensor.data.add_(1.0)  # the student is ruined, its frozen copy is not
    groups = ours.method.collect(ours)
    rows = [e for g in groups for e in g if e.sampled_under == TEACHER]
    assert [row.reward for row in rows] == [1.0] * 3  # the start model copies the solution it sees
    for name, tensor in ours.domain.players["student"].tensors.items():
        torch.testing.assert_close(tensor, before[name] + 1.0)


def test_two_stages_cover_and_then_consolidate(bench):
    stages = bench("paced", **EXPERT, coverage_steps=7).method.stages()
    assert [(s.name, s.steps, s.method.answers, str(s.method.divergence)) for s in stages] == [
        ("coverage", 7, "teacher", "forward_kl"),
        ("consolidation", None, "student", "reverse_kl"),
    ]
    assert len(bench("paced", **EXPERT).method.stages()) == 1


def test_the_hard_filter_keeps_the_middle(bench):
    method = bench("paced", **EXPERT, weighting="filter").method
    assert method.weights(torch.tensor([0.0, 0.1, 0.9, 1.0])).tolist() == [0.0, 1.0, 1.0, 0.0]
    narrow = bench("paced", **EXPERT, weighting="filter", keep_above=0.2, keep_below=0.8).method
    assert narrow.weights(torch.tensor([0.1, 0.5, 0.9])).tolist() == [0.0, 1.0, 0.0]
    assert bench("paced", **EXPERT, weighting="reversed").method.weights(torch.tensor([0.0, 0.5, 1.0])).tolist() == [
        1,
        0,
        1,
    ]


def test_a_step_in_which_nothing_is_at_the_frontier_has_no_gradient(bench):
    ours = bench("paced", **OWN)
    assert float(ours.gradient(ours.groups([[True] * 4, [False] * 4])).abs().max()) == 0.0


@pytest.mark.parametrize(
    ("given", "words"),
    [({}, "needs a teacher"), ({"teacher": "live"}, "student itself"), ({**EXPERT, "a": -1}, "a=-1"), ({**EXPERT, "answers": "mine"}, "answers")],
)  # fmt: skip
def test_what_cannot_mean_anything_is_refused(bench, given, words):
    with pytest.raises(UserError, match=words):
        bench("paced", **given)


def test_a_mixture_cannot_write(bench):
    ours = bench("paced", teacher="trust_region(0.3)")
    with pytest.raises(UserError, match="mixture"):
        ours.method.collect(ours)
