"""Forward passes for sampling through transformers' own modules: any causal model whose layers attend in full or in
sliding windows. The same two calls as decoder.Decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from redistill.text.cache import SlotCache, attention_windows

if TYPE_CHECKING:
    from redistill.text.models import LanguageModel

__all__ = ["Modules"]


class Modules:
    """A model's own forward passes over prompts and over single tokens."""

    def __init__(self, lm: LanguageModel) -> None:
        self.lm, self.head, self.device = lm, lm.head(), lm.device
        self.windows = attention_windows(lm.causal.config)

    def reach(self, positions: int) -> None:
        """Nothing to prepare."""

    def cache(self, slots: int) -> SlotCache:
        """An empty cache of the kind that `step` reads."""
        return SlotCache(slots)

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Logits [N, V] of hidden states."""
        return self.head.logits(hidden_ND)

    def prefill(self, ids_PL: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Read right-padded prompts: keys and values [P, heads, L, width] by layer, and hidden states [P, L, D]."""
        places_PL = torch.arange(ids_PL.shape[1], device=self.device).expand(len(ids_PL), -1)
        cache = DynamicCache()
        output = self.lm.hidden(ids_PL, None, places_PL, cache, True)
        return [(layer.keys, layer.values) for layer in cache.layers], output.last_hidden_state

    def step(self, ids_N: Tensor, column_N: Tensor, cache: Any) -> Tensor:
        """Logits [N, V] after one more token a row, whose key and value go to the row's column of the cache."""
        output = self.lm.hidden(ids_N[:, None], self._mask(cache), column_N[:, None], cache, True)
        return self.logits(output.last_hidden_state[:, -1])

    def _mask(self, cache: SlotCache) -> Any:
        """What each row sees, as an additive mask [N, 1, 1, columns]: its columns up to its own position, no
        further back than a layer's window. A dict by layer type when layers differ, as transformers takes it."""
        column_S = torch.arange(cache.seen, device=self.device)
        masks = {}
        for kind, window in self.windows.items():
            hidden_NS = column_S > cache.columns[:, None]
            if window is not None and window < cache.seen:
                hidden_NS |= column_S <= cache.columns[:, None] - window
            mask_NS = torch.zeros(hidden_NS.shape, dtype=self.lm.dtype, device=self.device)
            masks[kind] = mask_NS.masked_fill_(hidden_NS, torch.finfo(self.lm.dtype).min)[:, None, None]
        return masks if len(masks) > 1 else masks.popitem()[1]
