"""What distances to teacher and oracle did: rises and the departure from a power law."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from redistill.evaluation.hacking import History, departure, rise
from redistill.experiments import experiment_of


def test_rise_is_above_the_lowest() -> None:
    assert rise([3.0, 1.0, 2.5]) == 1.5
    assert rise([3.0, 2.0, 1.0]) == 0


def test_a_power_law_is_not_departed_from_and_a_plateau_is() -> None:
    steps = list(range(10, 310, 10))
    straight = [2.0 * step**-0.7 for step in steps]
    assert departure(steps, straight) == pytest.approx(0.0, abs=1e-12)
    flat = [max(value, straight[9]) for value in straight]
    assert departure(steps, flat) > 0.2
    assert departure(steps, [0.5 * value for value in flat]) == pytest.approx(departure(steps, flat))
    assert departure([0, *steps], [9.0, *straight]) == pytest.approx(0.0, abs=1e-12)
    assert departure(steps[:5], flat[:5]) == 0


def test_history_says_who_rose_and_is_restored() -> None:
    history = History()
    history.add(0, 3.0, 3.0)
    history.add(5, 1.0, 1.0)
    history.add(5, 1.0, 1.0)
    found = history.add(10, 0.5, 1.75)
    assert (found["proxy_rise"], found["golden_rise"], found["hacking"]) == (0.0, 0.75, 0.75)
    assert len(history.points) == 3
    other = History()
    piece = history.state()
    other.restore(replace(piece, facts=json.loads(json.dumps(dict(piece.facts)))))
    assert other == history


def test_the_two_distances_are_plotted_against_each_other(tmp_path: Path) -> None:
    from redistill.reporting.curves import plot_plane

    evaluations = {
        str(i): {"step": i, "proxy": 1.0 - 0.1 * i, "golden": 1.0 - 0.2 * i + 0.05 * i * i} for i in range(5)
    }
    plot_plane(
        tmp_path / "plane.png", experiment_of("teacher-hacking"), {"offline": [{"evaluations": evaluations}] * 2}
    )
    assert (tmp_path / "plane.png").stat().st_size > 1000
