"""CaOPD against plain on-policy self-distillation (specification: "Working here means").

`pocket-self` states 0.90 to 1.00 whatever it is asked, is right half of the time, and copies a demonstration with its confidence.
The divergence is the released code's forward KL: a student that is sure of the digit "9" gets next to no gradient from the paper's
reverse KL towards another digit, so its stated confidence stays (the arms with `reverse KL`, at rates of their own).
"""

from redistill.experiments.base import Arm, Experiment

_FORWARD = {"divergence": "forward_kl"}

CAOPD_POCKET = Experiment(
    slug="caopd",
    claim="self-distillation from a demonstration leaves the confidences of sampled answers better calibrated (1 - ECE) with CaOPD than without",
    metric="sampled_calibration",
    base={
        "model": "pocket-self", "task": "confident+sums", "steps": 40, "prompts_per_step": 8, "group_size": 8, "max_new_tokens": 20,
        "eval_prompts": 200, "eval_samples": 4, "save_model": "false", "save_every": 1000, "warmup_steps": 0, "weight_decay": 0.0, "utility": "false",
    },
    arms={
        "sdft": Arm("caopd", {"revise": "false", **_FORWARD}),
        "caopd": Arm("caopd", _FORWARD),
        "sdft, reverse KL": Arm("caopd", {"revise": "false"}),
        "caopd, reverse KL": Arm("caopd"),
        "caopd without the note": Arm("caopd", {"note": "false", **_FORWARD}, tuned_as="caopd"),
        "caopd without a verifier": Arm("caopd", {"source": "agreement", **_FORWARD}, tuned_as="caopd"),
        "caopd, K = 1": Arm("caopd", {"group_size": 1, "prompts_per_step": 64, **_FORWARD}, tuned_as="caopd"),
        "caopd wrong context": Arm("caopd", {"wrong_context": "true", **_FORWARD}, tuned_as="caopd"),
    },
    compare=("caopd", "sdft"),
    controls={
        "accuracy: caopd against sdft": ("caopd:avg_at_k", "sdft:avg_at_k"),
        "over-confidence: sdft against caopd": ("sdft:sampled_overconfidence", "caopd:sampled_overconfidence"),
        "surer when right: caopd against sdft": ("caopd:sampled_sure_when_right", "sdft:sampled_sure_when_right"),
        "the same with the reverse KL": ("caopd, reverse KL", "sdft, reverse KL"),
        "forward against reverse KL": ("caopd", "caopd, reverse KL"),
        "caopd against the start": ("caopd", "start"),
        "with against without the note": ("caopd", "caopd without the note"),
        "verified against agreement with the teacher": ("caopd", "caopd without a verifier"),
        "K = 8 against K = 1": ("caopd", "caopd, K = 1"),
        "own context against another prompt's": ("caopd", "caopd wrong context"),
    },
    grid={"learning_rate": [3e-5, 1e-4, 3e-4]},
    budget="40 steps of 64 rollouts for each arm (2,560 generations)",
    quick={"steps": 10, "eval_prompts": 40, "eval_samples": 2},
)  # fmt: skip

CAOPD_SMOLLM2 = Experiment(
    slug="caopd",
    claim="the same on SmolLM2-135M-Instruct with confidences in words, after a warm start that shows every solution with its confidence",
    metric="sampled_calibration",
    base={
        "model": "smollm2-135m", "task": "confident+chain_sum:min_terms=2,max_terms=3,min_digits=1,max_digits=1", "dtype": "bfloat16",
        "steps": 10, "prompts_per_step": 4, "group_size": 8, "learning_rate": 2e-5, "warmup_steps": 0, "weight_decay": 0.0,
        "warm_start_steps": 12, "warm_start_in_context": 1, "warm_start_learning_rate": 2e-5, "max_new_tokens": 48,
        "temperature": 0.7, "eval_temperature": 0.7, "eval_prompts": 60, "eval_samples": 2, "utility": "false", "save_model": "false",
        "save_every": 1000,
    },
    arms={
        "sdft": Arm("caopd", {"revise": "false", **_FORWARD}),
        "caopd": Arm("caopd", _FORWARD),
        "caopd wrong context": Arm("caopd", {"wrong_context": "true", **_FORWARD}),
    },
    compare=("caopd", "sdft"),
    controls={
        "accuracy: caopd against sdft": ("caopd:avg_at_k", "sdft:avg_at_k"),
        "over-confidence: sdft against caopd": ("sdft:sampled_overconfidence", "caopd:sampled_overconfidence"),
        "surer when right: caopd against sdft": ("caopd:sampled_sure_when_right", "sdft:sampled_sure_when_right"),
        "accuracy: sdft against the warm start": ("sdft:avg_at_k", "warm start:avg_at_k"),
        "own context against another prompt's": ("caopd", "caopd wrong context"),
    },
    grid={},
    budget="12 warm-start steps of 4 prompts, then 10 steps of 4 prompts with 8 rollouts each; one rate for all",
    quick={"steps": 1, "warm_start_steps": 1, "eval_prompts": 10},
)  # fmt: skip
