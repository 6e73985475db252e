"""What each option of the methods with an external teacher changes; test_method_options.py checks it."""

from __future__ import annotations

EXPERT = {"teacher": "checkpoint(pocket-expert)"}
ADEPT = {"teacher": "checkpoint(pocket-adept)"}
KDRL = {**EXPERT, "beta": 0.5}
RLAD = {**EXPERT, "clip_low": 0.9, "clip_high": 9.0}
GOPD = {**EXPERT, "clip": 5.0}

TEACHER_CHANGES: dict[str, dict[str, tuple[dict[str, object], dict[str, object]]]] = {
    "kdrl": {
        "teacher": (KDRL, {**KDRL, **ADEPT}), "beta": (EXPERT, KDRL), "beta_min": ({**KDRL, "update": 9999}, {**KDRL, "update": 9999, "beta_min": 0.3}),
        "beta_decay": ({**KDRL, "update": 9}, {**KDRL, "update": 9, "beta_decay": 0.05}), "estimator": (KDRL, {**KDRL, "estimator": "k3"}),
        "support": (KDRL, {**KDRL, "support": "top_k(3)"}), "mask": (KDRL, {**KDRL, "mask": "response"}),
        "threshold": ({**KDRL, "mask": "response"}, {**KDRL, "mask": "response", "threshold": 0.0}),
        "fusion": (KDRL, {**KDRL, "fusion": "advantage"}), "reward": (KDRL, {**KDRL, "reward": 0.2}), "switch": (KDRL, {**KDRL, "switch": 3}),
        "std": (KDRL, {**KDRL, "std": "none"}), "clip_low": (KDRL, {**KDRL, "clip_low": 0.9}), "clip_high": (KDRL, {**KDRL, "clip_high": 9.0}),
        "normaliser": (KDRL, {**KDRL, "normaliser": "sequence"}),
    },
    "rlad": {
        "teacher": (RLAD, {**RLAD, **ADEPT}), "alpha": (RLAD, {**RLAD, "alpha": 0.9}), "clamp": (RLAD, {**RLAD, "clamp": 0.1}),
        "clamp_gradient": (RLAD, {**RLAD, "clamp_gradient": "true"}), "std": (RLAD, {**RLAD, "std": "sample"}),
        "clip_low": (EXPERT, {**EXPERT, "clip_low": 0.9}), "clip_high": (EXPERT, {**EXPERT, "clip_high": 9.0}),
        "drop_dead_groups": (RLAD, {**RLAD, "drop_dead_groups": "true"}), "kl": ({**RLAD, "drift": 1}, {**RLAD, "drift": 1, "kl": 0.5}),
        "normaliser": (RLAD, {**RLAD, "normaliser": "token"}),
    },
    "g-opd": {
        "teacher": (GOPD, {**GOPD, **ADEPT}),
        "experts": (GOPD, {"clip": 5.0, "experts": "x=checkpoint(pocket-expert) + y=checkpoint(pocket-adept)", "tags": ["x", "y", "x"]}),
        "teacher_view": ({**GOPD, "teacher": "frozen", "drift": 1}, {**GOPD, "teacher": "frozen", "teacher_view": "with_solution", "drift": 1}),
        "reference": (GOPD, {**GOPD, "reference": "checkpoint(pocket-adept)"}), "scale": (GOPD, {**GOPD, "scale": 0.5}),
        "reward_clip": (GOPD, {**GOPD, "reward_clip": 0.1}), "discount": (GOPD, {**GOPD, "discount": 1.0}), "clip": (GOPD, {**GOPD, "clip": 0.1}),
        "dual_clip": (GOPD, {**GOPD, "dual_clip": 1.01}), "normaliser": (GOPD, {**GOPD, "normaliser": "sequence"}),
    },
}  # fmt: skip
