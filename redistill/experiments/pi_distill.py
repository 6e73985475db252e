"""pi-Distill against RL (specification: "Working here means", one turn), on two tasks that the paper's predictors tell apart.

Sums of four with the first step as a hint: samples of `pocket-self` are right 38% of the time, 52% with the hint, and the two
are half a nat an answer apart. Sums of two with the solution in view: samples of `pocket` are right 3% of the time, 38% with
the solution, and 27 nats apart, so that the student's ratio S / T is near 0 on the very tokens that it would have to learn.
"""

from collections.abc import Mapping
from typing import Any

from redistill.experiments.base import Arm, Experiment

_MAIN = "pi-distill, alpha 0.5"


def _arms(privilege: str) -> Mapping[str, Arm]:
    """The arms of both experiments."""

    def arm(tuned_as: str | None = _MAIN, **options: Any) -> Arm:
        return Arm("pi-distill", {"privilege": privilege, "temperature": 1.0, "minibatches": 1, **options}, tuned_as)

    return {
        "rl": Arm("grpo", {"normaliser": "token", "std": "none", "drop_dead_groups": "true"}),
        _MAIN: arm(None, alpha=0.5),
        "opsd": arm(None, variant="opsd", beta=0.5),
        "pi-distill wrong context": arm(wrong_context="true"),
        "pi-distill, alpha 0": arm(alpha=0.0),
        "pi-distill, alpha 1": arm(alpha=1.0),
        "pi-distill, no KL": arm(beta=0.0),
    }


_BASE = {
    "steps": 40, "prompts_per_step": 8, "group_size": 8, "max_new_tokens": 24, "eval_prompts": 150, "eval_samples": 4,
    "save_model": "false", "save_every": 1000, "utility": "false", "warmup_steps": 0, "weight_decay": 0.0,
}  # fmt: skip
_CONTROLS = {
    "pi-distill against the start": (_MAIN, "start"),
    "rl against the start": ("rl", "start"),
    "opsd against rl": ("opsd", "rl"),
    "pi-distill against opsd": (_MAIN, "opsd"),
    "alpha 0.5 against 0": (_MAIN, "pi-distill, alpha 0"),
    "alpha 0.5 against 1": (_MAIN, "pi-distill, alpha 1"),
    "beta 0.25 against 0": (_MAIN, "pi-distill, no KL"),
    "own context against another prompt's": (_MAIN, "pi-distill wrong context"),
}
_BUDGET = "40 steps of 64 rollouts for each arm (2,560 generations)"
_QUICK = {"steps": 10, "eval_prompts": 40, "eval_samples": 2}

PI_DISTILL_HINT = Experiment(
    slug="pi-distill",
    claim="where a hint lifts the success of samples and changes little else, pi-Distill (alpha 0.5) ends at a higher held-out avg@4 without it than RL",
    metric="avg_at_k",
    base={**_BASE, "model": "pocket-self", "task": "sums:terms=4"},
    arms=_arms("with_hint"),
    compare=(_MAIN, "rl"),
    controls=_CONTROLS,
    grid={"learning_rate": [3e-5, 1e-4, 3e-4]},
    budget=_BUDGET,
    quick=_QUICK,
)

PI_DISTILL_RARE = Experiment(
    slug="pi-distill",
    claim="where the student almost never succeeds and the solution in view tells it what, pi-Distill (alpha 0.5) ends at a higher held-out avg@4 than RL",
    metric="avg_at_k",
    base={**_BASE, "model": "pocket", "task": "sums:terms=2"},
    arms=_arms("with_solution"),
    compare=(_MAIN, "rl"),
    controls=_CONTROLS,
    grid={"learning_rate": [1e-4, 3e-4, 1e-3]},
    budget=_BUDGET,
    quick=_QUICK,
)
