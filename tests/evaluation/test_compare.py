"""`compare` on `pocket`, small: what it runs, what it does not repeat, what it says, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from redistill.cli import main
from redistill.core.budget import Budget
from redistill.core.loop import Run
from redistill.core.stopping import Interrupted
from redistill.errors import UserError
from redistill.evaluation.compare import compare, parse_arm, plan, read_run
from redistill.reporting.compare_terminal import Watch

SMALL = {
    "prompts_per_step": 2,
    "group_size": 3,
    "max_new_tokens": 12,
    "eval_prompts": 8,
    "eval_parts": 2,
    "learning_rate": 1e-3,
}
WORDS = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
BUDGET = "rollouts=24"


def made(out: Path, methods: tuple[str, ...] = ("grpo", "rft"), **more: Any) -> dict[str, Any]:
    given = {"task": "sums", "model": "pocket", "budget": BUDGET, "seeds": [0, 1], "common": SMALL, **more}
    return compare(methods, out=out, **given)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison."""
    out = tmp_path_factory.mktemp("compare") / "one"
    made(out)
    return out


@pytest.fixture
def copied(done: Path, tmp_path: Path) -> Path:
    """One to change."""
    shutil.copytree(done, tmp_path / "copy")
    return tmp_path / "copy"


def never(*_: Any) -> Any:
    raise AssertionError("a run was made again")


def test_the_file_has_every_number(done: Path) -> None:
    found = json.loads((done / "compare.json").read_text())
    assert (found["baseline"], found["metric"], found["prompts"], found["seeds"]) == ("grpo", "accuracy", 8, [0, 1])
    assert found["budget"] == {"unit": "rollouts", "amount": 24}
    for facts in found["methods"].values():
        assert facts["cost"]["rollouts"] == [24, 24]
        assert facts["cost"]["updates"] == [4, 4]
        assert all(tokens > 24 for tokens in facts["cost"]["tokens"])
        assert all(seconds > 0 for seconds in facts["cost"]["seconds"])
        assert [point["label"] for point in facts["points"][0]] == ["before", "part-1", "after"]
        assert [point["at"] for point in facts["curve"]] == [0, 12, 24]
        for folder, score in zip(facts["runs"], facts["per_seed"]):
            result = json.loads((Path(folder) / "result.json").read_text())
            assert result["evaluations"]["after"]["accuracy"] == pytest.approx(score)
            assert not (Path(folder) / "checkpoints").exists()
    grpo, rft = (found["methods"][name] for name in ("grpo", "rft"))
    assert rft["difference"]["per_seed"] == pytest.approx([a - b for a, b in zip(rft["per_seed"], grpo["per_seed"])])
    assert found["notes"] == []


def test_methods_see_the_same_prompts_and_start_from_the_same_score(done: Path) -> None:
    found = json.loads((done / "compare.json").read_text())["methods"]
    for one, other in zip(found["grpo"]["runs"], found["rft"]["runs"]):
        asked = [
            [json.loads(line)["prompt"] for line in (Path(run) / "samples.jsonl").read_text().splitlines()]
            for run in (one, other)
        ]
        assert asked[0] == asked[1]
        before = [json.loads((Path(run) / "result.json").read_text())["evaluations"]["before"] for run in (one, other)]
        assert before[0] == before[1]


def test_what_exists_is_not_run_again_and_one_more_method_is(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = sorted(path.name for path in (copied / "runs").iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(Run, "go", never)
        again = made(copied)
        assert (
            made(copied, ("renamed=grpo", "rft"))["methods"]["renamed"]["per_seed"]
            == again["methods"]["grpo"]["per_seed"]
        )
    begun = []
    go = Run.go
    monkeypatch.setattr(Run, "go", lambda self, resume: begun.append(self.method.slug) or go(self, resume))
    found = made(copied, ("grpo", "rft", "opsd"))
    assert begun == ["opsd", "opsd"]
    assert found["methods"]["rft"]["difference"] == again["methods"]["rft"]["difference"]
    assert set(runs) < {path.name for path in (copied / "runs").iterdir()}


def test_the_same_method_under_two_names_differs_by_nothing(copied: Path) -> None:
    found = made(copied, ("grpo", "again=grpo"))["methods"]["again"]
    assert found["difference"]["estimate"] == 0.0
    assert found["difference"]["verdict"] == "not distinguishable"


def test_a_comparison_that_is_broken_off_goes_on(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stopped in the third run's second step; the first two are kept, the third is resumed."""
    begun: list[tuple[str, bool]] = []
    go = Run.go

    def stopped(self: Run, resume: bool) -> Any:
        begun.append((self.method.slug, resume))
        if len(begun) == 3:
            checks = iter(range(100))

            def check() -> None:
                if next(checks) == 2:
                    raise Interrupted(2)

            self.stop.check = check  # type: ignore[method-assign]
        return go(self, resume)

    monkeypatch.setattr(Run, "go", stopped)
    with pytest.raises(Interrupted):
        made(tmp_path / "two")
    assert not (tmp_path / "two" / "compare.json").exists()
    found = made(tmp_path / "two")
    assert begun == [("grpo", False), ("rft", False), ("grpo", False), ("grpo", True), ("rft", False)]
    expected = json.loads((done / "compare.json").read_text())
    for name, facts in expected["methods"].items():
        for key in ("per_seed", "difference", "final", "curve"):
            assert found["methods"][name][key] == facts[key]


def fingerprints(
    methods: tuple[str, ...], common: dict[str, Any], task: str = "sums", budget: str = BUDGET
) -> list[str]:
    jobs = plan([parse_arm(m) for m in methods], task, "pocket", Budget.parse(budget), [0, 1], common, Path("x"))
    return [job.folder.name for job in jobs]


def test_a_fingerprint_is_that_of_the_settings(tmp_path: Path) -> None:
    same = fingerprints(("grpo", "rft"), SMALL)
    assert len(set(same)) == 4
    assert fingerprints(("a=grpo", "b=rft"), SMALL) == same, "not of a name"
    assert fingerprints(("grpo:std=sample", "rft"), SMALL) == same, "nor of a default that is written out"
    assert fingerprints(("grpo", "rft"), {**SMALL, "save_every": 3, "tracker": "tensorboard"}) == same
    for other in (
        fingerprints(("grpo:std=none", "rft"), SMALL)[:1],
        fingerprints(("grpo", "rft"), {**SMALL, "learning_rate": 2e-3}),
        fingerprints(("grpo", "rft"), SMALL, task="sums:terms=2"),
        fingerprints(("grpo", "rft"), SMALL, budget="rollouts=25"),
    ):
        assert not set(other) & set(same)
    file = tmp_path / "q.jsonl"
    seen = set()
    for answer in ("3", "4"):
        file.write_text(json.dumps({"prompt": "1+2=", "answer": answer}) + "\n")
        seen |= set(fingerprints(("grpo", "rft"), SMALL, task=f"{file}:verifier=number"))
    assert len(seen) == 8, "nor of a file's name alone"


@pytest.mark.parametrize(
    ("text", "arm"),
    [
        ("grpo", ("grpo", "grpo", {})),
        ("grpo:std=none,kl=0.1", ("grpo:std=none,kl=0.1", "grpo", {"std": "none", "kl": "0.1"})),
        ("mine=grpo:std=none", ("mine", "grpo", {"std": "none"})),
        ("sdpo:support=top_k(20, of=teacher),teacher=ema(0.1)",
         ("sdpo:support=top_k(20, of=teacher),teacher=ema(0.1)", "sdpo", {"support": "top_k(20, of=teacher)", "teacher": "ema(0.1)"})),
    ],
)  # fmt: skip
def test_how_methods_are_written(text: str, arm: tuple[str, str, dict[str, str]]) -> None:
    read = parse_arm(text)
    assert (read.name, read.slug, dict(read.given)) == arm


@pytest.mark.parametrize(
    ("methods", "more", "named"),
    [
        (("grpo",), {}, "two methods"),
        (("grpo", "grpo"), {}, "other=grpo"),
        (("grpo", "sdp"), {}, "sdpo"),
        (("grpo", "rft:learning_rat=1"), {}, "learning_rate"),
        (("grpo", "rft:std"), {}, "key=value"),
        (("grpo", "rft:steps=1,steps=2"), {}, "twice"),
        (("grpo", "rft:seed=1"), {}, "--seeds"),
        (("grpo", "rft:max_new_tokens=3"), {}, "--set max_new_tokens=3"),
        (("grpo", "rft:learning_rate=-1"), {}, "learning_rate"),
        (("grpo", "ps-kd"), {}, "no task in common"),
        (("ce", "ps-kd"), {"task": "digits", "model": "mlp", "common": {}}, "ce:steps=N"),
        (("grpo", "rft"), {"common": {"std": "none"}}, "METHOD:std"),
        (("grpo", "rft"), {"common": {"budget": "1"}}, "--budget"),
        (("grpo", "rft"), {"budget": "rollout=5"}, "rollouts"),
        (("grpo", "rft"), {"seeds": [1, 1]}, "twice"),
        (("grpo", "rft"), {"seeds": []}, "seed"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_before_anything_runs(
    methods: tuple[str, ...], more: dict[str, Any], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "go", never)
    with pytest.raises(UserError, match=named) as told:
        made(tmp_path / "out", methods, **more)
    assert len(str(told.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_folder_of_a_run_is_not_that_of_a_comparison(done: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="folder of a run"):
        made(next((done / "runs").iterdir()))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        made(tmp_path / "file")


def test_one_seed_has_no_interval_over_seeds_and_that_is_said(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "grpo", "rft", "--task", "sums", "--model", "pocket", "--budget", BUDGET, "--out", str(copied)]
    assert main([*words, "--seeds", "0", "--quiet", *WORDS]) == 0
    told = capsys.readouterr().out
    assert "no interval over seeds" in told
    assert "95% intervals over prompts" in told
    assert "(on this seed)" in told
    assert "there already" in told


def test_the_command_prints_a_table_or_json_only(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "grpo", "rft", "--task", "sums", "--model", "pocket", "--budget", BUDGET, "--out", str(copied)]
    assert main([*words, "--seeds", "0,1", "--quiet", *WORDS]) == 0
    told = capsys.readouterr().out
    for part in ("grpo", "rft", "baseline", "24 rollouts", "against the baseline", "compare.html", "seeds and prompts"):
        assert part in told
    assert main([*words, "--seeds", "0,1", "--json", *WORDS]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((copied / "compare.json").read_text())
    assert printed["command"].startswith("redistill compare grpo rft --task sums")


def test_model_seeds_and_folder_have_defaults(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs of seeds 0 and 1 are there: only those of seed 2 are made, in the default folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(done, tmp_path / "runs" / "compare-sums-pocket")
    begun = []
    go = Run.go
    monkeypatch.setattr(Run, "go", lambda self, resume: begun.append(self.config.seed) or go(self, resume))
    assert main(["compare", "grpo", "rft", "--task", "sums", "--budget", BUDGET, "--json", *WORDS]) == 0
    assert begun == [2, 2]


@pytest.mark.parametrize(
    ("flag", "value"), [("--seeds", "a"), ("--seeds", "-1"), ("--budget", "5"), ("--set", "steps")]
)
def test_a_mistake_on_the_command_line_is_one_sentence(
    flag: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {
        "--task": "sums",
        "--model": "pocket",
        "--budget": BUDGET,
        "--seeds": "0,1",
        "--out": str(tmp_path / "x"),
        flag: value,
    }
    assert main(["compare", "grpo", "rft", *(f"{k}={v}" for k, v in given.items())]) == 2
    said = capsys.readouterr()
    assert len(said.err.strip().splitlines()) == 1
    assert said.out == ""


def test_overshoot_and_an_early_end_are_told(tmp_path: Path) -> None:
    found = made(tmp_path / "out", ("grpo", "rft:steps=1"), budget="rollouts=8", seeds=[0])
    assert any(note.startswith("grpo spent up to 4 rollouts more than the budget") for note in found["notes"])
    assert any("rft:steps=1 ended up to 2 rollouts below the budget" in note for note in found["notes"])


def test_a_run_that_cannot_be_read_is_named(copied: Path) -> None:
    folder = next((copied / "runs").iterdir())
    (folder / "metrics.jsonl").write_text("{")
    with pytest.raises(UserError, match=folder.name):
        read_run(folder, 0)


def test_the_time_left_is_at_the_pace_of_what_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four runs of which one was there; one and a half took 30 seconds: the other one and a half take 30 more."""
    now = [0.0]
    monkeypatch.setattr("redistill.reporting.compare_terminal.time.monotonic", lambda: now[0])
    watch = Watch(bar=False)
    watch("plan", {"runs": 4, "ended": 1, "out": "x"})
    watch("run", {"method": "a", "seed": 0, "folder": "", "ended": True})
    watch("ran", {"method": "a", "seed": 0, "spent": {}})
    for share in (1.0, 0.5):
        watch("run", {"method": "b", "seed": 0, "folder": "", "ended": False})
        now[0] += 20 * share
        watch("step", {"step": int(10 * share), "of": 10})
        if share == 1.0:
            watch("ran", {"method": "b", "seed": 0, "spent": {}})
    assert watch._pace() == "  0.1 updates/s, about 0.5 min left"
