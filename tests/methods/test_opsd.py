"""OPSD's checks at the level of the method."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from redistill.core.teachers import swapped
from redistill.core.update import update
from redistill.errors import UserError
from redistill.text import domain as module

PLAIN = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
ROWS = [[False, True], [True, False]]


def test_check_1_forward_kl_gradient_is_student_minus_teacher(bench):
    """dL/dlogit_v = p_S(v) - p_T(v), divided by the number of tokens: checked through the last layer's bias-free head by
    comparing with a loss written out with an independent forward pass."""
    b = bench("opsd", clip="none", group_size=2, **PLAIN)
    groups = b.groups(ROWS)
    ours = b.gradient(groups)
    signal = b.signal(groups)
    lm, params = b.domain.lm, b.domain.players["student"].parameters
    for p in params.values():
        p.grad = None
    tokens = sum(signal.lengths)
    for row, context in zip(signal.rows, signal.terms[0].teacher.contexts, strict=True):
        student = _logits(lm, row.context, row.trajectory.ids)
        with torch.no_grad():
            target = F.softmax(_logits(lm, context, row.trajectory.ids), dim=-1)
        # gradient of sum_v logit_v (p_S - p_T) with p_S held fixed is the stated logit gradient
        fixed = F.softmax(student, dim=-1).detach() - target
        ((student * fixed).sum() / tokens).backward()
    theirs = torch.cat([p.grad.flatten() for p in params.values()]).double()
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def _logits(lm, context, response):
    ids = torch.tensor([[*context, *response]])
    return lm.module(input_ids=ids).logits[0, len(context) - 1 : -1].float()


def test_check_3_no_context_at_the_start_gives_zero(bench):
    b = bench("opsd", context="none", group_size=2, clip="none", **PLAIN)
    assert float(b.gradient(b.groups(ROWS)).abs().max()) < 1e-6


def test_check_3_the_frozen_teacher_stays_the_base_model_with_lora(bench):
    b = bench("opsd", lora_rank=4, learning_rate=0.05, group_size=2, **PLAIN)
    groups = b.groups(ROWS)
    frozen = {name: t.clone() for name, t in b.domain.bank.copies["frozen"].items()}
    base = {n: p.detach().clone() for n, p in b.domain.lm.module.named_parameters() if not p.requires_grad}
    first = b.domain.lm.module(input_ids=torch.tensor([groups[0].episodes[0].context])).logits.detach()
    for _ in range(3):
        update(b.signal(groups), b.domain)
    moved = b.domain.lm.module(input_ids=torch.tensor([groups[0].episodes[0].context])).logits.detach()
    assert not torch.allclose(first, moved)
    for name, tensor in frozen.items():
        assert torch.equal(tensor, b.domain.bank.copies["frozen"][name])
    for name, tensor in base.items():
        assert torch.equal(tensor, dict(b.domain.lm.module.named_parameters())[name])
    with swapped(b.domain.players["student"].parameters, b.domain.bank.copies["frozen"]), torch.no_grad():
        again = b.domain.lm.module(input_ids=torch.tensor([groups[0].episodes[0].context])).logits
    torch.testing.assert_close(again, first)


def test_check_6_a_shifted_teacher_breaks_check_3(bench, monkeypatch):
    b = bench("opsd", context="none", group_size=2, clip="none", **PLAIN)
    groups = b.groups(ROWS)
    original = module.TextDomain._teacher_states

    def shifted(self, *args):
        states = original(self, *args)
        for part in states.parts:
            part.hidden_nD[:] = part.hidden_nD.roll(1, dims=0)
        return states

    monkeypatch.setattr(module.TextDomain, "_teacher_states", shifted)
    assert float(b.gradient(groups).abs().max()) > 1e-3


def test_check_7_eos_is_trained_although_pad_is_eos(bench):
    b = bench("opsd", group_size=2, **PLAIN)
    assert b.domain.lm.tokenizer.pad_token_id in b.domain.lm.eos_ids
    signal = b.signal(b.groups(ROWS))
    assert all(row.trajectory.ids[-1] in b.domain.lm.eos_ids for row in signal.rows)
    assert bool(signal.terms[0].mask_N.all())
    assert len(signal.terms[0].mask_N) == sum(len(row.trajectory.ids) for row in signal.rows)


def test_clip_bounds_the_loss_and_may_make_it_negative(bench):
    clipped, free = bench("opsd", group_size=2, **PLAIN), bench("opsd", clip="none", group_size=2, **PLAIN)
    groups = clipped.groups(ROWS)
    tight = update(clipped.signal(groups), clipped.domain)["loss"]
    loose = update(free.signal(groups), free.domain)["loss"]
    assert tight < loose
    assert loose > 0
    tightest = bench("opsd", clip=1e-4, group_size=2, **PLAIN)
    assert update(tightest.signal(groups), tightest.domain)["loss"] < 0


def test_loss_temperature_is_the_sampling_temperature_unless_given(bench):
    warm = bench("opsd", temperature=1.3, top_p=1.0, top_k=0)
    assert warm.signal(warm.groups(ROWS)).terms[0].temperature == 1.3
    given = bench("opsd", temperature=1.3, top_p=1.0, top_k=0, loss_temperature=2.0)
    assert given.signal(given.groups(ROWS)).terms[0].temperature == 2.0


def test_wrong_context_shows_another_prompts_solution(bench):
    b = bench("opsd", context="wrong", group_size=2)
    groups = b.groups(ROWS)
    read = b.domain.lm.tokenizer.decode(b.signal(groups).terms[0].teacher.contexts[0])
    assert f"S{groups[1].prompt.solution}" in read


def test_teacher_never_generates_and_the_student_samples_from_the_question_alone(bench):
    b = bench("opsd", prompts_per_step=2, group_size=1)
    groups = b.method.collect(b)
    for group in groups:
        for episode in group:
            assert episode.sampled_under == "plain"
            assert "S" not in b.domain.lm.tokenizer.decode(episode.context)


SAMPLED = {"support": "sampled", "divergence": "reverse_kl", "clip": "none", **PLAIN}


@pytest.mark.parametrize(
    ("given", "named"),
    [({"divergence": "tvd"}, "reverse_kl"), ({"clip": 0.05}, "clip"), ({"loss_temperature": 2}, "loss_temperature"),
     ({"top_p": 0.9}, "top_p"), ({"top_k": 20}, "top_k")],
)  # fmt: skip
def test_a_sampled_support_refuses_what_it_would_ignore_or_be_biased_by(bench, given, named):
    bench("opsd", **SAMPLED)
    with pytest.raises(UserError, match=named):
        bench("opsd", **{**SAMPLED, **given})
