"""Teacher weights: copies of a player's trainable tensors and persistent buffers, swapped in for a forward pass
(LoRA: the adapters only).

A teacher is never a second module: its tensors replace the player's for the time of a no-grad forward and go back
afterwards. So one mechanism serves full fine-tuning, LoRA (a frozen teacher is then exactly the base model) and any domain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from redistill.core.players import Player
from redistill.core.specs import TeacherWeights
from redistill.core.state import Piece, fill
from redistill.errors import UserError


@dataclass(frozen=True)
class Part:
    """One component of a teacher: a share of the mixture in log space and where its weights are. `copy` None is live;
    `module` is set for a teacher that is another model."""

    share: float
    copy: Mapping[str, Tensor] | None = None
    module: object | None = None


class TeacherBank:
    """All weight copies of one player, made before the first update and evolved once after each step."""

    def __init__(self, player: Player, load: Callable[[str], object]) -> None:
        self.player = player
        self.load = load
        self.copies: dict[str, dict[str, Tensor]] = {}
        self.specs: dict[str, TeacherWeights] = {}
        self.others: dict[str, object] = {}

    def need(self, weights: Sequence[TeacherWeights]) -> None:
        """Make the copies that these teachers use, from the player's weights now."""
        for spec in weights:
            if spec.name == "stored":
                raise UserError("teacher 'stored' has no weights to copy: it needs a method that keeps predictions")
            if spec.name == "checkpoint":
                self.others.setdefault(spec.path, self.load(spec.path))
            elif spec.name in ("served", "text"):  # by what was written: the domain knows how to reach them
                self.others.setdefault(str(spec), self.load(str(spec)))
            elif spec.name in ("frozen", "trust_region"):
                self._copy("frozen", TeacherWeights("frozen"))
            elif spec.name in ("ema", "slowing_ema", "sync"):
                self._copy(_key(spec), spec)

    def _copy(self, key: str, spec: TeacherWeights) -> None:
        if key not in self.copies:
            self.copies[key] = {name: t.detach().clone() for name, t in self.player.tensors.items()}
            self.specs[key] = spec

    @torch.no_grad()
    def refresh(self) -> None:
        """Start every copy again from the player's weights now (the start of a stage: "initial" means the stage's)."""
        now = self.player.tensors
        for copy in self.copies.values():
            for name, tensor in copy.items():
                tensor.copy_(now[name].detach())

    def parts(self, weights: TeacherWeights) -> list[Part]:
        """What to mix (log space, shares sum to 1) to get this teacher's distribution."""
        if weights.name == "live":
            return [Part(1.0)]
        if weights.name == "checkpoint":
            return [Part(1.0, module=self.others[weights.path])]
        if weights.name == "trust_region":
            return [Part(1.0 - weights.rate, self.copies["frozen"]), Part(weights.rate)]
        return [Part(1.0, self.copies["frozen" if weights.name == "frozen" else _key(weights)])]

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Evolve the copies, once for each step (all its mini-batches done); `step` counts from 1 since the copies were
        made or refreshed. ema: new = (1-r) old + r student with r of this step, buffers too (a counter is copied)."""
        now = self.player.tensors
        for key, spec in self.specs.items():
            if spec.name in ("ema", "slowing_ema"):
                rate = spec.rate_at(step - 1)
                for name, old in self.copies[key].items():
                    new = now[name].detach()
                    old.lerp_(new, rate) if old.is_floating_point() else old.copy_(new)
            elif spec.name == "sync" and step % int(spec.rate) == 0:
                for name, old in self.copies[key].items():
                    old.copy_(now[name].detach())

    @torch.no_grad()
    def drift(self, sample: int | None = None) -> dict[str, float]:
        """Relative L2 distance of each copy from the student's weights now, for the log; with `sample`, over about so many
        evenly spaced numbers of each tensor (all of a larger one would take as long as an update)."""
        strides = {name: max(1, p.numel() // sample) if sample else 1 for name, p in self.player.parameters.items()}
        now = {name: _spaced(p, strides[name]) for name, p in self.player.parameters.items()}
        found = {}
        for key, copy in self.copies.items():
            gap = size = 0.0
            for name, new in now.items():
                old = _spaced(copy[name], strides[name])
                gap += float((new - old).square().sum()) * strides[name]
                size += float(old.square().sum()) * strides[name]
            found[key] = (gap / max(size, 1e-30)) ** 0.5
        return found

    def state(self) -> Piece:
        """All copies."""
        return Piece({f"{key}/{name}": t for key, copy in self.copies.items() for name, t in copy.items()})

    def restore(self, piece: Piece) -> None:
        """Load all copies, in place."""
        fill({f"{key}/{name}": t for key, copy in self.copies.items() for name, t in copy.items()}, piece.tensors)


def _spaced(tensor: Tensor, stride: int) -> Tensor:
    """Every `stride`-th number of a tensor."""
    return tensor.detach().reshape(-1)[::stride]


def _key(spec: TeacherWeights) -> str:
    if spec.name == "slowing_ema":
        return "-".join([spec.name, *(repr(number) for number in (spec.rate, spec.slope, spec.last, spec.delay))])
    return f"{spec.name}-{spec.rate!r}"


@contextmanager
def swapped(tensors: Mapping[str, Tensor], copy: Mapping[str, Tensor] | None) -> Iterator[None]:
    """Let a player's `tensors` hold those of `copy` inside the block (None: leave them). Only for no-grad forwards:
    the student's own graph must not be built or walked while its weights are away."""
    if copy is None:
        yield
        return
    own = {name: tensors[name].data for name in copy}
    try:
        for name, tensor in copy.items():
            tensors[name].data = tensor
        yield
    finally:
        for name, tensor in own.items():
            tensors[name].data = tensor
