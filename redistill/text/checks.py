"""Checks that several language methods make of a run's settings."""

from __future__ import annotations

from redistill.core.specs import TeacherWeights
from redistill.errors import UserError
from redistill.text.settings import Settings


def refuse_truncated_sampling(slug: str, config: Settings) -> None:
    """A ratio or a sampled divergence under truncated sampling is biased unless both sides are renormalised on the same
    support (law 8): refused."""
    for key, off in (("top_p", 1.0), ("top_k", 0), ("min_p", 0.0)):
        if getattr(config, key) != off:
            raise UserError(
                f"{key}={getattr(config, key)} truncates the sampling distribution, which biases what {slug} estimates from it: "
                f"set {key}={off:g}"
            )
    if config.temperature == 0:
        raise UserError(f"temperature=0 is greedy and gives {slug} nothing to compare: set temperature=1")


def need_teacher(slug: str, teacher: TeacherWeights | None, view: str = "plain") -> None:
    """A method with an external teacher needs one, and one that is not the student itself."""
    if teacher is None:
        raise UserError(f"{slug} needs a teacher: --set 'teacher=checkpoint(path or model name)'")
    if teacher.name == "stored":
        raise UserError(
            f"teacher=stored has no weights: {slug} needs checkpoint(path), frozen or another model's weights"
        )
    if teacher.name == "live" and view == "plain":
        raise UserError("teacher=live is the student itself: it would teach nothing")


def need_group(slug: str, config: Settings) -> None:
    """Group statistics need two answers of a prompt."""
    if config.group_size < 2:
        raise UserError(f"group_size={config.group_size} gives {slug} no group to compare with: it must be >= 2")
