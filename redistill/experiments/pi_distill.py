"""pi-Distill against RL where the student almost never succeeds (specification: "Working here means", one turn)."""

from redistill.experiments.base import Arm, Experiment

_HINT = {"privilege": "with_hint", "temperature": 1.0}

PI_DISTILL_POCKET = Experiment(
    slug="pi-distill",
    claim="where the student rarely succeeds and often with a hint (the first step), pi-Distill (alpha 0.5) ends at a higher held-out avg@4 without it than RL",
    metric="avg_at_k",
    base={
        "model": "pocket-self", "task": "sums:terms=4", "steps": 60, "prompts_per_step": 8, "group_size": 8, "max_new_tokens": 24,
        "minibatches": 1, "eval_prompts": 150, "eval_samples": 4, "save_model": "false", "save_every": 1000, "utility": "false",
    },
    arms={
        "rl": Arm("grpo", {"normaliser": "token", "std": "none", "drop_dead_groups": "true"}),
        "pi-distill, alpha 0.5": Arm("pi-distill", {**_HINT, "alpha": 0.5}),
        "pi-distill, alpha 0": Arm("pi-distill", {**_HINT, "alpha": 0.0}, tuned_as="pi-distill, alpha 0.5"),
        "pi-distill, alpha 1": Arm("pi-distill", {**_HINT, "alpha": 1.0}, tuned_as="pi-distill, alpha 0.5"),
        "pi-distill, no KL": Arm("pi-distill", {**_HINT, "beta": 0.0}, tuned_as="pi-distill, alpha 0.5"),
        "opsd": Arm("pi-distill", {**_HINT, "variant": "opsd", "beta": 0.5}),
        "pi-distill wrong context": Arm("pi-distill", {**_HINT, "wrong_context": "true"}, tuned_as="pi-distill, alpha 0.5"),
    },
    compare=("pi-distill, alpha 0.5", "rl"),
    controls={
        "pi-distill against the start": ("pi-distill, alpha 0.5", "start"),
        "opsd against rl": ("opsd", "rl"),
        "pi-distill against opsd": ("pi-distill, alpha 0.5", "opsd"),
        "alpha 0.5 against 0": ("pi-distill, alpha 0.5", "pi-distill, alpha 0"),
        "alpha 0.5 against 1": ("pi-distill, alpha 0.5", "pi-distill, alpha 1"),
        "beta 0.25 against 0": ("pi-distill, alpha 0.5", "pi-distill, no KL"),
        "own context against another prompt's": ("pi-distill, alpha 0.5", "pi-distill wrong context"),
    },
    grid={"learning_rate": [1e-4, 3e-4, 1e-3]},
    budget="60 steps of 64 rollouts for each arm (3,840 generations)",
    quick={"steps": 10, "eval_prompts": 40, "eval_samples": 2},
    tuning={"steps": 30},
)  # fmt: skip
