"""SRPO: failures that have something to learn from are distilled, all other answers are reinforced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redistill.core.episode import Episode, Group, behaviour, flat
from redistill.core.method import Context, Method, register
from redistill.core.options import option
from redistill.core.signal import LogProb, Signal, Teacher, TeacherEntropy, TeacherLogProb, per_step
from redistill.core.specs import DivergenceKind, Normaliser, Support, TeacherWeights
from redistill.methods.grpo import GRPO
from redistill.methods.sdpo import SDPO
from redistill.objectives.gates import entropy_weights
from redistill.objectives.terms import Divergence, PolicyGradient
from redistill.text.checks import refuse_truncated_sampling
from redistill.text.settings import Settings

ALL_TOKENS = Normaliser("token", rows="all")
"""Both branches are divided by all response tokens of the batch, so each weighs by its share of them."""


@register
@dataclass(frozen=True)
class SRPO(Method):
    """Inside one on-policy batch, failed rollouts with a correct sibling get SDPO's loss, each token weighted by how sure
    the teacher is (w = exp(-beta H), mean 1 over all distilled tokens of the step); every other rollout gets GRPO's. No mixing
    coefficient: one loss, divided by all response tokens.

    The entropy is that of the teacher's whole vocabulary, also under a top-k support. `mix` is the ablation "Advantage Mix": no
    routing, and the advantage lam A_GRPO + (1 - lam) (log q - log p) at every sampled token.
    """

    slug = "srpo"
    title = "Sample routing between group-relative and self-distillation policy optimisation"
    paper = "arXiv 2604.02288"
    axes = {"signal": "outcome+self-play", "access": "self", "granularity": "token"}
    objective = (
        "L = [sum_it z_i^G l_it^GRPO + sum_it z_i^S w_it D(p, sg q)] / sum_i |y_i|,  z_i^S = [y_i wrong and a sibling right], "
        "z^G = 1 - z^S,  w = exp(-beta H(q)) / mean"
    )
    says_does = (
        ("A_i divided by the group's deviation", "its GRPO baseline and SDPO's configuration do not divide: std=none here, an option"),
        ("lower clip not stated", "0.2, as in the code it builds on"),
        ("entropy under top-k not stated", "the exact entropy of the whole vocabulary"),
    )  # fmt: skip
    run_defaults = {
        "prompts_per_step": 32, "group_size": 8, "learning_rate": 5e-6, "warmup_steps": 10, "weight_decay": 0.01,
    }  # fmt: skip

    threshold: float = option(0.5, "an episode with at least this reward is correct")
    beta: float = option(1.0, "how much a sure teacher weighs more; 0 is without entropy weighting", low=0)
    route: str = option(
        "failures", "which episodes are distilled where the teacher has a context; the others get GRPO",
        choices=("failures", "successes", "all"),
    )  # fmt: skip
    mix: float | None = option(
        None, "lam of the ablation Advantage Mix (the paper's: 0.9); none routes samples", low=0, high=1
    )
    feedback: str = option(
        "never", "when the verifier's feedback is shown too", choices=("never", "without_solution", "always")
    )
    divergence: DivergenceKind = option(DivergenceKind("jsd", 0.5), "of the distilled branch")
    support: Support = option(Support("top_k", 100), "student's top-k with a tail, or full")
    teacher: TeacherWeights = option(TeacherWeights("ema", 0.05), "whose weights read the sibling")
    ratio_cap: float = option(2.0, "upper bound of the distilled branch's importance weight p / p_old", above=0)
    std: str = option("none", "what centred rewards are divided by", choices=("none", "population", "sample"))
    clip_low: float = option(0.2, "lower bound of GRPO's ratio is 1 - this", low=0)
    clip_high: float = option(0.28, "upper bound of GRPO's ratio is 1 + this", low=0)
    wrong_context: bool = option(False, "control: show the sibling of another prompt")

    def check(self, config: Settings) -> None:
        """What its two branches refuse."""
        GRPO().check(config)
        self.sdpo().check(config)
        refuse_truncated_sampling(self.slug, config)

    def teachers(self) -> Sequence[TeacherWeights]:
        """The one teacher."""
        return (self.teacher,)

    def utility_view(self) -> str | None:
        """The teacher's view."""
        return "hindsight"

    def sdpo(self) -> SDPO:
        """SDPO as this paper uses it: who is shown what."""
        return SDPO(
            divergence=self.divergence, support=self.support, threshold=self.threshold, feedback=self.feedback,
            wrong_context=self.wrong_context,
        )  # fmt: skip

    def teacher_of(self, groups: Sequence[Group], ctx: Context) -> Teacher:
        """The teacher of the episodes that are distilled; None elsewhere."""
        rows, seen = flat(groups), self.sdpo().contexts(groups)
        teacher: Teacher = ctx.domain.teacher(self.teacher, rows, "hindsight", seen)
        contexts = [context if self.distilled(row) else None for row, context in zip(rows, teacher.contexts)]
        return Teacher(self.teacher, tuple(contexts))

    def distilled(self, row: Episode) -> bool:
        """Whether an episode is meant for the distilled branch (the routing, were there always a context)."""
        return (
            self.route == "all" or self.mix is not None or (row.reward < self.threshold) == (self.route == "failures")
        )

    def signal(self, groups: Sequence[Group], ctx: Context) -> Signal:
        """Two terms with complementary masks and one count."""
        rows, teacher = flat(groups), self.teacher_of(groups, ctx)
        routed_N: Tensor = ctx.domain.covered(teacher, rows)
        reinforce = replace(
            GRPO(std=self.std, clip_low=self.clip_low, clip_high=self.clip_high).policy_gradient(groups),
            normaliser=ALL_TOKENS, mask_N=~routed_N,
        )  # fmt: skip
        if self.mix is not None:
            return Signal(rows, [self.mixed(reinforce, rows, teacher, routed_N, ctx)])
        distil = Divergence(
            teacher=teacher, kind=self.divergence, support=self.support, behaviour_N=behaviour(rows),
            ratio_cap=self.ratio_cap, normaliser=ALL_TOKENS, mask_N=routed_N,
            weight_N=self.weights(rows, teacher, routed_N, ctx),
        )  # fmt: skip
        return Signal(rows, [reinforce, distil])

    def weights(self, rows: Sequence[Episode], teacher: Teacher, routed_N: Tensor, ctx: Context) -> Tensor:
        """w_it over the distilled tokens of the whole step [N]."""
        ctx.log("routed", sum(context is not None for context in teacher.contexts) / max(1, len(rows)))
        entropy_N = torch.zeros(len(routed_N))
        taught = [i for i, context in enumerate(teacher.contexts) if context is not None]
        if taught:
            part = TeacherEntropy(teacher.subset(taught))
            inside_n = ctx.domain.score([rows[i] for i in taught], [part])[part]
            entropy_N = entropy_N.to(inside_n).masked_scatter(routed_N, inside_n)
            ctx.log("teacher_entropy", float(inside_n.double().mean()) if len(inside_n) else 0.0)
        return entropy_weights(entropy_N, self.beta, routed_N)

    def mixed(
        self, term: PolicyGradient, rows: Sequence[Episode], teacher: Teacher, taught_N: Tensor, ctx: Context
    ) -> PolicyGradient:
        """Advantage Mix: lam A_GRPO + (1 - lam) (log q - log p) where there is a teacher, lam A_GRPO elsewhere."""
        assert self.mix is not None
        found = ctx.domain.score(rows, [LogProb(), TeacherLogProb(teacher)])
        gap_N = torch.where(taught_N, found[TeacherLogProb(teacher)] - found[LogProb()], 0.0)
        advantage_N = self.mix * term.advantage_N + (1.0 - self.mix) * gap_N.to(term.advantage_N)
        return replace(
            term, advantage_N=advantage_N, mask_N=per_step([True] * len(rows), [r.steps for r in rows], torch.bool)
        )
