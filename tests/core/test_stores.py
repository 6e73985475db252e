"""A store's draws and its state."""

from __future__ import annotations

import pytest
from redistill.core.state import Piece
from redistill.core.stores import Store


def filled(count: int) -> Store:
    store = Store()
    for i in range(count):
        store.add({"name": f"r{i}", "context_ids": (1, 2, i), "response_ids": tuple(range(i))})
    return store


def test_every_record_comes_once_an_epoch_in_another_order_each_time() -> None:
    store = filled(7)
    drawn = [i for number in range(14) for i in store.batch(number, 3, seed=0)]
    epochs = [drawn[at : at + 7] for at in range(0, 42, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert store.batch(3, 3, seed=0) != store.batch(3, 3, seed=1) or store.batch(4, 3, seed=0) != store.batch(4, 3, 1)


def test_state_comes_back_whole_with_empty_responses_too() -> None:
    one, other = filled(4), Store()
    piece = one.state()
    assert set(piece.tensors) == {f"{key}/{i}" for key in ("context_ids", "response_ids") for i in range(4)}
    other.restore(Piece(piece.tensors, piece.facts))
    assert other.records == one.records
    other.restore(Store().state())
    assert len(other) == 0


def test_keep_leaves_the_chosen_records_and_an_empty_store_has_no_batch() -> None:
    store = filled(4)
    store.keep([2, 0])
    assert [record["name"] for record in store.records] == ["r2", "r0"]
    with pytest.raises(ValueError, match="empty"):
        Store().batch(0, 1, 0)
