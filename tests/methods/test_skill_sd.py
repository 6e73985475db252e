"""Skill-SD's checks (specification 1 to 7), the bandit, and who acts."""

from __future__ import annotations

import math

import pytest
import torch
from redistill.core.episode import flat
from redistill.core.signal import LogProb, Teacher, TeacherLogProb
from redistill.core.specs import Support, TeacherWeights
from redistill.core.state import Piece
from redistill.errors import UserError
from redistill.objectives.terms import Divergence
from redistill.tasks.tools import Tools
from redistill.text.skills import SkillBank, upper_bound

RIGHTS = [[True, False, False, False], [True, False, True, False]]
TEACHER = Teacher(TeacherWeights("live"), ((1,),))


def term(behaviour_N, **given):
    return Divergence(
        teacher=TEACHER,
        support=Support("sampled"),
        estimator="k3",
        behaviour_N=behaviour_N,
        **{"importance": True, **given},
    )


def loss(one, logp_N, teacher_N):
    values = {LogProb(): logp_N, TeacherLogProb(TEACHER): teacher_N}
    return one.losses(values, torch.arange(len(logp_N)), [len(logp_N)]).loss_n


def test_check_1_gradient_is_rho_times_l():
    generator = torch.Generator().manual_seed(0)
    logp_N, teacher_N, old_N = (-3 * torch.rand(50, generator=generator, dtype=torch.float64) for _ in range(3))
    logp_N.requires_grad_()
    (slope,) = torch.autograd.grad(loss(term(old_N), logp_N, teacher_N).sum(), logp_N)
    rho, gap = (logp_N - old_N).exp(), logp_N - teacher_N
    torch.testing.assert_close(slope, (rho * gap).detach())


def enumerated(q, p, mu=None, **given):
    """Mean gradient over every outcome drawn from mu (default q) with respect to the student's logits."""
    logits = torch.tensor(q, dtype=torch.float64).log().requires_grad_()
    logp = logits.log_softmax(-1)
    weight = torch.tensor(mu or q, dtype=torch.float64)
    one = term(weight.log(), **given)
    value = (weight * loss(one, logp, torch.tensor(p, dtype=torch.float64).log())).sum()
    return torch.autograd.grad(value, logits)[0]


Q, P = [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]


def test_check_2_rho_k3_has_the_reverse_kls_gradient_and_bare_k3_the_forward_ones():
    expected = torch.tensor([0.2781, 0.0136, -0.2917], dtype=torch.float64)
    torch.testing.assert_close(enumerated(Q, P), expected, rtol=0, atol=5e-5)
    logits = torch.tensor(Q, dtype=torch.float64).log().requires_grad_()
    logp, teacher = logits.log_softmax(-1), torch.tensor(P, dtype=torch.float64).log()
    (exact,) = torch.autograd.grad((logp.exp() * (logp - teacher)).sum(), logits)
    torch.testing.assert_close(enumerated(Q, P), exact)
    bare = enumerated(Q, P, importance=False)
    torch.testing.assert_close(bare, torch.tensor([0.3, 0.1, -0.4], dtype=torch.float64))


def test_check_3_a_detached_rho_is_bare_k3_on_policy():
    detached = enumerated(Q, P, importance=False, ratio_cap=math.inf)
    torch.testing.assert_close(detached, enumerated(Q, P, importance=False))
    assert float((detached - enumerated(Q, P)).abs().max()) > 0.02


def test_check_4_no_skill_yet_is_no_loss_and_no_weight_is_grpo(bench):
    b = bench("skill-sd", skill_weight=0.5)
    groups = b.groups(RIGHTS)
    grpo = bench("grpo", std="population", std_epsilon=1e-8, clip_high=0.28, normaliser="token")
    torch.testing.assert_close(b.gradient(groups), grpo.gradient(groups), rtol=1e-4, atol=1e-7)
    assert b.logged["skilled"] == 0
    only = bench("skill-sd", skill_weight=0.5, grpo_weight=0)
    assert float(only.gradient(groups).abs().max()) < 1e-6
    none = bench("skill-sd", skill_weight=0)
    none.method.bank.add(groups[0].prompt.uid, "46", 1.0, 8)
    torch.testing.assert_close(none.gradient(groups), grpo.gradient(groups), rtol=1e-4, atol=1e-7)
    b.method.bank.add(groups[0].prompt.uid, str(groups[0].prompt.solution), 1.0, 8)
    assert float((b.gradient(groups) - grpo.gradient(groups)).norm()) > 1e-3 * float(grpo.gradient(groups).norm())


def test_check_5_k3_is_not_negative_and_off_policy_sampling_keeps_the_gradient():
    generator = torch.Generator().manual_seed(1)
    logp_N, teacher_N, old_N = (-5 * torch.rand(200, generator=generator, dtype=torch.float64) for _ in range(3))
    assert float(loss(term(old_N), logp_N, teacher_N).min()) >= 0
    torch.testing.assert_close(enumerated(Q, P, mu=[0.1, 0.2, 0.7]), enumerated(Q, P))


def test_check_6_ucb():
    assert upper_bound(0.5, 2, 10, 2**0.5) == pytest.approx(2.017, abs=5e-4)
    bank = SkillBank()
    assert bank.choose("x", 1.4) is None
    bank.add("x", "one", 0.2, 8)
    bank.add("x", "two", 0.9, 8)
    assert bank.choose("x", 1.4) == "two", "of the unseen, the best source first"
    bank.credit("x", "two", 1.0)
    assert bank.choose("x", 1.4) == "one", "unseen before seen"
    bank.credit("x", "one", 0.0)
    assert bank.choose("x", 0.0) == "two"
    for _ in range(200):
        bank.credit("x", "two", 0.9)
    assert bank.choose("x", 5.0) == "one", "exploration"
    assert bank.entries["x"][0].mean == pytest.approx((0.9 + 1.0 + 200 * 0.9) / 202)


def test_the_bank_keeps_the_best_knows_duplicates_and_comes_back():
    bank = SkillBank()
    for i in range(5):
        bank.add("x", f"s{i}", i / 10, 3)
    bank.add("x", "s4", 0.9, 3)
    assert [entry.text for entry in bank.entries["x"]] == ["s4", "s3", "s2"]
    assert len(bank) == 3
    other = SkillBank()
    other.restore(Piece(facts=bank.state().facts))
    assert other.entries == bank.entries


def world_bench(bench, **given):
    """The method in the tools world, with pocket (which plays at random there)."""
    b = bench("skill-sd", skill_weight=0.5, prompts_per_step=2, group_size=2, max_new_tokens=4, **given)
    b.task = b.domain.task = Tools(steps=3, slack=1, partial=True)
    return b


def test_check_7_and_who_acts(bench):
    for rollouts, seen, trained in (("student", False, False), ("augmented", True, True), ("teacher", True, False)):
        b = world_bench(bench, rollouts=rollouts)
        prompts = b.next_prompts()
        first = b.method.collect(b)
        assert all(e.sampled_under == "plain" for e in flat(first)), "no skill yet"
        b.method.bank.add(prompts[0].uid, "a1b2!", 0.5, 8)
        groups = b.method.collect(b)
        assert [group.prompt.uid for group in groups] == [prompt.uid for prompt in prompts]
        one, other = groups
        read = b.domain.lm.tokenizer.decode
        assert all((e.sampled_under == "with_skill") == seen for e in one)
        assert all(("Ka1b2!" in read(e.context)) == trained for e in one)
        assert all(e.sampled_under == "plain" for e in other)
        signal = b.signal(groups)
        grpo, skill = signal.terms
        contexts = skill.teacher.contexts
        assert all("Ka1b2!" in read(context) for context in contexts[:2])
        assert [read(c) for c in contexts[2:]] == [read(e.context) for e in other]
        scored = b.domain.score(signal.rows, [LogProb(), TeacherLogProb(skill.teacher)])
        steps = sum(e.steps for e in one)
        plain, taught = scored[LogProb()], scored[TeacherLogProb(skill.teacher)]
        torch.testing.assert_close(plain[steps:], taught[steps:], rtol=1e-4, atol=1e-4)
        if rollouts != "augmented":
            assert float((plain[:steps] - taught[:steps]).abs().max()) > 1e-3
        torch.testing.assert_close(grpo.behaviour_N, plain, rtol=1e-3, atol=1e-3)
        if rollouts == "teacher":
            assert float((skill.behaviour_N - grpo.behaviour_N)[:steps].abs().max()) > 1e-3
        assert torch.isfinite(b.gradient(groups)).all()


def test_skills_are_written_from_the_best_trajectory_for_the_next_steps(bench):
    b = world_bench(bench, keep=1)
    groups = b.method.collect(b)
    assert b.method.skill(groups[0].prompt) is None
    b.method.after_update(groups, b)
    written = b.method.skill(groups[0].prompt)
    assert "!" in written
    assert (
        written
        == b.task.summary(
            [turn.action for turn in groups[0].episodes[0].trajectory.turns],
            [turn.progress for turn in groups[0].episodes[0].trajectory.turns],
            [turn.malformed for turn in groups[0].episodes[0].trajectory.turns],
        ).text("terse")
        or groups[0].episodes[1].reward > groups[0].episodes[0].reward
    )
    b.method.after_update(groups, b)
    assert b.method.bank.entries[groups[0].prompt.uid][0].chosen == 1
    b.method.bank.add(groups[0].prompt.uid, "better!", 1.0, 1)
    assert len(b.method.bank.entries[groups[0].prompt.uid]) == 1, "keep=1"


def test_a_resumed_run_has_its_skills(bench):
    one, other = world_bench(bench), world_bench(bench)
    one.method.bank.add("x", "a!", 0.5, 8)
    ((name, part),) = one.method.state().items()
    other.method.state()[name].restore(part.state())
    assert other.method.bank.choose("x", 1.0) == "a!"


def test_refusals(bench):
    b = bench("skill-sd")
    with pytest.raises(UserError, match="needs a task that is played in turns"):
        b.method.collect(b)
    with pytest.raises(UserError, match="leaves nothing to learn"):
        bench("skill-sd", skill_weight=0, grpo_weight=0)
