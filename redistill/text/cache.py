"""Slots of keys and values: each episode under way owns a row in which column j holds position j.

The lean decoder writes its columns itself (decoder.py); for transformers' modules a slot cache is a transformers cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from redistill.errors import UserError

__all__ = ["SlotCache", "attention_windows"]


class _SlotLayer(CacheLayerMixin):
    """Keys and values [slots, heads, columns, head_dim] of one layer; new ones go to each row's own column."""

    keys: Any
    values: Any

    def __init__(self, cache: SlotCache) -> None:
        super().__init__()
        self.cache = cache

    def reserve(self, like: Tensor, like_values: Tensor, slots: int, columns: int) -> None:
        """Grow to at least `columns`. Zeros, not garbage: a masked NaN would still poison the attention's sum."""
        keys = like.new_zeros(slots, like.shape[1], columns, like.shape[3])
        values = like_values.new_zeros(slots, like_values.shape[1], columns, like_values.shape[3])
        if self.keys is not None:
            keys[:, :, : self.keys.shape[2]] = self.keys
            values[:, :, : self.values.shape[2]] = self.values
        self.keys, self.values, self.is_initialized = keys, values, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Write one new column a row and return the columns that any row still sees."""
        count, heads, _, width = key_states.shape
        place = self.cache.place(heads)
        # One flat row copy; indexing [rows, :, columns] does the same and took three times as long.
        self.keys.view(-1, width).index_copy_(0, place, key_states.reshape(-1, width).to(self.keys.dtype))
        width = value_states.shape[3]
        self.values.view(-1, width).index_copy_(0, place, value_states.reshape(-1, width).to(self.values.dtype))
        seen = self.cache.seen
        return self.keys[:count, :, :seen], self.values[:count, :, :seen]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise RuntimeError("slots are reserved before they are used")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.seen, 0

    def get_seq_length(self) -> int:
        return self.cache.seen - 1

    def get_max_length(self) -> int:
        return -1


class SlotCache(Cache):
    """The slots of all layers, and where the current step writes (`columns`, one a row) and reads (`seen` columns)."""

    layers: list[Any]

    def __init__(self, slots: int) -> None:
        super().__init__(layers=[])
        self.slots, self.width, self.seen = slots, 0, 0
        self.columns = torch.empty(0, dtype=torch.long)
        self.places: dict[int, Tensor] = {}

    def point(self, columns: Tensor, seen: int) -> None:
        """Set where the next step writes (columns [N]) and how many columns it reads; widen the slots for it."""
        self.columns, self.seen = columns, seen
        self.places.clear()
        # Growing by halves copies rarely, and never reserves a long response that does not come.
        self.reserve([(layer.keys, layer.values) for layer in self.layers], seen, self.width * 3 // 2)

    def place(self, heads: int) -> Tensor:
        """Where the new columns are in a layer of so many heads, seen as one list of vectors; [N * heads]."""
        if heads not in self.places:
            line = torch.arange(len(self.columns) * heads, device=self.columns.device) * self.width
            self.places[heads] = line + self.columns.repeat_interleave(heads)
        return self.places[heads]

    def start(self, read: Sequence[tuple[Tensor, Tensor]], sources: list[int], first: int, columns: int) -> None:
        """Copy prompt `sources[i]` of keys and values by layer [P, heads, L, width] to slot `first + i`; `columns` is how
        many columns to make room for at least."""
        self.layers = self.layers or [_SlotLayer(self) for _ in read]
        self.reserve(read, columns, columns)
        index = torch.tensor(sources, device=read[0][0].device)
        for layer, (keys, values) in zip(self.layers, read, strict=True):
            width = min(keys.shape[2], self.width)
            layer.keys[first : first + len(sources), :, :width] = keys[index, :, :width]
            layer.values[first : first + len(sources), :, :width] = values[index, :, :width]

    def reserve(self, like: Sequence[tuple[Tensor, Tensor]], needed: int, wanted: int) -> None:
        """Make the slots `wanted` columns wide if they are narrower than `needed`."""
        if needed > self.width:
            self.width = max(needed, wanted)
            for layer, (keys, values) in zip(self.layers, like, strict=True):
                layer.reserve(keys, values, self.slots, self.width)

    def move(self, sources: list[int], targets: list[int]) -> None:
        """Move rows `sources` to the free slots `targets`."""
        for layer in self.layers:
            layer.keys[targets] = layer.keys[sources]
            layer.values[targets] = layer.values[sources]


def attention_windows(config: Any) -> dict[str, int | None]:
    """How far back the layers of each type see (None: everything), from a model's config."""
    config = config.get_text_config()
    attention = getattr(config, "_attn_implementation", "sdpa")
    if attention not in ("sdpa", "eager"):
        raise UserError(f"attention {attention!r} cannot be sampled in this process; the choices are eager, sdpa")
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    kinds = set(getattr(config, "layer_types", None) or ["full_attention" if window is None else "sliding_attention"])
    unknown = kinds - {"full_attention", "sliding_attention"}
    if unknown:
        raise UserError(f"model type {config.model_type!r} has {unknown.pop()} layers, which the sampler cannot run")
    return {kind: window if kind == "sliding_attention" else None for kind in sorted(kinds)}
