"""The work that libraries are given: the same for all, and fit for what is measured on it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks.port import Worker, WorkerError
from benchmarks.workload import Workload, fingerprint, question, questions, reward

from benchmarks import plan

ROOT = Path(__file__).parents[2]


def test_prompts_are_a_function_of_their_number() -> None:
    assert questions(3, 5) == [question(5), question(6), question(7)]
    assert len({str(question(index)) for index in range(200)}) > 190


def test_about_half_of_all_texts_are_rewarded() -> None:
    rewards = [reward(f"answer {index}") for index in range(1000)]
    assert set(rewards) == {0.0, 1.0}
    assert 400 < sum(rewards) < 600


def test_a_fingerprint_tells_tokens_apart() -> None:
    assert fingerprint([[1, 2], [3]]) == fingerprint([(1, 2), (3,)])
    assert fingerprint([[1, 2], [3]]) != fingerprint([[1], [2, 3]])


def test_trl_gets_whole_batches() -> None:
    for pair in plan.pairs(False, 3) + plan.pairs(True, 1):
        assert pair.peer is None or pair.work.rollouts % pair.peer["rows"] == 0


def test_the_fastest_candidate_is_taken_for_the_other_methods() -> None:
    def took(*totals: float) -> dict[str, Any]:
        return {"peer": [{"seconds": {"total": total}} for total in totals]}

    measured = {"grpo.best-half": took(30.0, 20.0), "grpo.best-autocast": took(25.0), "grpo.float32": took(1.0)}
    assert plan.fastest(measured) == plan.TRL_CANDIDATES["half"]
    with pytest.raises(ValueError, match="measure grpo"):
        plan.fastest({})


def test_the_default_work_is_that_of_the_goals() -> None:
    assert (plan.GROUPS.rollouts, plan.GROUPS.sampled) == (32, 1536) == (plan.SINGLES.rollouts, plan.SINGLES.sampled)
    assert Workload(2, 3, 4).sampled == 24


def test_peers_need_nothing_of_ours_but_the_standard_library() -> None:
    code = "import sys, benchmarks.port, benchmarks.workload; sys.exit('torch' in sys.modules or 'redistill' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_worker_that_fails_is_told_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"No module named benchmarks\.nothing"):
        Worker(sys.executable, "nothing", {}, tmp_path / "log", 1)
