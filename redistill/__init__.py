"""Redistill: post-training in which the teacher is often the model itself.

    run = redistill.run("sdpo", task="chain_sum", model="smollm2-135m", steps=20)
    run.metrics, run.evaluations, run.model, run.eval(k=4), run.report()
    redistill.compare("grpo", "sdpo", task="sums", model="pocket", budget="rollouts=2000", out="runs/two")

docs/python.md tells of them all. Importing this package imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redistill.api import Comparison, Finished, compare, evaluate, load, run, show
from redistill.errors import UserError

if TYPE_CHECKING:

    def methods() -> list[dict[str, Any]]:
        """Every method: the rows of `redistill list`."""


__all__ = ["Comparison", "Finished", "UserError", "compare", "evaluate", "load", "methods", "run", "show"]


def __getattr__(name: str) -> Any:
    """`redistill.methods` is the package of the methods, loaded when it is first asked for; it can also be called."""
    if name == "methods":
        from importlib import import_module

        return import_module("redistill.methods")
    raise AttributeError(f"module 'redistill' has no attribute {name!r}")
