"""Held-out evaluation of a language model: greedy accuracy with its interval, avg@k and pass@k, teacher utility."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from redistill.core.task import Prompt, Task, Verdict, checked_verdict, judged
from redistill.errors import UserError
from redistill.evaluation.calibration import reliability, stated_confidence
from redistill.evaluation.intervals import pass_at_k, wilson
from redistill.tasks.confidence import Confident
from redistill.tasks.worlds import WorldTask
from redistill.text import detail
from redistill.text.models import LanguageModel
from redistill.text.sampling import Sampled, Sampling, sample
from redistill.text.settings import Settings
from redistill.text.turns import Played, check_template, play
from redistill.text.views import VIEWS, WORDINGS, Evidence, view_of


def evaluate(lm: LanguageModel, task: Task, config: Settings, detailed: bool = False) -> dict[str, Any]:
    """Accuracy on the task's held-out prompts.

    Returns `metric` (the main one's name), `accuracy`, `low`, `high` (Wilson, 95%), `outcomes` (a 0/1 per prompt, for paired comparisons), `length`,
    `truncated`; with eval_samples k also `avg_at_k` and `pass_at_k`; for a task that asks for a confidence what
    `stated_confidence` says of the greedy answers, and of the samples (`sampled_...`: greedy answers are right more often than
    the samples whose success a confidence is trained to state); with `utility`, where prompts have solutions,
    `accuracy_in_context`, `accuracy_wrong_context` (another prompt's solution in view) and `utility`, their gain over plain.
    `detailed` adds what text/detail.py says.
    """
    prompts = list(task.held_out(config.eval_prompts))
    if not prompts:
        raise UserError(f"task {task.name!r} has no held-out prompts to evaluate on")
    greedy = Sampling(temperature=0.0, max_new_tokens=config.max_new_tokens)
    answers = answer(lm, task, config, prompts, [Evidence()] * len(prompts), greedy, 1)
    outcomes = correct(task, [(prompt, group[0]) for prompt, group in zip(prompts, answers)])
    share = wilson(sum(outcomes), len(outcomes))
    result: dict[str, Any] = {
        "metric": "accuracy", "accuracy": share.estimate, "low": share.low, "high": share.high, "prompts": len(prompts), "outcomes": outcomes,
        "length": sum(len(group[0].logp_T) for group in answers) / len(answers),
        "truncated": sum(group[0].finish == "length" for group in answers) / len(answers),
    }  # fmt: skip
    result |= _by_domain(prompts, outcomes)
    if isinstance(task, WorldTask):
        result |= _turns(answers)
    result |= _confidence(task, prompts, answers, detailed)
    if detailed:
        result |= detail.likelihood([group[0] for group in answers], outcomes)
    if config.eval_samples:
        result |= _sampled(lm, task, config, prompts, detailed)
    if config.utility and all(prompt.solution for prompt in prompts):
        own = [Evidence(solution=prompt.solution) for prompt in prompts]
        for name, evidence in (("in_context", own), ("wrong_context", [*own[1:], own[0]])):
            groups = answer(lm, task, config, prompts, evidence, greedy, 1)
            right = correct(task, [(prompt, group[0]) for prompt, group in zip(prompts, groups)])
            result[f"accuracy_{name}"] = sum(right) / len(right)
        result["utility"] = result["accuracy_in_context"] - result["accuracy"]
    return result


def _confidence(
    task: Task, prompts: Sequence[Prompt], answers: Sequence[Sequence[Any]], detailed: bool = False
) -> dict[str, Any]:
    """How well the stated confidences fit, for a task that asks for one; an answer that states none is left out and
    counted. `calibration` is (1 - ece) times the share of answers that state one: silence is not calibrated."""
    if not isinstance(task, Confident):
        return {}
    verdicts = [task.verify(prompt, one.text) for prompt, group in zip(prompts, answers) for one in group]
    stated = [(v.confidence, v.reward >= task.reward_range[1]) for v in verdicts if v.confidence is not None]
    found: dict[str, Any] = {"states_none": 1.0 - len(stated) / len(verdicts)}
    if stated:
        confidence, right = (np.asarray(column) for column in zip(*stated))
        found |= stated_confidence(confidence, right)
        found |= {"reliability_stated": reliability(confidence, right)} if detailed else {}
    return found | {"calibration": (1.0 - found["states_none"]) * (1.0 - found.get("ece", 1.0))}


def _by_domain(prompts: Sequence[Prompt], outcomes: Sequence[int]) -> dict[str, float]:
    """Accuracy in each domain where prompts carry tags, and the worst of them."""
    tags = [prompt.data.get("domain") for prompt in prompts]
    if None in tags:
        return {}
    found = {}
    for tag in sorted(set(map(str, tags))):
        right = [outcome for outcome, own in zip(outcomes, tags) if own == tag]
        found[f"accuracy_{tag}"] = sum(right) / len(right)
    return {**found, "accuracy_min": min(found.values())}


def _turns(answers: Sequence[Sequence[Any]]) -> dict[str, float]:
    """Of episodes played in turns: mean reward, turns taken, and the share of turns that were malformed."""
    played = [group[0] for group in answers]
    turns = [turn for one in played for turn in one.trajectory.turns]
    return {
        "completion": sum(one.verdict.reward for one in played) / len(played), "turns": len(turns) / len(played),
        "malformed": sum(turn.malformed for turn in turns) / len(turns),
    }  # fmt: skip


def verdicts(task: Task, sampled: Sequence[tuple[Prompt, Sampled | Played]]) -> list[Verdict]:
    """Checked verdicts on answers to prompts; those of played episodes are their own."""
    others = iter(judged(task, [(prompt, one.text) for prompt, one in sampled if not isinstance(one, Played)]))
    return [
        checked_verdict(task, prompt, one.verdict) if isinstance(one, Played) else next(others)
        for prompt, one in sampled
    ]


def correct(task: Task, sampled: Sequence[tuple[Prompt, Sampled | Played]]) -> list[int]:
    """1 for each answer that earns the task's full reward, else 0."""
    return [int(verdict.reward >= task.reward_range[1]) for verdict in verdicts(task, sampled)]


def _sampled(
    lm: LanguageModel, task: Task, config: Settings, prompts: Sequence[Prompt], detailed: bool
) -> dict[str, Any]:
    k = config.eval_samples
    spec = Sampling(temperature=config.eval_temperature, max_new_tokens=config.max_new_tokens)
    groups = answer(lm, task, config, prompts, [Evidence()] * len(prompts), spec, k)
    flat = iter(correct(task, [(prompt, one) for prompt, group in zip(prompts, groups) for one in group]))
    marks = [[next(flat) for _ in group] for group in groups]
    right = [sum(row) for row in marks]
    halves = [[sum(row[: k // 2]), sum(row[k // 2 : 2 * (k // 2)])] for row in marks]
    solved = [pass_at_k(count, k, k) for count in right]
    stated: dict[str, Any] = {f"sampled_{name}": value for name, value in _confidence(task, prompts, groups).items()}
    stated |= detail.samples(groups, marks) if detailed else {}
    return {
        "avg_at_k": sum(right) / (k * len(right)),
        "pass_at_k": sum(solved) / len(solved),
        "k": k,
        "counts": halves,
        **stated,
    }


def answer(
    lm: LanguageModel, task: Task, config: Settings, prompts: Sequence[Prompt], seen: Sequence[Evidence],
    sampling: Sampling, size: int,
) -> Sequence[Sequence[Sampled | Played]]:  # fmt: skip
    """Sample answers to prompts, shown the solution where the evidence has one. Draws are keyed by the prompt's content,
    so they are the same before and after training."""
    wording = WORDINGS[task.wording]
    contexts = []
    for prompt, evidence in zip(prompts, seen):
        view = view_of(evidence)
        messages = VIEWS[view](prompt.content, evidence, wording)
        assert messages is not None
        contexts.append(tuple(lm.render(messages)))
    longest = max(map(len, contexts))
    if longest + sampling.max_new_tokens > lm.context:
        raise UserError(
            f"a held-out prompt has {longest} tokens, which with max_new_tokens={sampling.max_new_tokens} is more than the "
            f"model's context of {lm.context}"
        )
    keys = [(int(prompt.uid[:12], 16) if _is_hex(prompt.uid) else i,) for i, prompt in enumerate(prompts)]
    if isinstance(task, WorldTask):
        check_template(lm.name, lm.tokenizer, config.history)
        worlds = [partial(task.world, prompt) for prompt in prompts]
        return play(
            lm, contexts, worlds, group_size=size, sampling=sampling, keys=keys, max_turns=config.max_turns,
            max_batch=config.sample_batch,
        )  # fmt: skip
    return sample(lm, contexts, group_size=size, sampling=sampling, keys=keys, max_batch=config.sample_batch)


def _is_hex(text: str) -> bool:
    return len(text) >= 12 and all(c in "0123456789abcdef" for c in text)
