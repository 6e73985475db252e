"""The language domain: rollouts and scores agree (law 8), draws are keyed (law 10), masks come from spans (law 5)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from redistill.build import settings
from redistill.core.episode import Episode, flat
from redistill.core.signal import EntropyOf, LogProb, Signal, TeacherLogProb
from redistill.core.specs import TeacherWeights
from redistill.core.task import Verdict
from redistill.core.update import Tally, accumulate
from redistill.errors import UserError
from redistill.objectives.terms import Likelihood
from redistill.tasks.sums import Sums
from redistill.text import domain as domains
from redistill.text.domain import TextDomain, Trajectory
from redistill.text.models import LanguageModel, load_model
from redistill.text.views import Evidence
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

LM = load_model("pocket")
EOS = LM.eos_ids[0]


def text_domain(lm: LanguageModel = LM, **given: Any) -> TextDomain:
    _, config = settings("rft", {"max_new_tokens": 24, "group_size": 4, **given})
    domain = TextDomain(lm, Sums(), config)  # type: ignore[arg-type]
    domain.begin_step(3)
    return domain


def prompts(count: int) -> list[Any]:
    return [Sums().train(i, 0) for i in range(count)]


def row(ids: Any, spans: Any = None, domain: TextDomain | None = None) -> Episode:
    prompt = prompts(1)[0]
    spans = ((0, len(ids)),) if spans is None else tuple(spans)
    steps = sum(high - low for low, high in spans)
    return Episode(prompt, tuple(LM.render(prompt.content)), Trajectory(tuple(ids), spans), steps)


def tiny(kind: Any, config: Any, **more: Any) -> LanguageModel:
    torch.manual_seed(0)
    shape = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "max_position_embeddings": 256, "initializer_range": 0.3, "vocab_size": 101,
        "pad_token_id": EOS, "eos_token_id": EOS, "attn_implementation": "sdpa",
    }  # fmt: skip
    module = kind(config(**{**shape, **more})).eval()
    return LanguageModel("tiny", module, LM.tokenizer, (EOS,), 256, torch.float32)


# --- law 8: the sampler's log-probs are the scorer's ----------------------------------------------------------------
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_law_8_ratio_is_1_at_every_temperature(temperature: float) -> None:
    domain = text_domain(temperature=temperature)
    rows = flat(domain.rollout(prompts(3)))
    found = domain.score(rows, [LogProb()])[LogProb()]
    recorded = torch.cat([one.behaviour_logp_T for one in rows])  # type: ignore[misc]
    assert float(((found - recorded).exp() - 1).abs().max()) < 1e-4
    other = domain.score([replace(one, sampling=replace(one.sampling, temperature=2.0)) for one in rows], [LogProb()])
    assert float((other[LogProb()] - recorded).abs().max()) > 0.1, "the spec travels with the row"


def test_law_8_greedy_is_recorded_and_scored_at_temperature_1() -> None:
    domain = text_domain(temperature=0.0)
    rows = flat(domain.rollout(prompts(2), size=1))
    recorded = torch.cat([one.behaviour_logp_T for one in rows])  # type: ignore[misc]
    torch.testing.assert_close(domain.score(rows, [LogProb()])[LogProb()], recorded, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("slug", ["grpo", "sdpo"])
@pytest.mark.parametrize(("key", "value"), [("top_p", 0.9), ("top_k", 20), ("min_p", 0.1)])
def test_law_8_a_ratio_of_truncated_samples_is_refused(slug: str, key: str, value: float) -> None:
    with pytest.raises(UserError) as caught:
        settings(slug, {key: value, "group_size": 4})
    sentence = str(caught.value)
    assert f"{key}={value}" in sentence
    assert slug in sentence
    assert "\n" not in sentence


def test_sliding_windows_hold_when_rows_are_packed() -> None:
    """Gemma 3 mixes layers that see 4 tokens back with layers that see all; a packed row must not see more."""
    kinds = ["sliding_attention", "full_attention"]
    lm = tiny(Gemma3ForCausalLM, Gemma3TextConfig, sliding_window=4, layer_types=kinds, head_dim=8)
    domain = text_domain(lm)
    rows = [row([5, 9, 12, 33, EOS, 7, 8][:size]) for size in (7, 5, 6)]
    found = domain.score(rows, [LogProb()])[LogProb()].split([7, 5, 6])
    for one, logp in zip(rows, found):
        ids = torch.tensor([[*one.context, *one.trajectory.ids]])
        with torch.no_grad():
            whole = lm.module(ids).logits[0, len(one.context) - 1 : -1].log_softmax(-1)
        torch.testing.assert_close(logp, whole[range(one.steps), list(one.trajectory.ids)], rtol=1e-4, atol=1e-5)


# --- law 10: draws are keyed ----------------------------------------------------------------------------------------
def test_law_10_batching_does_not_change_a_draw() -> None:
    small, large = (text_domain(sample_batch=size).rollout(prompts(5)) for size in (4, 64))
    for one, other in zip(flat(small), flat(large)):
        assert one.trajectory == other.trajectory
        assert one.key == other.key
        torch.testing.assert_close(one.behaviour_logp_T, other.behaviour_logp_T, rtol=1e-4, atol=1e-5)


def test_law_10_steps_and_calls_draw_anew_and_a_step_can_be_done_again() -> None:
    domain = text_domain()
    first, second = (flat(domain.rollout(prompts(2))) for _ in range(2))
    domain.begin_step(4)
    third = flat(domain.rollout(prompts(2)))
    domain.begin_step(3)
    again = flat(domain.rollout(prompts(2)))
    ids = [[one.trajectory.ids for one in rows] for rows in (first, second, third, again)]
    assert ids[0] == ids[3]
    assert ids[0] != ids[1] != ids[2] != ids[0]
    keys = [one.key for rows in (first, second, third) for one in rows]
    assert len(set(keys)) == len(keys)


# --- law 5: masks come from lengths and spans -----------------------------------------------------------------------
def gradients(domain: TextDomain, rows: list[Episode]) -> dict[str, torch.Tensor]:
    parameters = domain.players["student"].parameters
    for p in parameters.values():
        p.grad = None
    accumulate(Signal(rows, [Likelihood()]), domain, Tally())
    return {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}


def test_law_5_eos_inside_an_answer_is_a_step_like_any_other() -> None:
    domain = text_domain()
    ids = [23, EOS, 24, EOS, EOS]
    found = domain.score([row(ids)], [LogProb()])[LogProb()]
    context = LM.render(prompts(1)[0].content)
    with torch.no_grad():
        whole = LM.module(torch.tensor([[*context, *ids]])).logits[0, len(context) - 1 : -1].log_softmax(-1)
    torch.testing.assert_close(found, whole[range(5), ids], rtol=1e-4, atol=1e-5)


def test_law_5_the_padding_id_gets_its_gradient_as_an_input() -> None:
    """The embedding of pad (= eos) is read inside this answer, so it must learn; transformers would leave it out."""
    lm = tiny(LlamaForCausalLM, LlamaConfig, tie_word_embeddings=False)
    assert lm.module.model.embed_tokens.padding_idx == EOS
    found = gradients(text_domain(lm), [row([5, EOS, 6])])
    assert float(found["model.embed_tokens.weight"][EOS].norm()) > 1e-4


def test_law_5_observations_are_read_but_are_no_steps() -> None:
    domain = text_domain()
    turns = row([23, 24, 30, 31, 25, 26, 40], [(0, 2), (4, 6)])
    found = domain.score([turns], [LogProb(), EntropyOf()])
    assert len(found[LogProb()]) == 4
    whole = domain.score([row([23, 24, 30, 31, 25, 26, 40])], [LogProb()])[LogProb()]
    torch.testing.assert_close(found[LogProb()], whole[[0, 1, 4, 5]], rtol=1e-5, atol=1e-6)
    other_observation = row([23, 24, 50, 51, 25, 26, 40], [(0, 2), (4, 6)])
    changed = domain.score([other_observation], [LogProb()])[LogProb()]
    torch.testing.assert_close(changed[:2], found[LogProb()][:2], rtol=1e-5, atol=1e-6)
    assert float((changed[2:] - found[LogProb()][2:]).abs().max()) > 1e-3
    tail = row([23, 24, 30, 31, 25, 26, 60], [(0, 2), (4, 6)])
    one, two = gradients(domain, [turns]), gradients(domain, [tail])
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-5, atol=1e-7)


# --- law 6: short and missing rows ----------------------------------------------------------------------------------
def test_law_6_answers_of_length_0_and_1() -> None:
    domain = text_domain()
    rows = [row([]), row([23]), row([]), row([24, EOS]), row([1, 2, 3], [])]
    found = domain.score(rows, [LogProb(), EntropyOf()])
    assert len(found[LogProb()]) == 3
    assert bool(found[LogProb()].isfinite().all())
    assert domain.score([row([])], [LogProb()])[LogProb()].numel() == 0
    assert domain.score([], [LogProb()])[LogProb()].numel() == 0
    assert list(domain.micro_batches(Signal([], []))) == []
    assert accumulate(Signal([row([])], [Likelihood()]), domain, Tally()) == 0.0


def test_a_missing_context_leaves_its_neighbours_alone() -> None:
    domain = text_domain(micro_batch_tokens=10**6)
    rows = [row([23, 24]), row([]), row([25]), row([26, 27, 28])]
    contexts = tuple(LM.render([{"role": "user", "content": f"{i}+1="}]) for i in range(4))
    whole = domains.Teacher(TeacherWeights("live"), tuple(map(tuple, contexts)))
    partly = domains.Teacher(TeacherWeights("live"), (None, None, *map(tuple, contexts[2:])))
    full = domain.score(rows, [TeacherLogProb(whole)])[TeacherLogProb(whole)]
    some = domain.score(rows, [TeacherLogProb(partly)])[TeacherLogProb(partly)]
    torch.testing.assert_close(some[2:], full[2:], rtol=1e-5, atol=1e-6)
    assert some[:2].tolist() == [0.0, 0.0]
    assert domain.covered(partly, rows).tolist() == [False, False, True, True, True, True]


# --- rollouts, written episodes, limits -----------------------------------------------------------------------------
def test_a_prompt_that_is_too_long_is_left_out_and_counted() -> None:
    domain = text_domain(max_prompt_tokens=14)
    short, long = prompts(1)[0], Sums(terms=8).train(0, 0)
    groups = domain.rollout([short, long])
    assert [group.prompt for group in groups] == [short]
    assert domain.omitted["plain"] == 1
    with pytest.raises(UserError, match="max_prompt_tokens=14") as caught:
        domain.rollout([long])
    assert "\n" not in str(caught.value)


def test_a_written_answer_ends_with_eos_and_has_no_behaviour() -> None:
    domain = text_domain()
    prompt = prompts(1)[0]
    episode = domain.written(prompt, "46", "with_solution", Evidence(solution="46"))
    assert episode is not None
    assert episode.trajectory.ids == (*LM.tokenizer.encode("46", add_special_tokens=False), EOS)
    assert episode.behaviour_logp_T is None
    assert LM.tokenizer.decode(episode.context).endswith("S46<a>")
    assert domain.written(prompt, "4" * 24) is None
    assert domain.omitted["solution"] == 1
    assert domain.written(prompt, "4" * 23) is not None


def test_a_reward_outside_its_range_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    domain = text_domain()
    monkeypatch.setattr(Sums, "verify", lambda self, prompt, answer: Verdict(1.5))
    with pytest.raises(UserError, match=r"task 'sums' returned reward 1\.5"):
        domain.rollout(prompts(1))


def test_evaluation_is_the_same_twice_and_says_what_it_measures() -> None:
    domain = text_domain(eval_prompts=20, eval_samples=2)
    one, two = domain.evaluate("before"), domain.evaluate("after")
    assert one == two
    assert one["metric"] == "accuracy"
    assert len(one["outcomes"]) == 20
    assert one["accuracy"] == sum(one["outcomes"]) / 20
    assert one["low"] <= one["accuracy"] <= one["high"]
    assert one["accuracy_in_context"] - one["accuracy"] == pytest.approx(one["utility"])
    assert one["accuracy_in_context"] > one["accuracy_wrong_context"]
    assert one["avg_at_k"] <= one["pass_at_k"]


def test_a_task_without_held_out_prompts_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sums, "held_out", lambda self, count: [])
    with pytest.raises(UserError, match="'sums' has no held-out prompts"):
        text_domain().evaluate("before")


# --- another model as the teacher -----------------------------------------------------------------------------------
def test_a_teacher_with_other_tokens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = load_model("pocket")
    other.tokenizer.add_tokens(["zzz"])
    monkeypatch.setattr(domains, "load_model", lambda name, dtype: other)
    with pytest.raises(UserError, match="vocabulary size"):
        text_domain().bank.need([TeacherWeights("checkpoint", path="other")])


def test_padding_rows_of_a_teachers_head_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal tokenizers, unlike padding: the teacher's extra rows hold mass that no id of the student stands for."""
    wide = tiny(LlamaForCausalLM, LlamaConfig, vocab_size=128, tie_word_embeddings=False)
    monkeypatch.setattr(domains, "load_model", lambda name, dtype: wide)
    domain = text_domain()
    spec = TeacherWeights("checkpoint", path="wide")
    domain.bank.need([spec])
    one = row([23, 24, EOS])
    teacher = domain.teacher(spec, [one], "plain", [Evidence()])
    found = domain.score([one], [TeacherLogProb(teacher)])[TeacherLogProb(teacher)]
    with torch.no_grad():
        logits = wide.module(torch.tensor([[*one.context, *one.trajectory.ids]])).logits[0, len(one.context) - 1 : -1]
    expected = logits[:, :101].log_softmax(-1)[range(3), [23, 24, EOS]]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    student = text_domain(wide)
    monkeypatch.setattr(domains, "load_model", lambda name, dtype: LM)
    with pytest.raises(UserError, match="has 101 output rows and the student 128"):
        student.bank.need([spec])


def test_a_full_disk_at_the_end_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(domains, "write_model", full)
    with pytest.raises(UserError, match="No space left on device"):
        text_domain().save(tmp_path / "model")


def test_views_txt_shows_what_student_and_teacher_read() -> None:
    from redistill.objectives.terms import Divergence

    domain = text_domain()
    groups = domain.rollout(prompts(1))
    rows = flat(groups)
    teacher = domain.teacher(TeacherWeights("live"), rows, "with_solution", [Evidence(solution="9+9=18")] * len(rows))
    text = domain.describe(groups, [Signal(rows, [Divergence(teacher=teacher)])])
    assert "the teacher live reads" in text
    assert "S9+9=18<a>" in text
    assert domain.describe([], []) == "no row was trained in this step"
