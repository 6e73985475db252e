"""Who proposes actions: a task's own script, or a saved policy; made imperfect by noise and by seeing things shifted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from redistill.core.naming import named
from redistill.core.options import option
from redistill.embodied.models import ControlModel, load_model, read_config
from redistill.embodied.tasks import ControlTask, MetaWorld
from redistill.errors import UserError

Array = NDArray[np.float64]
OBJECTS_X = (4, 11, 22, 29)
"""Where a Meta-World observation has the x of its two objects, now and an action ago (the hand is elsewhere)."""


@dataclass(frozen=True)
class Expert:
    """Options of `expert`, the script that comes with a Meta-World task."""

    noise: float = option(0.0, "deviation of the Gaussian noise on each entry of an action", low=0, high=100)
    shift: float = option(
        0.0,
        "what it sees of objects' x is off by this, in metres (a camera that moved); in a gymnasium task, all it sees",
    )


@dataclass(frozen=True)
class SavedPolicy(Expert):
    """Options of `policy`, a saved policy's mean."""

    folder: str = option("", "the folder of a saved policy or run")


@dataclass(frozen=True)
class Nobody:
    """No teacher."""


KINDS: dict[str, type[Any]] = {"expert": Expert, "policy": SavedPolicy, "none": Nobody}


def check_teacher(text: str, task: ControlTask) -> Expert | None:
    """The options of a teacher (None: there is none), everything checked that needs no weights. UserError for a script that
    the task does not have, a folder that is none, or a policy of other sizes."""
    _, options = named(text, "teacher", KINDS)
    if isinstance(options, SavedPolicy):
        if not options.folder:
            raise UserError(f"teacher {text!r} names no folder: write policy:folder=PATH")
        if not Path(options.folder).is_dir():
            raise UserError(f"teacher {text!r}: there is no folder {options.folder!r}")
        read_config(options.folder, task.observations, task.actions, "teacher")
    elif isinstance(options, Expert):
        _script(task)
    return options if isinstance(options, Expert) else None


def _script(task: ControlTask) -> Any:
    """The script of a task."""
    if not isinstance(task.options, MetaWorld):
        raise UserError(f"task {task.name!r} comes with no script to be its expert: write policy:folder=PATH, or none")
    from metaworld.policies import ENV_POLICY_MAP

    if task.name not in ENV_POLICY_MAP:
        raise UserError(f"Meta-World has no script for task {task.name!r}")
    return ENV_POLICY_MAP[task.name]()


class Proposer:
    """A teacher at work. Its noise is given to it, so that whoever asks may key it."""

    def __init__(self, options: Expert, task: ControlTask) -> None:
        self.options, self.task = options, task
        self.model: ControlModel | None = None
        if isinstance(options, SavedPolicy):
            self.model = load_model(
                options.folder,
                observations=task.observations,
                actions=task.actions,
                dtype=torch.float64,
                what="teacher",
            )
        else:
            self.script = _script(task)

    def propose(self, seen_nO: Array, noise_nSD: Array) -> Array:
        """S actions for each of n observations [n, S, D], within [-1, 1]: what it would do, plus its noise."""
        seen_nO = seen_nO.copy()
        at = list(OBJECTS_X) if isinstance(self.task.options, MetaWorld) else slice(None)
        seen_nO[:, at] += self.options.shift
        if self.model is not None:
            with torch.no_grad():
                wanted_nD = self.model.module.mean(torch.from_numpy(seen_nO)).numpy()
        else:
            wanted_nD = np.stack([self.script.get_action(seen) for seen in seen_nO]).astype(np.float64)
        noisy_nSD = np.clip(wanted_nD, -1.0, 1.0)[:, None] + self.options.noise * noise_nSD
        return np.clip(noisy_nSD, -1.0, 1.0)
