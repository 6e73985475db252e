"""PS-KD: the numbered checks of its specification, its loss against torch's own, its table and its copy."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from redistill.core.episode import flat
from redistill.core.signal import DivergenceOf, LogProb
from redistill.core.update import update
from redistill.errors import UserError
from redistill.methods.ps_kd import PSKD

from vision_lab import FixedLab, Lab

BATCH_NORM = {"model": "cnn:width=4", "dtype": "float32"}


def log(*p: float) -> torch.Tensor:
    return torch.tensor(p, dtype=torch.float64).log()


@pytest.mark.parametrize("teacher", ["stored", "sync(4)"])
def test_check_1_alpha_zero_is_cross_entropy_bit_for_bit(teacher):
    plain, ours = Lab("ce", **BATCH_NORM), Lab("ps-kd", alpha=0.0, teacher=teacher, **BATCH_NORM)
    for _ in range(9):
        plain.advance(1)
        ours.advance(1)
        assert torch.equal(plain.weights(), ours.weights())


@pytest.mark.parametrize("options", [{}, {"teacher": "sync(4)"}, {"schedule": "constant"}, {"alpha": 1.0}])
def test_check_1_the_first_epoch_is_cross_entropy_for_any_alpha(options):
    plain, ours = Lab("ce", **BATCH_NORM), Lab("ps-kd", **options, **BATCH_NORM)
    for _ in range(4):
        plain.advance(1)
        ours.advance(1)
        assert torch.equal(plain.weights(), ours.weights())
    plain.advance(1)
    ours.advance(1)
    assert not torch.equal(plain.weights(), ours.weights())


def test_check_2_alpha_rises_linearly():
    assert [PSKD().alpha_at(t, 4) for t in (1, 2, 3, 4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert PSKD().alpha_at(7, 4) == pytest.approx(0.8)


def test_check_2_the_run_sees_that_alpha():
    lab = Lab("ps-kd")  # 16 steps of 4 an epoch: T = 4
    seen = []
    for _ in range(16):
        lab.advance(1)
        seen.append(lab.logged["alpha"])
    assert seen == pytest.approx([0.2] * 4 + [0.4] * 4 + [0.6] * 4 + [0.8] * 4)


def test_check_3_gradient_and_rescaling_of_a_known_case():
    now, before = log(0.6, 0.15, 0.1, 0.1, 0.05), log(0.4, 0.2, 0.2, 0.1, 0.1)
    lab = FixedLab("ps-kd", now, [0], alpha=0.4, schedule="constant")
    lab.method.table.write(torch.tensor([0]), before[None])
    groups = lab.collect()
    _, gradient = lab.gradient(lab.signal(groups))
    torch.testing.assert_close(gradient, torch.tensor([-0.16, 0.07, 0.02, 0.06, 0.01], dtype=torch.float64))
    plain = FixedLab("ce", now, [0])
    _, full = plain.gradient(plain.signal(plain.collect()))
    assert float(gradient.abs().sum() / full.abs().sum()) == pytest.approx(0.4)
    lab.step += 1
    lab.method.after_update(groups, lab)
    assert lab.logged["rescaling_right_label"] == pytest.approx(0.4)  # 1 - 0.4 (0.6 / 0.4)


def test_check_4_the_table_holds_distributions_without_gradient():
    lab = Lab("ps-kd")
    lab.advance(2)
    table = lab.method.table
    assert int(table.seen_N.sum()) == 20
    untouched = table.logp_NV[~table.seen_N].clone()
    assert torch.equal(untouched, torch.zeros_like(untouched))
    lab.advance(1)
    assert int(table.seen_N.sum()) == 30
    torch.testing.assert_close(table.logp_NV[table.seen_N].exp().sum(-1), torch.ones(30, dtype=torch.float64))
    assert not table.logp_NV.requires_grad


def test_check_4_other_rows_keep_what_they_had():
    lab = Lab("ps-kd")
    lab.advance(5)
    before = lab.method.table.logp_NV.clone()
    rows = {row.prompt.data["row"] for row in flat(lab.collect())}
    lab.advance(1)
    changed = {int(i) for i in (lab.method.table.logp_NV != before).any(-1).nonzero()}
    assert changed == rows


def test_check_4_a_constant_model_teaches_itself_nothing_new():
    lab = Lab("ps-kd", task="digits:train=40,noise=0.3,augment=0", learning_rate=1e-200, weight_decay=0.0)
    lab.advance(4)
    first = lab.method.table.logp_NV.clone()
    lab.advance(9)
    torch.testing.assert_close(lab.method.table.logp_NV, first, rtol=0, atol=1e-14)
    groups = lab.collect()
    loss, _ = lab.gradient(lab.signal(groups))
    logp = lab.domain.log_probs([row.context for row in flat(groups)])
    label = torch.tensor([row.trajectory for row in flat(groups)])
    entropy = -(logp.exp() * logp).sum(-1).mean()
    alpha = lab.logged["alpha"]
    blended = (1 - alpha) * F.nll_loss(logp, label) + alpha * entropy
    # The reported loss leaves out alpha H(P_{t-1}), a constant.
    assert loss + alpha * float(entropy) == pytest.approx(float(blended), abs=1e-12)


def test_check_5_conflicting_labels_still_settle_at_their_frequencies():
    labels = [0] * 7 + [1] * 3
    lab = FixedLab("ps-kd", log(0.05, 0.95), labels, schedule="constant", learning_rate=1.0, momentum=0.0, steps=400)
    lab.advance(200)
    torch.testing.assert_close(lab.logits.softmax(-1), torch.tensor([0.7, 0.3], dtype=torch.float64), atol=1e-4, rtol=0)


@pytest.mark.parametrize("teacher", ["stored", "sync(4)"])
def test_the_signal_has_the_gradient_of_cross_entropy_on_blended_targets(teacher):
    """The paper's loss by torch's own cross-entropy with soft targets; the values differ by alpha H(P_{t-1})."""
    lab = Lab("ps-kd", teacher=teacher)
    lab.advance(9)
    groups = lab.collect()
    signal = lab.signal(groups)
    rows = flat(groups)
    loss, gradient = lab.gradient(signal)
    student = lab.domain.players["student"]
    if teacher == "stored":
        last = lab.method.table.logp_NV[[row.prompt.data["row"] for row in rows]].exp()
    else:
        module = copy.deepcopy(lab.domain.model.module)
        module.load_state_dict(lab.domain.bank.copies["sync-4.0"])
        last = module(lab.domain.read([row.context for row in rows])).softmax(-1).detach()
    alpha = 0.8 * 3 / 4
    hard = F.one_hot(torch.tensor([row.trajectory for row in rows]), 10).double()
    logits = lab.domain.model.module(lab.domain.read([row.context for row in rows]))
    whole = F.cross_entropy(logits, (1 - alpha) * hard + alpha * last)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(whole, list(student.parameters.values()))])
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)
    entropy = -(last * last.log()).sum(-1).mean()
    assert loss + alpha * float(entropy) == pytest.approx(whole.item(), abs=1e-12)


def test_the_table_is_the_softmax_of_the_forward_that_made_the_gradient():
    lab = Lab("ps-kd", **BATCH_NORM)
    lab.advance(3)
    module = copy.deepcopy(lab.domain.model.module).train()
    rows = flat(lab.collect())
    expected = module(lab.domain.read([row.context for row in rows])).log_softmax(-1).detach()
    lab.advance(1)
    at = [row.prompt.data["row"] for row in rows]
    torch.testing.assert_close(lab.method.table.logp_NV[at], expected)


def test_the_copy_is_the_model_at_the_end_of_the_last_epoch_with_its_statistics():
    lab = Lab("ps-kd", teacher="sync(4)", **BATCH_NORM)
    lab.advance(4)
    last = copy.deepcopy(lab.domain.model.module).eval()
    lab.advance(3)
    groups = lab.collect()
    signal = lab.signal(groups)
    [kl] = [q for term in signal.terms for q in term.quantities() if isinstance(q, DivergenceOf)]
    states = lab.domain._teacher_logits(kl.teacher.weights, kl.teacher.contexts)
    images = lab.domain.read([row.context for row in flat(groups)])
    torch.testing.assert_close(states.log_probs(), last(images).log_softmax(-1).detach())
    assert not torch.allclose(states.log_probs(), lab.domain.model.module.eval()(images).log_softmax(-1))


def test_a_row_without_a_prediction_is_learnt_as_one_hot():
    """Half of the table is empty: those rows weigh 1 in the likelihood and nothing in the divergence."""
    lab = Lab("ps-kd", schedule="constant")
    lab.advance(4)
    groups = lab.collect()
    rows = flat(groups)
    at = torch.tensor([row.prompt.data["row"] for row in rows])
    lab.method.table.seen_N[at[:5]] = False
    _, gradient = lab.gradient(lab.signal(groups))
    last = lab.method.table.logp_NV[at].exp()
    hard = F.one_hot(torch.tensor([row.trajectory for row in rows]), 10).double()
    target = torch.cat([hard[:5], 0.2 * hard[5:] + 0.8 * last[5:]])
    logits = lab.domain.model.module(lab.domain.read([row.context for row in rows]))
    parameters = list(lab.domain.players["student"].parameters.values())
    expected = torch.autograd.grad(F.cross_entropy(logits, target), parameters)
    torch.testing.assert_close(gradient, torch.cat([g.flatten() for g in expected]), rtol=1e-10, atol=1e-12)


def test_mislabelled_images_are_trusted_less():
    """The mechanism on a small scale: the share of the given label in its target falls lower where it is wrong."""
    lab = Lab("ps-kd", task="digits:train=200,noise=0.3", prompts_per_step=50, steps=100, model="cnn:width=8")
    lab.advance(100)
    assert lab.logged["target_wrong_label"] < lab.logged["target_right_label"] - 0.1
    assert lab.logged["rescaling_right_label"] < 1.0


def test_a_prediction_that_is_not_finite_stays_out_of_the_table():
    lab = Lab("ps-kd")
    lab.advance(4)
    before = lab.method.table.logp_NV.clone()
    for p in lab.domain.players["student"].parameters.values():
        p.data.fill_(torch.nan)
    groups = lab.collect()
    update(lab.signal(groups), lab.domain)
    lab.step += 1
    lab.method.after_update(groups, lab)
    assert torch.equal(lab.method.table.logp_NV, before)


def test_a_prolonged_run_may_not_stretch_the_schedule_unseen():
    lab = Lab("ps-kd")
    lab.advance(2)
    lab.domain.epochs = 9
    with pytest.raises(UserError, match=r"stretch alpha's schedule from 4 to 9 .* ramp_epochs"):
        lab.advance(1)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"teacher": "sync(7)"}, r"teacher=sync\(7\) .* an epoch of this run is 4 updates, so write sync\(4\)"),
        ({"teacher": "ema(0.1)"}, r"teacher=ema\(0.1\) is not last epoch's model"),
        ({"alpha": 1.2}, r"alpha=1.2 is out of range"),
        ({"schedule": "linaer"}, r"schedule='linaer' .* 'linear'"),
        ({"ramp_epochs": 0}, r"ramp_epochs=0 is out of range"),
    ],
)
def test_bad_options_are_told_in_a_sentence(given, sentence):
    with pytest.raises(UserError, match=sentence):
        Lab("ps-kd", **given)


CHANGES = {
    "alpha": {"alpha": 0.3}, "schedule": {"schedule": "constant"}, "ramp_epochs": {"ramp_epochs": 20},
    "teacher": {"teacher": "sync(4)"}, "shuffled": {"shuffled": "true"},
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_every_option_changes_the_result(name):
    """Law 3 among them: with `shuffled` each image is taught by another one's prediction."""
    plain, changed = Lab("ps-kd"), Lab("ps-kd", **CHANGES[name])
    plain.advance(7)
    changed.advance(7)
    assert not torch.allclose(plain.weights(), changed.weights())


def test_every_option_is_in_that_table():
    from redistill.core.options import options_of

    assert set(CHANGES) == set(options_of(PSKD))


def test_an_unmeasured_quantity_is_not_asked_for_in_the_first_epoch():
    lab = Lab("ps-kd")
    signal = lab.signal(lab.collect())
    assert [term.quantities() for term in signal.terms] == [(LogProb(),)]
