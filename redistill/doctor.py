"""`redistill doctor`: everything about a run that can be known before it starts, and nothing trained."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from redistill.build import settings, stages_of
from redistill.config import load_recipe, recipe_names
from redistill.core.runs import versions
from redistill.errors import UserError, nearest


def examine(target: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Check a recipe (by name or file), a method by its slug, or settings that name their method in neither way; JSON values.

    Raises UserError, in one sentence, for the first thing that would stop the run: settings, packages, task, tokenizers,
    templates, a server that does not answer, prompts that do not fit, memory and disk.
    """
    slug, found = _meant(target)
    method, config = settings(slug, {**found, **given})
    report: dict[str, Any] = {"method": slug, "domain": method.domain, "packages": check_packages()}
    teachers = list(
        dict.fromkeys(weights for stage in stages_of(method, config) for weights in stage.method.teachers())
    )
    report["teachers"] = [str(weights) for weights in teachers]
    report["task"], report["model_name"] = config.task, config.model
    assemble = import_module(f"redistill.{method.domain}.assemble")
    look = getattr(assemble, "examine", None)
    if look is not None:
        report |= look(config, teachers)
    elif hasattr(assemble, "preflight"):
        ready = assemble.preflight(config, teachers)
        report |= {"warnings": list(ready.warnings), "checkpoint_bytes": ready.checkpoint, "model_bytes": ready.model}
    disk = _check_disk(
        report.get("checkpoint_bytes", 0), config.keep_last + config.keep_best, report.get("model_bytes", 0)
    )
    return {"ok": True, **report, "disk": disk}


def _meant(target: str | None) -> tuple[str, dict[str, Any]]:
    """(method, settings) of a recipe's name or file, or of a method's slug."""
    from redistill.build import method_class
    from redistill.core.method import registered

    if target is None:
        raise UserError("name a recipe, a .toml file or a method: `redistill doctor sdpo`")
    if target.endswith(".toml") or target in recipe_names():
        recipe = load_recipe(target)
        return recipe.method, {**recipe.run, **recipe.options}
    import redistill.methods  # noqa: F401

    if target not in registered():
        raise UserError(
            f"{target!r} is neither a recipe nor a method{nearest(target, [*recipe_names(), *registered()])}"
        )
    method_class(target)
    return target, {}


def check_packages() -> dict[str, str]:
    """Versions of what a run depends on; UserError for a package that is missing or outside of the range that is asked for."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in requires("redistill") or []]
    except PackageNotFoundError:
        wanted = []  # run from its sources: what is imported is what there is
    for one in wanted:
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(one.name)
        except PackageNotFoundError:
            raise UserError(f"package {one.name} is not installed: pip install '{one}'") from None
        if not one.specifier.contains(installed, prereleases=True):
            raise UserError(f"package {one.name} {installed} is outside of {one.specifier}: pip install '{one}'")
    return versions()


def _check_disk(checkpoint: int, kept: int, model: int) -> dict[str, int]:
    """Room for the checkpoints where runs are written; UserError where not even one fits."""
    free = shutil.disk_usage(Path.cwd()).free
    if free < checkpoint:
        raise UserError(
            f"the disk has {free / 1e9:.2f} GB free and one checkpoint needs about {checkpoint / 1e9:.2f} GB"
        )
    return {"free": free, "needed": (kept + 1) * checkpoint + model}


def lines(report: Mapping[str, Any]) -> list[str]:
    """The report as lines to read."""
    told = [f"method {report['method']}, task {report['task']}, model {report['model_name']}"]
    for key, value in report.get("student", {}).items():
        told.append(f"  {key}: {value}")
    for teacher in report.get("agreement", []):
        nats = teacher.get("template_nats")
        told.append(
            f"  teacher {teacher['teacher']}: {teacher['says']}"
            + ("" if nats is None else f", template mismatch {nats:+.4f} nats a token")
        )
    plan = report.get("memory", {})
    told += [f"  memory, {name}: {_size(size)}" for name, size in plan.items() if size]
    told.append(f"  disk: {_size(report['disk']['needed'])} needed, {_size(report['disk']['free'])} free")
    told += [f"  {name} {number}" for name, number in report["packages"].items()]
    told += [f"  warning: {sentence}" for sentence in report.get("warnings", [])]
    return [*told, "nothing stands in the way of this run"]


def _size(size: float) -> str:
    unit = next((u for u in ("B", "kB", "MB", "GB") if size < 1000 or u == "GB" or (size := size / 1000) is None), "GB")
    return f"{size:.3g} {unit}"
