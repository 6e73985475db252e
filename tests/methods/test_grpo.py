"""GRPO and its switches, against the equations written out."""

from __future__ import annotations

import pytest
import torch
from redistill.core.signal import LogProb
from redistill.errors import UserError

MIXED = [[True, False, False, True], [False, False, False, False]]


def set_behaviour(groups, offset):
    for episode in (e for group in groups for e in group):
        object.__setattr__(episode, "behaviour_logp_T", episode.behaviour_logp_T + offset)


def test_on_policy_gradient_is_advantage_times_score(bench):
    """With ratio 1 the gradient is -mean_i A_i mean_t grad log p: written out with an independent forward pass."""
    b = bench("grpo", std="population", std_epsilon=0.0)
    groups = b.groups(MIXED)
    ours = b.gradient(groups)
    lm, params = b.domain.lm, b.domain.players["student"].parameters
    for p in params.values():
        p.grad = None
    rows = [episode for group in groups for episode in group]
    for group in groups:
        rewards = torch.tensor([e.reward for e in group])
        spread = rewards.std(unbiased=False)
        for episode, reward in zip(group, rewards, strict=True):
            if spread == 0:
                continue
            ids = torch.tensor([[*episode.context, *episode.trajectory.ids]])
            logp = lm.module(input_ids=ids).logits[0, len(episode.context) - 1 : -1].log_softmax(-1)
            taken = logp.gather(-1, torch.tensor(episode.trajectory.ids)[:, None])[:, 0]
            (-(reward - rewards.mean()) / spread * taken.mean() / len(rows)).backward()
    theirs = torch.cat([p.grad.flatten() for p in params.values()]).double()
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_dead_groups_have_no_gradient_and_dapo_leaves_them_out_of_the_count(bench):
    b, dapo = bench("grpo", normaliser="token"), bench("grpo", normaliser="token", drop_dead_groups="true")
    groups = b.groups(MIXED)
    assert float(b.gradient([groups[1]]).abs().max()) == 0.0
    steps = [sum(e.steps for e in group) for group in groups]
    torch.testing.assert_close(dapo.gradient(groups) * steps[0] / sum(steps), b.gradient(groups), rtol=1e-3, atol=1e-7)


def test_truncated_answers_can_be_left_out(bench):
    b = bench("grpo", drop_truncated="true")
    groups = b.groups(MIXED)
    object.__setattr__(groups[0].episodes[1], "finish", "length")
    mask = b.signal(groups).terms[0].mask_N.split([e.steps for group in groups for e in group])
    assert [bool(piece.any()) for piece in mask] == [True, False, True, True, True, True, True, True]


@pytest.mark.parametrize(("offset", "moves"), [(-1.0, "wrong"), (1.0, "right")])
def test_clipping_stops_only_the_side_that_went_far_enough(bench, offset, moves):
    """Ratio e: a right answer (A > 0) is beyond 1 + e_high and stops; ratio 1/e: a wrong one is below 1 - e_low and stops."""
    b = bench("grpo", std="none", normaliser="token")
    groups = [b.groups(MIXED)[0]]
    set_behaviour(groups, offset)
    term = b.signal(groups).terms[0]
    rows = b.signal(groups).rows
    logp = b.domain.score(rows, [LogProb()])[LogProb()]
    losses = term.losses({LogProb(): logp}, torch.arange(len(logp)), [row.steps for row in rows])
    stopped = losses.observed["clipped"].bool().split([row.steps for row in rows])
    right = [row.reward == 1.0 for row in rows]
    for flags, is_right in zip(stopped, right, strict=True):
        assert bool(flags.all()) == (is_right == (moves == "wrong"))


def test_std_normalised_advantages(bench):
    b = bench("grpo", std="sample", std_epsilon=0.0)
    groups = b.groups([[True, False, False, False]])
    advantages = b.signal(groups).terms[0].advantage_N.split([e.steps for e in groups[0]])
    expected = torch.tensor([0.75, -0.25, -0.25, -0.25]) / 0.5
    torch.testing.assert_close(torch.stack([a[0] for a in advantages]), expected.float())


@pytest.mark.parametrize(
    ("given", "words"),
    [({"top_p": 0.9}, "top_p"), ({"min_p": 0.1}, "min_p"), ({"top_k": 5}, "top_k"), ({"group_size": 1}, "group_size"), ({"temperature": 0}, "temperature")],
)  # fmt: skip
def test_truncated_or_greedy_sampling_is_refused(bench, given, words):
    with pytest.raises(UserError, match=words):
        bench("grpo", **given)
