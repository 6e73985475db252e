"""`redistill report`: the page of a run. The outcome in one sentence, then everything that made it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from redistill.errors import UserError
from redistill.reporting import viewer
from redistill.reporting.page import Chart, Level, Line, Page, number
from redistill.reporting.run_files import Record, RunFiles, read_run
from redistill.reporting.terminal import outcome

POINTS = 400
"""Most points of a curve: longer runs are averaged over consecutive steps."""
EPISODES = 12
"""Sampled episodes that are listed."""
PHASES = ("collect", "signal", "update", "evolve")
LEARNING = {
    "reward": ("Reward in training", "mean reward of the sampled episodes"),
    "loss": ("Loss", "sum of the terms, each over its own count; it may rise while the policy improves"),
    "entropy": ("Entropy", "mean entropy of the student where it is measured (nats)"),
    "length": ("Response length", "mean steps (tokens) of an episode"),
    "truncated": ("Truncation", "share of the episodes that were cut off by their limit"),
    "dead_groups": ("Dead groups", "share of prompts whose episodes all have one reward: they carry no advantage"),
    "grad_norm": ("Gradient norm", "before clipping"),
    "active": ("Active", "share of what could be taught that was"),
}
"""Measured numbers with a chart of their own where a run has them; the rest is folded."""


SHARES = dict.fromkeys(("truncated", "dead_groups", "active"), (-0.02, 1.02))
"""The range of the charts of shares."""


def report(paths: Sequence[Path], out: Path | None) -> list[dict[str, Any]]:
    """Write the page of each run (RUN/report.html unless `out` is given); what `--json` prints of each."""
    if out is not None and len(paths) > 1:
        raise UserError(f"--out names one page, and {len(paths)} runs were given: leave it out (RUN/report.html)")
    found = []
    for path in paths:
        run = read_run(path)
        page, told = run_page(run)
        target = out or path / "report.html"
        found.append({**told, "page": str(target), "bytes": page.write(target)})
    return found


def run_page(run: RunFiles) -> tuple[Page, dict[str, Any]]:
    """The page of a run, and its main facts as JSON values."""
    settings = run.config["run"]
    page = Page(
        f"{run.config['method']} on {settings['task']}",
        f"{settings['model']}, seed {settings['seed']}, run {run.path.name}",
    )
    sentence = told_outcome(run)
    page.sentence(sentence, lead=True)
    page.tiles(_tiles(run))
    _alarms(page, run.alarms)
    page.heading("Learning")
    page.charts(_learning(run))
    _rest(page, run)
    page.heading("Evaluation")
    _evaluation(page, run)
    viewer.add_credit(page, run)
    viewer.add_snapshots(page, run)
    page.heading("Sampled episodes")
    _samples(page, run)
    page.heading("Time")
    phases = _time(page, run)
    page.heading("Settings and versions")
    _settings(page, run)
    told = {
        "run": str(run.path), "method": run.config["method"], "finished": run.result is not None, "outcome": sentence,
        "steps": len(run.steps), "seconds_per_step": phases, "alarms": len(run.alarms),
        "evaluations": {
            label: {key: value for key, value in facts.items() if key != "outcomes"}
            for label, facts in run.evaluations.items()
        },
    }  # fmt: skip
    return page, told


def told_outcome(run: RunFiles) -> str:
    """The run in one sentence."""
    if run.result is not None and {"before", "after"} <= set(run.evaluations):
        said = outcome(run.evaluations)
        return said[0].upper() + said[1:] + "."
    done = run.steps[-1]["step"] if run.steps else 0
    said = f"This run is not finished: {done} of {run.config['run']['steps']} updates are done"
    if run.evaluations:
        label, facts = list(run.evaluations.items())[-1]
        said += f"; the last evaluation ({label}) has {facts['metric']} {facts[facts['metric']]:.3f}"
    return said + "."


def _tiles(run: RunFiles) -> Iterable[tuple[str, Any, str]]:
    if run.evaluations:
        facts = list(run.evaluations.values())[-1]
        low = f"95% interval [{facts['low']:.3f}, {facts['high']:.3f}]" if "low" in facts else ""
        yield f"held-out {facts['metric']}", float(facts[facts["metric"]]), low
    rewards = [row["reward"] for row in run.steps if row.get("reward") is not None]
    if rewards:
        last = rewards[-10:]
        yield "reward in training", sum(last) / len(last), f"mean of the last {len(last)} updates"
    yield (
        "updates",
        run.steps[-1]["step"] if run.steps else 0,
        f"{sum(int(r.get('episodes', 0)) for r in run.steps):,} episodes",
    )
    seconds = sum(sum(phases_of(row).values()) for row in run.steps)
    if run.steps:
        yield "time", f"{seconds / 60:.1f} min", f"{seconds / len(run.steps):.2f} s an update, without evaluation"
    skipped = sum(int(row.get("skipped") or 0) for row in run.steps)
    yield "health alarms", len({row["name"] for row in run.alarms}), f"{skipped} updates skipped as not finite"


def _alarms(page: Page, alarms: Sequence[Record]) -> None:
    """The health alarms that the run has recorded, a line for each kind."""
    if not alarms:
        return
    page.heading("Health")
    kinds: dict[str, list[Record]] = {}
    for row in alarms:
        kinds.setdefault(str(row["name"]), []).append(row)
    for name, own in kinds.items():
        last = own[-1]
        when = (
            f"update {last['step']}"
            if len(own) == 1
            else f"{len(own)} times, updates {own[0]['step']} to {last['step']}"
        )
        page.alarm(name.replace("_", " "), when, str(last.get("means", "")), str(last.get("try", "")))


# --- curves -----------------------------------------------------------------------------------------------------------------
def curve(steps: Sequence[Record], key: str, colour: int = 0) -> list[Line]:
    """A measured number against updates: as it is (pale), and its moving mean. Long runs are averaged into POINTS parts."""
    known = [(row["step"], row[key]) for row in steps if isinstance(row.get(key), (int, float))]
    size = -(-len(known) // POINTS)
    bins = [known[at : at + size] for at in range(0, len(known), size or 1)]
    x = [own[-1][0] for own in bins]
    y = [sum(value for _, value in own) / len(own) for own in bins]
    reach = max(1, len(y) // 20)
    if len(y) < 12:
        return [Line(key, x, y, colour=colour, markers=True)]
    mean = [sum(part) / len(part) for part in (y[max(0, i - reach) : i + reach + 1] for i in range(len(y)))]
    return [
        Line(f"{key}, each update", x, y, colour=colour, faint=True),
        Line(f"{key}, moving mean", x, mean, colour=colour),
    ]


def _learning(run: RunFiles) -> list[Chart]:
    charts = []
    facts = [row for row in run.evaluations.values() if isinstance(row.get(row["metric"]), (int, float))]
    if facts:
        facts.sort(key=lambda row: row["step"])
        metric = facts[0]["metric"]
        bands = all("low" in row for row in facts)
        lines = [Line(
            f"held-out {metric}", [row["step"] for row in facts], [row[metric] for row in facts], colour=2, markers=True,
            low=[row["low"] for row in facts] if bands else None, high=[row["high"] for row in facts] if bands else None,
        )]  # fmt: skip
        for n, key in enumerate(("avg_at_k", "pass_at_k")):
            own = [row for row in facts if key in row]
            if own:
                name = key.replace("_at_k", f"@{own[-1].get('k', 'k')}")
                lines.append(Line(name, [r["step"] for r in own], [r[key] for r in own], colour=n + 3, markers=True))
        charts.append(
            Chart(
                f"Held-out {metric}", "updates", metric, lines, "prompts that are never trained on, with 95% intervals"
            )
        )
    known = {key for row in run.steps for key, value in row.items() if isinstance(value, (int, float))}
    for key, (title, note) in LEARNING.items():
        if key in known:
            lines, axis = curve(run.steps, key), key.replace("_", " ")
            charts.append(Chart(title, "updates", axis, lines, note, _stages(run), SHARES.get(key)))
    return charts


def _stages(run: RunFiles) -> list[Level]:
    """Where one stage ends and the next begins."""
    found = []
    for before, after in zip(run.steps, run.steps[1:]):
        if before.get("stage") != after.get("stage"):
            found.append(Level(float(before["step"]), f"{before.get('stage')} ends", x=True))
    return found


def _rest(page: Page, run: RunFiles) -> None:
    """All other measured numbers, by the term that measured them."""
    keys = dict.fromkeys(key for row in run.steps for key, value in row.items() if isinstance(value, (int, float)))
    shown = {*LEARNING, "step", "skipped", "episodes", *(f"seconds_{phase}" for phase in PHASES)}
    rest = sorted(key for key in keys if key not in shown and any(row.get(key) for row in run.steps))
    if rest:
        with page.folded(f"All other measured numbers ({len(rest)})"):
            page.charts([Chart(key, "updates", key.rpartition("/")[2], curve(run.steps, key)) for key in rest])


# --- tables -----------------------------------------------------------------------------------------------------------------
def _evaluation(page: Page, run: RunFiles) -> None:
    if not run.evaluations:
        page.sentence("Nothing has been evaluated yet.")
        return
    rows = sorted(run.evaluations.items(), key=lambda item: item[1]["step"])
    skip = {"step", "metric", "evaluation", "low", "high", "k", "prompts", "outcomes"}
    keys = dict.fromkeys(k for _, row in rows for k, v in row.items() if isinstance(v, (int, float)) and k not in skip)
    metric = rows[-1][1]["metric"]
    order = [metric, *(key for key in keys if key != metric)]
    names = {"avg_at_k": f"avg@{rows[-1][1].get('k', 'k')}", "pass_at_k": f"pass@{rows[-1][1].get('k', 'k')}"}
    body = [
        [label, row["step"], _with_interval(row, metric), *(row.get(key) for key in order[1:])] for label, row in rows
    ]
    columns = ["evaluation", "updates", *(names.get(key, key.replace("_", " ")) for key in order)]
    page.table(columns, body, f"Held-out prompts ({rows[-1][1].get('prompts', '?')}); intervals at 95%")
    if "pass_at_k" in keys:
        k = rows[-1][1].get("k")
        page.sentence(
            f"avg@{k} is the share of {k} sampled answers that are right, pass@{k} the unbiased estimate of the share of "
            f"prompts that one of {k} answers solves."
        )


def _with_interval(row: Record, metric: str) -> Any:
    value = row.get(metric)
    if value is None or "low" not in row:
        return value
    return f"{value:.3f} [{row['low']:.3f}, {row['high']:.3f}]".replace(" ", "\u00a0")  # in one line


def _samples(page: Page, run: RunFiles) -> None:
    if not run.samples:
        page.sentence("This run has no sampled episodes yet.")
        return
    rows = [
        [row["step"], viewer.question(row["prompt"]), row["text"], row["reward"], row["finish"], row.get("feedback")]
        for row in viewer.thinned(run.samples, EPISODES)
    ]
    page.table(
        ["update", "prompt", "answer", "reward", "ended by", "feedback"], [[_cut(cell) for cell in row] for row in rows],
        f"{len(rows)} of {len(run.samples)} kept episodes, as they were sampled in training",
    )  # fmt: skip


def _cut(cell: Any) -> Any:
    return f"{cell[:600]} ..." if isinstance(cell, str) and len(cell) > 600 else cell


def phases_of(row: Record) -> dict[str, float]:
    """Seconds of each phase of a step."""
    return {key.removeprefix("seconds_"): row[key] for key in row if key.startswith("seconds_")}


def _time(page: Page, run: RunFiles) -> dict[str, float]:
    if not run.steps:
        page.sentence("No update has been made yet.")
        return {}
    total: dict[str, float] = {}
    for row in run.steps:
        for phase, seconds in phases_of(row).items():
            total[phase] = total.get(phase, 0.0) + seconds
    everything = sum(total.values()) or 1.0
    mean = {phase: round(seconds / len(run.steps), 4) for phase, seconds in total.items()}
    page.tiles([(phase, f"{mean[phase]:.3f} s", f"{total[phase] / everything:.0%} of an update") for phase in total])
    curves = [(phase, curve(run.steps, f"seconds_{phase}")[-1]) for phase in total]
    named = [replace(line, name=phase, colour=i) for i, (phase, line) in enumerate(curves)]
    page.chart(
        Chart(
            "Seconds of each phase",
            "updates",
            "seconds",
            named,
            "collect samples and judges; signal scores; update trains",
        )
    )
    return mean


def _settings(page: Page, run: RunFiles) -> None:
    if run.config.get("command"):
        page.code(str(run.config["command"]))
    for title, values in (("Options of the method", run.config["options"]), ("Settings of the run", run.config["run"])):
        with page.folded(title, is_open=title.startswith("Options")):
            page.table(["key", "value"], [[key, str(value)] for key, value in values.items()])
    with page.folded("Versions and weights"):
        page.table(["what", "value"], [[key, _flat(value)] for key, value in run.versions.items()])
    for name, text in run.views.items():
        with page.folded(f"What was read first ({name}.txt)"):
            page.code(text[:20000])


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_flat(item)}" for key, item in value.items())
    return number(value)
