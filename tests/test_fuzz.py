"""Damaged and hostile files: a few of the inputs of `make trust`, and the ones that were found to crash."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from benchmarks.resume_fuzz import Found, of_checkpoints, of_folders, of_models


@pytest.mark.parametrize(("kind", "count"), [(of_checkpoints, 80), (of_folders, 40), (of_models, 24)])
def test_damage_is_refused_in_one_sentence(
    kind: Callable[[Found, Path, int, int], None], count: int, tmp_path: Path
) -> None:
    found = Found()
    kind(found, tmp_path, count, 1)
    assert found.crashes == []
    assert found.accepted == []
    assert found.inputs == count
    assert found.refused > count // 4
