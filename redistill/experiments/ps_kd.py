"""PS-KD against cross-entropy, label smoothing and classical distillation (specification: "Working here means")."""

from redistill.experiments.base import Arm, Experiment

NOISY, CLEAN = "digits:train=500,noise=0.3,augment=1", "digits:train=500,noise=0,augment=1"

FIXED = {
    "ce at 0.05": Arm("ce"),
    "label smoothing at 0.05": Arm("ce", {"label_smoothing": 0.1}),
    "ps-kd at 0.05": Arm("ps-kd"),
    "ps-kd shuffled at 0.05": Arm("ps-kd", {"shuffled": "true"}),
}
"""The specification's own protocol, and the paper's: one learning rate for all, tuned for none (`tuned_as` is the arm itself)."""

PS_KD_DIGITS = Experiment(
    slug="ps-kd",
    claim="with 30% of 500 training labels redrawn, PS-KD (alpha_T 0.8, linear) classifies clean held-out digits better than cross-entropy",
    metric="accuracy",
    base={
        "model": "cnn", "task": NOISY, "steps": 240, "prompts_per_step": 125, "milestones": "30,45", "eval_every": 40,
        "save_model": "false", "save_every": 100000,
    },
    arms={
        "ce": Arm("ce"),
        "label smoothing": Arm("ce", {"label_smoothing": 0.1}),
        "kd": Arm("kd"),
        "ps-kd": Arm("ps-kd"),
        "ps-kd copy": Arm("ps-kd", {"teacher": "sync(4)"}),
        "ps-kd shuffled": Arm("ps-kd", {"shuffled": "true"}, tuned_as="ps-kd"),
        "ce clean": Arm("ce", {"task": CLEAN}),
        "ps-kd clean": Arm("ps-kd", {"task": CLEAN}),
        **{name: Arm(arm.method, {**arm.options, "learning_rate": 0.05}, tuned_as=name) for name, arm in FIXED.items()},
    },
    compare=("ps-kd", "ce"),
    controls={
        "against label smoothing 0.1": ("ps-kd", "label smoothing"),
        "against a trained teacher's predictions (twice the cost)": ("ps-kd", "kd"),
        "own prediction against another image's": ("ps-kd", "ps-kd shuffled"),
        "table against a copy of the last epoch": ("ps-kd", "ps-kd copy"),
        "without label noise": ("ps-kd clean", "ce clean"),
        "at one rate for all, 0.05: against cross-entropy": ("ps-kd at 0.05", "ce at 0.05"),
        "at 0.05: against label smoothing 0.1": ("ps-kd at 0.05", "label smoothing at 0.05"),
        "at 0.05: own prediction against another image's": ("ps-kd at 0.05", "ps-kd shuffled at 0.05"),
    },
    grid={"learning_rate": [0.01, 0.02, 0.03, 0.05, 0.1]},
    budget="60 epochs of 500 images for each arm (240 updates of 125); kd has 60 more for its teacher",
    quick={"steps": 16, "eval_every": 0, "milestones": ""},
)  # fmt: skip

PS_KD_MNIST = Experiment(
    slug="ps-kd",
    claim="the same direction with a residual network on 1,000 MNIST images with 30% of their labels redrawn",
    metric="accuracy",
    base={
        "model": "resnet", "task": "mnist5k:train=1000,noise=0.3,augment=2", "steps": 240, "prompts_per_step": 125,
        "milestones": "15,23", "eval_every": 40, "save_model": "false", "save_every": 100000,
    },
    arms={
        "ce": Arm("ce"),
        "label smoothing": Arm("ce", {"label_smoothing": 0.1}),
        "kd": Arm("kd"),
        "ps-kd": Arm("ps-kd"),
        "ps-kd shuffled": Arm("ps-kd", {"shuffled": "true"}, tuned_as="ps-kd"),
    },
    compare=("ps-kd", "ce"),
    controls={
        "against label smoothing 0.1": ("ps-kd", "label smoothing"),
        "against a trained teacher's predictions (twice the cost)": ("ps-kd", "kd"),
        "own prediction against another image's": ("ps-kd", "ps-kd shuffled"),
    },
    grid={"learning_rate": [0.01, 0.02, 0.03, 0.05, 0.1]},
    budget="30 epochs of 1,000 images for each arm (240 updates of 125); kd has 30 more for its teacher",
    quick={"steps": 16, "eval_every": 0, "milestones": ""},
)  # fmt: skip
