"""The page of a comparison: curves with bands, differences, what each method cost. One self-contained HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from redistill.reporting.compare_terminal import COLUMNS, bounds, heading, reached, rows
from redistill.reporting.page import Bars, Chart, Level, Line, Page


def write_page(path: Path, found: Mapping[str, Any]) -> int:
    """Write the page of what `compare` found; its size in bytes."""
    names = list(found["methods"])
    page = Page(" · ".join(names), f"{found['task']} with {found['model']}")
    page.sentence(outcome(found), lead=True)
    page.sentence(heading(found) + ".")
    for note in found["notes"]:
        page.notice(note)
    page.heading("Scores")
    page.table(COLUMNS, rows(found), "Methods; the first is the baseline that the others are compared with")
    page.heading("Learning curves")
    page.chart(_curves(found))
    page.charts(
        [_by(found, unit) for unit in ("updates", "tokens", "seconds", "rollouts") if unit != found["budget"]["unit"]]
    )
    page.heading("Differences")
    page.charts([
        _differences(found, "difference", "Final score", "Mean of method minus baseline over the same seeds and prompts."),
        _differences(found, "area_difference", "Mean score over the budget", "The area between a curve and the baseline's."),
    ])  # fmt: skip
    page.heading("Budget to the baseline's final score")
    page.table(("method", "reaches it at", "share of resamples that do"), [
        [name, reached(facts["reach"], found["budget"]), f"{facts['reach']['reached']:.0%}"]
        for name, facts in found["methods"].items()
    ])  # fmt: skip
    page.heading("Cost")
    page.charts([_cost(found, unit) for unit in ("tokens", "seconds", "updates", "rollouts")])
    page.heading("Every run")
    _runs(page, found)
    page.heading("Settings")
    _settings(page, found)
    return page.write(path)


def outcome(found: Mapping[str, Any]) -> str:
    """The comparison in one sentence."""
    words = [
        f"{name} is {facts['difference']['verdict']}: {bounds(facts['difference'], sign=True)}"
        for name, facts in found["methods"].items() if facts["difference"] is not None
    ]  # fmt: skip
    return f"Against {found['baseline']}, {'; '.join(words)}."


def _curves(found: Mapping[str, Any]) -> Chart:
    """The metric against the budget with bands; seeds are pale lines."""
    unit = found["budget"]["unit"]
    series: list[Line | Bars] = []
    for number, (name, facts) in enumerate(found["methods"].items()):
        curve = facts["curve"]
        columns = {key: [point[key] for point in curve] for key in ("at", "estimate", "low", "high")}
        series.append(
            Line(name, columns["at"], columns["estimate"], columns["low"], columns["high"], colour=number, markers=True)
        )
    seeds = len(found["seeds"])
    over = "prompts only (one seed)" if seeds == 1 else f"{seeds} seeds and {found['prompts']} prompts"
    base = found["methods"][found["baseline"]]["final"]["estimate"]
    return Chart(
        f"held-out {found['metric']}", f"{unit} spent", found["metric"], series,
        note=f"Bands are 95% intervals over {over}, each place by itself; scores between two evaluations are interpolated.",
        levels=[Level(base, f"{found['baseline']} at the end")],
    )  # fmt: skip


def _by(found: Mapping[str, Any], unit: str) -> Chart:
    """Each run's own evaluations against another cost."""
    series: list[Line | Bars] = [
        Line(f"{name}, seed {seed}", [p[unit] for p in points], [p["score"] for p in points], colour=number, faint=True,
             markers=True)
        for number, (name, facts) in enumerate(found["methods"].items())
        for seed, points in zip(found["seeds"], facts["points"])
    ]  # fmt: skip
    return Chart(f"against {unit}", unit, found["metric"], series, note="A line for each run, no interval.")


def _differences(found: Mapping[str, Any], key: str, title: str, note: str) -> Chart:
    others = {name: facts[key] for name, facts in found["methods"].items() if facts[key] is not None}
    columns = {part: [gap[part] for gap in others.values()] for part in ("estimate", "low", "high", "verdict")}
    bars = Bars(
        f"minus {found['baseline']}", labels(list(others)), columns["estimate"], columns["low"], columns["high"],
        text=columns["verdict"],
    )  # fmt: skip
    return Chart(title, "method", f"difference in {found['metric']}", [bars], note=note)


def _cost(found: Mapping[str, Any], unit: str) -> Chart:
    costs = {name: facts["cost"][unit] for name, facts in found["methods"].items()}
    bars = Bars(unit, labels(list(costs)), [sum(values) / len(values) for values in costs.values()])
    what = {
        "seconds": "Seconds of training steps; evaluations are not counted.",
        "tokens": "Tokens that were generated.",
    }
    return Chart(f"{unit} a run", "method", unit, [bars], note=what.get(unit, ""))


def labels(names: Sequence[str], longest: int = 22) -> list[str]:
    """Names short enough to stand under a bar, each still its own; the tables have them in full."""
    cut = [name if len(name) <= longest else f"{name[: longest - 1]}…" for name in names]
    return [short if cut.count(short) == 1 else f"{i + 1}. {short}" for i, short in enumerate(cut)]


def _runs(page: Page, found: Mapping[str, Any]) -> None:
    page.table(("method", "seed", "final", "updates", "rollouts", "tokens", "seconds", "folder"), [
        [name, seed, facts["per_seed"][i], *(int(facts["cost"][unit][i]) for unit in ("updates", "rollouts", "tokens")),
         facts["cost"]["seconds"][i], facts["runs"][i]]
        for name, facts in found["methods"].items() for i, seed in enumerate(found["seeds"])
    ])  # fmt: skip


def _settings(page: Page, found: Mapping[str, Any]) -> None:
    """What differs between the methods, openly; all of it, folded."""
    every = {name: {**facts["settings"], **facts["options"]} for name, facts in found["methods"].items()}
    keys = list(dict.fromkeys(key for settings in every.values() for key in settings if key != "seed"))
    names = list(every)
    table = [[key, *(_told(every[name].get(key, "")) for name in names)] for key in keys]
    page.table(["setting", *names], [row for row in table if len(set(row[1:])) > 1], "Settings that differ")
    with page.folded("Settings that are the same"):
        page.table(["setting", "all"], [row[:2] for row in table if len(set(row[1:])) == 1])
    if found["command"]:
        page.code(found["command"])
    with page.folded("Versions"):
        page.table(["what", "version"], [[key, value] for key, value in found["versions"].items()])


def _told(value: Any) -> str:
    return "none" if value is None else str(value)
