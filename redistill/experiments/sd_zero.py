"""SD-Zero against fine-tuning on right answers, RL and its own phases (specification: "Working here means")."""

from redistill.experiments.base import Arm, Experiment

_ONLINE = {"steps": 60, "prompts_per_step": 16, "group_size": 4}
_PHASES = {"gather_temperature": 1.0, "srt_batch": 16}
_BOTH = {"gather_steps": 8, "srt_steps": 116, "steps": 28, **_PHASES}
"""Phase 1 reads its traces (about 620; 1,160 in `srt`) three times, as the paper does."""

SD_ZERO_POCKET = Experiment(
    slug="sd-zero",
    claim="at equal generations SD-Zero (revise given right or wrong, then distil the reviser) ends at a higher held-out avg@4 than fine-tuning on right answers",
    metric="avg_at_k",
    base={
        "model": "pocket-self", "task": "sums", "prompts_per_step": 64, "group_size": 1, "max_new_tokens": 32, "eval_prompts": 120,
        "eval_samples": 4, "save_model": "false", "save_every": 1000, "utility": "false", "warmup_steps": 0, "weight_decay": 0.0,
    },
    arms={
        "rft": Arm("rft", _ONLINE),
        "sd-zero": Arm("sd-zero", _BOTH),
        "sd-zero wrong context": Arm(
            "sd-zero", {**_BOTH, "wrong_context": "true"}, tuned_as="sd-zero"
        ),
        "srt": Arm("sd-zero", {"phases": "srt", "gather_steps": 15, "srt_steps": 218, **_PHASES}, tuned_as="sd-zero"),
        "without srt": Arm("sd-zero", {"phases": "distil", "steps": 60, **_PHASES}, tuned_as="sd-zero"),
        "grpo": Arm("grpo", {"normaliser": "token", "std": "none", **_ONLINE}),
        "sd-zero, revision loss alone": Arm("sd-zero", {**_BOTH, "parts": "revision"}, tuned_as="sd-zero"),
        "sd-zero, teacher synced": Arm("sd-zero", {**_BOTH, "teacher": "sync(14)"}, tuned_as="sd-zero"),
    },
    compare=("sd-zero", "rft"),
    controls={
        "sd-zero against grpo": ("sd-zero", "grpo"),
        "self-revision training alone against rft": ("srt", "rft"),
        "both phases against the first": ("sd-zero", "srt"),
        "answers' length: the first phase against both": ("srt:length", "sd-zero:length"),
        "both phases against the second alone": ("sd-zero", "without srt"),
        "both losses of phase 1 against revision alone": ("sd-zero", "sd-zero, revision loss alone"),
        "revision loss alone against rft": ("sd-zero, revision loss alone", "rft"),
        "teacher renewed half-way against frozen": ("sd-zero, teacher synced", "sd-zero"),
        "own context against another prompt's": ("sd-zero", "sd-zero wrong context"),
    },
    grid={"learning_rate": [5e-5, 1e-4, 2e-4]},
    budget="about 3,840 generations for each arm: 60 steps of 64; or 8 x 64 answers with 3 revisions each and 28 steps of 64; or 15 x 64 with revisions",
    quick={"eval_prompts": 40, "eval_samples": 2},
)  # fmt: skip
