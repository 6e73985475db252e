"""The survey's checks 4 and 5 at the level of the method, and what `opd` refuses."""

from __future__ import annotations

import pytest
import torch
from redistill.core.update import update
from redistill.errors import UserError

OPD = {"teacher": "frozen", "teacher_view": "with_solution", "group_size": 2}
KINDS = ["forward_kl", "reverse_kl", "jsd(0.3)", "tvd", "skew_forward_kl(0.1)", "skew_reverse_kl(0.1)"]
SUPPORTS = ["full", "top_k(3)", "top_k(3, of=teacher)", "top_k(3, of=teacher, tail=false)", "sampled"]
ROWS = [[True, False], [False, False]]


@pytest.mark.parametrize(("share", "samples"), [(0.0, 0), (1.0, 3)])
def test_check_4_on_policy_share_decides_who_writes(bench, monkeypatch, share, samples):
    b = bench("opd", **OPD, on_policy=share)
    asked: list[int] = []
    original = b.domain.rollout
    monkeypatch.setattr(b.domain, "rollout", lambda prompts: asked.append(len(prompts)) or original(prompts))
    groups = b.method.collect(b)
    assert sum(asked) == samples
    written = [episode for group in groups for episode in group if episode.sampled_under == "written"]
    assert len(written) == 3 - samples
    assert all(episode.behaviour_logp_T is None and episode.text == episode.prompt.solution for episode in written)


PAIRS = [(kind, support) for kind in KINDS for support in SUPPORTS if support != "sampled" or kind == "reverse_kl"]


@pytest.mark.parametrize(("kind", "support"), PAIRS)
def test_check_4_teacher_equal_to_student_gives_zero(bench, kind, support):
    b = bench("opd", teacher="frozen", group_size=2, divergence=kind, support=support)
    assert float(b.gradient(b.groups(ROWS)).abs().max()) < 2e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_updates_bring_the_student_nearer_to_its_teacher(bench, kind):
    b = bench("opd", **OPD, divergence=kind, learning_rate=1e-3)
    groups = b.groups(ROWS)
    losses = [update(b.signal(groups), b.domain)["loss"] for _ in range(8)]
    assert losses[-1] < 0.5 * losses[0]


def test_k1_has_a_gradient_that_says_nothing_of_the_teacher(bench):
    """k1 differentiated is the gradient of log p alone: with two teachers it is the same (trap of the index)."""
    one = bench("opd", **OPD, support="sampled", estimator="k1")
    other = bench("opd", **{**OPD, "teacher_view": "plain"}, support="sampled", estimator="k1")
    groups = one.groups(ROWS)
    torch.testing.assert_close(one.gradient(groups), other.gradient(groups), rtol=1e-5, atol=1e-8)


def test_another_model_as_teacher(bench):
    b = bench("opd", teacher="checkpoint(pocket)", group_size=2)
    assert b.domain.bank.others["pocket"].module is not b.domain.lm.module
    assert float(b.gradient(b.groups(ROWS)).abs().max()) < 2e-6


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "needs a teacher"),
        ({"teacher": "live"}, "student itself"),
        ({"teacher": "frozen", "support": "sampled", "divergence": "tvd"}, "reverse_kl"),
        ({"teacher": "frozen", "support": "sampled", "temperature_of_loss": 2}, "temperature_of_loss"),
        ({"teacher": "frozen", "support": "sampled", "top_p": 0.9}, "top_p"),
        ({"teacher": "frozen", "divergence": "jsd(1)"}, "reverse_kl"),
    ],
)
def test_what_cannot_mean_anything_is_refused(bench, given, words):
    with pytest.raises(UserError, match=words):
        bench("opd", **given)
