"""Redistill's steps, measured: the run's own loop (`Run`), one step at a time, with its own log and files."""

from __future__ import annotations

import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from redistill import build
from redistill.core.loop import Run
from redistill.core.runs import RunFolder
from redistill.core.task import Prompt, Verdict, content_uid
from redistill.text import domain, views
from redistill.text.domain import TextDomain
from redistill.text.models import load_model

from benchmarks.port import Port, peak, resident, settings_of, start_peak
from benchmarks.workload import CLOSING, SOLUTION, Workload, fingerprint, questions, reward

WORDING = "benchmark"


def add_wording() -> None:
    """Make the workload's wording known to the language domain, so that both libraries' teachers read the same tokens."""
    plain = views.ENGLISH
    ours = replace(plain, solution=SOLUTION, closing=CLOSING)
    domain.WORDINGS = MappingProxyType({**views.WORDINGS, WORDING: ours})  # type: ignore[attr-defined]


class Sums:
    """The workload as a task of ours."""

    name, wording, reward_range = "benchmark", WORDING, (0.0, 1.0)

    def __init__(self) -> None:
        self.seconds = 0.0

    def train(self, index: int, seed: int) -> Prompt:
        """The chat of that number."""
        chat = questions(1, index)[0]
        return Prompt(uid=content_uid(chat), content=chat)

    def held_out(self, count: int) -> Sequence[Prompt]:
        """Not used: nothing is evaluated."""
        return []

    def verify(self, prompt: Prompt, answer: str) -> Verdict:
        """The workload's reward."""
        began = time.perf_counter()
        verdict = Verdict(reward(answer))
        self.seconds += time.perf_counter() - began
        return verdict


def options(method: str, teacher: str) -> tuple[str, dict[str, Any]]:
    """(slug, options) that say what the peer's settings say."""
    if method == "grpo":
        return "grpo", {"std_epsilon": 1e-4}
    if method.startswith("opd-"):
        kind = {"opd-reverse_kl": "reverse_kl", "opd-jsd": "jsd(0.5)"}[method]
        return "opd", {"teacher": f"checkpoint({teacher})", "divergence": kind}
    return "sdpo", {"feedback": "never", "normaliser": "sequence(rows=all)"}


def build_run(settings: dict[str, Any], work: Workload, task: Sums, folder: Path) -> Run:
    """A run of the method on the workload; everything beside the workload is the library's default."""
    slug, method_options = options(settings["method"], settings.get("teacher", ""))
    given = {
        "model": settings["model"], "dtype": settings["dtype"], "prompts_per_step": work.prompts, "group_size": work.group,
        "max_new_tokens": work.new_tokens, "learning_rate": 1e-6, "warmup_steps": 0, "weight_decay": 0.0,
        "sample_batch": max(64, work.rollouts), **settings.get("run", {}), **method_options,
    }  # fmt: skip
    method, config = build.settings(slug, {key: str(value) for key, value in given.items()})
    lm = load_model(config.model, dtype=config.dtype)  # type: ignore[attr-defined]
    lm.eos_ids = ()  # nothing cuts a rollout short
    home = TextDomain(lm, task, config)  # type: ignore[arg-type]
    home.bank.need(method.teachers())
    stages = build.stages_of(method, config)
    return Run(method, config, task, home, RunFolder(folder), stages, lambda event, facts: None)


ARITHMETIC = (
    ("redistill.text.decoder", "Decoder", ("prefill", "step", "logits")),
    ("redistill.text.generic", "Modules", ("prefill", "step", "logits")),
    ("redistill.text.models", "LanguageModel", ("hidden",)),
    ("redistill.text.models", "Head", ("logits",)),
    ("redistill.text.sampling", None, ("draw",)),
    ("redistill.text.domain", None, ("_hidden", "measure")),
    ("redistill.core.players", "Player", ("step",)),
    ("redistill.core.teachers", "TeacherBank", ("after_step",)),
    ("torch", "Tensor", ("backward",)),
)
"""Where a step computes: the model's forward and backward passes, drawing from its distribution, the objective, the optimiser,
the averaged teacher. Everything else is the framework's overhead: views, packing, bookkeeping, logs, files."""


def watch_arithmetic(timers: Timers) -> None:
    """Time all of ARITHMETIC under one name; what a version does not have is passed over."""
    for module, owner, names in ARITHMETIC:
        home = sys.modules.get(module)
        place = home if owner is None else getattr(home, owner, None)
        for name in names:
            if place is not None and hasattr(place, name):
                timers.watch(place, name, "arithmetic")


class Timers:
    """Seconds spent inside functions of the library, by name; nested calls of one name count once."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.depth: dict[str, int] = defaultdict(int)

    def watch(self, owner: Any, name: str, as_: str) -> None:
        """Replace `owner.name` by itself, timed."""
        function: Callable[..., Any] = getattr(owner, name)

        def run(*args: Any, **kwargs: Any) -> Any:
            self.depth[as_] += 1
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.depth[as_] -= 1
                if not self.depth[as_]:
                    self.seconds[as_] += time.perf_counter() - began

        setattr(owner, name, run)


def one_step(run: Run, task: Sums, timers: Timers) -> dict[str, Any]:
    """Do one step and say what it did."""
    task.seconds = 0.0
    timers.seconds.clear()
    groups: list[Any] = []
    collect = run.stages[0].method.collect

    def kept(ctx: Any) -> Any:
        groups[:] = collect(ctx)
        return groups

    object.__setattr__(run.stages[0].method, "collect", kept)
    began = time.perf_counter()
    run._one_step(run.stages[0])
    total = time.perf_counter() - began
    object.__setattr__(run.stages[0].method, "collect", collect)
    rows = [episode for group in groups for episode in group]
    phases = {
        "sample": timers.seconds["collect"] - task.seconds,
        "judge": task.seconds,
        "score": timers.seconds["score"],
    }
    return {
        "seconds": {**phases, "update": total - sum(phases.values()), "total": total},
        "sampled": sum(row.steps for row in rows), "rollouts": len(rows),
        "prompts": fingerprint(sorted(list(row.context) for row in rows)), "prompt_tokens": sum(len(row.context) for row in rows),
        "loss": run.metrics["loss"], "grad_norm": run.metrics["grad_norm"], "rows": [list(row.trajectory.ids) for row in rows],
        "overhead": 1 - timers.seconds["arithmetic"] / total, **peak(),
    }  # fmt: skip


def state_gb(run: Run) -> float:
    """What any library must hold for this run in float32: weights, gradients, two moments of AdamW, and each teacher copy."""
    numbers = sum(parameter.numel() for parameter in run.domain.players["student"].parameters.values())
    copies = sum(weights.name != "live" for weights in run.method.teachers())
    return 4 * numbers * (4 + copies) / 1e9


def main() -> None:
    """Build the run, then do steps as the driver asks."""
    port, settings = Port(), settings_of(sys.argv)
    work = Workload(**settings["work"])
    add_wording()
    task, timers = Sums(), Timers()
    with tempfile.TemporaryDirectory() as scratch:
        run = build_run(settings, work, task, Path(scratch) / "run")
        timers.watch(type(run.domain), "rollout", "collect")
        timers.watch(type(run.domain), "_teacher_states", "score")
        watch_arithmetic(timers)
        run._enter(run.stages[0])
        start_peak()
        versions = {name: version(name) for name in ("redistill", "torch", "transformers")}
        port.say(versions=versions, state_gb=state_gb(run), resident_gb=resident(), threads=torch.get_num_threads())
        while True:
            port.hear()
            port.say(**one_step(run, task, timers))


if __name__ == "__main__":
    main()
