"""pi-Distill against RL where episodes are played in turns and plain play hardly ever succeeds (specification: "Working here means")."""

from redistill.experiments.base import Arm, Experiment

PI = {"privilege": "with_solution", "temperature": 1.0, "minibatches": 1}

PI_DISTILL_TURNS = Experiment(
    slug="pi-distill",
    claim="where samples hardly do an order (1%) and do it with the calls in view, pi-Distill (alpha 0.5) ends at a higher held-out avg@4 without them than RL",
    metric="avg_at_k",
    base={
        "model": "pocket-turns", "task": "tools:steps=5,slack=0", "steps": 30, "prompts_per_step": 16, "group_size": 4,
        "max_new_tokens": 4, "max_turns": 16, "eval_prompts": 120, "eval_samples": 4, "eval_every": 0, "save_model": "false",
        "save_every": 1000, "utility": "false",
    },
    arms={
        "rl": Arm("grpo", {"normaliser": "token", "std": "none", "drop_dead_groups": "true"}),
        "pi-distill": Arm("pi-distill", PI),
        "pi-distill another order's calls": Arm("pi-distill", {**PI, "wrong_context": "true"}, tuned_as="pi-distill"),
    },
    compare=("pi-distill", "rl"),
    controls={
        "pi-distill against the start": ("pi-distill", "start"),
        "own calls against another order's": ("pi-distill", "pi-distill another order's calls"),
    },
    grid={"learning_rate": [1e-4, 3e-4]},
    budget="30 steps of 16 orders with 4 episodes each (1,920 episodes) for each arm",
    quick={"steps": 3, "eval_prompts": 20, "eval_samples": 2},
    tuning={"steps": 12, "eval_prompts": 60},
)  # fmt: skip
