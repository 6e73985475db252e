"""Packing: what sees what, where each step is predicted from, and how rows are cut (laws 1, 5 and 6)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from redistill.text.packing import Piece, bins_of, line, micro_batches, pack, segments_of, windowed

TOKEN = st.integers(0, 3)  # few ids, so that equal prompts and ids that equal eos or pad (0) are common
IDS = st.lists(TOKEN, max_size=6).map(tuple)


@st.composite
def pieces(draw: st.DrawFn) -> list[Piece]:
    found = []
    for row in range(draw(st.integers(1, 6))):
        response = draw(IDS)
        cuts = sorted(draw(st.lists(st.integers(0, len(response)), min_size=4, max_size=4)))
        spans = ((cuts[0], cuts[1]), (cuts[2], cuts[3]))
        found.append(Piece(row, draw(st.lists(TOKEN, min_size=1, max_size=3).map(tuple)), response, spans))
    return found


def read_by(packed, flat: int) -> list[tuple[int, int]]:
    """(position, id) of every token that the query at a flat position sees."""
    b, q = divmod(flat, packed.ids_BT.shape[1])
    seen = packed.mask_B1TT[b, 0, q].nonzero()[:, 0].tolist()
    return sorted((int(packed.position_BT[b, k]), int(packed.ids_BT[b, k])) for k in seen)


@settings(max_examples=150, deadline=None)
@given(pieces(), st.sampled_from([1, 8, 256]), st.booleans())
def test_every_step_is_predicted_from_exactly_its_own_prefix(found: list[Piece], bin_tokens: int, share: bool) -> None:
    packed = pack(found, bin_tokens=bin_tokens, share=share)
    at = 0
    for piece in found:
        text = piece.prompt + piece.response
        for j in piece.chosen():
            prefix = text[: len(piece.prompt) + j]
            assert read_by(packed, int(packed.predict_n[at])) == list(enumerate(prefix))
            assert int(packed.target_n[at]) == piece.response[j]
            assert int(packed.row_n[at]) == piece.row
            at += 1
    assert at == len(packed.predict_n) == len(packed.target_n) == len(packed.row_n)


def seen_in_line(made, flat: int) -> list[tuple[int, int]]:
    """(position, id) of every token that the query at a place of a line sees."""
    answer = int(made.layout.answer_T[flat])
    for bucket in made.layout.buckets:
        if answer < bucket.query_RL.numel():
            r, at = divmod(answer, bucket.query_RL.shape[1])
            assert int(bucket.query_RL[r, at]) == flat
            places = bucket.key_RS[r][bucket.back_RLS[r, at] >= 0]
            return sorted(zip(made.position_1T[0, places].tolist(), made.ids_1T[0, places].tolist()))
        answer -= bucket.query_RL.numel()
    raise AssertionError("no bucket answers")


@settings(max_examples=150, deadline=None)
@given(pieces(), st.booleans())
def test_in_a_line_too_every_step_is_predicted_from_exactly_its_own_prefix(found: list[Piece], share: bool) -> None:
    made = line(found, share)
    at = 0
    for piece in found:
        text = piece.prompt + piece.response
        for j in piece.chosen():
            assert seen_in_line(made, int(made.predict_n[at])) == list(enumerate(text[: len(piece.prompt) + j]))
            assert (int(made.target_n[at]), int(made.row_n[at])) == (piece.response[j], piece.row)
            at += 1
    assert at == len(made.predict_n) == len(made.target_n) == len(made.row_n)
    answers = made.layout.answer_T
    assert len(set(answers.tolist())) == len(answers), "every token attends once"
    assert int(answers.min()) >= 0
    assert made.ids_1T.numel() == sum(segment.size for segment in segments_of(found, share)), "nothing is padded"


@settings(max_examples=100, deadline=None)
@given(pieces())
def test_a_step_is_predicted_once_and_never_from_its_own_token(found: list[Piece]) -> None:
    """The pairs cover the spans and nothing else; only the first tokens of answers to one prompt share a place."""
    packed = pack(found)
    steps = [(piece.row, j) for piece in found for j in piece.chosen()]
    assert len(packed.predict_n) == len(steps)
    later = [int(p) for p, (_, j) in zip(packed.predict_n, steps) if j > 0]
    assert len(later) == len({(p, step) for p, step in zip(later, [s for s in steps if s[1] > 0])})
    assert bool(packed.mask_B1TT.any(-1).all()), "a query that sees nothing makes NaN"


def test_shared_prompts_are_stored_once() -> None:
    found = [Piece(i, (5, 6, 7), (i,) * 4, ((0, 4),)) for i in range(8)]
    assert pack(found).ids_BT.numel() == 3 + 8 * 4
    assert pack(found, share=False, bin_tokens=10**6).ids_BT.numel() == 8 * (3 + 4)


def test_no_steps_at_all_is_legal() -> None:
    packed = pack([Piece(0, (1, 2), (), ())])
    assert packed.predict_n.numel() == packed.target_n.numel() == 0


def test_a_length_1_response_is_predicted_from_the_last_prompt_token() -> None:
    packed = pack([Piece(0, (4, 5), (6,), ((0, 1),))])
    assert packed.predict_n.tolist() == [1]
    assert packed.target_n.tolist() == [6]


def test_an_empty_prompt_is_refused() -> None:
    for lay in (pack, line):
        with pytest.raises(ValueError, match="row 3 has an empty prompt"):
            lay([Piece(3, (), (1,), ((0, 1),))])


@settings(max_examples=100, deadline=None)
@given(pieces(), st.integers(1, 40))
def test_micro_batches_keep_order_and_budget(found: list[Piece], budget: int) -> None:
    batches = micro_batches(found, budget)
    assert [row for batch in batches for row in batch] == [piece.row for piece in found]
    for batch in batches:
        cost = sum(segment.size for segment in segments_of([found[row] for row in batch]))
        assert cost <= budget or len(batch) == 1


@settings(max_examples=100, deadline=None)
@given(pieces(), st.integers(1, 40))
def test_bins_hold_their_capacity_and_everything_once(found: list[Piece], capacity: int) -> None:
    segments = segments_of(found)
    bins = bins_of(segments, capacity)
    assert sorted(id(s) for members in bins for s in members) == sorted(id(s) for s in segments)
    for members in bins:
        assert sum(s.size for s in members) <= capacity or len(members) == 1


def test_windows_count_positions_of_the_text_not_places_in_the_bin() -> None:
    """The second answer stands behind the first one in the bin; its window reaches back to the prompt all the same."""
    packed = pack([Piece(0, (1, 2, 3), (4, 5, 6), ((0, 3),)), Piece(1, (1, 2, 3), (7, 8, 9), ((0, 3),))])
    masks = windowed(packed.mask_B1TT, packed.position_BT, {"full_attention": None, "sliding_attention": 3})
    assert masks["full_attention"] is packed.mask_B1TT
    seen = masks["sliding_attention"][0, 0]
    query = 3 + 3 + 1  # token 8, position 4, sees positions 2, 3, 4
    assert packed.ids_BT[0][seen[query]].tolist() == [3, 7, 8]
    only = windowed(packed.mask_B1TT, packed.position_BT, {"sliding_attention": 3})
    assert torch.equal(only, masks["sliding_attention"])
