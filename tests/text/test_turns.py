"""Episodes of several turns: token in, token out; draws keyed by turn; limits; templates that rewrite history."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import pytest
import torch
from redistill.build import settings
from redistill.core.episode import Episode, flat
from redistill.core.signal import LogProb, Signal, Teacher, TeacherLogProb
from redistill.core.specs import TeacherWeights
from redistill.core.update import Tally, accumulate
from redistill.errors import UserError
from redistill.objectives.terms import Likelihood
from redistill.tasks import load_task
from redistill.tasks.tools import Tools
from redistill.text import turns
from redistill.text.domain import TextDomain
from redistill.text.models import load_model
from redistill.text.sampling import Sampling, sample
from redistill.text.turns import Between, by_turn, play, rewritten, script
from redistill.text.views import Evidence

LM = load_model("pocket")
EOS = LM.eos_ids[0]
TASK = Tools(steps=3, slack=2)


def domain_of(task: Any = TASK, **given: Any) -> TextDomain:
    _, config = settings("rft", {"max_new_tokens": 4, "group_size": 3, **given})
    domain = TextDomain(LM, task, config)  # type: ignore[arg-type]
    domain.begin_step(0)
    return domain


def prompts(count: int) -> list[Any]:
    return [TASK.train(i, 0) for i in range(count)]


def played(**given: Any) -> list[Episode]:
    return flat(domain_of(**given).rollout(prompts(2)))


# --- the sequence is what was sampled and what was observed, and nothing else -------------------------------------------
def test_the_sequence_is_the_chat_as_the_template_renders_it() -> None:
    """pocket's tokens are characters, so here, and only here, rendering the whole chat gives the appended ids."""
    for one in played():
        chat = list(one.prompt.content)
        for turn in one.trajectory.turns[:-1]:
            chat += [{"role": "assistant", "content": turn.action}, {"role": "user", "content": turn.observation}]
        rendered = LM.render(chat)
        low, high = one.trajectory.spans[-1]
        if all(one.trajectory.ids[h - 1] == EOS for _, h in one.trajectory.spans):
            assert rendered == [*one.context, *one.trajectory.ids[:low]]
        assert one.trajectory.ids[high:] == ()


def test_spans_hold_what_was_sampled_and_recorded_log_probs_are_the_scorers() -> None:
    domain = domain_of()
    rows = flat(domain.rollout(prompts(3)))
    assert max(len(row.trajectory.spans) for row in rows) == 5
    for row in rows:
        assert row.steps == len(row.behaviour_logp_T) == sum(high - low for low, high in row.trajectory.spans)
        for (low, high), turn in zip(row.trajectory.spans, row.trajectory.turns, strict=True):
            ids = row.trajectory.ids[low:high]
            spoken = ids[:-1] if ids[-1] == EOS else ids
            assert LM.tokenizer.decode(spoken, skip_special_tokens=True) == turn.action
    found = domain.score(rows, [LogProb()])[LogProb()]
    recorded = torch.cat([row.behaviour_logp_T for row in rows])  # type: ignore[misc]
    assert float((found - recorded).abs().max()) < 1e-4


def test_a_turn_without_its_end_gets_one_that_is_no_step() -> None:
    """Cut off by max_new_tokens, a turn is closed by the template's end of turn, outside of the spans."""
    rows = [row for row in played(max_new_tokens=1) if len(row.trajectory.spans) > 1]
    cut = [row for row in rows if row.trajectory.ids[0] != EOS]
    assert cut
    for row in cut:
        assert row.trajectory.spans[0] == (0, 1)
        assert row.trajectory.ids[1] == EOS
    between = Between(LM)
    assert between(EOS, "+") == between(22, "+")[1:]
    assert LM.tokenizer.decode(between(22, "+")) == "</s><u>+<a>"


def test_what_was_sampled_is_never_encoded_again() -> None:
    """Two ids that decode to the text of one: encoding the text again would give another sequence (pitfall 44)."""
    lm = load_model("smollm2-135m")
    whole = lm.tokenizer.encode("Done", add_special_tokens=False)
    pieces = [lm.tokenizer.encode(c, add_special_tokens=False)[0] for c in "Done"]
    assert lm.tokenizer.decode(pieces) == "Done"
    assert len(whole) < len(pieces)
    game = turns._Game(TASK.world(prompts(1)[0]), (1,), (0,))
    game.act((*pieces, lm.eos_ids[0]), torch.zeros(5), "Done")
    assert game.ids == [*pieces, lm.eos_ids[0]]
    tail = lm.tokenizer.decode(Between(lm)(lm.eos_ids[0], "Not yet."))
    assert tail == "\n<|im_start|>user\nNot yet.<|im_end|>\n<|im_start|>assistant\n"


# --- keyed draws ------------------------------------------------------------------------------------------------------
def test_the_first_turn_is_the_single_turn_sampler_bit_for_bit() -> None:
    asked = prompts(2)
    contexts = [tuple(LM.render(p.content)) for p in asked]
    spec, keys = Sampling(max_new_tokens=4), [(5, 0), (5, 1)]
    worlds = [partial(TASK.world, p) for p in asked]
    games = play(LM, contexts, worlds, group_size=3, sampling=spec, keys=keys, max_turns=1)
    alone = sample(LM, contexts, group_size=3, sampling=spec, keys=keys)
    for one, other in zip(chain(*games), chain(*alone), strict=True):
        assert one.ids == other.ids
        assert torch.equal(one.logp_T, other.logp_T)
        assert one.finish == "turns"


def test_batching_and_order_do_not_change_a_draw() -> None:
    asked = prompts(4)
    contexts = [tuple(LM.render(p.content)) for p in asked]
    spec, keys = Sampling(max_new_tokens=4, temperature=1.5), [(9, i) for i in range(4)]
    worlds = [partial(TASK.world, p) for p in asked]
    one, other = (
        play(LM, contexts, worlds, group_size=2, sampling=spec, keys=keys, max_turns=5, max_batch=size)
        for size in (3, 64)
    )
    back = play(LM, contexts[::-1], worlds[::-1], group_size=2, sampling=spec, keys=keys[::-1], max_turns=5)[::-1]
    ids = [[game.ids for group in games for game in group] for games in (one, other, back)]
    assert ids[0] == ids[1] == ids[2]


def test_every_turn_of_every_sample_has_a_key_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Same key, same uniforms: a policy asked twice in the same words would answer in the same words."""
    used: list[tuple[int, ...]] = []

    def recording(*args: Any, **given: Any) -> Any:
        used.extend((*key, g) for key in given["keys"] for g in range(given["group_size"]))
        return sample(*args, **given)

    monkeypatch.setattr(turns, "sample", recording)
    rows = played()
    assert len(used) == len(set(used)) == sum(len(row.trajectory.spans) for row in rows)
    assert {row.key for row in rows} == set(used[: len(rows)])


# --- limits -----------------------------------------------------------------------------------------------------------
def test_limits_on_turns_and_on_tokens_of_a_turn() -> None:
    for row in played(max_turns=2, max_new_tokens=3):
        assert len(row.trajectory.spans) <= 2
        assert all(high - low <= 3 for low, high in row.trajectory.spans)
        assert row.finish in ("turns", "stop")
        assert row.reward in (0.0, 1.0)


def test_an_episode_ends_when_the_context_has_no_room_for_another_turn() -> None:
    short = replace(LM, context=len(LM.render(prompts(1)[0].content)) + 12)
    _, config = settings("rft", {"max_new_tokens": 4, "group_size": 3})
    domain = TextDomain(short, TASK, config)  # type: ignore[arg-type]
    domain.begin_step(0)
    rows = flat(domain.rollout(prompts(1)))
    assert {row.finish for row in rows} == {"length"}
    for row in rows:
        assert len(row.context) + len(row.trajectory.ids) <= short.context
    far = domain.teacher(TeacherWeights("live"), rows, "with_solution", [Evidence(solution="b6")] * 3)
    whole = domain.teacher(TeacherWeights("live"), rows, "plain", [Evidence()] * 3)
    assert all(context is not None for context in whole.contexts)
    assert None in far.contexts, "with the evidence the episode no longer fits: masked and counted"
    assert domain.omitted["with_solution"] == far.contexts.count(None)


def test_a_malformed_action_is_answered_and_costs_a_turn() -> None:
    game = script(LM, (1,), TASK.world(prompts(1)[0]), ["nonsense", *(prompts(1)[0].solution or "").split("\n")])
    assert game is not None
    assert [turn.malformed for turn in game.trajectory.turns] == [True, False, False, False]
    assert game.trajectory.turns[0].observation == "?"
    assert game.verdict.reward == 1.0
    assert not game.verdict.format_ok


# --- teachers, rows by turn, written episodes -----------------------------------------------------------------------
def test_skill_sd_check_7_the_same_context_gives_the_same_log_probs_at_every_turn() -> None:
    domain = domain_of()
    rows = flat(domain.rollout(prompts(2)))
    same = domain.teacher(TeacherWeights("live"), rows, "plain", [Evidence()] * len(rows))
    shown = domain.teacher(
        TeacherWeights("live"), rows, "with_solution", [Evidence(solution=r.prompt.solution) for r in rows]
    )
    found = domain.score(rows, [LogProb(), TeacherLogProb(same), TeacherLogProb(shown)])
    torch.testing.assert_close(found[TeacherLogProb(same)], found[LogProb()], rtol=1e-5, atol=1e-5)
    assert float((found[TeacherLogProb(shown)] - found[LogProb()]).abs().max()) > 0.1
    off = Teacher(TeacherWeights("live"), tuple(context[:-1] for context in same.contexts))
    moved = domain.score(rows, [TeacherLogProb(off)])[TeacherLogProb(off)]
    assert float((moved - found[LogProb()]).abs().max()) > 0.1, "one position off is another distribution"


def test_rows_by_turn_have_the_same_steps_and_the_same_gradient() -> None:
    domain = domain_of()
    rows = flat(domain.rollout(prompts(2)))
    apart = [turn for row in rows for turn in by_turn(row)]
    assert [row.behaviour_logp_T.tolist() for row in rows] == [
        [logp for turn in by_turn(row) for logp in turn.behaviour_logp_T.tolist()] for row in rows
    ]
    assert by_turn(rows[0])[1].trajectory.after.trajectory.ids == by_turn(rows[0])[0].trajectory.ids
    whole, split = gradient(domain, rows), gradient(domain, apart)
    assert float(whole.norm()) > 0
    torch.testing.assert_close(whole, split, rtol=1e-4, atol=1e-6)


def gradient(domain: TextDomain, rows: list[Episode]) -> torch.Tensor:
    parameters = domain.players["student"].parameters
    for p in parameters.values():
        p.grad = None
    accumulate(Signal(rows, [Likelihood()]), domain, Tally())
    return torch.cat([p.grad.flatten() for p in parameters.values() if p.grad is not None])


def test_an_experts_actions_are_played_and_its_turns_are_the_steps() -> None:
    domain = domain_of()
    prompt = prompts(1)[0]
    episode = domain.written(prompt, prompt.solution)
    assert episode is not None
    assert episode.reward == 1.0
    assert episode.behaviour_logp_T is None
    assert episode.steps == 9, "two characters and an end for each of three calls"
    assert LM.tokenizer.decode(episode.trajectory.ids).count("<u>+<a>") == 2


# --- templates --------------------------------------------------------------------------------------------------------
class Rewriting:
    """A tokenizer whose template drops what was thought before the last user turn."""

    def __init__(self, change: Any) -> None:
        self.change = change

    def apply_chat_template(self, chat: Any, **_: Any) -> str:
        parts = []
        for at, message in enumerate(chat):
            text = message["content"]
            old = message["role"] == "assistant" and at < len(chat) - 1
            parts.append(f"<{message['role']}>{self.change(text) if old else text}<end>")
        return "".join(parts) + "<assistant>"


def test_a_template_that_rewrites_history_is_detected() -> None:
    assert rewritten(LM.tokenizer) == []
    assert rewritten(load_model("smollm2-135m").tokenizer) == []
    assert rewritten(Rewriting(lambda text: text)) == []
    thinking = Rewriting(lambda text: text.rpartition("</think>\n\n")[2])
    assert rewritten(thinking) == ["what was thought in earlier turns"]
    assert rewritten(Rewriting(str.strip)) == ["white space around earlier answers"]
    with pytest.raises(UserError, match="what was thought in earlier turns when a chat goes on") as caught:
        turns.check_template("thinker", thinking, "refuse")
    assert "history=keep" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert turns.check_template("thinker", thinking, "keep")[0].endswith("episodes of several turns keep it")


def test_a_rollout_refuses_such_a_template(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "rewritten", lambda tokenizer: ["what was thought in earlier turns"])
    with pytest.raises(UserError, match="rewrites what was thought"):
        domain_of().rollout(prompts(1))
    assert domain_of(history="keep").rollout(prompts(1))


# --- evaluation -------------------------------------------------------------------------------------------------------
def test_evaluation_plays_to_the_end_and_says_how() -> None:
    result = domain_of(eval_prompts=6, eval_samples=2).evaluate("before")
    assert {"completion", "turns", "malformed", "utility", "avg_at_k"} <= set(result)
    assert 1 <= result["turns"] <= 5
    assert result == domain_of(eval_prompts=6, eval_samples=2).evaluate("after")


def test_a_run_in_a_world_goes_through_the_loop(tmp_path: Any) -> None:
    from redistill.build import prepare

    given = {"task": "tools:steps=3,levels=4", "steps": 2, "prompts_per_step": 2, "group_size": 2, "max_new_tokens": 4,
             "eval_prompts": 4, "save_model": "false"}  # fmt: skip
    run = prepare("grpo", given, out=tmp_path / "run", report=lambda event, facts: None)
    assert run.go(False)["steps"] == 2
    run.close()
    assert isinstance(load_task("tools:steps=3"), Tools)
