"""Control policies: a Gaussian over actions and a value of the state, two small networks; made, saved, loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from redistill.core import rng
from redistill.core.files import read_object, read_tensors
from redistill.core.naming import named
from redistill.core.options import build, option, plain_values
from redistill.core.state import digest
from redistill.errors import UserError

FORMAT = "redistill-embodied"


@dataclass(frozen=True)
class Mlp:
    """Options of `mlp`."""

    width: int = option(256, "width of the hidden layers", low=1, high=4096)
    depth: int = option(2, "hidden layers, of the actor and of the critic", low=1, high=16)
    log_std: float = option(-0.5, "initial log of the action's deviation", low=-10, high=3)
    scale: float = option(1.0, "what is seen is multiplied by this (metres are small numbers)", above=0, high=1e6)


class Policy(nn.Module):
    """Actor and critic read the state apart; the log of the deviation is a parameter of its own, the same in every state."""

    def __init__(self, options: Mlp, observations: int, actions: int) -> None:
        super().__init__()
        self.scale = options.scale
        self.actor = _tower(options, observations, actions, 0.01 * 2.0**0.5)
        self.critic = _tower(options, observations, 1, 2.0**0.5)
        self.log_std = nn.Parameter(torch.full((actions,), options.log_std))

    def mean(self, seen_nO: Tensor) -> Tensor:
        """The Gaussian's mean [n, D]."""
        found: Tensor = self.actor(seen_nO * self.scale)
        return found

    def value(self, seen_nO: Tensor) -> Tensor:
        """The state's value [n]."""
        found: Tensor = self.critic(seen_nO * self.scale)
        return found[:, 0]


def _tower(options: Mlp, inputs: int, outputs: int, last: float) -> nn.Sequential:
    """Layers with orthogonal weights (gain sqrt 2; `last` for the last one) and zero biases, tanh between them."""
    widths = [inputs, *[options.width] * options.depth]
    layers: list[nn.Module] = []
    for one, other in zip(widths, [*widths[1:], outputs]):
        layer = nn.Linear(one, other)
        nn.init.orthogonal_(layer.weight, last if len(layers) == 2 * options.depth else 2.0**0.5)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


@dataclass(frozen=True, eq=False)
class ControlModel:
    """A policy with what is needed to make it again."""

    module: Policy
    options: Mlp
    observations: int
    actions: int
    source: Mapping[str, Any]


def fresh_module(options: Mlp, observations: int, actions: int, dtype: torch.dtype, *key: Any) -> Policy:
    """A policy whose initial weights are a function of the key alone; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.bits("embodied-init", *key) >> 1))
        module = Policy(options, observations, actions)
    return module.to(dtype)


def make_model(
    text: str, *, observations: int, actions: int, seed: int, dtype: torch.dtype = torch.float32
) -> ControlModel:
    """The policy of a name, `mlp:width=256,depth=2` (fresh), or of a saved policy's or run's folder. Raises UserError for
    anything else, and for a saved policy of other sizes."""
    if Path(text).is_dir():
        return load_model(text, observations=observations, actions=actions, dtype=dtype)
    name, options = named(text, "model", {"mlp": Mlp})
    module = fresh_module(options, observations, actions, dtype, seed)
    return ControlModel(module, options, observations, actions, {"name": name, "options": plain_values(options)})


def save_model(model: ControlModel, folder: Path) -> None:
    """Write model.safetensors and config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().contiguous().clone() for name, tensor in model.module.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    write_config(model, folder)


def write_config(model: ControlModel, folder: Path) -> None:
    """Write config.json: what the weights are read with."""
    config = {
        "format": FORMAT, "model": "mlp", "options": plain_values(model.options), "observations": model.observations,
        "actions": model.actions,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def read_config(path: str, observations: int, actions: int, what: str = "model") -> tuple[Path, Mlp]:
    """The folder of a saved policy (itself, or a run's) and its options, without its weights. UserError where it is not one
    of ours, or reads or moves another number of things than the task has."""
    folder = Path(path) / "model" if (Path(path) / "model" / "config.json").is_file() else Path(path)
    try:
        config = read_object(folder / "config.json")
    except ValueError:
        raise UserError(f"{what} {path!r} is not a folder with config.json and model.safetensors") from None
    if config.get("format") != FORMAT or not isinstance(config.get("options"), dict):
        raise UserError(f"{what} {path!r} is not an embodied policy of ours")
    for key, wanted in (("actions", actions), ("observations", observations)):
        if config.get(key) != wanted:
            raise UserError(f"{what} {path!r} has {key} of {config.get(key)} numbers, the task has {wanted}")
    return folder, build(Mlp, config["options"])


def load_model(
    path: str, *, observations: int, actions: int, dtype: torch.dtype = torch.float32, what: str = "model"
) -> ControlModel:
    """A saved policy."""
    folder, options = read_config(path, observations, actions, what)
    try:
        state = read_tensors(folder / "model.safetensors")
    except ValueError:
        raise UserError(f"{what} {path!r}: model.safetensors is missing, cut short or corrupt") from None
    module = fresh_module(options, observations, actions, dtype, 0)
    if {name: t.shape for name, t in module.state_dict().items()} != {name: t.shape for name, t in state.items()}:
        raise UserError(f"{what} {path!r}: its weights are not those of its config.json")
    module.load_state_dict(state)
    source = {"name": "mlp", "folder": str(folder), "sha256": digest(folder / "model.safetensors")}
    return ControlModel(module, options, observations, actions, source)
