"""Skill-SD against GRPO and GRPO that acts with the skill, in the tools world (specification: "Working here means")."""

from redistill.experiments.base import Arm, Experiment

LAM = {"skill_weight": 0.1}
"""Where the distillation's gradient is 5 to 20% of GRPO's once there are skills (measured, not tuned on the outcome)."""

SKILL_SD_POCKET = Experiment(
    slug="skill-sd",
    claim="at equal episodes Skill-SD (a skill of the task shown to the re-scoring teacher only) ends at a higher held-out success than GRPO in the tools world",
    metric="avg_at_k",
    base={
        "model": "pocket-turns", "task": "tools:steps=4,slack=1,partial=true,levels=48", "steps": 30, "prompts_per_step": 16,
        "group_size": 4, "max_new_tokens": 4, "max_turns": 16, "eval_prompts": 120, "eval_samples": 4, "eval_every": 0,
        "save_model": "false", "save_every": 1000, "utility": "false",
    },
    arms={
        "grpo": Arm("skill-sd", {"skill_weight": 0.0}),
        "grpo acting with the skill": Arm("skill-sd", {"skill_weight": 0.0, "rollouts": "augmented"}),
        "skill-sd": Arm("skill-sd", LAM),
        "skill-sd frozen teacher": Arm("skill-sd", {**LAM, "teacher": "frozen"}, tuned_as="skill-sd"),
        "skill-sd another task's skill": Arm("skill-sd", {**LAM, "wrong_skill": "true"}, tuned_as="skill-sd"),
    },
    compare=("skill-sd", "grpo"),
    controls={
        "against acting with the skill": ("skill-sd", "grpo acting with the skill"),
        "teacher synchronised against frozen": ("skill-sd", "skill-sd frozen teacher"),
        "own skill against another task's": ("skill-sd", "skill-sd another task's skill"),
    },
    grid={"learning_rate": [1e-4, 3e-4]},
    budget="30 steps of 16 tasks with 4 episodes each (1,920 episodes) for each arm, 48 training tasks met ten times",
    quick={"steps": 3, "eval_prompts": 20, "eval_samples": 2, "eval_every": 0},
    tuning={"steps": 12, "eval_prompts": 60},
)  # fmt: skip
