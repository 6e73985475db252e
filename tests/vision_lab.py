"""A vision method with everything it may use, without a run folder, in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from redistill.build import settings
from redistill.core import rng
from redistill.core.episode import Group
from redistill.core.signal import Signal
from redistill.core.task import Prompt
from redistill.core.update import Tally, accumulate, update
from redistill.vision.assemble import assemble
from redistill.vision.domain import VisionDomain
from torch import Tensor, nn

SMALL = {
    "task": "digits:train=40,noise=0.3,augment=1", "prompts_per_step": 10, "steps": 16,
    "model": "cnn:width=4,norm=group", "dtype": "float64", "eval_prompts": 50,
}  # fmt: skip


class Lab:
    """What a method sees as its Context, and verbs that tests need."""

    def __init__(self, slug: str, **given: Any) -> None:
        self.method, self.config = settings(slug, {**SMALL, **given})
        self.task, domain = assemble(self.config)  # type: ignore[arg-type]
        assert isinstance(domain, VisionDomain)
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
        """(loss, flattened gradient) of a signal."""
        player = self.domain.players["student"]
        for p in player.parameters.values():
            p.grad = None
        loss = accumulate(signal, self.domain, Tally())
        found = torch.cat([p.grad.flatten() for p in player.parameters.values() if p.grad is not None])
        player.optimiser.zero_grad()
        return loss, found

    def advance(self, steps: int) -> None:
        """Whole steps, as the loop does them."""
        for _ in range(steps):
            groups = self.collect()
            update(self.signal(groups), self.domain)
            self.step += 1
            self.method.after_update(groups, self)
            self.domain.bank.after_step(self.step)

    def weights(self) -> Tensor:
        return torch.cat([t.detach().double().flatten() for t in self.domain.players["student"].tensors.values()])


class Fixed(nn.Module):
    """A model that gives the same logits to every image: a softmax over its only parameter."""

    def __init__(self, logits_V: Tensor) -> None:
        super().__init__()
        self.logits_V = nn.Parameter(logits_V.clone())

    def forward(self, images_BSS: Tensor) -> Tensor:
        return self.logits_V.expand(len(images_BSS), -1)


class FixedLab(Lab):
    """A method on a fixed softmax over given logits; every epoch is one update of all rows, whose labels are given."""

    def __init__(self, slug: str, logits_V: Tensor, labels: list[int], **given: Any) -> None:
        train = {"task": f"digits:train={len(labels)},augment=0", "prompts_per_step": len(labels)}
        self.method, self.config = settings(slug, {**SMALL, "weight_decay": 0.0, **train, **given})
        self.task, domain = assemble(self.config)  # type: ignore[arg-type]
        assert isinstance(domain, VisionDomain)
        model = replace(domain.model, module=Fixed(logits_V), classes=len(logits_V))
        self.domain = VisionDomain(model, self.task, self.config)  # type: ignore[arg-type]
        self.labels, self.logged, self.step = labels, {}, 0
        self.domain.bank.need(self.method.teachers())
        self.method.enter(self)

    def collect(self) -> list[Group]:
        found = super().collect()
        rows = [(group, row, self.labels[row.prompt.data["row"]]) for group in found for row in group]
        return [Group(group.prompt, [replace(row, trajectory=label)]) for group, row, label in rows]

    @property
    def logits(self) -> Tensor:
        module = self.domain.model.module
        assert isinstance(module, Fixed)
        return module.logits_V
