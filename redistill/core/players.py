"""Players: everything trainable has a name, parameters and an optimiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from redistill.core.state import Piece, fill


@dataclass
class Player:
    """One trainable: the module, the parameters that train (by name) and an optimiser with linear warm-up.

    `algorithm` is "adamw" or "sgd" (Nesterov when it has momentum); `schedule` maps the updates done in this stage to a
    factor of the learning rate, beside the warm-up (None: constant).
    """

    name: str
    module: nn.Module
    parameters: Mapping[str, nn.Parameter]
    learning_rate: float
    warmup_steps: int = 0
    weight_decay: float = 0.0
    beta2: float = 0.999
    grad_clip: float = 1.0
    epsilon: float = 1e-8
    algorithm: str = "adamw"
    momentum: float = 0.9
    schedule: Callable[[int], float] | None = None
    published: str = ""
    """The file of a checkpoint that other libraries read the weights from; without one they are with the rest."""
    public_name: Callable[[str], str] = str
    """What a weight is called there."""
    updates: int = 0
    bad_in_a_row: int = 0
    skipped: int = 0
    optimiser: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.fresh_optimiser()

    def fresh_optimiser(self) -> None:
        """Start the optimiser anew (at the start and between stages)."""
        self.updates = 0
        tensors, rate = list(self.parameters.values()), self.learning_rate
        if self.algorithm == "sgd":
            self.optimiser = torch.optim.SGD(
                tensors, lr=rate, momentum=self.momentum, nesterov=self.momentum > 0, weight_decay=self.weight_decay
            )
        elif self.algorithm == "adamw":
            # Fused: one pass over weights, gradients and moments instead of a dozen.
            self.optimiser = torch.optim.AdamW(
                tensors, lr=rate, betas=(0.9, self.beta2), eps=self.epsilon, weight_decay=self.weight_decay, fused=True
            )
        else:
            raise ValueError(f"optimiser {self.algorithm!r} is not adamw or sgd")

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What a copy of this player's weights holds: the parameters that train, and the module's persistent buffers
        (batch norm's statistics evolve without a gradient and belong to the weights as much)."""
        found: dict[str, Tensor] = dict(self.parameters)
        for path, part in self.module.named_modules():
            for name, buffer in part.named_buffers(recurse=False):
                if name not in part._non_persistent_buffers_set:
                    found[f"{path}.{name}" if path else name] = buffer
        return found

    def step(self) -> tuple[float, bool]:
        """Clip the gradient and step. Returns (gradient norm before clipping, stepped). A non-finite gradient is not
        applied: the update is skipped and counted, weights and optimiser stay as they were."""
        norm = float(torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), self.grad_clip))
        finite = norm == norm and norm != float("inf")
        if finite:
            factor = min(1.0, (self.updates + 1) / (self.warmup_steps + 1))
            factor *= 1.0 if self.schedule is None else self.schedule(self.updates)
            for group in self.optimiser.param_groups:
                group["lr"] = self.learning_rate * factor
            self.optimiser.step()
            self.updates += 1
            self.bad_in_a_row = 0
        else:
            self.skip()
        self.optimiser.zero_grad(set_to_none=True)
        return norm, finite

    def skip(self) -> None:
        """Count an update that was not applied."""
        self.skipped += 1
        self.bad_in_a_row += 1
        self.optimiser.zero_grad(set_to_none=True)

    def state(self) -> Piece:
        """Weights, optimiser moments and counters."""
        own = {name: tensor.detach() for name, tensor in self.tensors.items()}
        weights = {} if self.published else {f"weight/{name}": tensor for name, tensor in own.items()}
        tensors: dict[str, Tensor] = weights | {f"buffer/{name}": b for name, b in self._other_buffers().items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimiser.state.get(parameter, {}).items():
                if value is not None:
                    tensors[f"optimiser/{key}/{name}"] = torch.as_tensor(value).detach()
        facts = {"updates": self.updates, "bad_in_a_row": self.bad_in_a_row, "skipped": self.skipped}
        public = {self.published: {self.public_name(name): tensor for name, tensor in own.items()}}
        return Piece(tensors, {**facts, "learning_rate": self.learning_rate}, public if self.published else {})

    def restore(self, piece: Piece) -> None:
        """Load what `state` returned, in place. ValueError for weights that are not this player's."""
        facts = piece.facts
        kinds: dict[str, dict[str, Tensor]] = {"weight": {}, "buffer": {}, "optimiser": {}}
        for key, value in piece.tensors.items():
            kind, _, rest = key.partition("/")
            kinds[kind][rest] = value
        if self.published:
            fill({self.public_name(name): tensor for name, tensor in self.tensors.items()}, piece.apart[self.published])
        else:
            fill(self.tensors, kinds["weight"])
        fill(self._other_buffers(), kinds["buffer"])
        self.learning_rate = facts["learning_rate"]
        self.fresh_optimiser()
        self.updates, self.bad_in_a_row, self.skipped = facts["updates"], facts["bad_in_a_row"], facts["skipped"]
        for key, value in kinds["optimiser"].items():
            slot, _, name = key.partition("/")
            parameter = self.parameters[name]
            if value.ndim and value.shape != parameter.shape:
                raise ValueError(
                    f"the optimiser's {slot} of {name} is {tuple(value.shape)}, not {tuple(parameter.shape)}"
                )
            self.optimiser.state[parameter][slot] = value.clone()

    def _other_buffers(self) -> dict[str, Tensor]:
        """The module's buffers that do not belong to its weights (positions' frequencies and the like)."""
        own = self.tensors
        return {name: b.detach() for name, b in self.module.named_buffers() if b is not None and name not in own}
