"""Slots of keys and values: each episode under way owns a row in which column j holds position j.

The lean decoder writes its columns itself (decoder.py); for transformers' modules a slot cache is a transformers cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from redistill.errors import UserError

__all__ = ["SharedCache", "SharedSlots", "SlotCache", "attention_windows"]


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

    def get_max_cache_shape(self) -> int:  # its name in transformers 5.0
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

    def layer(self, i: int) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values of a layer, and the rows' newest columns."""
        return self.layers[i].keys, self.layers[i].values, self.columns

    def start(
        self, read: Sequence[tuple[Tensor, Tensor]], sources: np.ndarray, lengths: np.ndarray, first: int, more: int
    ) -> None:
        """Copy prompt `sources[i]` of keys and values by layer [P, heads, L, width], `lengths[i]` columns of it, to slot
        `first + i`, and make room for `more` columns after it."""
        columns = int(lengths.max()) + more
        self.layers = self.layers or [_SlotLayer(self) for _ in read]
        self.reserve(read, columns, columns)
        index = torch.from_numpy(sources).to(read[0][0].device)
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


@dataclass(frozen=True)
class SharedSlots:
    """What a step needs of one layer: the rows' own columns [slots, heads, columns, width], the addresses of their prompts'
    keys and values, and by row the prompt's length, the distance between its heads, and the newest column."""

    keys: Tensor
    values: Tensor
    prompts_N2: Tensor
    rows_3N: Tensor


class SharedCache:
    """Slots that hold the responses only: the columns of a prompt stay where they were read, once for its whole group.

    For the compiled kernels, which follow addresses. The same calls as SlotCache.
    """

    def __init__(self, slots: int) -> None:
        self.slots, self.width, self.count = slots, 0, 0
        self.own: list[tuple[Tensor, Tensor]] = []
        self.stores: dict[int, Sequence[tuple[Tensor, Tensor]]] = {}
        self.made = 0
        # By slot: the store, which prompt of it, the prompt's length.
        self.store_S, self.prompt_S, self.length_S = (np.zeros(slots, dtype=np.int64) for _ in range(3))
        self.prompts_LN2 = torch.empty(0)
        self.rows_3N = torch.empty(0)

    def start(
        self, read: Sequence[tuple[Tensor, Tensor]], sources: np.ndarray, lengths: np.ndarray, first: int, more: int
    ) -> None:
        """Give slot `first + i` prompt `sources[i]` of keys and values by layer [P, heads, L, width], `lengths[i]` columns
        of it, and make room for `more` columns after it."""
        last = first + len(sources)
        self.made += 1
        used = set(self.store_S[:first].tolist())
        self.stores = {key: store for key, store in self.stores.items() if key in used} | {self.made: read}
        self.store_S[first:last], self.prompt_S[first:last], self.length_S[first:last] = self.made, sources, lengths
        self.count = 0
        self._reserve(read, more, more)

    def _reserve(self, like: Sequence[tuple[Tensor, Tensor]], needed: int, wanted: int) -> None:
        if needed <= self.width:
            return
        self.width = max(needed, wanted)
        wider = []
        for i, (keys, _) in enumerate(like):
            shape = (self.slots, keys.shape[1], self.width, keys.shape[3])
            both = keys.new_empty(shape), keys.new_empty(shape)
            for new, old in zip(both, self.own[i] if self.own else ()):
                new[:, :, : old.shape[2]] = old
            wider.append(both)
        self.own = wider

    def point(self, columns: Tensor, seen: int) -> None:
        """Set where the next step writes: the position of each row's newest token, [N]."""
        rows = len(columns)
        if rows != self.count:
            self._address(rows)
        self.rows_3N[2] = columns
        # Growing by halves copies rarely, and never reserves a long response that does not come.
        self._reserve(self.own, int((columns - self.rows_3N[0]).max()) + 1, self.width * 3 // 2)

    def _address(self, rows: int) -> None:
        """Look up where the prompts of the first rows are, for every layer."""
        self.count = rows
        store_N = self.store_S[:rows].tolist()
        heads, size = self.own[0][0].shape[1], self.own[0][0].element_size()
        strides = {key: store[0][0].shape[2] * store[0][0].shape[3] for key, store in self.stores.items()}
        starts = {
            key: np.array([[at.data_ptr() for at in both] for both in store], dtype=np.int64)
            for key, store in self.stores.items()
        }
        stride_N = np.array([strides[key] for key in store_N], dtype=np.int64)
        offset_N = self.prompt_S[:rows] * stride_N * heads * size
        base_LN2 = np.stack([starts[key] for key in store_N], axis=1)
        self.prompts_LN2 = torch.from_numpy(base_LN2 + offset_N[:, None])
        self.rows_3N = torch.from_numpy(np.stack([self.length_S[:rows], stride_N, np.zeros(rows, dtype=np.int64)]))

    def layer(self, i: int) -> SharedSlots:
        """What a step needs of a layer."""
        return SharedSlots(*self.own[i], self.prompts_LN2[i], self.rows_3N)

    def move(self, sources: list[int], targets: list[int]) -> None:
        """Move rows `sources` to the free slots `targets`."""
        for keys, values in self.own:
            keys[targets] = keys[sources]
            values[targets] = values[sources]
        for part in (self.store_S, self.prompt_S, self.length_S):
            part[targets] = part[sources]
        self.count = 0


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
