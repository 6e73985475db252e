"""OPSD against SFT on the solutions and GRPO (specification: "Working here means")."""

from redistill.experiments.base import Arm, Experiment

OPSD_POCKET = Experiment(
    slug="opsd",
    claim="with one rollout a prompt, OPSD (forward KL, clip 0.05, frozen teacher) lifts held-out avg@4 above the starting model; GRPO spends 8 rollouts a prompt",
    metric="avg_at_k",
    base={
        "model": "pocket", "task": "sums", "steps": 100, "prompts_per_step": 16, "group_size": 1, "max_new_tokens": 16,
        "eval_prompts": 200, "eval_samples": 4, "eval_every": 50, "save_model": "false", "lora_rank": 0, "save_every": 1000,
        "temperature": 1.1,
    },
    arms={
        "opsd": Arm("opsd"),
        "opsd unclipped": Arm("opsd", {"clip": "none"}),
        "opsd sampled token": Arm("opsd", {"support": "sampled", "divergence": "reverse_kl", "clip": "none", "top_p": 1.0, "top_k": 0}),
        "opsd wrong context": Arm("opsd", {"context": "wrong"}, tuned_as="opsd"),
        "sft": Arm("sft"),
        "grpo": Arm("grpo", {"group_size": 8, "top_p": 1.0, "top_k": 0, "temperature": 1.0, "std": "none", "normaliser": "token"}),
    },
    compare=("opsd", "start"),
    controls={
        "own solution against another prompt's": ("opsd", "opsd wrong context"),
        "clip 0.05 against none": ("opsd", "opsd unclipped"),
        "full vocabulary against sampled token": ("opsd", "opsd sampled token"),
        "opsd against sft on the same number of solutions": ("opsd", "sft"),
        "opsd against grpo with 8 times the generations": ("opsd", "grpo"),
    },
    grid={"learning_rate": [5e-5, 1e-4, 3e-4]},
    budget="100 steps of 16 prompts for each arm: 1,600 generations for opsd, 12,800 for grpo, 1,600 solutions for sft",
    quick={"steps": 8, "eval_prompts": 40, "eval_samples": 2, "eval_every": 0},
    tuning={"steps": 50, "eval_every": 0},
)  # fmt: skip

OPSD_SMOLLM2 = Experiment(
    slug="opsd",
    claim="the same direction on SmolLM2-135M-Instruct: OPSD lifts held-out greedy accuracy above the starting model",
    metric="accuracy",
    base={
        "model": "smollm2-135m", "task": "chain_sum:min_terms=2,max_terms=2,min_digits=1,max_digits=1", "steps": 15,
        "prompts_per_step": 32, "group_size": 1, "max_new_tokens": 32, "eval_prompts": 100, "save_model": "false",
        "learning_rate": 2e-5, "lora_rank": 0, "save_every": 1000,
    },
    arms={
        "opsd": Arm("opsd"),
        "opsd wrong context": Arm("opsd", {"context": "wrong"}),
        "sft": Arm("sft"),
    },
    compare=("opsd", "start"),
    controls={"own solution against another prompt's": ("opsd", "opsd wrong context"), "opsd against sft": ("opsd", "sft")},
    grid={},
    budget="15 steps of 32 prompts, one generation each (480 generations)",
    quick={"steps": 1, "eval_prompts": 10},
)  # fmt: skip
