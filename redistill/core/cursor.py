"""Where a run is: what of it is counted, and which checkpoints were the best."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from redistill.core.state import Piece
from redistill.errors import UserError


@dataclass
class Cursor:
    """Where the run is: the step, the stage and the step at which it began, the prompts used, what was spent, the evaluations
    so far, whether the run ended before its steps (its method or its budget said so: more are not wanted), how many steps in
    a row had no gradient, and what was warned of once."""

    step: int = 0
    stage: int = 0
    stage_began: int = 0
    prompts: int = 0
    evaluations: dict[str, Any] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)
    done: bool = False
    idle: int = 0
    told: list[str] = field(default_factory=list)

    def best(self, count: int) -> list[int]:
        """Steps of the `count` best evaluations by their main number (higher is better; of equals the earlier)."""
        value: dict[int, float] = {}
        for found in self.evaluations.values():
            number = float(found[found["metric"]])
            if not math.isnan(number):
                value[found["step"]] = number
        return sorted(value, key=lambda step: (-value[step], step))[:count]

    def check(self, steps: int, stages: int, path: Path) -> None:
        """Refuse to go on with a run of `stages` stages that is asked for fewer steps in the last one than it has done."""
        in_main, finished = self.step - self.stage_began, self.stage == stages
        if self.stage > stages:
            raise UserError(f"the run in {path} is in stage {self.stage + 1}, this one has {stages}")
        if self.stage >= stages - 1 and steps < in_main + (not finished):
            raise UserError(f"steps={steps} is no more than the {in_main} steps that the run in {path} has done")

    @classmethod
    def check_saved(cls, parts: Mapping[str, Any], steps: int, stages: int, path: Path) -> None:
        """The same for a checkpoint's facts, before anything of it is taken over."""
        saved = cls()
        with contextlib.suppress(ValueError):  # counters that no run has are told when they are restored
            saved.restore(Piece(facts=parts["cursor"]))
            saved.check(steps, stages, path)

    def reopen(self, steps: int, stages: int) -> None:
        """Go on with a finished run that is now asked for more steps."""
        if self.stage == stages and not self.done and steps > self.step - self.stage_began:
            self.stage -= 1
            self.evaluations.pop("after", None)

    def state(self) -> Piece:
        """All of it."""
        return Piece(facts=asdict(self))

    def restore(self, piece: Piece) -> None:
        """Load it. ValueError for counters that no run has."""
        counts = [piece.facts[name] for name in ("step", "stage", "stage_began", "prompts", "idle")]
        if any(type(count) is not int or count < 0 for count in counts):
            raise ValueError(f"{counts} are not whole numbers from 0 on")
        for name, value in piece.facts.items():
            setattr(self, name, value)
