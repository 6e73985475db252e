"""Points of the methods with an external teacher that the laws are checked at; `lab.CASES` has them too."""

from __future__ import annotations

from typing import Any

EXTERNAL = {"teacher": "checkpoint(other)"}
NEAR = {"teacher": "frozen", "teacher_view": "with_solution"}

TEACHER_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "kdrl": ("kdrl", EXTERNAL),
    "kdrl-response-k3": ("kdrl", {**EXTERNAL, "mask": "response", "estimator": "k3", "std": "none", "beta": 0.5}),
    "kdrl-group-top-k": (
        "kdrl", {**EXTERNAL, "mask": "group", "support": "top_k(5, of=teacher, tail=false)", "normaliser": "sequence", "beta": 0.5},
    ),
    "kdrl-advantage": ("kdrl", {**EXTERNAL, "mask": "response", "fusion": "advantage", "beta": 0.5, "reward": 0.5}),
    "kdrl-distillation": ("kdrl", {**EXTERNAL, "reward": 0.0}),
    "rlad": ("rlad", EXTERNAL),
    "rlad-kept-gradient": (
        "rlad", {**EXTERNAL, "alpha": 0.2, "clamp": 0.5, "clamp_gradient": "true", "kl": 0.1, "drop_dead_groups": "true"},
    ),
    "rlad-open": ("rlad", {**EXTERNAL, "alpha": 0.7, "clamp": "none", "normaliser": "token", "temperature": 0.7}),
    "g-opd": ("g-opd", EXTERNAL),
    "g-opd-exact-clip": ("g-opd", {**EXTERNAL, "discount": 0.9, "reward_clip": 0.5, "dual_clip": "none", "scale": 2.0}),
    "g-opd-experts": (
        "g-opd", {"experts": "a=checkpoint(other) + b=checkpoint(third)", "reference": "checkpoint(other)"},
    ),
    "g-opd-context": ("g-opd", {**NEAR, "scale": 0.5, "normaliser": "sequence"}),
    "paced": ("paced", {**EXTERNAL, "answers": "student"}),
    "paced-reverse-1-2": (
        "paced", {**EXTERNAL, "answers": "student", "divergence": "reverse_kl", "b": 2.0, "normaliser": "token(rows=weighted)"},
    ),
    "paced-self": (
        "paced", {**NEAR, "answers": "student", "divergence": "reverse_kl", "a": 0.0, "b": 0.0, "normaliser": "sequence"},
    ),
    "paced-filter": ("paced", {**EXTERNAL, "answers": "student", "weighting": "filter", "keep_above": 0.3}),
    "scope": ("scope", EXTERNAL),
    "scope-paper": ("scope", {**EXTERNAL, "aggregation": "paper", "temperature_of_weights": 0.5, "temperature": 1.0}),
    "scope-released": (
        "scope", {**EXTERNAL, "aggregation": "released", "student_weight": "low", "teacher_weight": "high", "imitation": 0.5},
    ),
    "scope-full": ("scope", {**EXTERNAL, "support": "full", "teacher_weight": "none"}),
    "scope-unrouted": ("scope", {**EXTERNAL, "route": "false", "aggregation": "paper"}),
    "kepo": ("kepo", {**EXTERNAL, "top_p": 1.0}),
    "kepo-forward-kl": (
        "kepo", {**EXTERNAL, "gate": 1.0, "divergence": "forward_kl", "distillation": 0.3, "rl_kl": 0.1, "std": "none"},
    ),
    "tsd-kd": ("tsd-kd", {**EXTERNAL, "group_size": 4}),
    "tsd-kd-released": (
        "tsd-kd",
        {
            **EXTERNAL, "group_size": 4, "release_order": "true", "entropy_share": 0.9, "normaliser": "token", "opener": 0.4,
            "ranking": 2.0, "candidates": 4, "gate_temperature": 0.3,
        },
    ),
    "tsd-kd-ungated": ("tsd-kd", {**EXTERNAL, "group_size": 4, "gate": "false", "entropy": 0.0, "opener": 1.0}),
}  # fmt: skip
