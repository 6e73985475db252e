"""The page of a run as a file: what is in it, how large it gets, and what is told of folders that are no finished run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from redistill.cli import main
from redistill.errors import UserError
from redistill.reporting import viewer
from redistill.reporting.run_files import read_run
from redistill.reporting.run_page import POINTS, curve, report, run_page
from test_page import HOSTILE, check_page

EVALUATION = {
    "metric": "accuracy", "accuracy": 0.5, "low": 0.4, "high": 0.6, "prompts": 4, "length": 10.0, "avg_at_k": 0.4, "pass_at_k": 0.8, "k": 4,
}  # fmt: skip


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def row(step: int, tokens: int, kind: str = "fixed", uid: str = "a") -> dict[str, Any]:
    """A row of credit.jsonl as large as a language run makes them."""
    values = [round(0.001 * i - 0.1 * step, 4) for i in range(tokens)]
    likely = [[[f" token{i + j}", 0.123] for j in range(5)] for i in range(tokens)]
    teacher = {"name": "ema(0.05)", "reads": HOSTILE * 5, "likeliest": likely, "entropy": values, "logp": values}
    term = {
        "name": "divergence", "kind": "Divergence", "coefficient": 1.0, "normaliser": "token",
        "values": {"mask": [1.0] * tokens, "loss": values, "advantage": values},
    }  # fmt: skip
    return {
        "step": step, "stage": "sdpo", "kind": kind, "uid": uid, "player": "student", "question": HOSTILE, "reference": "3",
        "sampled_under": "plain", "trained_under": "plain", "finish": "stop", "reward": 0.0, "feedback": HOSTILE, "logp": values,
        "behaviour_logp": values, "tokens": [f" token{i}" for i in range(tokens)], "own": list(range(tokens)), "left_out": 0,
        "reads": HOSTILE, "likeliest": likely, "entropy": values, "teachers": [teacher], "terms": [term],
    }  # fmt: skip


def run_folder(path: Path, steps: int = 200, tokens: int = 64, finished: bool = True) -> Path:
    """A run folder, written by hand: what every finished run has."""
    path.mkdir(parents=True)
    settings = {"task": "sums", "model": "pocket", "seed": 0, "steps": steps}
    config = {"method": "sdpo", "options": {"route": "all"}, "run": settings, "command": "redistill run sdpo"}
    (path / "config.json").write_text(json.dumps(config))
    (path / "versions.json").write_text(json.dumps({"torch": "2", "model": {"sha256": {"a": "b"}}}))
    (path / "views.txt").write_text(HOSTILE)
    metrics: list[dict[str, Any]] = [{"step": 0, "evaluation": "before", **EVALUATION}]
    for step in range(1, steps + 1):
        metrics.append({
            "step": step, "stage": "warm-start" if step < 5 else "sdpo", "reward": 0.5, "loss": 0.1 / step, "length": 9.0, "truncated": 0.0,
            "episodes": 64, "divergence/jsd": 0.1, "grad_norm": None, "skipped": 0.0, "seconds_collect": 1.0, "seconds_update": 2.0,
        })  # fmt: skip
    after = {"step": steps, **EVALUATION, "accuracy": 0.75}
    if finished:
        metrics.append({"evaluation": "after", **after})
        evaluations = {
            "before": {"step": 0, **EVALUATION, "outcomes": [0, 1, 0, 1]}, "after": {**after, "outcomes": [1, 1, 0, 1]},
        }  # fmt: skip
        (path / "result.json").write_text(json.dumps({"evaluations": evaluations, "seconds": 600.0}))
    (path / "metrics.jsonl").write_text(lines(metrics))
    sample = {"prompt": [{"role": "user", "content": HOSTILE}], "view": "plain", "text": HOSTILE, "finish": "stop", "reward": 1.0, "feedback": None}  # fmt: skip
    (path / "samples.jsonl").write_text(lines([{"step": step, **sample} for step in range(1, steps + 1)]))
    credit = [row(step, tokens, uid=uid) for step in range(0, steps + 1, 10) for uid in ("a", "a", "b", "b")]
    credit += [row(step, tokens, "training", f"t{step}") for step in range(0, steps, 10)]
    (path / "credit.jsonl").write_text(lines(credit))
    return path


def test_a_run_of_200_steps_is_one_page_below_5_mb(tmp_path: Path) -> None:
    path = run_folder(tmp_path / "run")
    (told,) = report([path], None)
    assert told["bytes"] < 5_000_000
    data = check_page((path / "report.html").read_text())
    assert [prompt["name"][:9] for prompt in data["credit"]["prompts"]] == ["held-out:", "held-out:", "sampled i"]
    assert len(data["credit"]["prompts"][0]["moments"]) >= 15
    assert len(data["credit"]["prompts"][0]["moments"][0]["rows"]) == 2
    titles = [chart["title"] for chart in data["charts"].values()]
    assert titles[:3] == ["Held-out accuracy", "Reward in training", "Loss"]
    names = [series["name"] for series in data["charts"]["chart-1"]["series"]]
    assert names == ["held-out accuracy", "avg@4", "pass@4"]


def test_the_outcome_is_the_paired_difference(tmp_path: Path) -> None:
    (told,) = report([run_folder(tmp_path / "run", steps=20)], tmp_path / "page.html")
    assert told["outcome"].startswith("Held-out accuracy before 0.500 [0.400, 0.600], after 0.750")
    assert "+0.250, 95% interval [" in told["outcome"]
    assert told["finished"]
    assert told["seconds_per_step"] == {"collect": 1.0, "update": 2.0}
    assert (tmp_path / "page.html").stat().st_size == told["bytes"]


def test_long_answers_leave_moments_out_and_keep_the_first_and_the_last(tmp_path: Path) -> None:
    path = run_folder(tmp_path / "run", tokens=512)
    (told,) = report([path], None)
    assert told["bytes"] < 5_000_000
    moments = check_page((path / "report.html").read_text())["credit"]["prompts"][0]["moments"]
    assert 2 <= len(moments) < 15
    assert (moments[0]["step"], moments[-1]["step"]) == (0, 200)


def test_an_unfinished_run_has_a_page_that_says_so(tmp_path: Path) -> None:
    path = run_folder(tmp_path / "run", steps=20, finished=False)
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "rew')
    (told,) = report([path], None)
    assert told["outcome"] == (
        "This run is not finished: 20 of 20 updates are done; the last evaluation (before) has accuracy 0.500."
    )
    assert not told["finished"]


def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    path = run_folder(tmp_path / "run", steps=20, finished=False)
    for name in ("metrics.jsonl", "samples.jsonl", "credit.jsonl"):
        (path / name).write_text("")
    (told,) = report([path], None)
    assert "0 of 20 updates" in told["outcome"]
    html = (path / "report.html").read_text()
    check_page(html)
    assert "recorded no credit" in html


def test_alarms_are_shown_by_kind(tmp_path: Path) -> None:
    path = run_folder(tmp_path / "run", steps=20)
    alarms = [
        {"step": s, "name": "entropy_collapse", "value": 0.1, "means": "few answers", "try": HOSTILE} for s in (3, 7)
    ]
    (path / "alarms.jsonl").write_text(lines(alarms))
    page, told = run_page(read_run(path))
    assert told["alarms"] == 2
    html = page.html()
    check_page(html)
    assert html.count("entropy collapse") == 1
    assert "2 times, updates 3 to 7" in html


def test_pictures_and_episodes_through_training(tmp_path: Path) -> None:
    path = run_folder(tmp_path / "run", steps=20)
    picture = {"hex": "00ff" * 32, "side": 8, "caption": "3 (90%)", "right": True}
    episode = {"tracks": {"hand": [[0, 0, 0], [1, 1, 1]]}, "rewards": [0.5], "success_at": None}
    for content in ({"pictures": [picture]}, {"episode": episode}):
        rows = [{"step": step, "stage": "x", "kind": "snapshot", "what": HOSTILE, **content} for step in (0, 10, 20)]
        (path / "credit.jsonl").write_text(lines(rows))
        data = check_page(run_page(read_run(path))[0].html())
        assert [one["step"] for one in data["snapshots"]] == [0, 10, 20]


def test_long_runs_are_averaged_and_short_ones_are_not() -> None:
    steps = [{"step": i + 1, "loss": float(i)} for i in range(5 * POINTS)]
    raw, mean = curve(steps, "loss")
    assert len(raw.x) == POINTS == len(mean.y)
    assert raw.y[0] == 2.0
    assert raw.x[-1] == 5 * POINTS
    assert abs(mean.y[POINTS // 2] - raw.y[POINTS // 2]) < 1e-9
    (only,) = curve(steps[:5], "loss")
    assert list(only.y) == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_thinning_keeps_first_and_last() -> None:
    assert viewer.thinned(list(range(100)), 5) == [0, 25, 50, 74, 99]
    assert viewer.thinned([1, 2], 5) == [1, 2]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: None, "does not exist"),
        (lambda p: p.mkdir(), "no config.json"),
        (lambda p: (p.mkdir(), (p / "config.json").write_text("{")), "cannot be read"),
        (lambda p: (run_folder(p, 4), (p / "metrics.jsonl").write_text("no\n")), "cannot be read"),
    ],
)
def test_what_is_no_run_is_a_sentence(make: Any, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "run")
    assert main(["report", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err


def test_the_command_prints_json_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run_folder(tmp_path / "run", steps=12)
    assert main(["report", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["page"] == str(path / "report.html")
    assert told["evaluations"]["after"]["accuracy"] == 0.75
    with pytest.raises(UserError, match="--out names one page"):
        report([path, path], tmp_path / "x.html")
