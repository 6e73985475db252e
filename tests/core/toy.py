"""A toy domain for the core: a linear classifier, a row is a few labelled points, a step is one prediction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from redistill.core.domain import Measured
from redistill.core.episode import Episode, Group
from redistill.core.players import Player
from redistill.core.signal import LogProb, Quantity, Signal, TeacherLogProb
from redistill.core.task import Prompt, Verdict
from redistill.core.teachers import TeacherBank, swapped
from torch import Tensor, nn

WIDTH, CLASSES = 4, 3


def toy_row(steps: int, seed: int = 0, wild: bool = False) -> Episode:
    """Points [steps, 4] and labels [steps]; with `wild` the points are infinite."""
    g = torch.Generator().manual_seed(100 * seed + steps)
    x = torch.randn(steps, WIDTH, generator=g, dtype=torch.float64)
    y = torch.randint(CLASSES, (steps,), generator=g)
    return Episode(
        Prompt(str(seed), "x"), None, (x * torch.inf if wild else x, y), steps, verdict=Verdict(float(seed % 2))
    )


class ToyDomain:
    """The contract of a domain, small: LogProb and TeacherLogProb of a linear softmax."""

    def __init__(self, rows_a_batch: int = 2, **player: Any) -> None:
        torch.manual_seed(0)
        module = nn.Linear(WIDTH, CLASSES).double()
        self.player = Player("student", module, dict(module.named_parameters()), **{"learning_rate": 0.1, **player})
        self.players = {"student": self.player}
        self.bank = TeacherBank(self.player, lambda name: None)
        self.rows_a_batch = rows_a_batch
        self.step = 0
        self.unregistered = 0

    def begin_step(self, step: int) -> None:
        self.step = step

    def rollout(self, prompts: Sequence[Prompt]) -> list[Group]:
        return [Group(prompt, [toy_row(3, int(prompt.uid))]) for prompt in prompts]

    def micro_batches(self, signal: Signal) -> Iterator[Sequence[int]]:
        for low in range(0, len(signal.rows), self.rows_a_batch):
            yield range(low, min(low + self.rows_a_batch, len(signal.rows)))

    def logp(self, signal: Signal, rows: Sequence[int]) -> Tensor:
        x = torch.cat([signal.rows[i].trajectory[0] for i in rows])
        y = torch.cat([signal.rows[i].trajectory[1] for i in rows])
        return self.player.module(x).log_softmax(-1)[torch.arange(len(y)), y]

    def measure(self, signal: Signal, rows: Sequence[int], quantities: Sequence[Quantity]) -> Measured:
        values: dict[Quantity, Tensor] = {}
        for quantity in quantities:
            if isinstance(quantity, LogProb):
                values[quantity] = self.logp(signal, rows)
            elif isinstance(quantity, TeacherLogProb):
                (part,) = self.bank.parts(quantity.teacher.weights)
                with torch.no_grad(), swapped(self.player.tensors, part.copy):
                    values[quantity] = self.logp(signal, rows)
        return Measured(values)

    def evaluate(self, label: str) -> dict[str, Any]:
        return {"metric": "size", "size": float(sum(p.detach().abs().sum() for p in self.player.parameters.values()))}

    def describe(self, groups: Any, signals: Any) -> str:
        return "a toy"

    def facts(self) -> dict[str, Any]:
        return {}

    def stateful(self) -> dict[str, Any]:
        return {}

    def write_beside(self, folder: Path) -> None:
        pass

    def save(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)


class ToyTask:
    """Prompts whose uid is their number."""

    name, reward_range, wording = "toy", (0.0, 1.0), "terse"

    def train(self, index: int, seed: int) -> Prompt:
        return Prompt(str(1000 * seed + index), "x")

    def held_out(self, count: int) -> list[Prompt]:
        return []

    def verify(self, prompt: Prompt, answer: str) -> Verdict:
        return Verdict(0.0)


def weights(domain: ToyDomain) -> Tensor:
    return torch.cat([p.detach().flatten() for p in domain.player.parameters.values()]).clone()
