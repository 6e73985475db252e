"""CaOPD's checks: what is overwritten with what, where the loss is, and that nothing else changes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from redistill.core.episode import flat
from redistill.core.signal import Signal
from redistill.core.update import Tally, accumulate
from redistill.errors import UserError
from redistill.methods import caopd
from redistill.tasks.confidence import with_confidence
from redistill.tasks.loading import load_task
from redistill.text.evaluate import _confidence
from redistill.text.views import Evidence

HALF = [[True, True, False, False], [True, False, False, False], [False] * 4]
ROOM = {"max_new_tokens": 24}


def loss_of(b, signal):
    for p in b.domain.players["student"].parameters.values():
        p.grad = None
    return accumulate(signal, b.domain, Tally())


def test_check_1_mu_is_the_share_of_right_rollouts_and_overwrites_every_answer(bench):
    b = bench("caopd", **ROOM)
    groups = b.groups(HALF)
    assert b.method.success(groups, b) == [0.5, 0.25, 0.0]
    signal = b.signal(groups)
    for row, before in zip(signal.rows, flat(groups)):
        mu = {0: "0.50", 1: "0.25", 2: "0.00"}[[g.prompt.uid for g in groups].index(row.prompt.uid)]
        assert row.text == f"{before.text.partition('C')[0]}C{mu}"
        assert row.behaviour_logp_T is None
    assert b.logged["success"] == pytest.approx(0.25)
    assert b.logged["stated"] == 1.0


def test_check_1_k_8_with_3_right_says_0_38(bench):
    b = bench("caopd", group_size=8, **ROOM)
    rows = b.signal(b.groups([[True] * 3 + [False] * 5])).rows
    assert {row.text.partition("C")[2] for row in rows} == {"0.38"}


def test_an_answer_without_a_confidence_gets_one(bench):
    b = bench("caopd", **ROOM)
    groups = b.groups(HALF[:1])
    bare = b.episode(groups[0].prompt, "12+3=15")
    groups[0].episodes[2] = bare
    assert b.signal(groups).rows[2].text == "12+3=15C0.50"


def test_the_teacher_reads_the_demonstration_with_mu_and_the_note(bench):
    for note, tail in (("true", "H0.50"), ("false", "")):
        b = bench("caopd", note=note, **ROOM)
        groups = b.groups(HALF[:1])
        read = b.domain.lm.tokenizer.decode(b.signal(groups).terms[0].teacher.contexts[0])
        demonstration = with_confidence(groups[0].prompt.solution, 0.5, "terse")
        assert read.endswith(f"S{demonstration}{tail}<a>")
    plain = bench("caopd", revise="false", **ROOM)
    groups = plain.groups(HALF[:1])
    signal = plain.signal(groups)
    assert plain.domain.lm.tokenizer.decode(signal.terms[0].teacher.contexts[0]).endswith(
        f"S{groups[0].prompt.solution}<a>"
    )
    assert [row.text for row in signal.rows] == [row.text for row in flat(groups)]


def test_check_2_nothing_to_overwrite_is_plain_distillation(bench):
    revised, plain = bench("caopd", note="false", **ROOM), bench("caopd", revise="false", **ROOM)
    groups = plain.groups([[True] * 4])
    object.__setattr__(groups[0].prompt, "solution", with_confidence(groups[0].prompt.solution, 1.0, "terse"))
    assert all(row.text.endswith("C1.00") for row in flat(groups))
    torch.testing.assert_close(revised.gradient(groups), plain.gradient(groups), rtol=1e-5, atol=1e-8)


def test_check_3_only_confidence_positions_differ_when_the_answer_is_revised(bench):
    b = bench("caopd", normaliser="constant(1)", **ROOM)
    groups = b.groups(HALF[:1])
    revised = b.signal(groups)
    teacher = revised.terms[0].teacher
    unrevised = Signal(flat(groups), [caopd.Divergence(teacher=teacher, normaliser=b.method.normaliser)])
    losses = []
    for signal, term in ((revised, revised.terms[0]), (unrevised, unrevised.terms[0])):
        quantity = term.quantities()[0]
        losses.append(b.domain.score(signal.rows, [quantity])[quantity].split(signal.lengths))
    for one, other, row in zip(*losses, revised.rows):
        reasoning = len(row.text.partition("C")[0]) + 1  # the mark itself is predicted from the reasoning alone
        torch.testing.assert_close(one[:reasoning], other[:reasoning], rtol=1e-4, atol=1e-6)
        assert float((one[reasoning + 1 :] - other[reasoning + 1 :]).abs().max()) > 1e-4


def test_check_5_the_gradient_reaches_the_student_alone(bench):
    b = bench("caopd", **ROOM)
    copies = {key: {n: t.clone() for n, t in copy.items()} for key, copy in b.domain.bank.copies.items()}
    assert float(b.gradient(b.groups(HALF)).norm()) > 0
    for key, copy in b.domain.bank.copies.items():
        assert all(torch.equal(t, copies[key][n]) and t.grad is None for n, t in copy.items())


def test_sibling_mode_shows_a_right_rollout_and_skips_prompts_without_one(bench):
    b = bench("caopd", shown="sibling", note="false", **ROOM)
    groups = b.groups(HALF)
    contexts = b.signal(groups).terms[0].teacher.contexts
    assert [context is None for context in contexts] == [False] * 4 + [True, False, False, False] + [True] * 4
    assert b.domain.lm.tokenizer.decode(contexts[2]).endswith(
        f"S{with_confidence(groups[0].episodes[0].text, 0.5, 'terse')}<a>"
    )


def test_agreement_compares_with_an_answer_of_the_teacher(bench, monkeypatch):
    b = bench("caopd", source="agreement", **ROOM)
    groups = b.groups(HALF)
    asked = []

    def fake(domain, prompts, contexts, view, *, weights):
        asked.append((view, str(weights), len(contexts)))
        return [type(group)(group.prompt, [group.episodes[-1]]) for group in groups]

    monkeypatch.setattr(caopd, "sampled_under", fake)
    assert b.method.success(groups, b) == [0.25, 0.25, 0.25]  # each last answer is wrong, and like no other
    assert asked == [("demonstrated", "ema(0.01)", 3)]


def test_the_teachers_own_weights_answer(bench):
    from redistill.core.specs import TeacherWeights
    from redistill.text.splice import sampled_under

    b = bench("caopd", teacher="frozen", **ROOM)
    prompts = b.next_prompts()
    contexts = [b.domain.render("with_solution", p, Evidence(solution=p.solution.partition("C")[0])) for p in prompts]
    frozen = TeacherWeights("frozen")
    first = [g.episodes[0].text for g in sampled_under(b.domain, prompts, contexts, "x", temperature=0, weights=frozen)]
    for p in b.domain.players["student"].parameters.values():
        p.data.mul_(0.0)
    again = [g.episodes[0].text for g in sampled_under(b.domain, prompts, contexts, "x", temperature=0, weights=frozen)]
    live = [g.episodes[0].text for g in sampled_under(b.domain, prompts, contexts, "x", temperature=0)]
    assert again == first
    assert live != first


def test_skip_first_masks_the_start_of_every_answer(bench):
    b = bench("caopd", skip_first=3, **ROOM)
    signal = b.signal(b.groups(HALF[:1]))
    for piece in signal.terms[0].mask_N.split(signal.lengths):
        assert piece.tolist() == [False] * 3 + [True] * (len(piece) - 3)


def test_wrong_context_shows_another_prompts_demonstration(bench):
    b = bench("caopd", wrong_context="true", **ROOM)
    groups = b.groups(HALF)
    read = b.domain.lm.tokenizer.decode(b.signal(groups).terms[0].teacher.contexts[0])
    assert groups[1].prompt.solution.partition("C")[0] in read


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"task": "sums"}, "confident"),
        ({"source": "agreement", "revise": "false"}, "agreement"),
        ({"shown": "demo"}, "demonstration"),
    ],
)
def test_meaningless_settings_are_refused_in_one_sentence(bench, given, words):
    with pytest.raises(UserError, match=words):
        bench("caopd", **given)


def test_a_run_reports_calibration(tmp_path):
    from redistill.build import prepare
    from redistill.reporting.terminal import reporter

    given = {
        "model": "pocket", "steps": 1, "prompts_per_step": 2, "group_size": 2, "max_new_tokens": 24, "eval_prompts": 8,
        "save_model": "false", "source": "agreement", "eval_samples": 2,
    }  # fmt: skip
    run = prepare("caopd", given, out=tmp_path / "run", report=reporter(quiet=True, silent=True))
    result = run.go(False)
    run.close()
    assert result["skipped_updates"] == 0
    after = result["evaluations"]["after"]
    assert after["states_none"] >= 0.0
    # 16 samples stand behind the one, 8 greedy answers behind the other
    assert (after["sampled_states_none"] * 16) % 1 == (after["states_none"] * 8) % 1 == 0.0
    assert 0.0 <= after["sampled_calibration"] <= 1.0 - after["sampled_states_none"]


def test_an_answer_that_states_no_confidence_is_not_calibrated():
    task = load_task("confident+sums")
    prompts = list(task.held_out(2))
    sure = [with_confidence(p.solution.partition("C")[0], 1.0, "terse") for p in prompts]
    wrong = with_confidence("1=1", 1.0, "terse")
    silent = prompts[1].solution.partition("C")[0]

    def found(*said):
        return _confidence(task, prompts, [[SimpleNamespace(text=text)] for text in said])

    assert found(*sure)["calibration"] == 1.0
    assert found(sure[0], silent)["calibration"] == found(sure[0], silent)["states_none"] == 0.5
    assert found(sure[0], wrong)["calibration"] == 0.5
    assert found(silent, silent) == {"states_none": 1.0, "calibration": 0.0}
