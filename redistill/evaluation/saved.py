"""`redistill eval`: evaluate what a run left behind, a transformers folder or a model by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from redistill.build import method_class, settings_class
from redistill.core.domain import Domain
from redistill.core.options import build
from redistill.core.state import Piece, newest_good, verify
from redistill.errors import UserError


def evaluate_saved(
    target: str, task: str | None, k: int, prompts: int | None, pairs: Mapping[str, str]
) -> dict[str, Any]:
    """The domain's evaluation of `target`: a run folder (its own task and settings unless given), a folder or a name.

    Raises UserError when the target needs a task and none is given, or when a run has left no weights.
    """
    folder = Path(target)
    if k < 0:
        raise UserError(f"-k {k} is out of range: it must be 0 or more")
    given: dict[str, Any] = dict(pairs)
    given |= {"task": task} if task is not None else {}
    given |= {"eval_prompts": prompts} if prompts is not None else {}
    given |= {"eval_samples": k} if k else {}
    if (folder / "config.json").is_file() and "run" in json.loads((folder / "config.json").read_text()):
        step, restored_domain = restored(folder, given)
        return {"target": target, "label": target, "step": step, **restored_domain.evaluate("saved")}
    if task is None:
        raise UserError(f"{target!r} is not a run folder, so it has no task of its own: add --task")
    config = build(settings_class(method_class("sft")), {"model": target, **given})
    domain = import_module("redistill.text.assemble").assemble(config)[1]
    return {"target": target, "label": target, "step": 0, **domain.evaluate("saved")}


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
