"""Faults of a served teacher, injected into real runs over HTTP: `python -m benchmarks.trust_services [--quick]`.

A fault is survived when the run finishes with the very weights of an undisturbed run, or stops with one plain sentence and,
resumed, finishes with them. Each fault strikes at several moments: the first scoring request, one in the middle, the last.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from redistill.build import prepare
from redistill.errors import UserError
from safetensors.torch import load_file

from benchmarks.faulty import FAULTS, PASSING, Server, serving

STEPS = 4
PROBES = 2
"""Scoring requests before the first step: the pre-flight's probe and the run's."""
MOMENTS = {"connecting": 1, "first step": PROBES + 1, "third step": PROBES + 3, "last step": PROBES + STEPS}


def run(server: Server, out: Path, resume: bool = False, **given: Any) -> dict[str, Any]:
    """A short run with the server as teacher."""
    options = {
        "teacher": f"served({server.url})", "teacher_view": "with_solution", "support": "top_k(5, of=teacher)", "steps": STEPS,
        "prompts_per_step": 2, "group_size": 1, "max_new_tokens": 8, "eval_prompts": 2, "save_every": 2, "served_tries": 3,
        "served_timeout": 20.0, "learning_rate": 1e-3, "utility": "false", "trace_prompts": 0, **given,
    }  # fmt: skip
    made = prepare("opd", options, out=out, resume=resume, report=lambda event, facts: None)
    try:
        return made.go(resume)
    finally:
        made.close()


def weights(out: Path) -> dict[str, torch.Tensor]:
    """The trained model's."""
    return load_file(out / "model" / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def strike(server: Server, fault: str, at: int, out: Path, expected: dict[str, torch.Tensor]) -> str | None:
    """One fault at one request; None when it was survived, else what went wrong."""
    timeout = {"served_timeout": server.slow / 2} if fault in ("late", "drip") else {}
    server.told({at: fault}, None)
    if fault not in PASSING:  # it lasts
        server.told(dict.fromkeys(range(at, at + 50), fault), None)
    try:
        run(server, out, **timeout)
        stopped = None
    except UserError as error:
        stopped = str(error)
    if not server.injected:
        return "the fault was not met"
    if stopped is None:
        good = fault in PASSING and same(weights(out), expected)
        return None if good else "the run went on with other numbers"
    if fault in PASSING:
        return f"stopped for what passes: {stopped}"
    if "\n" in stopped or server.url not in stopped:
        return f"not a plain sentence: {stopped}"
    server.told({})
    run(server, out, resume=at > PROBES, **timeout)
    return None if same(weights(out), expected) else "the resumed run ended elsewhere"


def figures(quick: bool = False, tell: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """faults_injected, faults_survived, kinds, and `lost`: what was not survived, a line each."""
    found: dict[str, Any] = {"faults_injected": 0, "faults_survived": 0, "kinds": len(FAULTS), "lost": []}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, serving() as server:
        run(server, Path(name) / "whole")
        expected = weights(Path(name) / "whole")
        for number, fault in enumerate(FAULTS):
            moments = list(MOMENTS.items())
            if fault == "other weights":
                moments = moments[1:]  # a run that begins with another model is a run with that model
            for moment, at in moments[number % 4 : number % 4 + 1] if quick else moments:
                out = Path(name) / "run"
                shutil.rmtree(out, ignore_errors=True)
                try:
                    wrong = strike(server, fault, at, out, expected)
                except Exception as error:  # a crash is what is looked for: it is counted and told
                    wrong = f"{type(error).__name__}: {error}"
                found["faults_injected"] += 1
                found["faults_survived"] += wrong is None
                if wrong is not None:
                    found["lost"].append(f"{fault}, {moment}: {wrong}")
                tell(f"{fault}, {moment}: {wrong or 'survived'}")
    return found


if __name__ == "__main__":
    print(json.dumps(figures("--quick" in sys.argv, lambda text: print(text, flush=True)), indent=1))
