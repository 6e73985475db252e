"""Settings of an embodied run. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from redistill.config import RunConfig
from redistill.core.options import option


@dataclass(frozen=True)
class Settings(RunConfig):
    """The common settings with a small control policy's values, and what only embodied runs have."""

    task: str = option(
        "button-press-topdown-v3",
        "a Meta-World task or gymnasium/ID, with options, name:reward=sparse,cap=100,damping=2",
    )
    model: str = option("mlp", "mlp with options, mlp:width=256,depth=2, or a saved policy's or run's folder")
    teacher: str = option(
        "none", "who proposes actions: expert:noise=1,shift=0.05 (the task's script), policy:folder=PATH, or none"
    )
    teacher_least_std: float = option(
        0.1,
        "least deviation of a teacher's Gaussian that is estimated from several proposals (0 where they are alike)",
        above=0,
    )
    steps: int = option(50, "updates of the main stage", low=1)
    prompts_per_step: int = option(32, "starts of episodes in an update", low=1)
    group_size: int = option(1, "episodes from each start", low=1)
    simulators: int = option(8, "simulators that step side by side", low=1, high=1024)

    learning_rate: float = option(3e-4, "Adam learning rate", above=0, high=1e6)
    epsilon: float = option(1e-5, "Adam's epsilon", above=0, high=1)
    grad_clip: float = option(0.5, "global gradient norm bound", above=0)
    epochs: int = option(
        8, "passes over the actions of an update; with more than one, each in a keyed random order", low=1
    )
    minibatches: int = option(32, "gradient steps in a pass", low=1)
    micro_batch: int = option(0, "actions in one forward pass of a gradient step; 0 is all", low=0)
    dtype: str = option("float32", "compute and weight dtype", choices=("float32", "float64"))

    eval_prompts: int = option(50, "held-out starts of an evaluation", low=1, high=1000)
    save_every: int = option(20, "updates between checkpoints", low=1)
    save_model: bool = option(True, "save the trained policy (safetensors and config.json) at the end")
