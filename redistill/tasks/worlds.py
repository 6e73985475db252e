"""Worlds: tasks that are played in turns, with gymnasium's calls (reset, step) and text as observation and action.

A world never raises on what a policy writes: a malformed action changes nothing, costs a turn and is answered with a
corrective message. The prompt holds the first observation; the world is made anew for each episode from the prompt's data.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from redistill.core import rng
from redistill.core.task import Prompt, Verdict, content_uid, is_held_out
from redistill.errors import UserError

MAX_ACTION = 4096
"""Characters of an action that a world reads; a longer one is malformed, whatever it says."""
_TRIES = 10_000


@dataclass(frozen=True)
class Skill:
    """What a finished trajectory teaches, in the three fields of Skill-SD (arXiv 2604.10674)."""

    success_analysis: str
    mistake_analysis: str
    golden_workflow: str

    def text(self, style: str) -> str:
        """The skill as a view shows it: workflow, "!" and mistake for character models, else three sentences."""
        if style == "terse":
            return f"{self.golden_workflow}!{self.mistake_analysis}"
        told = (
            ("What worked", self.success_analysis), ("Mistake to avoid", self.mistake_analysis),
            ("Workflow", self.golden_workflow),
        )  # fmt: skip
        return "\n".join(f"{name}: {value or 'none'}" for name, value in told)


class World(Protocol):
    """One episode's world, with the calls of a `gymnasium.Env`."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Back to the start: (first observation, info). The world is made from its prompt, so the seed changes nothing."""
        ...

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """(observation, reward of this turn, terminated, truncated, info). `info["malformed"]` says that the action was
        none; `info["progress"]` the share of the task that is done; `info["feedback"]`, at the end, what went wrong."""
        ...


@runtime_checkable
class WorldTask(Protocol):
    """A task whose answers are played: beside what every task has, a world for each prompt."""

    def world(self, prompt: Prompt) -> World:
        """A fresh world of the prompt, at its start."""
        ...


def play_text(world: World, actions: Sequence[str]) -> Verdict:
    """Judge a list of actions by playing them; those after the end are not read."""
    world.reset()
    total, format_ok, feedback = 0.0, True, None
    for action in actions:
        _, reward, terminated, truncated, info = world.step(action)
        total += reward
        format_ok = format_ok and not info.get("malformed", False)
        feedback = info.get("feedback", feedback)
        if terminated or truncated:
            break
    return Verdict(total, feedback, format_ok)


@dataclass(frozen=True)
class PlayedTask(ABC):
    """What the worlds here share: streams of layouts, the held-out split, verdicts by replay.

    `levels` above 0 cuts the training stream to so many layouts, the same for every seed, each met once in every pass
    (methods that keep something for each task need to meet it again); 0 never repeats one on purpose. `style` is "terse"
    (a few characters an observation, for character models) or "english".
    """

    levels: int = 0
    style: str = "terse"

    name: ClassVar[str]
    reward_range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.style not in ("terse", "english"):
            raise UserError(f"task {self.name} style={self.style!r} is not terse or english")
        if self.levels < 0:
            raise UserError(f"task {self.name} levels={self.levels} is below 0; 0 means endless")

    @property
    def wording(self) -> str:
        """The wording of views is the style of the observations."""
        return self.style

    @abstractmethod
    def layout(self, *key: Any) -> Mapping[str, Any] | None:
        """A layout (JSON values) that is a pure function of the key; None when this key gives none that will do."""

    @abstractmethod
    def from_layout(self, layout: Mapping[str, Any]) -> Prompt:
        """The prompt of a layout, with its shortest solution as actions, one a line."""

    @abstractmethod
    def world(self, prompt: Prompt) -> World:
        """A fresh world of the prompt."""

    def in_range(self, **bounds: tuple[int, int]) -> None:
        """Refuse options outside their bounds, in one sentence that names the nearest."""
        for option, (low, high) in bounds.items():
            value = getattr(self, option)
            if not low <= value <= high:
                near = min(max(value, low), high)
                raise UserError(f"task {self.name} {option}={value} is outside {low} to {high}; the nearest is {near}")

    def train(self, index: int, seed: int) -> Prompt:
        """The prompt at `index` of the stream of `seed`, never a held-out one; a pure function of both."""
        key: tuple[Any, ...] = ("train", seed, index)
        if self.levels:
            order = rng.permutation(self.levels, self.name, "levels", seed, index // self.levels)
            key = ("level", int(order[index % self.levels]))
        return next(prompt for prompt in self._stream(*key) if not is_held_out(prompt.uid))

    def held_out(self, count: int) -> Sequence[Prompt]:
        """The first `count` distinct held-out prompts, the same for every seed."""
        found: dict[str, Prompt] = {}
        for prompt in self._stream("held_out"):
            if len(found) >= max(count, 0):
                break
            if is_held_out(prompt.uid):
                found.setdefault(prompt.uid, prompt)
        return list(found.values())

    def _stream(self, *key: Any) -> Any:
        misses = 0
        for attempt in range(10**9):
            layout = self.layout(*key, attempt)
            misses = misses + 1 if layout is None else 0
            if misses == _TRIES:
                raise UserError(f"task {self.name} finds no layout with these options in {_TRIES} tries: widen them")
            if layout is not None:
                yield self.from_layout(layout)

    def made(self, layout: Mapping[str, Any], observation: str, actions: Sequence[str]) -> Prompt:
        """The prompt of a layout whose first observation and solution are known."""
        content = [{"role": "user", "content": observation}]
        solution = "\n".join(actions)
        return Prompt(content_uid(content), content, answer=solution, solution=solution, data=dict(layout))

    def summary(self, actions: Sequence[str], progress: Sequence[float], malformed: Sequence[bool]) -> Skill:
        """A deterministic summary of a trajectory (it stands in for the paper's auxiliary model): the actions that brought
        progress, the first that brought none, and how far it came. One value each for every turn."""
        before = [0.0, *progress[:-1]]
        gains = [now > was for was, now in zip(before, progress)]
        joiner = "" if self.style == "terse" else ", "
        workflow = joiner.join(action.strip() for action, gain in zip(actions, gains) if gain)
        first = next((i for i, gain in enumerate(gains) if not gain), None)
        mistake = "" if first is None else ("?" if malformed[first] else actions[first].strip())
        reached = max(progress, default=0.0)
        return Skill(f"{reached:.0%} of the task was done", mistake, workflow)

    def verify(self, prompt: Prompt, answer: str) -> Verdict:
        """Judge a transcript of actions, one a line, by playing it."""
        return play_text(self.world(prompt), answer.split("\n"))
