"""The settings of a run. Strict, flat, torch-free: every key is declared once, with its meaning, default and range."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redistill.core.budget import Budget
from redistill.core.options import option, options_of
from redistill.errors import UserError, nearest


@dataclass(frozen=True)
class RunConfig:
    """What every run has, whatever its domain. A domain adds its own settings by inheritance (text/settings.py); a method
    may declare its paper's values as `run_defaults`."""

    task: str = option("sums", "task name with options, name:key=value,...")
    model: str = option("pocket", "model name of the domain, or a local folder")
    seed: int = option(0, "seed of prompts and samples", low=0)
    steps: int = option(100, "updates of the main stage", low=1)

    prompts_per_step: int = option(8, "prompts in a step", low=1)
    group_size: int = option(8, "episodes sampled for each prompt", low=1)

    learning_rate: float = option(1e-5, "AdamW learning rate", above=0, high=1e6)
    warmup_steps: int = option(0, "updates over which the learning rate rises from 0", low=0)
    weight_decay: float = option(0.0, "AdamW weight decay", low=0)
    beta2: float = option(0.999, "AdamW second-moment decay", low=0, high=0.99999)
    grad_clip: float = option(1.0, "global gradient norm bound", above=0)
    minibatches: int = option(1, "updates for each sampled batch (the batch is cut into so many)", low=1)
    epochs: int = option(
        1, "passes over each sampled batch; with more than one, each is in a keyed random order", low=1
    )

    eval_prompts: int = option(100, "held-out prompts of an evaluation", low=1)
    eval_every: int = option(0, "updates between evaluations; 0 evaluates before and after only", low=0)
    budget: Budget | None = option(
        None, "also end after the first step that reaches rollouts=N, tokens=N (generated) or seconds=N (of training)"
    )
    eval_parts: int = option(0, "equal parts of the budget with an evaluation at the end of each; 0 is off", low=0)
    save_every: int = option(25, "updates between checkpoints", low=1)
    keep_last: int = option(2, "newest checkpoints kept; with 1 there is none to go back to when it is damaged", low=1)
    keep_best: int = option(
        0, "checkpoints kept beside those: of the best evaluations by their main number; 0 keeps none", low=0
    )
    samples_mb: float = option(100.0, "most that samples.jsonl grows to, in MB; later samples are left out", low=0)
    save_model: bool = option(True, "save the trained model as ordinary transformers files at the end")
    trace_prompts: int = option(
        2,
        "held-out prompts whose credit is recorded through training, for `redistill report`; 0 records nothing",
        low=0,
        high=20,
    )
    trace_every: int | None = option(
        None, "updates between these records; none: at least 15, and at most 20 records in a run", low=1
    )
    max_bad_updates: int = option(5, "non-finite updates in a row after which the run stops", low=1)
    tracker: str = option(
        "none", "also log to a tracker (pip install redistill[trackers])",
        choices=("none", "tensorboard", "wandb", "trackio"),
    )  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """A method's slug with settings for the run and for the method, not yet read."""

    method: str
    run: Mapping[str, Any]
    options: Mapping[str, Any]


RECIPES = Path(__file__).parent / "recipes"


def recipe_names() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def load_recipe(name: str) -> Recipe:
    """Read a recipe by name or by path: a TOML file with `method`, run settings, and an [options] table."""
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    if not path.is_file():
        raise UserError(f"recipe {name!r} does not exist{nearest(name, recipe_names())}")
    try:
        table = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"recipe {path} is not valid TOML: {error}") from None
    method = table.pop("method", None)
    if not isinstance(method, str):
        raise UserError(f'recipe {path} does not name its method (method = "...")')
    options = table.pop("options", {})
    table.pop("about", None)
    if not isinstance(options, dict):
        raise UserError(f"recipe {path}: [options] must be a table")
    return Recipe(method, table, options)


def split_settings(
    pairs: Mapping[str, Any], method: type, settings: type[RunConfig]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sort key=value settings into the run's and the method's; a key of neither is an error with the nearest one."""
    run_keys, method_keys = options_of(settings), options_of(method)
    for key in pairs:
        if key not in run_keys and key not in method_keys:
            slug = getattr(method, "slug", method.__name__)
            raise UserError(
                f"{key!r} is neither a setting of a run nor an option of {slug}{nearest(key, [*run_keys, *method_keys])}"
            )
    run = {key: value for key, value in pairs.items() if key in run_keys}
    return run, {key: value for key, value in pairs.items() if key in method_keys}


def parse_pairs(pairs: list[str]) -> dict[str, str]:
    """Read ["key=value", ...]; a repeated or malformed pair is an error."""
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {pair!r} is not key=value")
        if key.strip() in found:
            raise UserError(f"--set gives {key.strip()!r} twice")
        found[key.strip()] = value
    return found
