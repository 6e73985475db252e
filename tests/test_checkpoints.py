"""What a checkpoint is to others: a model's folder; which ones are kept; which ones are refused for another."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from redistill.build import prepare
from redistill.core.state import Piece, State, checkpoints, fill, verify
from redistill.errors import UserError
from redistill.evaluation.saved import evaluate_saved
from redistill.text.models import load_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent / "core"))
from test_loop import ran
from toy import ToyDomain

TEXT = {
    "steps": 3, "save_every": 1, "prompts_per_step": 2, "group_size": 2, "max_new_tokens": 12, "eval_prompts": 4,
    "learning_rate": 1e-2, "utility": "false",
}  # fmt: skip
IMAGES = {
    "task": "digits:train=40",
    "model": "cnn:width=4",
    "prompts_per_step": 20,
    "eval_prompts": 30,
    "steps": 3,
    "save_every": 1,
}
FLOWS = {
    "model": "dit:width=16,depth=1,heads=2", "prompts_per_step": 2, "group_size": 3, "sampling_steps": 3, "steps": 3,
    "eval_prompts": 20, "eval_sampling_steps": 2, "save_every": 1,
}  # fmt: skip


def run(slug: str, given: dict[str, Any], out: Path, resume: bool = False, warnings: list[str] | None = None) -> Path:
    """Run to the end; the newest checkpoint."""

    def report(event: str, facts: Any) -> None:
        if event == "warning" and warnings is not None:
            warnings.append(facts["text"])

    made = prepare(slug, given, out=out, resume=resume, report=report)
    try:
        made.go(resume)
    finally:
        made.close()
    return checkpoints(out / "checkpoints")[-1]


def logits(module: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = module(torch.arange(2, 40)[None]).logits
    return found


# --- readable by others -------------------------------------------------------------------------------------------------
def test_transformers_reads_a_checkpoint(tmp_path: Path) -> None:
    newest = run("sft", TEXT, tmp_path)
    theirs, final = (AutoModelForCausalLM.from_pretrained(folder) for folder in (newest, tmp_path / "model"))
    assert torch.equal(logits(theirs), logits(final))
    assert not torch.equal(logits(theirs), logits(load_model("pocket").module))
    tokenizer, own = AutoTokenizer.from_pretrained(newest), load_model("pocket").tokenizer
    assert tokenizer.chat_template == own.chat_template
    assert tokenizer.encode("12+34=") == own.encode("12+34=")
    weights = sum(tensor.numel() for tensor in load_file(newest / "model.safetensors").values())
    assert sum(path.stat().st_size for path in newest.iterdir()) < 3.1 * 4 * weights, (
        "weights and two moments, none twice"
    )
    assert torch.equal(logits(load_model(str(newest)).module), logits(theirs)), (
        "so --model and teacher=checkpoint() read it"
    )


def test_peft_reads_an_adapters_checkpoint(tmp_path: Path) -> None:
    newest = run("sft", {**TEXT, "lora_rank": 2}, tmp_path)
    base = load_model("pocket").module
    before = logits(base)
    adapted = peft.PeftModel.from_pretrained(base, str(newest))
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(logits(adapted), logits(ours), rtol=1e-4, atol=1e-4)
    assert float((logits(adapted) - before).abs().max()) > 1e-2
    assert not (newest / "model.safetensors").exists(), "the base is not saved again"


@pytest.mark.parametrize(("slug", "given"), [("ce", IMAGES), ("crd", FLOWS)])
def test_our_other_domains_read_theirs(slug: str, given: dict[str, Any], tmp_path: Path) -> None:
    newest = run(slug, given, tmp_path)
    one, other = (load_file(folder / "model.safetensors") for folder in (newest, tmp_path / "model"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    again = tmp_path / "again"
    run(slug, {**given, "model": str(newest), "steps": 1}, again)
    evaluated = [
        json.loads((tmp_path / name).read_text())["evaluations"] for name in ("result.json", "again/result.json")
    ]
    metric = evaluated[0]["after"]["metric"]
    assert evaluated[0]["after"][metric] == evaluated[1]["before"][metric]


def test_a_run_folder_holds_safetensors_json_and_text_only(tmp_path: Path) -> None:
    run("sft", TEXT, tmp_path)
    kinds = {path.suffix for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    assert kinds <= {".json", ".jsonl", ".txt", ".safetensors", ".jinja", ".md"}
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert not path.read_bytes().startswith((b"\x80", b"PK")), f"{path} is a pickle or an archive"


# --- which ones are kept ------------------------------------------------------------------------------------------------
class Scored(ToyDomain):
    """Its evaluations come to given numbers."""

    scores = {"before": 0.1, "step-1": 0.5, "step-2": 0.9, "step-3": 0.9, "step-4": 0.2, "step-5": 0.7, "after": 0.3}

    def evaluate(self, label: str) -> dict[str, Any]:
        return {"metric": "score", "score": self.scores[label]}


def kept(path: Path) -> list[int]:
    return [int(folder.name[5:]) for folder in checkpoints(path / "checkpoints")]


@pytest.mark.parametrize(("last", "best", "wanted"), [
    (2, 0, [4, 6]), (1, 0, [6]), (1, 1, [2, 6]), (1, 2, [2, 3, 6]), (2, 3, [2, 3, 5, 6]), (9, 0, [2, 4, 6]),
])  # fmt: skip
def test_the_newest_and_the_best_are_kept(last: int, best: int, wanted: list[int], tmp_path: Path) -> None:
    """Of equals the earlier is the better; an evaluation among the best is saved, also between two saves."""
    ran(tmp_path, domain=Scored(), eval_every=1, keep_last=last, keep_best=best)
    assert kept(tmp_path) == wanted
    result = json.loads((tmp_path / "result.json").read_text())
    assert result.get("best_steps") == ([2, 3, 5][:best] if best else None)


def test_the_best_is_kept_over_a_stop(tmp_path: Path) -> None:
    class Stopped(Scored):
        def begin_step(self, step: int) -> None:
            if step == 4:
                raise KeyboardInterrupt
            super().begin_step(step)

    given = {"eval_every": 1, "keep_last": 1, "keep_best": 1}
    with pytest.raises(KeyboardInterrupt):
        ran(tmp_path, domain=Stopped(), **given)
    ran(tmp_path, domain=Scored(), resume=True, **given)
    assert kept(tmp_path) == [2, 6]


def test_what_is_kept_may_be_asked_for_anew(tmp_path: Path) -> None:
    run("ce", IMAGES, tmp_path)
    run("ce", {**IMAGES, "steps": 4, "keep_last": 1}, tmp_path, resume=True)
    assert kept(tmp_path) == [4]


def test_samples_grow_to_a_limit_that_is_told_once(tmp_path: Path) -> None:
    warnings: list[str] = []
    run("rft", {**TEXT, "samples_mb": 0.0005}, tmp_path, warnings=warnings)
    assert 0 < (tmp_path / "samples.jsonl").stat().st_size <= 500
    assert len([text for text in warnings if "samples.jsonl has reached samples_mb=0.0005" in text]) == 1


# --- which ones are refused ---------------------------------------------------------------------------------------------
def test_a_foreign_checkpoint_is_named_and_the_one_before_used(tmp_path: Path) -> None:
    """Whole and well sealed, but of another run: of a network of another width, of another method."""
    run("ce", IMAGES, tmp_path / "wide" / "run", warnings=[])
    given = {**IMAGES, "model": "cnn:width=8"}
    for slug, its in (("ce", given), ("ps-kd", IMAGES)):
        foreign = run(slug, {**its, "steps": 4}, tmp_path / slug / "other")
        out = tmp_path / slug / "run"
        shutil.copytree(tmp_path / "wide" / "run", out)
        shutil.copytree(foreign, out / "checkpoints" / "step-00000004")
        wanted = (out / "model" / "model.safetensors").read_bytes()
        warnings: list[str] = []
        run("ce", IMAGES, out, resume=True, warnings=warnings)
        (told,) = [text for text in warnings if "step-00000004" in text]
        assert "the one before it is used" in told
        assert ("does not fit this run: player-student" if slug == "ce" else "is of another run") in told
        assert (out / "model" / "model.safetensors").read_bytes() == wanted


def test_nothing_is_stretched_cast_or_left_as_it_was() -> None:
    own = {"a": torch.zeros(3), "b": torch.zeros(2, dtype=torch.int64)}
    good = {"a": torch.ones(3), "b": torch.ones(2, dtype=torch.int64)}
    for wrong in (
        {**good, "a": torch.ones(1)}, {**good, "a": torch.ones(3, dtype=torch.float64)}, {"a": good["a"]},
        {**good, "c": torch.ones(1)},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"^[abc] is "):
            fill(own, wrong)
    assert float(own["a"].sum()) == 0.0, "nothing is changed by what is refused"
    fill(own, good)
    assert float(own["a"].sum()) == 3.0


class Part:
    """A part with facts."""

    def __init__(self, **facts: Any) -> None:
        self.facts = facts

    def state(self) -> Piece:
        return Piece(facts=self.facts)

    def restore(self, piece: Piece) -> None:
        self.facts = dict(piece.facts)


@pytest.mark.parametrize(
    "facts", [{"n": 1}, {"n": 1, "text": "a", "more": 1}, {"n": "1", "text": "a"}, {"n": True, "text": "a"}]
)
def test_facts_of_another_kind_are_refused_before_anything_changes(facts: dict[str, Any], tmp_path: Path) -> None:
    def registry(part: Part) -> State:
        state = State()
        state.register("first", Part(at=0))
        state.register("part", part)
        return state

    registry(Part(**facts)).save(tmp_path, 1, 1)
    own = registry(Part(n=0, text=""))
    own.parts["first"].facts["at"] = 7  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="does not fit this run: part"):
        own.load(tmp_path / "step-00000001")
    assert own.parts["first"].state().facts == {"at": 7}


def test_a_manifest_that_points_outside_of_its_folder_is_refused(tmp_path: Path) -> None:
    state = State()
    state.register("part", Part(n=0))
    folder = state.save(tmp_path / "checkpoints", 1, 1)
    (tmp_path / "secret").write_text("x")
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["../../secret"] = "0"
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="is not one of ours"):
        verify(folder)


# --- after the end ------------------------------------------------------------------------------------------------------
def test_a_run_that_was_killed_between_its_last_checkpoint_and_its_model_makes_both(tmp_path: Path) -> None:
    run("crd", FLOWS, tmp_path)
    wanted = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    assert "samples.png" in wanted
    shutil.rmtree(tmp_path / "model")
    (tmp_path / "result.json").unlink()
    run("crd", FLOWS, tmp_path, resume=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == wanted


def test_a_finished_run_is_evaluated_from_its_checkpoint(tmp_path: Path) -> None:
    run("sft", {**TEXT, "lora_rank": 2}, tmp_path)
    found = evaluate_saved(str(tmp_path), None, 0, None, {})
    after = json.loads((tmp_path / "result.json").read_text())["evaluations"]["after"]
    assert found["accuracy"] == after["accuracy"]
    assert found["step"] == 3
