"""SD-Zero's checks: what a trace trains, which phrase stands where, which positions the reviser is read at."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from redistill.core.episode import Group, flat
from redistill.core.signal import LogProb, Signal, Teacher, TeacherLogProb
from redistill.core.specs import DivergenceKind, TeacherWeights
from redistill.core.update import Tally, accumulate
from redistill.errors import UserError
from redistill.methods import sd_zero
from redistill.objectives.divergence import divergence
from redistill.objectives.terms import Divergence
from redistill.text.models import Head, LanguageModel
from redistill.text.splice import spliced

RIGHTS = [[True], [False], [True]]


def prepared(bench, monkeypatch, rights=RIGHTS, revised=((True, False), (False, True), (True, True)), **given):
    """A bench whose gathering is fed by hand: first answers and revisions right or wrong as asked."""
    b = bench("sd-zero", group_size=1, max_new_tokens=40, **given)
    groups = b.groups(rights, alike=True)
    answers = [
        Group(group.prompt, b.groups([list(pattern)] * (at + 1), alike=True)[at].episodes)
        for at, (group, pattern) in enumerate(zip(groups, revised))
    ]
    calls = []

    def fake(domain, prompts, contexts, view, *, size=1, temperature=None):
        calls.append((view, list(contexts), size, temperature))
        return groups if view == "plain" else answers

    monkeypatch.setattr(sd_zero, "sampled_under", fake)
    gather, revise = (stage.method for stage in b.method.stages()[:2])
    gather.collect(b)
    return b, groups, revise, calls


def loss_of(b, signal):
    for p in b.domain.players["student"].parameters.values():
        p.grad = None
    return accumulate(signal, b.domain, Tally())


# --- phase 1 ---
def test_check_6_only_right_revisions_are_kept_and_the_kinds_are_balanced(bench, monkeypatch):
    b, _, revise, calls = prepared(bench, monkeypatch)
    kept = b.method.store.records
    assert [record["right"] for record in kept] == [True, False, True, True]
    revise.enter(b)
    assert [record["right"] for record in b.method.store.records] == [True, False]
    assert [call[0] for call in calls] == ["plain", "revision"]
    assert [call[2:] for call in calls] == [(1, 0.7), (3, 0.7)]
    assert (b.logged["right_first"], b.logged["right_revised"]) == (pytest.approx(2 / 3), pytest.approx(4 / 6))
    loose, _, unbalanced, _ = prepared(bench, monkeypatch, filtered="false", balance="false")
    unbalanced.enter(loose)
    assert len(loose.method.store) == 6


def test_how_phase_1_samples_and_how_many_traces_a_batch_holds(bench, monkeypatch):
    b, _, revise, calls = prepared(
        bench, monkeypatch, revisions=2, gather_temperature=1.3, srt_batch=3, balance="false"
    )
    assert [call[2:] for call in calls] == [(1, 1.3), (2, 1.3)]
    assert len(revise.collect(b)) == 3
    _, _, small, _ = prepared(bench, monkeypatch, srt_batch=1, balance="false")
    assert len(small.collect(b)) == 1


def test_check_2_label_masks_and_where_ends_of_sequence_stand(bench, monkeypatch):
    b, groups, revise, _ = prepared(bench, monkeypatch, srt_batch=4, balance="false")
    eos = b.domain.lm.eos_ids[0]
    for group in revise.collect(b):
        revision, whole = group.episodes
        kept = b.method.store.records[revision.key[0]]
        attempt, phrase, ids = kept["attempt_ids"], kept["phrase_ids"], kept["revision_ids"]
        assert revision.steps == len(ids)
        assert whole.steps == len(attempt) + len(phrase) + len(ids)
        assert revision.context == (*whole.context, *attempt, *phrase)
        assert whole.trajectory.ids == (*attempt, *phrase, *ids)
        assert [i for i, token in enumerate(whole.trajectory.ids) if token == eos] == [whole.steps - 1]
        text = b.domain.lm.tokenizer.decode(phrase)
        assert text == (b.domain.wording.rephrase if kept["right"] else b.domain.wording.redo)
    assert groups[0].episodes[0].trajectory.ids[-1] == eos


def test_check_1_the_loss_counts_the_revision_twice(bench, monkeypatch):
    b, _, revise, _ = prepared(bench, monkeypatch)
    signal = revise.signal(revise.collect(b), b)
    logp_N = b.domain.score(signal.rows, [LogProb()])[LogProb()].split(signal.lengths)
    expected = 0.0
    for revision, whole, logp_r, logp_w in zip(signal.rows[::2], signal.rows[1::2], logp_N[::2], logp_N[1::2]):
        before = whole.steps - revision.steps
        torch.testing.assert_close(logp_w[before:], logp_r, rtol=1e-4, atol=1e-5)
        expected -= float(logp_w[:before].sum() + 2 * logp_w[before:].sum())
    assert loss_of(b, signal) * sum(signal.lengths) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("parts", "views"), [("revision", {"revision"}), ("generation", {"plain"}), ("both", {"revision", "plain"})]
)
def test_parts_of_the_loss_are_an_ablation(bench, monkeypatch, parts, views):
    b, _, revise, _ = prepared(bench, monkeypatch, parts=parts)
    assert {row.trained_under for row in flat(revise.collect(b))} == views


def test_phase_1_without_a_right_revision_says_so(bench, monkeypatch):
    b, _, revise, _ = prepared(bench, monkeypatch, revised=((False, False),) * 3)
    with pytest.raises(UserError, match="no revision was right"):
        revise.collect(b)


# --- phase 2 ---
def taught(bench, rights=((True,), (False,)), **given):
    b = bench("sd-zero", group_size=1, max_new_tokens=40, **given)
    groups = b.groups([list(right) for right in rights], alike=True)
    return b, groups, b.method.signal(groups, b)


def test_check_5_flipping_the_verdict_swaps_the_phrase_and_nothing_else(bench):
    b, groups, signal = taught(bench)
    _, _, flipped = taught(bench, phrase="flipped")
    _, _, redo = taught(bench, phrase="redo")
    read, other, always = (
        [b.domain.lm.tokenizer.decode(context) for context in s.terms[0].teacher.contexts]
        for s in (signal, flipped, redo)
    )
    for i, (row, right) in enumerate(zip(signal.rows, (True, False))):
        question = b.domain.lm.tokenizer.decode(row.context)
        assert read[i] == question + row.text + (";" if right else "!")
        assert other[i] == question + row.text + ("!" if right else ";")
        assert always[i] == question + row.text + "!"
    assert signal.lengths == flipped.lengths == [row.steps for row in flat(groups)]
    assert bool(signal.terms[0].mask_N.all())


def test_check_5_the_reviser_stays_and_a_sync_makes_it_the_student(bench):
    b, _groups, signal = taught(bench)
    teacher = signal.terms[0].teacher
    asked = [TeacherLogProb(teacher)]
    before = b.domain.score(signal.rows, asked)[asked[0]]
    player = b.domain.players["student"]
    player.learning_rate = 1e-2
    loss_of(b, signal)
    player.step()
    b.domain.bank.after_step(1)
    assert torch.equal(b.domain.score(signal.rows, asked)[asked[0]], before)
    same = Teacher(TeacherWeights("frozen"), tuple(row.context for row in signal.rows))
    assert loss_of(b, Signal(signal.rows, [Divergence(teacher=same)])) > 1e-4
    b.domain.bank.refresh()
    assert abs(loss_of(b, Signal(signal.rows, [Divergence(teacher=same)]))) < 1e-6
    assert bench("sd-zero", teacher="sync(3)").method.teachers() == (TeacherWeights("sync", 3),)


def test_check_3_gradient_in_logits():
    torch.manual_seed(0)
    z, q = (
        torch.randn(4, 6, dtype=torch.float64, requires_grad=True),
        torch.randn(4, 6, dtype=torch.float64).log_softmax(-1),
    )
    log_p = z.log_softmax(-1)
    kl = divergence(DivergenceKind("reverse_kl"), student=log_p, teacher=q)
    (gradient,) = torch.autograd.grad(kl.sum(), z)
    p = log_p.detach().exp()
    torch.testing.assert_close(gradient, p * (log_p.detach() - q - kl.detach()[:, None]))


def test_check_3_without_the_answer_and_phrase_before_it_the_loss_is_0(bench):
    b, _groups, signal = taught(bench)
    bare = replace(
        signal.terms[0], teacher=Teacher(TeacherWeights("frozen"), tuple(row.context for row in signal.rows))
    )
    assert abs(loss_of(b, Signal(signal.rows, [bare]))) < 1e-6
    assert loss_of(b, signal) > 1e-2


@dataclass
class Lookup(LanguageModel):
    """A model that says again, surely, what stood `back` positions before."""

    back: int = 0

    def hidden(self, input_ids, **_):
        states = torch.nn.functional.one_hot(input_ids.roll(self.back - 1, dims=1), len(self.tokenizer)).float()
        return SimpleNamespace(last_hidden_state=states)

    def head(self):
        return Head(40.0 * torch.eye(len(self.tokenizer)))


def test_check_4_the_reviser_is_read_at_the_second_copy(bench):
    b, _groups, signal = taught(bench, rights=((False,),))
    (row,) = signal.rows
    back = len(spliced(b.domain, row, "!")) - len(row.context)  # from a token of the answer to its second copy
    lm = b.domain.lm
    b.domain.lm = Lookup(lm.name, lm.module, lm.tokenizer, lm.eos_ids, lm.context, lm.dtype, back=back)
    teacher = signal.terms[0].teacher
    nll = -b.domain.score(signal.rows, [TeacherLogProb(teacher)])[TeacherLogProb(teacher)]
    assert float(nll[:-1].max()) < 1e-6
    assert float(nll[-1]) > 1.0  # the answer's own end is not before the phrase: the second copy's cannot be looked up


def test_wrong_context_and_phases(bench):
    b, groups, signal = taught(bench, wrong_context="true")
    read = b.domain.lm.tokenizer.decode(signal.terms[0].teacher.contexts[0])
    assert groups[1].episodes[0].text in read
    names = {p: [s.name for s in bench("sd-zero", phases=p).method.stages()] for p in ("both", "srt", "distil")}
    assert names == {"both": ["gather", "srt", "sd-zero"], "srt": ["gather", "srt"], "distil": ["sd-zero"]}
    steps = {s.name: s.steps for s in bench("sd-zero", gather_steps=5, srt_steps=6).method.stages()}
    assert steps == {"gather": 5, "srt": 6, "sd-zero": None}
    assert bench("sd-zero", phases="srt").method.teachers() == ()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"phases": "srt", "wrong_context": "true"}, "wrong_context"),
        ({"phases": "two"}, "phases"),
        ({"revisions": 0}, "revisions"),
    ],
)
def test_meaningless_settings_are_refused_in_one_sentence(bench, given, words):
    with pytest.raises(UserError, match=words):
        bench("sd-zero", **given)


def test_a_run_goes_through_all_phases(tmp_path):
    from redistill.build import prepare
    from redistill.reporting.terminal import reporter

    given = {
        "model": "pocket", "task": "sums", "steps": 2, "prompts_per_step": 12, "gather_steps": 2, "srt_steps": 2, "filtered": "false",
        "balance": "false", "max_new_tokens": 30, "eval_prompts": 8, "save_model": "false", "teacher": "sync(1)",
    }  # fmt: skip
    run = prepare("sd-zero", given, out=tmp_path / "run", report=reporter(quiet=True, silent=True))
    result = run.go(False)
    run.close()
    assert result["steps"] == 6
    assert set(result["evaluations"]) == {"before", "after gather", "after srt", "after"}
    assert len(run.method.store) > 12
    assert {"views.txt", "views-srt.txt"} <= {path.name for path in (tmp_path / "run").iterdir()}
