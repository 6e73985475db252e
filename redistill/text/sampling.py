"""The embedded sampler: episodes from a causal language model in this process, with exact log-probs and keyed draws.

A prompt is read once and its keys and values are copied to every episode of its group. Each episode owns a slot (a row)
of a preallocated cache in which column j holds position j, so there is no left padding and no mask by token id: a row
sees its columns up to its own position, nothing else. Rows that finish hand their slot on at once, so rows of any
length decode side by side. Each token takes one uniform, keyed by (prompt key, sample, position), through the inverse
of the distribution function in vocabulary order (law 10): neither order nor batch size changes a draw.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from redistill.core import rng
from redistill.errors import UserError
from redistill.text.truncation import Sampling, draw

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redistill.text.models import LanguageModel

__all__ = ["Sampled", "Sampling", "sample"]

_PREFILL_TOKENS = 8192
"""Prompt tokens (padding included) that one prefill pass may hold, unless a single prompt is longer."""
_FIRST_COLUMNS = 128
"""Columns that a slot has at first for the response; long responses get more as they grow."""


@dataclass(frozen=True)
class Sampled:
    """One response. `ids` holds the EOS that ended it, when one did, and the tokens that complete a stop string."""

    ids: tuple[int, ...]
    logp_T: torch.Tensor
    """float32 [T]: log-prob of each token under the sampling spec (tempered, truncated, renormalised on the support).
    A greedy response records the log-prob at temperature 1 without truncation."""
    finish: str
    """"stop" (EOS or a stop string) or "length"."""
    text: str
    """`ids` without the closing EOS, decoded without special tokens; a stop string stays in it."""


@dataclass
class _Episode:
    """An episode under way. `column` is the position of its last token, which is also its cache column."""

    prompt: int
    number: int
    column: int
    uniforms: np.ndarray
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    finish: str = ""


@dataclass
class _Prefilled:
    """Prompts that were read: keys and values by layer, next-token logits, and the (row, episode) still to start."""

    layers: list[tuple[torch.Tensor, torch.Tensor]]
    logits_PV: torch.Tensor
    waiting: deque[tuple[int, _Episode]]


class _SlotLayer(CacheLayerMixin):
    """Keys and values [slots, heads, columns, head_dim] of one layer; new ones go to each row's own column."""

    keys: Any
    values: Any

    def __init__(self, cache: _SlotCache) -> None:
        super().__init__()
        self.cache = cache

    def reserve(self, like: torch.Tensor, like_values: torch.Tensor, slots: int, columns: int) -> None:
        """Grow to at least `columns`. Zeros, not garbage: a masked NaN would still poison the attention's sum."""
        keys = like.new_zeros(slots, like.shape[1], columns, like.shape[3])
        values = like_values.new_zeros(slots, like_values.shape[1], columns, like_values.shape[3])
        if self.keys is not None:
            keys[:, :, : self.keys.shape[2]] = self.keys
            values[:, :, : self.values.shape[2]] = self.values
        self.keys, self.values, self.is_initialized = keys, values, True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Write one new column a row and return the columns that any row still sees."""
        count, heads, _, width = key_states.shape
        place = self.cache.place(heads)
        # One flat row copy; indexing [rows, :, columns] does the same and took three times as long.
        self.keys.view(-1, width).index_copy_(0, place, key_states.reshape(-1, width).to(self.keys.dtype))
        width = value_states.shape[3]
        self.values.view(-1, width).index_copy_(0, place, value_states.reshape(-1, width).to(self.values.dtype))
        seen = self.cache.seen
        return self.keys[:count, :, :seen], self.values[:count, :, :seen]

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        raise RuntimeError("slots are reserved before they are used")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.seen, 0

    def get_seq_length(self) -> int:
        return self.cache.seen - 1

    def get_max_length(self) -> int:
        return -1


class _SlotCache(Cache):
    """The slots of all layers, and where the current step writes (`columns`, one a row) and reads (`seen` columns)."""

    layers: list[Any]

    def __init__(self, slots: int) -> None:
        super().__init__(layers=[])
        self.slots, self.width, self.seen = slots, 0, 0
        self.columns = torch.empty(0, dtype=torch.long)
        self.places: dict[int, torch.Tensor] = {}

    def point(self, columns: torch.Tensor, seen: int) -> None:
        """Set where the next step writes (columns [N]) and how many columns it reads; widen the slots for it."""
        self.columns, self.seen = columns, seen
        self.places.clear()
        # Growing by halves copies rarely, and never reserves a long response that does not come.
        self.reserve([(layer.keys, layer.values) for layer in self.layers], seen, self.width * 3 // 2)

    def place(self, heads: int) -> torch.Tensor:
        """Where the new columns are in a layer of so many heads, seen as one list of vectors; [N * heads]."""
        if heads not in self.places:
            line = torch.arange(len(self.columns) * heads, device=self.columns.device) * self.width
            self.places[heads] = line + self.columns.repeat_interleave(heads)
        return self.places[heads]

    def start(self, prefilled: _Prefilled, sources: list[int], first: int, columns: int) -> None:
        """Copy prompt `sources[i]` to slot `first + i`; `columns` is how many columns to make room for at least."""
        self.layers = self.layers or [_SlotLayer(self) for _ in prefilled.layers]
        self.reserve(prefilled.layers, columns, columns)
        index = torch.tensor(sources, device=prefilled.logits_PV.device)
        for layer, (keys, values) in zip(self.layers, prefilled.layers, strict=True):
            width = min(keys.shape[2], self.width)
            layer.keys[first : first + len(sources), :, :width] = keys[index, :, :width]
            layer.values[first : first + len(sources), :, :width] = values[index, :, :width]

    def reserve(self, like: Sequence[tuple[torch.Tensor, torch.Tensor]], needed: int, wanted: int) -> None:
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


class _Run:
    """One call of `sample`: the queue of prompts, the rows that decode, and what has finished."""

    def __init__(
        self, lm: LanguageModel, prompts: Sequence[Sequence[int]], group_size: int, sampling: Sampling, max_batch: int
    ) -> None:
        self.lm, self.prompts, self.group_size, self.sampling, self.max_batch = (
            lm,
            prompts,
            group_size,
            sampling,
            max_batch,
        )
        self.head = lm.head()
        self.device = self.head.weight_VD.device
        self.eos = frozenset(lm.eos_ids)
        self.queue: deque[list[_Episode]] = deque()
        self.ready: _Prefilled | None = None
        self.rows: list[_Episode] = []
        self.done: list[_Episode] = []
        self.cache = _SlotCache(max_batch)
        self.windows = attention_windows(lm.causal.config)

    def prefill(self, wanted: int) -> None:
        """Read the next prompts, enough for `wanted` episodes, in one right-padded pass (causality hides the pads)."""
        groups: list[list[_Episode]] = []
        width = 0
        while self.queue and len(groups) * self.group_size < wanted:
            width = max(width, len(self.prompts[self.queue[0][0].prompt]))
            if groups and width * (len(groups) + 1) > _PREFILL_TOKENS:
                break
            groups.append(self.queue.popleft())
        texts = [list(self.prompts[group[0].prompt]) for group in groups]
        ids_PL = torch.tensor([text + [0] * (width - len(text)) for text in texts], device=self.device)
        places_PL = torch.arange(width, device=self.device).expand(len(texts), -1)
        cache = DynamicCache()
        output = self.lm.hidden(ids_PL, None, places_PL, cache, True)
        last_P = torch.tensor([len(text) - 1 for text in texts], device=self.device)
        logits_PV = self.head.logits(output.last_hidden_state[torch.arange(len(texts), device=self.device), last_P])
        waiting = deque((row, episode) for row, group in enumerate(groups) for episode in group)
        self.ready = _Prefilled([(layer.keys, layer.values) for layer in cache.layers], logits_PV, waiting)

    def admit(self) -> None:
        """Start episodes in the free slots. Those that end with their first token never take a slot."""
        free = self.max_batch - len(self.rows)
        if self.ready is None:
            self.prefill(free)
        assert self.ready is not None
        ready = self.ready
        started = [ready.waiting.popleft() for _ in range(min(free, len(ready.waiting)))]
        if not ready.waiting:
            self.ready = None
        index = torch.tensor([row for row, _ in started], device=self.device)
        fresh = [episode for _, episode in started]
        self.take(fresh, ready.logits_PV[index])
        going = [(row, episode) for row, episode in started if not episode.finish]
        self.done.extend(episode for episode in fresh if episode.finish)
        if going:
            columns = max(episode.column for _, episode in going) + min(self.sampling.max_new_tokens, _FIRST_COLUMNS)
            self.cache.start(ready, [row for row, _ in going], len(self.rows), columns)
            self.rows.extend(episode for _, episode in going)

    def take(self, episodes: list[_Episode], logits_NV: torch.Tensor) -> None:
        """Draw the next token of each episode and mark those that it finishes."""
        uniforms_N = np.array([episode.uniforms[len(episode.ids)] for episode in episodes])
        ids_N, logp_N = draw(logits_NV, uniforms_N, self.sampling)
        for episode, token, logp in zip(episodes, ids_N.tolist(), logp_N.tolist(), strict=True):
            episode.ids.append(token)
            episode.logps.append(logp)
            episode.column += 1
            if token in self.eos:
                episode.finish = "stop"
            elif len(episode.ids) == self.sampling.max_new_tokens:
                episode.finish = "length"
        if self.sampling.stop:
            self.check_stop([episode for episode in episodes if episode.finish != "stop"])

    def check_stop(self, episodes: list[_Episode]) -> None:
        """Finish the episodes whose newest token completes a stop string. A token has one byte or more, so a tail of as
        many tokens as the longest stop string has bytes is enough (and a few, for a byte sequence that starts cut)."""
        reach = max(len(text.encode()) for text in self.sampling.stop) + 4
        for episode in episodes:
            tail = self.lm.tokenizer.decode(
                episode.ids[-reach:], skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
            if any(text in tail for text in self.sampling.stop):
                episode.finish = "stop"

    def step(self) -> None:
        """Feed the newest token of every row and draw the next one; finished rows leave at once."""
        columns = [episode.column for episode in self.rows]
        cache = self.cache
        cache.point(torch.tensor(columns, device=self.device), max(columns) + 1)
        ids_N1 = torch.tensor([[episode.ids[-1]] for episode in self.rows], device=self.device)
        output = self.lm.hidden(ids_N1, self.mask(), cache.columns[:, None], cache, True)
        self.take(self.rows, self.head.logits(output.last_hidden_state[:, -1]))
        self.leave()

    def mask(self) -> Any:
        """What each row sees, as an additive mask [N, 1, 1, columns]: its columns up to its own position, no
        further back than a layer's window. A dict by layer type when layers differ, as transformers takes it."""
        column_S = torch.arange(self.cache.seen, device=self.device)
        masks = {}
        for kind, window in self.windows.items():
            hidden_NS = column_S > self.cache.columns[:, None]
            if window is not None and window < self.cache.seen:
                hidden_NS |= column_S <= self.cache.columns[:, None] - window
            mask_NS = torch.zeros(hidden_NS.shape, dtype=self.lm.dtype, device=self.device)
            masks[kind] = mask_NS.masked_fill_(hidden_NS, torch.finfo(self.lm.dtype).min)[:, None, None]
        return masks if len(masks) > 1 else masks.popitem()[1]

    def leave(self) -> None:
        """Close the gaps that finished rows leave, by moving the last rows into them: rows stay 0..N-1, without a copy
        of those that stay."""
        gone = [row for row, episode in enumerate(self.rows) if episode.finish]
        if not gone:
            return
        self.done.extend(self.rows[row] for row in gone)
        left = len(self.rows) - len(gone)
        targets = [row for row in gone if row < left]
        sources = [row for row in range(left, len(self.rows)) if not self.rows[row].finish]
        for source, target in zip(sources, targets, strict=True):
            self.rows[target] = self.rows[source]
        del self.rows[left:]
        if targets:
            self.cache.move(sources, targets)


def sample(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    group_size: int,
    sampling: Sampling,
    keys: Sequence[tuple[int, ...]],
    max_batch: int = 64,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[list[Sampled]]:
    """Sample `group_size` responses to each prompt (token ids); result [prompt][sample], in the order of `prompts`.

    `keys[i]` keys the draws of prompt i: token t of its sample g takes rng.uniform("sample", *keys[i], g, t). At most
    `max_batch` rows decode at a time. `on_progress(finished, total)` counts episodes. The model is put in eval mode and
    back. Raises UserError for an empty prompt, or one that `max_new_tokens` would carry beyond the model's context.
    """
    _check(lm, prompts, group_size, sampling, keys, max_batch)
    total = len(prompts) * group_size
    run = _Run(lm, prompts, group_size, sampling, min(max_batch, max(total, 1)))
    # Longest first: prompts of like length share a prefill with little padding, and the cache reaches its width early.
    for prompt in sorted(range(len(prompts)), key=lambda i: -len(prompts[i])):
        uniforms_GT = rng.uniform(
            "sample", *keys[prompt], np.arange(group_size)[:, None], np.arange(sampling.max_new_tokens)
        )
        column = len(prompts[prompt]) - 1
        run.queue.append([_Episode(prompt, g, column, uniforms_GT[g]) for g in range(group_size)])
    reported = 0
    with _evaluating(lm.module), torch.no_grad():
        while run.queue or run.ready or run.rows:
            if (run.queue or run.ready) and len(run.rows) <= run.max_batch * 3 // 4:
                run.admit()
            else:
                run.step()
            if on_progress is not None and len(run.done) > reported:
                reported = len(run.done)
                on_progress(reported, total)
    return _collected(lm, run.done, len(prompts), group_size)


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


@contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Eval mode (no dropout) inside, the former mode after."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def _check(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    group_size: int,
    sampling: Sampling,
    keys: Sequence[tuple[int, ...]],
    max_batch: int,
) -> None:
    for key, value in (("group_size", group_size), ("max_batch", max_batch)):
        if value < 1:
            raise UserError(f"{key} is {value}, it must be 1 or more")
    if len(keys) != len(prompts):
        raise ValueError(f"{len(keys)} keys for {len(prompts)} prompts")
    for i, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise UserError(f"prompt {i} has no tokens; the sampler needs at least one (a BOS token will do)")
        if len(prompt) + sampling.max_new_tokens > lm.context:
            raise UserError(
                f"prompt {i} has {len(prompt)} tokens and max_new_tokens is {sampling.max_new_tokens}, together more"
                f" than the model's context of {lm.context}; max_new_tokens could be at most"
                f" {max(lm.context - len(prompt), 0)}"
            )


def _collected(lm: LanguageModel, episodes: list[_Episode], prompts: int, group_size: int) -> list[list[Sampled]]:
    eos = frozenset(lm.eos_ids)
    groups: list[list[Any]] = [[None] * group_size for _ in range(prompts)]
    for episode in episodes:
        spoken = episode.ids[:-1] if episode.ids[-1] in eos else episode.ids
        text = lm.tokenizer.decode(spoken, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        logp_T = torch.tensor(episode.logps, dtype=torch.float32)
        groups[episode.prompt][episode.number] = Sampled(tuple(episode.ids), logp_T, episode.finish, text)
    return groups
