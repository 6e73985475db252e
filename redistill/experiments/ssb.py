"""SSB against RL and fine-tuning at an equal, small number of generations (specification: "Working here means")."""

from redistill.experiments.base import Arm, Experiment

_TRAIN = {"pairs": 128, "gather_steps": 30, "batch": 16, "steps": 24, "prompts_per_step": 16, "group_size": 4}
_ONLINE = {"steps": 22, "prompts_per_step": 8, "group_size": 8}

SSB_POCKET = Experiment(
    slug="ssb",
    claim="at an equal small number of generations SSB (soft targets of the model that saw a right and a wrong attempt) ends at a higher held-out avg@4 than GRPO",
    metric="avg_at_k",
    base={
        "model": "pocket", "task": "sums", "max_new_tokens": 16, "temperature": 1.0, "top_k": 0, "lora_rank": 0, "lora_alpha": "none",
        "eval_prompts": 150, "eval_samples": 4, "save_model": "false", "save_every": 1000, "utility": "false",
    },
    arms={
        "grpo": Arm("grpo", {"normaliser": "token", "std": "none", "clip_high": 0.28, **_ONLINE}),
        "rft": Arm("rft", _ONLINE),
        "ssb": Arm("ssb", _TRAIN),
        "sft on the same replies": Arm("ssb", {"kd_weight": 0.0, "ce_weight": 1.0, **_TRAIN}),
        "ssb wrong context": Arm("ssb", {"wrong_context": "true", **_TRAIN}, tuned_as="ssb"),
    },
    compare=("ssb", "grpo"),
    controls={
        "ssb against rft": ("ssb", "rft"),
        "soft targets against the same replies' likelihood": ("ssb", "sft on the same replies"),
        "ssb against the start": ("ssb", "start"),
        "own context against another prompt's": ("ssb", "ssb wrong context"),
    },
    grid={"learning_rate": [1e-5, 3e-5, 1e-4, 3e-4]},
    budget="about 1,400 generations for each arm: 22 steps of 64 rollouts, or gathering 128 kept solutions from 16 x 4 rollouts a step",
    quick={"eval_prompts": 40, "eval_samples": 2},
)  # fmt: skip

SSB_SMOLLM2 = Experiment(
    slug="ssb",
    claim="the same direction on SmolLM2-135M-Instruct after a light warm start on the boxed format: SSB above RFT at equal generations",
    metric="accuracy",
    base={
        "model": "smollm2-135m", "task": "chain_sum:min_terms=2,max_terms=2,min_digits=1,max_digits=1,answer_format=boxed",
        "max_new_tokens": 64, "temperature": 0.8, "top_k": 0, "lora_rank": 16, "lora_alpha": "none", "learning_rate": 2e-4,
        "warm_start_steps": 4, "warm_start_learning_rate": 2e-4, "eval_prompts": 100, "save_model": "false", "save_every": 1000,
    },
    arms={
        "rft": Arm("rft", {"steps": 20, "prompts_per_step": 8, "group_size": 4}),
        "ssb": Arm("ssb", {"pairs": 64, "gather_steps": 20, "batch": 8, "steps": 24, "prompts_per_step": 8, "group_size": 4}),
    },
    compare=("ssb", "rft"),
    controls={"ssb against the start": ("ssb", "start")},
    grid={},
    budget="20 steps of 32 rollouts for rft; gathering of at most 20 such steps and a robust solution for each mixed question for ssb",
    quick={"eval_prompts": 10},
)  # fmt: skip
