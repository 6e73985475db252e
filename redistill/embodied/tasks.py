"""Control as a task: where episodes start, how long they last, what is rewarded and what counts as a success."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redistill.core.naming import named
from redistill.core.options import option
from redistill.core.task import Prompt, Verdict, content_uid
from redistill.embodied.rollout import play
from redistill.embodied.simulators import (
    GYMNASIUM,
    Simulator,
    gymnasium_simulator,
    metaworld_names,
    metaworld_simulator,
)

HELD_OUT = 1000
"""Held-out starts; training starts are keyed apart from them."""


@dataclass(frozen=True)
class World:
    """Options of every task. The last four make a world that the teacher was not made for."""

    cap: int = option(100, "actions after which an episode is cut off", low=1, high=100000)
    end_on_success: bool = option(False, "an episode ends at its first success")
    gain: float = option(1.0, "actions are multiplied by this", above=0, high=1)
    mass: float = option(1.0, "masses and inertias are multiplied by this (MuJoCo)", above=0, high=1000)
    damping: float = option(1.0, "damping of joints is multiplied by this (MuJoCo)", low=0, high=1000)
    friction: float = option(1.0, "friction is multiplied by this (MuJoCo)", low=0, high=1000)


@dataclass(frozen=True)
class MetaWorld(World):
    """Options of a Meta-World task."""

    cap: int = option(100, "actions after which an episode is cut off", low=1, high=500)
    reward: str = option(
        "dense", "the task's shaped reward over 10, or 1 while it is a success", choices=("dense", "sparse")
    )


@dataclass(frozen=True)
class Gymnasium(World):
    """Options of a gymnasium environment."""

    cap: int = option(200, "actions after which an episode is cut off", low=1, high=100000)
    low: float | None = option(None, "least reward of an action; none is not known")
    high: float | None = option(None, "largest reward of an action; none is not known")
    success: float | None = option(
        None, "an episode succeeds when its rewards add up to this at its end; none: it has no success"
    )


class ControlTask:
    """A world, its rewards and its starts; a start is drawn by its key alone."""

    wording = "english"

    def __init__(self, name: str, options: World) -> None:
        self.name, self.options = name, options
        self.low, self.high = -math.inf, math.inf
        if isinstance(options, MetaWorld):
            self.low, self.high = 0.0, 1.0
        elif isinstance(options, Gymnasium):
            self.low = -math.inf if options.low is None else options.low
            self.high = math.inf if options.high is None else options.high
        self.reward_range = (self.low, self.high)
        self._simulators: list[Simulator] = []
        first = self.simulators(1)[0]
        self.observations, self.actions = first.observations, first.actions

    @property
    def succeeds(self) -> bool:
        """Whether the task says what a success is."""
        return isinstance(self.options, MetaWorld) or (
            isinstance(self.options, Gymnasium) and self.options.success is not None
        )

    def simulators(self, count: int) -> Sequence[Simulator]:
        """`count` simulators of this world. They are shared: whoever plays an episode plays it to its end."""
        while len(self._simulators) < count:
            make = metaworld_simulator if isinstance(self.options, MetaWorld) else gymnasium_simulator
            self._simulators.append(make(self.name, self.options))
        return self._simulators[:count]

    def train(self, index: int, seed: int) -> Prompt:
        """The start at position `index` of the endless stream of `seed`."""
        return _prompt({"start": index, "seed": seed})

    def held_out(self, count: int) -> Sequence[Prompt]:
        """The first held-out starts, the same for every seed."""
        return [_prompt({"start": index, "held_out": True}) for index in range(min(count, HELD_OUT))]

    def verify(self, prompt: Prompt, answer: str) -> Verdict:
        """Judge a JSON list of actions by playing it from the prompt's start: the mean reward of its actions. Anything
        else has the least reward (0 where there is none)."""
        try:
            actions = np.asarray(json.loads(answer), dtype=np.float64)
        except (ValueError, TypeError):
            actions = np.empty(0)
        if actions.ndim != 2 or actions.shape[1] != self.actions or not np.isfinite(actions).all():
            worst = self.low if math.isfinite(self.low) else min(0.0, self.high)
            return Verdict(worst, f"an answer is a list of actions of {self.actions} numbers", format_ok=False)

        def replay(seen: NDArray[np.float64], at: Sequence[int], t: int) -> NDArray[np.float64]:
            return actions[None, t]

        (trace,) = play(self, [prompt], replay, 1, limit=len(actions))
        return Verdict(trace.mean_reward)


def _prompt(content: dict[str, Any]) -> Prompt:
    return Prompt(uid=content_uid(content), content=content, data={"position": content["start"]})


_TASKS: dict[tuple[str, World], ControlTask] = {}


def load_task(text: str) -> ControlTask:
    """The task of a name, `button-press-topdown-v3:reward=sparse` or `gymnasium/Pendulum-v1:success=-200`. Made once in a
    process, because simulators are costly to make. UserError for an unknown name, option or a missing package."""
    name = text.partition(":")[0].strip()
    if name.startswith(GYMNASIUM):
        kinds: dict[str, type[World]] = {name: Gymnasium}
    else:
        kinds = dict.fromkeys(metaworld_names(name), MetaWorld)
    name, options = named(text, "embodied task", kinds)
    if (name, options) not in _TASKS:
        _TASKS[name, options] = ControlTask(name, options)
    return _TASKS[name, options]
