"""Checks that several language methods make of a run's settings."""

from __future__ import annotations

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
