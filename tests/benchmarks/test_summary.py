"""The benchmark's arithmetic: what is compared did equal work, ratios are of rounds, and bars are what numbers say."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from benchmarks.table import BEGIN, END, RESULTS, page_with, rendered

from benchmarks import summary as bench


def record(total: float, peak: float = 1.0, **more: Any) -> dict[str, Any]:
    """A measurement of one step."""
    seconds = {"sample": total / 2, "judge": 0.0, "score": 0.0, "update": total / 2, "total": total}
    base = {
        "seconds": seconds,
        "sampled": 1536,
        "rollouts": 32,
        "prompts": "abc",
        "prompt_tokens": 900,
        "peak_gb": peak,
    }
    return {**base, "loss": 0.1, "grad_norm": 2.0, **more}


def pair(ours: list[float], peer: list[float], ours_peak: float = 2.0, peer_peak: float = 8.0) -> dict[str, Any]:
    """A pair of measurements in interleaved rounds."""
    return {
        "ours": [record(total, ours_peak) for total in ours], "peer": [record(total, peer_peak) for total in peer],
        "ours_first": record(9.0, ours_peak, state_gb=1.0), "peer_first": record(9.0, peer_peak),
    }  # fmt: skip


def raw(**more: Any) -> dict[str, Any]:
    """Raw results with everything in them."""
    tokens = [record(1.0, sampled=100)]
    return {
        "pairs": {
            "grpo.float32": pair([10.0, 11.0, 20.0], [40.0, 33.0, 50.0]), "grpo.best-half": pair([5.0], [20.0]),
            "grpo.best-autocast": pair([5.0], [15.0]),
            "opd-reverse_kl.float32": pair([10.0], [50.0]), "opd-jsd.float32": pair([10.0], [20.0], ours_peak=6.0),
            "sdpo.wide": pair([1.0], [1.0], ours_peak=3.0, peer_peak=9.0),
        },
        "sampling": {"ours_bfloat16": tokens, "generate_bfloat16": [record(3.0, sampled=100)]},
        "roofline": [{"bfloat16": {"tokens_per_s": 200.0, "gflop_per_s": 1.0}, "float32": {"tokens_per_s": 50.0, "gflop_per_s": 1.0}}],
        "objective": {
            "memory": [{"steps": 1, "working_gb": 0.2, "one_tensor_NV_gb": 1.0, "seconds": 1.0},
                       {"steps": 2, "working_gb": 0.3, "one_tensor_NV_gb": 2.0, "seconds": 1.0}],
            "overhead": [{"overhead": 0.3}, {"overhead": 0.1}, {"overhead": 0.2}],
        },
        "growth": {"batch": {"sizes": [1, 2, 4, 8], "seconds": [1.0, 1.1, 2.2, 4.4]}},
        "machine": {"cpu": "x", "threads": 2, "memory_gb": 24.0}, "versions": {"trl": "1"}, "date": "2026-11-25", "quick": False,
        "rounds": 3, "notes": [], **more,
    }  # fmt: skip


@pytest.mark.parametrize("key", ["sampled", "rollouts", "prompts", "prompt_tokens"])
def test_unequal_work_is_refused(key: str) -> None:
    ours, peer = record(1.0), record(2.0)
    bench.assert_equal_work("pair", ours, peer)
    peer[key] = "other" if key == "prompts" else peer[key] - 1
    with pytest.raises(bench.UnequalWork, match=key):
        bench.assert_equal_work("pair", ours, peer)


def test_no_work_at_all_is_refused() -> None:
    with pytest.raises(bench.UnequalWork, match="nothing"):
        bench.assert_equal_work("pair", record(1.0, sampled=0), record(1.0, sampled=0))


def test_losses_that_differ_are_refused() -> None:
    bench.assert_losses_agree("pair", record(1.0, loss=0.1), record(1.0, loss=0.10005), 1e-3)
    bench.assert_losses_agree("pair", record(1.0, loss=1e-8), record(1.0, loss=-2e-8), 1e-3)
    for changed in ({"loss": 0.1002}, {"grad_norm": 2.1}, {"loss": math.nan}):
        with pytest.raises(bench.UnequalWork, match="on the same tokens"):
            bench.assert_losses_agree("pair", record(1.0, loss=0.1), record(1.0, **{"loss": 0.1, **changed}), 1e-3)


def test_a_ratio_is_the_median_of_rounds_not_of_medians() -> None:
    found = bench.summarise(raw())
    assert found["spread"]["grpo.float32.speed"] == {"median": 3.0, "low": 2.5, "high": 4.0, "rounds": [4.0, 3.0, 2.5]}
    assert found["vs_trl"]["grpo"]["speed_equal_dtype"] == 3.0
    assert found["vs_trl"]["grpo"]["memory"] == 0.25


def test_the_least_favourable_of_two_pairs_counts() -> None:
    assert bench.summarise(raw())["vs_trl"]["grpo"]["speed_best"] == 3.0
    opd = bench.summarise(raw())["vs_trl"]["opd"]
    assert opd["speed_equal_dtype"] == 2.0
    assert opd["memory"] == 0.75


def test_sampling_objective_growth_and_width() -> None:
    found = bench.summarise(raw())
    assert found["sampling"]["vs_generate_bf16"] == 3.0
    assert found["sampling"]["roofline"] == 0.5
    assert found["objective"]["peak_flat"] == pytest.approx(1.5)
    assert found["objective"]["head_overhead"] == 0.2
    assert found["growth"]["batch"]["exponent"] == pytest.approx(1.0)
    wide = found["memory_at_262144_tokens"]["sdpo.wide"]
    assert (wide["memory"], wide["memory_above_state"]) == (pytest.approx(1 / 3), pytest.approx(0.25))


def test_what_was_not_measured_is_null_and_its_bar_not_met() -> None:
    found = bench.summarise(raw(pairs={}, sampling={}, roofline=[], objective={}, growth={}))
    assert found["vs_trl"]["sdpo"]["speed_best"] is None
    assert found["sampling"]["vs_vllm_cpu"] is None
    assert all(bar["met"] is None for bar in found["bars"])


def test_a_bar_is_met_by_its_value() -> None:
    met = {bar["name"]: bar["met"] for bar in bench.summarise(raw())["bars"]}
    assert met["grpo: speed at equal dtype"] is True
    assert met["opd: speed at equal dtype"] is False
    assert met["opd: peak memory at equal batch"] is False
    assert met["sampling, share of the matrix products' rate"] is False


def test_the_contract_of_the_summary() -> None:
    found = bench.summarise(raw())
    for method in ("grpo", "opd", "sdpo"):
        assert {"speed_equal_dtype", "speed_best", "memory"} <= set(found["vs_trl"][method])
    assert {"vs_generate_bf16", "vs_generate_fp32", "vs_vllm_cpu", "roofline"} <= set(found["sampling"])
    assert {"peak_flat", "head_overhead"} <= set(found["objective"])
    assert {"overhead", "machine", "versions", "date"} <= set(found)
    json.dumps(found)


def test_the_exponent_is_that_of_the_upper_half() -> None:
    sizes = [128, 256, 512, 1024, 2048, 4096]
    assert bench.exponent(sizes, [5.0, 5.0, 5.0, 1024.0, 2048.0, 4096.0]) == pytest.approx(1.0)
    assert bench.exponent(sizes, [size**2.0 for size in sizes]) == pytest.approx(2.0)


def test_the_page_keeps_what_is_outside_the_markers() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert page_with(page, "new\n") == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    with pytest.raises(ValueError, match="lacks"):
        page_with("no markers", "new\n")


def test_a_table_shows_what_is_in_the_summary() -> None:
    block = rendered(bench.summarise(raw()), raw())
    assert "**3.00** [2.50, 4.00]" in block
    assert "| grpo: speed at equal dtype | at least 3 | 3.00 | yes |" in block
    assert "| opd: speed at equal dtype | at least 3 | 2.00 | **no** |" in block
    assert "not measured" in block


@pytest.mark.skipif(not (RESULTS / "summary.json").is_file(), reason="nothing has been measured yet")
def test_the_kept_summary_is_made_from_the_kept_measurements() -> None:
    kept, measured = (json.loads((RESULTS / name).read_text()) for name in ("summary.json", "raw.json"))
    assert json.loads(json.dumps(bench.summarise(measured))) == kept
