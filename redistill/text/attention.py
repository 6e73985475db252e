"""Attention over many texts laid end to end in one row, without padding and without a mask over all of them.

The tokens of a forward pass stand in one line of T: prompts (once, however many responses share them) and responses. Where
each token may look is a `Layout`: a few rectangles of (queries, keys), in each of which rows of like length are multiplied as
one batch. Everything but attention works on the line itself. It enters transformers as an attention implementation of its
own, so any family whose attention can be exchanged (`supports`) runs over it.

Legend: T tokens of the line, R rows of a bucket, L queries of a row, S keys of a row, H query heads, K key heads, d width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

NAME = "redistill_packed"
LONGEST_DENSE = 512
"""Keys up to which scores are written out (several times faster than the fused kernel there, on CPUs); beyond, the fused
kernel, whose memory does not grow with the square of the length."""
WASTE = 1.3
"""A bucket may have this many times the scores that its rows need."""
UNSEEN = 2**40
"""Position of a key that stands for nothing: later than every query."""


@dataclass(frozen=True)
class Row:
    """A run of queries and the run(s) of keys that they may look at, as places in the line; causal by `positions`."""

    queries: Sequence[int]
    keys: Sequence[int]


@dataclass(frozen=True)
class Bucket:
    """Rows padded to one size. Padding asks for place 0 at position 0, and its answer is dropped."""

    query_RL: Tensor
    key_RS: Tensor
    back_RLS: Tensor
    """Position of the query minus that of the key: what is negative lies ahead and is not seen."""


@dataclass(frozen=True)
class Layout:
    """All buckets of a line, and for each of its tokens where in the buckets' answers (end to end) its own stands."""

    buckets: Sequence[Bucket]
    answer_T: Tensor


def layout(rows: Sequence[Row], position_T: Tensor) -> Layout:
    """Cut rows into buckets of like size. Every place of the line is a query exactly once."""
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i].keys), len(rows[i].queries)))
    buckets: list[Bucket] = []
    answer_T = torch.full_like(position_T, -1)
    start, done = 0, 0
    while start < len(order):
        members = _alike([rows[i] for i in order[start:]])
        bucket, places_R = _bucket(members, position_T)
        width = bucket.query_RL.shape[1]
        for r, places in enumerate(places_R):
            answer_T[places] = done + r * width + torch.arange(len(places))
        buckets.append(bucket)
        start, done = start + len(members), done + bucket.query_RL.numel()
    return Layout(buckets, answer_T)


def _alike(rows: Sequence[Row]) -> Sequence[Row]:
    """As many of the first rows as fit one bucket without much waste."""
    needed, longest = 0, 0
    for count, row in enumerate(rows, 1):
        needed += len(row.queries) * len(row.keys)
        longest = max(longest, len(row.queries))
        if count * longest * len(row.keys) > WASTE * needed:
            return rows[: count - 1]
    return rows


def _bucket(rows: Sequence[Row], position_T: Tensor) -> tuple[Bucket, list[Tensor]]:
    places_R = [torch.tensor(row.queries, dtype=torch.int64) for row in rows]
    queries = nn.utils.rnn.pad_sequence(places_R, batch_first=True)
    keys_R = [torch.tensor(row.keys, dtype=torch.int64) for row in rows]
    keys = nn.utils.rnn.pad_sequence(keys_R, batch_first=True)
    asked = nn.utils.rnn.pad_sequence([position_T[at] for at in places_R], batch_first=True)
    seen = nn.utils.rnn.pad_sequence([position_T[at] for at in keys_R], batch_first=True, padding_value=UNSEEN)
    return Bucket(queries, keys, asked[:, :, None] - seen[:, None, :]), places_R


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float | None = None,
    dropout: float = 0.0, softcap: float | None = None, sliding_window: int | None = None, layout: Layout | None = None,
    s_aux: Any = None, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """transformers' attention interface: [1, H, T, d] and twice [1, K, T, d] -> [1, T, H, d]."""
    if layout is None or query.shape[0] != 1 or dropout or s_aux is not None:
        raise ValueError("packed attention takes one line of tokens with its layout, no dropout and no attention sinks")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    query_THd, key_TKd, value_TKd = (heads[0].transpose(0, 1) for heads in (query, key, value))
    answers = []
    for bucket in layout.buckets:
        (rows, length), size = bucket.query_RL.shape, bucket.key_RS.shape[1]
        seen_RLS = bucket.back_RLS >= 0
        if sliding_window is not None:
            seen_RLS &= bucket.back_RLS < sliding_window
        query_RHLd = query_THd[bucket.query_RL].transpose(1, 2)
        key_RKSd, value_RKSd = (x_TKd[bucket.key_RS].transpose(1, 2) for x_TKd in (key_TKd, value_TKd))
        if size > LONGEST_DENSE and softcap is None:
            answer = F.scaled_dot_product_attention(
                query_RHLd, key_RKSd, value_RKSd.to(key_RKSd.dtype), attn_mask=seen_RLS[:, None], scale=scale,
                enable_gqa=True,
            )  # fmt: skip
        else:
            answer = _dense(query_RHLd * scale, key_RKSd, value_RKSd, seen_RLS, softcap)
        answers.append(answer.transpose(1, 2).reshape(rows * length, *answer.shape[1:2], -1))
    return torch.cat(answers)[layout.answer_T][None].to(value.dtype), None


def _dense(query_RHLd: Tensor, key_RKSd: Tensor, value_RKSd: Tensor, seen_RLS: Tensor, softcap: float | None) -> Tensor:
    """softmax(q k) v with the scores written out; query heads that share a key head are one matrix."""
    (rows, heads, length, _), (_, kinds, size, _) = query_RHLd.shape, key_RKSd.shape
    grouped = query_RHLd.reshape(rows * kinds, heads // kinds * length, -1)
    scores = torch.bmm(grouped, key_RKSd.reshape(rows * kinds, size, -1).transpose(1, 2))
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    apart = scores.view(rows, heads, length, size).masked_fill_(~seen_RLS[:, None], -torch.inf)
    weights = apart.softmax(-1).view(rows * kinds, -1, size).to(value_RKSd.dtype)
    return torch.bmm(weights, value_RKSd.reshape(rows * kinds, size, -1)).view(rows, heads, length, -1)


def supports(causal: Any) -> bool:
    """Whether a transformers causal LM lets its attention be exchanged."""
    return bool(getattr(causal, "_supports_attention_backend", False))


@contextmanager
def packed_attention(causal: Any) -> Iterator[None]:
    """Let a model attend by layouts inside the block; its calls take `layout=`."""
    AttentionInterface.register(NAME, attend)
    configs = {id(config): config for config in (causal.config, causal.config.get_text_config())}.values()
    before = [(config, config._attn_implementation) for config in configs]
    try:
        for config, _ in before:
            config._attn_implementation = NAME
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation
