"""A generation method with everything it may use, without a run folder, in float64."""

from __future__ import annotations

from typing import Any

import torch
from redistill.build import settings
from redistill.core import rng
from redistill.core.episode import Episode, Group
from redistill.core.signal import Signal, Term
from redistill.core.task import Prompt, Verdict
from redistill.core.update import Tally, accumulate, update
from redistill.generation.assemble import assemble
from redistill.generation.domain import GenerationDomain
from torch import Tensor

SMALL = {
    "model": "dit:width=16,depth=1,heads=2", "dtype": "float64", "prompts_per_step": 3, "group_size": 4, "sampling_steps": 5,
    "eval_prompts": 20, "eval_sampling_steps": 3, "steps": 10, "learning_rate": 1e-2,
}  # fmt: skip


class Lab:
    """What a method sees as its Context, and verbs that tests need."""

    def __init__(self, slug: str, **given: Any) -> None:
        self.method, self.config = settings(slug, {**SMALL, **given})
        self.task, domain = assemble(self.config)  # type: ignore[arg-type]
        assert isinstance(domain, GenerationDomain)
        self.domain = domain
        self.domain.bank.need(self.method.teachers())
        self.logged: dict[str, float] = {}
        self.step = 0
        self.method.enter(self)

    def next_prompts(self) -> list[Prompt]:
        size = self.config.prompts_per_step
        return [self.task.train(i, self.config.seed) for i in range(self.step * size, (self.step + 1) * size)]

    def uniform(self, *key: Any) -> Any:
        return rng.uniform("method", self.config.seed, self.step, *key)

    def log(self, name: str, value: float) -> None:
        self.logged[name] = float(value)

    def collect(self) -> list[Group]:
        self.domain.begin_step(self.step)
        return list(self.method.collect(self))

    def signal(self, groups: list[Group]) -> Signal:
        made = self.method.signal(groups, self)
        assert isinstance(made, Signal)
        return made

    def gradient(self, signal: Signal) -> tuple[float, Tensor]:
        """(loss, flattened gradient) of a signal; a parameter without a gradient counts as zeros."""
        player = self.domain.players["student"]
        player.optimiser.zero_grad()
        loss = accumulate(signal.prepared(), self.domain, Tally())
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in player.parameters.values()]
        flat = torch.cat([part.flatten() for part in found]).clone()
        player.optimiser.zero_grad()
        return loss, flat

    def advance(self, steps: int) -> None:
        """Whole steps, as the loop does them."""
        for _ in range(steps):
            groups = self.collect()
            update(self.signal(groups), self.domain)
            self.step += 1
            self.method.after_update(groups, self)
            self.domain.bank.after_step(self.step)

    def nudge(self, size: float = 0.05) -> None:
        """Move the student off its copies."""
        for number, p in enumerate(self.domain.players["student"].parameters.values()):
            generator = torch.Generator().manual_seed(number)
            p.data.add_(size * torch.randn(p.shape, generator=generator, dtype=p.dtype))

    def weights(self) -> Tensor:
        return torch.cat([t.detach().flatten() for t in self.domain.players["student"].tensors.values()])


def rewarded(groups: list[Group], rewards: Tensor) -> list[Group]:
    """The same episodes with other rewards [P, G]."""
    return [
        Group(group.prompt, [_with(episode, float(r)) for episode, r in zip(group, row)])
        for group, row in zip(groups, rewards)
    ]


def _with(episode: Episode, reward: float) -> Episode:
    from dataclasses import replace

    return replace(episode, verdict=Verdict(reward))


def only(signal: Signal, name: str) -> Signal:
    """The signal with one of its terms, at coefficient 1."""
    from dataclasses import replace

    (term,) = [term for term in signal.terms if term.name == name]
    kept: Term = replace(term, coefficient=1.0)
    return Signal(signal.rows, [kept])
