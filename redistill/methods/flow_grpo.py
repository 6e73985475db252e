"""Flow-GRPO: policy gradients on the steps of a stochastic sampler, with DanceGRPO as a special case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from redistill.core.episode import Group, behaviour, flat
from redistill.core.method import Context, Method, register
from redistill.core.options import option
from redistill.core.signal import Signal, Term, per_step
from redistill.core.specs import TeacherWeights
from redistill.errors import UserError
from redistill.generation.centring import STDS, advantages
from redistill.generation.flow import KERNELS, Kernel
from redistill.generation.settings import Settings
from redistill.generation.terms import StepAnchor
from redistill.objectives.terms import PolicyGradient


@register
@dataclass(frozen=True)
class FlowGRPO(Method):
    """Turn the sampler's ODE into an SDE with the same marginals, so that each denoising step is a Gaussian action with a
    log-prob, and give every step of a sample the group-relative advantage of its image:

        x' = x - D v + (g^2 D / 2) s + g sqrt(D) xi,   s = -(x + (1-t) v) / t,   g = a sqrt(t / (1-t)),
        loss = -min(r A, clip(r, 1 -+ e) A) + beta KL_step,   A = (R - mean of the group) / std of the batch.

    The policy-gradient term is the one that serves tokens. A log-prob is the mean over pixels (setting `logp_over`), which
    is why e is 1e-4. DanceGRPO (arXiv 2505.07818): `kernel=constant noise=0.3 shared_noise=true kl=0 std=group`.
    """

    slug = "flow-grpo"
    title = "Flow-GRPO: online RL on the SDE of a flow"
    paper = "arXiv 2505.05470"
    family = "generation"
    domain = "generation"
    axes = {"signal": "outcome", "access": "teacher-free", "granularity": "denoising step"}
    objective = "L = -mean min(r A, clip(r, 1-e, 1+e) A) + beta mean (mu - mu_ref)^2 / (2 g^2 D)"
    says_does = (
        ("KL of a step is |mu - mu_ref|^2 / (2 g^2 D)", "released code divides by 2 g^2 only: kl_exact=false"),
        ("advantage divided by the group's std", "released: by the std of all rewards of the step; std=group for the text"),
        ("log-prob of a Gaussian", "released: its mean over dimensions, not the sum; setting logp_over"),
        ("all steps trained", "released: the first 99% of the steps, so all but the last of 10; step_share"),
    )  # fmt: skip

    kernel: str = option(
        "flow", "noise of the SDE: a sqrt(t/(1-t)) (Flow-GRPO) or constant (DanceGRPO)", choices=KERNELS
    )
    noise: float = option(0.7, "a, the level of the SDE's noise", above=0)
    shared_noise: bool = option(False, "the samples of a group start from one initial noise (DanceGRPO)")
    std: str = option("batch", "what centred rewards are divided by", choices=STDS)
    std_added: float = option(1e-4, "added to that deviation", low=0)
    advantage_bound: float = option(5.0, "advantages are clipped to this size", above=0)
    clip: float = option(1e-4, "the ratio is clipped to 1 -+ this", low=0)
    step_share: float = option(
        0.99, "share of the denoising steps that are trained, from the noisiest on", above=0, high=1
    )
    kl: float = option(0.04, "beta, the weight of the KL to the initial model", low=0)
    kl_exact: bool = option(True, "divide by the step's variance 2 g^2 D; false: by 2 g^2, as the released code does")

    def check(self, config: Settings) -> None:
        """A group needs two."""
        if config.group_size < 2:
            raise UserError(f"group_size={config.group_size} gives flow-grpo no group to compare with: it must be >= 2")

    def teachers(self) -> Sequence[TeacherWeights]:
        """The initial model, when there is a KL to it."""
        return (TeacherWeights("frozen"),) if self.kl else ()

    def collect(self, ctx: Context) -> Sequence[Group]:
        """SDE chains of the student itself."""
        kernel = Kernel(self.kernel, self.noise)
        groups: Sequence[Group] = ctx.domain.rollout(ctx.next_prompts(), kernel=kernel, shared=self.shared_noise)
        return groups

    def signal(self, groups: Sequence[Group], ctx: Context) -> Signal:
        """The clipped term over the trained steps, and the KL where asked for."""
        rows = flat(groups)
        lengths = [row.steps for row in rows]
        advantage = torch.cat(
            advantages([group.rewards for group in groups], std=self.std, floor=self.std_added, added=True)
        ).clamp(-self.advantage_bound, self.advantage_bound)
        trained = len(ctx.domain.training_times(self.step_share))
        mask_N = torch.cat([torch.arange(length) < trained for length in lengths])
        terms: list[Term] = [
            PolicyGradient(
                advantage_N=per_step(advantage, lengths, torch.float64), behaviour_N=behaviour(rows), clip_low=self.clip,
                clip_high=self.clip, mask_N=mask_N,
            )
        ]  # fmt: skip
        if self.kl:
            initial = ctx.domain.teacher(TeacherWeights("frozen"), rows)
            terms.append(StepAnchor(teacher=initial, coefficient=self.kl, exact=self.kl_exact, mask_N=mask_N))
        return Signal(rows, terms)
