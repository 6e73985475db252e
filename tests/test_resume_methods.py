"""Law 9 for every registered method: stopped and resumed, it ends bit for bit where it would have, and nothing that evolves is
left out of its checkpoints. (Real kills are in test_kills.py.)"""

from __future__ import annotations

import gc
import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redistill.methods
import redistill.text.domain
import torch
from benchmarks.evolution import differences, fingerprints, of_the_process
from benchmarks.resume_runs import slugs
from benchmarks.resume_states import examine

POINTS = [*slugs(), "opd with LoRA", "opd with a late average", "ps-kd with a copy"]
"""Every method, and kinds of state that none of them has by itself: adapters, an average that starts late, an epoch's copy.
A method that is added is here by itself; where it does not run with its domain's settings, benchmarks/resume_runs.py tells what
it needs."""


@pytest.mark.parametrize("name", POINTS)
def test_law_9_every_method_resumes_bit_for_bit_and_saves_everything_that_evolves(name: str, tmp_path: Path) -> None:
    found = examine(name, tmp_path, save_model="false")
    assert found.unsaved == [], "evolves and is not in the checkpoint"
    assert found.differs == [], "not what an uninterrupted run leaves"
    assert found.covered == found.registered
    assert {"cursor", "player-student", "metrics", "samples"} <= set(found.registered)
    assert found.trained, "nothing was learnt, so nothing was shown"
    assert found.evolved > 30


def test_a_part_that_is_not_registered_fails_with_its_class_and_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = redistill.text.domain.TextDomain.rollout

    def rollout(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.drawn = getattr(self, "drawn", 0) + 1
        return real(self, *args, **kwargs)

    monkeypatch.setattr(redistill.text.domain.TextDomain, "rollout", rollout)
    assert examine("rft", tmp_path, save_model="false").unsaved == ["TextDomain at domain.drawn"]


class Keeper:
    """Holds one thing."""

    def __init__(self, held: Any) -> None:
        self.held = held


class Slotted:
    """Holds one thing without a __dict__."""

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = 0


def counter() -> Any:
    """A function that counts its calls where only its closure can be seen."""
    calls = [0]

    def call() -> None:
        calls[0] += 1

    return call


def numbers() -> Any:
    at = 0
    while True:
        at += 1
        yield at


HIDING_PLACES = {
    "a list": ([1], lambda held: held.append(2)),
    "a generator of torch": (torch.Generator().manual_seed(0), lambda held: torch.rand(1, generator=held)),
    "a generator of numpy": (np.random.default_rng(0), lambda held: held.random()),
    "a generator of Python": (random.Random(0), lambda held: held.random()),
    "an iterator": (iter([1, 2, 3]), next),
    "a counter": (itertools.count(), next),
    "a running generator": (numbers(), next),
    "a closure": (counter(), lambda held: held()),
    "a bound method": ([].append, lambda held: held(1)),
    "slots": (Slotted(), lambda held: setattr(held, "held", 1)),
    "a parameter": (torch.nn.Linear(2, 2), lambda held: held.weight.data.add_(1)),
}


@pytest.mark.parametrize("place", HIDING_PLACES)
def test_the_search_looks_into(place: str) -> None:
    held, change = HIDING_PLACES[place]
    owner = Keeper(Keeper(held))
    before = fingerprints({"run": owner})
    assert fingerprints({"run": owner}) == before
    change(held)
    after = fingerprints({"run": owner})
    assert differences(before, after)
    assert all(path.startswith("run.held.held") for path in differences(before, after))


def test_the_search_sees_the_global_generators_and_the_package() -> None:
    gc.collect()  # models of earlier tests leave the package's weak tables when they are collected, not before
    states = torch.get_rng_state(), random.getstate()
    before = fingerprints(of_the_process())
    torch.rand(1)
    random.random()
    redistill.methods.counted = 1  # type: ignore[attr-defined]
    after = fingerprints(of_the_process())
    del redistill.methods.counted  # type: ignore[attr-defined]
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    assert differences(before, after) == {"random of torch", "random of Python", "redistill.methods.counted"}
