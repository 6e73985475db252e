"""SDPO against GRPO at equal generations (specification: "Working here means", i to iii)."""

from redistill.experiments.base import Arm, Experiment
from redistill.experiments.opsd import GRPO_TOKEN, SMOLLM2

SDPO_POCKET = Experiment(
    slug="sdpo",
    claim="at equal generations SDPO (JSD, EMA 0.05, siblings' solutions and the verifier's feedback) reaches a higher held-out avg@4 than GRPO",
    metric="avg_at_k",
    base={
        "model": "pocket", "task": "sums", "steps": 150, "prompts_per_step": 8, "group_size": 8, "max_new_tokens": 16,
        "eval_prompts": 200, "eval_samples": 4, "eval_every": 50, "save_model": "false", "warmup_steps": 0, "weight_decay": 0.0,
        "save_every": 1000,
    },
    arms={
        "grpo": Arm("grpo", {"normaliser": "token", "std": "none", "clip_high": 0.28}),
        "sdpo": Arm("sdpo", {"feedback": "without_solution"}),
        "sdpo live teacher": Arm("sdpo", {"teacher": "ema(1)"}, tuned_as="sdpo"),
        "sdpo wrong context": Arm("sdpo", {"wrong_context": "true"}, tuned_as="sdpo"),
        "sdpo + grpo": Arm("sdpo", {"grpo_weight": 0.9}),
    },
    compare=("sdpo", "grpo"),
    controls={
        "teacher EMA 0.05 against live (tau = 1)": ("sdpo", "sdpo live teacher"),
        "own context against another prompt's": ("sdpo", "sdpo wrong context"),
        "hybrid (lam 0.9) against grpo": ("sdpo + grpo", "grpo"),
    },
    grid={"learning_rate": [5e-5, 1e-4, 2e-4]},
    budget="150 steps of 64 rollouts for each arm (9,600 generations)",
    quick={"steps": 10, "eval_prompts": 40, "eval_samples": 2, "eval_every": 0},
    tuning={"steps": 60, "eval_every": 0},
)  # fmt: skip

SDPO_SMOLLM2 = Experiment(
    slug="sdpo",
    claim="after the same warm start SDPO (siblings' solutions) reaches a higher held-out greedy accuracy than GRPO on SmolLM2-135M-Instruct",
    metric="accuracy",
    base=SMOLLM2,
    arms={
        "grpo": Arm("grpo", GRPO_TOKEN),
        "sdpo": Arm("sdpo", {"feedback": "never"}),
        "sdpo + grpo": Arm("sdpo", {"feedback": "never", "grpo_weight": 0.5}),
    },
    compare=("sdpo", "grpo"),
    controls={
        "hybrid against grpo": ("sdpo + grpo", "grpo"),
        "sdpo against the warm start": ("sdpo", "warm start"),
        "hybrid against the warm start": ("sdpo + grpo", "warm start"),
    },
    grid={},
    budget="6 warm-start steps of 8 prompts, then 12 steps of 8 prompts with 4 rollouts each for each arm; one rate for all",
    quick={"steps": 1, "warm_start_steps": 1, "eval_prompts": 10, "eval_samples": 0},
)  # fmt: skip
