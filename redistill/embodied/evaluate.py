"""Evaluation of a policy: how often it succeeds from a fixed list of held-out starts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redistill.core.noise import normal
from redistill.core.task import Prompt
from redistill.embodied.rollout import Act, play
from redistill.embodied.tasks import ControlTask
from redistill.embodied.teachers import Expert, Proposer
from redistill.evaluation.intervals import t_interval, wilson


def evaluate(task: ControlTask, prompts: Sequence[Prompt], act: Act, simulators: int) -> dict[str, Any]:
    """`success`, a share with Wilson's 95% `low` and `high` and 0/1 `outcomes`; `length`, the mean number of actions until
    an episode succeeded (then it is over), the world ended it or the cap was reached. A task that does not say what a success is
    has `return`, the mean sum of rewards with a t interval."""
    traces = play(task, prompts, act, simulators, until_success=task.succeeds)
    lengths = [len(trace.rewards) for trace in traces]
    common = {"length": sum(lengths) / len(lengths), "prompts": len(traces)}
    if task.succeeds:
        outcomes = [float(trace.success_at is not None) for trace in traces]
        share = wilson(sum(outcomes), len(outcomes))
        facts = {"metric": "success", "success": share.estimate}
    else:
        outcomes = [sum(trace.rewards) for trace in traces]
        share = t_interval(outcomes)
        facts = {"metric": "return", "return": share.estimate}
    return {**facts, "low": share.low, "high": share.high, **common, "outcomes": outcomes}


@lru_cache
def teacher_result(task: ControlTask, options: Expert, count: int, simulators: int) -> float:
    """The teacher's own success (or return) from the first `count` held-out starts, with its noise, keyed."""
    teacher = Proposer(options, task)
    size = task.actions

    def act(seen: NDArray[np.float64], at: Sequence[int], t: int) -> NDArray[np.float64]:
        noise = normal("embodied-teacher-alone", np.asarray(at)[:, None], t, np.arange(size)[None, :]).numpy()
        return teacher.propose(seen, noise[:, None])[:, 0]

    found = evaluate(task, task.held_out(count), act, simulators)
    return float(found[found["metric"]])
