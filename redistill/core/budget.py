"""What a run may spend, and what it has spent: rollouts, generated tokens, seconds of training. Torch-free.

Rollouts are all answers that were sampled to train on, whoever wrote them and under whatever view; tokens are their steps
(denoising steps, actions in other domains). Seconds are those of training steps: neither evaluations, nor checkpoints, nor
what is recorded for the page of the run.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redistill.errors import UserError, nearest

if TYPE_CHECKING:
    from redistill.core.episode import Group

UNITS = ("rollouts", "tokens", "seconds")
UNBOUNDED = 10**9
"""Updates of a run that only its budget ends."""
PATIENCE = 20
"""Steps in a row that spend nothing after which such a run says that it would never end."""


@dataclass(frozen=True)
class Budget:
    """`rollouts=2000`, `tokens=100000` or `seconds=60`: a run ends after the first step that reaches it."""

    unit: str
    amount: float

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read "unit=amount"; a UserError says what is wrong."""
        unit, _, number = (part.strip() for part in text.partition("="))
        if unit not in UNITS:
            raise UserError(f"budget {text!r} has no unit that is known{nearest(unit, UNITS)} (write rollouts=2000)")
        try:
            amount = float(number)
        except ValueError:
            raise UserError(f"budget {text!r} is not of the form {unit}=NUMBER") from None
        if not (math.isfinite(amount) and amount > 0):
            raise UserError(f"budget {text!r} must be above 0")
        if unit != "seconds" and amount != int(amount):
            raise UserError(f"budget {text!r} must be a whole number of {unit}")
        return cls(unit, amount)

    def __str__(self) -> str:
        return f"{self.unit}={int(self.amount) if self.amount == int(self.amount) else self.amount}"

    def share(self, spent: Mapping[str, float]) -> float:
        """The share of it that has been spent; 1 and more: it is reached."""
        return spent.get(self.unit, 0.0) / self.amount

    def part(self, spent: Mapping[str, float], parts: int) -> int:
        """How many of its `parts` equal parts have been spent."""
        return math.floor(self.share(spent) * parts + 1e-9)


def tally(into: Counter[str], groups: Sequence[Group]) -> None:
    """Add the episodes that were sampled, and their steps."""
    into["rollouts"] += sum(len(group) for group in groups)
    into["tokens"] += sum(episode.steps for group in groups for episode in group)


def training_seconds(record: Mapping[str, float]) -> float:
    """The seconds of a step, of its phases or of its line in the log."""
    return sum(value for key, value in record.items() if key.startswith("seconds_") and key != "seconds_record")


def spend(spent: dict[str, float], generated: Mapping[str, int], seconds: Mapping[str, float]) -> dict[str, float]:
    """Add one step to what a run has spent; what a step's log says of it."""
    for unit in ("rollouts", "tokens"):
        spent[unit] = spent.get(unit, 0) + generated.get(unit, 0)
    spent["seconds"] = round(spent.get("seconds", 0.0) + training_seconds(seconds), 4)
    return {"sampled": float(generated.get("rollouts", 0)), "sampled_tokens": float(generated.get("tokens", 0))}


@dataclass
class Dry:
    """Steps in a row in which a run without an end but its budget came no nearer to it."""

    steps: int = 0

    def watch(self, method: str, budget: Budget | None, generated: Mapping[str, int], steps: int) -> None:
        """Count; a UserError after PATIENCE of them, where the stage has no end of its own (`steps`)."""
        spends = budget is None or budget.unit == "seconds" or generated.get(budget.unit, 0) > 0
        self.steps = 0 if spends else self.steps + 1
        if self.steps >= PATIENCE and steps >= UNBOUNDED:
            raise UserError(
                f"{method} sampled nothing in {PATIENCE} steps in a row, so budget {budget} is never reached: give it "
                "steps=N as well, or a budget in seconds"
            )


class Clock:
    """Seconds of each phase of a step."""

    def __init__(self) -> None:
        self.last = time.monotonic()
        self.seconds: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        """The phase that ends now; of one that comes twice, the sum."""
        now = time.monotonic()
        key = f"seconds_{phase}"
        self.seconds[key] = round(self.seconds.get(key, 0.0) + now - self.last, 4)
        self.last = now
