"""What is kept of a row for the viewer: its tokens, what student and teachers read, and what they hold likely at each step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from redistill.core.episode import Episode
from redistill.core.signal import Teacher, TeacherLogProb, Values
from redistill.core.trace import numbers, shortened
from redistill.text.head import StatesAt, at_least_float32, chunk_steps
from redistill.text.models import Head, LanguageModel

LONGEST = 512
"""Tokens of a response that are kept; the values of the steps behind them are there all the same."""
Likeliest = list[list[list[Any]]]
"""[step][place] -> [token, probability]"""


def row_facts(
    lm: LanguageModel, row: Episode, hidden_TD: Tensor, teachers: Mapping[Teacher, StatesAt], values: Values, k: int
) -> dict[str, Any]:
    """JSON values of one row: `tokens`, `own` (the places of the policy's steps among them), `entropy`, and for the
    student and each teacher that reads the row what it `reads` and the `likeliest` k tokens at each step, at the row's own
    temperature; a teacher's `logp` of the steps taken where `values` has it. D is the hidden width, T the row's steps."""
    ids = row.trajectory.ids[:LONGEST]
    own = [at for low, high in row.trajectory.spans for at in range(low, high) if at < LONGEST]
    spelled: dict[int, str] = {}

    def spell(token: int) -> str:
        if token not in spelled:
            spelled[token] = token_text(lm.tokenizer, token)
        return spelled[token]

    head, temperature = lm.head(), temperature_of(row)
    student, entropy_T = likeliest(student_pieces(head, hidden_TD, temperature), k, spell)
    taught = []
    for teacher, states in teachers.items():
        if teacher.contexts[0] is None:
            continue
        pieces = (
            states.chunk(low, high).log_probs(temperature) for low, high in _chunks(len(hidden_TD), len(head.weight_VD))
        )
        likely, spread_T = likeliest(pieces, k, spell)
        taught.append({
            "name": str(teacher.weights), "reads": _decoded(lm, teacher.contexts[0]), "likeliest": likely[: len(own)],
            "entropy": spread_T, "logp": numbers(values.get(TeacherLogProb(teacher), torch.zeros(0))),
        })  # fmt: skip
    return {
        "tokens": [spell(token) for token in ids], "own": own, "left_out": len(row.trajectory.ids) - len(ids),
        "reads": _decoded(lm, row.context), "likeliest": student[: len(own)], "entropy": entropy_T, "teachers": taught,
    }  # fmt: skip


def temperature_of(row: Episode) -> float:
    """The temperature that a row's log-probs are taken at: that of its sampling, 1 for what was written or greedy."""
    return row.sampling.temperature if row.sampling is not None and row.sampling.temperature > 0 else 1.0


def student_pieces(head: Head, hidden_TD: Tensor, temperature: float) -> Iterable[Tensor]:
    """The student's log-probs [n, V], a chunk of steps at a time."""
    for low, high in _chunks(len(hidden_TD), len(head.weight_VD)):
        yield F.log_softmax(at_least_float32(head.logits(hidden_TD[low:high])) / temperature, dim=-1)


def likeliest(pieces: Iterable[Tensor], k: int, spell: Callable[[int], str]) -> tuple[Likeliest, list[float | None]]:
    """The k likeliest tokens at each step with their probabilities, and the entropies (nats)."""
    found: Likeliest = []
    entropies: list[float | None] = []
    for logp_nV in pieces:
        top = logp_nV.topk(min(k, logp_nV.shape[1]), dim=-1)
        for values, ids in zip(top.values.exp().tolist(), top.indices.tolist()):
            found.append([[spell(token), float(f"{p:.3g}")] for token, p in zip(ids, values)])
        entropies += numbers(-(logp_nV.exp() * torch.nan_to_num(logp_nV, neginf=0.0)).sum(-1))
    return found, entropies


def token_text(tokenizer: Any, token: int) -> str:
    """A token as text; SentencePiece's space before a word, which decoding drops, is kept."""
    text = str(tokenizer.decode([token], skip_special_tokens=False))
    raw = str(tokenizer.convert_ids_to_tokens(token))
    return f" {text}" if raw.startswith("▁") and not text.startswith(" ") else text


def _chunks(steps: int, vocabulary: int) -> Sequence[tuple[int, int]]:
    size = chunk_steps(vocabulary)
    return [(low, min(low + size, steps)) for low in range(0, steps, size)]


def _decoded(lm: LanguageModel, ids: Sequence[int]) -> str:
    return str(shortened(str(lm.tokenizer.decode(ids, skip_special_tokens=False))))
