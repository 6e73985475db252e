"""SDPO's checks at the level of the method (the objective-level ones are in tests/objectives)."""

from __future__ import annotations

import pytest
import torch
from redistill.core.specs import Normaliser
from redistill.errors import UserError
from redistill.objectives.terms import Divergence, PolicyGradient

ONE_SUCCESS = [[True, False, False, False]]


def test_check_5_group_of_one_success_masks_that_row_only(bench):
    b = bench("sdpo", feedback="never")
    groups = b.groups(ONE_SUCCESS)
    term = b.signal(groups).terms[0]
    lengths = [episode.steps for episode in groups[0]]
    covered = [bool(piece.all()) for piece in term.mask_N.split(lengths)]
    assert covered == [False, True, True, True]
    assert b.logged["active"] == pytest.approx(0.75)


def test_own_success_shows_a_success_its_own_answer(bench):
    b = bench("sdpo", feedback="never", own_success="true")
    assert all(context is not None for context in b.signal(b.groups(ONE_SUCCESS)).terms[0].teacher.contexts)


def test_check_5_masked_rows_give_zero_gradient(bench):
    b = bench("sdpo", feedback="never")
    assert float(b.gradient(b.groups([[False] * 4])).abs().max()) == 0.0
    assert b.logged["active"] == 0.0


def test_masked_rows_do_not_change_the_gradient_of_the_others(bench):
    b = bench("sdpo", feedback="never")
    groups = b.groups([[True, False, False, False], [False] * 4])
    alone = b.gradient(groups[:1])
    together = b.gradient(groups)
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-7)


def test_the_released_aggregation_counts_masked_rows_as_zeros(bench):
    paper = bench("sdpo", feedback="never", normaliser="sequence")
    released = bench("sdpo", feedback="never", normaliser="sequence(rows=all)")
    groups = paper.groups(ONE_SUCCESS)
    torch.testing.assert_close(released.gradient(groups), paper.gradient(groups) * 3 / 4, rtol=1e-4, atol=1e-7)


def test_teacher_reads_the_first_sibling_and_not_the_attempt(bench):
    b = bench("sdpo")
    groups = b.groups([[False, True, True, False]])
    contexts = b.signal(groups).terms[0].teacher.contexts
    read = [b.domain.lm.tokenizer.decode(context) for context in contexts]
    solution, attempt = groups[0].episodes[1].text, groups[0].episodes[0].text
    assert f"S{solution}" in read[0]
    assert attempt not in read[0]
    assert f"S{groups[0].episodes[2].text}" in read[1]  # a success learns from the other success


def test_feedback_only_without_a_solution_by_default(bench):
    b = bench("sdpo")
    with_solution = b.signal(b.groups(ONE_SUCCESS)).terms[0].teacher.contexts[1]
    without = b.signal(b.groups([[False] * 4])).terms[0].teacher.contexts[1]
    assert "F" not in b.domain.lm.tokenizer.decode(with_solution)
    assert "F" in b.domain.lm.tokenizer.decode(without)
    both = bench("sdpo", feedback="always")
    assert "F" in both.domain.lm.tokenizer.decode(both.signal(both.groups(ONE_SUCCESS)).terms[0].teacher.contexts[1])


def test_attempt_is_shown_when_asked_for(bench):
    b = bench("sdpo", attempt="true")
    groups = b.groups([[False] * 4])
    read = b.domain.lm.tokenizer.decode(b.signal(groups).terms[0].teacher.contexts[0])
    assert f"A{groups[0].episodes[0].text}" in read


def test_live_teacher_with_the_same_view_gives_zero(bench, monkeypatch):
    b = bench("sdpo", teacher="live", support="full")
    groups = b.groups(ONE_SUCCESS)
    signal = b.signal(groups)
    same = type(signal.terms[0].teacher)(signal.terms[0].teacher.weights, tuple(row.context for row in signal.rows))
    monkeypatch.setattr(b.domain, "teacher", lambda *a, **k: same)
    assert float(b.gradient(groups).abs().max()) < 1e-6


def test_hybrid_is_the_stated_mixture(bench):
    pure, hybrid = bench("sdpo"), bench("sdpo", grpo_weight=0.25)
    grpo = bench("grpo", std="none", clip_high=0.28, normaliser="token")
    groups = pure.groups([[True, False, False, False], [True, True, False, False]])
    mixed = 0.25 * grpo.gradient(groups) + 0.75 * pure.gradient(groups)
    torch.testing.assert_close(hybrid.gradient(groups), mixed, rtol=2e-3, atol=1e-6)
    kinds = [type(term) for term in hybrid.signal(groups).terms]
    assert kinds == [Divergence, PolicyGradient]


def test_wrong_context_shows_the_evidence_of_another_group(bench):
    b = bench("sdpo", wrong_context="true", feedback="never")
    groups = b.groups([[True, False, False, False], [False, True, False, False]])
    read = b.domain.lm.tokenizer.decode(b.signal(groups).terms[0].teacher.contexts[0])
    assert groups[1].episodes[1].text in read
    assert groups[0].episodes[0].text not in read


def test_route_failures_leaves_successes_out(bench):
    b = bench("sdpo", route="failures", feedback="never")
    contexts = b.signal(b.groups([[True, True, False, False]])).terms[0].teacher.contexts
    assert [context is None for context in contexts] == [True, True, False, False]


def test_ratio_cap_bounds_the_importance_weight_from_above_only(bench):
    b = bench("sdpo", feedback="never")
    groups = b.groups(ONE_SUCCESS)
    reference = b.gradient(groups)
    for episode in groups[0]:
        object.__setattr__(episode, "behaviour_logp_T", episode.behaviour_logp_T - 5.0)  # p / p_old = e^5
    torch.testing.assert_close(b.gradient(groups), 2.0 * reference, rtol=1e-3, atol=1e-7)
    for episode in groups[0]:
        object.__setattr__(episode, "behaviour_logp_T", episode.behaviour_logp_T + 10.0)  # p / p_old = e^-5
    torch.testing.assert_close(
        b.gradient(groups), torch.exp(torch.tensor(-5.0)).double() * reference, rtol=1e-3, atol=1e-7
    )


def test_test_time_works_on_one_question_and_stops_at_the_first_success(bench):
    b = bench("sdpo", test_time="true", question=2, group_size=4)
    groups = b.method.collect(b)
    assert b.method.question == 2
    assert [group.prompt.uid for group in groups] == [b.task.held_out(3)[2].uid]
    assert not b.method.done(b.groups([[False] * 4]), b)
    solved = b.groups(ONE_SUCCESS)
    assert b.method.done(solved, b)
    assert b.method.signal(solved, b) == []
    failed = b.groups([[False] * 4])
    assert all(context is not None for context in b.signal(failed).terms[0].teacher.contexts)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"support": "sampled"}, "reverse_kl"),
        ({"advantage_clip": 5}, "reverse_kl"),
        ({"solution": "none", "feedback": "never"}, "nothing"),
        ({"top_p": 0.9}, "top_p"),
        ({"temperature": 0}, "temperature"),
        ({"grpo_weight": 1.5}, "grpo_weight"),
        ({"teacher": "emma(0.05)"}, "ema"),
        ({"divergence": "jsd(0)"}, "forward_kl"),
    ],
)
def test_meaningless_settings_are_refused_in_one_sentence(bench, given, words):
    with pytest.raises(UserError, match=words):
        bench("sdpo", **given)


def test_default_normaliser_is_the_papers(bench):
    assert bench("sdpo").method.normaliser == Normaliser("token")
