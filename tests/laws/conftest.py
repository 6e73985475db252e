"""The laws hold over the fused head as it is for big work: several chunks of several blocks."""

from __future__ import annotations

import pytest
from lab import TOKENIZER
from redistill.text import head as heads


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "CHUNK_BYTES", 7 * 4 * len(TOKENIZER))
    monkeypatch.setattr(heads, "BLOCK_BYTES", 3 * 4 * len(TOKENIZER))
