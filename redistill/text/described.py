"""What a run's reader should look at first: the texts that student and teachers really read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redistill.core.episode import Episode
from redistill.core.signal import Signal

__all__ = ["described"]


def described(signals: Sequence[Signal], tokenizer: Any) -> str:
    """The views of the first row that some teacher has a context for, and its response."""

    def text(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=False))

    row, teachers = _first_taught(signals)
    if row is None:
        return "no row was trained in this step"
    parts = [f"=== the student reads (trained under {row.trained_under}) ===", text(row.context)]
    for name, context in teachers:
        parts += [f"=== the teacher {name} reads ===", text(context)]
    return "\n".join([*parts, "=== the response ===", text(row.trajectory.ids)])


def _first_taught(signals: Sequence[Signal]) -> tuple[Episode | None, list[tuple[str, Any]]]:
    """The first row that some teacher has a context for (else the first row) and what its teachers read."""
    rows = [(signal, i) for signal in signals for i in range(len(signal.rows))]
    for signal, i in rows:
        teachers = [term.teacher for term in signal.terms if getattr(term, "teacher", None) is not None]  # type: ignore[attr-defined]
        named = [(str(teacher.weights), teacher.contexts[i]) for teacher in teachers if teacher.contexts[i] is not None]
        if named:
            return signal.rows[i], named
    return (rows[0][0].rows[rows[0][1]], []) if rows else (None, [])
