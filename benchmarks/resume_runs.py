"""Tiny runs of every method, in this process or in one of their own that can be killed, and what they leave behind."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redistill.build import method_class
from redistill.core.method import registered
from redistill.core.state import checkpoints

DOMAINS: Mapping[str, Mapping[str, Any]] = {
    "text": {
        "steps": 4, "save_every": 2, "prompts_per_step": 2, "group_size": 4, "max_new_tokens": 16, "eval_prompts": 4,
        "eval_every": 3, "learning_rate": 1e-3, "lora_rank": 0, "lora_alpha": "none", "warmup_steps": 1, "minibatches": 1,
    },
    "vision": {
        "task": "digits:train=40,noise=0.3,augment=1", "model": "cnn:width=4", "prompts_per_step": 20, "steps": 5,
        "save_every": 2, "eval_prompts": 30, "eval_every": 3,
    },
    "generation": {
        "model": "dit:width=16,depth=1,heads=2", "prompts_per_step": 2, "group_size": 4, "sampling_steps": 4, "steps": 4,
        "eval_prompts": 20, "eval_sampling_steps": 3, "learning_rate": 1e-3, "save_every": 2, "eval_every": 3,
    },
    "embodied": {
        "task": "button-press-topdown-v3:cap=12", "model": "mlp:width=16,depth=1", "steps": 4, "prompts_per_step": 3,
        "simulators": 2, "minibatches": 3, "epochs": 2, "eval_prompts": 2, "eval_every": 2, "save_every": 2,
    },
}  # fmt: skip
"""Settings of a run of seconds, for any method of a domain."""

EXPERT = {"teacher": "checkpoint(pocket-expert)"}
METHODS: Mapping[str, Mapping[str, Any]] = {
    "grpo": {"kl": 0.1, "minibatches": 2},
    "opd": {"teacher": "ema(0.3)", "teacher_view": "with_solution"},
    "opsd": {"teacher": "ema(0.3)"},
    "sdpo": {"teacher": "ema(0.3)", "grpo_weight": 0.5, "warm_start_steps": 2, "warm_start_learning_rate": 1e-3},
    "srpo": {"teacher": "ema(0.3)"},
    "ssb": {"pairs": 6, "batch": 3, "prompts_per_step": 8, "gather_steps": 4, "teacher": "ema(0.3)"},
    "sd-zero": {
        "prompts_per_step": 6, "gather_steps": 2, "srt_steps": 2, "filtered": "false", "balance": "false", "teacher": "sync(1)",
        "max_new_tokens": 30,
    },
    "caopd": {"max_new_tokens": 24},
    "pi-distill": {"variant": "opsd", "temperature": 1.0},
    "skill-sd": {
        "task": "tools:steps=3,levels=4", "max_new_tokens": 24, "skill_weight": 0.5, "steps": 3, "max_turns": 4,
    },
    "teacher-hacking": {"prompts": 8},
    "rl-vs-distillation": {"size": 4, "gather_steps": 2, "tries": 2, "writes": 4},
    "rpd": {"teacher": "expert:noise=0.5", "anneal_steps": 60},
    **dict.fromkeys(("kdrl", "rlad", "g-opd", "paced", "scope", "kepo", "tsd-kd"), EXPERT),
}  # fmt: skip
"""What a method needs beside them, so that everything it may keep evolves."""

VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "opd with LoRA": ("opd", {"lora_rank": 2, "learning_rate": 1e-2, "teacher": "checkpoint(pocket)"}),
    "opd with a late average": ("opd", {"teacher": "slowing_ema(0.75,0.1,0.001,2)"}),
    "opd with a trust region": ("opd", {"teacher": "trust_region(0.3)"}),
    "grpo in epochs": ("grpo", {"epochs": 2, "minibatches": 2, "warm_start_steps": 2}),
    "ps-kd with a copy": ("ps-kd", {"teacher": "sync(2)"}),
    "paced in two stages": ("paced", {"coverage_steps": 2}),
    "sft with AdamW's decay": ("sft", {"weight_decay": 0.1}),
}  # fmt: skip
"""Further points: other kinds of teachers, adapters, epochs, stages."""

PRELOAD = [
    "redistill.cli", "redistill.build", "redistill.methods", "redistill.reporting.terminal", "redistill.text.assemble",
    "redistill.vision.assemble", "redistill.generation.assemble", "redistill.embodied.assemble",
]  # fmt: skip
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "open")
"""Events at which Python tells its audit hooks that the disk is touched."""


def slugs() -> list[str]:
    """Every registered method."""
    import redistill.methods  # noqa: F401

    return list(registered())


def names() -> list[str]:
    """Every run: a method's slug, or the name of a variant."""
    return [*slugs(), *VARIANTS]


def settings_of(name: str) -> tuple[str, dict[str, Any]]:
    """(method, settings) of a run of seconds."""
    slug, more = VARIANTS.get(name, (name, {}))
    own = METHODS.get(slug, {})
    return slug, {**DOMAINS[method_class(slug).domain], **own, **more}


def arguments(name: str, out: Path, resume: bool, **changed: Any) -> list[str]:
    """The command line of a run."""
    slug, given = settings_of(name)
    sets = [word for key, value in {**given, **changed}.items() for word in ("--set", f"{key}={value}")]
    return ["run", slug, "--quiet", "--out", str(out), *sets, *(["--resume"] if resume else [])]


@dataclass(frozen=True)
class Full:
    """A disk that has `room` bytes left once a checkpoint is begun: a file `ballast` takes the rest; without one the kernel
    refuses to let any file grow beyond so many bytes."""

    room: int
    ballast: str | None

    def now(self) -> None:
        """Let it be full."""
        import resource
        import shutil

        if self.ballast is None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.room, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            return
        free = shutil.disk_usage(Path(self.ballast).parent).free
        with open(self.ballast, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, free - self.room))


def child(words: list[str], log: str, kill_at: int | None, full: Full | None) -> None:
    """Run one command. With `kill_at`, die by SIGKILL at that change of a file or folder of a checkpoint; with `full`, the disk
    is full from the first one on."""
    import torch
    from redistill.cli import main

    torch.set_num_threads(1)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    changes = [0]

    def watch(event: str, details: tuple[Any, ...]) -> None:
        if event in CHANGES and "checkpoints/" in str(details[0]):
            changes[0] += 1
            if changes[0] == 1 and full is not None:
                full.now()
            if changes[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    sys.exit(main(words))


def start(name: str, out: Path, kill_at: int | None = None, full: Full | None = None, **changed: Any) -> Any:
    """A process under way (forked from a server that has imported everything once); it resumes where there is something to."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    words = arguments(name, out, (out / "config.json").exists(), **changed)
    Path(f"{out}.log").unlink(missing_ok=True)
    process = context.Process(target=child, args=(words, f"{out}.log", kill_at, full))
    process.start()
    return process


def printed(out: Path) -> str:
    """What the process of a run wrote to its terminal."""
    log = Path(f"{out}.log")
    return log.read_text() if log.exists() else ""


def finish(name: str, out: Path, **changed: Any) -> None:
    """Run to the end; RuntimeError with what it printed where it does not get there."""
    process = start(name, out, **changed)
    process.join(600)
    if process.exitcode != 0:
        raise RuntimeError(f"{name} ended with status {process.exitcode}: {printed(out)}")


def outcome(out: Path) -> dict[str, Any]:
    """Everything a run leaves, except for seconds: the bytes of model and newest checkpoint, logs, result."""
    found: dict[str, Any] = {
        str(path.relative_to(out)): path.read_bytes() for path in sorted((out / "model").rglob("*")) if path.is_file()
    }
    newest = checkpoints(out / "checkpoints")[-1]
    for path in sorted(path for path in newest.rglob("*") if path.is_file()):
        if path.name == "manifest.json":
            manifest = json.loads(timeless(path.read_text()))
            parts = {name: facts for name, facts in manifest["parts"].items() if name != "metrics"}
            found["manifest"] = {**manifest, "parts": parts, "sha256": ""}
        else:
            found[f"checkpoint/{path.relative_to(newest)}"] = path.read_bytes()
    for path in sorted([*out.glob("*.jsonl"), *out.glob("views*.txt"), out / "result.json"]):
        found[path.name] = timeless(path.read_text())
    found["drafts"] = [path.name for path in out.rglob(".*") if path.name != ".lock"]
    return found


def timeless(text: str) -> str:
    """JSON without seconds: no two runs take the same."""
    return re.sub(r'"seconds\w*": [\d.e+-]+', '"seconds": 0', text)


def unequal(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What of two outcomes differs: empty where a run ended bit for bit as another."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
