"""The laws of the objective layer over the vision methods, in float64, and resuming bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from redistill.build import prepare
from redistill.core.episode import flat
from redistill.core.options import options_of
from redistill.core.signal import DivergenceOf, EntropyOf, LogProb, Signal, Teacher, TeacherLogProb
from redistill.core.specs import DivergenceKind, Support, TeacherWeights
from redistill.core.state import checkpoints
from redistill.methods.ce import CE
from redistill.methods.kd import KD
from redistill.objectives.terms import Divergence, Entropy, Likelihood
from safetensors.torch import load_file

from vision_lab import SMALL, Lab

CASES = {
    "ce": ("ce", {}), "label smoothing": ("ce", {"label_smoothing": 0.2}), "kd": ("kd", {}),
    "ps-kd": ("ps-kd", {}), "ps-kd copy": ("ps-kd", {"teacher": "sync(4)"}),
}  # fmt: skip


def at_work(case: str, **given: object) -> tuple[Lab, Signal]:
    """A method some steps into its run, with the signal of the next one (kd: the student has left its teacher)."""
    slug, options = CASES[case]
    lab = Lab(slug, **{**options, **given})
    lab.advance(9)
    return lab, lab.signal(lab.collect())


@pytest.mark.parametrize("case", CASES)
def test_law_1_the_cut_into_micro_batches_and_the_order_change_nothing(case):
    lab, signal = at_work(case)
    loss, gradient = lab.gradient(signal)
    assert float(gradient.norm()) > 1e-3
    for size in (1, 3, 7):
        object.__setattr__(lab.config, "micro_batch", size)
        cut = lab.gradient(signal)
        assert cut[0] == pytest.approx(loss, abs=1e-9)
        torch.testing.assert_close(cut[1], gradient, rtol=1e-6, atol=1e-10)
    turned = lab.gradient(signal.subset(list(reversed(range(len(signal.rows))))))
    torch.testing.assert_close(turned[1], gradient, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_law_1_a_masked_neighbour_changes_nothing(norm):
    """With batch norm too: a row that no term covers is not read at all."""
    lab, signal = at_work("ce", model=f"cnn:width=4,norm={norm}")
    mask = torch.tensor([True] * 6 + [False] * 4)
    masked = Signal(signal.rows, [Likelihood(mask_N=mask)])
    alone = Signal(signal.rows[:6], [Likelihood()])
    one, other = lab.gradient(masked), lab.gradient(alone)
    assert one[0] == pytest.approx(other[0], abs=1e-12)
    torch.testing.assert_close(one[1], other[1])


@pytest.mark.parametrize("given", [{}, {"model": "cnn:width=4", "teacher_norm": "batch"}])
@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd(0.5)", "tvd"])
def test_law_2_a_teacher_that_is_the_student_teaches_nothing(kind, given):
    lab = Lab("ce", **given)
    lab.advance(3)
    rows = flat(lab.collect())
    teacher = lab.domain.teacher(TeacherWeights("live"), rows)
    loss, gradient = lab.gradient(Signal(rows, [Divergence(teacher=teacher, kind=DivergenceKind.parse(kind))]))
    assert abs(loss) < 1e-12
    assert float(gradient.abs().max()) < 1e-12


@pytest.mark.parametrize("case", ["kd", "ps-kd", "ps-kd copy"])
def test_law_3_another_image_s_teacher_changes_the_gradient(case):
    lab, signal = at_work(case)
    _, gradient = lab.gradient(signal)
    turned = []
    for term in signal.terms:
        if isinstance(term, Divergence):
            contexts = term.teacher.contexts
            term = replace(term, teacher=Teacher(term.teacher.weights, (*contexts[1:], contexts[0])))
        turned.append(term)
    _, other = lab.gradient(Signal(signal.rows, turned))
    assert float((other - gradient).norm()) > 1e-3 * float(gradient.norm())


def test_law_4_the_other_quantities_by_their_definitions():
    lab, _ = at_work("kd")
    rows = flat(lab.collect())
    frozen, mixed = (lab.domain.teacher(TeacherWeights.parse(w), rows) for w in ("frozen", "trust_region(0.3)"))
    kept = DivergenceOf(frozen, DivergenceKind("reverse_kl"), Support("top_k", 3))
    found = lab.domain.score(rows, [LogProb(), EntropyOf(), TeacherLogProb(frozen), TeacherLogProb(mixed), kept])
    logp = lab.domain.log_probs([row.context for row in rows])
    at = torch.tensor([row.trajectory for row in rows])[:, None]
    torch.testing.assert_close(found[LogProb()], logp.gather(-1, at)[:, 0])
    torch.testing.assert_close(found[EntropyOf()], -(logp.exp() * logp).sum(-1))
    own = {name: t.clone() for name, t in lab.domain.players["student"].tensors.items()}
    lab.domain.model.module.load_state_dict(lab.domain.bank.copies["frozen"])
    first = lab.domain.log_probs([row.context for row in rows])
    lab.domain.model.module.load_state_dict(own)
    torch.testing.assert_close(found[TeacherLogProb(frozen)], first.gather(-1, at)[:, 0])
    blend = (0.7 * first + 0.3 * logp).log_softmax(-1)
    torch.testing.assert_close(found[TeacherLogProb(mixed)], blend.gather(-1, at)[:, 0])
    top = logp.topk(3).indices
    q, p = logp.exp().gather(-1, top), first.exp().gather(-1, top)
    q, p = (torch.cat([x, 1 - x.sum(-1, keepdim=True)], -1) for x in (q, p))
    torch.testing.assert_close(found[kept], (q * (q / p).log()).sum(-1))


def test_scoring_has_no_side_effects():
    lab = Lab("ce", model="cnn:width=4", dtype="float32", teacher_norm="batch")
    lab.advance(2)
    rows = flat(lab.collect())
    before = lab.weights()
    lab.domain.score(rows, [EntropyOf(), TeacherLogProb(lab.domain.teacher(TeacherWeights("live"), rows))])
    lab.domain.rollout([row.prompt for row in rows])
    lab.domain.evaluate("x")
    assert torch.equal(lab.weights(), before)
    assert not lab.domain.recorded


def test_a_teacher_reading_batch_statistics_keeps_the_copys_own():
    lab = Lab("ps-kd", teacher="sync(4)", model="cnn:width=4", dtype="float32", teacher_norm="batch")
    lab.advance(4)
    before = {name: t.clone() for name, t in lab.domain.bank.copies["sync-4.0"].items()}
    lab.advance(3)
    assert all(torch.equal(t, before[name]) for name, t in lab.domain.bank.copies["sync-4.0"].items())


def test_draws_are_keyed_and_follow_the_prediction():
    lab = Lab("ce")
    lab.advance(12)
    prompts = lab.next_prompts()[:3]
    lab.domain.begin_step(5)
    groups = lab.domain.rollout(prompts, 4000)
    logp = lab.domain.log_probs([lab.domain.context(prompt) for prompt in prompts])
    for i, group in enumerate(groups):
        share = torch.bincount(torch.tensor([row.trajectory for row in group]), minlength=10) / 4000
        torch.testing.assert_close(share.double(), logp[i].exp(), atol=0.03, rtol=0)
        assert all(row.behaviour_logp_T.item() == pytest.approx(float(logp[i, row.trajectory])) for row in group)
        assert all(row.reward == float(str(row.trajectory) == prompts[i].answer) for row in group)
    lab.domain.begin_step(5)
    again = lab.domain.rollout(prompts, 4000)
    assert [r.trajectory for r in flat(again)] == [r.trajectory for r in flat(groups)]
    assert [r.trajectory for r in flat(lab.domain.rollout(prompts, 4000))] != [r.trajectory for r in flat(groups)]


CHANGES = {
    ("ce", "label_smoothing"): {"label_smoothing": 0.3}, ("kd", "weight"): {"weight": 0.2},
    ("kd", "loss_temperature"): {"loss_temperature": 1.0}, ("run", "learning_rate"): {"learning_rate": 0.2},
    ("run", "momentum"): {"momentum": 0.0}, ("run", "optimiser"): {"optimiser": "adamw"},
    ("run", "weight_decay"): {"weight_decay": 0.1}, ("run", "milestones"): {"milestones": "1"},
    ("run", "decay"): {"milestones": "1", "decay": 0.5}, ("run", "seed"): {"seed": 1},
    ("run", "task noise"): {"task": "digits:train=40,noise=0.9"}, ("run", "task train"): {"task": "digits:train=80"},
    ("run", "task augment"): {"task": "digits:train=40,noise=0.3,augment=0"},
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
def test_every_option_changes_the_weights(case):
    slug = "ce" if case[0] == "run" else case[0]
    base = {"milestones": "1"} if case[1] == "decay" else {}
    plain, changed = Lab(slug, **base), Lab(slug, **CHANGES[case])
    plain.advance(8)
    changed.advance(8)
    assert not torch.allclose(plain.weights(), changed.weights())


def test_every_option_of_the_baselines_is_in_that_table():
    named = {(slug, option) for slug, option in CHANGES if slug != "run"} | {("kd", "teacher")}
    assert named == {("ce", name) for name in options_of(CE)} | {("kd", name) for name in options_of(KD)}


def test_milestones_cut_the_rate_at_their_epoch():
    lab = Lab("ce", milestones="1,3", decay=0.1)
    rates = []
    for _ in range(14):
        lab.advance(1)
        rates.append(lab.domain.players["student"].optimiser.param_groups[0]["lr"])
    assert rates == pytest.approx([0.05] * 4 + [0.005] * 8 + [0.0005] * 2)


# --- law 9 ----------------------------------------------------------------------------------------------------------
RUN = {**SMALL, "model": "cnn:width=4", "dtype": "float32", "save_every": 3, "milestones": "2", "eval_every": 5}
RESUMED = {
    "ce": ("ce", {"steps": 11}), "ps-kd": ("ps-kd", {"steps": 13}),
    "ps-kd copy": ("ps-kd", {"steps": 13, "teacher": "sync(4)"}),
    "kd": ("kd", {"steps": 5}), "adamw": ("ce", {"steps": 11, "optimiser": "adamw", "learning_rate": 1e-2}),
}  # fmt: skip


class Killed(Exception):
    """Stands for a kill between two checkpoints."""


def run(slug, given, folder, resume=False, kill_at=None):
    def report(event, facts):
        if event == "step" and facts["step"] == kill_at:
            raise Killed

    made = prepare(slug, {**RUN, **given}, out=folder, resume=resume, report=report)
    try:
        return made.go(resume)
    finally:
        made.close()


def lines(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if not key.startswith("seconds")} for record in found]


@pytest.mark.parametrize("kill_at", [2, 5, 8])
@pytest.mark.parametrize("case", RESUMED)
def test_law_9_a_resumed_run_is_the_run_bit_for_bit(case, kill_at, tmp_path):
    slug, given = RESUMED[case]
    whole = run(slug, given, tmp_path / "whole")
    with pytest.raises(Killed):
        run(slug, given, tmp_path / "cut", kill_at=kill_at)
    resumed = run(slug, given, tmp_path / "cut", resume=True)
    assert resumed["evaluations"] == whole["evaluations"]
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    one, other = (checkpoints(tmp_path / name / "checkpoints")[-1] for name in ("whole", "cut"))
    files = sorted(path.name for path in one.glob("*.safetensors"))
    assert files == sorted(path.name for path in other.glob("*.safetensors"))
    assert len(files) >= 1
    for name in files:
        a, b = load_file(one / name), load_file(other / name)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_entropy_is_a_term_of_vision_too():
    lab, signal = at_work("ce")
    _, gradient = lab.gradient(Signal(signal.rows, [Entropy(coefficient=0.1)]))
    assert float(gradient.norm()) > 1e-4
