"""A table of predictions: one row a training image, filled as training goes on, part of the run's state."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from redistill.core.state import Piece


class PredictionTable:
    """Log-probs [N, V] of the last prediction for each training image; `seen_N` False where there is none yet.

    `epochs` is the length of the schedule that the owner runs by, kept so that a resumed run cannot change it unseen.
    """

    def __init__(self) -> None:
        self.logp_NV = torch.empty(0, 0)
        self.seen_N = torch.empty(0, dtype=torch.bool)
        self.epochs = 0

    def start(self, images: int, classes: int, epochs: int, dtype: torch.dtype = torch.float32) -> None:
        """An empty table for so many images and classes."""
        self.logp_NV = torch.zeros(images, classes, dtype=dtype)
        self.seen_N = torch.zeros(images, dtype=torch.bool)
        self.epochs = epochs

    def write(self, row_n: Tensor, logp_nV: Tensor) -> None:
        """Store predictions (detached); rows that are not finite keep what they had."""
        fine_n = ~logp_nV.isnan().any(-1)
        self.logp_NV[row_n[fine_n]] = logp_nV.detach()[fine_n].to(self.logp_NV.dtype)
        self.seen_N[row_n[fine_n]] = True

    def read(self, rows: Sequence[int]) -> list[Tensor | None]:
        """The stored log-probs [V] of some images, None where there are none."""
        return [self.logp_NV[row].clone() if bool(self.seen_N[row]) else None for row in rows]

    def state(self) -> Piece:
        """The whole table; nothing before it is started."""
        facts = {"epochs": self.epochs, "images": len(self.seen_N), "classes": self.logp_NV.shape[1]}
        return Piece({"logp": self.logp_NV, "seen": self.seen_N} if len(self.seen_N) else {}, facts)

    def restore(self, piece: Piece) -> None:
        """Become what `state` described."""
        facts = piece.facts
        self.start(facts["images"], facts["classes"], facts["epochs"])
        if facts["images"]:
            self.logp_NV, self.seen_N = piece.tensors["logp"].clone(), piece.tensors["seen"].clone()
