"""Sample grids as PNG: a row for each class."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from redistill.generation.tasks import CLASSES


def tiled(bytes_nSS: Tensor, labels: list[int], across: int, gap: int = 1) -> Tensor:
    """The first `across` images of each class side by side, uint8 [height, width]; `gap` pixels of grey between."""
    side = bytes_nSS.shape[-1]
    sheet = torch.full((CLASSES * (side + gap) - gap, across * (side + gap) - gap), 96, dtype=torch.uint8)
    for label in range(CLASSES):
        own = [image for image, of in zip(bytes_nSS, labels) if of == label][:across]
        for column, image in enumerate(own):
            top, left = label * (side + gap), column * (side + gap)
            sheet[top : top + side, left : left + side] = image
    return sheet


def write_grid(path: Path, sheet: Tensor, zoom: int = 6) -> None:
    """Write a grey image, each pixel `zoom` pixels wide."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.image import imsave

    large = sheet.repeat_interleave(zoom, 0).repeat_interleave(zoom, 1)
    imsave(path, large.numpy(), cmap="gray", vmin=0, vmax=255)
