"""The head and the objective alone: peak memory against the number of steps, and time beside its matrix products alone."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from redistill.core.arithmetic import fast_float32
from redistill.core.signal import LogProb
from redistill.text.head import measure
from redistill.text.models import Head

from benchmarks.port import Port, peak, resident, settings_of, start_peak
from benchmarks.roofline import seconds


def problem(steps: int, width: int, vocabulary: int) -> tuple[torch.Tensor, Head, torch.Tensor, torch.Tensor]:
    """Hidden states [N, D], a head [V, D], targets [N] and temperatures [N]."""
    generator = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(steps, width, generator=generator).requires_grad_()
    weight_VD = (torch.randn(vocabulary, width, generator=generator) / width**0.5).requires_grad_()
    target_N = torch.randint(vocabulary, (steps,), generator=generator)
    return hidden_ND, Head(weight_VD), target_N, torch.ones(steps)


def one_pass(hidden_ND: torch.Tensor, head: Head, target_N: torch.Tensor, warm_N: torch.Tensor) -> None:
    """Log-probs of the steps and their gradients, for hidden states and head."""
    hidden_ND.grad = head.weight_VD.grad = None
    values = measure(hidden_ND, head, target_N, warm_N, {}, (LogProb(),))
    values[LogProb()].mean().backward()


def working_memory(steps: int, width: int, vocabulary: int) -> dict[str, float]:
    """Peak of one pass in GB, above inputs and what it must return (the gradients), which are there before it begins."""
    inputs = problem(steps, width, vocabulary)
    grown = [torch.ones_like(inputs[0]), torch.ones_like(inputs[1].weight_VD)]  # room for the two gradients
    base = resident()
    del grown
    start_peak()
    began = time.perf_counter()
    one_pass(*inputs)
    taken = time.perf_counter() - began
    full = steps * vocabulary * 4 / 1e9
    return {"steps": steps, "working_gb": peak()["peak_gb"] - base, "one_tensor_NV_gb": full, "seconds": taken}


def overhead(steps: int, width: int, vocabulary: int) -> dict[str, float]:
    """Seconds of one pass, and of the three products that it cannot do without: logits, gradient of hidden states, gradient
    of the head; the products over all steps at once, then in pieces of 256 steps, whichever is faster."""
    hidden_ND, head, target_N, warm_N = problem(steps, width, vocabulary)
    whole = seconds(lambda: one_pass(hidden_ND, head, target_N, warm_N), 3.0)
    found = []
    with torch.no_grad():
        for piece in (steps, 256):
            logits = torch.randn(piece, vocabulary)
            into = torch.zeros_like(head.weight_VD)

            def products(piece: int = piece, logits: torch.Tensor = logits, into: torch.Tensor = into) -> None:
                for low in range(0, steps, piece):
                    part = hidden_ND[low : low + piece]
                    torch.mm(part, head.weight_VD.t(), out=logits[: len(part)])
                    torch.mm(logits[: len(part)], head.weight_VD)
                    into.addmm_(logits[: len(part)].t(), part)

            found.append(seconds(products, 3.0))
    return {"seconds": whole, "products_seconds": min(found), "overhead": whole / min(found) - 1}


def main() -> None:
    """Answer what is asked; `memory` is asked once of each process, so that no peak hides another."""
    port, _ = Port(), settings_of(sys.argv)
    fast_float32()
    port.say(threads=torch.get_num_threads())
    while True:
        command = port.hear()
        size: dict[str, Any] = {key: command[key] for key in ("steps", "width", "vocabulary")}
        port.say(**(working_memory(**size) if command["do"] == "memory" else overhead(**size)))


if __name__ == "__main__":
    main()
