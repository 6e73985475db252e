"""The checks of KEPO's specification, by number."""

from __future__ import annotations

import math

import pytest
import torch
from redistill.core.task import Verdict
from redistill.core.update import Tally, accumulate
from redistill.errors import UserError
from redistill.objectives.advantages import group_advantages

EXPERT = {"teacher": "checkpoint(pocket-expert)", "temperature": 1.0, "top_p": 1.0}
PAIRS = {"teacher": "checkpoint(pocket-pairs)", "writer_view": "plain"}
MIXED = [[True, False, False, True], [False, False, False, False], [True, True, True, True]]


@pytest.mark.parametrize("gate", ["none", 1000.0])
def test_check_1_without_gate_and_hints_it_is_grpo_with_ratio_1(bench, gate):
    ours = bench("kepo", **EXPERT, gate=gate, trigger="never", format_reward=0.0)
    grpo = bench("grpo", std_epsilon=1e-4, clip_low=9.0, clip_high=9.0)
    groups = ours.groups(MIXED)
    torch.testing.assert_close(ours.gradient(groups), grpo.gradient(groups), rtol=1e-4, atol=1e-7)
    assert math.isfinite(accumulate(ours.signal(groups), ours.domain, Tally()))


def test_check_2_without_advantages_and_with_an_open_gate_it_is_gkd(bench):
    ours = bench("kepo", **EXPERT, gate=-1.0)
    gkd = bench("opd", teacher=EXPERT["teacher"], divergence="jsd(0.5)")
    groups = ours.groups([[True] * 4, [False] * 4])
    torch.testing.assert_close(ours.gradient(groups), gkd.gradient(groups), rtol=1e-5, atol=1e-8)


def test_check_3_rows_below_the_gate_do_not_feel_the_teacher(bench):
    """Another teacher changes the loss of the gated rows alone."""
    other = {**EXPERT, "teacher": "checkpoint(pocket-adept)"}
    for rights, same in (([[False] * 4], True), (MIXED, False)):
        one, two = bench("kepo", **EXPERT), bench("kepo", **other)
        groups = one.groups(rights)
        assert torch.equal(one.gradient(groups), two.gradient(groups)) == same
    ours = bench("kepo", **EXPERT)
    signal = ours.signal(ours.groups(MIXED))
    gated = signal.terms[1].mask_N.split(signal.lengths)
    assert [bool(piece.all()) for piece in gated] == [right for group in MIXED for right in group]


def test_check_4_advantages_after_two_of_eight_answers_were_replaced():
    (before,) = group_advantages([torch.zeros(8)], std="sample", eps=1e-4)
    assert before.tolist() == [0.0] * 8
    rewards = torch.tensor([2.0, 0, 0, 2.0, 0, 0, 0, 0], dtype=torch.float64)
    assert float(rewards.mean()) == 0.5
    assert float(rewards.std()) == pytest.approx(0.9258, abs=1e-4)
    (after,) = group_advantages([rewards], std="sample", eps=1e-4)
    assert (float(after[0]), float(after[1])) == (pytest.approx(1.62, abs=5e-3), pytest.approx(-0.54, abs=5e-3))


def test_check_4_a_group_without_reward_has_no_gradient_from_rl(bench):
    ours = bench("kepo", **EXPERT)
    groups = ours.groups([[False] * 4])
    assert float(ours.gradient(groups).abs().max()) == 0.0


def test_check_5_led_answers_are_trained_under_the_question_alone(bench):
    """pocket cannot add two numbers (1%) but follows a worked answer in view about half the time: a learning cliff."""
    from redistill.tasks.sums import Sums

    ours = bench("kepo", **PAIRS, task="sums:terms=2,digits=2", prompts_per_step=6, temperature=1.0, top_p=1.0)
    ours.task = Sums(terms=2, digits=2)
    ours.domain.task = ours.task
    groups = ours.method.collect(ours)
    led = [e for g in groups for e in g if e.sampled_under == "with_solution"]
    assert len(led) >= 4
    assert ours.logged["stuck"] > 0.8
    assert ours.logged["led"] > 0.3
    for group in groups:
        places = [e for e in group if e.sampled_under == "with_solution"]
        assert len(places) <= 2
        assert len(group) == 4
        for episode in places:
            assert episode.reward == 1.0
            assert episode.trained_under == "plain"
            assert episode.context == ours.domain.render("plain", group.prompt)
    signal = ours.signal(groups)
    marks = {ours.domain.lm.tokenizer.convert_tokens_to_ids(letter) for letter in "SH"}
    assert not any(marks & set(row.context) for row in signal.rows)
    assert float(ours.gradient(groups).abs().max()) > 0.0


def test_check_6_jsd_is_at_most_ln_2(bench):
    ours = bench("kepo", **EXPERT, gate=-1.0)
    signal = ours.signal(ours.groups(MIXED))
    term = signal.terms[1]
    found = ours.domain.score(signal.rows, list(term.quantities()))
    assert float(next(iter(found.values())).max()) <= math.log(2.0) + 1e-6


def malformed(group):
    for episode in group:
        object.__setattr__(episode, "verdict", Verdict(0.0, feedback="!n", format_ok=False))
    return group


def test_triggers(bench):
    groups = bench("kepo", **EXPERT).groups(MIXED)
    fires = {
        name: [bench("kepo", **EXPERT, trigger=name).method.needs_hint(group) for group in groups]
        for name in ("accuracy", "reward", "always", "never")
    }
    assert fires["accuracy"] == [False, True, False]
    assert fires["reward"] == [False, False, False]  # wrong but well-formed answers have a reward of 1
    assert (fires["always"], fires["never"]) == ([True] * 3, [False] * 3)
    assert bench("kepo", **EXPERT, trigger="reward").method.needs_hint(malformed(groups[1]))
    assert not bench("kepo", **EXPERT, threshold=0.0).method.needs_hint(groups[1])


class Asked:
    """Stands in for the domain's rollout: what was asked for, and answers of given rewards."""

    def __init__(self, bench, rewards) -> None:
        self.bench, self.rewards, self.calls = bench, list(rewards), []

    def __call__(self, prompts, view="plain", seen=None, size=None):
        self.calls.append((view, list(seen), size))
        groups = [g for g in self.bench.groups([[False] * (size or 4)] * 3) if g.prompt.uid in {p.uid for p in prompts}]
        right = self.rewards.pop(0) if self.rewards else 0
        for group in groups:
            for episode in list(group)[:right]:
                object.__setattr__(episode, "verdict", Verdict(1.0))
                object.__setattr__(episode, "sampled_under", view)
        return groups


@pytest.mark.parametrize(
    ("given", "rewards", "rounds", "kept"),
    [({}, [0, 2], 1, 2), ({}, [0, 1, 1], 2, 2), ({}, [0, 0, 0, 0, 0, 0, 2], 5, 0), ({"attempts": 1}, [0, 0, 2], 1, 0), ({"hinted": 1}, [0, 1], 1, 1)],
)  # fmt: skip
def test_rounds_go_on_until_there_are_enough_right_answers(bench, monkeypatch, given, rewards, rounds, kept):
    ours = bench("kepo", **EXPERT, **given)
    asked = Asked(ours, rewards)
    monkeypatch.setattr(ours.domain, "rollout", asked)
    prompt = ours.next_prompts()[0]
    found = ours.method.led([prompt], ours)
    assert len(asked.calls) == 1 + rounds  # the teacher's text, then the rounds
    assert len(found.get(prompt.uid, [])) == kept


@pytest.mark.parametrize(
    ("given", "writer", "reader", "share"),
    [({}, "with_solution", "with_solution", 1.0), ({"hint_view": "with_hint", "hint_share": 0.5}, "with_solution", "with_hint", 0.5),
     ({"writer_view": "plain"}, "plain", "with_solution", 1.0)],
)  # fmt: skip
def test_who_reads_what(bench, monkeypatch, given, writer, reader, share):
    ours = bench("kepo", **EXPERT, **given)
    asked = Asked(ours, [0, 2])
    monkeypatch.setattr(ours.domain, "rollout", asked)
    prompt = ours.next_prompts()[0]
    ours.method.led([prompt], ours)
    (first, seen, size), (second, shown, _) = asked.calls
    assert (first, second, size) == (writer, reader, 1)
    assert seen[0].solution == prompt.solution
    text = ours.groups([[False]])[0].episodes[0].text
    hint = shown[0].solution if reader == "with_solution" else shown[0].hint
    assert hint == text[: round(share * len(text))]


@pytest.mark.parametrize(
    ("given", "words"),
    [({}, "needs a teacher"), ({"teacher": "live"}, "student itself"), ({**EXPERT, "group_size": 1}, "group_size"), ({**EXPERT, "trigger": "acc"}, "trigger")],
)  # fmt: skip
def test_what_cannot_mean_anything_is_refused(bench, given, words):
    with pytest.raises(UserError, match=words):
        bench("kepo", **given)
