"""From raw measurements to the numbers that docs/performance.md shows: pure functions, standard library only."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
METHODS = {"grpo": ("grpo",), "opd": ("opd-reverse_kl", "opd-jsd"), "sdpo": ("sdpo",)}
"""What the summary calls a method, and the pairs that stand for it; with several, the least favourable one counts."""


class UnequalWork(AssertionError):
    """Two measurements that are compared did not do the same work."""


def assert_equal_work(name: str, ours: Record, peer: Record) -> None:
    """Raise UnequalWork unless both sampled as many tokens in as many rollouts, of the same prompts where both tell them."""
    for key in ("sampled", "rollouts", "prompts", "prompt_tokens"):
        if key in ours and key in peer and ours[key] != peer[key]:
            raise UnequalWork(f"{name}: {key} is {ours[key]} in ours and {peer[key]} in the peer")
    if not ours.get("sampled"):
        raise UnequalWork(f"{name}: nothing was sampled")


def assert_losses_agree(name: str, ours: Record, peer: Record, tolerance: float) -> None:
    """Raise UnequalWork unless loss and gradient norm on the same tokens agree to a relative `tolerance` (a loss also when
    both are 0 up to rounding, as GRPO's is)."""
    for key in ("loss", "grad_norm"):
        a, b = float(ours[key]), float(peer[key])
        close = abs(a - b) <= tolerance * max(abs(a), abs(b)) or (key == "loss" and max(abs(a), abs(b)) < 1e-5)
        if not (close and math.isfinite(a)):
            raise UnequalWork(f"{name}: {key} on the same tokens is {a:.6g} in ours and {b:.6g} in the peer")


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, Any]:
    """Ratios of interleaved rounds: their median, lowest and highest."""
    found = [a / b for a, b in zip(numerator, denominator, strict=True)]
    return {"median": statistics.median(found), "low": min(found), "high": max(found), "rounds": found}


def totals(records: Sequence[Record]) -> list[float]:
    """Seconds of whole steps."""
    return [float(record["seconds"]["total"]) for record in records]


def pair_peak(pair: Mapping[str, Any], side: str) -> float:
    """Highest whole-step peak of a side of a pair, its first step included, GB."""
    return max(float(record["peak_gb"]) for record in [*pair[side], pair[f"{side}_first"]])


def speed(pair: Mapping[str, Any]) -> dict[str, Any]:
    """How many times faster ours is, by rounds."""
    return ratios(totals(pair["peer"]), totals(pair["ours"]))


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Slope of log seconds over log size by least squares, in the upper half of the sizes (three of them at least)."""
    keep = min(len(sizes), max(3, (len(sizes) + 1) // 2))
    x = [math.log(size) for size in sizes[-keep:]]
    y = [math.log(taken) for taken in seconds[-keep:]]
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / sum((a - mean_x) ** 2 for a in x)


def summarise(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The summary of a run of the benchmark; parts that were not measured are None."""
    spread: dict[str, Any] = {}
    summary: dict[str, Any] = {
        "vs_trl": {method: _against_trl(method, pairs, raw["pairs"], spread) for method, pairs in METHODS.items()},
        "sampling": _sampling(raw, spread),
        "objective": _objective(raw),
        "overhead": _overhead(raw["pairs"]),
        "growth": {
            axis: {**points, "exponent": exponent(points["sizes"], points["seconds"])}
            for axis, points in raw.get("growth", {}).items()
            if len(points["sizes"]) > 1
        },
        "memory_at_262144_tokens": {
            name: wide(raw["pairs"][name]) for name in ("grpo.wide", "sdpo.wide") if name in raw["pairs"]
        },
        "spread": spread,
    }  # fmt: skip
    summary["bars"] = bars(summary)
    summary |= {key: raw[key] for key in ("machine", "versions", "date", "quick", "rounds", "notes")}
    summary["meaning"] = {
        "vs_trl.*.speed_*": "TRL's seconds of a step over ours, median over interleaved rounds (above 1: ours is faster)",
        "vs_trl.*.memory*": "our whole-step peak over TRL's (below 1: ours needs less)",
        "sampling.vs_*": "our tokens per second over the peer's", "sampling.roofline": "our tokens per second (bfloat16, "
        "prompts read and tokens drawn) over what one decoding step's matrix products alone allow",
        "objective.peak_flat": "working memory of the objective at the most steps over that at the fewest (1: flat)",
        "objective.head_overhead": "time of the fused head over its three matrix products, minus 1",
        "overhead": "share of a GRPO step outside model and objective arithmetic",
    }  # fmt: skip
    return summary


def _against_trl(method: str, names: Sequence[str], pairs: Mapping[str, Any], spread: dict[str, Any]) -> dict[str, Any]:
    """Speeds and memory of one method. TRL's best is the least favourable of all candidates that were measured."""

    def of(suffix: str) -> list[str]:
        return [pair for pair in pairs if pair.split(".")[0] in names and pair.split(".")[1].startswith(suffix)]

    found: dict[str, Any] = {}
    for key, suffix in (
        ("speed_equal_dtype", "float32"), ("speed_equal_products", "products"), ("speed_best", "best"),
        ("speed_frugal", "frugal"),
    ):  # fmt: skip
        speeds = {name: speed(pairs[name]) for name in of(suffix) if pairs[name]["ours"]}
        spread |= {f"{name}.speed": value for name, value in speeds.items()}
        found[key] = min((value["median"] for value in speeds.values()), default=None)
    for key, suffix in (("memory", "float32"), ("memory_frugal", "frugal")):
        shares = [pair_peak(pairs[name], "ours") / pair_peak(pairs[name], "peer") for name in of(suffix)]
        found[key] = max(shares, default=None)
    return found


def _sampling(raw: Mapping[str, Any], spread: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    sampled: Mapping[str, Sequence[Record]] = raw.get("sampling", {})
    for key, ours, peer in (
        ("vs_generate_bf16", "ours_bfloat16", "generate_bfloat16"),
        ("vs_generate_fp32", "ours_float32", "generate_float32"),
        ("vs_generate_fp32_equal_products", "ours_float32", "generate_float32_onednn"),
        ("vs_vllm_cpu", "ours_bfloat16", "vllm_cpu_bfloat16"),
    ):
        found[key] = None
        if ours in sampled and peer in sampled:
            spread[f"sampling.{key}"] = ratios(totals(sampled[peer]), totals(sampled[ours]))
            found[key] = spread[f"sampling.{key}"]["median"]
    found["tokens_per_s"] = {
        name: statistics.median(record["sampled"] / record["seconds"]["total"] for record in records)
        for name, records in sampled.items()
    }
    for key, ours, products in (
        ("roofline", "ours_bfloat16", "bfloat16"), ("roofline_fp32_head", "ours_bfloat16", "mixed"),
        ("roofline_fp32", "ours_float32", "float32"),
    ):  # fmt: skip
        rates = [roof[products]["tokens_per_s"] for roof in raw.get("roofline", []) if products in roof]
        found[key] = found["tokens_per_s"][ours] / statistics.median(rates) if rates and ours in sampled else None
    return found


def _objective(raw: Mapping[str, Any]) -> dict[str, Any]:
    memory: Sequence[Record] = raw.get("objective", {}).get("memory", [])
    heads: Sequence[Record] = raw.get("objective", {}).get("overhead", [])
    return {
        "peak_flat": memory[-1]["working_gb"] / memory[0]["working_gb"] if len(memory) > 1 else None,
        "head_overhead": statistics.median(head["overhead"] for head in heads) if heads else None,
        "memory": list(memory), "largest": memory[-1] if memory else None,
    }  # fmt: skip


def _overhead(pairs: Mapping[str, Any]) -> float | None:
    shares = [record["overhead"] for record in pairs.get("grpo.float32", {}).get("ours", []) if "overhead" in record]
    return statistics.median(shares) if shares else None


def wide(pair: Mapping[str, Any]) -> dict[str, float]:
    """Peaks of a step at 262,144 tokens of vocabulary, whole and above what both must hold (weights, teacher, gradients and
    two moments of AdamW in float32)."""
    ours, peer = pair_peak(pair, "ours"), pair_peak(pair, "peer")
    state = float(pair["ours_first"].get("state_gb", 0.0))
    return {
        "ours_gb": ours, "peer_gb": peer, "state_gb": state, "memory": ours / peer,
        "memory_above_state": (ours - state) / (peer - state) if peer > state else math.nan,
    }  # fmt: skip


def bars(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The goals of the project, each with what was measured and whether it is met (None: not measured)."""
    found: list[dict[str, Any]] = []

    def bar(name: str, value: float | None, relation: str, goal: float) -> None:
        met = None if value is None else (value >= goal if relation == ">=" else value <= goal)
        found.append({"name": name, "value": value, "relation": relation, "goal": goal, "met": met})

    for method, values in summary["vs_trl"].items():
        bar(f"{method}: speed at equal dtype", values["speed_equal_dtype"], ">=", 3.0)
        bar(f"{method}: speed, each at its best", values["speed_best"], ">=", 3.0)
        bar(f"{method}: peak memory at equal batch", values["memory"], "<=", 0.5)
        bar(f"{method}: peak memory beside TRL's most frugal", values["memory_frugal"], "<=", 1.0)
        bar(f"{method}: speed there", values["speed_frugal"], ">=", 2.0)
    wide_sdpo = summary["memory_at_262144_tokens"].get("sdpo.wide", {})
    bar("sdpo: peak memory at 262,144 tokens", wide_sdpo.get("memory"), "<=", 0.2)
    sampling = summary["sampling"]
    bar("sampling beside transformers.generate, bfloat16", sampling["vs_generate_bf16"], ">=", 2.5)
    bar("sampling beside transformers.generate, float32", sampling["vs_generate_fp32"], ">=", 2.0)
    bar("sampling beside vLLM's CPU build", sampling["vs_vllm_cpu"], ">=", 1.3)
    bar("sampling, share of the matrix products' rate", sampling["roofline"], ">=", 0.6)
    bar("objective: peak at most steps over fewest", summary["objective"]["peak_flat"], "<=", 1.05)
    bar("objective: head over its products alone", summary["objective"]["head_overhead"], "<=", 0.1)
    bar("framework's share of a step", summary["overhead"], "<=", 0.05)
    return found
