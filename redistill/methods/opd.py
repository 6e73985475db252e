"""OPD: on-policy distillation from a white-box teacher, any divergence, any share of off-policy data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from redistill.core.episode import Group, flat
from redistill.core.method import Context, Method, register
from redistill.core.options import option
from redistill.core.signal import Signal
from redistill.core.specs import DivergenceKind, Normaliser, Support, TeacherWeights
from redistill.errors import UserError
from redistill.objectives.terms import Divergence, Likelihood
from redistill.text.checks import refuse_truncated_sampling
from redistill.text.settings import Settings
from redistill.text.views import Evidence


@register
@dataclass(frozen=True)
class OPD(Method):
    """Match a teacher's next-token distribution on prefixes that the student itself wrote (GKD, MiniLLM, DistiLLM are points
    of this family). With probability 1 - `on_policy` a prompt's reference solution takes the place of the student's answers.

    `teacher=served(url)` is a server that tells log-probs (sampled or top-k of the teacher); `teacher=text(file)` a pool of its
    answers, learnt by likelihood with on_policy=0.

    `support=sampled` looks at the sampled token only, through `estimator`: policy_gradient has the exact reverse-KL gradient
    in expectation, k2 too, k3 the forward KL's, and k1 none at all (it is there to show that).
    """

    slug = "opd"
    title = "On-policy distillation (GKD and its family)"
    paper = "arXiv 2604.00626"
    axes = {"signal": "logit", "access": "white-box", "granularity": "token"}
    objective = "L = E_{y ~ pi_mix} (1/N) sum_t D_f(p_T(. | x, y_<t), p(. | x, y_<t))"
    says_does = (
        (
            "DistiLLM: skew pair KL(P || aP+(1-a)Q), KL(Q || (1-a)P+aQ)",
            "the survey's first version printed another pair; the pair is used",
        ),
        (
            "generalised JSD(b) is continuous in b",
            "it vanishes at its ends, where trainers switch to a KL: jsd(0) and jsd(1) are refused here",
        ),
    )
    run_defaults = {"group_size": 1, "prompts_per_step": 32}

    teacher: TeacherWeights | None = option(None, "whose weights teach, e.g. checkpoint(path); required")
    teacher_view: str = option("plain", "what the teacher reads", choices=("plain", "with_solution"))
    divergence: DivergenceKind = option(DivergenceKind("reverse_kl"), "any divergence between teacher and student")
    support: Support = option(Support("full"), "full | top_k(k, of=student|teacher, tail=true|false) | sampled")
    estimator: str = option(
        "policy_gradient", "with support=sampled: how it is estimated", choices=("policy_gradient", "k1", "k2", "k3")
    )
    on_policy: float = option(1.0, "probability that a prompt's answers are the student's own", low=0, high=1)
    temperature_of_loss: float = option(1.0, "divides both logits inside the loss", above=0)
    scale_by_temperature: bool = option(False, "multiply the loss by the squared loss temperature (Hinton et al.)")
    normaliser: Normaliser = option(Normaliser("token"), "by what the loss is divided")

    def check(self, config: Settings) -> None:
        """A teacher that is the student in the same view teaches nothing."""
        if self.teacher is None:
            raise UserError("opd needs a teacher: --set 'teacher=checkpoint(path or model name)'")
        if self.teacher.name == "live" and self.teacher_view == "plain":
            raise UserError("teacher=live with teacher_view=plain is the student itself: the loss would always be 0")
        if self.teacher.name == "text" and self.on_policy > 0:
            raise UserError(f"teacher={self.teacher} has answers and no log-probs: set on_policy=0 to learn from them")
        if self.support.name == "sampled" and self.divergence.name != "reverse_kl":
            raise UserError(f"support=sampled estimates reverse_kl only, not divergence={self.divergence}")
        if self.support.name == "sampled":
            refuse_truncated_sampling(self.slug, config)
        if self.support.name == "sampled" and self.temperature_of_loss != 1.0:
            raise UserError(
                "support=sampled reads log-probs at the sampling temperature: leave temperature_of_loss at 1"
            )

    def teachers(self) -> Sequence[TeacherWeights]:
        """The one teacher."""
        return (self.teacher,) if self.teacher is not None else ()

    def collect(self, ctx: Context) -> Sequence[Group]:
        """The student's rollouts of some prompts, the reference solutions of the others."""
        prompts = ctx.next_prompts()
        own = ctx.uniform("on_policy", range(len(prompts))) < self.on_policy
        sampled = [prompt for prompt, mine in zip(prompts, own) if mine]
        groups: list[Group] = list(ctx.domain.rollout(sampled)) if sampled else []
        for prompt, mine in zip(prompts, own):
            if mine:
                continue
            if self.teacher is not None and self.teacher.name == "text":
                told = ctx.domain.answers(self.teacher, prompt)
                chosen = int(ctx.uniform("answer", len(groups)) * len(told))
                episode = ctx.domain.written(prompt, told[chosen]) if told else None
                groups += [Group(prompt, [episode])] if episode is not None else []
                continue
            if prompt.solution is None:
                raise UserError(
                    f"on_policy={self.on_policy:g} needs reference solutions, and task {ctx.task.name!r} has none"
                )
            episode = ctx.domain.written(prompt, prompt.solution)
            groups += [Group(prompt, [episode])] if episode is not None else []
        ctx.log("on_policy", len(sampled) / len(prompts))
        return groups

    def signal(self, groups: Sequence[Group], ctx: Context) -> Signal:
        """One divergence term."""
        assert self.teacher is not None
        rows = flat(groups)
        if self.teacher.name == "text":
            return Signal(rows, [Likelihood(normaliser=self.normaliser)])
        seen = [Evidence(solution=row.prompt.solution) for row in rows]
        teacher = ctx.domain.teacher(self.teacher, rows, self.teacher_view, seen)
        term = Divergence(
            coefficient=self.temperature_of_loss**2 if self.scale_by_temperature else 1.0, teacher=teacher,
            kind=self.divergence, support=self.support, estimator=self.estimator, temperature=self.temperature_of_loss,
            normaliser=self.normaliser, mask_N=ctx.domain.covered(teacher, rows),
        )  # fmt: skip
        return Signal(rows, [term])
