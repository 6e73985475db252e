"""CRD against Flow-GRPO and DiffusionNFT at equal samples (specification: "Working here means")."""

from redistill.experiments.base import Arm, Experiment

COUPLED = "slowing_ema(0.75, 0.005, 0.001, 0)"

CRD_DIGITS = Experiment(
    slug="crd",
    claim="at equal samples (6,400 images) CRD reaches a higher trained reward than Flow-GRPO on 8x8 digits (legible and thick)",
    metric="reward",
    base={
        "model": "flow-digits", "task": "digits-thick", "steps": 50, "prompts_per_step": 8, "group_size": 16,
        "eval_every": 5, "save_every": 100000,
    },
    arms={
        "flow-grpo": Arm("flow-grpo"),
        "nft": Arm("nft"),
        "crd": Arm("crd"),
        "crd no anchor": Arm("crd", {"anchor": 0}, tuned_as="crd"),
        "crd not adaptive": Arm("crd", {"adaptive": "false"}, tuned_as="crd"),
        "crd coupled": Arm("crd", {"sampler": COUPLED}, tuned_as="crd"),
    },
    compare=("crd", "flow-grpo"),
    controls={
        "against DiffusionNFT": ("crd", "nft"),
        "DiffusionNFT against Flow-GRPO": ("nft", "flow-grpo"),
        "with the guided anchor against without": ("crd", "crd no anchor"),
        "adaptive weights against none": ("crd", "crd not adaptive"),
        "own sampler against sampling with the old model": ("crd", "crd coupled"),
    },
    grid={"learning_rate": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]},
    budget="50 steps of 128 images (8 prompts of 16) for each arm",
    quick={"steps": 3, "eval_every": 0, "eval_prompts": 40},
    tuning={"eval_every": 0},
)  # fmt: skip
