"""RLTF-SD and RLTF-FM against one- and two-turn GRPO at equal generations (specification: "Working here means")."""

from redistill.experiments.base import Arm, Experiment

TWO = {"prompts_per_step": 4, "group_size": 8}
"""A first turn of 32 attempts and about as many second ones."""

RLTF_POCKET = Experiment(
    slug="rltf",
    claim="at equal generations RLTF-SD (first-turn baseline) reaches a higher held-out first-turn avg@4, without critique, than two-turn GRPO",
    metric="avg_at_k",
    base={
        "model": "pocket", "task": "sums", "steps": 60, "max_new_tokens": 16, "eval_prompts": 150, "eval_samples": 4,
        "eval_every": 30, "save_model": "false", "lora_rank": 0, "save_every": 1000, "utility": "false",
    },
    arms={
        "sd": Arm("rltf", TWO),
        "grpo two turns": Arm("rltf", {**TWO, "variant": "none"}),
        "grpo one turn": Arm("rltf", {"horizon": 1, "variant": "none", "prompts_per_step": 7, "group_size": 8}),
        "fm": Arm("rltf", {**TWO, "variant": "fm"}, tuned_as="grpo two turns"),
        "sd second-turn baseline": Arm("rltf", {**TWO, "baseline": "second"}, tuned_as="sd"),
        "sd correctness only": Arm("rltf", {**TWO, "critic": "correctness"}, tuned_as="sd"),
        "sft on second turns": Arm("rltf", {**TWO, "variant": "sft"}, tuned_as="sd"),
    },
    compare=("sd", "grpo two turns"),
    controls={
        "sd against one-turn grpo": ("sd", "grpo one turn"),
        "fm against two-turn grpo": ("fm", "grpo two turns"),
        "first-turn baseline against second": ("sd", "sd second-turn baseline"),
        "rich critique against right or wrong only": ("sd", "sd correctness only"),
        "sd against the likelihood of right second turns": ("sd", "sft on second turns"),
    },
    grid={"learning_rate": [1e-4, 2e-4]},
    budget="60 steps of about 56 generations for each arm: 32 first attempts and a second one for each failure, or 56 first ones",
    quick={"steps": 4, "eval_prompts": 20, "eval_samples": 2, "eval_every": 0},
    tuning={"steps": 30, "eval_every": 0},
)  # fmt: skip
