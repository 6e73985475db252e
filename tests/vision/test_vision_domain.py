"""Running, evaluating and refusing: what a person meets of vision."""

from __future__ import annotations

import json

import pytest
import torch
from redistill.build import prepare, settings
from redistill.cli import main
from redistill.config import load_recipe
from redistill.errors import UserError
from redistill.evaluation.calibration import calibration_error
from redistill.experiments import experiment_of

from vision_lab import SMALL, Lab


@pytest.mark.parametrize(
    ("slug", "given", "sentence"),
    [
        (
            "ce",
            {"prompts_per_step": 11},
            r"prompts_per_step=11 does not divide the 40 .* that does is 10",
        ),
        ("ce", {"model": "cnn", "micro_batch": 5}, r"micro_batch=5 changes what batch norm computes"),
        ("ce", {"milestones": "3,2"}, r"milestones='3,2' is not a list of rising epochs"),
        ("ce", {"milestones": "a"}, r"milestones='a' is not a list of rising epochs"),
        ("ce", {"optimiser": "adam"}, r"optimiser='adam' is not a choice; did you mean 'adamw'\?"),
        ("ce", {"label_smoothing": 2}, r"label_smoothing=2 is out of range"),
        ("ce", {"temperature": 1}, r"'temperature' is neither a setting of a run nor an option of ce"),
        ("kd", {"teacher": "live"}, r"teacher=live is not a trained teacher"),
        ("kd", {"teacher": "checkpoint(nowhere)"}, r"model 'nowhere' is not a folder with config.json"),
        ("kd", {"loss_temperature": 0}, r"loss_temperature=0 is out of range: it must be > 0"),
    ],
)
def test_bad_settings_are_told_in_a_sentence(slug, given, sentence):
    with pytest.raises(UserError, match=sentence):
        Lab(slug, **given)


def test_an_evaluation_says_what_it_means():
    lab = Lab("ce")
    lab.advance(8)
    found = lab.domain.evaluate("x")
    assert found["metric"] == "accuracy"
    assert found["accuracy"] == sum(found["outcomes"]) / len(found["outcomes"])
    assert found["low"] <= found["accuracy"] <= found["high"]
    assert json.loads(json.dumps(found)) == found
    prompts = lab.task.held_out(50)
    lab.domain.model.module.eval()
    with torch.no_grad():
        p = lab.domain.model.module(lab.domain.read([lab.domain.context(q) for q in prompts])).softmax(-1)
    confidence, guess = p.max(-1)
    right = torch.tensor([int(q.answer) for q in prompts]) == guess
    assert found["outcomes"] == right.int().tolist()
    assert found["ece"] == pytest.approx(calibration_error(confidence.numpy(), right.numpy(), 15))
    object.__setattr__(lab.config, "ece_bins", 3)
    assert lab.domain.evaluate("x")["ece"] == pytest.approx(calibration_error(confidence.numpy(), right.numpy(), 3))


def test_training_reads_batch_statistics_and_evaluation_the_running_ones():
    lab = Lab("ce", model="cnn:width=4")
    before = lab.domain.model.module.norms[0].running_mean.clone()
    lab.advance(1)
    assert lab.domain.model.module.training
    assert not torch.equal(lab.domain.model.module.norms[0].running_mean, before)
    lab.domain.evaluate("x")
    assert not lab.domain.model.module.training


def test_the_command_line_trains_and_shows(tmp_path, capsys):
    rest = {key: value for key, value in SMALL.items() if key not in ("task", "model", "steps")}
    given = [word for key, value in rest.items() for word in ("--set", f"{key}={value}")]
    line = ["run", "ps-kd", "--task", SMALL["task"], "--model", "cnn:width=4,norm=group", "--steps", "6", *given]
    assert main([*line, "--out", str(tmp_path / "run"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["steps"] == 6
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    assert "the student reads" in (tmp_path / "run" / "views.txt").read_text()
    assert json.loads((tmp_path / "run" / "versions.json").read_text())["images"] == "scikit-learn load_digits"
    assert main(["show", "ps-kd", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {option["name"] for option in shown["options"]} >= {"alpha", "teacher"}
    assert main(["run", "ps-kd", "--task", "digitz", "--out", str(tmp_path / "bad")]) == 2
    assert "did you mean 'digits'?" in capsys.readouterr().err


def test_the_settings_and_names_need_no_torch():
    import subprocess
    import sys

    names = "redistill.vision.settings, redistill.vision.tasks, redistill.core.naming"
    code = f"import sys, {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["ps-kd", "ce", "kd"])
def test_recipes_run_as_they_are(name, tmp_path):
    recipe = load_recipe(name)
    given = {**recipe.run, **recipe.options, "steps": 3, "eval_prompts": 20}
    run = prepare(recipe.method, given, out=tmp_path, report=lambda event, facts: None)
    result = run.go(False)
    run.close()
    assert result["skipped_updates"] == 0


@pytest.mark.parametrize("model", [None, "resnet"])
def test_the_experiments_read(model):
    experiment = experiment_of("ps-kd", model)
    for arm in experiment.arms.values():
        settings(arm.method, {**experiment.base, **arm.options})
    named = {arm for pair in (experiment.compare, *experiment.controls.values()) for arm in pair}
    assert named <= set(experiment.arms)
