"""PACED: distillation weighted by how near each problem is to the frontier of the student's competence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redistill.core.episode import Group, flat
from redistill.core.method import Context, Method, Stage, register
from redistill.core.options import option
from redistill.core.signal import Signal, Teacher, per_step
from redistill.core.specs import DivergenceKind, Normaliser, TeacherWeights
from redistill.objectives.gates import beta_kernel
from redistill.objectives.terms import Divergence
from redistill.text.checks import need_teacher
from redistill.text.settings import Settings
from redistill.text.views import Evidence

TEACHER = "teacher"
"""What an episode of the teacher's is said to be sampled under."""


@register
@dataclass(frozen=True)
class PACED(Method):
    """The gradient of a problem that is always or never solved is mostly noise: weigh each problem's distillation loss by a
    kernel of the student's pass rate p, estimated from its K rollouts,

        L = sum_x w(p_x) KL_x / sum_x w(p_x),    w(p) = p^a (1 - p)^b,

    KL_x the mean over tokens of the forward KL on the teacher's answer (a larger teacher), or of the reverse KL on the
    student's own (self-distillation: `teacher=frozen teacher_view=with_solution answers=student divergence=reverse_kl`).
    `coverage_steps` puts a stage of forward KL on the teacher's answers before one of reverse KL on the student's.
    """

    slug = "paced"
    title = "PACED: distillation at the frontier of student competence"
    paper = "arXiv 2603.11178"
    axes = {"signal": "logit + outcome", "access": "white-box", "granularity": "hybrid"}
    objective = "L = sum_x w(p_x) mean_t KL(p_T || p_S) / sum_x w(p_x),  w(p) = p^a (1-p)^b,  p_x = share of K rollouts that are right"
    says_does = (
        ("weights are normalised (how is not told)", "divided by their sum over the update: scaling all weights changes nothing"),
        ("pass rates before training (refresh not told)", "from the step's own K rollouts of the student, so always fresh"),
        ("hard filter (thresholds not told)", "weighting=filter keeps keep_above < p < keep_below, 0 and 1 by default"),
        ("released code", "has no pass-rate weighting: it weighs single answers by softmax(reward); not offered"),
    )  # fmt: skip
    run_defaults = {"prompts_per_step": 256, "group_size": 8, "learning_rate": 1e-6, "minibatches": 4}

    teacher: TeacherWeights | None = option(None, "whose weights teach, e.g. checkpoint(path); required")
    teacher_view: str = option("plain", "what the teacher reads", choices=("plain", "with_solution"))
    answers: str = option("teacher", "whose answers the loss is taken on", choices=("teacher", "student"))
    divergence: DivergenceKind = option(DivergenceKind("forward_kl"), "teacher against student, full vocabulary")
    a: float = option(1.0, "exponent of the pass rate", low=0)
    b: float = option(1.0, "exponent of the failure rate; above a favours hard problems", low=0)
    weighting: str = option(
        "kernel",
        "the kernel, a filter by pass rate, or 1 - 4p(1-p) (control)",
        choices=("kernel", "filter", "reversed"),
    )
    keep_above: float = option(0.0, "with weighting=filter: a problem's pass rate must be above this", low=0, high=1)
    keep_below: float = option(1.0, "with weighting=filter: a problem's pass rate must be below this", low=0, high=1)
    threshold: float = option(1.0, "an answer with at least this reward is right")
    coverage_steps: int = option(
        0, "updates of a first stage: forward KL on the teacher's answers, reverse KL then", low=0
    )
    normaliser: Normaliser = option(
        Normaliser("sequence", rows="weighted"),
        "by what the weighted loss is divided; rows=weighted is a weighted mean",
    )

    def check(self, config: Settings) -> None:
        """A teacher that is not the student, and rollouts to estimate a pass rate from."""
        need_teacher(self.slug, self.teacher, self.teacher_view)

    def teachers(self) -> Sequence[TeacherWeights]:
        """The one teacher."""
        return (self.teacher,) if self.teacher is not None else ()

    def stages(self) -> Sequence[Stage]:
        """One stage; or coverage (forward, teacher's answers) and then consolidation (reverse, the student's)."""
        if not self.coverage_steps:
            return super().stages()
        first = replace(self, divergence=DivergenceKind("forward_kl"), answers="teacher")
        second = replace(self, divergence=DivergenceKind("reverse_kl"), answers="student")
        return (Stage("coverage", first, self.coverage_steps), Stage("consolidation", second))

    def collect(self, ctx: Context) -> Sequence[Group]:
        """The student's rollouts, and one answer of the teacher's to each prompt where the loss is on those."""
        groups: Sequence[Group] = ctx.domain.rollout(ctx.next_prompts())
        if self.answers == "student" or self.teacher is None:
            return groups
        prompts = [group.prompt for group in groups]
        seen = [Evidence(solution=prompt.solution) for prompt in prompts]
        with ctx.domain.writing_as(self.teacher):
            taught = ctx.domain.rollout(prompts, self.teacher_view, seen, 1)
        answers = {group.prompt.uid: group.episodes[0] for group in taught}
        joined = []
        for group in groups:
            answer = answers.get(group.prompt.uid)
            added = (
                []
                if answer is None
                else [replace(answer.trained_as(group.episodes[0].context, "plain"), sampled_under=TEACHER)]
            )
            joined.append(Group(group.prompt, [*group.episodes, *added]))
        return joined

    def weights(self, pass_rate: Tensor) -> Tensor:
        """w(p) of each problem."""
        if self.weighting == "filter":
            return ((pass_rate > self.keep_above) & (pass_rate < self.keep_below)).to(pass_rate)
        if self.weighting == "reversed":
            return 1.0 - 4.0 * pass_rate * (1.0 - pass_rate)
        return beta_kernel(pass_rate, self.a, self.b)

    def signal(self, groups: Sequence[Group], ctx: Context) -> Signal:
        """One weighted divergence over the answers that are trained on."""
        assert self.teacher is not None
        own = [Group(g.prompt, [e for e in g if e.sampled_under != TEACHER]) for g in groups]
        pass_rate = torch.tensor([group.pass_rate(self.threshold) for group in own], dtype=torch.float64)
        weight = self.weights(pass_rate)
        ctx.log("pass_rate", float(pass_rate.mean()))
        ctx.log("weighted_prompts", float((weight > 0).double().mean()))
        used = (
            own
            if self.answers == "student"
            else [Group(g.prompt, [e for e in g if e.sampled_under == TEACHER]) for g in groups]
        )
        rows = flat(used)
        per_row = torch.cat([w.expand(len(group)) for w, group in zip(weight, used)]) if rows else weight[:0]
        seen = [Evidence(solution=row.prompt.solution) for row in rows]
        teacher: Teacher = ctx.domain.teacher(self.teacher, rows, self.teacher_view, seen)
        weight_N = per_step(per_row, [row.steps for row in rows], torch.float64)
        term = Divergence(
            teacher=teacher, kind=self.divergence, weight_N=weight_N, normaliser=self.normaliser,
            mask_N=ctx.domain.covered(teacher, rows) & (weight_N > 0) if rows else None,
        )  # fmt: skip
        return Signal(rows, [term])
