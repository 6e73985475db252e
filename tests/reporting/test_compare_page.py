"""The page and the table of a comparison: every number is there, names stay text, and a browser draws the charts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redistill.core.budget import Budget
from redistill.core.runs import finite
from redistill.evaluation.comparison import COSTS, Ended, Point, compared
from redistill.reporting.compare_page import labels, outcome, write_page
from redistill.reporting.compare_terminal import bounds, cost, print_comparison, reached, rows
from test_page import HOSTILE, check_page

NAMES = ("grpo", "sdpo:teacher=ema(0.1)", HOSTILE)


def run(luck: np.random.Generator, seed: int, gain: float) -> Ended:
    """Three evaluations of 40 prompts."""
    right = [(luck.random(40) < share).astype(float) for share in (0.2, 0.3 + gain / 2, 0.4 + gain)]
    points = [
        Point(label, {"updates": at / 64, "rollouts": at, "tokens": at * 10.0, "seconds": at / 100}, score)
        for label, at, score in zip(("before", "part-1", "after"), (0, 256, 512), right)
    ]
    return Ended(seed, points, points[-1].spent)


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What `compare` would hand over: three methods, the second better, the third with a name that would be HTML."""
    luck = np.random.default_rng(0)
    runs = {name: [run(luck, s, gain) for s in range(4)] for name, gain in zip(NAMES, (0.0, 0.4, 0.0))}
    methods = {
        name: {
            "slug": "grpo", "given": {}, "options": {"std": "none" if name == "grpo" else HOSTILE},
            "settings": {"learning_rate": 1e-4, "seed": 0}, "runs": [f"runs/{s}" for s in range(4)], **facts,
        }
        for name, facts in compared(runs, Budget("rollouts", 512), 4).items()
    }  # fmt: skip
    return finite({
        "format": 1, "task": "sums", "model": "pocket", "command": f"redistill compare {HOSTILE}", "metric": "accuracy",
        "budget": {"unit": "rollouts", "amount": 512}, "prompts": 40, "seeds": [0, 1, 2, 3], "baseline": "grpo", "level": 0.95,
        "methods": methods, "notes": [f"a note {HOSTILE}"], "versions": {"python": "3.11"},
    })  # fmt: skip


@pytest.fixture(scope="module")
def page_path(found: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "compare.html"
    assert write_page(path, found) == path.stat().st_size
    return path


def test_the_page_has_the_curves_with_their_bands_and_every_cost(found: dict[str, Any], page_path: Path) -> None:
    charts = {chart["title"]: chart for chart in check_page(page_path.read_text())["charts"].values()}
    curves = charts["held-out accuracy"]["series"]
    assert [series["name"] for series in curves] == list(NAMES)
    for series, facts in zip(curves, found["methods"].values()):
        for key, column in (("x", "at"), ("y", "estimate"), ("low", "low"), ("high", "high")):
            assert series[key] == pytest.approx([point[column] for point in facts["curve"]], rel=1e-5)
    assert charts["held-out accuracy"]["levels"][0]["at"] == pytest.approx(
        found["methods"]["grpo"]["final"]["estimate"], rel=1e-5
    )
    for unit in ("updates", "tokens", "seconds"):
        assert len(charts[f"against {unit}"]["series"]) == 3 * 4, "a line for each run"
    for unit in COSTS:
        bars = charts[f"{unit} a run"]["series"][0]
        assert bars["y"] == pytest.approx([np.mean(facts["cost"][unit]) for facts in found["methods"].values()])
    gaps = charts["Final score"]["series"][0]
    assert gaps["text"] == [found["methods"][name]["difference"]["verdict"] for name in NAMES[1:]]


def test_the_first_sentence_is_what_the_intervals_say(found: dict[str, Any], page_path: Path) -> None:
    told = outcome(found)
    assert told.startswith("Against grpo, sdpo:teacher=ema(0.1) is better: +0.")
    assert "is not distinguishable" in told
    assert found["methods"][NAMES[1]]["difference"]["low"] > 0
    assert "sdpo:teacher=ema(0.1) is better" in page_path.read_text()


def test_names_under_bars_are_short_and_still_apart() -> None:
    names = ["grpo", "sdpo:teacher=ema(0.1),feedback=never", "sdpo:teacher=ema(0.1),feedback=always"]
    assert labels(names) == ["grpo", "2. sdpo:teacher=ema(0.1)…", "3. sdpo:teacher=ema(0.1)…"]


def test_settings_that_differ_are_shown_apart(page_path: Path) -> None:
    text = page_path.read_text()
    differ = text[text.index("Settings that differ") : text.index("Settings that are the same")]
    assert "std" in differ
    assert "learning_rate" not in differ


def test_the_table_has_a_row_a_method(found: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    table = rows(found)
    assert [row[0] for row in table] == list(NAMES)
    assert [row[3] for row in table][:2] == ["baseline", "better"]
    assert table[0][6] == "8 updates, 512 rollouts, 5,120 tokens, 5 seconds"
    print_comparison(found)
    told = capsys.readouterr().out
    assert "512 rollouts a run, seeds 0, 1, 2, 3, 40 prompts; 95% intervals over seeds and prompts" in told
    assert "note: a note" in told


def test_what_has_no_bounds_and_what_is_not_reached_is_said_in_words() -> None:
    assert bounds({"estimate": 0.25, "low": None, "high": None}) == "0.250 (no interval)"
    assert bounds({"estimate": 0.25, "low": 0.1, "high": 0.4}, sign=True) == "+0.250 [+0.100, +0.400]"
    budget = {"unit": "tokens", "amount": 9000}
    assert (
        reached({"estimate": None, "low": None, "high": None, "reached": 0.25}, budget)
        == "not reached (25% of resamples do)"
    )
    assert (
        reached({"estimate": 1234.0, "low": 1000.0, "high": None, "reached": 0.9}, budget)
        == "1,234 tokens [1,000, beyond]"
    )
    assert cost({"updates": [1, 3], "rollouts": [10, 10], "tokens": [2000, 4000], "seconds": [1.0, 1.4]}) == (
        "2 updates, 10 rollouts, 3,000 tokens, 1 seconds"
    )


def test_one_seed_has_bands_over_prompts_and_the_page_says_so(found: dict[str, Any], tmp_path: Path) -> None:
    one = copy.deepcopy(found)
    one["seeds"] = [0]
    write_page(tmp_path / "one.html", one)
    text = (tmp_path / "one.html").read_text()
    assert "95% intervals over prompts only (one seed)" in text
