"""CRD: centred reward distillation for flow models."""

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
from redistill.generation.terms import Anchor, CentredReward

LEAST_ANCHOR = 1e-4
"""What a sample of reward 0 is anchored with."""


@register
@dataclass(frozen=True)
class CRD(Method):
    """Reward maximisation under a KL to an old model has r(x, c) = beta log p(x|c) / p_old(x|c) + beta log Z(c) at its
    optimum. Inside a prompt's group the mean takes log Z away, so the centred log-ratio, estimated on the forward process
    as a difference of errors at common (t, eps), can be regressed on the centred reward:

        rhat = |v_old - v*|^2 / w_old - |v - v*|^2 / w,    w = sg mean|v - v*|,
        L = (5 / beta) mean (beta (rhat - sg mean rhat) - (R - mean R))^2 + anchor,   R = clip(A, -5, 5) / 10 + 1/2.

    Three copies: `old` (slowly following), `sampler` (the student for 75 steps, then nearly frozen: were it the old model,
    all three would move together and rhat vanish) and the initial model, guided, which anchors samples of high reward.
    """

    slug = "crd"
    title = "Centred reward distillation"
    paper = "arXiv 2603.14128"
    family = "generation"
    domain = "generation"
    axes = {"signal": "outcome", "access": "self", "granularity": "noised sample"}
    objective = "L = (5/beta) mean (beta rc - Rc)^2 + lam mean (m + R (1-m)) |v - v_ref^cfg|^2,  m = 1e-4 / lam"
    says_does = (
        ("centred inside a prompt's group", "released: over the gathered micro-batch; here the group, centring=batch for theirs"),
        ("hard pools (tau = 0)", "released masks by R > 0 and R < 0 with R in [0, 1], so one pool is empty; here by A's sign"),
        ("snapshots follow once an epoch", "here once a step, which is an epoch: all updates of one sampled batch"),
        ("evaluated with an averaged copy", "not here: the student itself is evaluated"),
    )  # fmt: skip

    beta: float = option(1.0, "weight of the log-ratio against the reward", above=0)
    loss: str = option("mse", "squared error, or cross-entropy of the two as logits", choices=("mse", "bce"))
    adaptive: bool = option(True, "divide each error by its detached mean absolute value")
    temperature: float | None = option(
        None, "tau of weighted means, softmax(+-R / tau); 0 is hard pools, none is plain means", low=0
    )
    centring: str = option("group", "what is centred over: a prompt's group, or the batch", choices=("group", "batch"))
    std: str = option("batch", "what centred rewards are divided by", choices=STDS)
    advantage_bound: float = option(5.0, "the advantage at which R is 0 or 1; also scales the loss", above=0)
    times: int = option(2, "training times of each sample; a group has them in common", low=1)
    time_share: float = option(
        0.99, "share of the sampler's times that are trained, from the noisiest on", above=0, high=1
    )
    old: TeacherWeights = option(
        TeacherWeights("slowing_ema", 0.75, slope=0.005, last=0.001),
        "the old model of the implicit reward: its decay rises from .25 by .005 a step to .999",
    )
    sampler: TeacherWeights = option(
        TeacherWeights("slowing_ema", 1.0, slope=0.0075, last=0.001, delay=75),
        "who samples: the student for 75 steps, then its decay rises by .0075 a step to .999",
    )
    anchor: float = option(0.1, "lam, weight of the squared gap to the guided initial model's velocity", low=0)
    anchor_guidance: float = option(4.5, "classifier-free guidance of that model", low=0)
    anchor_by_reward: bool = option(True, "anchor a sample with 1e-4 + R (lam - 1e-4); false: with lam")

    def check(self, config: Settings) -> None:
        """A group needs two; copies are weights; an adaptive anchor is at least its floor."""
        if config.group_size < 2:
            raise UserError(f"group_size={config.group_size} gives crd no group to centre over: it must be >= 2")
        for name, weights in (("old", self.old), ("sampler", self.sampler)):
            if weights.name == "stored":
                raise UserError(f"{name}=stored has no weights: use slowing_ema, ema, sync, frozen or live")
        if self.anchor_by_reward and 0 < self.anchor < LEAST_ANCHOR:
            raise UserError(
                f"anchor={self.anchor:g} is below {LEAST_ANCHOR:g}, which samples of reward 0 get: set anchor_by_reward=false"
            )
        if config.epochs > 1:
            raise UserError(
                f"epochs={config.epochs} would tear groups apart: crd centres whole groups, use minibatches"
            )

    def teachers(self) -> Sequence[TeacherWeights]:
        """The old model, the sampler and, where there is an anchor, the initial model."""
        return (self.old, self.sampler, *([TeacherWeights("frozen")] if self.anchor else []))

    def collect(self, ctx: Context) -> Sequence[Group]:
        """Clean samples of the sampler."""
        groups: Sequence[Group] = ctx.domain.rollout(ctx.next_prompts(), self.sampler)
        return groups

    def anchor_weights(self, reward: torch.Tensor) -> torch.Tensor:
        """m + R (1 - m) with m = 1e-4 / lam: times lam, 1e-4 at R = 0 and lam at R = 1."""
        least = LEAST_ANCHOR / self.anchor
        return least + reward * (1.0 - least)

    def signal(self, groups: Sequence[Group], ctx: Context) -> Signal:
        """The centred regression and the anchor."""
        rewards = [group.rewards for group in groups]
        advantage = torch.cat(advantages(rewards, std=self.std, floor=1e-6))
        made = ctx.domain.noised(groups, self.times, self.time_share, per_group=True)
        rows, reward_N = made.rows, optimality(advantage, self.advantage_bound)[made.source]
        group_N = made.cell if self.centring == "group" else torch.zeros_like(made.cell)
        size_N = torch.bincount(group_N)[group_N]
        terms: list[Term] = [
            CentredReward(
                coefficient=self.advantage_bound / self.beta, teacher=ctx.domain.teacher(self.old, rows), beta=self.beta,
                reward_N=reward_N, group_N=group_N, size_N=size_N, adaptive=self.adaptive, temperature=self.temperature,
                loss=self.loss,
            )
        ]  # fmt: skip
        if self.anchor:
            guide = ctx.domain.teacher(TeacherWeights("frozen"), rows, self.anchor_guidance)
            weight_N = self.anchor_weights(reward_N) if self.anchor_by_reward else None
            terms.append(Anchor(teacher=guide, coefficient=self.anchor, weight_N=weight_N))
        return Signal(rows, terms)

    def after_update(self, groups: Sequence[Group], ctx: Context) -> None:
        """Log how far old model and sampler are from the student."""
        ctx.log("gap_old", ctx.domain.gap(self.old))
        ctx.log("gap_sampler", ctx.domain.gap(self.sampler))
