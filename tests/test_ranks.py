"""Law 1 over data-parallel ranks: two processes with half the rows each are one process with all of them."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "laws"))

CASES = ("grpo-kl-entropy", "grpo-dr", "sdpo-hybrid", "opd-jsd(0.5)-1", "sft", "grpo-dapo")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def rank(number: int, world: int, port: int, job: Callable[[int, int], Any], file: str) -> None:
    """One process: join the others over loopback, do the job, save what it returns."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    import torch.distributed as dist

    if world > 1:
        dist.init_process_group("gloo", rank=number, world_size=world)
    torch.save(job(number, world), file)
    if world > 1:
        dist.destroy_process_group()


def over_ranks(job: Callable[[int, int], Any], world: int = 2) -> list[Any]:
    """What each of `world` processes returns. A rank that waits for another for a minute is a deadlock."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "redistill.text.domain", "redistill.methods", "redistill.build"])
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / str(number)) for number in range(world)]
        started = [context.Process(target=rank, args=(n, world, port, job, files[n])) for n in range(world)]
        for process in started:
            process.start()
        for process in started:
            process.join(60)
        stuck = [process for process in started if process.is_alive()]
        for process in stuck:
            process.kill()
        assert not stuck, "deadlock"
        assert [process.exitcode for process in started] == [0] * world
        return [torch.load(file, weights_only=True) for file in files]


def rows_of(number: int, world: int, count: int) -> list[int]:
    """An uneven split: the last rank has every third row, the first the others."""
    if world == 1:
        return list(range(count))
    return [i for i in range(count) if (i % 3 == 2) == (number == 1)]


def update_each_case(number: int, world: int) -> dict[str, Any]:
    """Every case: two updates over this rank's rows; weights, log and counters after them."""
    from lab import CASES as OPTIONS
    from lab import Lab
    from redistill.core.update import update

    found = {}
    for case in CASES:
        slug, options = OPTIONS[case]
        lab = Lab(slug, **options, learning_rate=1e-3)
        lab.shake_teachers()
        signal = lab.signal(lab.collected())
        mine = signal.subset(rows_of(number, world, len(signal.rows)))
        logs = [update(mine, lab.domain) for _ in range(2)]
        weights = torch.cat([p.detach().flatten() for p in lab.domain.players["student"].parameters.values()])
        found[case] = {
            "weights": weights,
            "loss": [log["loss"] for log in logs],
            "norm": [log["grad_norm"] for log in logs],
        }
    return found


def lonely(number: int, world: int) -> dict[str, Any]:
    """Rank 1 has no rows at all, then rows of no steps, then none in one of three mini-batches; then nobody has any."""
    from lab import Lab
    from redistill.core.update import update

    lab = Lab("grpo", learning_rate=1e-3)
    signal = lab.signal(lab.groups())
    empty = [i for i, row in enumerate(signal.rows) if row.steps == 0]
    everything = list(range(len(signal.rows)))
    plans = [
        ([] if number else everything, 1),
        (empty if number else everything, 1),
        ([4] if number else everything, 3),
    ]
    found: dict[str, Any] = {"norms": []}
    for rows, minibatches in [*plans, ([], 1)]:
        log = update(signal.subset(rows), lab.domain, minibatches)
        found["norms"].append(log.get("grad_norm", 0.0))
    player = lab.domain.players["student"]
    found["weights"] = torch.cat([p.detach().flatten() for p in player.parameters.values()])
    found["updates"] = player.updates
    return found


def poisoned(number: int, world: int) -> dict[str, Any]:
    """Only rank 1 has a row whose loss is not finite; both must skip."""
    from dataclasses import replace

    from lab import Lab
    from redistill.core.signal import Signal
    from redistill.core.update import update

    lab = Lab("grpo", learning_rate=1e-3)
    signal = lab.signal(lab.groups())
    (term,) = signal.terms
    if number == 1:
        term = replace(term, advantage_N=term.advantage_N * float("nan"))
    before = torch.cat([p.detach().flatten() for p in lab.domain.players["student"].parameters.values()])
    log = update(Signal(signal.rows, [term]), lab.domain)
    after = torch.cat([p.detach().flatten() for p in lab.domain.players["student"].parameters.values()])
    return {"skipped": log["skipped"], "moved": float((after - before).abs().max())}


@pytest.fixture(scope="module")
def both() -> Any:
    return over_ranks(update_each_case), over_ranks(update_each_case, world=1)[0]


@pytest.mark.parametrize("case", CASES)
def test_law_1_two_ranks_are_one(case: str, both: Any) -> None:
    (first, second), alone = both
    assert torch.equal(first[case]["weights"], second[case]["weights"]), "ranks must not drift apart"
    assert first[case]["loss"] == second[case]["loss"]
    assert first[case]["loss"] == pytest.approx(alone[case]["loss"], rel=1e-6, abs=1e-9)
    assert first[case]["norm"] == pytest.approx(alone[case]["norm"], rel=1e-6)
    # Adam divides by the gradient's size, so a coordinate whose gradient is rounding moves at will: the median is held.
    gap = (first[case]["weights"] - alone[case]["weights"]).abs()
    assert float(gap.median()) < 1e-9
    assert float(gap.max()) < 1e-3


def test_ranks_without_rows_take_part() -> None:
    first, second = over_ranks(lonely)
    assert torch.equal(first["weights"], second["weights"])
    assert first["norms"] == second["norms"]
    assert first["norms"][3] == 0.0
    assert all(norm > 0 for norm in first["norms"][:3])
    assert first["updates"] == second["updates"] == 5


def test_ranks_skip_together() -> None:
    assert over_ranks(poisoned) == [{"skipped": 1.0, "moved": 0.0}] * 2
