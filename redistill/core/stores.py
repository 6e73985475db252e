"""Stores: what one stage of a method makes and a later one reads. Registered as state by the method that owns it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from redistill.core import rng
from redistill.core.state import Piece

Record = Mapping[str, Any]
"""One thing kept: JSON values; a value whose name ends in `_ids` is a sequence of token ids."""


class Store:
    """Records in the order they came, drawn in epochs: every record once an epoch, in a keyed random order."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def __len__(self) -> int:
        return len(self.records)

    def add(self, record: Record) -> None:
        """Keep a record; its place is its index."""
        self.records.append(record)

    def keep(self, indices: Sequence[int]) -> None:
        """Keep only the records of these indices, in their order."""
        self.records = [self.records[i] for i in indices]

    def batch(self, number: int, size: int, seed: int) -> list[int]:
        """Indices of batch `number` (from 0) of `size` records; a pure function of these and of how many records there
        are. A batch at the end of an epoch goes on in the next one. Raises ValueError for an empty store."""
        if not self.records:
            raise ValueError("an empty store has no batch")
        found = []
        for position in range(number * size, (number + 1) * size):
            epoch, at = divmod(position, len(self.records))
            found.append(int(rng.permutation(len(self.records), "store", seed, epoch)[at]))
        return found

    def state(self) -> Piece:
        """All records; token ids as tensors."""
        facts = [{key: value for key, value in r.items() if not key.endswith("_ids")} for r in self.records]
        tensors = {
            f"{key}/{i}": torch.tensor(value, dtype=torch.int64)
            for i, r in enumerate(self.records) for key, value in r.items() if key.endswith("_ids")
        }  # fmt: skip
        return Piece(tensors, {"records": facts})

    def restore(self, piece: Piece) -> None:
        """Load what `state` returned."""
        self.records = [dict(facts) for facts in piece.facts["records"]]
        for name, value in piece.tensors.items():
            key, _, index = name.rpartition("/")
            self.records[int(index)][key] = tuple(value.tolist())  # type: ignore[index]
