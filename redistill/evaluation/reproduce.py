"""`redistill reproduce`: run an experiment's arms over seeds, compare by interval, write evidence/<slug>/.

Every run is an ordinary run folder; one that has finished with the same settings is not repeated. The grid is searched on a
seed that is not reported. A verdict is what the interval of the paired difference says: above 0 `shown`, below 0
`opposite`, else `not shown`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redistill.core.runs import versions
from redistill.errors import UserError
from redistill.evaluation.intervals import Interval, t_interval
from redistill.experiments import experiment_of
from redistill.experiments.base import Experiment

START, WARM = "start", "warm start"
"""The names of the untrained model, and of the model after its warm start, in a comparison."""
LABELS = {START: "before", WARM: "after warm-start"}


def reproduce(
    slug: str, *, seeds: Sequence[int], quick: bool = False, model: str | None = None, out: Path | None = None
) -> dict[str, Any]:
    """Run the experiment of a method and write its evidence; returns the verdict that was written."""
    from redistill.reporting.curves import plot_evidence, plot_plane

    began = time.monotonic()
    experiment = experiment_of(slug, model)
    _check_seeds(seeds, experiment)
    model = str(experiment.base["model"])
    first = experiment is experiment_of(slug)
    name = slug if first else f"{slug}-{model}"
    work = Path("runs") / "reproduce" / (name + ("-quick" if quick else ""))
    target = out or (work / "evidence" if quick else Path("evidence") / slug / ("" if first else model))
    target.mkdir(parents=True, exist_ok=True)
    pace = Pace(_runs(experiment, len(seeds), quick))
    tuned, search = _tune(experiment, work, quick, pace)
    results = {
        arm: [
            _one(
                experiment, arm, seed, work / f"{_file(arm)}-s{seed}", tuned.get(spec.tuned_as or arm, {}), quick, pace
            )
            for seed in seeds
        ]
        for arm, spec in experiment.arms.items()
    }
    verdict = _verdict(experiment, results, seeds, search, tuned)
    command = f"redistill reproduce {slug} --seeds {','.join(map(str, seeds))}" + (" --quick" if quick else "")
    verdict |= {
        "command": command + ("" if first else f" --model {model}"),
        "minutes": round(sum(r["seconds"] for rows in results.values() for r in rows) / 60, 1),
        "minutes_wall": round((time.monotonic() - began) / 60, 1), "versions": versions(),
    }  # fmt: skip
    _write(target, experiment, verdict, results)
    plot_evidence(target / "plot.png", experiment, verdict, results)
    if len(experiment.traces) == 2:
        plot_plane(target / "plane.png", experiment, results)
    print(f"{slug} on {model}: {verdict['verdict']} ({_words(verdict['difference'])}); evidence in {target}")
    return verdict


def _check_seeds(seeds: Sequence[int], experiment: Experiment) -> None:
    """Two seeds at least (one has no interval), each once, and none that the grid was searched on."""
    told = ",".join(map(str, seeds))
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {told} names a seed twice")
    if len(seeds) < 2:
        raise UserError(f"--seeds {told} is one seed, which gives no interval: name two or more")
    if experiment.tuning_seed in seeds:
        raise UserError(f"--seeds {told} holds {experiment.tuning_seed}, the seed that the grid is searched on")


@dataclass
class Pace:
    """How far a reproduction is: its runs, those that are done, and the seconds of those that ran now."""

    runs: int
    done: int = 0
    ran: list[float] = field(default_factory=list)

    def words(self) -> str:
        """The run that begins, and the time left at the mean pace so far."""
        told = f"run {self.done + 1} of {self.runs}"
        if not self.ran:
            return told
        left = (self.runs - self.done) * sum(self.ran) / len(self.ran)
        return f"{told}, about {left / 60:.0f} min left"


def _runs(experiment: Experiment, seeds: int, quick: bool) -> int:
    """Runs of the whole reproduction: the grid of every arm that is tuned, then every arm with every seed."""
    tuned = sum(spec.tuned_as is None for spec in experiment.arms.values())
    return tuned * sum(1 if quick else len(values) for values in experiment.grid.values()) + seeds * len(
        experiment.arms
    )


def _file(arm: str) -> str:
    return arm.replace(" ", "_").replace("+", "and")


def _settings(
    experiment: Experiment, arm: str, seed: int, tuned: Mapping[str, Any], extra: Mapping[str, Any]
) -> dict[str, Any]:
    return {**experiment.base, **experiment.arms[arm].options, **tuned, **extra, "seed": seed}


def _one(
    experiment: Experiment, arm: str, seed: int, folder: Path, tuned: Mapping[str, Any], quick: bool, pace: Pace,
    **extra: Any,
) -> dict[str, Any]:  # fmt: skip
    """Run one arm with one seed, or read its result when the folder already holds it."""
    from redistill.build import prepare
    from redistill.reporting.terminal import reporter

    given = _settings(experiment, arm, seed, tuned, {**extra, **(experiment.quick if quick else {})})
    resume = (folder / "config.json").is_file()
    print(f"--- {pace.words()}: {arm}, seed {seed}: {folder}", flush=True)
    began = time.monotonic()
    run = prepare(
        experiment.arms[arm].method, given, out=folder, resume=resume, report=reporter(quiet=True, silent=True)
    )
    try:
        finished = run.folder.read("result.json")
        result: dict[str, Any] = finished if finished else run.go(resume)
        shutil.rmtree(run.folder.checkpoints, ignore_errors=True)  # many runs, and only their results are needed
    finally:
        run.close()
    pace.done += 1
    if not finished:
        pace.ran.append(time.monotonic() - began)
    records = _records(folder / "metrics.jsonl")
    result["generated_tokens"] = sum(r["episodes"] * r["length"] for r in records if "episodes" in r and "length" in r)
    result["generations"] = sum(r["episodes"] for r in records if "episodes" in r)
    final = result["evaluations"]["after"]
    if experiment.derive is not None:
        before = result["evaluations"]["before"]
        before |= experiment.derive(before, before)
        final |= experiment.derive(before, final)
    print(f"    {experiment.metric} {final[experiment.metric]:.3f} in {result['seconds']:.0f} s", flush=True)
    return result


def _records(path: Path) -> list[dict[str, Any]]:
    import json

    return [json.loads(line) for line in path.read_text().splitlines()]


def _tune(
    experiment: Experiment, work: Path, quick: bool, pace: Pace
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The winning grid value of each arm, and the whole search for the record."""
    tuned: dict[str, dict[str, Any]] = {}
    search: dict[str, Any] = {}
    for key, values in experiment.grid.items():
        for arm, spec in experiment.arms.items():
            if spec.tuned_as is not None:
                continue
            scores = {}
            for value in values if not quick else list(values)[1:2]:
                folder = work / "tuning" / f"{_file(arm)}-{value:g}"
                result = _one(
                    experiment, arm, experiment.tuning_seed, folder, {key: value}, quick, pace, **experiment.tuning
                )
                scores[str(value)] = result["evaluations"]["after"][experiment.metric]
            best = max(scores, key=lambda text: scores[text])
            tuned[arm] = {key: float(best)}
            search[arm] = {"key": key, "scores": scores, "seed": experiment.tuning_seed, "chosen": float(best)}
    return tuned, search


def _values(results: Mapping[str, list[dict[str, Any]]], arm: str, metric: str) -> list[float]:
    """An arm's final numbers, one for each seed; "arm:measure" takes another number than the metric. The arms "start" and
    "warm start" are the first arm's model before training and after its warm start."""
    arm, _, measure = arm.partition(":")
    label = LABELS.get(arm, "after")
    rows = results[arm] if arm in results else next(iter(results.values()))
    return [float(result["evaluations"][label][measure or metric]) for result in rows]


def _difference(results: Mapping[str, list[dict[str, Any]]], pair: tuple[str, str], metric: str) -> dict[str, Any]:
    one, other = (_values(results, arm, metric) for arm in pair)
    gap: Interval = t_interval([a - b for a, b in zip(one, other)])
    return {
        "of": f"{pair[0]} - {pair[1]}",
        "estimate": gap.estimate,
        "low": gap.low,
        "high": gap.high,
        "level": gap.level,
    }


def _measures(rows: Sequence[Mapping[str, Any]], metric: str) -> dict[str, list[float]]:
    """Every other number of the final evaluations, a value for each seed."""
    finals = [result["evaluations"]["after"] for result in rows]
    names = [key for key, value in finals[0].items() if isinstance(value, (int, float)) and key not in ("step", metric)]
    return {name: [final[name] for final in finals] for name in names}


def _reached(difference: Mapping[str, Any]) -> str:
    if difference["low"] > 0:
        return "shown"
    return "opposite" if difference["high"] < 0 else "not shown"


def _words(difference: Mapping[str, Any]) -> str:
    return f"{difference['of']} = {difference['estimate']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]"


def _verdict(
    experiment: Experiment, results: Mapping[str, list[dict[str, Any]]], seeds: Sequence[int], search: Mapping[str, Any],
    tuned: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    metric = experiment.metric
    difference = _difference(results, experiment.compare, metric)
    before = next(iter(results.values()))[0]["evaluations"]["before"]
    arms = {
        name: {
            "options": dict(experiment.arms[name].options) | dict(tuned.get(experiment.arms[name].tuned_as or name) or {}),
            "per_seed": _values(results, name, metric),
            "length": [result["evaluations"]["after"].get("length") for result in rows],
            "measures": _measures(rows, metric),
            "cost": {
                "generations": [result["generations"] for result in rows],
                "tokens": [result["generated_tokens"] for result in rows], "seconds": [result["seconds"] for result in rows],
            },
        }
        for name, rows in results.items()
    }  # fmt: skip
    controls = {
        name: {**(d := _difference(results, pair, metric)), "reads": _reached(d)}
        for name, pair in experiment.controls.items()
    }
    premise = {key: value for key, value in before.items() if isinstance(value, (int, float))}
    return {
        "slug": experiment.slug, "claim": experiment.claim, "verdict": _reached(difference), "metric": metric, "arms": arms,
        "start": _values(results, START, metric), "difference": difference, "controls": controls, "premise": premise,
        "tuning": search, "seeds": list(seeds), "budget": experiment.budget,
    }  # fmt: skip


def _write(
    target: Path, experiment: Experiment, verdict: Mapping[str, Any], results: Mapping[str, list[dict[str, Any]]]
) -> None:
    import json

    (target / "verdict.json").write_text(json.dumps(verdict, indent=1) + "\n")
    columns = [experiment.metric, "length", *experiment.traces]
    curves = {
        arm: [
            [
                [e["step"], *(e.get(name) for name in columns)]
                for e in sorted(result["evaluations"].values(), key=lambda e: e["step"])
            ]
            for result in rows
        ]
        for arm, rows in results.items()
    }
    (target / "curves.json").write_text(json.dumps({"columns": ["step", *columns], "arms": curves}) + "\n")
