"""Cross-entropy on given labels, with label smoothing: the baseline of the vision methods."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from redistill.core.episode import Group, flat
from redistill.core.method import Context, Method, register
from redistill.core.options import option
from redistill.core.signal import Signal, Term
from redistill.core.specs import DivergenceKind
from redistill.objectives.terms import Divergence, Likelihood


@register
@dataclass(frozen=True)
class CE(Method):
    """Maximise the likelihood of each image's label. With `label_smoothing` e the target is (1-e) y + e u for the
    uniform u (arXiv 1512.00567), said as (1-e) of the likelihood and e of KL(u || p): the same gradient, and a loss
    that is lower by the constant e log V."""

    slug = "ce"
    title = "Cross-entropy and label smoothing"
    paper = "baseline (label smoothing: arXiv 1512.00567)"
    family = "vision"
    domain = "vision"
    axes = {"signal": "labels", "access": "none", "granularity": "prediction"}
    objective = "L = -(1-e) log p(y | x) + e KL(u || p(. | x))"

    label_smoothing: float = option(0.0, "share e of the target that is uniform (usually 0.1)", low=0, high=1)

    def collect(self, ctx: Context) -> Sequence[Group]:
        """The step's images with their given labels."""
        groups: Sequence[Group] = ctx.domain.labelled(ctx.next_prompts())
        return groups

    def signal(self, groups: Sequence[Group], ctx: Context) -> Signal:
        """A likelihood term, and a divergence from the uniform distribution where there is smoothing."""
        rows = flat(groups)
        share = self.label_smoothing
        terms: list[Term] = [Likelihood(coefficient=1.0 - share)]
        if share:
            uniform = torch.full((ctx.domain.classes,), -math.log(ctx.domain.classes), dtype=torch.float64)
            teacher = ctx.domain.stored([uniform] * len(rows))
            terms.append(
                Divergence(
                    name="smoothing", coefficient=share, teacher=teacher, kind=DivergenceKind("forward_kl")
                )
            )  # fmt: skip
        return Signal(rows, terms)
