"""PPO: the policy gradient of control, with a value function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from redistill.core.episode import Episode, Group, behaviour
from redistill.core.method import Context, Method, register
from redistill.core.options import option
from redistill.core.signal import Limit, Signal, Term
from redistill.embodied.settings import Settings
from redistill.embodied.terms import StandardisedPolicyGradient, ValueRegression
from redistill.errors import UserError
from redistill.objectives.terms import Entropy, PolicyGradient


@register
@dataclass(frozen=True)
class PPO(Method):
    """Play episodes, estimate how much better each action was than the value of its state, and climb the clipped ratio

        L = mean max(-A r, -A clip(r, 1-e, 1+e)) + c_v mean (V - R)^2 / 2 - c_ent H,   r = pi(a|s) / pi_old(a|s),

    for some passes of mini-batches, with A standardised in each, until the policy has moved by `target_kl`. A is the
    finite-horizon GAE (the weighted mean of the n-step returns that an episode has, minus V) or the usual one; R = A + V.
    Defaults are those of the PPO that RPD builds on. A row is one action.
    """

    slug = "ppo"
    title = "Proximal policy optimisation"
    paper = "arXiv 1707.06347"
    family = "embodied"
    domain = "embodied"
    axes = {"signal": "outcome", "access": "teacher-free", "granularity": "action"}
    objective = "L = mean max(-A r, -A clip(r, 1-e, 1+e)) + c_v mean (V - R)^2 / 2 - c_ent H"
    says_does: ClassVar[Sequence[tuple[str, str]]] = (
        ("an episode may go on in the next update", "here updates play whole episodes, so a run resumes bit for bit"),
        ("a terminated episode has no future value", "ManiSkill's PPO gives it the value of its last state; here the paper's"),
    )  # fmt: skip

    gamma: float = option(
        0.8, "discount of a reward for each action it is away (0.8 dense, 0.99 sparse)", low=0, high=1
    )
    gae_decay: float = option(
        0.9, "weight of an n-step return relative to that of n-1 steps (GAE's lambda)", low=0, high=1
    )
    finite_horizon: bool = option(True, "divide by the weights of the returns that an episode has; false: usual GAE")
    clip: float = option(0.2, "e: the ratio is clipped to 1 -+ e", low=0)
    standardise: bool = option(True, "advantages have mean 0 and deviation 1 in each mini-batch")
    value_weight: float = option(0.5, "c_v, weight of the value's squared error", low=0)
    value_clip: float | None = option(None, "the value is held within this of what it was; none is off", above=0)
    entropy: float = option(0.0, "c_ent, weight of the entropy", low=0)
    target_kl: float | None = option(
        0.2, "mean of (r - 1) - log r of a mini-batch above which the update ends; none is off", above=0
    )

    def check(self, config: Settings) -> None:
        """A mini-batch has at least an action."""
        least = config.prompts_per_step * config.group_size
        if config.minibatches > least:
            raise UserError(
                f"minibatches={config.minibatches} is more than the {least} episodes of an update, the least number of its actions"
            )

    def signal(self, groups: Sequence[Group], ctx: Context) -> Signal:
        """The clipped policy gradient, the value's regression and the entropy, over every action."""
        rows = ctx.domain.transitions(groups)
        episodes = [episode for group in groups for episode in group]
        succeeded = [episode.trajectory.success_at is not None for episode in episodes]
        ctx.log("train_success", sum(succeeded) / len(succeeded))
        ctx.log("env_steps", ctx.domain.progress.env_steps)
        limit = None if self.target_kl is None else Limit("policy_gradient/kl", self.target_kl)
        return Signal(rows, self.terms(groups, rows, ctx), limit=limit)

    def terms(self, groups: Sequence[Group], rows: Sequence[Episode], ctx: Context) -> list[Term]:
        """The terms; a method that builds on PPO adds its own."""
        advantage_N, return_N, before_N = ctx.domain.advantages(
            groups, gamma=self.gamma, decay=self.gae_decay, finite_horizon=self.finite_horizon
        )
        kind = StandardisedPolicyGradient if self.standardise else PolicyGradient
        terms: list[Term] = [
            kind(advantage_N=advantage_N, behaviour_N=behaviour(rows), clip_low=self.clip, clip_high=self.clip),
            ValueRegression(coefficient=self.value_weight, return_N=return_N, before_N=before_N, clip=self.value_clip),
        ]
        if self.entropy:
            terms.append(Entropy(coefficient=self.entropy))
        return terms
