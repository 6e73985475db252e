"""pi-Distill where episodes are played in turns: who reads what, several spans, and a run from the command line's settings."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from redistill.build import prepare
from redistill.core.episode import flat
from redistill.core.signal import LogProb
from redistill.reporting.terminal import reporter
from redistill.tasks.tools import Tools

OPTIONS = {"temperature": 1.0, "prompts_per_step": 2, "group_size": 2, "max_new_tokens": 4}
MARK = {"with_solution": "S", "with_hint": "H"}


def world_bench(bench, **given):
    b = bench("pi-distill", **OPTIONS, **given)
    b.task = b.domain.task = Tools(steps=3, slack=1, partial=True)
    return b


@pytest.mark.parametrize("privilege", ["with_solution", "with_hint"])
def test_the_teacher_plays_with_the_information_and_both_learn_from_its_turns(bench, privilege):
    b = world_bench(bench, privilege=privilege, drop_dead_groups="false")
    groups = b.method.collect(b)
    rows = flat(groups)
    read = b.domain.lm.tokenizer.decode
    told = {p.uid: p.solution if privilege == "with_solution" else p.data["hint"] for p in b.next_prompts()}
    assert all(read(row.context).endswith(f"{MARK[privilege]}{told[row.prompt.uid]}<a>") for row in rows)
    assert all(len(row.trajectory.spans) == len(row.trajectory.turns) > 1 for row in rows)
    signal = b.signal(groups)
    teachers, students = signal.rows[: len(rows)], signal.rows[len(rows) :]
    assert [row.trajectory for row in teachers] == [row.trajectory for row in students]
    assert all(read(row.context) == f"<s><u>{row.prompt.content[-1]['content']}<a>" for row in students)
    scored = b.domain.score(teachers, [LogProb()])[LogProb()]
    torch.testing.assert_close(scored, torch.cat([row.behaviour_logp_T for row in rows]), rtol=1e-3, atol=1e-3)
    assert math.isfinite(b.logged["kl"])
    assert b.logged["kl"] > 0
    gradient = b.gradient(groups)
    assert torch.isfinite(gradient).all()
    assert float(gradient.norm()) > 0


def test_opsd_plays_plain_and_is_taught_by_itself_with_the_information(bench):
    b = world_bench(bench, variant="opsd")
    groups = b.method.collect(b)
    assert all(row.sampled_under == "plain" for row in flat(groups))
    kl = b.signal(groups).terms[1]
    assert all("S" in b.domain.lm.tokenizer.decode(context) for context in kl.teacher.contexts)
    assert float(b.gradient(groups).norm()) > 0


def test_only_the_policys_own_tokens_are_trained(bench):
    b = world_bench(bench)
    groups = b.method.collect(b)
    spans = [sum(high - low for low, high in row.trajectory.spans) for row in flat(groups)]
    assert [row.steps for row in flat(groups)] == spans
    assert all(row.steps < len(row.trajectory.ids) for row in flat(groups))


@pytest.mark.parametrize("task", ["tools:steps=3,slack=1,partial=true", "sokoban:high=4"])
def test_a_run_in_a_world(tmp_path: Path, task: str) -> None:
    given = {
        "task": task, "model": "pocket", "steps": 2, "prompts_per_step": 2, "group_size": 2, "minibatches": 1, "max_new_tokens": 4,
        "max_turns": 6, "eval_prompts": 4, "save_model": "false",
    }  # fmt: skip
    run = prepare("pi-distill", given, out=tmp_path / "run", report=reporter(quiet=True, silent=True))
    result = run.go(False)
    run.close()
    assert result["steps"] == 2
    assert "completion" in result["evaluations"]["after"]
