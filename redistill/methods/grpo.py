"""GRPO, with the switches that make it DAPO or Dr.GRPO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from redistill.core.episode import Group, behaviour, flat
from redistill.core.method import Context, Method, register
from redistill.core.options import option
from redistill.core.signal import Signal, Term, per_step
from redistill.core.specs import Normaliser, Support, TeacherWeights
from redistill.errors import UserError
from redistill.objectives.advantages import group_advantages, zero_variance
from redistill.objectives.terms import Divergence, Entropy, PolicyGradient
from redistill.text.checks import refuse_truncated_sampling
from redistill.text.settings import Settings
from redistill.text.views import Evidence


@register
@dataclass(frozen=True)
class GRPO(Method):
    """Group-relative policy optimisation: the advantage of an answer is its reward minus its group's mean.

    The defaults are GRPO as published (std-normalised advantage, mean over each answer, then over answers). DAPO:
    `clip_high=0.28 normaliser=token drop_dead_groups=true`. Dr.GRPO: `std=none normaliser=constant(L)`.
    """

    slug = "grpo"
    title = "Group-relative policy optimisation"
    paper = "arXiv 2402.03300"
    axes = {"signal": "outcome", "access": "teacher-free", "granularity": "sequence"}
    objective = "J = mean_i mean_t min(r A_i, clip(r, 1-e_low, 1+e_high) A_i) - beta KL(p || p_ref),  A_i = (R_i - mean R) / std R"
    says_does = (
        (
            "mean over each answer, then over answers",
            "many trainers take a token mean of a micro-batch; here counts are global",
        ),
    )

    std: str = option("sample", "what centred rewards are divided by", choices=("none", "population", "sample"))
    std_epsilon: float = option(1e-6, "added to the standard deviation", low=0)
    clip_low: float = option(0.2, "lower bound of the ratio is 1 - this", low=0)
    clip_high: float = option(0.2, "upper bound of the ratio is 1 + this (DAPO: 0.28)", low=0)
    dual_clip: float | None = option(
        None, "bound c of the loss for negative advantages (above 1); none is off", above=1
    )
    ratio: str = option(
        "token", "importance ratio of a token or of the whole answer (GSPO)", choices=("token", "sequence")
    )
    normaliser: Normaliser = option(Normaliser("sequence"), "by what the loss is divided")
    drop_dead_groups: bool = option(False, "leave groups with equal rewards out of the counts (DAPO)")
    drop_truncated: bool = option(False, "leave answers that hit max_new_tokens out of the loss")
    kl: float = option(0.0, "coefficient of KL to the initial policy (k3, sampled)", low=0)
    entropy: float = option(0.0, "coefficient of an entropy bonus")

    def check(self, config: Settings) -> None:
        """A ratio needs the whole distribution that was sampled from, and a group needs two."""
        refuse_truncated_sampling(self.slug, config)
        if config.group_size < 2:
            raise UserError(f"group_size={config.group_size} gives grpo no group to compare with: it must be >= 2")

    def teachers(self) -> Sequence[TeacherWeights]:
        """The initial policy, when there is a KL to it."""
        return (TeacherWeights("frozen"),) if self.kl else ()

    def policy_gradient(self, groups: Sequence[Group], coefficient: float = 1.0) -> PolicyGradient:
        """The clipped term over all episodes of the groups, in order."""
        rows = flat(groups)
        lengths = [row.steps for row in rows]
        advantages = group_advantages([group.rewards for group in groups], std=self.std, eps=self.std_epsilon)
        alive = ~zero_variance([group.rewards for group in groups])
        keep = torch.cat([alive[i].expand(len(group)) for i, group in enumerate(groups)]) | (not self.drop_dead_groups)
        if self.drop_truncated:
            keep = keep & torch.tensor([row.finish != "length" for row in rows])
        return PolicyGradient(
            coefficient=coefficient, normaliser=self.normaliser, mask_N=per_step(keep, lengths, torch.bool),
            advantage_N=per_step(torch.cat(advantages), lengths), behaviour_N=behaviour(rows), clip_low=self.clip_low,
            clip_high=self.clip_high, dual_clip=self.dual_clip, ratio=self.ratio,
        )  # fmt: skip

    def signal(self, groups: Sequence[Group], ctx: Context) -> Signal:
        """Policy gradient, and KL and entropy where asked for."""
        rows = flat(groups)
        terms: list[Term] = [self.policy_gradient(groups)]
        if self.kl:
            initial = ctx.domain.teacher(TeacherWeights("frozen"), rows, "plain", [Evidence()] * len(rows))
            terms.append(
                Divergence(
                    name="kl", coefficient=self.kl, normaliser=self.normaliser, teacher=initial, support=Support("sampled"),
                    estimator="k3",
                )
            )  # fmt: skip
        if self.entropy:
            terms.append(Entropy(coefficient=self.entropy, normaliser=self.normaliser))
        return Signal(rows, terms)
