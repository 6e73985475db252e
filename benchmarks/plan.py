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
TRL_FAST_PRODUCTS = {**TRL, "products": "medium"}
TRL_AUTOCAST = {**TRL, "autocast": True}
TRL_HALF = {**TRL, "weights": "bfloat16"}
TRL_FRUGAL = {**TRL, "rows": 1, "checkpointing": True}
OURS = {"dtype": "float32"}
OURS_HALF = {"dtype": "bfloat16"}
OURS_FRUGAL = {"dtype": "float32", "run": {"micro_batch_tokens": 256}}


@dataclass(frozen=True)
class Pair:
    """Two workers that take turns at the same step. `agree` is the relative tolerance within which loss and gradient norm
    must be equal on the same tokens (the first step, before any weight has moved); None where rounding decides."""

    name: str
    method: str
    work: Workload
    ours: dict[str, Any]
    peer: dict[str, Any]
    rounds: int
    model: str = "smollm2-135m"
    agree: float | None = None
    says: str = ""
    once: bool = False
    """Only the first step, in which the peer is given our tokens: for memory, where a second step would tell nothing."""


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
    fewer = max(1, rounds - 1)
    return [
        Pair("grpo.float32", "grpo", GROUPS, OURS, TRL, rounds, agree=1e-3),
        Pair("grpo.products", "grpo", GROUPS, OURS, TRL_FAST_PRODUCTS, fewer, agree=1e-3),
        Pair("sdpo.float32", "sdpo", GROUPS, OURS, TRL, fewer, agree=1e-3),
        Pair("opd-reverse_kl.float32", "opd-reverse_kl", SINGLES, OURS, TRL, fewer, agree=1e-3),
        Pair("opd-jsd.float32", "opd-jsd", SINGLES, OURS, TRL, fewer, agree=1e-3),
        Pair("grpo.best", "grpo", GROUPS, OURS_HALF, TRL_HALF, rounds),
        Pair("sdpo.best", "sdpo", GROUPS, OURS_HALF, TRL_HALF, fewer),
        Pair("opd-reverse_kl.best", "opd-reverse_kl", SINGLES, OURS_HALF, TRL_HALF, fewer),
        Pair("grpo.frugal", "grpo", GROUPS, OURS_FRUGAL, TRL_FRUGAL, 1),
        Pair("sdpo.frugal", "sdpo", GROUPS, OURS_FRUGAL, TRL_FRUGAL, 1),
        Pair("opd-reverse_kl.frugal", "opd-reverse_kl", SINGLES, OURS_FRUGAL, TRL_FRUGAL, 1),
        Pair("sdpo.wide", "sdpo", WIDE, OURS, TRL, 0, model="gemma3-270m", once=True),
        Pair("grpo.wide", "grpo", WIDE, OURS, TRL, 0, model="gemma3-270m", once=True),
    ]  # fmt: skip


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
