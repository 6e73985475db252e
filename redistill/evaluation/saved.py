"""`redistill eval`: evaluate what a run left behind, a transformers folder or a model by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from redistill.build import method_class, settings_class
from redistill.core.domain import Domain
from redistill.core.files import read_object
from redistill.core.options import build
from redistill.core.state import newest_good, read_piece, verify
from redistill.errors import UserError
from redistill.evaluation.forgetting import difference


def evaluate_saved(
    target: str, task: str | None, k: int, prompts: int | None, pairs: Mapping[str, str], also: Sequence[str] = (),
    base: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The domain's evaluation of `target`: a run folder (its own task and settings unless given), a folder or a name.

    With a `base` model (a run's own start where `also` is given without one) `against` has the difference from it with its paired
    interval, on the task and on every one of `also`: what was won here and forgotten there. Raises UserError when the target
    needs a task and none is given, or when a run has left no weights.
    """
    if k < 0:
        raise UserError(f"-k {k} is out of range: it must be 0 or more")
    given: dict[str, Any] = dict(pairs)
    given |= {"task": task} if task is not None else {}
    given |= {"eval_prompts": prompts} if prompts is not None else {}
    given |= {"eval_samples": k} if k else {}
    record = _record(target)
    if record is None and task is None:
        raise UserError(f"{target!r} is not a run folder, so it has no task of its own: add --task")
    if also and base is None:
        if record is None:
            raise UserError(f"{target!r} is not a run folder: --also needs --base, the model that it is compared with")
        base = str(record["run"]["model"])
    step, domain = _domain(target, given)
    result = {"target": target, "label": target, "step": step, **domain.evaluate("saved")}
    if base is None:
        return result
    own = task or str((record or {})["run"]["task"])
    shared = {key: value for key, value in (record or {"run": {}})["run"].items() if key in SHARED}
    result |= {"base": base, "against": {}}
    for name in dict.fromkeys([own, *also]):
        start = _domain(base, {**shared, **given, "task": name})[1].evaluate("saved")
        now = result if name == own else _domain(target, {**given, "task": name})[1].evaluate("saved")
        result["against"][name] = difference(start, now)
    return result


SHARED = (
    "max_new_tokens",
    "eval_prompts",
    "eval_samples",
    "eval_temperature",
    "max_turns",
    "history",
    "dtype",
    "sample_batch",
)
"""Settings of a run that the evaluation of its base must share."""


def _domain(target: str, given: Mapping[str, Any]) -> tuple[int, Domain]:
    """The step and the domain of a run folder, a model folder or a model's name."""
    if _record(target) is not None:
        return restored(Path(target), given)
    config = build(settings_class(method_class("sft")), {"model": target, **given})
    domain: Domain = import_module("redistill.text.assemble").assemble(config)[1]
    return 0, domain


def _record(target: str | Path) -> dict[str, Any] | None:
    """What a run folder's config.json says; None for a folder that is not a run's (a model's has a config.json too)."""
    path = Path(target) / "config.json"
    if not path.exists():
        return None
    try:
        record = read_object(path)
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error})") from None
    if "run" in record and not (isinstance(record["run"], dict) and isinstance(record.get("method"), str)):
        raise UserError(f"{path} is not a run's")
    return record if "run" in record else None


def restored(folder: Path, pairs: Mapping[str, Any] = {}) -> tuple[int, Domain]:
    """The step of a run's newest good checkpoint, and the run's domain with the weights of then; `pairs` are other settings
    than the run had. UserError where no checkpoint is left."""
    record = _record(folder)
    if record is None:
        raise UserError(f"{folder} is not a run folder")
    cls = method_class(record["method"])
    config = build(settings_class(cls), {**record["run"], **pairs})
    checkpoint, _ = newest_good(folder / "checkpoints")
    if checkpoint is None:
        raise UserError(f"run folder {folder} has no usable checkpoint to evaluate")
    manifest = verify(checkpoint)
    domain: Domain = import_module(f"redistill.{cls.domain}.assemble").assemble(config)[1]
    for name, player in domain.players.items():
        player.restore(read_piece(checkpoint, manifest, f"player-{name}"))
    return int(manifest["step"]), domain
