"""The benchmark: `make bench`, or `python -m benchmarks.run [--quick] [--rounds 3] [--only grpo,sampling] [--keep]`.

Workers of ours and of the peer take turns at the same work; equal work is asserted after every round; raw measurements go
to benchmarks/results/raw.json as they come, the summary and the page's tables are made from them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import plan, table
from benchmarks.growth import AXES, SIZES
from benchmarks.models import student, teacher
from benchmarks.port import ROOT, Worker, WorkerError
from benchmarks.summary import assert_equal_work, assert_losses_agree, pair_peak, summarise
from benchmarks.workload import questions

LOGS = ROOT / ".bench" / "log"
PYTHONS = {"ours": Path(sys.executable), "trl": ROOT / ".bench/trl/bin/python", "vllm": ROOT / ".bench/vllm/bin/python"}


class Bench:
    """What has been measured, and where it goes."""

    def __init__(self, results: Path, quick: bool, rounds: int, keep: bool) -> None:
        self.path, self.threads = results, int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
        results.mkdir(parents=True, exist_ok=True)
        self.raw: dict[str, Any] = {
            "pairs": {},
            "sampling": {},
            "versions": {},
            "notes": [],
            "roofline": [],
            "seconds": {},
        }
        if keep and (results / "raw.json").is_file():
            self.raw |= json.loads((results / "raw.json").read_text())
        self.raw |= {
            "machine": machine(self.threads), "date": datetime.date.today().isoformat(), "quick": quick, "rounds": rounds,
        }  # fmt: skip
        self.began = time.monotonic()

    def start(self, environment: str, module: str, settings: dict[str, Any], tag: str) -> Worker:
        """A worker of one environment, ready; its versions are remembered."""
        worker = Worker(PYTHONS[environment], module, settings, LOGS / f"{tag}.{module}.log", self.threads)
        for name, value in worker.ready.get("versions", {}).items():
            self.raw["versions"].setdefault(name if environment == "ours" else f"{name} ({environment})", value)
        return worker

    def tell(self, text: str) -> None:
        """A line of progress."""
        print(f"[{time.monotonic() - self.began:5.0f} s] {text}", flush=True)

    def save(self) -> None:
        """Write what there is."""
        (self.path / "raw.json").write_text(json.dumps(self.raw, indent=1) + "\n")


def machine(threads: int) -> dict[str, Any]:
    """The processor's name, threads, memory, system."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {"cpu": name, "threads": threads, "memory_gb": round(memory, 1), "system": platform.platform()}


def measure_pair(bench: Bench, pair: plan.Pair) -> None:
    """Rounds of one pair. The first step is given: ours samples, and the peer is handed the same tokens; it warms both up,
    and shows that both compute the same loss and gradient. Then both sample for themselves, in turns."""
    common = {"method": pair.method, "model": str(student(pair.model)), "work": vars(pair.work)}
    if pair.method.startswith("opd"):
        common["teacher"] = str(teacher(pair.model))
    ours = peer = None
    try:
        ours = bench.start("ours", "our_worker", {**common, **pair.ours}, pair.name)
        first = ours.ask("step")
        given = first.pop("rows")
        if pair.once:
            ours.stop()  # two such models side by side would not fit
        settings = plan.fastest(bench.raw["pairs"]) if pair.peer is None else pair.peer
        peer = bench.start(pair.environment, "trl_worker", {**common, **settings}, pair.name)
        theirs = peer.ask("step", given=given)
        first["state_gb"] = ours.ready["state_gb"]
        assert_equal_work(pair.name, first, theirs)
        if pair.agree is not None:
            assert_losses_agree(pair.name, first, theirs, pair.agree)
        found: dict[str, Any] = {
            "ours": [],
            "peer": [],
            "ours_first": first,
            "peer_first": theirs,
            "peer_settings": settings,
        }
        if pair.once:
            found |= {"ours": [first], "peer": [theirs]}
        bench.raw["pairs"][pair.name] = found
        for number in range(pair.rounds):
            a = ours.ask("step")
            a.pop("rows")
            b = peer.ask("step")
            assert_equal_work(f"{pair.name}, round {number}", a, b)
            found["ours"].append(a)
            found["peer"].append(b)
            bench.tell(f"{pair.name}: ours {a['seconds']['total']:.1f} s, TRL {b['seconds']['total']:.1f} s")
        bench.tell(f"{pair.name}: peak {pair_peak(found, 'ours'):.2f} GB, TRL {pair_peak(found, 'peer'):.2f} GB")
    finally:
        for worker in (ours, peer):
            if worker is not None:
                worker.stop()
        bench.save()


def measure_sampling(bench: Bench, rounds: int, quick: bool) -> None:
    """All samplers in turns at the same prompts, the machine's rates among them; the first round does not count."""
    name, batch, new_tokens = ("pocket", 8, 8) if quick else ("smollm2-135m", 64, 48)
    model, workers = str(student(name)), {}
    try:
        for sampler in plan.samplers(quick):
            settings = {"model": model, "batch": batch, **sampler.settings}
            try:
                workers[sampler.name] = bench.start(sampler.environment, sampler.module, settings, sampler.name)
            except (WorkerError, OSError) as error:
                bench.raw["notes"].append(f"{sampler.name} did not run here: {str(error).splitlines()[-1]}")
                bench.tell(bench.raw["notes"][-1])
        roof = bench.start("ours", "roofline", {"model": model, "batch": batch}, "roofline")
        prompts = prompt_ids(model, batch)
        taken: dict[str, list[Any]] = {name: [] for name in workers}
        bench.raw["sampling"], bench.raw["roofline"] = taken, []
        for number in range(rounds + 1):
            length = new_tokens if number else 8
            for key, worker in workers.items():
                record = worker.ask("sample", prompts=prompts, new_tokens=length)
                assert_equal_work(f"sampling {key}", {"sampled": batch * length}, record)
                if number:
                    taken[key].append(record)
                    bench.tell(f"sampling {key}: {record['sampled'] / record['seconds']['total']:.0f} tokens/s")
            if number:
                bench.raw["roofline"].append(roof.ask("measure"))
        workers["roofline"] = roof
    finally:
        for worker in workers.values():
            worker.stop()
        bench.save()


def prompt_ids(model: str, count: int) -> list[list[int]]:
    """Token ids of the first prompts, rendered by the model's own template."""
    from redistill.text.models import load_tokenizer, render

    tokenizer = load_tokenizer(model, Path(model))[0]
    return [render(model, tokenizer, chat) for chat in questions(count)]


def measure_objective(bench: Bench, quick: bool) -> None:
    """Peak of the objective against the number of steps (a process for each), and the head beside its products."""
    vocabulary, width = (16384, 16) if quick else (262144, 32)
    memory, heads = [], []
    for steps in (256, 1024) if quick else (4096, 16384, 65536):
        worker = bench.start("ours", "objective", {}, "objective")
        memory.append(worker.ask("memory", steps=steps, width=width, vocabulary=vocabulary))
        worker.stop()
        bench.tell(f"objective: {steps} steps, working memory {memory[-1]['working_gb']:.3f} GB")
    worker = bench.start("ours", "objective", {}, "objective")
    size = (128, 64, 2048) if quick else (1536, 576, 49152)
    for _ in range(1 if quick else 3):
        heads.append(worker.ask("overhead", steps=size[0], width=size[1], vocabulary=size[2]))
        bench.tell(f"objective: head over its products {heads[-1]['overhead']:+.0%}")
    worker.stop()
    bench.raw["objective"] = {"memory": memory, "overhead": heads}
    bench.save()


def measure_growth(bench: Bench, quick: bool) -> None:
    """Every axis of growth, and its plot."""
    worker = bench.start("ours", "growth", {}, "growth")
    bench.raw["growth"] = {}
    for axis in SIZES:
        largest = sorted(SIZES[axis])[1] if quick else max(SIZES[axis])
        answer = worker.ask("grow", axis=axis, largest=largest, repetitions=1 if quick else 3)
        bench.raw["growth"][axis] = {**answer, "what": AXES[axis]}
        bench.tell(f"growth with {axis}: {answer['seconds'][0]:.2f} to {answer['seconds'][-1]:.2f} s")
    worker.stop()
    bench.save()


def plot(summary: dict[str, Any], path: Path) -> None:
    """One panel an axis: seconds over size, both logarithmic, with the line that a linear cost would follow."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    axes = summary["growth"]
    figure, panels = plt.subplots(1, len(axes), figsize=(3.2 * len(axes), 3.2), constrained_layout=True)
    for panel, (axis, points) in zip([panels] if len(axes) == 1 else list(panels), axes.items()):
        sizes, seconds = points["sizes"], points["seconds"]
        panel.loglog(sizes, seconds, "o-", label=f"exponent {points['exponent']:.2f}")
        panel.loglog(sizes, [seconds[-1] * size / sizes[-1] for size in sizes], "--", color="grey", label="linear")
        panel.set_xlabel(axis)
        panel.set_ylabel("seconds")
        panel.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny work, to .bench/quick: shows that all of it runs")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds")
    parser.add_argument("--only", default="", help="names of pairs (or their beginnings), sampling, objective, growth")
    parser.add_argument("--keep", action="store_true", help="keep what was measured before and is not measured now")
    parser.add_argument("--note", default="", help="a sentence for the page, such as: the machine was shared")
    return parser.parse_args(given)


def main() -> None:
    """Measure, summarise, render."""
    asked = arguments()
    results = ROOT / ".bench" / "quick" if asked.quick else table.RESULTS
    bench = Bench(results, asked.quick, asked.rounds, asked.keep)
    if asked.note:
        bench.raw["notes"].append(asked.note)
    only = [name for name in asked.only.split(",") if name]

    def wanted(name: str) -> bool:
        return not only or any(name.startswith(part) for part in only)

    for pair in plan.pairs(asked.quick, asked.rounds):
        if wanted(pair.name):
            attempt(bench, pair.name, lambda pair=pair: measure_pair(bench, pair))  # type: ignore[misc]
    parts: dict[str, Callable[[], None]] = {
        "sampling": lambda: measure_sampling(bench, asked.rounds, asked.quick),
        "objective": lambda: measure_objective(bench, asked.quick),
        "growth": lambda: measure_growth(bench, asked.quick),
    }
    for name, part in parts.items():
        if wanted(name):
            attempt(bench, name, part)
    summary = summarise(bench.raw)
    (results / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    if summary["growth"]:
        plot(summary, results / "growth.png")
    print("\n".join(table.rendered(summary, bench.raw).splitlines()))
    if not asked.quick:
        table.main()
    if bench.raw["failed"]:
        sys.exit(f"not measured: {', '.join(bench.raw['failed'])}")


def attempt(bench: Bench, name: str, part: Callable[[], None]) -> None:
    """Measure one part; one that fails is told and does not keep the others from being measured (the exit status says so)."""
    bench.raw.setdefault("failed", {}).pop(name, None)
    began = time.monotonic()
    try:
        part()
    except (WorkerError, OSError, AssertionError, ValueError) as error:
        bench.raw["failed"][name] = str(error)
        bench.tell(f"{name} FAILED: {error}")
    bench.raw["seconds"][name] = round(time.monotonic() - began, 1)
    bench.save()


if __name__ == "__main__":
    main()
