"""Distillation against torch's KL; its teacher is trained first, or saved."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from redistill.build import prepare
from redistill.core.episode import flat
from redistill.core.signal import TeacherLogProb

from vision_lab import SMALL, Lab

RUN = {**SMALL, "model": "cnn:width=4", "dtype": "float32"}


def run(slug, given, folder):
    made = prepare(slug, {**RUN, **given}, out=folder, report=lambda event, facts: None)
    try:
        return made.go(False)
    finally:
        made.close()


def test_law_4_kd_is_hintons_loss_by_torchs_kl():
    lab = Lab("kd", weight=0.7, loss_temperature=3.0)
    lab.advance(9)
    signal = lab.signal(lab.collect())
    loss, gradient = lab.gradient(signal)
    images = lab.domain.read([row.context for row in signal.rows])
    target = torch.tensor([row.trajectory for row in signal.rows])
    student = lab.domain.players["student"]
    own = {name: t.clone() for name, t in student.tensors.items()}
    module = lab.domain.model.module
    module.load_state_dict(lab.domain.bank.copies["frozen"])
    taught = module(images).detach()
    module.load_state_dict(own)
    logits = module(images)
    soft = F.kl_div((logits / 3).log_softmax(-1), (taught / 3).softmax(-1), reduction="batchmean")
    whole = 0.3 * F.cross_entropy(logits, target) + 0.7 * 9 * soft
    expected = torch.autograd.grad(whole, list(student.parameters.values()))
    torch.testing.assert_close(gradient, torch.cat([g.flatten() for g in expected]), rtol=1e-9, atol=1e-12)
    assert loss == pytest.approx(whole.item(), abs=1e-10)


def test_kd_makes_its_teacher_first_and_then_starts_anew(tmp_path):
    result = run("kd", {"steps": 8}, tmp_path / "kd")
    plain = run("ce", {"steps": 8}, tmp_path / "ce")
    assert result["steps"] == 16
    same = result["evaluations"]["after teacher"]
    assert same["accuracy"] == plain["evaluations"]["after"]["accuracy"]
    assert same["nll"] == plain["evaluations"]["after"]["nll"]


def test_kd_takes_a_saved_run_as_its_teacher(tmp_path):
    run("ce", {"steps": 8}, tmp_path / "ce")
    result = run("kd", {"steps": 4, "teacher": f"checkpoint({tmp_path / 'ce'})"}, tmp_path / "kd")
    assert result["steps"] == 4
    lab = Lab("kd", **{**RUN, "teacher": f"checkpoint({tmp_path / 'ce'})"})
    rows = flat(lab.collect())
    taught = lab.domain.teacher(lab.method.teacher, rows)
    found = lab.domain.score(rows, [TeacherLogProb(taught)])[TeacherLogProb(taught)]
    loaded = lab.domain.bank.others[str(tmp_path / "ce")].module.eval()
    with torch.no_grad():
        logp = loaded(lab.domain.read([row.context for row in rows])).log_softmax(-1)
    torch.testing.assert_close(found, logp.gather(-1, torch.tensor([[r.trajectory] for r in rows]))[:, 0])
    assert not torch.allclose(logp, lab.domain.log_probs([row.context for row in rows]))
