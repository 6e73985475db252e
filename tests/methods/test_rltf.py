"""RLTF's checks (specification 1 to 6), on two-turn groups made by hand and on rollouts."""

from __future__ import annotations

import math

import pytest
import torch
from redistill.core.episode import Group, flat
from redistill.core.signal import LogProb
from redistill.core.task import Verdict
from redistill.errors import UserError
from redistill.methods.rltf import split
from redistill.objectives.policy_gradient import policy_gradient
from redistill.objectives.terms import Likelihood

RIGHTS = [[True, False, False, False], [False, False, False, False]]


def two_turns(b, rights=RIGHTS):
    return b.seconds(b.groups(rights))


def test_check_1_the_ratio_to_the_second_view_estimates_the_first(bench):
    """E_{y ~ p1}[(p0/p1) A] = E_{y ~ p0}[A], value and gradient, by enumeration with the term's own arithmetic."""
    z0 = torch.tensor([0.3, -1.0, 0.7, 0.1], dtype=torch.float64, requires_grad=True)
    logp0, logp1 = z0.log_softmax(-1), torch.tensor([0.9, 0.2, -0.5, 0.0], dtype=torch.float64).log_softmax(-1)
    reward = torch.tensor([0.0, 1.0, 1.0, 0.25], dtype=torch.float64)
    loss, _ = policy_gradient(logp0, logp1, reward, clip_low=None, clip_high=None)
    estimate = -(logp1.exp() * loss).sum()
    exact = (logp0.exp() * reward).sum()
    torch.testing.assert_close(estimate, exact)
    (one,), (other,) = (torch.autograd.grad(v, z0, retain_graph=True) for v in (estimate, exact))
    torch.testing.assert_close(one, other)
    clipped, _ = policy_gradient(logp0, logp1, reward, clip_low=0.2, clip_high=0.2)
    assert abs(float((-(logp1.exp() * clipped).sum() - exact).detach())) > 1e-3, "the clipped ablation is biased"


def test_check_2_ratio_1_and_the_mask(bench):
    b = bench("rltf", mask_below=-5.0)
    groups = two_turns(b)
    signal = b.signal(groups)
    term = next(t for t in signal.terms if t.name == "sd")
    values = b.domain.score(signal.rows, [LogProb()])
    logp_N = values[LogProb()].double().requires_grad_()
    at = torch.arange(len(logp_N))
    losses = term.losses({LogProb(): logp_N}, at, signal.lengths)
    (slope,) = torch.autograd.grad(losses.loss_n.sum(), logp_N)
    second = next(i for i, row in enumerate(signal.rows) if i >= len(flat(groups)))
    start = sum(signal.lengths[:second])
    inside = range(start, len(logp_N))
    advantages = torch.cat([b.method.advantages(group)[1] for group in groups])
    expected = advantages.repeat_interleave(torch.tensor(signal.lengths[second:]))
    torch.testing.assert_close(-slope[start:], expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(losses.observed["ratio"][start:], torch.ones(len(inside), dtype=torch.float64))
    masked = [i for i in inside if float(logp_N[i]) < -5]
    assert masked
    assert not term.mask_N[masked].any()
    assert term.mask_N[[i for i in inside if float(logp_N[i]) >= -5]].all()
    assert not term.mask_N[:start].any()
    assert term.coefficient == 0.1


def test_check_3_first_turn_baseline_keeps_the_signal(bench):
    for baseline, expected in (("first", 0.75), ("second", 0.0)):
        b = bench("rltf", baseline=baseline)
        (group,) = b.seconds(b.groups([[True, False, False, False]]), right=lambda n: True)
        assert b.method.advantages(group)[1].tolist() == pytest.approx([expected] * 3)


@pytest.mark.parametrize(("p", "share"), [(0.5, 0.992), (0.9, 0.570), (0.99, 0.077)])
def test_check_3_share_of_groups_that_a_second_turn_baseline_learns_from(p, share):
    assert 1 - p**8 - (1 - p) ** 8 == pytest.approx(share, abs=5e-4)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(20000, 8, generator=generator) < p
    informative = (drawn.any(1) & ~drawn.all(1)).double().mean()
    assert float(informative) == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 20000))


def test_check_4_no_weight_is_two_turn_grpo_and_one_turn_is_grpo(bench):
    plain = bench("rltf", variant="none")
    groups = two_turns(plain)
    torch.testing.assert_close(bench("rltf", sd_weight=0).gradient(groups), plain.gradient(groups))
    torch.testing.assert_close(bench("rltf", variant="fm", fm_weight=0).gradient(groups), plain.gradient(groups))
    grpo = bench("grpo", std="none", normaliser="token", clip_low=100, clip_high=100)
    single = plain.groups(RIGHTS)
    torch.testing.assert_close(plain.gradient(single), grpo.gradient(single), rtol=1e-4, atol=1e-7)


def test_check_4_horizon_1_collects_what_grpo_collects(bench):
    one, other = bench("rltf", horizon=1), bench("grpo", normaliser="token")
    a, b = flat(one.method.collect(one)), flat(other.method.collect(other))
    assert [row.trajectory.ids for row in a] == [row.trajectory.ids for row in b]


def test_check_4_advantages_of_0_and_1_are_rejection_sampling(bench, monkeypatch):
    sd, sft = bench("rltf", mask_below=-1e9), bench("rltf", variant="sft")
    groups = two_turns(sd)
    zero = torch.zeros(sum(len(group) for group in groups), dtype=torch.float64)
    for b in (sd, sft):
        kept = []
        for group in groups:
            seconds = split(group)[1]
            kept.append((torch.zeros(len(group)), torch.tensor([float(e.reward >= 1) for e in seconds])))
        answers = iter(kept)
        monkeypatch.setattr(type(b.method), "advantages", lambda self, group, answers=answers: next(answers))
        b.found = b.gradient(groups)
    assert float(sd.found.norm()) > 0
    assert len(zero)
    torch.testing.assert_close(sd.found, sft.found, rtol=1e-4, atol=1e-7)


def test_check_5_returns_and_the_format_penalty(bench):
    b = bench("rltf")
    (group,) = b.seconds(b.groups([[False, True]]), right=lambda n: True)
    all_turns, _ = b.method.advantages(group)
    assert all_turns.tolist() == pytest.approx([0.1 - 0.55, 1.0 - 0.55, 0.0]), "R_0 = (.1, 1), R_1 = (1,)"
    first = group.episodes[0]
    object.__setattr__(first, "verdict", Verdict(0.0, feedback="!n", format_ok=False))
    assert b.method.reward(first) == pytest.approx(-0.1)


def test_check_5_feedback_modelling_touches_critique_tokens_only(bench):
    b = bench("rltf", variant="fm")
    groups = two_turns(b)
    signal = b.signal(groups)
    term = next(t for t in signal.terms if t.name == "fm")
    assert isinstance(term, Likelihood)
    critiques = signal.rows[-7:]
    tokenizer = b.domain.lm.tokenizer
    for row, first in zip(critiques, [e.trajectory.after for e in flat(groups) if e.trajectory.after is not None]):
        assert tokenizer.decode(row.context).endswith(f"A{first.text}C<a>")
        assert tokenizer.decode(row.trajectory.ids) == first.verdict.feedback + "</s>"
    assert int(term.mask_N.sum()) == sum(row.steps for row in critiques)
    assert bool(term.mask_N[-int(term.mask_N.sum()) :].all())


def test_check_6_first_turn_successes_make_no_rows_but_count_in_the_baseline(bench):
    b = bench("rltf", variant="both")
    (group,) = two_turns(b, [[True, True, True, False]])
    signal = b.signal([group])
    assert len(signal.rows) == 4 + 1 + 1 + 1
    assert b.method.advantages(group)[1].tolist() == pytest.approx([1.0 - 0.75])


def test_the_second_prompt_holds_attempt_and_critique_and_the_third_row_neither(bench):
    b = bench("rltf")
    groups = two_turns(b)
    signal = b.signal(groups)
    second = next(e for e in flat(groups) if e.trajectory.after is not None)
    first = second.trajectory.after
    read = b.domain.lm.tokenizer.decode
    assert read(second.context).endswith(f"A{first.text}F{first.verdict.feedback}<a>")
    again = signal.rows[len(flat(groups))]
    assert read(again.context) == read(first.context)
    assert again.trajectory.ids == second.trajectory.ids
    assert again.trained_under == "plain"


@pytest.mark.parametrize("layout", ["fresh", "chat"])
def test_collected_second_turns_follow_failed_first_ones(bench, layout):
    b = bench("rltf", layout=layout)
    groups = b.method.collect(b)
    firsts, seconds = split(Group(groups[0].prompt, flat(groups)))
    assert len(firsts) == 12
    failed = [e for e in firsts if e.reward < 1]
    assert failed
    assert [e.trajectory.after for e in sorted(seconds, key=lambda e: firsts.index(e.trajectory.after))] == failed
    for e in seconds:
        assert e.steps == len(e.behaviour_logp_T)
        told = b.domain.lm.tokenizer.decode(e.context)
        assert e.trajectory.after.verdict.feedback in told
        assert e.verdict.reward == b.task.verify(e.prompt, e.text).reward
    found = torch.cat([b.domain.score([e], [LogProb()])[LogProb()] for e in seconds])
    recorded = torch.cat([e.behaviour_logp_T for e in seconds])
    torch.testing.assert_close(found, recorded, rtol=1e-3, atol=1e-4)
    assert torch.isfinite(b.gradient(groups)).all()


def test_correctness_only_says_no_more(bench):
    b = bench("rltf", critic="correctness", variant="fm")
    groups = b.method.collect(b)
    second = next(e for e in flat(groups) if e.trajectory.after is not None)
    assert b.domain.lm.tokenizer.decode(second.context).endswith("F?<a>")
    assert b.domain.lm.tokenizer.decode(b.signal(groups).rows[-1].trajectory.ids) == "?</s>"


def test_ramp_and_weights_enter(bench):
    b = bench("rltf", ramp_steps=10)
    groups = two_turns(b)
    for step, weight in ((0, 0.0), (5, 0.05), (20, 0.1)):
        b.step = step
        assert b.signal(groups).terms[1].coefficient == pytest.approx(weight)


def test_refusals(bench):
    with pytest.raises(UserError, match="normaliser=sequence is not a choice of rltf"):
        bench("rltf", normaliser="sequence")
    with pytest.raises(UserError, match="group_size=1"):
        bench("rltf", group_size=1)
    b = bench("rltf")
    silent = b.groups([[False, False]])[0].episodes[0]
    with pytest.raises(UserError, match="set critic=correctness"):
        b.method.told(silent.prompt, Verdict(0.0), "terse")
