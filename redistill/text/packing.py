"""Packing: rows with the same prompt share it, and rows stand end to end in one line (or a few, behind a block mask).

Nothing is padded to the longest row of a batch and nothing is computed twice for a group. Which token sees which is written
down once, from lengths (law 5), and where each response token is predicted from is an explicit index (law 6). `line` is for
models whose attention can be exchanged (text/attention.py); `pack` makes bins with a dense mask for any model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from redistill.text.attention import Layout, Row, layout


@dataclass(frozen=True)
class Piece:
    """A row to be scored: the prompt it is read under, the response tokens, and which of them are the policy's own."""

    row: int
    prompt: tuple[int, ...]
    response: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    """Half-open ranges of response positions that count as steps."""

    def chosen(self) -> list[int]:
        """Response positions that are steps, in order."""
        return [at for low, high in self.spans for at in range(low, high)]


@dataclass
class Segment:
    """A prompt and all the responses that share it."""

    prompt: tuple[int, ...]
    pieces: list[Piece] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Tokens of the segment."""
        return len(self.prompt) + sum(len(piece.response) for piece in self.pieces)


@dataclass(frozen=True)
class Packed:
    """One forward pass. B bins, T tokens a bin. `predict_n[i]` is the flat position (in B*T) whose output predicts step i,
    `target_n[i]` the token taken, `row_n[i]` its row; steps are in the order of the rows given to `pack`."""

    ids_BT: Tensor
    position_BT: Tensor
    mask_B1TT: Tensor
    predict_n: Tensor
    target_n: Tensor
    row_n: Tensor


@dataclass(frozen=True)
class Line:
    """One forward pass of T tokens end to end, without padding; otherwise as `Packed`. A token sees what `layout` says."""

    ids_1T: Tensor
    position_1T: Tensor
    layout: Layout
    predict_n: Tensor
    target_n: Tensor
    row_n: Tensor


def segments_of(pieces: Sequence[Piece], share: bool = True) -> list[Segment]:
    """Group pieces by identical prompt (or one segment each, when not shared)."""
    found: dict[object, Segment] = {}
    for piece in pieces:
        key = piece.prompt if share else (piece.prompt, piece.row)
        found.setdefault(key, Segment(piece.prompt)).pieces.append(piece)
    return list(found.values())


def bins_of(segments: Sequence[Segment], capacity: int) -> list[list[Segment]]:
    """First-fit decreasing: no bin holds more than `capacity` tokens unless one segment alone does."""
    bins: list[list[Segment]] = []
    room: list[int] = []
    for segment in sorted(segments, key=lambda s: -s.size):
        slot = next((i for i, left in enumerate(room) if segment.size <= left), None)
        if slot is None:
            bins.append([])
            room.append(max(capacity, segment.size))
            slot = len(bins) - 1
        bins[slot].append(segment)
        room[slot] -= segment.size
    return bins


def micro_batches(pieces: Sequence[Piece], budget: int) -> list[list[int]]:
    """Cut rows into groups that fit `budget` tokens each (rows of one prompt stay together while they fit)."""
    batches: list[list[int]] = []
    used = budget + 1
    prompt: tuple[int, ...] | None = None
    for piece in pieces:
        cost = len(piece.response) + (0 if piece.prompt == prompt else len(piece.prompt))
        if used + cost > budget:
            batches.append([])
            used, cost = 0, len(piece.response) + len(piece.prompt)
        batches[-1].append(piece.row)
        used += cost
        prompt = piece.prompt
    return batches


def line(pieces: Sequence[Piece], share: bool = True) -> Line:
    """Lay pieces out end to end. Every prompt must be non-empty: the first response token is predicted from its last one.

    A prompt with one response is one causal text with it; a shared prompt is a text, and each of its responses looks at
    the prompt and at itself.
    """
    _check_prompts(pieces)
    ids: list[int] = []
    positions: list[int] = []
    rows: list[Row] = []
    first_of: dict[int, tuple[int, int]] = {}
    for segment in segments_of(pieces, share):
        size = len(segment.prompt)
        prompt = range(len(ids), len(ids) + size)
        ids += segment.prompt
        positions += range(size)
        if len(segment.pieces) > 1:
            rows.append(Row(prompt, prompt))
        for piece in segment.pieces:
            own = range(len(ids), len(ids) + len(piece.response))
            first_of[id(piece)] = (prompt[-1], own.start)
            ids += piece.response
            positions += range(size, size + len(own))
            if len(segment.pieces) == 1:
                whole = range(prompt.start, own.stop)
                rows.append(Row(whole, whole))
            elif len(own):
                rows.append(Row(own, [*prompt, *own]))
    position_T = torch.tensor(positions, dtype=torch.int64)
    made = layout(rows, position_T)
    return Line(torch.tensor(ids, dtype=torch.int64)[None], position_T[None], made, *_steps(pieces, first_of))


def pack(
    pieces: Sequence[Piece], *, bin_tokens: int = 256, share: bool = True, device: torch.device | None = None
) -> Packed:
    """Lay pieces out in bins. Every prompt must be non-empty: the first response token is predicted from its last token."""
    _check_prompts(pieces)
    segments = segments_of(pieces, share)
    largest = max(segment.size for segment in segments)
    bins = bins_of(segments, max(bin_tokens, largest))
    width = max(sum(segment.size for segment in members) for members in bins)
    ids = torch.zeros(len(bins), width, dtype=torch.int64)
    position = torch.zeros(len(bins), width, dtype=torch.int64)
    owner = torch.full(
        (len(bins), width), -1, dtype=torch.int64
    )  # which response a token belongs to; prompt: its own code
    shared = torch.full((len(bins), width), -2, dtype=torch.int64)  # which prompt a response token may also see
    first_of: dict[int, tuple[int, int]] = {}
    code = 0
    for b, members in enumerate(bins):
        at = 0
        for segment in members:
            size = len(segment.prompt)
            ids[b, at : at + size] = torch.tensor(segment.prompt)
            position[b, at : at + size] = torch.arange(size)
            prompt_code, last = code, at + size - 1
            owner[b, at : at + size] = prompt_code
            at, code = at + size, code + 1
            for piece in segment.pieces:
                length = len(piece.response)
                ids[b, at : at + length] = torch.tensor(piece.response, dtype=torch.int64)
                position[b, at : at + length] = torch.arange(size, size + length)
                owner[b, at : at + length] = code
                shared[b, at : at + length] = prompt_code
                first_of[id(piece)] = (b * width + last, b * width + at)
                at, code = at + length, code + 1
    tensors = _steps(pieces, first_of)
    packed = Packed(ids, position, block_mask(owner, shared), *tensors)
    return Packed(*(getattr(packed, name).to(device) for name in packed.__dataclass_fields__)) if device else packed


def _check_prompts(pieces: Sequence[Piece]) -> None:
    for piece in pieces:
        if not piece.prompt:
            raise ValueError(f"row {piece.row} has an empty prompt: its first token has nothing to be predicted from")


def _steps(pieces: Sequence[Piece], first_of: Mapping[int, tuple[int, int]]) -> list[Tensor]:
    """(places that predict, tokens taken, rows) of all steps; `first_of` has, by piece, the flat places of the last
    prompt token and of the first response token."""
    predict, target, rows = [], [], []
    for piece in pieces:
        last, start = first_of[id(piece)]
        chosen = piece.chosen()
        predict += [last if j == 0 else start + j - 1 for j in chosen]
        target += [piece.response[j] for j in chosen]
        rows += [piece.row] * len(chosen)
    return [torch.tensor(values, dtype=torch.int64) for values in (predict, target, rows)]


def windowed(mask_B1TT: Tensor, position_BT: Tensor, windows: Mapping[str, int | None]) -> Tensor | dict[str, Tensor]:
    """The mask for layers that look back no further than a window (None: as far as there is). One mask when all layers
    are alike, else one for each type of layer, as transformers takes them. Distances are between positions, not places
    in the bin: what stands between a response and its prompt in the bin is not between them in the text."""
    back_B1TT = (position_BT[:, :, None] - position_BT[:, None, :])[:, None]
    masks = {
        kind: mask_B1TT if window is None else mask_B1TT & (back_B1TT < window) for kind, window in windows.items()
    }
    return masks if len(masks) > 1 else next(iter(masks.values()))


def block_mask(owner_BT: Tensor, shared_BT: Tensor) -> Tensor:
    """Boolean [B, 1, T, T], True where query i may see key j: j is not later, and of i's own piece or of i's prompt.
    Positions that belong to nothing see themselves, so that no row of the attention is empty."""
    size = owner_BT.shape[1]
    causal = torch.ones(size, size, dtype=torch.bool).tril()
    same = owner_BT[:, :, None] == owner_BT[:, None, :]
    prompt = shared_BT[:, :, None] == owner_BT[:, None, :]
    return ((same | prompt) & causal | torch.eye(size, dtype=torch.bool))[:, None]
