"""What is measured against what, with which settings, how often. docs/performance.md says why each setting is as it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.workload import Workload

GROUPS = Workload(prompts=4, group=8, new_tokens=48)
"""GRPO and SDPO: 32 rollouts in groups of 8, about 2,400 tokens with their prompts."""
SINGLES = Workload(prompts=32, group=1, new_tokens=48)
"""Distillation: 32 rollouts of 32 prompts, as TRL's trainer samples them."""
WIDE = Workload(prompts=4, group=8, new_tokens=24)
"""The memory test at 262,144 tokens of vocabulary; TRL's step with 48 tokens would not fit in 24 GB."""

TRL = {"weights": "float32", "autocast": False, "rows": 32, "checkpointing": False}
TRL_FRUGAL = {**TRL, "rows": 1, "checkpointing": True}
TRL_CANDIDATES: dict[str, dict[str, Any]] = {
    "products": {**TRL, "products": "medium"},
    "half": {**TRL, "weights": "bfloat16"},
    "half8": {**TRL, "weights": "bfloat16", "rows": 8},
    "autocast": {**TRL, "autocast": True},
    "vllm": {**TRL, "autocast": True, "vllm": 0.1},
}
"""Settings that may be TRL's fastest here: float32 products by oneDNN, bfloat16 weights (32 or 8 rows in a forward pass),
bfloat16 autocast over float32 weights, and autocast with vLLM sampling in the same process."""
OURS = {"dtype": "float32"}
OURS_HALF = {"dtype": "bfloat16", "run": {"micro_batch_tokens": 2048}}
OURS_FRUGAL = {"dtype": "float32", "run": {"checkpointing": True}}


@dataclass(frozen=True)
class Pair:
    """Two workers that take turns at the same step. `agree` is the relative tolerance within which loss and gradient norm
    must be equal on the same tokens (the first step, before any weight has moved); None where rounding decides. `peer` None
    is the one of TRL_CANDIDATES that was fastest at GRPO in this run."""

    name: str
    method: str
    work: Workload
    ours: dict[str, Any]
    peer: dict[str, Any] | None
    rounds: int
    model: str = "smollm2-135m"
    agree: float | None = None
    environment: str = "trl"

    @property
    def once(self) -> bool:
        """Only the first step, in which the peer is given our tokens: for memory, where a second one would tell nothing."""
        return self.rounds == 0


@dataclass(frozen=True)
class Sampler:
    """One way to sample the same prompts: module of the worker, environment, settings."""

    name: str
    module: str
    environment: str
    settings: dict[str, Any] = field(default_factory=dict)


def pairs(quick: bool, rounds: int) -> list[Pair]:
    """All pairs, the most important first. `quick`: pocket-sized work that shows that everything runs; its ratios mean
    nothing."""
    if quick:
        small = Workload(prompts=2, group=4, new_tokens=8), Workload(prompts=8, group=1, new_tokens=8)
        peer = {**TRL, "rows": 8}
        return [
            Pair("grpo.float32", "grpo", small[0], OURS, peer, 1, "pocket", 1e-3),
            Pair("opd-reverse_kl.float32", "opd-reverse_kl", small[1], OURS, peer, 1, "pocket", 1e-3),
            Pair("opd-jsd.float32", "opd-jsd", small[1], OURS, peer, 1, "pocket", 1e-3),
        ]
    few, one = max(1, rounds - 1), 1
    return [
        Pair("grpo.float32", "grpo", GROUPS, OURS, TRL, rounds, agree=1e-3),
        *(
            Pair(
                f"grpo.best-{name}", "grpo", GROUPS, OURS_HALF, settings, few if name == "half" else one,
                environment="vllm" if name == "vllm" else "trl",
            )
            for name, settings in TRL_CANDIDATES.items()
        ),
        Pair("grpo.products", "grpo", GROUPS, OURS, TRL_CANDIDATES["products"], one, agree=1e-3),
        Pair("sdpo.float32", "sdpo", GROUPS, OURS, TRL, few, agree=1e-3),
        Pair("opd-reverse_kl.float32", "opd-reverse_kl", SINGLES, OURS, TRL, few, agree=1e-3),
        Pair("sdpo.best", "sdpo", GROUPS, OURS_HALF, None, few),
        Pair("opd-reverse_kl.best", "opd-reverse_kl", SINGLES, OURS_HALF, None, few),
        Pair("opd-jsd.float32", "opd-jsd", SINGLES, OURS, TRL, one, agree=1e-3),
        Pair("opd-jsd.best", "opd-jsd", SINGLES, OURS_HALF, None, one),
        Pair("sdpo.wide", "sdpo", WIDE, OURS, TRL, 0, model="gemma3-270m"),
        Pair("grpo.wide", "grpo", WIDE, OURS, TRL, 0, model="gemma3-270m"),
        Pair("grpo.frugal", "grpo", GROUPS, OURS_FRUGAL, TRL_FRUGAL, one),
        Pair("sdpo.frugal", "sdpo", GROUPS, OURS_FRUGAL, TRL_FRUGAL, one),
        Pair("opd-reverse_kl.frugal", "opd-reverse_kl", SINGLES, OURS_FRUGAL, TRL_FRUGAL, one),
    ]  # fmt: skip


def fastest(measured: dict[str, Any]) -> dict[str, Any]:
    """The candidate that was TRL's fastest at GRPO among the pairs measured; vLLM's is left out, since its trainers for the
    other methods were not made to run with it here."""
    found = {
        name: min(record["seconds"]["total"] for record in measured[f"grpo.best-{name}"]["peer"])
        for name in TRL_CANDIDATES
        if name != "vllm" and measured.get(f"grpo.best-{name}", {}).get("peer")
    }
    if not found:
        raise ValueError("no candidate was measured at GRPO: measure grpo.best first")
    return TRL_CANDIDATES[min(found, key=lambda name: found[name])]


def samplers(quick: bool) -> list[Sampler]:
    """The samplers that take turns at 64 prompts."""
    found = [
        Sampler("ours_float32", "our_sampler_worker", "ours", {"dtype": "float32"}),
        Sampler("generate_float32", "generate_worker", "trl", {"dtype": "float32"}),
        Sampler("generate_float32_onednn", "generate_worker", "trl", {"dtype": "float32", "products": "medium"}),
        Sampler("ours_bfloat16", "our_sampler_worker", "ours", {"dtype": "bfloat16"}),
        Sampler("generate_bfloat16", "generate_worker", "trl", {"dtype": "bfloat16"}),
        Sampler("vllm_cpu_bfloat16", "vllm_worker", "vllm", {"dtype": "bfloat16", "engine": {"enforce_eager": True}}),
    ]
    return found[:2] if quick else found
