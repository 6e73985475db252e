"""`reproduce` on a small experiment of its own: what it writes, what it does not repeat, what a verdict is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import redistill.evaluation.reproduce as module
from redistill.errors import UserError
from redistill.evaluation.reproduce import _reached, reproduce
from redistill.experiments.base import Arm, Experiment
from scipy import stats

TOY = Experiment(
    slug="rft", claim="a test", metric="accuracy",
    base={"model": "pocket", "task": "sums", "steps": 1, "prompts_per_step": 2, "group_size": 2, "max_new_tokens": 12,
          "eval_prompts": 10, "save_model": "false", "utility": "false"},
    arms={"rft": Arm("rft"), "sft": Arm("sft", {"prompts_per_step": 4}), "control": Arm("rft", {"group_size": 1}, tuned_as="rft")},
    compare=("rft", "sft"), controls={"against the control": ("rft", "control"), "against the start": ("rft", "start"),
              "more episodes than length": ("rft:prompts", "control:length")},
    grid={"learning_rate": [1e-4, 1e-2]}, budget="one step", quick={"steps": 1},
)  # fmt: skip


@pytest.fixture
def evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "experiment_of", lambda slug, model=None: TOY)
    return tmp_path / "evidence" / "rft"


def test_the_evidence_says_what_the_runs_came_to(evidence: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verdict = reproduce("rft", seeds=[0, 1])
    told = capsys.readouterr().out
    assert "run 1 of 10" in told  # two arms with two rates each, then three arms with two seeds
    assert "run 10 of 10, about 0 min left" in told
    written = json.loads((evidence / "verdict.json").read_text())
    assert written == json.loads(json.dumps(verdict))
    assert (evidence / "plot.png").stat().st_size > 1000
    runs = Path("runs/reproduce/rft")
    assert list(runs.rglob("checkpoints")) == [], "a finished run's checkpoints go"
    for arm in TOY.arms:
        values = written["arms"][arm]["per_seed"]
        results = [json.loads((runs / f"{arm}-s{seed}" / "result.json").read_text()) for seed in (0, 1)]
        assert values == [result["evaluations"]["after"]["accuracy"] for result in results]
        assert len(set(map(str, written["arms"][arm]["cost"]["generations"]))) == 1
    assert written["arms"]["control"]["options"]["learning_rate"] == written["tuning"]["rft"]["chosen"]
    assert set(written["tuning"]) == {"rft", "sft"}
    assert written["tuning"]["rft"]["seed"] not in written["seeds"]
    one, other = (written["arms"][arm]["per_seed"] for arm in TOY.compare)
    gaps = [a - b for a, b in zip(one, other)]
    assert written["difference"]["estimate"] == pytest.approx(sum(gaps) / 2)
    other_numbers = written["controls"]["more episodes than length"]
    measured = [written["arms"][arm]["measures"][name] for arm, name in (("rft", "prompts"), ("control", "length"))]
    assert other_numbers["estimate"] == pytest.approx(sum(a - b for a, b in zip(*measured)) / 2)
    if gaps[0] != gaps[1]:
        bounds = stats.t.interval(0.95, 1, loc=sum(gaps) / 2, scale=stats.sem(gaps))
        assert (written["difference"]["low"], written["difference"]["high"]) == pytest.approx(bounds, rel=1e-3)


def test_runs_that_exist_are_not_repeated(evidence: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = reproduce("rft", seeds=[0, 1])

    def refuse(*_: Any) -> Any:
        raise AssertionError("a run was made again")

    monkeypatch.setattr("redistill.core.loop.Run.go", refuse)
    again = reproduce("rft", seeds=[0, 1])
    assert again["arms"] == first["arms"]


def test_one_seed_is_no_interval(evidence: Path) -> None:
    with pytest.raises(UserError, match="two or more"):
        reproduce("rft", seeds=[3])
    with pytest.raises(UserError, match="1000"):
        reproduce("rft", seeds=[0, 1000])
    with pytest.raises(UserError, match="twice"):
        reproduce("rft", seeds=[0, 0])
    assert not evidence.exists()


@pytest.mark.parametrize(
    ("low", "high", "reads"), [(0.01, 0.2, "shown"), (-0.1, 0.1, "not shown"), (-0.2, -0.01, "opposite"), (0.0, 0.1, "not shown")]
)  # fmt: skip
def test_a_verdict_is_what_the_interval_says(low: float, high: float, reads: str) -> None:
    assert _reached({"low": low, "high": high}) == reads
