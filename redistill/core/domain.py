"""What a domain offers to the core. Text, vision, generation, embodied and speech each implement this and nothing more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from redistill.core.episode import Group
from redistill.core.players import Player
from redistill.core.signal import Quantity, Signal
from redistill.core.state import Stateful
from redistill.core.task import Prompt, Task
from redistill.core.teachers import TeacherBank


@dataclass(frozen=True)
class Measured:
    """Values [n] of each quantity at the steps of some rows (differentiable), and (sum, count) observations for the log."""

    values: Mapping[Quantity, Tensor]
    observed: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Ready:
    """What a domain found out before it loads any weights: the run's task, the size of a checkpoint and of the saved model
    in bytes (estimates), and sentences that the user should read."""

    task: Task
    checkpoint: int = 0
    model: int = 0
    warnings: Sequence[str] = ()


class Domain(Protocol):
    """The verbs of a domain. Methods may use more of their own domain's verbs (rendering, scoring)."""

    players: Mapping[str, Player]
    bank: TeacherBank

    def begin_step(self, step: int) -> None:
        """Called before a step is collected: keys of randomness and counters start anew."""
        ...

    def rollout(self, prompts: Sequence[Prompt]) -> Sequence[Group]:
        """Sample and judge the groups of some prompts under the plain view."""
        ...

    def micro_batches(self, signal: Signal) -> Iterator[Sequence[int]]:
        """Cut a signal's rows into pieces that fit in one forward pass."""
        ...

    def measure(self, signal: Signal, rows: Sequence[int], quantities: Sequence[Quantity]) -> Measured:
        """Measure quantities at every step of some rows, in the order of `signal.steps_of(rows)`."""
        ...

    def evaluate(self, label: str) -> Mapping[str, Any]:
        """Evaluate on held-out prompts: JSON values, among them `metric`, the name of the main number, and that number;
        `low` and `high` where it has an interval, `outcomes` (a number per prompt) where it can be paired."""
        ...

    def describe(self, groups: Sequence[Group], signals: Sequence[Signal]) -> str:
        """What the first episode's student and teachers read, for the start of a run."""
        ...

    def facts(self) -> Mapping[str, Any]:
        """What the run folder should remember: model source, dtype, ..."""
        ...

    def stateful(self) -> Mapping[str, Stateful]:
        """Parts of the domain that evolve, beside players and teachers."""
        ...

    def write_beside(self, folder: Path) -> None:
        """Write into a checkpoint's folder what its weights are read with: it is a folder of the ordinary format too."""
        ...

    def save(self, folder: Path) -> None:
        """Save the trained model in the domain's ordinary format."""
        ...
