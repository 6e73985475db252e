"""SRPO's checks at the level of the method (weights: tests/objectives/test_gates.py)."""

from __future__ import annotations

import math

import pytest
import torch
from redistill.core.episode import flat
from redistill.core.signal import EntropyOf
from redistill.errors import UserError
from redistill.methods.srpo import SRPO

TWO_OF_FOUR = [[True, True, False, False]]
ONE_OF_FOUR = [[True, False, False, False]]


def routed(signal) -> list[bool]:
    reinforce, distil = signal.terms
    assert torch.equal(reinforce.mask_N, ~distil.mask_N)  # z^S + z^G = 1 for every step
    return [bool(piece.all()) for piece in distil.mask_N.split(signal.lengths)]


@pytest.mark.parametrize("rights", [TWO_OF_FOUR, ONE_OF_FOUR, [[True] * 4], [[False] * 4]])
def test_check_3_failures_with_a_correct_sibling_are_distilled_the_others_reinforced(bench, rights):
    b = bench("srpo")
    expected = [not right and any(rights[0]) for right in rights[0]]
    assert routed(b.signal(b.groups(rights))) == expected
    assert b.logged["routed"] == pytest.approx(sum(expected) / 4)


def test_check_3_a_group_of_eight(bench):
    b = bench("srpo", group_size=8)
    assert sum(routed(b.signal(b.groups([[True, True] + [False] * 6])))) == 6
    assert sum(routed(b.signal(b.groups([[True] + [False] * 7])))) == 7


def test_check_2_without_failures_that_have_a_sibling_it_is_grpo(bench):
    b, grpo = bench("srpo"), bench("grpo", std="none", clip_high=0.28, normaliser="token")
    groups = b.groups([[True] * 4, [False] * 4])
    groups[0].episodes[0].__dict__["verdict"] = None  # unequal rewards without a failure: 0.75 is still correct
    groups[0].episodes[0].__dict__["verdict"] = type(groups[0].episodes[1].verdict)(0.75)
    torch.testing.assert_close(b.gradient(groups), grpo.gradient(groups), rtol=1e-4, atol=1e-8)
    assert float(b.gradient(groups).abs().max()) > 0


def test_check_2_all_wrong_is_exactly_zero(bench):
    b = bench("srpo")
    assert float(b.gradient(b.groups([[False] * 4])).abs().max()) == 0.0


def test_check_2_all_wrong_tokens_still_count_in_the_denominator(bench):
    b = bench("srpo")
    groups = b.groups([TWO_OF_FOUR[0], [False] * 4])
    alone, together = b.gradient(groups[:1]), b.gradient(groups)
    steps = [sum(episode.steps for episode in group) for group in groups]
    torch.testing.assert_close(together, alone * steps[0] / sum(steps), rtol=1e-4, atol=1e-8)


def test_check_1_beta_0_weighs_all_alike_and_the_mean_weight_is_1(bench):
    flat_one, weighted = bench("srpo", beta=0), bench("srpo", beta=1)
    groups = flat_one.groups(TWO_OF_FOUR)
    term = flat_one.signal(groups).terms[1]
    assert torch.equal(term.weight_N[term.mask_N], torch.ones(int(term.mask_N.sum())))
    weight_N = weighted.signal(groups).terms[1].weight_N
    assert float(weight_N[term.mask_N].mean()) == pytest.approx(1.0, abs=1e-5)
    assert float(weight_N.max() / weight_N[term.mask_N].min()) > 1.1


def test_check_1_the_weight_is_exp_of_minus_the_teachers_entropy(bench):
    b = bench("srpo", teacher="live", beta=2)
    groups = b.groups(TWO_OF_FOUR)
    signal = b.signal(groups)
    term = signal.terms[1]
    rows = [row.trained_as(c, "hindsight") for row, c in zip(signal.rows, term.teacher.contexts) if c is not None]
    entropy_n = b.domain.score(rows, [EntropyOf()])[EntropyOf()]  # the student that reads the same is the live teacher
    raw = torch.exp(-2 * entropy_n)
    torch.testing.assert_close(term.weight_N[term.mask_N], raw / raw.mean(), rtol=1e-4, atol=1e-6)


def test_check_5_distilling_everything_at_beta_0_is_sdpo(bench):
    b = bench("srpo", route="all", beta=0, threshold=1.0)
    sdpo = bench("sdpo", feedback="never")
    groups = b.groups([[True, True, False, False], [False, True, True, False]])  # every row has a correct sibling
    torch.testing.assert_close(b.gradient(groups), sdpo.gradient(groups), rtol=1e-4, atol=1e-8)


def test_check_4_weights_and_count_are_the_whole_steps(bench):
    """Two groups in one step are not the mean of two steps: the weights' mean and the count are taken over both."""
    b = bench("srpo")
    groups = b.groups([TWO_OF_FOUR[0], ONE_OF_FOUR[0]])
    whole = b.gradient(groups)
    for tokens in (1, 10**6):
        object.__setattr__(b.domain.config, "micro_batch_tokens", tokens)
        torch.testing.assert_close(b.gradient(groups), whole, rtol=1e-3, atol=1e-7)
    parts = [b.gradient([group]) for group in groups]
    sizes = torch.tensor([sum(e.steps for e in group) for group in groups], dtype=torch.float64)
    split = sum(part * size for part, size in zip(parts, sizes)) / sizes.sum()
    assert float((split - whole).norm()) > 1e-3 * float(whole.norm())


def test_successes_can_be_distilled_instead(bench):
    b = bench("srpo", route="successes")
    assert routed(b.signal(b.groups(TWO_OF_FOUR))) == [True, True, False, False]
    assert routed(b.signal(b.groups(ONE_OF_FOUR))) == [False] * 4  # its own answer is not a sibling's


def test_advantage_mix_is_the_stated_mixture_at_the_sampled_token(bench):
    b = bench("srpo", mix=0.9)
    groups = b.groups(TWO_OF_FOUR)
    (term,) = b.signal(groups).terms
    grpo = bench("srpo").signal(groups).terms[0]
    sampled = bench("srpo", mix=0.0).signal(groups).terms[0]
    torch.testing.assert_close(term.advantage_N, 0.9 * grpo.advantage_N + 0.1 * sampled.advantage_N)
    assert bool(term.mask_N.all())
    assert float(bench("srpo", mix=1.0).signal(groups).terms[0].advantage_N.sub(grpo.advantage_N).abs().max()) == 0.0


def test_wrong_context_shows_another_groups_sibling(bench):
    b = bench("srpo", wrong_context="true")
    groups = b.groups([TWO_OF_FOUR[0], TWO_OF_FOUR[0]])
    context = b.signal(groups).terms[1].teacher.contexts[2]
    read = b.domain.lm.tokenizer.decode(context)
    assert groups[1].episodes[0].text in read
    assert groups[0].episodes[0].text not in read


def test_the_teacher_entropy_is_logged(bench):
    b = bench("srpo")
    b.signal(b.groups(TWO_OF_FOUR))
    assert 0.0 < b.logged["teacher_entropy"] < math.log(101)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"beta": -1}, "beta"),
        ({"top_p": 0.9}, "top_p"),
        ({"group_size": 1}, "group_size"),
        ({"route": "failure"}, "failures"),
    ],
)
def test_meaningless_settings_are_refused_in_one_sentence(bench, given, words):
    with pytest.raises(UserError, match=words):
        bench("srpo", **given)


def test_defaults_are_the_papers(bench):
    method = SRPO()
    assert (method.beta, method.threshold, str(method.teacher), str(method.support)) == (
        1.0, 0.5, "ema(0.05)", "top_k(100, of=student, tail=true)",
    )  # fmt: skip
    assert len(flat(bench("srpo").groups(ONE_OF_FOUR))) == 4
