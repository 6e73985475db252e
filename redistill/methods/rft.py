"""Rejection sampling, then supervised fine-tuning on what was right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from redistill.core.episode import Episode, Group
from redistill.core.method import Context, Method, register
from redistill.core.options import option
from redistill.core.signal import Signal
from redistill.core.specs import Normaliser
from redistill.objectives.terms import Likelihood


@register
@dataclass(frozen=True)
class RFT(Method):
    """Sample a group, keep the distinct answers that the verifier accepts, maximise their likelihood (RAFT, STaR's inner step)."""

    slug = "rft"
    title = "Rejection-sampling fine-tuning"
    paper = "arXiv 2308.01825"
    axes = {"signal": "outcome", "access": "teacher-free", "granularity": "sequence"}
    objective = "L = - (1/N) sum_{i: r_i >= c} sum_t log p(y_it | x, y_i<t),  y_i ~ p, distinct"

    threshold: float = option(1.0, "an episode with at least this reward is kept")
    keep: int = option(4, "at most so many kept episodes of a prompt", low=1)
    distinct: bool = option(True, "keep an answer only once")
    normaliser: Normaliser = option(Normaliser("token"), "by what the loss is divided")

    def kept(self, group: Group) -> list[Episode]:
        """The episodes of a group to train on, in order."""
        seen: set[str] = set()
        found = []
        for episode in group.successes(self.threshold):
            if not (self.distinct and episode.text in seen):
                found.append(episode)
            seen.add(episode.text)
        return found[: self.keep]

    def signal(self, groups: Sequence[Group], ctx: Context) -> Signal:
        """One likelihood term over the kept episodes."""
        rows = [episode for group in groups for episode in self.kept(group)]
        ctx.log("kept", len(rows))
        return Signal(rows, [Likelihood(normaliser=self.normaliser)])
