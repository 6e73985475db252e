"""What the recorder says of a row, against the terms themselves and a forward pass of its own."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from redistill.core.episode import flat
from redistill.core.signal import LogProb, Signal
from redistill.core.teachers import swapped
from redistill.core.trace import chosen, inspected, rows_of
from redistill.core.update import Tally, accumulate
from redistill.objectives.reduce import step_weights
from redistill.text.credit import token_text

sys.path.insert(0, str(Path(__file__).parents[1] / "laws"))
from lab import CASES, Lab


def recorded(lab: Lab, signal: Signal) -> list[dict[str, Any]]:
    return [inspected(lab.domain, signal, row) for row in range(len(signal.rows))]


@pytest.mark.parametrize("case", CASES)
def test_every_method_can_be_recorded_and_its_loss_is_found_again(case: str) -> None:
    """The losses in the record, weighed and divided as the term says, are the loss of the update: nothing is missing."""
    slug, options = CASES[case]
    lab = Lab(slug, **options)
    signal = lab.signal(lab.collected()).prepared()
    with torch.no_grad():
        expected = accumulate(signal, lab.domain, Tally())
    rows = recorded(lab, signal)
    json.dumps(rows, allow_nan=False)
    total = 0.0
    for number, term in enumerate(signal.terms):
        per_step = torch.tensor(
            [v for row in rows for v in row["terms"][number]["values"]["loss"]], dtype=torch.float64
        )
        weight, count = step_weights(term.normaliser, signal.lengths, term.mask_N, term.weight_N)
        if float(count):
            kept = torch.where(weight != 0, per_step, torch.zeros_like(per_step))
            total += term.coefficient * float((weight * kept).sum() / count)
    assert math.isclose(total, expected, rel_tol=5e-3, abs_tol=5e-4)  # four digits are kept of each


def test_likeliest_tokens_and_log_probs_are_those_of_a_forward_pass() -> None:
    lab = Lab("opd", teacher="frozen", teacher_view="with_solution", temperature=0.7)
    lab.domain.bank.need(lab.method.teachers())
    lab.shake_teachers(0.3)
    signal = lab.signal(lab.groups())
    for number in (0, 5):
        row, told = signal.rows[number], inspected(lab.domain, signal, number)
        assert len(told["own"]) == row.steps == len(told["logp"]) == len(told["likeliest"])
        ids = row.trajectory.ids
        with torch.no_grad():
            logits = lab.domain.lm.module(torch.tensor([[*row.context, *ids]])).logits[0]
        logp = (logits[len(row.context) - 1 : -1] / 0.7).log_softmax(-1)
        for step, at in enumerate(told["own"]):
            assert told["tokens"][at] == token_text(lab.domain.lm.tokenizer, ids[at])
            assert told["logp"][step] == pytest.approx(float(logp[at, ids[at]]), rel=1e-3, abs=1e-4)
            best = logp[at].exp().topk(5)
            assert [p for _, p in told["likeliest"][step]] == pytest.approx(best.values.tolist(), rel=6e-3)
            assert told["entropy"][step] == pytest.approx(float(-(logp[at].exp() * logp[at]).sum()), rel=1e-3)
        (teacher,) = told["teachers"]
        assert teacher["name"] == "frozen"
        assert str(row.prompt.solution) in teacher["reads"]
        assert str(row.prompt.solution) not in told["reads"]
        assert teacher["logp"] != told["logp"]
        player, copy = lab.domain.players["student"], lab.domain.bank.copies["frozen"]
        (context,) = (term.teacher.contexts[number] for term in signal.terms)
        with torch.no_grad(), swapped(player.tensors, copy):
            logits = lab.domain.lm.module(torch.tensor([[*context, *ids]])).logits[0]
        taught = (logits[len(context) - 1 : -1] / 0.7).log_softmax(-1)
        for step, at in enumerate(told["own"]):
            assert teacher["logp"][step] == pytest.approx(float(taught[at, ids[at]]), rel=1e-3, abs=1e-4)
            assert [p for _, p in teacher["likeliest"][step]] == pytest.approx(
                taught[at].exp().topk(5).values.tolist(), rel=6e-3
            )


def test_an_episode_that_no_signal_took_is_shown_without_terms() -> None:
    lab = Lab("grpo", drop_dead_groups="true")
    groups = lab.groups()
    signal = lab.signal(groups)
    rows = list(rows_of(lab.domain, [groups[2]], [signal], {}))  # all wrong: one reward
    assert len(rows) == 1
    assert rows[0]["terms"] == [] or not any(rows[0]["terms"][0]["values"].get("mask", [0]))
    assert len(rows[0]["logp"]) == groups[2].episodes[0].steps


def test_the_first_episode_and_the_first_with_another_reward_are_chosen() -> None:
    groups = Lab("grpo").groups()
    rewards = [episode.reward for episode in chosen([groups[1]])]
    assert rewards[0] != rewards[1]
    assert chosen([]) == []
    assert len(chosen([groups[2]])) == 1 + (len({e.reward for e in flat([groups[2]])}) > 1)


def test_an_empty_response_has_no_steps() -> None:
    lab = Lab("grpo")
    groups = lab.groups()
    told = inspected(lab.domain, Signal([groups[0].episodes[3]], []), 0)
    assert told["own"] == told["logp"] == told["likeliest"] == []


def test_what_is_recorded_needs_no_gradient() -> None:
    lab = Lab("sdpo")
    signal = lab.signal(lab.groups())
    seen = lab.domain.inspect(signal.subset([0]), [LogProb()], 3)
    assert not any(value.requires_grad for value in seen.values.values())
    assert all(len(step) == 3 for step in seen.rows[0]["likeliest"])
