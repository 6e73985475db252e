"""Where a run is: what a checkpoint says of the run itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from redistill.core.state import Piece

__all__ = ["Cursor"]


@dataclass
class Cursor:
    """Where the run is: the step, the stage and the step at which it began, the prompts used, what was spent, the evaluations
    so far, and whether the run ended before its steps (its method or its budget said so: more are not wanted)."""

    step: int = 0
    stage: int = 0
    stage_began: int = 0
    prompts: int = 0
    evaluations: dict[str, Any] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)
    done: bool = False

    def state(self) -> Piece:
        """All of it."""
        return Piece(facts=asdict(self))

    def restore(self, piece: Piece) -> None:
        """Load it."""
        for name, value in piece.facts.items():
            setattr(self, name, value)
