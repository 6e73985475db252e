"""The one reducer against arithmetic in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from redistill.core.specs import Normaliser
from redistill.objectives.reduce import step_weights

SPECS = [f"{name}{rows}" for name in ("token", "sequence") for rows in ("", "(rows=all)")]
SPECS += ["constant(7)", "constant(7, rows=all)"]


@st.composite
def rows(draw: st.DrawFn) -> list[list[tuple[bool, float, float]]]:
    """Rows of steps: (mask, weight, loss)."""
    number = st.floats(-3, 3)
    return draw(st.lists(st.lists(st.tuples(st.booleans(), number, number), max_size=4), min_size=1, max_size=5))


def by_words(spec: Normaliser, found: list[list[tuple[bool, float, float]]]) -> float:
    every = spec.rows == "all"
    sums = [sum(w * loss for mask, w, loss in row if mask) for row in found]
    active = [sum(mask for mask, _, _ in row) for row in found]
    counted = [len(row) if every else n for row, n in zip(found, active)]
    if spec.name == "constant":
        return sum(sums) / spec.n
    if spec.name == "token":
        return sum(sums) / sum(counted) if sum(counted) else 0.0
    means = [s / n if n else 0.0 for s, n in zip(sums, counted)]
    divisor = len(found) if every else sum(n > 0 for n in counted)
    return sum(means) / divisor if divisor else 0.0


@settings(max_examples=200, deadline=None)
@given(rows(), st.sampled_from(SPECS))
def test_sum_over_count_is_what_the_words_say(found: list[list[tuple[bool, float, float]]], text: str) -> None:
    spec = Normaliser.parse(text)
    flat = [step for row in found for step in row]
    mask_N = torch.tensor([step[0] for step in flat], dtype=torch.bool)
    weight_N, loss_N = (torch.tensor([step[i] for step in flat], dtype=torch.float64) for i in (1, 2))
    w_N, count = step_weights(spec, [len(row) for row in found], mask_N, weight_N)
    assert w_N.dtype == count.dtype == torch.float64
    value = float((w_N * loss_N).sum() / count) if float(count) else 0.0
    assert value == pytest.approx(by_words(spec, found), abs=1e-9)


@pytest.mark.parametrize("text", SPECS[:4])
def test_a_constant_field_has_that_constant_as_its_mean(text: str) -> None:
    w_N, count = step_weights(Normaliser.parse(text), [3, 1, 5], None, None)
    assert float(w_N.sum() / count) == pytest.approx(1.0)


def test_weights_behind_the_mask_are_not_read() -> None:
    mask_N = torch.tensor([True, False, True])
    wild = torch.tensor([2.0, math.nan, 3.0])
    w_N, _ = step_weights(Normaliser("token"), [3], mask_N, wild)
    assert w_N.tolist() == [2.0, 0.0, 3.0]


@pytest.mark.parametrize("text", SPECS)
def test_no_rows_is_legal(text: str) -> None:
    w_N, count = step_weights(Normaliser.parse(text), [], None, None)
    assert w_N.numel() == 0
    assert float(count) == (7.0 if text.startswith("constant") else 0.0)


@given(rows(), st.sampled_from(["token", "sequence"]))
@settings(max_examples=60, deadline=None)
def test_weighted_counts_make_a_weighted_mean(found: list[list[tuple[bool, float, float]]], name: str) -> None:
    """A constant field keeps its value under any weights, and scaling all weights changes nothing."""
    found = [[(mask, abs(w) + 0.1, loss) for mask, w, loss in row] for row in found]
    lengths = [len(row) for row in found]
    flat = [step for row in found for step in row]
    mask_N = torch.tensor([m for m, _, _ in flat], dtype=torch.bool)
    weight_N = torch.tensor([w for _, w, _ in flat], dtype=torch.float64)
    if not bool(mask_N.any()):
        assert float(step_weights(Normaliser(name, rows="weighted"), lengths, mask_N, weight_N)[1]) == 0.0
        return
    for scale in (1.0, 17.0):
        w_N, count = step_weights(Normaliser(name, rows="weighted"), lengths, mask_N, weight_N * scale)
        assert float(w_N.sum() / count) == pytest.approx(1.0)
    whole, count = step_weights(Normaliser(name, rows="weighted"), lengths, mask_N, weight_N)
    scaled, scaled_count = step_weights(Normaliser(name, rows="weighted"), lengths, mask_N, weight_N * 3)
    torch.testing.assert_close(whole / count, scaled / scaled_count)
    even, even_count = step_weights(Normaliser(name, rows="weighted"), lengths, mask_N, torch.ones_like(weight_N))
    plain, plain_count = step_weights(Normaliser(name), lengths, mask_N, None)
    torch.testing.assert_close(even / even_count, plain / plain_count)
