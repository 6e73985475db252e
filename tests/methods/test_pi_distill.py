"""pi-Distill's checks: the two objectives, where the KL stands, and closed forms on enumerable toys."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from redistill.core.episode import Group, flat
from redistill.core.signal import Signal
from redistill.core.specs import DivergenceKind, TeacherWeights
from redistill.core.update import Tally, accumulate
from redistill.errors import UserError
from redistill.objectives.divergence import divergence
from redistill.objectives.policy_gradient import policy_gradient
from redistill.objectives.terms import Divergence, Entropy, Likelihood, PolicyGradient
from redistill.text.views import Evidence

HALF = [[True, True, False, False], [False, True, False, False]]
T1 = {"temperature": 1.0}


def told(b, groups, view="with_solution"):
    """The groups as if sampled with the information in view (their log-probs are recorded under it)."""
    from redistill.core.signal import LogProb

    made = []
    for group in groups:
        context = b.domain.render(view, group.prompt, b.method.evidence([group.prompt])[0])
        rows = [replace(row, context=context, sampled_under=view, trained_under=view) for row in group]
        logp = b.domain.score(rows, [LogProb()])[LogProb()].split([row.steps for row in rows])
        made.append(Group(group.prompt, [replace(row, behaviour_logp_T=own) for row, own in zip(rows, logp)]))
    return made


def gradient_of(b, signal):
    for p in b.domain.players["student"].parameters.values():
        p.grad = None
    loss = accumulate(signal, b.domain, Tally())
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in b.domain.players["student"].parameters.values()]
    return loss, torch.cat([g.flatten() for g in grads]).double()


def test_check_1_without_information_every_alpha_is_on_policy_grpo(bench):
    grpo = bench("grpo", std="none", normaliser="token", drop_dead_groups="true")
    groups = grpo.groups([*HALF, [True] * 4])
    expected = grpo.gradient(groups)
    for alpha in (0.0, 0.3, 1.0):
        b = bench("pi-distill", alpha=alpha, **T1)
        signal = b.signal(groups)  # sampled and trained under the plain view: T = S
        torch.testing.assert_close(gradient_of(b, signal)[1], expected, rtol=1e-3, atol=1e-7)
        assert b.logged["kl"] == pytest.approx(0.0, abs=1e-5)


def test_a_prompt_without_information_is_sampled_plain(bench):
    b = bench("pi-distill", **T1)
    prompts = b.next_prompts()
    object.__setattr__(prompts[1], "solution", None)
    b.next_prompts = lambda: prompts
    views = {group.prompt.uid: {row.sampled_under for row in group} for group in b.method.collect(b)}
    assert [views[p.uid] for p in prompts] == [{"with_solution"}, {"plain"}, {"with_solution"}]
    opsd = bench("pi-distill", variant="opsd", **T1)
    assert {row.sampled_under for row in flat(opsd.method.collect(opsd))} == {"plain"}


def test_each_episode_is_a_row_of_the_teacher_and_one_of_the_student(bench):
    b = bench("pi-distill", alpha=0.25, **T1)
    groups = told(b, b.groups(HALF))
    signal = b.signal(groups)
    rows = flat(groups)
    assert [row.trajectory.ids for row in signal.rows] == [row.trajectory.ids for row in rows] * 2
    assert [row.context for row in signal.rows[:8]] == [row.context for row in rows]
    assert [row.context for row in signal.rows[8:]] == [b.domain.render("plain", row.prompt) for row in rows]
    teacher, student = signal.terms
    assert (teacher.coefficient, student.coefficient) == (0.25, 0.75)
    steps = sum(row.steps for row in rows)
    assert torch.equal(teacher.advantage_N[:steps], student.advantage_N[steps:])
    assert torch.equal(student.behaviour_N[steps:], torch.cat([row.behaviour_logp_T for row in rows]))  # sg T
    assert not bool(teacher.mask_N[steps:].any())
    assert not bool(student.mask_N[:steps].any())


def test_the_advantage_is_the_reward_less_the_kl_of_the_whole_answer_centred_in_the_group(bench):
    b = bench("pi-distill", beta=0.5, alpha=1.0, **T1)
    groups = told(b, b.groups(HALF))
    rows = flat(groups)
    (term,) = b.signal(groups).terms
    lengths = [row.steps for row in rows]
    module = b.domain.lm.module
    shaped = []
    for row in rows:
        both = []
        for context in (row.context, b.domain.render("plain", row.prompt)):
            with torch.no_grad():
                logits = module(torch.tensor([[*context, *row.trajectory.ids]])).logits[0, len(context) - 1 : -1]
            both.append(logits.double().log_softmax(-1))
        kl = (both[0].exp() * (both[0] - both[1])).sum()
        shaped.append(row.reward - 0.5 * float(kl))
    shaped = torch.tensor(shaped).view(2, 4)
    expected = (shaped - shaped.mean(1, keepdim=True)).flatten()
    found = torch.stack([piece[0] for piece in term.advantage_N.split(lengths)])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_check_4_alpha_1_and_0_leave_one_of_the_two_out(bench):
    b = bench("pi-distill", alpha=1.0, **T1)
    groups = told(b, b.groups(HALF))
    assert {row.trained_under for row in b.signal(groups).rows} == {"with_solution"}
    zero = bench("pi-distill", alpha=0.0, **T1)
    assert {row.trained_under for row in zero.signal(groups).rows} == {"plain"}


def test_check_4_no_gradient_reaches_the_other_ones_distribution(bench):
    """In the pathwise form the other is a no-grad teacher: T's term is the same whatever S's rows would give."""
    b = bench("pi-distill", kl="pathwise", **T1)
    groups = told(b, b.groups(HALF))
    terms = b.signal(groups).terms
    assert [type(term) for term in terms] == [PolicyGradient, Divergence, PolicyGradient, Divergence]
    assert [term.kind.name for term in terms if isinstance(term, Divergence)] == ["reverse_kl", "forward_kl"]
    assert all(term.teacher.weights == TeacherWeights("live") for term in terms if isinstance(term, Divergence))
    assert [term.coefficient for term in terms] == [0.5, 0.125, 0.5, 0.125]


def test_alpha_rises_linearly(bench):
    b = bench("pi-distill", alpha=0.5, alpha_steps=4, **T1)
    groups = told(b, b.groups(HALF))
    seen = []
    for step in (0, 1, 3, 9):
        b.stage_step = step
        b.signal(groups)
        seen.append(b.logged["alpha"])
    assert seen == [0.125, 0.25, 0.5, 0.5]


# --- opsd ---
def test_check_5_opsd_without_kl_is_grpo_and_without_reward_pure_self_distillation(bench):
    grpo = bench("grpo", std="none", normaliser="token", drop_dead_groups="true")
    groups = grpo.groups(HALF)
    plain = bench("pi-distill", variant="opsd", beta=0, **T1)
    torch.testing.assert_close(plain.gradient(groups), grpo.gradient(groups), rtol=1e-3, atol=1e-7)
    pure = bench("pi-distill", variant="opsd", beta=0.7, drop_dead_groups="false", **T1)
    dead = pure.groups([[False] * 4])
    rows = flat(dead)
    teacher = pure.domain.teacher(
        TeacherWeights("live"), rows, "with_solution", [Evidence(solution=row.prompt.solution) for row in rows]
    )
    alone = Signal(rows, [Divergence(coefficient=0.7, teacher=teacher, kind=DivergenceKind("reverse_kl"))])
    torch.testing.assert_close(pure.gradient(dead), gradient_of(pure, alone)[1], rtol=1e-3, atol=1e-7)


def test_opsd_can_put_the_kl_into_the_reward_and_weigh_the_entropy(bench):
    b = bench("pi-distill", variant="opsd", kl="reward", **T1)
    groups = b.groups(HALF)
    assert [type(term) for term in b.signal(groups).terms] == [PolicyGradient]
    assert b.logged["kl"] > 0
    soft = bench("pi-distill", variant="opsd", entropy_share=0.25, beta=0.5, **T1)
    _, kl, entropy = soft.signal(groups).terms
    assert isinstance(entropy, Entropy)
    # CE(S, T) - c H(S) = KL(S || T) + (1 - c) H(S), and the entropy term's loss is -H
    assert (kl.coefficient, entropy.coefficient) == (0.5, -0.375)


# --- closed forms ---
def test_check_2_importance_identity_on_an_enumerable_toy():
    torch.manual_seed(0)
    z = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)  # two tokens of two values
    teacher, reward = (
        torch.randn(2, 2, dtype=torch.float64).softmax(-1),
        torch.tensor([[1.0, -0.3], [0.2, 2.0]]).double(),
    )
    student = z.softmax(-1)
    pairs = [(i, j) for i in range(2) for j in range(2)]
    weighted = sum(
        teacher[0, i] * teacher[1, j] * (student[0, i] * student[1, j] / (teacher[0, i] * teacher[1, j])) * reward[i, j]
        for i, j in pairs
    )
    plain = sum(student[0, i] * student[1, j] * reward[i, j] for i, j in pairs)
    torch.testing.assert_close(weighted, plain)
    one, other = (torch.autograd.grad(value, z, retain_graph=True)[0] for value in (weighted, plain))
    torch.testing.assert_close(one, other)


def test_check_2_the_trajectory_ratio_has_that_gradient(bench):
    """Sum over answers drawn from T of the surrogate with the whole answer's ratio, unclipped: E_T[(S/T) R]."""
    from redistill.core.signal import LogProb
    from redistill.methods.pi_distill import trajectory_ratio

    logp = torch.tensor([-0.3, -0.9, -0.2], dtype=torch.float64, requires_grad=True)
    behaviour = torch.tensor([-0.5, -0.4, -0.7], dtype=torch.float64)
    ratio = trajectory_ratio({LogProb(): logp}, behaviour, [2, 0, 1])
    torch.testing.assert_close(ratio.detach(), torch.tensor([-0.3, -0.3, 0.5], dtype=torch.float64))
    (gradient,) = torch.autograd.grad(ratio[0].exp(), logp)
    torch.testing.assert_close(gradient, torch.tensor([math.exp(-0.3), math.exp(-0.3), 0.0], dtype=torch.float64))


@pytest.mark.parametrize(
    ("other", "beta", "optimum"),
    [((0.5, 0.5), 0.5, (0.1192, 0.8808)), ((0.9, 0.1), 0.5, (0.5491, 0.4509))],
)
def test_check_3_bandit_optima(other, beta, optimum):
    """max E_p[R] - beta KL(p || q): p* prop. to q exp(R / beta); for opsd p = S and q = T, for the teacher the other way."""
    z = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    q, reward = torch.tensor(other, dtype=torch.float64).log(), torch.tensor([0.0, 1.0], dtype=torch.float64)
    optimiser = torch.optim.Adam([z], lr=0.05)
    for _ in range(600):
        optimiser.zero_grad()
        log_p = z.log_softmax(-1)
        loss = (
            -(log_p.exp() * reward).sum()
            + beta * divergence(DivergenceKind("reverse_kl"), student=log_p[None], teacher=q[None]).sum()
        )
        loss.backward()
        optimiser.step()
    torch.testing.assert_close(z.softmax(-1).detach(), torch.tensor(optimum, dtype=torch.float64), rtol=0, atol=2e-4)


def test_check_6_clip():
    logp = torch.full((1,), math.log(3.0), dtype=torch.float64, requires_grad=True)
    for advantage, contribution, slope in ((1.0, 1.2, 0.0), (-1.0, -3.0, -3.0)):
        loss, _ = policy_gradient(
            logp, torch.zeros(1).double(), torch.tensor([advantage]).double(), clip_low=0.2, clip_high=0.2
        )
        assert -float(loss) == pytest.approx(contribution)
        assert -float(torch.autograd.grad(loss.sum(), logp)[0]) == pytest.approx(slope)


# --- the rest ---
def test_topr_weighs_the_students_likelihood(bench):
    b = bench("pi-distill", student_loss="topr", alpha=0.0, beta=0, **T1)
    groups = told(b, b.groups(HALF))
    (term,) = b.signal(groups).terms
    assert isinstance(term, Likelihood)
    plain = bench("pi-distill", alpha=0.0, beta=0, **T1).signal(groups).terms[0]
    good = plain.advantage_N > 0
    torch.testing.assert_close(term.weight_N[good], plain.advantage_N[good].to(term.weight_N))
    shares = term.weight_N[~good & (plain.advantage_N != 0)] / plain.advantage_N[~good & (plain.advantage_N != 0)]
    assert float(shares.min()) >= 0.8 - 1e-5
    assert float(shares.max()) <= 1.2 + 1e-5


def test_words_that_give_the_information_away_cost_reward(bench):
    b = bench("pi-distill", alpha=1.0, beta=0, leak_penalty=0.1, **T1)
    groups = told(b, b.groups(HALF[:1]))
    groups[0].episodes[0] = replace(groups[0].episodes[0], text="The hint says: privileged.")
    (term,) = b.signal(groups).terms
    first = [float(piece[0]) for piece in term.advantage_N.split([row.steps for row in groups[0]])]
    assert first == pytest.approx([0.8 - 0.45, 1 - 0.45, -0.45, -0.45])


def test_hints_are_another_kind_of_information(bench):
    b = bench("pi-distill", privilege="with_hint", **T1)
    prompts = b.next_prompts()
    assert [e.hint for e in b.method.evidence(prompts)] == [p.solution.partition("=")[0] for p in prompts]
    wrong = bench("pi-distill", wrong_context="true", **T1)
    assert [e.solution for e in wrong.method.evidence(prompts)] == [p.solution for p in (*prompts[1:], prompts[0])]
    assert b.method.utility_view() == "with_hint"


@pytest.mark.parametrize(
    ("given", "words"),
    [({"group_size": 1}, "group_size"), ({"top_p": 0.9}, "top_p"), ({"alpha": 2}, "alpha"), ({"kl": "never"}, "kl")],
)
def test_meaningless_settings_are_refused_in_one_sentence(bench, given, words):
    with pytest.raises(UserError, match=words):
        bench("pi-distill", **given)
