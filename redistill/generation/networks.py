"""A small diffusion transformer and a small image classifier, in torch.nn.

Suffixes: B images, S pixels of a side, T patches, D width, C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redistill.core.options import option

TIME_FREQUENCIES = 16


@dataclass(frozen=True)
class DitOptions:
    """Options of `dit`."""

    side: int = option(8, "pixels of a side", low=2, high=1024)
    patch: int = option(2, "pixels of a patch's side; must divide the side", low=1, high=1024)
    width: int = option(64, "width; must be a multiple of the heads", low=4, high=4096)
    depth: int = option(3, "blocks", low=1, high=256)
    heads: int = option(4, "attention heads", low=1, high=256)
    classes: int = option(10, "classes; one more label stands for no class", low=1, high=100_000)


class Block(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition (adaLN, arXiv 2212.09748)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x_BTD: Tensor, condition_BD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition_BD)[:, None].chunk(6, dim=-1)
        h = F.layer_norm(x_BTD, x_BTD.shape[-1:]) * (1 + scale1) + shift1
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x_BTD = x_BTD + gate1 * self.out(mixed)
        h = F.layer_norm(x_BTD, x_BTD.shape[-1:]) * (1 + scale2) + shift2
        changed: Tensor = x_BTD + gate2 * self.down(F.gelu(self.up(h)))
        return changed


class Dit(nn.Module):
    """Velocity of a flow: (x_t [B, S, S], t [B] in [0, 1] with 1 noise, label [B]) -> v [B, S, S]. The label `classes`
    stands for no class (the unconditional half of classifier-free guidance)."""

    def __init__(self, options: DitOptions) -> None:
        super().__init__()
        width, patch = options.width, options.patch
        self.patch = patch
        self.embed = nn.Linear(patch * patch, width)
        self.position_TD = nn.Parameter(0.02 * torch.randn((options.side // patch) ** 2, width))
        self.time1, self.time2 = nn.Linear(2 * TIME_FREQUENCIES, width), nn.Linear(width, width)
        self.label = nn.Embedding(options.classes + 1, width)
        self.blocks = nn.ModuleList(Block(width, options.heads) for _ in range(options.depth))
        self.modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, patch * patch)

    def forward(self, x_BSS: Tensor, t_B: Tensor, label_B: Tensor) -> Tensor:
        """The velocity [B, S, S]."""
        side, p = x_BSS.shape[-1], self.patch
        n = side // p
        patches = x_BSS.unflatten(2, (n, p)).unflatten(1, (n, p)).transpose(2, 3).flatten(3).flatten(1, 2)
        h = self.embed(patches) + self.position_TD
        condition_BD = F.silu(self.time2(F.silu(self.time1(time_features(t_B)))) + self.label(label_B))
        for block in self.blocks:
            h = block(h, condition_BD)
        shift, scale = self.modulation(condition_BD)[:, None].chunk(2, dim=-1)
        v = self.head(F.layer_norm(h, h.shape[-1:]) * (1 + scale) + shift)
        velocity: Tensor = v.unflatten(1, (n, n)).unflatten(3, (p, p)).transpose(2, 3).flatten(3).flatten(1, 2)
        return velocity


def time_features(t_B: Tensor) -> Tensor:
    """Sines and cosines of a time in [0, 1], [B, 2 * TIME_FREQUENCIES], with periods from 2 pi down to 2 pi / 100."""
    at = torch.arange(TIME_FREQUENCIES, dtype=t_B.dtype) / (TIME_FREQUENCIES - 1)
    angle = t_B[:, None] * torch.exp(at * math.log(100.0))
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class Judge(nn.Module):
    """A digit classifier: two convolutions, a hidden layer of features [B, F] and logits [B, C]."""

    def __init__(self, side: int, classes: int, width: int, features: int, activation: str) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 2 * width, 3, padding=1)
        self.hidden = nn.Linear(2 * width * (side // 2) ** 2, features)
        self.out = nn.Linear(features, classes)
        self.act = F.relu if activation == "relu" else F.silu

    def features(self, images_BSS: Tensor) -> Tensor:
        """Hidden features [B, F] of images in [0, 1]."""
        h = self.act(self.conv1(images_BSS[:, None]))
        h = F.max_pool2d(self.act(self.conv2(h)), 2)
        return self.act(self.hidden(h.flatten(1)))

    def forward(self, images_BSS: Tensor) -> Tensor:
        """Logits [B, C] of images in [0, 1]."""
        logits: Tensor = self.out(self.features(images_BSS))
        return logits
