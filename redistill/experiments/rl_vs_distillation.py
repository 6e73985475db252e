"""RL against distillation, accuracy and capability apart (specification: "Working here means")."""

from redistill.evaluation.capability import compared
from redistill.experiments.base import Arm, Experiment

GATHERED = {"steps": 48, "questions": "all"}

RLVD_POCKET = Experiment(
    slug="rl-vs-distillation",
    claim="imitating solutions to questions that the base cannot solve raises capability (pass@64) above GRPO's, which raises accuracy alone; "
    "half the questions are sums of three numbers (pocket's own), half of four (which it never solves)",
    metric="pass_at_k",
    base={
        "model": "pocket", "task": 'mix:first="sums:terms=3",second="sums:terms=4"', "max_new_tokens": 24, "eval_prompts": 80,
        "eval_samples": 64, "sample_batch": 256, "utility": "false", "save_model": "false", "save_every": 100000, "weight_decay": 0.0,
        "warmup_steps": 5, "learning_rate": 1.5e-4, "micro_batch_tokens": 2048,
    },
    arms={
        "rl": Arm("grpo", {"steps": 60, "prompts_per_step": 8, "group_size": 8, "std": "none", "normaliser": "token"}),
        "own answers": Arm("rl-vs-distillation", GATHERED),
        "rl's answers": Arm("rl-vs-distillation", {**GATHERED, "writer": "checkpoint(pocket-adept)"}),
        "reasoning": Arm("rl-vs-distillation", {**GATHERED, "writer": "none", "questions": "solved"}),
        "knowledge": Arm("rl-vs-distillation", {**GATHERED, "writer": "none"}),
    },
    compare=("knowledge", "rl"),
    controls={
        "RL raises accuracy": ("rl:avg_at_k", "start:avg_at_k"),
        "RL on capability": ("rl", "start"),
        "RL on hard questions (success share)": ("rl:change_hard", "start:change_hard"),
        "RL on middling questions": ("rl:change_middle", "start:change_middle"),
        "reasoning alone raises accuracy": ("reasoning:avg_at_k", "start:avg_at_k"),
        "reasoning alone on capability": ("reasoning", "start"),
        "knowledge raises accuracy": ("knowledge:avg_at_k", "start:avg_at_k"),
        "knowledge raises capability": ("knowledge", "start"),
        "RL's answers against the base's own, accuracy": ("rl's answers:avg_at_k", "own answers:avg_at_k"),
    },
    grid={},
    budget="GRPO: 60 steps of 64 samples; distillation: 512 right answers, 48 updates of 32 (3 epochs), the same rate for all",
    quick={"steps": 2, "eval_prompts": 8, "eval_samples": 4},
    derive=compared,
    traces=("avg_at_k",),
)  # fmt: skip
