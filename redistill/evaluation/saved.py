"""`redistill eval`: evaluate what a run left behind, a transformers folder or a model by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from redistill.build import method_class, settings_class
from redistill.core.domain import Domain
from redistill.core.options import build
from redistill.core.state import Piece, newest_good, verify
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


def _record(target: str) -> dict[str, Any] | None:
    """What config.json says of a run folder; None of anything else."""
    path = Path(target) / "config.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    return found if "run" in found else None


def _domain(target: str, given: Mapping[str, Any]) -> tuple[int, Domain]:
    """The step and the domain of a run folder, a model folder or a model's name."""
    if _record(target) is not None:
        return restored(Path(target), given)
    config = build(settings_class(method_class("sft")), {"model": target, **given})
    domain: Domain = import_module("redistill.text.assemble").assemble(config)[1]
    return 0, domain


def restored(folder: Path, pairs: Mapping[str, Any] = {}) -> tuple[int, Domain]:
    """The step of a run's newest good checkpoint, and the run's domain with the weights of then; `pairs` are other settings
    than the run had. UserError where no checkpoint is left."""
    record = json.loads((folder / "config.json").read_text())
    cls = method_class(record["method"])
    config = build(settings_class(cls), {**record["run"], **pairs})
    checkpoint, _ = newest_good(folder / "checkpoints")
    if checkpoint is None:
        raise UserError(f"run folder {folder} has no usable checkpoint to evaluate")
    manifest = verify(checkpoint)
    from safetensors.torch import load_file

    domain: Domain = import_module(f"redistill.{cls.domain}.assemble").assemble(config)[1]
    for name, player in domain.players.items():
        part = f"player-{name}"
        path = checkpoint / f"{part}.safetensors"
        player.restore(Piece(load_file(path) if path.is_file() else {}, manifest["parts"][part]))
    return int(manifest["step"]), domain
