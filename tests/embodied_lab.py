"""A small world of our own, and an embodied method with everything it may use, without a run folder, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from redistill.build import settings
from redistill.core import rng
from redistill.core.episode import Group
from redistill.core.signal import Signal
from redistill.core.task import Prompt
from redistill.core.update import Tally, accumulate, update
from redistill.embodied.assemble import assemble
from redistill.embodied.domain import EmbodiedDomain
from redistill.embodied.models import ControlModel, make_model, save_model
from torch import Tensor


class Point(gymnasium.Env[Any, Any]):
    """A point in the plane is pushed to a goal; the world ends when it is there. Reward -distance."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float64)
    action_space = gymnasium.spaces.Box(-2.0, 2.0, (2,), np.float32)
    fault = ""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.at, self.goal, self.t = self.np_random.uniform(-1, 1, 2), self.np_random.uniform(-1, 1, 2), 0
        return np.concatenate([self.at, self.goal]), {}

    def step(self, action: Any) -> Any:
        self.at = self.at + 0.1 * np.asarray(action, dtype=np.float64)
        self.t += 1
        away = float(np.linalg.norm(self.at - self.goal))
        seen = np.concatenate([self.at, self.goal])
        reward = -away
        if self.t == 3 and self.fault == "seen":
            seen[2] = np.nan
        if self.t == 3 and self.fault == "reward":
            reward = float("inf")
        return seen, reward, away < 0.5, False, {}


class BlindPoint(Point):
    """The third thing seen is not a number."""

    fault = "seen"


class RichPoint(Point):
    """The third reward is infinite."""

    fault = "reward"


class Choice(Point):
    """Actions are one of three."""

    action_space = gymnasium.spaces.Discrete(3)  # type: ignore[assignment]


for name, entry in (("Point", Point), ("BlindPoint", BlindPoint), ("RichPoint", RichPoint), ("Choice", Choice)):
    gymnasium.register(f"Lab{name}-v0", entry_point=entry)

POINT = "gymnasium/LabPoint-v0:cap=12,success=-4"
SMALL: dict[str, Any] = {
    "task": POINT, "model": "mlp:width=8,depth=1", "dtype": "float64", "prompts_per_step": 8, "simulators": 4, "epochs": 1,
    "minibatches": 1, "eval_prompts": 10, "steps": 10, "learning_rate": 1e-2, "teacher": "none",
}  # fmt: skip


def saved_policy(folder: Path, observations: int = 4, actions: int = 2, seed: int = 5, size: float = 0.5) -> str:
    """A random policy in a folder, as a teacher is written."""
    model = make_model(
        "mlp:width=8,depth=1", observations=observations, actions=actions, seed=seed, dtype=torch.float64
    )
    shaken(model, size)
    save_model(model, folder)
    return f"policy:folder={folder}"


def shaken(model: ControlModel, size: float) -> None:
    """Move every weight."""
    for number, p in enumerate(model.module.parameters()):
        generator = torch.Generator().manual_seed(number)
        p.data.add_(size * torch.randn(p.shape, generator=generator, dtype=p.dtype))


class Lab:
    """What a method sees as its Context, and verbs that tests need."""

    def __init__(self, slug: str, **given: Any) -> None:
        self.method, self.config = settings(slug, {**SMALL, **given})
        self.task, domain = assemble(self.config)  # type: ignore[arg-type]
        assert isinstance(domain, EmbodiedDomain)
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

    def orders(self, rows: int) -> list[Sequence[int]]:
        """As the loop shuffles."""
        if self.config.epochs == 1:
            return [range(rows)]
        key = ("shuffle", self.config.seed, self.step, 0)
        return [rng.permutation(rows, *key, epoch).tolist() for epoch in range(self.config.epochs)]

    def advance(self, steps: int) -> None:
        """Whole steps, as the loop does them."""
        for _ in range(steps):
            groups = self.collect()
            signal = self.signal(groups)
            update(signal, self.domain, self.config.minibatches, self.orders(len(signal.rows)))
            self.step += 1
            self.method.after_update(groups, self)
            self.domain.bank.after_step(self.step)

    def nudge(self, size: float = 0.05) -> None:
        """Move the student away from what played."""
        shaken(self.domain.model, size)

    def weights(self) -> Tensor:
        return torch.cat([t.detach().flatten() for t in self.domain.players["student"].tensors.values()])
