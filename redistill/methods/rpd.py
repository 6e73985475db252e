"""RPD: refined policy distillation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from redistill.core.episode import Episode, Group, behaviour
from redistill.core.method import Context, register
from redistill.core.options import option
from redistill.core.signal import Term
from redistill.embodied.settings import Settings
from redistill.embodied.terms import Imitation, ProximalDistillation
from redistill.errors import UserError
from redistill.methods.ppo import PPO


@register
@dataclass(frozen=True)
class RPD(PPO):
    """PPO on a small student, and in every mini-batch a pull of its Gaussian towards the action that a frozen, perhaps
    imperfect teacher proposes for what the student itself saw:

        L = L_PPO + lambda mean_B mean_d (mu(s) - a_T(s))^2.

    The teacher never acts. The pull is constant, or falls as lambda (cos(pi n / N_a) + 1) / 2 over N_a actions and is then gone.
    Other pulls: "l1"; "bc", -log pi(a_T|s), which moves the deviation too; "ppd" (arXiv 2407.15134), KL(pi || N(m, s^2)) times
    max(r, 1-e) with m and s from several of the teacher's actions. Weight 0 is PPO bit for bit.
    """

    slug = "rpd"
    title = "Refined policy distillation"
    paper = "arXiv 2503.05833"
    axes = {"signal": "outcome and teacher", "access": "black-box teacher", "granularity": "action"}
    objective = "L = L_PPO + lambda mean_B mean_d (mu - a_T)^2,   lambda = 1 or (cos(pi n / N_a) + 1) / 2"
    says_does = (
        ("squared L2 norm of mu - a_T", "released: the mean over the action's entries, and so here"),
        ("several teacher samples give PPD", "released: when there is more than one; here loss=ppd, and other losses take the mean over samples"),
        ("the teacher is asked in every mini-batch", "here once for each action it was played, with keyed noise; same targets for a teacher without noise"),
        ("with annealing lambda starts at 1", "released: whatever the constant weight is; here times the weight"),
    )  # fmt: skip
    run_defaults = {"teacher": "expert:noise=1"}

    weight: float = option(1.0, "lambda, weight of the pull towards the teacher; 0 is PPO", low=0)
    loss: str = option("mse", "the pull", choices=("mse", "l1", "bc", "ppd"))
    samples: int = option(1, "actions asked of the teacher for each state (ppd: at least 2)", low=1, high=1000)
    anneal_steps: int | None = option(
        None, "N_a, actions over which the weight falls to 0 as a cosine; none is constant", low=1
    )

    def check(self, config: Settings) -> None:
        """A teacher there must be, and a deviation needs two samples."""
        super().check(config)
        if self.weight and config.teacher.partition(":")[0] == "none":
            raise UserError(
                "rpd needs a teacher: write teacher=expert:noise=1 or teacher=policy:folder=PATH (weight=0 is ppo)"
            )
        if self.loss == "ppd" and self.samples < 2:
            raise UserError(f"samples={self.samples} gives loss=ppd no deviation of the teacher: it must be >= 2")

    def pull(self, env_steps: int) -> float:
        """The weight after so many actions of training."""
        if self.anneal_steps is None:
            return self.weight
        if env_steps >= self.anneal_steps:
            return 0.0
        return self.weight * (0.5 * math.cos(math.pi * env_steps / self.anneal_steps) + 0.5)

    def terms(self, groups: Sequence[Group], rows: Sequence[Episode], ctx: Context) -> list[Term]:
        """PPO's terms and the pull."""
        terms = super().terms(groups, rows, ctx)
        pull = self.pull(ctx.domain.progress.env_steps)
        ctx.log("pull", pull)
        if not pull:
            return terms
        teacher = ctx.domain.proposals(rows, self.samples)
        if self.loss == "ppd":
            before_N = behaviour(rows)
            return [
                *terms,
                ProximalDistillation(teacher=teacher, coefficient=pull, behaviour_N=before_N, clip=self.clip),
            ]
        return [*terms, Imitation(teacher=teacher, coefficient=pull, kind=self.loss)]
