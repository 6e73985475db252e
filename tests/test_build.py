"""How a run is put together from its settings."""

from __future__ import annotations

import pytest
from redistill.build import settings, stages_of


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_warm_start_shows_the_solution_as_often_as_asked(share: float) -> None:
    given = {"warm_start_steps": "3", "warm_start_in_context": str(share), "warm_start_learning_rate": "0.002"}
    warm, main = stages_of(*settings("opsd", given))
    assert (warm.method.slug, warm.steps, warm.learning_rate) == ("sft", 3, 0.002)
    assert warm.method.in_context_share == share
    assert main.method.slug == "opsd"


def test_no_warm_start_is_one_stage() -> None:
    assert [stage.name for stage in stages_of(*settings("opsd", {}))] == ["opsd"]
