"""Law 1: how rows are cut, ordered, packed and spread over neighbours changes neither loss nor gradient."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial
from typing import Any

import pytest
import torch
from lab import CASES, Lab, assert_same
from redistill.core.signal import Signal, Teacher, Term
from redistill.text import packing
from torch import Tensor


def prepared(case: str) -> tuple[Lab, Signal, tuple[float, Tensor]]:
    slug, options = CASES[case]
    lab = Lab(slug, **options)
    lab.shake_teachers()
    signal = lab.signal(lab.collected())
    whole = lab.gradient(signal)
    assert float(whole[1].norm()) > 1e-3, "a law about nothing"
    return lab, signal, whole


@pytest.mark.parametrize("case", CASES)
def test_law_1_micro_batches_order_and_packing(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lab, signal, whole = prepared(case)
    for tokens in (1, 10**6):
        lab.set(micro_batch_tokens=tokens)
        batches = list(lab.domain.micro_batches(signal))
        assert len(batches) == len({i for b in batches for i in b}) if tokens == 1 else True
        assert_same(lab.gradient(signal), whole)
    order = torch.randperm(len(signal.rows), generator=torch.Generator().manual_seed(1)).tolist()
    lab.set(micro_batch_tokens=60)
    assert_same(lab.gradient(signal.subset(order)), whole)
    lab.set(micro_batch_tokens=10**6)
    honest = packing.pack
    for other in ({"bin_tokens": 10**6}, {"share": False, "bin_tokens": 1}):
        monkeypatch.setattr(packing, "pack", partial(honest, **other))
        assert_same(lab.gradient(signal), whole)


def with_masked_neighbours(lab: Lab, signal: Signal) -> Signal:
    """The signal with rows in between that every term masks, and with NaN where a term would look."""
    extra = [episode for group in lab.groups(seed=1) for episode in group]
    extra = [replace(row, behaviour_logp_T=None) for row in extra]
    rows, origin = [], []
    for i in range(max(len(signal.rows), len(extra))):
        rows += [extra[i]] if i < len(extra) else []
        origin += [-1] if i < len(extra) else []
        rows += [signal.rows[i]] if i < len(signal.rows) else []
        origin += [i] if i < len(signal.rows) else []
    return Signal(rows, [widened(term, signal, rows, origin) for term in signal.terms])


def widened(term: Term, signal: Signal, rows: list[Any], origin: list[int]) -> Term:
    """The term over more rows: masked, with NaN in its vectors, where the origin is -1."""
    mask_N = torch.ones(sum(signal.lengths), dtype=torch.bool) if term.mask_N is None else term.mask_N
    changed: dict[str, Any] = {"mask_N": spread(mask_N, signal, rows, origin, False)}
    for item in fields(term):
        value = getattr(term, item.name)
        if isinstance(value, Tensor) and item.name != "mask_N":
            changed[item.name] = spread(value, signal, rows, origin, float("nan"))
        elif isinstance(value, Teacher):
            changed[item.name] = more_contexts(value, origin)
        elif item.name == "reads":
            changed[item.name] = tuple(replace(q, teacher=more_contexts(q.teacher, origin)) for q in value)
    return replace(term, **changed)


def more_contexts(teacher: Teacher, origin: list[int]) -> Teacher:
    """The teacher of more rows: none, or any, where the origin is -1. It counts as the one it came from."""
    contexts = [teacher.contexts[i] if i >= 0 else [None, (2, 3)][k % 2] for k, i in enumerate(origin)]
    return Teacher(teacher.weights, tuple(contexts), teacher)


def spread(value_N: Tensor, signal: Signal, rows: list[Any], origin: list[int], filler: Any) -> Tensor:
    pieces = value_N.split(signal.lengths)
    return torch.cat(
        [pieces[i] if i >= 0 else torch.full((row.steps,), filler, dtype=value_N.dtype) for row, i in zip(rows, origin)]
    )


@pytest.mark.parametrize("case", CASES)
def test_law_1_masked_neighbours_change_nothing(case: str) -> None:
    lab, signal, whole = prepared(case)
    if any(term.normaliser.rows == "all" for term in signal.terms):
        pytest.skip("rows=all counts masked rows as zeros: that is its meaning, tested in tests/core/test_reduce.py")
    wide = with_masked_neighbours(lab, signal)
    for tokens in (30, 10**6):
        lab.set(micro_batch_tokens=tokens)
        assert_same(lab.gradient(wide), whole)


def test_law_1_a_masked_step_inside_a_row_changes_nothing() -> None:
    lab, signal, _ = prepared("grpo")
    (term,) = signal.terms
    hidden_N = torch.zeros(sum(signal.lengths), dtype=torch.bool)
    hidden_N[::3] = True
    sane = replace(term, mask_N=term.mask_N & ~hidden_N)
    for filler in (float("nan"), float("-inf"), -100.0):
        wild = replace(
            sane,
            advantage_N=term.advantage_N.masked_fill(hidden_N, filler),
            behaviour_N=term.behaviour_N.masked_fill(hidden_N, filler),
            weight_N=torch.ones(len(hidden_N)).masked_fill(hidden_N, filler),
        )
        assert_same(lab.gradient(Signal(signal.rows, [wild])), lab.gradient(Signal(signal.rows, [sane])))


@pytest.mark.parametrize("case", ["grpo", "opd-forward_kl", "sdpo-hybrid", "sft"])
def test_minibatches_are_the_pieces_one_after_the_other(case: str) -> None:
    lab, signal, _ = prepared(case)
    half = len(signal.rows) // 2
    for rows in (range(half), range(half, len(signal.rows))):
        at_n = signal.steps_of(rows)
        by_hand = Signal([signal.rows[i] for i in rows], [by_rows(term, at_n, rows) for term in signal.terms])
        assert_same(lab.gradient(signal.subset(rows)), lab.gradient(by_hand), 1e-12)


def by_rows(term: Term, at_n: Tensor, rows: range) -> Term:
    changed: dict[str, Any] = {}
    for item in fields(term):
        value = getattr(term, item.name)
        if isinstance(value, Tensor):
            changed[item.name] = torch.stack([value[i] for i in at_n.tolist()])
        elif isinstance(value, Teacher):
            changed[item.name] = Teacher(value.weights, tuple(value.contexts[i] for i in rows))
    return replace(term, **changed)
