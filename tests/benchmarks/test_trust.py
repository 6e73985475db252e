"""The figures of `make trust`: their keys, their goals, their page; its parts in small; the files that lock what is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from redistill.tasks.verifiers import number
from scripts import bounds, lock

from benchmarks import trust, trust_verifiers

ROOT = Path(__file__).parent.parent.parent
KEYS = [
    "kills", "resumed_exact", "hostile_programs", "escapes", "forged_rewards", "inputs_fuzzed", "crashes", "faults_injected",
    "faults_survived", "states_covered", "states_registered", "judged_per_second",
]  # fmt: skip
RESULT = ROOT / "benchmarks" / "results" / "trust.json"


def parts(**changed: Any) -> dict[str, dict[str, Any]]:
    made: dict[str, dict[str, Any]] = {
        "services": {"faults_injected": 20, "faults_survived": 20},
        "verifiers": {"inputs_fuzzed": 500, "crashes": 0, "unearned_rewards": 0},
        "sandbox": {"hostile_programs": 40, "escapes": 0, "forged_rewards": 0, "judged_per_second": 31.5},
        "resume": {
            "kills": 50, "resumed_exact": 50, "inputs_fuzzed": 500, "crashes": 0, "states_covered": 7, "states_registered": 7,
        },
    }  # fmt: skip
    for key, value in changed.items():
        part, _, name = key.partition("_")
        assert name in made[part]
        made[part][name] = value
    return made


def test_the_figures_are_merged_and_judged() -> None:
    figures = trust.merged(parts())
    assert list(figures) == KEYS == list(trust.GOALS)
    assert figures["inputs_fuzzed"] == 1000
    assert all(trust.met(figures, name) for name in KEYS)


@pytest.mark.parametrize(
    ("change", "unmet"),
    [
        ({"services_faults_survived": 19}, "faults_survived"), ({"verifiers_crashes": 1}, "crashes"),
        ({"verifiers_unearned_rewards": 1}, "forged_rewards"), ({"sandbox_escapes": 1}, "escapes"),
        ({"resume_resumed_exact": 49}, "resumed_exact"), ({"resume_states_covered": 6}, "states_covered"),
        ({"sandbox_judged_per_second": 29.9}, "judged_per_second"), ({"resume_inputs_fuzzed": 499}, "inputs_fuzzed"),
    ],
)  # fmt: skip
def test_a_goal_that_is_missed_is_seen(change: dict[str, Any], unmet: str) -> None:
    figures = trust.merged(parts(**change))
    assert [name for name in KEYS if not trust.met(figures, name)] == [unmet]


def test_the_committed_figures_have_these_keys_and_the_page_is_fresh() -> None:
    assert trust.fresh_page() == trust.PAGE.read_text()
    if RESULT.is_file():
        found = json.loads(RESULT.read_text())
        assert list(found) == [*KEYS, "machine", "versions", "date", "minutes"]


def test_a_missing_part_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trust.PARTS, "sandbox", "benchmarks.no_such_part")
    with pytest.raises(
        SystemExit, match=r"the part 'sandbox' cannot be measured: there is no module benchmarks\.no_such_part"
    ):
        trust.measure("sandbox", True)


def test_hostile_replies_in_small(monkeypatch: pytest.MonkeyPatch) -> None:
    def few(folder: Path, quick: bool) -> Any:
        return [each for each in trust_verifiers.rows(folder) if each[0].startswith("number")]

    monkeypatch.setattr(trust_verifiers, "tasks", few)
    found = trust_verifiers.figures(quick=True)
    assert found["inputs_fuzzed"] > 200
    assert (found["crashes"], found["unearned_rewards"], found["worst"]) == (0, 0, [])
    monkeypatch.setattr(trust_verifiers, "ATTACKS", ())
    monkeypatch.setattr("redistill.tasks.answers.MAX_REPLY", "x")
    assert trust_verifiers.figures(quick=True)["crashes"] > 10, "a verifier that raises is seen"


def test_what_is_unearned_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (name, task), *_ = [each for each in trust_verifiers.rows(tmp_path) if each[0].startswith("number")]
    monkeypatch.setattr(task, "_judge", lambda prompt, reply, answer_format: number(prompt, "42"))
    found: dict[str, Any] = {
        "inputs_fuzzed": 0,
        "crashes": 0,
        "unearned_rewards": 0,
        "given_up": 0,
        "slowest_seconds": 0.0,
        "worst": [],
    }
    trust_verifiers.attack(name, task, found, True)
    assert found["unearned_rewards"] >= 10


@pytest.mark.parametrize("script", ["lock.py", "licences.py"])
def test_what_is_installed_is_locked_and_listed(script: str) -> None:
    command = [sys.executable, str(ROOT / "scripts" / script), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_range_has_two_ends() -> None:
    low = bounds.pins("low")
    assert all("==" in pin for pin in low)
    assert len(low) == len(bounds.pins("high")) >= 20


def test_a_lock_that_differs_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = lock.LOCKED.read_text()
    path = tmp_path / "locked.txt"
    monkeypatch.setattr(lock, "LOCKED", path)
    for old, new, told in (
        ("numpy==", "numpy==1", "constraints.txt has numpy=="), ("rich==", "poor==", "pyproject.toml asks for rich"),
        ("--hash=sha256:", "", "has no hash"),
    ):  # fmt: skip
        path.write_text(text.replace(old, new))
        assert any(told in each for each in lock.problems())
