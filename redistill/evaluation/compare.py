"""`redistill compare`: methods on one task and model, the same prompts and seeds, one budget; runs that exist are not repeated.

Every run is an ordinary run folder, DIR/runs/<method>-s<seed>-<fingerprint>: the fingerprint is that of all settings, so a run is
found again whatever it is called, and a comparison that is broken off, or asked for again with one more method, reuses it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from redistill.build import method_class, prepare, settings, settings_class
from redistill.config import split_settings
from redistill.core.budget import UNBOUNDED, Budget, training_seconds
from redistill.core.loop import Report
from redistill.core.options import options_of, plain_values, read
from redistill.core.runs import finite, versions
from redistill.core.state import digest
from redistill.core.stopping import Stop
from redistill.errors import UserError, nearest
from redistill.evaluation.comparison import COSTS, Ended, Point, compared

DECIDED = ("task", "model", "seed", "budget")
"""Settings that the comparison itself decides."""
SHARED = (
    "eval_prompts", "eval_samples", "eval_temperature", "eval_parts", "eval_every", "utility", "max_new_tokens", "max_turns",
    "history", "dtype",
)  # fmt: skip
"""Settings that decide how answers are evaluated: the same for all methods, whatever a paper's own value is."""
DEFAULTS = {"eval_parts": 8, "utility": False, "save_model": False, "keep_last": 1, "steps": UNBOUNDED}
UNTOLD = ("tracker", "save_every", "keep_last", "save_model", "trace_prompts", "trace_every")
"""Settings that change no number, and so no fingerprint."""


@dataclass(frozen=True)
class Arm:
    """One of the methods compared: its name, its slug and the settings that are its own."""

    name: str
    slug: str
    given: Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """One run of a comparison."""

    arm: Arm
    seed: int
    given: Mapping[str, Any]
    record: Mapping[str, Any]
    folder: Path

    @property
    def ended(self) -> bool:
        """Whether its folder holds a run that has ended."""
        return (self.folder / "result.json").is_file()


def parse_arm(text: str) -> Arm:
    """Read `METHOD`, `METHOD:key=value,...` or `NAME=METHOD:key=value,...`; commas within brackets do not separate."""
    head, _, rest = text.partition(":")
    name, named, slug = head.rpartition("=")
    given: dict[str, str] = {}
    for part in (piece.strip() for piece in re.split(r",(?![^()]*\))(?![^\[\]]*\])", rest) if rest.strip()):
        key, equals, value = part.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UserError(f"{text!r}: {part!r} is not key=value (write METHOD:key=value,key=value)")
        if key in given:
            raise UserError(f"{text!r} gives {key!r} twice")
        given[key] = value.strip()
    method_class(slug.strip())
    return Arm(name.strip() if named else text.strip(), slug.strip(), given)


def compare(
    methods: Sequence[str | Arm], *, task: str, model: str | None, budget: str, seeds: Sequence[int], out: Path | None,
    common: Mapping[str, Any] = {}, report: Report | None = None, stop: Stop | None = None, command: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Run what is missing, then compare; writes out/compare.json and out/compare.html and returns the former's content.

    The first method is the baseline. `model` None is the domain's own (`pocket` for language), `out` None
    runs/compare-<task>-<model>. Raises UserError for what cannot be compared, before anything runs.
    """
    from redistill.reporting.compare_page import write_page

    report = report or (lambda event, facts: None)
    spent = Budget.parse(budget)
    arms = [parse_arm(one) if isinstance(one, str) else one for one in methods]
    model = model or default_model(arms)
    out = out or Path("runs") / f"compare-{_short(task)}-{_short(model)}"
    jobs = plan(arms, task, model, spent, seeds, common, out)
    _check_folder(out)
    report("plan", {"runs": len(jobs), "ended": sum(job.ended for job in jobs), "out": str(out)})
    for job in jobs:
        _run(job, report, stop or Stop(), command)
    found: dict[str, Any] = _content(arms, jobs, spent, seeds, {"task": task, "model": model, "command": command})
    found = finite({**found, "page": str(out / "compare.html")})
    (out / "compare.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    write_page(out / "compare.html", found)
    report("compared", found)
    return found


def default_model(arms: Sequence[Arm]) -> str:
    """The model of a run that names none."""
    return str(options_of(settings_class(method_class(arms[0].slug)))["model"].default) if arms else ""


def _short(text: str) -> str:
    return re.sub(r"\W+", "_", text.partition(":")[0].rpartition("/")[2])


# --- what is to be run ------------------------------------------------------------------------------------------------
def plan(
    arms: Sequence[Arm],
    task: str,
    model: str,
    budget: Budget,
    seeds: Sequence[int],
    common: Mapping[str, Any],
    out: Path,
) -> list[Job]:
    """All runs, the first seed of every method first; a UserError for arms that cannot be compared."""
    _check(arms, seeds)
    told = _shared(arms, common)
    files = _contents(task, model)
    jobs = []
    for seed in seeds:
        for arm in arms:
            decided = {"task": task, "model": model, "budget": str(budget), "seed": seed}
            known = options_of(settings_class(method_class(arm.slug)))
            defaults = {key: value for key, value in DEFAULTS.items() if key in known}
            given = {**defaults, **told, **arm.given, **decided}
            method, config = settings(arm.slug, given)
            run = {key: value for key, value in plain_values(config).items() if key not in UNTOLD}
            record = {"method": arm.slug, "options": plain_values(method), "run": run, **files}
            folder = out / "runs" / f"{arm.slug}-s{seed}-{fingerprint(record)}"
            jobs.append(Job(arm, seed, given, record, folder))
    return jobs


def fingerprint(record: Mapping[str, Any]) -> str:
    """Twelve hex digits of the SHA-256 of a record's canonical JSON."""
    return hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _check(arms: Sequence[Arm], seeds: Sequence[int]) -> None:
    if len(arms) < 2:
        raise UserError("compare needs two methods or more; the first is the baseline")
    names = [arm.name for arm in arms]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two methods are called {name!r}: name one of them, as in other={name}")
    if not seeds:
        raise UserError("compare needs a seed or more (--seeds 0,1,2)")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {','.join(map(str, seeds))} names a seed twice")
    domains = {method_class(arm.slug).domain: arm for arm in arms}
    if len(domains) > 1:
        one, other = list(domains.items())[:2]
        raise UserError(
            f"{one[1].slug} is a method of {one[0]} and {other[1].slug} of {other[0]}: they have no task in common"
        )
    for arm in arms:
        _check_arm(arm)


def _check_arm(arm: Arm) -> None:
    """Every key is one of the run's or the method's, and none that the comparison decides."""
    cls = method_class(arm.slug)
    split_settings(arm.given, cls, settings_class(cls))
    for key in arm.given:
        if key in DECIDED:
            raise UserError(f"{arm.name!r} gives {key}, which is the same for all methods: take --{_flag(key)}")
        if key in SHARED:
            raise UserError(
                f"{arm.name!r} gives {key}, which decides how answers are evaluated: give it to all, --set {key}={arm.given[key]}"
            )
    if cls.domain == "vision" and "steps" not in arm.given:
        raise UserError(f"{arm.name!r} lays its schedules out over its steps: write {arm.slug}:steps=N")


def _flag(key: str) -> str:
    return "seeds" if key == "seed" else key


def _shared(arms: Sequence[Arm], common: Mapping[str, Any]) -> dict[str, Any]:
    """The settings common to all: those given, and for evaluation the domain's own defaults, not a paper's."""
    known = options_of(settings_class(method_class(arms[0].slug)))
    for key, value in common.items():
        if key in DECIDED:
            raise UserError(f"--set {key}={value}: the comparison takes --{_flag(key)}")
        if key not in known:
            raise UserError(
                f"--set {key!r} is no setting of every run{nearest(key, known)} (an option of one method: METHOD:{key}=...)"
            )
        read(known[key], value)
    shared = {key: known[key].default for key in SHARED if key in known and key not in DEFAULTS}
    return {**shared, **common}


def _contents(task: str, model: str) -> dict[str, str]:
    """SHA-256 of what task and model name where that is a file or a folder here: its content is part of a fingerprint."""
    found = {}
    file = Path(re.sub(r"(\.(?:jsonl|parquet)):.*$", r"\1", task, flags=re.DOTALL))
    if file.is_file():
        found["task_sha256"] = digest(file)
    weights = sorted(Path(model).glob("*.safetensors")) if Path(model).is_dir() else []
    return found | {f"model_{path.name}": digest(path) for path in weights}


def _check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    if (out / "config.json").is_file():
        raise UserError(f"--out {out} is the folder of a run; a comparison needs its own")
    try:
        (out / "runs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror or error})") from None


# --- running ----------------------------------------------------------------------------------------------------------
def _run(job: Job, report: Report, stop: Stop, command: str) -> None:
    """Run one, continue it, or leave it be where it has ended. The checkpoints of a run that has ended are removed."""
    report("run", {"method": job.arm.name, "seed": job.seed, "folder": str(job.folder), "ended": job.ended})
    if not job.ended:
        stop.check()
        resume = (job.folder / "config.json").is_file()
        given = dict(job.given)
        run = prepare(job.arm.slug, given, out=job.folder, resume=resume, report=report, command=command, stop=stop)
        try:
            run.go(resume)
        finally:
            run.close()
    shutil.rmtree(job.folder / "checkpoints", ignore_errors=True)
    report("ran", {"method": job.arm.name, "seed": job.seed, "spent": read_run(job.folder, job.seed).spent})


def read_run(folder: Path, seed: int) -> Ended:
    """A run that has ended, from its folder: what it had spent at each evaluation is added up from its log."""
    try:
        result = json.loads((folder / "result.json").read_text())
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(
            f"the run in {folder} cannot be read ({error}): remove the folder, and it is run again"
        ) from None
    spent = dict.fromkeys(COSTS, 0.0)
    points = []
    for line in lines:
        if "evaluation" in line:
            facts = result["evaluations"][line["evaluation"]]
            points.append(Point(line["evaluation"], dict(spent), _scores(facts)))
            continue
        spent["updates"] += 1
        spent["rollouts"] += line["sampled"]
        spent["tokens"] += line["sampled_tokens"]
        spent["seconds"] += training_seconds(line)
    return Ended(seed, points, spent, str(folder))


def _scores(facts: Mapping[str, Any]) -> np.ndarray:
    """The score of each prompt; the metric alone where outcomes are not kept or are not what the metric is the mean of."""
    score = float(facts[facts["metric"]])
    outcomes = np.asarray(facts.get("outcomes", ()), dtype=np.float64)
    return outcomes if len(outcomes) and abs(outcomes.mean() - score) < 1e-9 else np.array([score])


# --- what came out ----------------------------------------------------------------------------------------------------
def _content(
    arms: Sequence[Arm], jobs: Sequence[Job], budget: Budget, seeds: Sequence[int], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """The whole of compare.json."""
    runs = {arm.name: [read_run(job.folder, job.seed) for job in jobs if job.arm is arm] for arm in arms}
    parts = max(1, int(jobs[0].record["run"]["eval_parts"]))
    found = compared(runs, budget, parts)
    after = json.loads((jobs[0].folder / "result.json").read_text())["evaluations"]["after"]
    methods = {}
    for arm in arms:
        own = [job for job in jobs if job.arm is arm]
        methods[arm.name] = {
            "slug": arm.slug, "given": dict(arm.given), "options": own[0].record["options"],
            "settings": own[0].record["run"], "runs": [str(job.folder) for job in own], **found[arm.name],
        }  # fmt: skip
    return {
        "format": 1, **facts, "budget": {"unit": budget.unit, "amount": budget.amount}, "metric": after["metric"],
        "prompts": len(runs[arms[0].name][0].points[-1].score_P), "seeds": list(seeds), "baseline": arms[0].name,
        "level": 0.95, "methods": methods, "notes": notes(methods, budget, seeds, jobs), "versions": versions(),
    }  # fmt: skip


def notes(methods: Mapping[str, Any], budget: Budget, seeds: Sequence[int], jobs: Sequence[Job]) -> list[str]:
    """Sentences that a reader must not miss: what intervals mean, what was spent beside the budget, other versions."""
    told = []
    if len(seeds) == 1:
        told.append(
            f"one seed ({seeds[0]}): no interval over seeds can be given; intervals are over prompts only and say nothing of "
            "other seeds. Name two or more (--seeds 0,1,2)"
        )
    for name, facts in methods.items():
        spent = facts["cost"][budget.unit]
        over, under = max(spent) - budget.amount, budget.amount - min(spent)
        if over > 0:
            told.append(f"{name} spent up to {over:,.4g} {budget.unit} more than the budget: a step is not cut")
        if under > 0:
            told.append(
                f"{name} ended up to {under:,.4g} {budget.unit} below the budget, at its own steps={facts['settings']['steps']}; "
                "its last score is taken for the rest"
            )
    made = {json.dumps(_version(job.folder), sort_keys=True) for job in jobs}
    if len(made) > 1:
        told.append("the runs were made with different versions of packages (versions.json in their folders)")
    return told


def _version(folder: Path) -> dict[str, Any]:
    path = folder / "versions.json"
    facts = json.loads(path.read_text()) if path.is_file() else {}
    return {key: facts.get(key) for key in ("python", "redistill", "torch", "transformers", "numpy")}
