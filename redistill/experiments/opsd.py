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

SMOLLM2 = {
    "model": "smollm2-135m", "task": "chain_sum:min_terms=2,max_terms=3,min_digits=1,max_digits=1", "dtype": "bfloat16",
    "steps": 12, "prompts_per_step": 8, "group_size": 4, "learning_rate": 2e-5, "weight_decay": 0.0, "lora_rank": 0,
    "warm_start_steps": 6, "warm_start_in_context": 1, "warm_start_learning_rate": 2e-5,
    "max_new_tokens": 36, "temperature": 0.7, "top_p": 1.0, "top_k": 0, "eval_prompts": 100, "eval_samples": 2,
    "utility": "false", "save_model": "false", "save_every": 1000,
}  # fmt: skip
"""The warm start trains on prompts that show their solution and on no others: it teaches the model to use what it is shown. What
it then answers without the solution is for the method to teach. The sampling temperature is below 1 because half of this model's
samples at 1 are not answers at all."""
GRPO_TOKEN = {"normaliser": "token", "std": "none", "clip_high": 0.28}

OPSD_SMOLLM2 = Experiment(
    slug="opsd",
    claim="after a warm start that shows every solution, OPSD lifts the held-out greedy accuracy of SmolLM2-135M-Instruct without one",
    metric="accuracy",
    base=SMOLLM2,
    arms={
        "opsd": Arm("opsd", {"clip": "none", "loss_temperature": 1.0}),
        "opsd wrong context": Arm("opsd", {"clip": "none", "loss_temperature": 1.0, "context": "wrong"}),
        "sft": Arm("sft"),
        "grpo": Arm("grpo", GRPO_TOKEN),
    },
    compare=("opsd", "warm start"),
    controls={
        "own solution against another prompt's": ("opsd", "opsd wrong context"),
        "opsd against sft on the same prompts' solutions": ("opsd", "sft"),
        "opsd against grpo at equal rollouts": ("opsd", "grpo"),
        "grpo against the warm start": ("grpo", "warm start"),
        "the warm start against the start": ("warm start", "start"),
    },
    grid={},
    budget="6 warm-start steps of 8 prompts, then 12 steps of 8 prompts with 4 rollouts each (sft: one solution each) for each arm; one rate for all",
    quick={"steps": 1, "warm_start_steps": 1, "eval_prompts": 10, "eval_samples": 0},
)  # fmt: skip
