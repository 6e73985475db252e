"""The tables of docs/performance.md, from benchmarks/results: `python -m benchmarks.table` writes, `--check` only looks."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.summary import pair_peak

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
PHASES = ("sample", "judge", "score", "update", "total")


def number(value: float | None, digits: int = 2) -> str:
    """A number for a table; a dash where nothing was measured."""
    return "–" if value is None else f"{value:.{digits}f}"


def rows(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    return [f"| {' | '.join(header)} |", "|" + "---|" * len(header), *(f"| {' | '.join(row)} |" for row in body), ""]


def bars_table(summary: Mapping[str, Any]) -> list[str]:
    """Goals, values, met or not."""
    words = {True: "yes", False: "**no**", None: "not measured"}
    sign = {">=": "at least", "<=": "at most"}
    body = [
        [bar["name"], f"{sign[bar['relation']]} {bar['goal']:g}", number(bar["value"]), words[bar["met"]]]
        for bar in summary["bars"]
    ]
    return rows(("what", "goal", "measured", "met"), body)


def ratio(spread: Mapping[str, Any] | None) -> str:
    """Median [low, high]."""
    return "–" if spread is None else f"**{spread['median']:.2f}** [{spread['low']:.2f}, {spread['high']:.2f}]"


def steps_table(summary: Mapping[str, Any], raw: Mapping[str, Any]) -> list[str]:
    """Seconds by phase and peak of each pair: medians."""
    body = []
    for name, pair in raw["pairs"].items():
        if name.endswith(".wide"):
            continue  # a step whose tokens were given: its memory is in a table of its own
        spread = summary["spread"].get(f"{name}.speed")
        for side, label in (("ours", "Redistill"), ("peer", "TRL")):
            records = pair[side]
            seconds = [statistics.median(record["seconds"][phase] for record in records) for phase in PHASES]
            rate = statistics.median(record["sampled"] / record["seconds"]["total"] for record in records)
            peak = pair_peak(pair, side)
            cells = [
                name if side == "ours" else "",
                label,
                *(f"{value:.2f}" for value in seconds),
                f"{rate:.0f}",
                f"{peak:.2f}",
            ]
            body.append([*cells, ratio(spread) if side == "ours" else ""])
    return rows(("step", "library", *PHASES, "tokens/s", "peak GB", "TRL / ours"), body)


def sampling_table(summary: Mapping[str, Any], raw: Mapping[str, Any]) -> list[str]:
    """Tokens per second of each sampler and of the products alone."""
    rates = summary["sampling"]["tokens_per_s"]
    body = [[name.replace("_", " "), f"{rate:.0f}"] for name, rate in rates.items()]
    for dtype in ("float32", "bfloat16", "mixed"):
        found = [roof[dtype]["tokens_per_s"] for roof in raw.get("roofline", []) if dtype in roof]
        gflops = [roof[dtype]["gflop_per_s"] for roof in raw.get("roofline", []) if dtype in roof]
        if found:
            body.append(
                [
                    f"matrix products alone, {dtype} ({statistics.median(gflops):.0f} GFLOP/s)",
                    f"{statistics.median(found):.0f}",
                ]
            )
    lines = rows(("sampler (64 prompts)", "tokens/s"), body)
    labels = {
        "vs_generate_bf16": "ours / generate, bfloat16", "vs_generate_fp32": "ours / generate, float32",
        "vs_generate_fp32_equal_products": "ours / generate with oneDNN's float32 products", "vs_vllm_cpu": "ours / vLLM CPU, bfloat16",
    }  # fmt: skip
    spreads = [[label, ratio(summary["spread"].get(f"sampling.{key}"))] for key, label in labels.items()]
    return [*lines, *rows(("ratio", "median [low, high]"), spreads)]


def growth_table(summary: Mapping[str, Any]) -> list[str]:
    """Exponents."""
    body = [
        [axis, f"{points['sizes'][0]:,} to {points['sizes'][-1]:,}", f"{points['seconds'][0]:.2f} to {points['seconds'][-1]:.2f}",
         f"{points['exponent']:.2f}"]
        for axis, points in summary["growth"].items()
    ]  # fmt: skip
    return rows(("size", "from, to", "seconds", "exponent"), body) if body else []


def memory_table(summary: Mapping[str, Any]) -> list[str]:
    """Peaks at the widest vocabulary, and of the objective alone."""
    body = [
        [
            name,
            number(wide["ours_gb"]),
            number(wide["peer_gb"]),
            number(wide["memory"]),
            number(wide["memory_above_state"]),
        ]
        for name, wide in summary["memory_at_262144_tokens"].items()
    ]
    lines = (
        rows(("gemma3-270m, whole step", "ours GB", "TRL GB", "share", "share above the state"), body) if body else []
    )
    memory = [
        [
            f"{point['steps']:,}",
            number(point["one_tensor_NV_gb"], 1),
            number(point["working_gb"], 3),
            number(point["seconds"], 1),
        ]
        for point in summary["objective"]["memory"]
    ]
    head = ("steps (262,144 tokens of vocabulary)", "one [N, V] tensor would be, GB", "working memory, GB", "seconds")
    return [*lines, *(rows(head, memory) if memory else [])]


def rendered(summary: Mapping[str, Any], raw: Mapping[str, Any]) -> str:
    """Everything between the markers."""
    machine = summary["machine"]
    versions = ", ".join(f"{name} {value}" for name, value in sorted(summary["versions"].items()))
    lines = [
        f"Measured {summary['date']} on {machine['cpu']}, {machine['threads']} threads, {machine['memory_gb']:.0f} GB; {versions}. "
        f"{summary['rounds']} interleaved rounds.",
        *summary["notes"],
        "",
        *bars_table(summary),
        *steps_table(summary, raw),
        *sampling_table(summary, raw),
        *memory_table(summary),
        *growth_table(summary),
    ]
    return "\n".join(lines).rstrip() + "\n"


def page_with(page: str, block: str) -> str:
    """The page with its generated block replaced. Raises ValueError when the markers are missing."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{block}{END}{after}"


def main() -> int:
    """Write the page, or with --check say whether it is as it would be written."""
    if not (RESULTS / "summary.json").is_file():
        return 0
    summary, raw = (json.loads((RESULTS / name).read_text()) for name in ("summary.json", "raw.json"))
    page = PAGE.read_text()
    fresh = page_with(page, rendered(summary, raw))
    if "--check" in sys.argv:
        if fresh != page:
            print("docs/performance.md is stale: run python -m benchmarks.table")
        return int(fresh != page)
    PAGE.write_text(fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main())
