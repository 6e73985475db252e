"""Small image classifiers in torch.nn: a three-convolution network and a pre-activation residual one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from redistill.core import rng
from redistill.core.files import read_object, read_tensors
from redistill.core.naming import named
from redistill.core.options import option, plain_values
from redistill.errors import UserError

NORMS = ("batch", "group", "none")


@dataclass(frozen=True)
class CnnOptions:
    """Options of `cnn`."""

    width: int = option(16, "channels of the first layer; the next have 2 and 4 times as many", low=4, high=4096)
    norm: str = option("batch", "normalisation; only batch norm couples the images of a batch", choices=NORMS)


@dataclass(frozen=True)
class ResnetOptions(CnnOptions):
    """Options of `resnet`."""

    blocks: int = option(1, "residual blocks in each of the three stages", low=1, high=256)


KINDS: dict[str, type[CnnOptions]] = {"cnn": CnnOptions, "resnet": ResnetOptions}


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(4 if channels % 4 == 0 else 1, channels) if kind == "group" else nn.Identity()


class Cnn(nn.Module):
    """conv-norm-relu three times (w, 2w, 4w channels), pooled by 2 after the second (and the first from 16 pixels on),
    then the mean over positions and a linear layer: images [B, S, S] -> logits [B, classes]."""

    def __init__(self, options: CnnOptions, side: int, classes: int) -> None:
        super().__init__()
        widths = [1, options.width, 2 * options.width, 4 * options.width]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(_norm(options.norm, channels) for channels in widths[1:])
        self.pooled = (0, 1) if side >= 16 else (1,)
        self.out = nn.Linear(widths[-1], classes)

    def forward(self, images_BSS: Tensor) -> Tensor:
        """Logits [B, classes]."""
        x = images_BSS[:, None]
        for layer, (conv, norm) in enumerate(zip(self.convs, self.norms)):
            x = F.relu(norm(conv(x)))
            if layer in self.pooled:
                x = F.max_pool2d(x, 2)
        logits: Tensor = self.out(x.mean((2, 3)))
        return logits


class Block(nn.Module):
    """Pre-activation residual block (He et al., arXiv 1603.05027)."""

    def __init__(self, norm: str, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(norm, before), _norm(norm, after)
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.skip = nn.Conv2d(before, after, 1, stride, bias=False) if before != after or stride != 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, before, S, S] -> [B, after, S / stride, S / stride]."""
        early = F.relu(self.norm1(x))
        straight = x if self.skip is None else self.skip(early)
        added: Tensor = straight + self.conv2(F.relu(self.norm2(self.conv1(early))))
        return added


class Resnet(nn.Module):
    """A convolution, three stages of pre-activation blocks (w, 2w, 4w channels; halved between; from 16 pixels on also
    before the first), norm, mean, linear: images [B, S, S] -> logits [B, classes]."""

    def __init__(self, options: ResnetOptions, side: int, classes: int) -> None:
        super().__init__()
        widths = [options.width, 2 * options.width, 4 * options.width]
        self.first = nn.Conv2d(1, widths[0], 3, 2 if side >= 16 else 1, padding=1, bias=False)
        blocks, before = [], widths[0]
        for stage, width in enumerate(widths):
            for number in range(options.blocks):
                blocks.append(Block(options.norm, before, width, 2 if stage and not number else 1))
                before = width
        self.blocks = nn.Sequential(*blocks)
        self.norm, self.out = _norm(options.norm, before), nn.Linear(before, classes)

    def forward(self, images_BSS: Tensor) -> Tensor:
        """Logits [B, classes]."""
        logits: Tensor = self.out(F.relu(self.norm(self.blocks(self.first(images_BSS[:, None])))).mean((2, 3)))
        return logits


@dataclass(frozen=True, eq=False)
class ImageModel:
    """A classifier with what is needed to make it again."""

    module: nn.Module
    kind: str
    options: CnnOptions
    side: int
    classes: int
    source: Mapping[str, Any]

    @property
    def couples(self) -> bool:
        """Whether the images of a batch act on each other's logits in training (batch norm)."""
        return self.options.norm == "batch"


def fresh_module(kind: str, options: CnnOptions, side: int, classes: int, dtype: torch.dtype, *key: Any) -> nn.Module:
    """A module whose initial weights are a function of the key alone; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.bits("vision-init", *key) >> 1))
        module = Resnet(options, side, classes) if isinstance(options, ResnetOptions) else Cnn(options, side, classes)
    return module.to(dtype)


def make_model(text: str, *, side: int, classes: int, seed: int, dtype: torch.dtype = torch.float32) -> ImageModel:
    """A fresh model by name (`cnn:width=16,norm=group`), or a saved one by its folder (or its run's)."""
    if Path(text).is_dir():
        return load_model(text, side=side, classes=classes, dtype=dtype)
    kind, options = named(text, "vision model", KINDS)
    module = fresh_module(kind, options, side, classes, dtype, seed)
    return ImageModel(module, kind, options, side, classes, {"name": kind, "options": plain_values(options)})


def save_model(model: ImageModel, folder: Path) -> None:
    """Write model.safetensors (weights and buffers) and config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().contiguous().clone() for name, tensor in model.module.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    write_config(model, folder)


def write_config(model: ImageModel, folder: Path) -> None:
    """Write config.json: what the weights are read with."""
    config = {"format": "redistill-vision", "model": model.kind, "options": plain_values(model.options)}
    (folder / "config.json").write_text(
        json.dumps({**config, "side": model.side, "classes": model.classes}, indent=1) + "\n"
    )


def load_model(path: str, *, side: int, classes: int, dtype: torch.dtype = torch.float32) -> ImageModel:
    """A saved model for images of a side and a number of classes; a UserError where the folder does not hold one."""
    folder = Path(path) / "model" if (Path(path) / "model" / "model.safetensors").is_file() else Path(path)
    try:
        config, state = read_object(folder / "config.json"), read_tensors(folder / "model.safetensors")
    except ValueError:
        raise UserError(f"model {path!r} is not a folder with config.json and model.safetensors") from None
    if config.get("format") != "redistill-vision" or not isinstance(config.get("options"), dict):
        raise UserError(f"model {path!r} is not a vision model of ours")
    if (config.get("side"), config.get("classes")) != (side, classes):
        raise UserError(
            f"model {path!r} reads {config.get('side')}x{config.get('side')} images of {config.get('classes')} classes, "
            f"the task has {side}x{side} images of {classes} classes"
        )
    given = ",".join(f"{key}={value}" for key, value in config["options"].items())
    kind, options = named(f"{config.get('model')}:{given}", "vision model", KINDS)
    module = fresh_module(kind, options, side, classes, dtype, 0)
    if {name: t.shape for name, t in module.state_dict().items()} != {name: t.shape for name, t in state.items()}:
        raise UserError(f"model {path!r}: its weights are not those of {kind}:{given}")
    module.load_state_dict(state)
    return ImageModel(module, kind, options, side, classes, {"name": kind, "folder": str(folder)})
