"""SFT and RFT: whose words are trained on, and how."""

from __future__ import annotations

import pytest
import torch
from redistill.core.update import update


def test_sft_is_the_mean_cross_entropy_of_the_solutions(bench):
    b = bench("sft", prompts_per_step=4)
    groups = b.method.collect(b)
    loss = update(b.signal(groups), b.domain)["loss"]
    b = bench("sft", prompts_per_step=4)
    total, count = 0.0, 0
    for prompt in b.next_prompts():
        context = b.domain.lm.render(prompt.content)
        ids = [*b.domain.lm.tokenizer.encode(prompt.solution, add_special_tokens=False), b.domain.lm.eos_ids[0]]
        logits = b.domain.lm.module(input_ids=torch.tensor([[*context, *ids]])).logits[0, len(context) - 1 : -1]
        total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids), reduction="sum").detach())
        count += len(ids)
    assert loss == pytest.approx(total / count, rel=1e-5)


def test_sft_can_train_in_context(bench):
    b = bench("sft", in_context_share=1.0)
    contexts = [b.domain.lm.tokenizer.decode(e.context) for group in b.method.collect(b) for e in group]
    assert all("S" in context for context in contexts)


def test_rft_keeps_right_and_distinct_answers(bench):
    b = bench("rft")
    groups = b.groups([[True, True, False, False], [False, False, False, True]])
    assert [row.text for row in b.signal(groups).rows] == [groups[0].episodes[0].text, groups[1].episodes[3].text]
    assert bench("rft", distinct="false", keep=4).signal(groups).lengths == [
        e.steps for e in groups[0].episodes[:2]
    ] + [groups[1].episodes[3].steps]


def test_rft_with_nothing_right_does_nothing(bench):
    b = bench("rft")
    before = {name: p.detach().clone() for name, p in b.domain.players["student"].parameters.items()}
    result = update(b.signal(b.groups([[False] * 4])), b.domain)
    assert result["empty_updates"] == 1.0
    assert all(torch.equal(before[name], p) for name, p in b.domain.players["student"].parameters.items())
