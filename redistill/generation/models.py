"""Flow models and judges: made by name, loaded from and saved to folders of safetensors and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from redistill.core import rng
from redistill.core.files import read_object, read_tensors
from redistill.core.options import build, options_of, plain_values
from redistill.errors import UserError, nearest
from redistill.generation.networks import Dit, DitOptions, Judge

ASSETS = Path(__file__).parent.parent / "assets" / "flow-digits"
"""What scripts/train_flow_digits.py wrote: a flow model of digits, two judges and statistics of real digits."""
FORMAT = "redistill-generation"
NAMES = ("flow-digits", "dit")


@dataclass(frozen=True, eq=False)
class FlowModel:
    """A velocity network with what is needed to make it again."""

    module: nn.Module
    options: DitOptions
    source: Mapping[str, Any]

    @property
    def no_class(self) -> int:
        """The label that stands for no class."""
        return self.options.classes


def fresh_module(options: DitOptions, dtype: torch.dtype, *key: Any) -> Dit:
    """A network whose initial weights are a function of the key alone; torch's global generator is left as it was."""
    if options.side % options.patch or options.width % options.heads:
        raise UserError(
            f"model dit: patch={options.patch} must divide side={options.side}, and heads={options.heads} must divide "
            f"width={options.width}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.bits("generation-init", *key) >> 1))
        module = Dit(options)
    return module.to(dtype)


def make_model(text: str, *, seed: int, dtype: torch.dtype = torch.float32) -> FlowModel:
    """The model of a name: `flow-digits` (pretrained, ships with the package), `dit:width=64,depth=3` (fresh) or the
    folder of a saved model or run. Raises UserError for anything else."""
    if Path(text).is_dir():
        return load_model(text, dtype=dtype)
    name, _, rest = text.partition(":")
    if name == "flow-digits" and not rest:
        return load_model(str(ASSETS), dtype=dtype)
    if name != "dit":
        raise UserError(f"model {text!r} is neither a known name nor a folder{nearest(name, NAMES)}")
    given: dict[str, str] = {}
    for part in (piece for piece in rest.split(",") if piece.strip()):
        key, equals, value = part.partition("=")
        if not equals or key.strip() in given:
            raise UserError(f"model {text!r}: option {part.strip()!r} is not one key=value")
        if key.strip() not in options_of(DitOptions):
            raise UserError(f"model dit has no option {key.strip()!r}{nearest(key.strip(), options_of(DitOptions))}")
        given[key.strip()] = value.strip()
    options = build(DitOptions, given)
    return FlowModel(fresh_module(options, dtype, seed), options, {"name": name, "options": plain_values(options)})


def save_model(model: FlowModel, folder: Path) -> None:
    """Write model.safetensors and config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().contiguous().clone() for name, tensor in model.module.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    write_config(model, folder)


def write_config(model: FlowModel, folder: Path) -> None:
    """Write config.json: what the weights are read with."""
    config = {"format": FORMAT, "model": "dit", "options": plain_values(model.options)}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def load_model(path: str, *, dtype: torch.dtype = torch.float32) -> FlowModel:
    """A saved model (of a folder, or of a run's); a UserError where the folder does not hold one of ours."""
    folder = Path(path) / "model" if (Path(path) / "model" / "model.safetensors").is_file() else Path(path)
    try:
        config, state = read_object(folder / "config.json"), read_tensors(folder / "model.safetensors")
    except ValueError:
        raise UserError(f"model {path!r} is not a folder with config.json and model.safetensors") from None
    if config.get("format") != FORMAT or not isinstance(config.get("options"), dict):
        raise UserError(f"model {path!r} is not a generation model of ours")
    options = build(DitOptions, config["options"])
    module = fresh_module(options, dtype, 0)
    if {name: t.shape for name, t in module.state_dict().items()} != {name: t.shape for name, t in state.items()}:
        raise UserError(f"model {path!r}: its weights are not those of its config.json")
    module.load_state_dict(state)
    return FlowModel(module, options, {"name": "dit", "folder": str(folder)})


JUDGES: Mapping[str, Mapping[str, Any]] = {
    "train": {"width": 12, "features": 48, "activation": "relu"},
    "held_out": {"width": 16, "features": 64, "activation": "silu"},
}
"""The classifier whose opinion is the reward, and one of another shape that saw other images, for evaluation only."""


@cache
def judge(name: str) -> Judge:
    """A frozen digit classifier of the assets, "train" or "held_out", float32."""
    with torch.random.fork_rng(devices=[]):  # a fresh module draws from the global generator
        module = Judge(8, 10, **JUDGES[name])
    module.load_state_dict(load_file(ASSETS / f"judge-{name}.safetensors"))
    return module.eval().requires_grad_(False)


@cache
def real_digits() -> Mapping[str, Tensor]:
    """Of real digits that no network here was trained on: `images` [N, 8, 8] in [0, 1] and `labels` [N]; and of their
    features under the held-out judge, `mean` [F] and `covariance` [F, F], float64."""
    return load_file(ASSETS / "real.safetensors")
