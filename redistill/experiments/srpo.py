"""SRPO against GRPO and SDPO at equal generations, past SDPO's plateau (specification: "Working here means")."""

from redistill.experiments.base import Arm, Experiment

SRPO_POCKET = Experiment(
    slug="srpo",
    claim="at equal generations SRPO (failures with a correct sibling distilled, the rest reinforced) ends at a higher held-out avg@4 than GRPO",
    metric="avg_at_k",
    base={
        "model": "pocket", "task": "sums", "steps": 100, "prompts_per_step": 8, "group_size": 8, "max_new_tokens": 16,
        "eval_prompts": 150, "eval_samples": 4, "eval_every": 50, "save_model": "false", "warmup_steps": 0, "weight_decay": 0.0,
        "save_every": 1000, "utility": "false",
    },
    arms={
        "grpo": Arm("grpo", {"normaliser": "token", "std": "none", "clip_high": 0.28}),
        "sdpo": Arm("sdpo", {"feedback": "never"}),
        "srpo": Arm("srpo", {}),
        "srpo without entropy weighting": Arm("srpo", {"beta": 0.0}, tuned_as="srpo"),
        "advantage mix": Arm("srpo", {"mix": 0.9}, tuned_as="grpo"),
        "srpo wrong context": Arm("srpo", {"wrong_context": "true"}, tuned_as="srpo"),
    },
    compare=("srpo", "grpo"),
    controls={
        "srpo against sdpo": ("srpo", "sdpo"),
        "with against without entropy weighting": ("srpo", "srpo without entropy weighting"),
        "routing against advantage mix (lam 0.9)": ("srpo", "advantage mix"),
        "own context against another prompt's": ("srpo", "srpo wrong context"),
    },
    grid={"learning_rate": [5e-5, 1e-4, 2e-4]},
    budget="100 steps of 64 rollouts for each arm (6,400 generations)",
    quick={"steps": 10, "eval_prompts": 40, "eval_samples": 2, "eval_every": 0},
    tuning={"steps": 40, "eval_every": 0},
)  # fmt: skip
