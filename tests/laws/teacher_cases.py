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
}  # fmt: skip
