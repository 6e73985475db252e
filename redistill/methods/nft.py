"""DiffusionNFT: contrast an implicit positive and an implicit negative policy on the forward process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from redistill.core.episode import Group
from redistill.core.method import Context, Method, register
from redistill.core.options import option
from redistill.core.signal import Signal, Term
from redistill.core.specs import TeacherWeights
from redistill.errors import UserError
from redistill.generation.centring import STDS, advantages, optimality
from redistill.generation.settings import Settings
from redistill.generation.terms import Anchor, MixedFlow


@register
@dataclass(frozen=True)
class NFT(Method):
    """Samples of a slow copy of the student are noised again; two mixtures of the student and that copy,

        v+ = (1-b) v_old + b v,   v- = (1+b) v_old - b v,

    regress the sample's own velocity with weights r and 1 - r, where r in [0, 1] is the sample's reward relative to its
    group. At r = 1/2 nothing is learned; the optimum is v_old + (2r - 1) (v* - v_old) / b. No chains, no log-probs, any
    sampler. The errors are those of the clean image (t^2 times the velocity's), each divided by its detached mean size.
    """

    slug = "nft"
    title = "DiffusionNFT: negative-aware fine-tuning on the forward process"
    paper = "arXiv 2509.16117"
    family = "generation"
    domain = "generation"
    axes = {"signal": "outcome", "access": "self", "granularity": "noised sample"}
    objective = "L = (5/b) [r |x0+ - x0|^2 / w+ + (1-r) |x0- - x0|^2 / w-] + 1e-4 |v - v_ref|^2"
    says_does = (
        ("|v+- - v*|^2", "released: in x0 space with adaptive weights; space=velocity adaptive=false for the text"),
        ("r from rewards normalised by Z", "released: Z is 5 times the std of all rewards of the step; std, advantage_bound"),
    )  # fmt: skip

    beta: float = option(1.0, "b, how far the mixtures reach past the old model (0.1 for OCR)", above=0)
    space: str = option("x0", "what the errors are of", choices=("x0", "velocity"))
    adaptive: bool = option(True, "divide each error by its detached mean absolute value")
    std: str = option("batch", "what centred rewards are divided by", choices=STDS)
    advantage_bound: float = option(5.0, "the advantage at which r is 0 or 1; also scales the loss", above=0)
    times: int = option(2, "training times of each sample", low=1)
    time_share: float = option(
        0.99, "share of the sampler's times that are trained, from the noisiest on", above=0, high=1
    )
    old: TeacherWeights = option(
        TeacherWeights("slowing_ema", 1.0, slope=0.001, last=0.5),
        "the old model, which samples and is mixed with: its decay rises from 0 by .001 a step to .5",
    )
    anchor: float = option(1e-4, "weight of the squared gap to the initial model's velocity", low=0)

    def check(self, config: Settings) -> None:
        """A group needs two; a live old model would always be the student."""
        if config.group_size < 2:
            raise UserError(f"group_size={config.group_size} gives nft no group to compare with: it must be >= 2")
        if self.old.name == "stored":
            raise UserError("old=stored has no weights to sample with: use slowing_ema, ema, sync, frozen or live")

    def teachers(self) -> Sequence[TeacherWeights]:
        """The old model and, where there is an anchor, the initial one."""
        return (self.old, TeacherWeights("frozen")) if self.anchor else (self.old,)

    def collect(self, ctx: Context) -> Sequence[Group]:
        """Clean samples of the old model."""
        groups: Sequence[Group] = ctx.domain.rollout(ctx.next_prompts(), self.old)
        return groups

    def signal(self, groups: Sequence[Group], ctx: Context) -> Signal:
        """The positive and the negative branch, and the anchor."""
        rewards = [group.rewards for group in groups]
        share = optimality(torch.cat(advantages(rewards, std=self.std, floor=1e-5, added=True)), self.advantage_bound)
        made = ctx.domain.noised(groups, self.times, self.time_share, per_group=False)
        r_N, rows = share[made.source], made.rows
        old = ctx.domain.teacher(self.old, rows)
        terms: list[Term] = [
            MixedFlow(
                name=name, teacher=old, coefficient=self.advantage_bound / self.beta, share=reach, space=self.space,
                adaptive=self.adaptive, weight_N=weight_N,
            )
            for name, reach, weight_N in (("positive", self.beta, r_N), ("negative", -self.beta, 1.0 - r_N))
        ]  # fmt: skip
        if self.anchor:
            terms.append(Anchor(teacher=ctx.domain.teacher(TeacherWeights("frozen"), rows), coefficient=self.anchor))
        return Signal(rows, terms)

    def after_update(self, groups: Sequence[Group], ctx: Context) -> None:
        """Log how far the old model is from the student."""
        ctx.log("gap_old", ctx.domain.gap(self.old))
