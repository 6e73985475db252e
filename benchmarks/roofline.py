"""What this machine allows: matrix rates at the sampler's shapes, memory bandwidth, and the tokens per second that the matrix
products of one decoding step alone would give. A process of its own."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from redistill.core.arithmetic import fast_float32
from redistill.text.models import load_model
from torch import Tensor

from benchmarks.port import Port, settings_of

Layer = dict[str, Tensor]


def seconds(work: Callable[[], Any], at_least: float = 1.0, times: int = 5) -> float:
    """Median seconds of one call, over at least `times` calls and about `at_least` seconds, after one that does not count."""
    work()
    taken: list[float] = []
    while sum(taken) < at_least or len(taken) < times:
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def weights_of(causal: Any, dtype: torch.dtype, head: torch.dtype, fused: bool) -> list[Layer]:
    """The matrices of every layer and the output layer, each in memory of its own, as a decoding step reads them."""
    layers: list[Layer] = []
    for block in causal.base_model.layers:
        attention, mlp = block.self_attn, block.mlp
        q, k, v = (getattr(attention, f"{name}_proj").weight.detach() for name in "qkv")
        gate, up = mlp.gate_proj.weight.detach(), mlp.up_proj.weight.detach()
        parts = {"q": q, "k": k, "v": v, "gate": gate, "up": up}
        if fused:
            parts = {"qkv": torch.cat([q, k, v]), "gate_up": torch.cat([gate, up])}
        parts |= {"o": attention.o_proj.weight.detach(), "down": mlp.down_proj.weight.detach()}
        layers.append({name: weight.to(dtype).clone() for name, weight in parts.items()})
    return [*layers, {"head": causal.get_output_embeddings().weight.detach().to(head).clone()}]


def decode_products(layers: list[Layer], batch: int, packed: bool) -> Callable[[], None]:
    """All matrix products of one decoding step of `batch` rows, and nothing else; `packed`: by oneDNN on weights that are
    laid out for it beforehand."""
    weights = [weight for layer in layers for weight in layer.values()]
    kinds = {(weight.shape[1], weight.dtype) for weight in weights}
    inputs = {kind: torch.randn(batch, kind[0]).to(kind[1]) for kind in kinds}
    pairs = [(inputs[weight.shape[1], weight.dtype], weight) for weight in weights]
    if packed:
        laid_out = [(x, torch.ops.mkldnn._reorder_linear_weight(weight, batch)) for x, weight in pairs]

    def run() -> None:
        if packed:
            for x, weight in laid_out:
                torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
        else:
            for x, weight in pairs:
                F.linear(x, weight)

    return run


def bandwidth() -> float:
    """GB per second that a copy moves (read and write both counted), on memory that no cache holds."""
    source = torch.zeros(2**28, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds(lambda: target.copy_(source)) / 1e9


@torch.no_grad()
def measure(model: str, batch: int) -> dict[str, Any]:
    """For each dtype: tokens per second of the products alone, by the fastest way of multiplying, and their rate. `mixed` is
    what our sampler computes: bfloat16 layers, a float32 head."""
    fast_float32()
    causal = load_model(model).causal
    found: dict[str, Any] = {"bandwidth_gb_per_s": bandwidth(), "batch": batch}
    half, full = torch.bfloat16, torch.float32
    for name, dtype, head in (("float32", full, full), ("bfloat16", half, half), ("mixed", half, full)):
        taken = {}
        for fused in (False, True):
            layers = weights_of(causal, dtype, head, fused)
            for packed in (False, True):
                way = f"{'fused' if fused else 'separate'}, {'packed' if packed else 'plain'}"
                taken[way] = seconds(decode_products(layers, batch, packed), 1.0)
        operations = 2 * batch * sum(weight.numel() for layer in layers for weight in layer.values())
        best = min(taken.values())
        found[name] = {
            "tokens_per_s": batch / best, "gflop_per_s": operations / best / 1e9, "seconds": taken,
        }  # fmt: skip
    return found


def main() -> None:
    """Measure when asked."""
    port, settings = Port(), settings_of(sys.argv)
    port.say(threads=torch.get_num_threads())
    while True:
        port.hear()
        port.say(**measure(settings["model"], settings["batch"]))


if __name__ == "__main__":
    main()
