"""What the report shows of a policy through training: one episode from the same held-out start, as curves of positions.

Frames are not rendered: without a graphics processor MuJoCo draws about five a second, which would cost more than the steps
that are trained, and needs system libraries for it. Where hand and object are tells the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from redistill.core.task import Prompt
from redistill.embodied.rollout import Act, Trace, play
from redistill.embodied.tasks import ControlTask, MetaWorld

HAND, OBJECT, GOAL = slice(0, 3), slice(4, 7), slice(36, 39)
"""Where Meta-World's observations of 39 numbers have positions in metres."""
ENTRIES = 4
"""Entries of an observation that are shown of a world whose observations have no known meaning."""


def snapshot(task: ControlTask, prompts: Sequence[Prompt], act: Act) -> dict[str, Any]:
    """JSON values of one episode: `tracks` {name: [[x, y, z] at each time]} (or `entries` {name: [value at each time]}),
    `rewards`, `success_at`."""
    (trace,) = play(task, prompts[:1], act, 1, until_success=task.succeeds)
    ended = None if trace.success_at is None else f"success after {trace.success_at} actions"
    if ended is None:
        ended = "no success" if task.succeeds else f"return {sum(trace.rewards):.4g}"
    return {
        "what": f"One episode from the same held-out start, with the mean action: {ended} of {task.options.cap} at most.",
        "episode": {**positions(task, trace), "rewards": _short(np.array(trace.rewards)), "success_at": trace.success_at},
    }  # fmt: skip


def positions(task: ControlTask, trace: Trace) -> dict[str, Any]:
    """Where hand, object and goal are (Meta-World), else the first entries of what is seen."""
    seen_TO = np.stack(trace.observations)
    if isinstance(task.options, MetaWorld):
        tracks = {"hand": seen_TO[:, HAND], "object": seen_TO[:, OBJECT], "goal": seen_TO[-1:, GOAL]}
        return {"tracks": {name: _short(track) for name, track in tracks.items()}}
    return {"entries": {f"observation {i}": _short(seen_TO[:, i]) for i in range(min(ENTRIES, seen_TO.shape[1]))}}


def _short(values: Any) -> Any:
    return np.round(values, 4).tolist()
