"""Budgets: read strictly, reached exactly as told, counted over every answer that is sampled, kept over a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from redistill.build import prepare
from redistill.core.budget import PATIENCE, UNBOUNDED, Budget, Dry
from redistill.core.loop import Run
from redistill.core.stopping import Interrupted
from redistill.errors import UserError

SMALL = {
    "steps": UNBOUNDED, "prompts_per_step": 2, "group_size": 3, "max_new_tokens": 12, "eval_prompts": 4, "utility": False,
    "save_every": 2, "trace_prompts": 0, "save_model": False, "learning_rate": 1e-3,
}  # fmt: skip


def made(path: Path, slug: str = "grpo", resume: bool = False, **settings: Any) -> Run:
    return prepare(slug, {**SMALL, **settings}, out=path, resume=resume, report=lambda event, facts: None)


def ran(path: Path, slug: str = "grpo", resume: bool = False, **settings: Any) -> dict[str, Any]:
    run = made(path, slug, resume, **settings)
    try:
        return run.go(resume)
    finally:
        run.close()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("text", "told"),
    [("rollouts=2000", "rollouts=2000"), (" tokens = 1e5 ", "tokens=100000"), ("seconds=0.5", "seconds=0.5")],
)
def test_a_budget_reads_back_as_it_is_written(text: str, told: str) -> None:
    assert str(Budget.parse(text)) == told
    assert Budget.parse(told) == Budget.parse(text)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("rollout=5", "rollouts"), ("2000", "rollouts"), ("rollouts", "NUMBER"), ("rollouts=many", "NUMBER"),
        ("rollouts=0", "above 0"), ("tokens=-1", "above 0"), ("seconds=nan", "above 0"), ("rollouts=1.5", "whole"),
    ],
)  # fmt: skip
def test_a_budget_that_is_none_is_refused(text: str, named: str) -> None:
    with pytest.raises(UserError, match=named):
        Budget.parse(text)


def test_a_run_ends_after_the_step_that_reaches_its_budget(tmp_path: Path) -> None:
    """Six rollouts a step: 12 is reached by two steps exactly, 13 by a third, which is not cut."""
    assert ran(tmp_path / "a", budget="rollouts=12")["spent"]["rollouts"] == 12
    result = ran(tmp_path / "b", budget="rollouts=13")
    assert (result["spent"]["rollouts"], result["spent"]["updates"]) == (18, 3)
    logged = [line for line in lines(tmp_path / "b") if "evaluation" not in line]
    assert sum(line["sampled"] for line in logged) == 18
    assert sum(line["sampled_tokens"] for line in logged) == result["spent"]["tokens"]
    assert sum(line["episodes"] * line["length"] for line in logged) == pytest.approx(result["spent"]["tokens"])


def test_tokens_and_seconds_end_a_run_too(tmp_path: Path) -> None:
    result = ran(tmp_path / "a", budget="tokens=100")
    logged = [line["sampled_tokens"] for line in lines(tmp_path / "a") if "evaluation" not in line]
    assert sum(logged[:-1]) < 100 <= sum(logged) == result["spent"]["tokens"]
    result = ran(tmp_path / "b", budget="seconds=0.2")
    took = [
        sum(v for k, v in line.items() if k.startswith("seconds_") and k != "seconds_record")
        for line in lines(tmp_path / "b") if "evaluation" not in line
    ]  # fmt: skip
    assert sum(took[:-1]) < 0.2 <= sum(took)
    assert result["spent"]["seconds"] == pytest.approx(sum(took), abs=1e-3)


def test_steps_end_a_run_that_has_budget_left(tmp_path: Path) -> None:
    assert ran(tmp_path / "a", budget="rollouts=1000", steps=1)["spent"]["rollouts"] == 6


def test_evaluations_are_at_equal_parts_of_the_budget(tmp_path: Path) -> None:
    """24 rollouts in four steps of six; a third of it is passed at 12, two thirds at 18."""
    found = ran(tmp_path / "a", budget="rollouts=24", eval_parts=3)["evaluations"]
    assert {label: facts["step"] for label, facts in found.items()} == {
        "before": 0,
        "part-1": 2,
        "part-2": 3,
        "after": 4,
    }
    found = ran(tmp_path / "b", budget="rollouts=6", eval_parts=3)["evaluations"]
    assert list(found) == ["before", "after"], "one step passes them all"


def test_answers_that_others_write_and_second_turns_are_counted(tmp_path: Path) -> None:
    """pi-distill's rollouts are sampled under the teacher's view and by nobody else; rltf samples twice for each episode."""
    result = ran(tmp_path / "a", "rltf", budget="rollouts=13")
    logged = [line for line in lines(tmp_path / "a") if "evaluation" not in line]
    assert result["spent"]["rollouts"] >= 13
    assert all(line["sampled"] > 6 for line in logged), "first answers, and those after the feedback"


def test_a_run_that_samples_nothing_says_that_it_would_never_end(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sft sampled nothing in 20 steps.*seconds"):
        ran(tmp_path / "a", "sft", budget="rollouts=100", eval_prompts=1)
    assert ran(tmp_path / "b", "sft", budget="rollouts=100", steps=3)["spent"]["updates"] == 3


def test_patience_is_for_steps_in_a_row() -> None:
    dry, budget = Dry(), Budget("tokens", 10)
    for _ in range(3):
        for _ in range(PATIENCE - 1):
            dry.watch("m", budget, {}, UNBOUNDED)
        dry.watch("m", budget, {"tokens": 1}, UNBOUNDED)
    for _ in range(2 * PATIENCE):
        dry.watch("m", budget, {}, 500)  # a stage with an end of its own
        dry.watch("m", Budget("seconds", 1), {}, UNBOUNDED)
        dry.watch("m", None, {}, UNBOUNDED)


def test_a_run_that_is_broken_off_ends_where_it_would_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ran(tmp_path / "whole", budget="rollouts=30", eval_parts=2)
    run = made(tmp_path / "broken", budget="rollouts=30", eval_parts=2)
    checks = iter(range(100))

    def check() -> None:
        if next(checks) == 2:
            raise Interrupted(2)

    monkeypatch.setattr(run.stop, "check", check)
    with pytest.raises(Interrupted):
        run.go(False)
    run.close()
    resumed = ran(tmp_path / "broken", resume=True, budget="rollouts=30", eval_parts=2)
    assert resumed["evaluations"] == whole["evaluations"]
    for unit in ("updates", "rollouts", "tokens"):
        assert resumed["spent"][unit] == whole["spent"][unit]


def test_a_finished_run_does_not_go_on_beyond_its_budget(tmp_path: Path) -> None:
    """Its result may have been lost in a crash: asked again, it writes it and trains no more."""
    first = ran(tmp_path / "a", budget="rollouts=12")
    (tmp_path / "a" / "result.json").unlink()
    again = ran(tmp_path / "a", resume=True, budget="rollouts=12")
    assert again["spent"] == first["spent"]
    assert again["evaluations"] == first["evaluations"]
