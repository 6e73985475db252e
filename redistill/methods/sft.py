"""Supervised fine-tuning on reference solutions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from redistill.core.episode import Group, flat
from redistill.core.method import Context, Method, register
from redistill.core.options import option
from redistill.core.signal import Signal
from redistill.core.specs import Normaliser
from redistill.errors import UserError
from redistill.objectives.terms import Likelihood
from redistill.text.views import Evidence


@register
@dataclass(frozen=True)
class SFT(Method):
    """Maximise the likelihood of each prompt's reference solution.

    With `in_context_share` some prompts are trained in the view that shows the solution, so that the model learns to
    use what it is shown: the warm start that self-teaching needs (SDPO's and OPSD's specifications ask for it).
    """

    slug = "sft"
    title = "Supervised fine-tuning"
    paper = "baseline"
    axes = {"signal": "text", "access": "black-box", "granularity": "token"}
    objective = "L = - (1/N) sum_t log p(y*_t | x, y*_<t)"
    run_defaults = {"group_size": 1, "prompts_per_step": 32}

    in_context_share: float = option(0.0, "share of prompts trained with the solution in view", low=0, high=1)
    normaliser: Normaliser = option(Normaliser("token"), "by what the loss is divided")

    def utility_view(self) -> str | None:
        """Warm starts want to know whether the context is used."""
        return "with_solution" if self.in_context_share else None

    def collect(self, ctx: Context) -> Sequence[Group]:
        """The reference solutions of the step's prompts, as written episodes."""
        groups = []
        prompts = ctx.next_prompts()
        shown = ctx.uniform("in_context", range(len(prompts))) < self.in_context_share
        for prompt, in_context in zip(prompts, shown):
            if prompt.solution is None:
                raise UserError(
                    f"sft needs reference solutions, and task {ctx.task.name!r} has none for prompt {prompt.uid}"
                )
            view = "with_solution" if in_context else "plain"
            episode = ctx.domain.written(prompt, prompt.solution, view, Evidence(solution=prompt.solution))
            if episode is not None:
                groups.append(Group(prompt, [episode]))
        ctx.log("omitted", len(prompts) - len(groups))
        return groups

    def signal(self, groups: Sequence[Group], ctx: Context) -> Signal:
        """One likelihood term over all solutions."""
        return Signal(flat(groups), [Likelihood(normaliser=self.normaliser)])
