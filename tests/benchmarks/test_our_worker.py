"""Our side of the benchmark is made of the library's own pieces: it must keep up with them."""

from __future__ import annotations

import pytest
from benchmarks.workload import CLOSING, SOLUTION
from redistill.text import domain, views

from benchmarks import our_worker


def test_both_teachers_read_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domain, "WORDINGS", views.WORDINGS)
    our_worker.add_wording()
    made = domain.WORDINGS[our_worker.WORDING]
    assert (made.solution, made.closing) == (SOLUTION, CLOSING)
