"""Put a run together from names: the place where method, task, model and settings meet and are checked once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from redistill.config import RunConfig, split_settings
from redistill.core.domain import Domain, Ready
from redistill.core.loop import Report, Run
from redistill.core.method import Method, Stage, registered
from redistill.core.options import build as build_options
from redistill.core.options import plain_values
from redistill.core.runs import PACKAGES, RunFolder, default_path, versions
from redistill.core.specs import TeacherWeights
from redistill.core.state import digest
from redistill.core.stopping import Stop
from redistill.core.task import Task
from redistill.errors import UserError, nearest
from redistill.reporting import trackers

MAY_CHANGE = ("steps", "tracker", "trace_prompts", "trace_every", "keep_last", "keep_best", "samples_mb")
"""Settings that a resumed run may be given anew."""


def method_class(slug: str) -> type[Method]:
    """The registered method of a slug."""
    import redistill.methods  # noqa: F401  (registers all)

    known = registered()
    if slug not in known:
        raise UserError(f"method {slug!r} is unknown{nearest(slug, known)}")
    return known[slug]


def settings_class(cls: type[Method]) -> type[RunConfig]:
    """The settings of the domain that a method belongs to."""
    found: type[RunConfig] = import_module(f"redistill.{cls.domain}.settings").Settings
    return found


def settings(slug: str, given: Mapping[str, Any]) -> tuple[Method, RunConfig]:
    """Read and check the settings of a run: (method with its options, run settings over the paper's own)."""
    cls = method_class(slug)
    run, options = split_settings(given, cls, settings_class(cls))
    method, config = build_options(cls, options), build_options(settings_class(cls), {**cls.run_defaults, **run})
    method.check(config)
    return method, config


def stages_of(method: Method, config: RunConfig) -> list[Stage]:
    """The method's stages, after a warm start where the domain has one and it is asked for."""
    stages = list(method.stages())
    steps = getattr(config, "warm_start_steps", 0)
    if steps:
        share = getattr(config, "warm_start_in_context", 0.5)
        warm = build_options(method_class("sft"), {"in_context_share": share})
        stages.insert(0, Stage("warm-start", warm, steps, getattr(config, "warm_start_learning_rate", None)))
    return stages


def prepare(
    slug: str,
    given: Mapping[str, Any],
    *,
    out: Path | None = None,
    resume: bool = False,
    report: Report,
    command: str = "",
    stop: Stop | None = None,
) -> Run:
    """Everything of a run but its running: settings read, folder locked, task and model loaded, teachers copied.

    What is cheap to check comes before what is costly: settings, tracker, folder, task, tokenizers, room on the disk, and
    then the weights.
    """
    method, config = settings(slug, given)
    trackers.check(config.tracker)
    torch.manual_seed(config.seed)
    folder = RunFolder(out or default_path(slug, config.task, config.seed))
    try:
        record = {"method": slug, "options": plain_values(method), "run": plain_values(config), "command": command}
        _check_folder(folder, record, resume)
        stages = stages_of(method, config)
        teachers = [weights for stage in stages for weights in stage.method.teachers()]
        task, domain = _assembled(method, config, teachers, folder, report)
        domain.bank.need(teachers)
        facts = _same_as_before(folder, {**versions(), **domain.facts(), **_file_facts(task)}, report)
        folder.write("config.json", record)
        folder.write("versions.json", facts)
        report = trackers.tracked(report, config.tracker, folder, record)
        return Run(method, config, task, domain, folder, stages, report, stop or Stop())
    except BaseException:
        folder.close()
        raise


def _assembled(
    method: Method, config: RunConfig, teachers: Sequence[TeacherWeights], folder: RunFolder, report: Report
) -> tuple[Task, Domain]:
    """The domain's task and model, after everything that it can check without weights."""
    module = import_module(f"redistill.{method.domain}.assemble")
    ready: Ready | None = module.preflight(config, teachers) if hasattr(module, "preflight") else None
    kept = config.keep_last + config.keep_best
    size = (ready.checkpoint, kept, ready.model) if ready else (0, kept, 0)
    short = folder.check_room(*size)
    for sentence in [*(ready.warnings if ready else ()), *([short] if short else [])]:
        report("warning", {"text": sentence})
    made: tuple[Task, Domain] = module.assemble(config, ready.task) if ready else module.assemble(config)
    return made


def _check_folder(folder: RunFolder, record: Mapping[str, Any], resume: bool) -> None:
    """A folder with a run in it is only continued by the same run, and only when asked to."""
    earlier = folder.read("config.json")
    if earlier is None:
        return
    if not (isinstance(earlier, dict) and all(isinstance(earlier.get(key), dict) for key in ("options", "run"))):
        raise UserError(f"{folder.path / 'config.json'} is not a run's: choose another --out")
    if not resume:
        raise UserError(
            f"run folder {folder.path} already holds a run: add --resume to continue it, or choose another --out"
        )
    if earlier.get("method") != record["method"]:
        raise UserError(f"run folder {folder.path} holds a run of {earlier.get('method')}, not of {record['method']}")
    for part in ("options", "run"):
        for key, value in record[part].items():
            if earlier[part].get(key) != value and key not in MAY_CHANGE:
                raise UserError(
                    f"{key}={value} differs from the run in {folder.path}, which has {key}={earlier[part].get(key)}: "
                    "resume needs the same settings (only steps may grow, and the tracker and what is kept change)"
                )


def _file_facts(task: Task) -> dict[str, str]:
    """The SHA-256 of a task's file, where it is one."""
    path = getattr(task, "path", None)
    return {"task_sha256": digest(path)} if isinstance(path, Path) else {}


def _same_as_before(folder: RunFolder, facts: dict[str, Any], report: Report) -> dict[str, Any]:
    """What versions.json shall say: the facts now, or those of the run that is resumed. Other weights or another task file
    than the run began with are refused, other packages are told and kept as `resumed_with`."""
    earlier = folder.read("versions.json")
    if earlier is None:
        return facts
    if not isinstance(earlier, dict):
        raise UserError(f"{folder.path / 'versions.json'} is not a run's: choose another --out")
    for what, then, now in (
        ("the model's weights", _weights(earlier), _weights(facts)),
        ("the task file", earlier.get("task_sha256"), facts.get("task_sha256")),
    ):
        if then != now and then is not None:
            raise UserError(f"{what} changed since the run in {folder.path} began: resume needs the same")
    other = {key: facts[key] for key in ("python", *PACKAGES) if earlier.get(key) != facts[key]}
    if other:
        changes = ", ".join(f"{key} {earlier.get(key)} -> {value}" for key, value in other.items())
        report("warning", {"text": f"resumed with other versions, which may change numbers: {changes}"})
    return {**earlier, **({"resumed_with": other} if other else {})}


def _weights(facts: Mapping[str, Any]) -> Any:
    """SHA-256 by name of the model's files, where the domain tells them."""
    model = facts.get("model")
    return model.get("sha256") if isinstance(model, Mapping) else None
