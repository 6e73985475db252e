"""Playing episodes: several simulators in step, one batched call of the policy for each action.

Suffixes: E episodes under way, T actions of an episode, O entries of an observation, D of an action.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from redistill.core.task import Prompt
from redistill.errors import UserError

if TYPE_CHECKING:
    from redistill.embodied.tasks import ControlTask

Array = NDArray[np.float64]
Act = Callable[[Array, Sequence[int], int], Array]
"""(observations [E, O], which episodes these are, how many actions each has taken) -> actions [E, D] in [-1, 1]; what is
outside is cut off by the simulator, not in the record."""


@dataclass(eq=False)
class Trace:
    """One episode: T + 1 observations, T rewards, and how it ended."""

    observations: list[Array] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    success_at: int | None = None
    """After how many actions it first succeeded."""
    terminated: bool = False
    """Whether the world ended it (it has no future value), rather than the cap."""

    @property
    def mean_reward(self) -> float:
        """Mean reward of its actions, 0 without any."""
        return math.fsum(self.rewards) / max(1, len(self.rewards))


def play(
    task: ControlTask, prompts: Sequence[Prompt], act: Act, simulators: int, *, limit: int | None = None,
    until_success: bool = False,
) -> list[Trace]:  # fmt: skip
    """Play one episode from each start, `simulators` at a time, each to its end, its cap (or `limit`) or its first success.
    UserError for an observation or reward that is not finite, and for a reward outside the task's range."""
    cap = task.options.cap if limit is None else min(limit, task.options.cap)
    stops = until_success or task.options.end_on_success
    traces = [Trace() for _ in prompts]
    for low in range(0, len(prompts), simulators):
        going = list(range(low, min(low + simulators, len(prompts))))
        worlds = dict(zip(going, task.simulators(len(going))))
        for i in going:
            traces[i].observations.append(_finite(task, prompts[i], worlds[i].start(prompts[i].content), 0))
        for t in range(cap):
            if not going:
                break
            actions_ED = act(np.stack([traces[i].observations[-1] for i in going]), going, t)
            still = []
            for i, action_D in zip(going, actions_ED):
                seen, reward, terminated, success = worlds[i].step(action_D)
                trace = traces[i]
                trace.observations.append(_finite(task, prompts[i], seen, t + 1))
                trace.rewards.append(_in_range(task, prompts[i], reward, t + 1))
                trace.terminated = terminated
                if success is None:
                    success = worlds[i].succeeded(trace.rewards) if terminated or t + 1 == cap else False
                if success and trace.success_at is None:
                    trace.success_at = t + 1
                if not (terminated or (success and stops)):
                    still.append(i)
            going = still
    return traces


def _finite(task: ControlTask, prompt: Prompt, seen: Array, t: int) -> Array:
    if not np.isfinite(seen).all():
        entry = int(np.flatnonzero(~np.isfinite(seen))[0])
        raise UserError(
            f"task {task.name!r} gave an observation whose entry {entry} is {seen[entry]}, after {t} actions of "
            f"start {prompt.content['start']}"
        )
    return seen


def _in_range(task: ControlTask, prompt: Prompt, reward: float, t: int) -> float:
    if not (math.isfinite(reward) and task.low <= reward <= task.high):
        raise UserError(
            f"task {task.name!r} gave reward {reward!r} for action {t} of start {prompt.content['start']}, outside its range "
            f"[{task.low:g}, {task.high:g}]"
        )
    return reward
