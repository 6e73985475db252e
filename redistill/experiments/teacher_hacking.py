"""Teacher hacking: stored answers against fresh ones, under an oracle (specification: "Working here means")."""

from redistill.experiments.base import Arm, Experiment

FRESH = {"fresh": 1.0}

HACKING_POCKET = Experiment(
    slug="teacher-hacking",
    claim="distilled for 68 epochs on 150 answers that the teacher wrote once, a student moves away from the oracle (golden above its "
    "lowest) by more than one that learns on its own fresh answers",
    metric="golden_rise",
    base={
        "model": "pocket-sketch", "task": "sums", "steps": 320, "prompts_per_step": 32, "learning_rate": 1e-3, "warmup_steps": 20,
        "eval_every": 40, "eval_prompts": 100, "prompts": 150, "micro_batch_tokens": 2048, "save_model": "false", "save_every": 100000,
    },
    arms={
        "offline": Arm("teacher-hacking"),
        "online teacher": Arm("teacher-hacking", {**FRESH, "fresh_by": "teacher"}),
        "online student": Arm("teacher-hacking", {**FRESH, "fresh_by": "student"}),
        "offline 30 x 5": Arm("teacher-hacking", {"prompts": 30, "answers": 5}),
        "offline 150 x 4": Arm("teacher-hacking", {"answers": 4}),
    },
    compare=("offline", "online student"),
    controls={
        "golden against the online teacher's": ("offline", "online teacher"),
        "offline: golden rises by more than proxy does (else it is overfitting)": ("offline", "offline:proxy_rise"),
        "online student: golden rises by more than proxy does": ("online student", "online student:proxy_rise"),
        "last golden, offline against online student": ("offline:golden", "online student:golden"),
        "last proxy, offline against online student": ("offline:proxy", "online student:proxy"),
        "a fifth of the prompts with five answers each against one each": ("offline 30 x 5", "offline"),
        "one stored answer against four": ("offline", "offline 150 x 4"),
        "departure from the power law, offline against online student": ("offline:departure", "online student:departure"),
    },
    grid={},
    budget="320 updates of 32 answers for each arm: 68 epochs of 150 stored answers, or 10,240 fresh ones",
    quick={"steps": 12, "eval_every": 4, "eval_prompts": 20, "prompts": 20},
    traces=("proxy", "golden"),
)  # fmt: skip
