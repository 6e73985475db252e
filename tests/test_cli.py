"""The command line: what it prints, and that a user's mistake is one sentence and exit status 2."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from redistill.cli import main
from redistill.core.options import options_of
from redistill.evaluation.saved import evaluate_saved
from redistill.text.settings import Settings

RUN = [
    "run",
    "sft",
    "--json",
    "--steps",
    "2",
    "--set",
    "eval_prompts=12",
    "--set",
    "max_new_tokens=16",
    "--set",
    "learning_rate=0.003",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose learning rate is large enough to change the answers."""
    path = tmp_path_factory.mktemp("runs") / "one"
    assert main([*RUN, "--out", str(path)]) == 0
    return path


def test_list_prints_json_with_the_contracts_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"sft", "rft", "grpo", "opd", "opsd", "sdpo", "ps-kd", "crd"} <= {row["slug"] for row in rows}
    for row in rows:
        assert {"slug", "title", "paper", "family", "axes", "objective", "recipe", "evidence", "scale"} <= set(row)
        assert row["evidence"] in ("shown", "not shown", "opposite", "none")


def test_eval_of_a_run_measures_its_trained_weights(folder: Path) -> None:
    after = json.loads((folder / "result.json").read_text())["evaluations"]
    again = evaluate_saved(str(folder), None, 0, None, {})
    assert again["outcomes"] == after["after"]["outcomes"]
    assert again["length"] == after["after"]["length"] != after["before"]["length"]
    assert again["step"] == 2


def test_eval_of_the_saved_model_agrees_with_its_run(folder: Path) -> None:
    run = evaluate_saved(str(folder), None, 0, None, {})
    model = evaluate_saved(str(folder / "model"), "sums", 0, 12, {"max_new_tokens": "16"})
    assert model["outcomes"] == run["outcomes"]
    assert model["length"] == run["length"]


def test_eval_prints_json_only_and_samples_k(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(folder), "-k", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["k"] == 2
    assert result["avg_at_k"] <= result["pass_at_k"] <= 1.0


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["runn"], "run"),
        (["run"], "method"),
        (["run", "grpoo"], "grpo"),
        (["run", "sft", "--set", "learning_rat=1"], "learning_rate"),
        (["run", "sft", "--set", "learning_rate=-1"], "learning_rate"),
        (["run", "sft", "--set", "steps"], "key=value"),
        (["run", "sft", "--resume"], "--out"),
        (["run", "sft", "--task", "chain_sumo"], "chain_sum"),
        (["run", "sft", "--model", "pockett"], "pocket"),
        (["run", "--recipe", "dem"], "demo"),
        (["show", "sdp"], "sdpo"),
        (["eval", "pocket"], "--task"),
        (["eval", "pocket", "--task", "sums", "-k", "-1"], "-k"),
        (["reproduce", "sft"], "sft"),
        (["reproduce", "sdpo", "--seeds", "a"], "--seeds"),
        (["report"], "RUN"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    said = capsys.readouterr()
    assert named in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert "Traceback" not in said.err
    assert said.out == ""


def test_a_folder_with_a_run_is_not_written_over(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN, "--out", str(folder)]) == 2
    assert "--resume" in capsys.readouterr().err


def helped(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_help_of_run_names_every_setting_with_its_default_range_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    told = helped(["run", "--help"], capsys)
    assert "--resume" in told
    for spec in options_of(Settings).values():
        assert f"  {spec.name} = {spec.default}" in told
        assert spec.range in told
        assert spec.meaning in told


def test_help_of_run_for_a_method_has_its_own_domain_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    told = helped(["run", "ps-kd", "--help"], capsys)
    assert "  optimiser = sgd [sgd | adamw]" in told
    assert "  alpha = 0.8 [>= 0 and <= 1]" in told
    assert "max_new_tokens" not in told
    assert "  prompts_per_step = 32 [>= 1]" in helped(["run", "sdpo", "--help"], capsys), "the paper's value"


def test_show_of_a_method_has_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "sdpo", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert main(["show", "sdpo"]) == 0
    told = capsys.readouterr().out
    for option in facts["options"]:
        assert option["name"] in told
    for part in (facts["title"], facts["paper"], "paper says", "code does", "evidence", "objective"):
        assert part in told
    assert {"divergence", "support", "teacher"} <= {option["name"] for option in facts["options"]}


def test_the_command_is_kept_as_it_can_be_given_again(tmp_path: Path) -> None:
    out = tmp_path / "a run"
    assert main([*RUN, "--set", "eval_every=1", "--out", str(out)]) == 0
    words = shlex.split(json.loads((out / "config.json").read_text())["command"])
    assert words == ["redistill", *RUN, "--set", "eval_every=1", "--out", str(out)]


def test_every_command_of_the_page_on_runs_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, in one folder, with the files that the page shows."""
    page = (Path(__file__).parent.parent / "docs" / "running.md").read_text()
    blocks = re.findall(r"```(\w+)\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "questions.jsonl").write_text(next(text for kind, text in blocks if kind == "json"))
    (tmp_path / "judge.py").write_text(next(text for kind, text in blocks if kind == "python"))
    lines = [line for kind, text in blocks if kind == "sh" for line in text.splitlines()]
    assert len(lines) >= 10
    for line in lines:
        program, *words = shlex.split(line, comments=True)
        assert program == "redistill"
        if "--help" in words:
            with pytest.raises(SystemExit) as ended:
                main(words)
            assert ended.value.code == 0, line
        else:
            assert main(words) == 0, line
    assert '"feedback": "off by ' in (tmp_path / "runs" / "judged" / "samples.jsonl").read_text()


def test_the_page_on_runs_names_every_file_of_a_run_folder(folder: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "running.md").read_text()
    for path in folder.iterdir():
        if path.name != ".lock":
            assert f"`{path.name}" in page, path.name


def test_a_reader_that_has_enough_is_no_error() -> None:
    """As `redistill show sdpo --json | head -1`."""
    program = "import sys; from redistill.cli import main; sys.exit(main(['show', 'sdpo', '--json']))"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0
