"""The list of what goes wrong: each is one plain sentence and exit status 2, or a counted warning; never a traceback, and
nothing that was written before is lost."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redistill.core.runs
import redistill.core.state
import redistill.text.assemble
from redistill.cli import main
from redistill.core.loop import IDLE_STEPS
from redistill.core.runs import RunFolder
from redistill.core.state import checkpoints, newest_good
from redistill.text.weights import POCKET

SMALL = ("eval_prompts=4", "max_new_tokens=16", "prompts_per_step=2", "group_size=2", "save_every=1", "utility=false")


class Ended:
    """What a command did: exit status, standard output and error."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    @property
    def sentence(self) -> str:
        """The one sentence of a command that was refused."""
        assert self.status == 2, self.out + self.err
        assert "Traceback" not in self.out + self.err
        (line,) = self.err.strip().splitlines()
        assert line.startswith("redistill: ")
        return line

    @property
    def warnings(self) -> list[str]:
        """Warnings of a command that did its work."""
        assert self.status == 0, self.out + self.err
        assert self.err == ""
        return [line for line in self.out.splitlines() if line.startswith("warning: ")]


@pytest.fixture
def call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """`call("sft", "steps=2", "--resume")`: redistill run with small settings into tmp_path/run."""

    def call(slug: str, *more: str, out: Path | None = None) -> Ended:
        pairs = {
            pair.split("=", 1)[0]: pair for pair in (*SMALL, *(word for word in more if not word.startswith("--")))
        }
        sets = [word for pair in pairs.values() for word in ("--set", pair)]
        capsys.readouterr()
        flags = [word for word in more if word.startswith("--")]
        status = main(["run", slug, "--quiet", "--out", str(out or tmp_path / "run"), *sets, *flags])
        said = capsys.readouterr()
        return Ended(status, said.out, said.err)

    return call


def edited_model(folder: Path, **changes: Any) -> str:
    """A copy of pocket with some keys of its tokenizer's config changed (None: removed)."""
    shutil.copytree(POCKET, folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        config.pop(key, None)
        if value is not None:
            config[key] = value
    path.write_text(json.dumps(config))
    return str(folder)


def rows(path: Path, items: Iterable[Mapping[str, Any] | str]) -> str:
    path.write_text("\n".join(item if isinstance(item, str) else json.dumps(item) for item in items) + "\n")
    return f"task={path}:verifier=exact"


GOOD = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(10, 20) for b in range(10, 20)]


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever loads weights fails: what is refused here is refused before."""

    def load_model(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(redistill.text.assemble, "load_model", load_model)


# --- words: unknown, malformed, out of range ----------------------------------------------------------------------------
@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(("slug", "words", "told"), [
    ("sdp", [], "method 'sdp' is unknown; did you mean 'sdpo'?"),
    ("sft", ["task=sum"], "task 'sum' is unknown; did you mean 'sums'?"),
    ("sft", ["task=sums:term=3"], "task 'sums' has no option 'term' (given term=3); did you mean 'terms'?"),
    ("sft", ["task=nowhere.jsonl"], "nowhere.jsonl"),
    ("sft", ["model=poket"], "model 'poket' is neither a known name, a folder nor a hub id (organisation/model); did you mean 'pocket'?"),
    ("sft", ["model=/no/such/model"], "model folder '/no/such/model' does not exist"),
    ("sdpo", ["divergance=jsd(0.5)"], "'divergance' is neither a setting of a run nor an option of sdpo; did you mean 'divergence'?"),
    ("sdpo", ["divergence=jsd(1)"], "divergence jsd(1) is identically zero"),
    ("sdpo", ["teacher=emma(0.1)"], "teacher 'emma' is unknown; did you mean 'ema'?"),
    ("sdpo", ["teacher=ema(1.5)"], "teacher ema needs a rate between 0 and 1, got 1.5"),
    ("sdpo", ["route=al"], "route='al' is not a choice; did you mean 'all'?"),
    ("sft", ["learning_rate=0"], "learning_rate=0 is out of range: it must be > 0 and <= 1e+06"),
    ("sft", ["learning_rate=1e38"], "learning_rate=1e38 is out of range"),
    ("sft", ["learning_rate=nan"], "learning_rate='nan' is not a finite number"),
    ("sft", ["steps=2.5"], "steps='2.5' is not a whole number"),
    ("sft", ["steps=0"], "steps=0 is out of range: it must be >= 1"),
    ("sft", ["save_model=yes"], "save_model='yes' is not true or false"),
    ("sft", ["tracker=tensorbord"], "tracker='tensorbord' is not a choice; did you mean 'tensorboard'?"),
    ("sft", ["dtype=float16"], "dtype='float16' is not a choice; did you mean 'bfloat16'?"),
    ("opd", [], "opd needs a teacher"),
    ("sft", ["max_new_tokens=128"], "max_new_tokens=128 leaves no room for a prompt: the context of model 'pocket' is 128 tokens"),
])  # fmt: skip
def test_a_word_that_is_wrong(call: Any, tmp_path: Path, slug: str, words: list[str], told: str) -> None:
    assert told in call(slug, *words).sentence
    assert not (tmp_path / "run").exists(), "a mistake leaves no folder behind"


# --- data rows ----------------------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(("bad", "told"), [
    ({"prompt": "1+1="}, "row 3 has no column 'answer'; the choices are prompt"),
    ({"promt": "1+1=", "answer": "2"}, "row 3 has neither a column 'prompt' nor 'messages'; did you mean 'promt'?"),
    ({"prompt": "", "answer": "2"}, "row 3 column 'prompt' is empty"),
    ({"prompt": "1+1=", "answer": 2}, "row 3 column 'answer' must be text, got int (write it as \"2\")"),
    ('{"prompt": "1+1=", ', "row 3 is not valid JSON"),
    ("", "row 3 is empty"),
])  # fmt: skip
def test_a_row_that_is_wrong(call: Any, tmp_path: Path, bad: Any, told: str) -> None:
    assert told in call("rft", rows(tmp_path / "q.jsonl", [*GOOD[:2], bad, *GOOD[2:]])).sentence


@pytest.mark.usefixtures("no_weights")
def test_a_file_without_rows(call: Any, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text("")
    assert "has no rows" in call("rft", f"task={tmp_path / 'q.jsonl'}").sentence


def test_a_method_that_needs_solutions_says_so(call: Any, tmp_path: Path) -> None:
    assert "solution" in call("sft", rows(tmp_path / "q.jsonl", GOOD)).sentence


# --- prompts that do not fit --------------------------------------------------------------------------------------------
LONG = {"prompt": "+".join(["12"] * 50) + "=", "answer": "600"}


@pytest.mark.usefixtures("no_weights")
def test_a_held_out_prompt_that_is_too_long(call: Any, tmp_path: Path) -> None:
    told = call(
        "rft", rows(tmp_path / "q.jsonl", [{**row, "split": "train"} for row in GOOD] + [{**LONG, "split": "held_out"}])
    )
    assert "a held-out prompt has 153 tokens, which with max_new_tokens=16 is more than the context" in told.sentence


@pytest.mark.usefixtures("no_weights")
def test_a_held_out_prompt_that_is_too_long_with_its_solution(call: Any, tmp_path: Path) -> None:
    items = [{**row, "solution": "1" * 120, "split": "held_out" if i < 9 else "train"} for i, row in enumerate(GOOD)]
    sentence = call("rft", rows(tmp_path / "q.jsonl", items), "utility=true").sentence
    assert "tokens with its solution in view" in sentence
    assert "utility=false leaves the solution out" in sentence


@pytest.mark.usefixtures("no_weights")
def test_training_prompts_of_which_none_fits(call: Any) -> None:
    sentence = call("rft", "max_prompt_tokens=3", "steps=4").sentence
    assert "all of the first 8 training prompts are longer than 3 tokens (max_prompt_tokens=3, context 128)" in sentence


def test_training_prompts_of_which_some_do_not_fit_are_counted(call: Any, tmp_path: Path) -> None:
    """One row of five is too long: five steps of one epoch each leave it out once."""
    task = rows(
        tmp_path / "q.jsonl",
        [*({**row, "split": "train"} for row in [*GOOD[:4], LONG]), {**GOOD[5], "split": "held_out"}],
    )
    before, during = call("rft", task, "prompts_per_step=5", "steps=3").warnings
    assert "3 of the first 15 training prompts are longer than 112 tokens" in before
    assert "step 1: 1 of 'plain' did not fit and were left out" in during
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["omitted/plain"] for record in records if "stage" in record] == [1.0] * 3
    assert [record["episodes"] for record in records if "stage" in record] == [8.0] * 3


# --- models and tokenizers ----------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("no_weights")
def test_a_tokenizer_without_a_chat_template(call: Any, tmp_path: Path) -> None:
    model = edited_model(tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").unlink()
    assert (
        "has no chat template, so it is likely a base model; take its instruct version"
        in call("sft", f"model={model}").sentence
    )


@pytest.mark.usefixtures("no_weights")
def test_a_tokenizer_without_an_end(call: Any, tmp_path: Path) -> None:
    model = edited_model(tmp_path / "m", eos_token=None, pad_token=None)
    assert "names no end-of-sequence token" in call("sft", f"model={model}").sentence


def test_a_tokenizer_without_a_pad_token_is_told_and_trains_alike(call: Any, tmp_path: Path) -> None:
    model = edited_model(tmp_path / "m", pad_token=None)
    table = json.loads((tmp_path / "m" / "tokenizer.json").read_text())
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps({**table, "padding": None}))
    (warning,) = call("sft", f"model={model}", "steps=2", out=tmp_path / "a").warnings
    assert "the tokenizer has no padding token; eos is used" in warning
    assert call("sft", "steps=2", out=tmp_path / "b").warnings == []
    one, two = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("a", "b"))
    assert one == two


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(("file", "damage", "told"), [
    ("tokenizer.json", lambda text: text[: len(text) // 2], "cannot be loaded"),
    ("config.json", lambda text: text.replace('"model_type": "', '"model_type": "frob'), "is not of a kind that transformers can load"),
    ("config.json", lambda text: text[:20], "is corrupt: it is not JSON"),
    ("model.safetensors", None, "is cut short or corrupt"),
    ("chat_template.jinja", lambda text: "{{ raise_exception('only one\\nturn') }}", "refuses these messages: only one turn"),
])  # fmt: skip
def test_a_model_folder_that_is_damaged(call: Any, tmp_path: Path, file: str, damage: Any, told: str) -> None:
    model = edited_model(tmp_path / "m")
    path = tmp_path / "m" / file
    if damage is None:
        path.write_bytes(path.read_bytes()[:-100])
    else:
        path.write_text(damage(path.read_text()))
    assert told in call("sft", f"model={model}").sentence


@pytest.mark.usefixtures("no_weights")
def test_a_teacher_with_another_vocabulary(call: Any, tmp_path: Path) -> None:
    model = edited_model(tmp_path / "m")
    path = tmp_path / "m" / "tokenizer.json"
    table = json.loads(path.read_text())
    vocabulary = table["model"]["vocab"]
    vocabulary["3"], vocabulary["4"] = vocabulary["4"], vocabulary["3"]
    path.write_text(json.dumps(table))
    sentence = call("opd", f"teacher=checkpoint({model})").sentence
    assert f"the tokenizers of '{POCKET}' and '{model}' differ in token" in sentence


@pytest.mark.usefixtures("no_weights")
def test_a_teacher_with_another_chat_template(call: Any, tmp_path: Path) -> None:
    model = edited_model(tmp_path / "m")
    path = tmp_path / "m" / "chat_template.jinja"
    path.write_text(path.read_text().replace("<u>", "<u>0"))
    assert "differ in their chat templates" in call("opd", f"teacher=checkpoint({model})").sentence


@pytest.mark.usefixtures("no_weights")
def test_a_teacher_that_does_not_exist(call: Any, tmp_path: Path) -> None:
    assert "model folder '/no/teacher' does not exist" in call("opd", "teacher=checkpoint(/no/teacher)").sentence


# --- folders and disks ----------------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("no_weights")
def test_a_folder_that_cannot_be_written(call: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    for out in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/run")):
        sentence = call("sft", out=out).sentence
        assert f"run folder {out} cannot be written" in sentence
        assert "choose another --out" in sentence
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.usefixtures("no_weights")
@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(call: Any, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    assert "cannot be written (Permission denied)" in call("sft", out=tmp_path / "closed" / "run").sentence


@pytest.mark.usefixtures("no_weights")
def test_a_folder_that_another_run_writes(call: Any, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert f"is being written by another process (pid {os.getpid()} on " in call("sft").sentence
    folder.close()


@pytest.mark.usefixtures("no_weights")
def test_a_disk_on_which_no_checkpoint_fits(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """pocket has 0.34 million numbers: weights and two moments are 4 MB."""
    monkeypatch.setattr(redistill.core.runs.shutil, "disk_usage", lambda path: SimpleNamespace(free=3_000_000))
    sentence = call("sft").sentence
    assert "has 3.0 MB free, and one checkpoint needs about 4." in sentence


def test_a_disk_on_which_not_all_checkpoints_fit(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(redistill.core.runs.shutil, "disk_usage", lambda path: SimpleNamespace(free=9_000_000))
        (warning,) = call("sft", "steps=1").warnings
    assert "has 9.0 MB free, and the run needs about 13.7 MB" in warning


def test_the_estimate_of_a_checkpoint_is_its_size(call: Any, tmp_path: Path) -> None:
    from redistill.build import settings
    from redistill.text.preflight import preflight

    given = {"max_new_tokens": 16, "eval_prompts": 4, "steps": 1, "prompts_per_step": 2, "group_size": 2}
    method, config = settings("sdpo", given)
    ready = preflight(config, method.teachers())
    assert call("sdpo", "steps=1").status == 0
    newest = checkpoints(tmp_path / "run" / "checkpoints")[-1]
    size = sum(path.stat().st_size for path in newest.iterdir())
    assert abs(size - ready.checkpoint) < 0.02 * size
    model = (tmp_path / "run" / "model" / "model.safetensors").stat().st_size
    assert abs(model - ready.model) < 0.02 * model


def intact(folder: Path) -> bool:
    return newest_good(folder.parent) == (folder, [])


def test_a_disk_that_fills_while_a_checkpoint_is_saved(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third save fails half-way. What was saved and logged before is there, and the run can go on."""
    real, left = redistill.core.state.save_file, [5]  # two files a checkpoint: weights, and the optimiser's moments

    def save_file(tensors: Any, path: Path, metadata: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(tensors, path, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(redistill.core.state, "save_file", save_file)
        sentence = call("sft", "steps=4").sentence
    before = tmp_path / "run" / "checkpoints" / "step-00000002"
    assert "step-00000003 could not be written (No space left on device)" in sentence
    assert f"the one before it is intact: {before}" in sentence
    assert intact(before)
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
    assert call("sft", "steps=4", "--resume").status == 0
    assert call("sft", "steps=4", out=tmp_path / "whole").status == 0
    one, two = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("run", "whole"))
    assert one == two


def test_a_limit_on_the_size_of_files(call: Any, tmp_path: Path) -> None:
    """The kernel itself refuses here: a file may not be larger than 0.5 MB, and the weights are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        ended = call("sft", "steps=2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "could not be written" in ended.sentence
    assert "there is none before it" in ended.sentence
    assert checkpoints(tmp_path / "run" / "checkpoints") == []
    assert call("sft", "steps=2", "--resume").status == 0


def test_a_log_that_cannot_be_written(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").symlink_to("/dev/full")
    assert "metrics.jsonl could not be written (No space left on device)" in call("sft", "steps=1").sentence


# --- going on -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def done(call: Any, tmp_path: Path) -> Path:
    """A run of two steps with two checkpoints."""
    assert call("sft", "steps=2").status == 0
    return tmp_path / "run"


def test_a_truncated_checkpoint_is_told_and_the_one_before_is_used(call: Any, done: Path) -> None:
    newest = checkpoints(done / "checkpoints")[-1] / "player-student.safetensors"
    newest.write_bytes(newest.read_bytes()[:1000])
    wanted = (done / "model" / "model.safetensors").read_bytes()
    (warning,) = call("sft", "steps=2", "--resume").warnings
    assert (
        "step-00000002: player-student.safetensors is missing, truncated or changed; the one before it is used"
        in warning
    )
    assert (done / "model" / "model.safetensors").read_bytes() == wanted


def test_when_no_checkpoint_is_good_nothing_is_cut_off(call: Any, done: Path) -> None:
    for folder in checkpoints(done / "checkpoints"):
        (folder / "manifest.json").write_text("{")
    log = (done / "metrics.jsonl").read_bytes()
    sentence = call("sft", "steps=2", "--resume").sentence
    assert "no other checkpoint is good" in sentence
    assert f"to start from the beginning, remove {done / 'checkpoints'}" in sentence
    assert (done / "metrics.jsonl").read_bytes() == log


def test_resume_without_a_run_and_with_another_method(call: Any, done: Path, tmp_path: Path) -> None:
    assert f"run folder {done} holds a run of sft, not of rft" in call("rft", "--resume").sentence
    assert "learning_rate=0.5 differs from the run" in call("sft", "steps=2", "learning_rate=0.5", "--resume").sentence
    assert "already holds a run: add --resume to continue it, or choose another --out" in call("sft").sentence


def test_resume_of_other_weights_is_refused(call: Any, tmp_path: Path) -> None:
    model = Path(edited_model(tmp_path / "m"))
    assert call("sft", f"model={model}", "steps=1").status == 0
    data = bytearray((model / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (model / "model.safetensors").write_bytes(data)
    assert "the model's weights changed since the run" in call("sft", f"model={model}", "steps=2", "--resume").sentence


def test_resume_of_another_task_file_is_refused(call: Any, tmp_path: Path) -> None:
    task = rows(tmp_path / "q.jsonl", GOOD)
    assert call("rft", task, "steps=1").status == 0
    rows(tmp_path / "q.jsonl", GOOD[1:])
    assert "the task file changed since the run" in call("rft", task, "steps=2", "--resume").sentence


def test_resume_under_other_versions_is_told_and_kept(call: Any, done: Path) -> None:
    path = done / "versions.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "transformers": "4.0.0"}))
    (warning,) = call("sft", "steps=3", "--resume").warnings
    assert f"transformers 4.0.0 -> {facts['transformers']}" in warning
    kept = json.loads(path.read_text())
    assert kept["transformers"] == "4.0.0"
    assert kept["resumed_with"] == {"transformers": facts["transformers"]}


# --- numbers ------------------------------------------------------------------------------------------------------------
def test_updates_that_are_not_finite_are_skipped_counted_and_stop_the_run(call: Any, tmp_path: Path) -> None:
    """The first update throws the weights so far that no gradient is finite after it."""
    ended = call("sft", "learning_rate=1e6", "weight_decay=1e20", "steps=9", "max_bad_updates=3", "keep_last=1")
    first = tmp_path / "run" / "checkpoints" / "step-00000001"
    assert "3 updates in a row were not finite at step 4" in ended.sentence
    assert f"its checkpoint {first} is intact (try a smaller learning_rate)" in ended.sentence
    for step in (2, 3, 4):
        assert f"warning: step {step}: a non-finite loss or gradient; student was not updated" in ended.out
    assert intact(first), "a good checkpoint does not make room for those of skipped updates"
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["skipped"] for record in records if "stage" in record] == [0.0, 1.0, 1.0, 1.0]


def test_the_count_of_skipped_updates_is_in_the_result(call: Any, tmp_path: Path) -> None:
    assert call("sft", "learning_rate=1e6", "weight_decay=1e20", "steps=4", "max_bad_updates=9").status == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["skipped_updates"] == 3


def test_a_run_without_any_gradient_says_so(call: Any) -> None:
    """Answers of one token are always wrong, so rejection sampling has nothing to train on."""
    (warning,) = call("rft", "max_new_tokens=1", f"steps={IDLE_STEPS + 1}", "save_every=99").warnings
    assert f"step {IDLE_STEPS}: no gradient in the last {IDLE_STEPS} steps" in warning


# --- logs ---------------------------------------------------------------------------------------------------------------
def strict(text: str) -> Any:
    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_logs_are_json_that_any_reader_can_read_and_stay_small(call: Any, tmp_path: Path) -> None:
    assert call("sft", "learning_rate=1e6", "steps=3", "eval_prompts=64", "eval_every=1").status == 0
    for name in ("metrics.jsonl", "samples.jsonl", "alarms.jsonl"):
        lines = (tmp_path / "run" / name).read_text().splitlines()
        for line in lines:
            strict(line)
            assert len(line) < 1500
    for name in ("config.json", "versions.json", "result.json"):
        strict((tmp_path / "run" / name).read_text())
    assert len(strict((tmp_path / "run" / "result.json").read_text())["evaluations"]["after"]["outcomes"]) == 64


def test_numbers_that_json_does_not_have_are_null(tmp_path: Path) -> None:
    log = redistill.core.runs.Log(tmp_path / "log.jsonl")
    log.add({"loss": float("nan"), "deep": {"list": [1.5, float("-inf")]}, "text": "NaN"})
    log.close()
    assert strict((tmp_path / "log.jsonl").read_text()) == {"loss": None, "deep": {"list": [1.5, None]}, "text": "NaN"}
