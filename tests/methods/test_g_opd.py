"""The checks of G-OPD's specification, by number, and the closed form of its part A."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from redistill.core.episode import behaviour
from redistill.core.signal import LogProb, TeacherLogProb
from redistill.errors import UserError
from redistill.methods.g_opd import parse_experts
from redistill.objectives.advantages import returns_to_go, teacher_advantages
from redistill.text.views import Evidence

EXPERT, ADEPT = "checkpoint(pocket-expert)", "checkpoint(pocket-adept)"
ROWS = [[True, False], [False, False], [True, True]]


def advantages(bench, groups=None, tags=None, **given):
    """(advantage, log p, log pT by name) of the method on its own groups."""
    b = bench("g-opd", group_size=2, **given)
    b.tags = tags
    groups = b.groups(ROWS) if groups is None else groups
    rows = [row for group in groups for row in group]
    found = {"own": b.domain.score(rows, [LogProb()])[LogProb()]}
    for name in (EXPERT, ADEPT):
        spec = parse_experts(f"x={name}")["x"]
        b.domain.bank.need([spec])
        teacher = b.domain.teacher(spec, rows, "plain", [Evidence()] * len(rows))
        found[name] = b.domain.score(rows, [TeacherLogProb(teacher)])[TeacherLogProb(teacher)]
    return b.method.advantages(rows, b)[0], found, rows


def test_check_1_scale_1_is_opd_whatever_the_reference(bench):
    one, found, _ = advantages(bench, teacher=EXPERT, scale=1.0)
    other, _, _ = advantages(bench, teacher=EXPERT, scale=1.0, reference=ADEPT)
    torch.testing.assert_close(one, found[EXPERT] - found["own"], rtol=0, atol=2e-6)
    torch.testing.assert_close(one, other, rtol=0, atol=2e-6)


def test_check_1_scale_0_stays_at_the_reference_whatever_the_teacher(bench):
    one, found, _ = advantages(bench, teacher=EXPERT, scale=0.0, reference=ADEPT)
    other, _, _ = advantages(bench, teacher="frozen", scale=0.0, reference=ADEPT)
    torch.testing.assert_close(one, found[ADEPT] - found["own"], rtol=0, atol=2e-6)
    torch.testing.assert_close(one, other, rtol=0, atol=2e-6)


@pytest.mark.parametrize("scale", [0.5, 1.25, 3.0])
def test_check_2_a_reference_that_is_the_teacher_is_opd(bench, scale):
    ours, found, _ = advantages(bench, teacher=EXPERT, reference=EXPERT, scale=scale)
    torch.testing.assert_close(ours, found[EXPERT] - found["own"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 1.25, 1.5])
def test_check_3_the_optimum_is_the_geometric_extrapolation(scale):
    """Ascent along the exact expectation of A grad log p, on two steps of a tabular policy (part A): pT^lam p_ref^(1-lam) / Z,
    and the drift along the path grows with the scale."""
    generator = torch.Generator().manual_seed(3)
    teacher, reference = (torch.randn(2, 5, generator=generator, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    z = reference.clone()
    for _ in range(4000):
        logp = z.log_softmax(-1)
        gain = teacher_advantages(student_logp_N=logp, teacher_logp_N=teacher, reference_logp_N=reference, scale=scale)
        p = logp.exp()
        z = z + 0.5 * p * (gain - (p * gain).sum(-1, keepdim=True))
    wanted = (scale * teacher + (1 - scale) * reference).log_softmax(-1)
    torch.testing.assert_close(z.log_softmax(-1), wanted, rtol=0, atol=1e-10)
    moved = (z.log_softmax(-1).exp() * (teacher - reference)).sum()
    closer = (((scale - 0.1) * teacher + (1.1 - scale) * reference).softmax(-1) * (teacher - reference)).sum()
    assert float(moved) > float(closer)


def test_check_4_at_the_start_the_gradient_is_linear_in_the_scale(bench):
    """Student = reference: A = lam log(pT / p_base)."""
    one, two = (bench("g-opd", teacher=EXPERT, scale=scale, group_size=2) for scale in (1.0, 2.5))
    groups = one.groups(ROWS)
    torch.testing.assert_close(2.5 * one.gradient(groups), two.gradient(groups), rtol=1e-3, atol=1e-5)


def test_check_5_swapping_domain_tags_swaps_the_teachers_alone(bench):
    experts = f"x={EXPERT} + y={ADEPT}"
    for tags in (["x", "y", "x"], ["y", "x", "y"]):
        ours, found, rows = advantages(bench, experts=experts, scale=1.0, tags=tags)
        sizes = [row.steps for row in rows]
        names = [EXPERT if row.prompt.data["domain"] == "x" else ADEPT for row in rows]
        pieces = [found[name].split(sizes)[i] for i, name in enumerate(names)]
        torch.testing.assert_close(ours, torch.cat(pieces) - found["own"], rtol=0, atol=2e-6)


def test_check_5_experts_of_one_kind_are_one_teacher(bench):
    merged = bench("g-opd", experts=f"x={EXPERT} + y={EXPERT}", group_size=2)
    merged.tags = ["x", "y", "y"]
    alone = bench("g-opd", teacher=EXPERT, group_size=2)
    groups = merged.groups(ROWS)
    torch.testing.assert_close(merged.gradient(groups), alone.gradient(groups), rtol=1e-4, atol=1e-6)


def test_check_6_at_the_optimum_of_scale_1_the_advantage_is_0(bench):
    """Teacher = student is where lam = 1 with equal capacity ends."""
    ours, _, _ = advantages(bench, teacher="frozen", scale=1.0)
    assert float(ours.abs().max()) < 2e-6


def test_gradient_is_the_advantage_times_the_score(bench):
    """Ratio 1: -mean_t A_t grad log p_t, with an independent forward pass."""
    b = bench("g-opd", teacher=EXPERT, scale=1.25, group_size=2, dual_clip="none")
    groups = b.groups(ROWS)
    ours = b.gradient(groups)
    rows = [row for group in groups for row in group]
    advantage_N, _ = b.method.advantages(rows, b)
    parameters = b.domain.players["student"].parameters
    for p in parameters.values():
        p.grad = None
    total = torch.zeros(())
    for row, advantage in zip(rows, advantage_N.split([row.steps for row in rows]), strict=True):
        ids = torch.tensor([[*row.context, *row.trajectory.ids]])
        logp = b.domain.lm.module(input_ids=ids).logits[0, len(row.context) - 1 : -1].log_softmax(-1)
        total = total - (advantage * logp.gather(-1, torch.tensor(row.trajectory.ids)[:, None])[:, 0]).sum()
    (total / len(behaviour(rows))).backward()
    theirs = torch.cat([p.grad.flatten() for p in parameters.values()]).double()
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_discount_sums_over_the_rest_of_the_row():
    values = torch.tensor([1.0, 2.0, 4.0, 10.0, 20.0], dtype=torch.float64)
    assert returns_to_go(values, [3, 0, 2], 1.0).tolist() == [7.0, 6.0, 4.0, 30.0, 20.0]
    assert returns_to_go(values, [3, 0, 2], 0.5).tolist() == [3.0, 4.0, 4.0, 20.0, 20.0]
    assert torch.equal(returns_to_go(values, [3, 2], 0.0), values)


def test_rows_without_an_expert_are_refused(bench):
    b = bench("g-opd", experts=f"sums={EXPERT}", group_size=2)
    b.tags = ["sums", "sum", "sums"]
    with pytest.raises(UserError, match="domain 'sum' has no expert"):
        b.signal(b.groups(ROWS))


def test_a_row_that_no_teacher_can_read_is_masked(bench):
    b = bench("g-opd", teacher="frozen", teacher_view="with_solution", group_size=2)
    groups = b.groups(ROWS)
    blind = replace(groups[0].prompt, solution=None)
    groups[0] = replace(groups[0], episodes=[replace(e, prompt=blind) for e in groups[0]])
    (term,) = b.signal(groups).terms
    steps = sum(e.steps for e in groups[0])
    assert not bool(term.mask_N[:steps].any())
    assert bool(term.mask_N[steps:].all())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "either a teacher or experts"),
        ({"teacher": EXPERT, "experts": f"x={EXPERT}"}, "either a teacher or experts"),
        ({"teacher": "live"}, "student itself"),
        ({"experts": "pocket-expert"}, "domain=teacher"),
        ({"experts": f"x={EXPERT} + x={ADEPT}"}, "twice"),
        ({"experts": "x=frozn"}, "frozen"),
        ({"teacher": EXPERT, "reference": "live"}, "reference"),
        ({"teacher": EXPERT, "top_p": 0.9}, "top_p"),
        ({"teacher": EXPERT, "scale": -1}, "scale"),
    ],
)
def test_what_cannot_mean_anything_is_refused(bench, given, words):
    with pytest.raises(UserError, match=words):
        bench("g-opd", **given)
