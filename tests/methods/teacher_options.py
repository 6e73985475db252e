"""What each option of the methods with an external teacher changes; test_method_options.py checks it."""

from __future__ import annotations

EXPERT = {"teacher": "checkpoint(pocket-expert)"}
ADEPT = {"teacher": "checkpoint(pocket-adept)"}
KDRL = {**EXPERT, "beta": 0.5}
RLAD = {**EXPERT, "clip_low": 0.9, "clip_high": 9.0}
GOPD = {**EXPERT, "clip": 5.0}
PACED = {**EXPERT, "answers": "student"}
UNEVEN = {**PACED, "rights": [[True, False, False, False], [True, True, False, False], [True, True, True, False]]}
FROZEN = {**PACED, "teacher": "frozen", "drift": 1}
FILTER = {**UNEVEN, "weighting": "filter"}
SCOPE = {
    **EXPERT,
    "temperature": 1.0,
    "rights": [[True, True, False, False], [False, False, True, False], [True, True, True, True]],
}
KEPO = {**EXPERT, "temperature": 1.0, "top_p": 1.0, "malformed": [(0, 1), (1, 2)]}

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
    "paced": {
        "teacher": (PACED, {**PACED, **ADEPT}), "teacher_view": (FROZEN, {**FROZEN, "teacher_view": "with_solution"}),
        "divergence": (PACED, {**PACED, "divergence": "reverse_kl"}), "a": (UNEVEN, {**UNEVEN, "a": 0.0}), "b": (UNEVEN, {**UNEVEN, "b": 0.0}),
        "weighting": (UNEVEN, {**UNEVEN, "weighting": "reversed"}), "keep_above": (FILTER, {**FILTER, "keep_above": 0.3}),
        "keep_below": (FILTER, {**FILTER, "keep_below": 0.6}),
        "threshold": (UNEVEN, {**UNEVEN, "threshold": 0.0, "a": 0.5}), "normaliser": (PACED, {**PACED, "normaliser": "token(rows=weighted)"}),
    },
    "scope": {
        "teacher": (SCOPE, {**SCOPE, **ADEPT}), "temperature_of_weights": (SCOPE, {**SCOPE, "temperature_of_weights": 0.1}),
        "student_weight": (SCOPE, {**SCOPE, "student_weight": "low"}), "teacher_weight": (SCOPE, {**SCOPE, "teacher_weight": "high"}),
        "threshold": (SCOPE, {**SCOPE, "threshold": 0.0}), "imitation": (SCOPE, {**SCOPE, "imitation": 0.1}), "route": (SCOPE, {**SCOPE, "route": "false"}),
        "support": (SCOPE, {**SCOPE, "support": "top_k(3, of=teacher, tail=false)"}), "aggregation": (SCOPE, {**SCOPE, "aggregation": "released"}),
        "clip": (SCOPE, {**SCOPE, "clip": 9.0}), "dual_clip": (SCOPE, {**SCOPE, "dual_clip": 1.01}),
    },
    "kepo": {
        "teacher": (KEPO, {**KEPO, **ADEPT}), "gate": (KEPO, {**KEPO, "gate": "none"}), "format_reward": (KEPO, {**KEPO, "format_reward": 0.0}),
        "divergence": (KEPO, {**KEPO, "divergence": "forward_kl"}), "distillation": (KEPO, {**KEPO, "distillation": 0.1}), "std": (KEPO, {**KEPO, "std": "none"}),
        "rl_kl": ({**KEPO, "drift": 1}, {**KEPO, "drift": 1, "rl_kl": 0.5}), "normaliser": (KEPO, {**KEPO, "normaliser": "token"}),
    },
    "tsd-kd": {
        "teacher": (EXPERT, ADEPT), "divergence": (EXPERT, {**EXPERT, "divergence": "forward_kl"}), "gate": (EXPERT, {**EXPERT, "gate": "false"}),
        "gate_temperature": (EXPERT, {**EXPERT, "gate_temperature": 0.2}), "ranking": (EXPERT, {**EXPERT, "ranking": 2.0}),
        "candidates": (EXPERT, {**EXPERT, "candidates": 3}), "opener": (EXPERT, {**EXPERT, "opener": 0.9}),
        "release_order": (EXPERT, {**EXPERT, "release_order": "true"}), "entropy": (EXPERT, {**EXPERT, "entropy": 0.0}),
        "entropy_share": (EXPERT, {**EXPERT, "entropy_share": 0.9}), "on_policy": (EXPERT, {**EXPERT, "on_policy": 0.0}),
        "normaliser": (EXPERT, {**EXPERT, "normaliser": "token"}),
    },
}  # fmt: skip

TEACHER_ELSEWHERE = {
    "paced": {"answers", "coverage_steps"},
    "kepo": {"trigger", "hinted", "attempts", "hint_view", "hint_share", "writer_view", "threshold"},
}
"""Options that change what is collected, with tests of their own (test_paced.py, test_kepo.py)."""
