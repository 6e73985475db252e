"""Every shipped recipe reads as it is; those on models that ship run a step."""

from __future__ import annotations

from pathlib import Path

import pytest
from redistill.build import method_class, prepare, settings
from redistill.catalogue import describe
from redistill.config import RECIPES, load_recipe, recipe_names
from redistill.reporting.terminal import reporter
from redistill.text.weights import SHIPPED

QUICK = {
    "steps": 1,
    "eval_prompts": 8,
    "save_model": "false",
    "eval_samples": 0,
    "eval_every": 0,
    "warm_start_steps": 1,
}
FIRST_STAGES = {"sd-zero": {"gather_steps": 1, "srt_steps": 1}, "rl-vs-distillation": {"gather_steps": 1}}
"""Fewer updates before the method's last stage."""


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_reads(name: str) -> None:
    recipe = load_recipe(name)
    settings(recipe.method, {**recipe.run, **recipe.options})


def on_pocket(name: str) -> bool:
    """Whether a recipe trains a model that ships (other domains run theirs in their own tests)."""
    recipe = load_recipe(name)
    return method_class(recipe.method).domain == "text" and recipe.run.get("model", "pocket") in SHIPPED


@pytest.mark.parametrize("name", [name for name in recipe_names() if on_pocket(name)])
def test_recipe_on_a_model_that_ships_runs_a_step(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    given = {**recipe.run, **recipe.options, **QUICK, **FIRST_STAGES.get(recipe.method, {})}
    run = prepare(recipe.method, given, out=tmp_path / name, report=reporter(quiet=True, silent=True))
    result = run.go(False)
    run.close()
    assert result["skipped_updates"] == 0
    assert result["steps"] >= 1


TEACHING = (
    "srpo",
    "rltf",
    "skill-sd",
    "caopd",
    "sd-zero",
    "pi-distill",
    "ssb",
    "kdrl",
    "rlad",
    "g-opd",
    "kepo",
    "scope",
    "tsd-kd",
    "paced",
    "sdpo",
    "opsd",
)
"""Methods whose recipe is scaled to this machine and stands beside the paper's own settings for a cluster."""


@pytest.mark.parametrize("slug", TEACHING)
def test_a_recipe_names_the_papers_own_settings_and_show_tells_the_rest(slug: str) -> None:
    lines = (RECIPES / f"{slug}.toml").read_text().splitlines()
    assert any(line.startswith("# The paper (") for line in lines)
    facts = describe(slug)
    assert all(facts[key] for key in ("idea", "objective", "options", "says_does", "run_defaults", "evidence"))
    assert all(option["meaning"] for option in facts["options"])
