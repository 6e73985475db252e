"""What each option of the methods of several turns changes; test_method_options.py checks it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

SKILL = {"skill_weight": 0.5}

TURN_CHANGES: dict[str, dict[str, tuple[dict[str, object], dict[str, object]]]] = {
    "rltf": {
        "variant": ({}, {"variant": "fm"}), "critic": ({"variant": "fm"}, {"variant": "fm", "critic": "correctness"}),
        "gamma": ({}, {"gamma": 0.9}), "format_penalty": ({}, {"format_penalty": 0.7}),
        "baseline": ({}, {"baseline": "second"}), "ratio": ({}, {"ratio": "ppo"}), "sd_weight": ({}, {"sd_weight": 1.0}),
        "ramp_steps": ({}, {"ramp_steps": 10}), "mask_below": ({}, {"mask_below": -0.5}),
        "threshold": ({"variant": "sft"}, {"variant": "sft", "threshold": 2.0}),
        "fm_weight": ({"variant": "fm"}, {"variant": "fm", "fm_weight": 1.0}), "normaliser": ({}, {"normaliser": "constant(7)"}),
    },
    "skill-sd": {
        "skill_weight": (SKILL, {**SKILL, "skill_weight": 0.1}), "grpo_weight": (SKILL, {**SKILL, "grpo_weight": 0.0}),
        "teacher": ({**SKILL, "drift": 1}, {**SKILL, "teacher": "live", "drift": 1}), "estimator": (SKILL, {**SKILL, "estimator": "k2"}),
        "ratio": (SKILL, {**SKILL, "ratio": "detached"}), "exploration": (SKILL, {**SKILL, "exploration": 0.0}),
        "wrong_skill": (SKILL, {**SKILL, "wrong_skill": "true"}), "clip_low": (SKILL, {**SKILL, "clip_low": 0.9}),
        "clip_high": (SKILL, {**SKILL, "clip_high": 9.0}), "std": (SKILL, {**SKILL, "std": "none"}),
        "normaliser": (SKILL, {**SKILL, "normaliser": "sequence"}),
    },
}  # fmt: skip

TURN_ELSEWHERE = {"rltf": {"horizon", "layout"}, "skill-sd": {"rollouts", "keep"}}
"""Options that change what is collected or kept, with tests of their own."""


def prepared(b: Any, slug: str, groups: Any) -> Any:
    """The groups as these methods find them: second turns for rltf; skills with statistics for skill-sd."""
    if slug == "skill-sd":
        for prompt in b.next_prompts():
            for text, prior, uses in ((str(prompt.solution), 0.5, 20), (f"{prompt.answer}?", 0.25, 1)):
                b.method.bank.add(prompt.uid, text, prior, 8)
                for _ in range(uses):
                    b.method.bank.credit(prompt.uid, text, 0.5)
    if slug == "rltf":
        groups = b.seconds(groups)
        # one attempt in the wrong format, or the penalty would have nothing to act on
        first = groups[0].episodes[1]
        object.__setattr__(first, "verdict", replace(first.verdict, format_ok=False))
    return groups
