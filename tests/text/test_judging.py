"""Slow judging runs beside the sampling; what it says does not change."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from redistill.build import settings
from redistill.core.episode import flat
from redistill.core.task import Prompt, Verdict
from redistill.errors import UserError
from redistill.tasks.loading import load_task
from redistill.text.domain import TextDomain
from redistill.text.judging import SLOW, Judge
from redistill.text.models import load_model


class Slow:
    """A task whose verdicts take time, and which remembers who asked."""

    def __init__(self, inner: Any, seconds: float) -> None:
        self.inner, self.seconds = inner, seconds
        self.threads: list[str] = []
        self.broken = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def verify(self, prompt: Prompt, text: str) -> Verdict:
        self.threads.append(threading.current_thread().name)
        if self.broken:
            raise UserError("the judge is out")
        time.sleep(self.seconds)
        return self.inner.verify(prompt, text)


def made(seconds: float) -> tuple[TextDomain, Slow]:
    _, config = settings("grpo", {"task": "sums", "model": "pocket", "group_size": "4", "max_new_tokens": "24"})
    task = Slow(load_task("sums"), seconds)
    return TextDomain(load_model("pocket"), task, config), task


def rewards(domain: TextDomain, task: Slow, step: int) -> list[float]:
    domain.begin_step(step)
    return [row.verdict.reward for row in flat(domain.rollout([task.train(i, 0) for i in range(4)]))]


def test_the_second_rollout_of_a_slow_task_is_judged_beside_the_sampling_with_the_same_verdicts() -> None:
    domain, task = made(0.005)
    first = rewards(domain, task, 0)
    assert set(task.threads) == {"MainThread"}
    task.threads.clear()
    again = rewards(domain, task, 0)
    assert len(task.threads) == 16
    assert all(name.startswith("judge") for name in task.threads)
    assert again == first


def test_only_judging_that_is_slow_beside_the_sampling_leaves_its_thread() -> None:
    judge = Judge(load_task("sums"))
    judge.sampled_in, judge.seconds = 1.0, 0.5 * SLOW
    judge.done()
    with judge.beside([]) as finished:
        assert finished is None
    judge.sampled_in, judge.seconds = 1.0, 2 * SLOW
    judge.done()
    with judge.beside([]) as finished:
        assert finished is not None


def test_an_error_of_the_judge_ends_the_rollout() -> None:
    domain, task = made(0.005)
    rewards(domain, task, 0)
    task.broken = True
    with pytest.raises(UserError, match="the judge is out"):
        rewards(domain, task, 1)


class Together(Slow):
    """A task that judges side by side."""

    def verify_all(self, pairs: Any) -> list[Verdict]:
        self.threads.append(f"all {len(pairs)}")
        return [self.inner.verify(prompt, text) for prompt, text in pairs]


def test_a_task_that_can_is_asked_for_all_verdicts_at_once_with_the_same_answer() -> None:
    domain, task = made(0.0)
    one_by_one = rewards(domain, task, 0)
    together = Together(load_task("sums"), 0.0)
    domain.task, domain.judge = together, Judge(together)
    assert rewards(domain, task, 0) == one_by_one
    assert together.threads == ["all 16"]
    domain.judge.slow = True  # beside the sampling it is asked one by one
    together.threads.clear()
    assert rewards(domain, task, 0) == one_by_one
    assert len(together.threads) == 16
    assert all(name.startswith("judge") for name in together.threads)
