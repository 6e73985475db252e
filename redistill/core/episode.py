"""Episodes and groups: what the rollout room hands to the judge and the judge to the method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from redistill.core.task import Prompt, Verdict


@dataclass(frozen=True, eq=False)
class Episode:
    """One trajectory. A *step* is a token, a denoising step, an action or a whole prediction.

    `context` is what the policy reads in the view the episode is *trained* under (token ids for language); `trajectory`
    holds the domain's own record. `behaviour_logp_T` is None when the episode was not sampled by a policy of ours.
    """

    prompt: Prompt
    context: Any
    trajectory: Any
    steps: int
    """How many of the trajectory's steps are the policy's own (spans); 0 is legal."""
    text: str = ""
    behaviour_logp_T: Tensor | None = None
    sampling: Any = None
    sampled_under: str = "plain"
    trained_under: str = "plain"
    finish: str = "stop"
    key: tuple[int, ...] = ()
    verdict: Verdict | None = None
    routing: Any = None
    """Expert-routing ids of a mixture-of-experts sampler, where an engine records them."""

    @property
    def reward(self) -> float:
        """The judged reward; raises if the episode has not been judged."""
        if self.verdict is None:
            raise ValueError("this episode has not been judged")
        return self.verdict.reward

    def trained_as(self, context: Any, view: str) -> Episode:
        """The same episode, trained under another view (guide, pi-distill)."""
        return replace(self, context=context, trained_under=view)


@dataclass(frozen=True, eq=False)
class Group:
    """The episodes of one prompt, with the statistics that many papers read from them."""

    prompt: Prompt
    episodes: Sequence[Episode] = field(default_factory=list)

    def __iter__(self) -> Iterator[Episode]:
        return iter(self.episodes)

    def __len__(self) -> int:
        return len(self.episodes)

    @property
    def rewards(self) -> Tensor:
        """Rewards of the episodes, float64 [G]."""
        return torch.tensor([episode.reward for episode in self.episodes], dtype=torch.float64)

    def successes(self, threshold: float) -> list[Episode]:
        """Episodes whose reward reaches `threshold`, in order."""
        return [episode for episode in self.episodes if episode.reward >= threshold]

    def pass_rate(self, threshold: float) -> float:
        """Share of the episodes whose reward reaches `threshold`."""
        return len(self.successes(threshold)) / max(1, len(self.episodes))

    def all_failed(self, threshold: float) -> bool:
        """Whether no episode reaches `threshold`."""
        return not self.successes(threshold)

    def sibling(self, episode: Episode, threshold: float, *, own: bool = False) -> Episode | None:
        """The first successful episode of the group other than `episode` itself (unless `own`); None without one."""
        return next((other for other in self.successes(threshold) if own or other is not episode), None)


def flat(groups: Sequence[Group]) -> list[Episode]:
    """All episodes of all groups, in order."""
    return [episode for group in groups for episode in group]


def behaviour(rows: Sequence[Episode]) -> Tensor:
    """Recorded log-probs of all rows [N]; every row must have been sampled by a policy of ours."""
    recorded = [row.behaviour_logp_T for row in rows]
    if any(logp is None for logp in recorded):
        raise ValueError("some rows were not sampled by a policy of ours: they have no behaviour log-probs")
    return torch.cat([logp for logp in recorded if logp is not None]) if recorded else torch.empty(0)
