"""SSB's checks: selection, the temperature-squared forward KL, alignment, and the two stages."""

from __future__ import annotations

import math

import pytest
import torch
from redistill.build import prepare
from redistill.core.episode import flat
from redistill.core.signal import Signal, Teacher, TeacherLogProb
from redistill.core.specs import DivergenceKind, TeacherWeights
from redistill.core.update import Tally, accumulate
from redistill.errors import UserError
from redistill.methods.ssb import exemplars
from redistill.objectives.divergence import divergence
from redistill.objectives.terms import Divergence, Likelihood
from redistill.reporting.terminal import reporter
from redistill.text import splice
from redistill.text.domain import TextDomain
from redistill.text.models import load_model
from redistill.text.views import ENGLISH, TERSE, Evidence, contrast

MIXED = [[True, False, False, False], [False, True, False, False], [True, True, False, False]]


def gathered(b, rights=MIXED):
    """Run the gathering stage on hand-made rollouts; the robust solutions are sampled by the model."""
    groups = b.groups(rights, alike=True)
    b.domain.rollout = lambda prompts: groups
    stage = b.method.stages()[0].method
    stage.collect(b)
    return groups, stage


def loss_and_gradient(b, signal):
    for p in b.domain.players["student"].parameters.values():
        p.grad = None
    loss = accumulate(signal, b.domain, Tally())
    return loss, torch.cat([p.grad.flatten() for p in b.domain.players["student"].parameters.values()]).double()


# --- check 6: selection ---
def test_check_6_the_most_common_wrong_answer_else_a_random_distinct_one():
    assert exemplars(["7", "7", "5", "9", None], [False, False, False, True, False], 0.99) == (3, 0)
    answers, right = ["5", "7", "9", None], [False, False, True, False]
    assert {exemplars(answers, right, draw) for draw in (0.0, 0.49, 0.5, 0.99)} == {(2, 0), (2, 1)}


@pytest.mark.parametrize(
    ("answers", "right"), [(["5", "7"], [False, False]), (["9", None], [True, False]), (["9", "9"], [True, True])]
)
def test_check_6_no_right_or_no_read_wrong_answer_is_skipped(answers, right):
    assert exemplars(answers, right, 0.5) is None


def test_check_6_a_robust_solution_with_another_answer_is_dropped(bench):
    b = bench("ssb", lora_alpha="none")
    groups, _ = gathered(b)
    kept = len(b.method.store)
    assert 0 < kept <= 3
    again = bench("ssb", lora_alpha="none")
    again.domain.rollout = lambda prompts: groups
    verify = type(again.task).verify
    again.domain.task = type("Never", (), {
        "verify": lambda self, prompt, answer: verify(again.task, prompt, answer + "0"), "reward_range": (0.0, 1.0),
        "name": "never",
    })()  # fmt: skip
    again.method.stages()[0].method.collect(again)
    assert len(again.method.store) == 0
    assert again.logged["mixed"] == 1.0


def test_the_hinted_prompt_shows_both_and_needs_both(bench):
    b = bench("ssb", lora_alpha="none")
    groups, stage = gathered(b)
    read = b.domain.lm.tokenizer.decode(stage.hinted(groups[0], 0.0, b))
    assert f"A{groups[0].episodes[1].text}S{groups[0].episodes[0].text}" in read
    question = [{"role": "user", "content": "1+1?"}]
    assert contrast(question, Evidence(solution="2"), TERSE) is None
    assert contrast(question, Evidence(attempt="3"), TERSE) is None
    told = contrast(question, Evidence(solution="it is {2}", attempt="3"), ENGLISH)
    assert "it is {2}" in told[0]["content"]
    assert told[0]["content"].index("it is {2}") < told[0]["content"].index("\n3\n")


# --- the objective ---
def test_check_1_identical_prompts_give_zero_loss_and_gradient(bench):
    b = bench("ssb", lora_alpha="none")
    gathered(b)
    for record in b.method.store.records:
        record["teacher_ids"] = record["student_ids"]
    loss, gradient = loss_and_gradient(b, b.method.signal(b.method.collect(b), b))
    assert abs(loss) < 1e-6
    assert float(gradient.abs().max()) < 1e-5


def test_check_1_a_lora_student_starts_as_its_teacher_and_the_teacher_stays(bench):
    b = bench("ssb", lora_rank=4, learning_rate=0.05)
    b.domain = TextDomain(load_model("pocket", lora_rank=4), b.task, b.config)
    b.domain.bank.need(b.method.teachers())
    gathered(b)
    rows = flat(b.method.collect(b))
    plain = Teacher(TeacherWeights("frozen"), tuple(row.context for row in rows))
    term = Divergence(teacher=plain, kind=DivergenceKind("forward_kl"))
    assert abs(loss_and_gradient(b, Signal(rows, [term]))[0]) < 1e-6
    before = b.domain.score(rows, [TeacherLogProb(plain)])[TeacherLogProb(plain)]
    loss_and_gradient(b, b.method.signal(b.method.collect(b), b))
    b.domain.players["student"].step()
    b.domain.bank.after_step(1)
    after = b.domain.score(rows, [TeacherLogProb(plain)])[TeacherLogProb(plain)]
    assert torch.equal(before, after)
    assert abs(loss_and_gradient(b, Signal(rows, [term]))[0]) > 1e-4


def kd(z, u, temperature):
    """T^2 KL(softmax(u / T) || softmax(z / T)), mean over steps, as the method's term says it."""
    student, teacher = ((x / temperature).log_softmax(-1) for x in (z, u))
    return temperature**2 * divergence(DivergenceKind("forward_kl"), student=student, teacher=teacher).mean()


def test_check_2_gradient_and_scaling_of_logits():
    torch.manual_seed(0)
    z, u = torch.randn(5, 9, dtype=torch.float64, requires_grad=True), torch.randn(5, 9, dtype=torch.float64)
    for temperature in (1.0, 2.0, 3.5):
        (gradient,) = torch.autograd.grad(kd(z, u, temperature), z)
        expected = temperature / 5 * ((z / temperature).softmax(-1) - (u / temperature).softmax(-1))
        torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(kd(2 * z, 2 * u, 4.0), 4 * kd(z, u, 2.0))


def test_check_3_one_hot_teacher_at_t_1_is_the_likelihood():
    z = torch.randn(5, 9, dtype=torch.float64)
    taken = torch.tensor([3, 0, 8, 2, 2])
    sharp = torch.full((5, 9), -torch.inf, dtype=torch.float64).scatter(1, taken[:, None], 0.0)
    expected = -z.log_softmax(-1).gather(1, taken[:, None]).mean()
    found = divergence(DivergenceKind("forward_kl"), student=z.log_softmax(-1), teacher=sharp).mean()
    torch.testing.assert_close(found, expected)


def test_check_4_large_temperature_limit():
    torch.manual_seed(1)
    z, u = torch.randn(5, 9, dtype=torch.float64), torch.randn(5, 9, dtype=torch.float64)
    gap = (u - u.mean(-1, keepdim=True)) - (z - z.mean(-1, keepdim=True))
    limit = gap.square().sum(-1).mean() / (2 * 9)
    torch.testing.assert_close(kd(z, u, 1e4), limit, rtol=1e-3, atol=0.0)


def test_the_term_is_the_stated_one(bench):
    b = bench("ssb", lora_alpha="none", kd_weight=0.5, ce_weight=0.25, loss_temperature=3)
    gathered(b)
    signal = b.method.signal(b.method.collect(b), b)
    distil, likelihood = signal.terms
    assert (distil.coefficient, distil.temperature, distil.kind.name) == (4.5, 3.0, "forward_kl")
    assert isinstance(likelihood, Likelihood)
    assert likelihood.coefficient == 0.25
    assert all(row.sampling is None and row.behaviour_logp_T is None for row in signal.rows)


def test_check_5_shifting_the_teacher_by_one_position_breaks_check_1(bench):
    b = bench("ssb", lora_alpha="none")
    gathered(b)
    for record in b.method.store.records:
        record["teacher_ids"] = record["student_ids"][:-1]
    assert loss_and_gradient(b, b.method.signal(b.method.collect(b), b))[0] > 1e-2


# --- rows, stages ---
def test_the_reply_ends_with_its_end_unless_asked_not_to(bench):
    with_end, without = bench("ssb", lora_alpha="none"), bench("ssb", lora_alpha="none", end="false")
    for b in (with_end, without):
        gathered(b)
    for one, other in zip(with_end.method.store.records, without.method.store.records):
        assert one["response_ids"] == (*other["response_ids"], with_end.domain.lm.eos_ids[0])


def test_raw_student_prompts_have_no_chat_template(bench):
    b = bench("ssb", lora_alpha="none", student_prompt="raw")
    gathered(b)
    record = b.method.store.records[0]
    assert b.domain.lm.tokenizer.decode(record["student_ids"]) == record["prompt"]["content"][-1]["content"]


def test_gathering_stops_at_the_target_and_keeps_no_more(bench):
    b = bench("ssb", lora_alpha="none", pairs=1)
    groups, stage = gathered(b)
    assert len(b.method.store) == 1
    assert stage.done(groups, b)
    assert stage.signal(groups, b) == []
    gather, train = bench("ssb", lora_alpha="none", gather_steps=7).method.stages()
    assert (gather.steps, train.steps, gather.name, train.name) == (7, None, "gather", "ssb")


def test_robust_solutions_are_sampled_at_their_own_temperature(bench, monkeypatch):
    seen = []

    def spy(lm, contexts, *, sampling, **more):
        seen.append(sampling.temperature)
        return sample(lm, contexts, sampling=sampling, **more)

    sample = splice.sample
    monkeypatch.setattr(splice, "sample", spy)
    gathered(bench("ssb", lora_alpha="none", reply_temperature=0.7))
    assert seen == [0.7]


def test_an_empty_store_is_told_in_one_sentence(bench):
    b = bench("ssb", lora_alpha="none")
    with pytest.raises(UserError, match="gathered no solution"):
        b.method.collect(b)


def test_a_run_gathers_then_trains_and_resumes_bit_for_bit(tmp_path):
    given = {
        "model": "pocket", "task": "sums", "steps": 4, "pairs": 6, "batch": 3, "lora_rank": 0, "lora_alpha": "none",
        "learning_rate": 1e-3, "max_new_tokens": 16, "eval_prompts": 10, "save_every": 1, "save_model": "false",
    }  # fmt: skip
    results = []
    for name, splits in (("whole", (4,)), ("parts", (2, 4))):
        for steps in splits:
            run = prepare(
                "ssb", {**given, "steps": steps}, out=tmp_path / name, resume=(tmp_path / name).exists(),
                report=reporter(quiet=True, silent=True),
            )  # fmt: skip
            result = run.go((tmp_path / name / "config.json").exists() and steps != splits[0])
            weights = torch.cat([p.detach().flatten() for p in run.domain.players["student"].parameters.values()])
            run.close()
        results.append((weights, run.method.store.records))
        assert result["steps"] > 4
    assert torch.equal(results[0][0], results[1][0])
    assert [r["response_ids"] for r in results[0][1]] == [r["response_ids"] for r in results[1][1]]
    assert "views.txt" in {path.name for path in (tmp_path / "whole").iterdir()}


@pytest.mark.parametrize(
    ("given", "words"),
    [({"group_size": 1}, "group_size"), ({"kd_weight": 0}, "ce_weight"), ({"loss_temperature": 0}, "loss_temperature")],
)
def test_meaningless_settings_are_refused_in_one_sentence(bench, given, words):
    with pytest.raises(UserError, match=words):
        bench("ssb", lora_alpha="none", **given)


def test_check_4_closed_form_by_hand():
    assert kd(torch.tensor([[0.0, math.log(3)]]), torch.tensor([[0.0, 0.0]]), 1.0).item() == pytest.approx(
        0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    )
