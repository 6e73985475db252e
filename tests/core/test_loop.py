"""The loop on a toy: stages, stopping, more steps, and that everything that evolves is saved (law 9)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.evolution import differences, fingerprints
from redistill.config import RunConfig
from redistill.core.loop import Run
from redistill.core.method import Method, Stage
from redistill.core.runs import RunFolder
from redistill.core.signal import Signal, Teacher
from redistill.core.specs import DivergenceKind, Support, TeacherWeights
from redistill.core.state import Piece, newest_good
from redistill.errors import UserError
from redistill.objectives.terms import Divergence, Likelihood
from toy import ToyDomain, ToyTask, toy_row, weights

EMA = TeacherWeights("ema", 0.3)


class Store:
    """What a method may keep."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def state(self) -> Piece:
        return Piece(facts={"seen": self.seen})

    def restore(self, piece: Piece) -> None:
        self.seen = list(piece.facts["seen"])


@dataclass(frozen=True)
class ToyMethod(Method):
    """Likelihood, and a sampled divergence from an average of the past."""

    slug = "toy"
    store: Store = field(default_factory=Store)
    bad_from: int | None = None
    ends_at: int | None = None

    def teachers(self) -> Sequence[TeacherWeights]:
        return (EMA,)

    def signal(self, groups: Sequence[Any], ctx: Any) -> Signal:
        rows = [row for group in groups for row in group]
        if self.bad_from is not None and ctx.step >= self.bad_from:
            rows = [toy_row(2, wild=True)]
        teacher = Teacher(EMA, tuple(0 for _ in rows))
        sampled = Divergence(teacher=teacher, kind=DivergenceKind("reverse_kl"), support=Support("sampled"))
        return Signal(rows, [Likelihood(), sampled])

    def after_update(self, groups: Sequence[Any], ctx: Any) -> None:
        self.store.seen += [group.prompt.uid for group in groups]

    def done(self, groups: Sequence[Any], ctx: Any) -> bool:
        return self.ends_at is not None and ctx.step == self.ends_at

    def state(self) -> Mapping[str, Any]:
        return {"store": self.store}


def make(path: Path, steps: int = 6, stages: Any = None, domain: Any = None, method: Any = None, **changed: Any) -> Run:
    config = RunConfig(
        **{"steps": steps, "save_every": 2, "prompts_per_step": 2, "learning_rate": 0.05, **changed}  # type: ignore[arg-type]
    )
    method = method or ToyMethod()
    domain = domain or ToyDomain()
    domain.bank.need(method.teachers())
    stages = stages or [Stage("toy", method)]
    return Run(method, config, ToyTask(), domain, RunFolder(path), stages, lambda event, facts: None)


def ran(path: Path, *, resume: bool = False, **more: Any) -> Run:
    run = make(path, **more)
    try:
        run.go(resume)
    finally:
        run.close()
    return run


def records(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if not k.startswith("seconds_")} for record in found]


# --- law 9 ------------------------------------------------------------------------------------------------------------
ROOTS = ("method", "stages", "domain", "cursor", "task", "config", "watch")
PER_STEP = ("domain.step", "domain.calls", "domain.omitted", "domain.generated")
"""What begin_step sets anew; every update sets the optimiser's rate from the learning rate and the warm-up."""


def unsaved(run: Run, before: Mapping[str, str], fresh: Run) -> set[str]:
    """What evolved in a run and is not in its checkpoint: after loading that into a fresh run, it differs still."""
    evolved = differences(before, fingerprints({name: getattr(run, name) for name in ROOTS}))
    assert len(evolved) > 10, "a law about nothing"
    folder, _ = newest_good(run.folder.checkpoints)
    assert folder is not None
    for log in run.folder.path.glob("*.jsonl"):  # a checkpoint counts the lines of its own folder's logs
        shutil.copyfile(log, fresh.folder.path / log.name)
    fresh.state.load(folder)
    run.close()
    fresh.close()
    left = differences(*(fingerprints({name: getattr(one, name) for name in ROOTS}) for one in (run, fresh)))
    return {path for path in left if not path.startswith(PER_STEP) and not path.endswith("['lr']")}


def prepared(path: Path, **more: Any) -> tuple[Run, dict[str, str]]:
    run = make(path, **more)
    return run, fingerprints({name: getattr(run, name) for name in ROOTS})


def test_law_9_everything_that_evolves_is_in_the_checkpoint(tmp_path: Path) -> None:
    run, before = prepared(tmp_path / "a")
    run.go(False)
    assert unsaved(run, before, make(tmp_path / "b")) == set()


class Forgetful(ToyDomain):
    """Counts its rollouts and tells nobody."""

    def rollout(self, prompts: Sequence[Any]) -> Any:
        self.unregistered += 1
        return super().rollout(prompts)


def test_law_9_a_part_that_is_not_registered_is_found(tmp_path: Path) -> None:
    run, before = prepared(tmp_path / "a", domain=Forgetful())
    run.go(False)
    assert unsaved(run, before, make(tmp_path / "b", domain=Forgetful())) == {"domain.unregistered"}


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_law_9_stop_and_resume_is_bit_for_bit(stop: int, tmp_path: Path) -> None:
    """Two stages of 3 and 4 steps, a store, a teacher; stopped by an error at a step, continued by another Run."""
    whole = ran(tmp_path / "whole", stages=two_stages())

    class Stopped(ToyDomain):
        def begin_step(self, step: int) -> None:
            if step == stop:
                raise KeyboardInterrupt
            super().begin_step(step)

    with pytest.raises(KeyboardInterrupt):
        ran(tmp_path / "parts", stages=two_stages(), domain=Stopped())
    parts = ran(tmp_path / "parts", stages=two_stages(), resume=True)
    assert torch.equal(weights(whole.domain), weights(parts.domain))  # type: ignore[arg-type]
    assert records(tmp_path / "whole") == records(tmp_path / "parts")
    assert whole.stages[1].method.store.seen == parts.stages[1].method.store.seen  # type: ignore[attr-defined]
    assert [path.name for path in (tmp_path / "parts" / "checkpoints").iterdir()]


def two_stages() -> list[Stage]:
    return [Stage("first", ToyMethod(), 3, 0.2), Stage("second", ToyMethod(), 4)]


# --- stages, stopping, more steps -----------------------------------------------------------------------------------
def test_a_stage_begins_with_fresh_optimisers_its_rate_and_copies_of_the_weights_as_they_are(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    class Second(ToyMethod):
        def enter(self, ctx: Any) -> None:
            player = ctx.domain.player
            seen["rate"], seen["updates"] = player.learning_rate, player.updates
            seen["moments"] = len(player.optimiser.state)
            seen["drift"] = max(ctx.domain.bank.drift().values())

    ran(tmp_path, stages=[Stage("first", ToyMethod(), 3, 0.2), Stage("second", Second(), 1, 0.01)])
    assert seen == {"rate": 0.01, "updates": 0, "moments": 0, "drift": 0.0}
    assert [record["stage"] for record in records(tmp_path) if "stage" in record] == ["first"] * 3 + ["second"]


def test_sync_counts_from_the_start_of_its_stage(tmp_path: Path) -> None:
    spec, seen = TeacherWeights("sync", 2), []

    class Watching(ToyMethod):
        def teachers(self) -> Sequence[TeacherWeights]:
            return (EMA, spec)

        def after_update(self, groups: Any, ctx: Any) -> None:
            seen.append(next(gap for name, gap in ctx.domain.bank.drift().items() if name.startswith("sync")))

    watching = Watching()
    ran(tmp_path, method=watching, stages=[Stage("first", ToyMethod(), 3), Stage("second", watching, 4)])
    # The drift is seen before the copy of the step is made: one step after a copy it is smaller than two steps after.
    assert seen[0] < seen[1]
    assert seen[2] < seen[1]
    assert seen[2] < seen[3]


def test_a_method_that_is_done_ends_its_stage_early(tmp_path: Path) -> None:
    run = ran(tmp_path, method=ToyMethod(ends_at=3))
    assert run.cursor.step == 3
    again = ran(tmp_path, method=ToyMethod(ends_at=3), steps=9, resume=True)
    assert again.cursor.step == 3, "done is done, however many steps are asked for"


def test_updates_that_are_never_finite_stop_the_run_and_leave_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="3 updates in a row were not finite at step 5") as caught:
        ran(tmp_path, method=ToyMethod(bad_from=2), max_bad_updates=3)
    assert "\n" not in str(caught.value)
    folder, refused = newest_good(tmp_path / "checkpoints")
    assert folder is not None
    assert refused == []
    assert [record["skipped"] for record in records(tmp_path) if "skipped" in record] == [0.0, 0.0, 1.0, 1.0, 1.0]


def test_a_finished_run_can_be_given_more_steps(tmp_path: Path) -> None:
    whole = ran(tmp_path / "whole", steps=7)
    ran(tmp_path / "parts", steps=4)
    parts = ran(tmp_path / "parts", steps=7, resume=True)
    assert torch.equal(weights(whole.domain), weights(parts.domain))  # type: ignore[arg-type]
    assert parts.cursor.evaluations == whole.cursor.evaluations
    trained = [[r for r in records(tmp_path / name) if "stage" in r] for name in ("whole", "parts")]
    assert trained[0] == trained[1]


def test_a_finished_run_resumed_does_nothing_more(tmp_path: Path) -> None:
    one = ran(tmp_path)
    before = records(tmp_path)
    two = ran(tmp_path, resume=True)
    assert records(tmp_path) == before
    assert torch.equal(weights(one.domain), weights(two.domain))  # type: ignore[arg-type]


def test_fewer_steps_than_done_are_refused(tmp_path: Path) -> None:
    ran(tmp_path)
    with pytest.raises(UserError, match="steps=3 is no more than the 6 steps"):
        ran(tmp_path, steps=3, resume=True)


def test_without_a_checkpoint_a_resumed_run_starts_from_the_beginning(tmp_path: Path) -> None:
    whole = ran(tmp_path / "whole")
    run = make(tmp_path / "parts")
    run.log_file.add({"left": "over"})
    run.close()
    parts = ran(tmp_path / "parts", resume=True)
    assert torch.equal(weights(whole.domain), weights(parts.domain))  # type: ignore[arg-type]
    assert records(tmp_path / "whole") == records(tmp_path / "parts")


def test_prompts_are_used_once_in_order(tmp_path: Path) -> None:
    run = ran(tmp_path, steps=3)
    assert run.method.store.seen == [str(i) for i in range(6)]  # type: ignore[attr-defined]


def test_keys_of_a_method_depend_on_seed_step_and_name(tmp_path: Path) -> None:
    run = make(tmp_path)
    draws = {}
    for seed in (0, 1):
        run.config = replace(run.config, seed=seed)
        for step in (0, 1):
            run.cursor.step = step
            for name in ("a", "b"):
                draws[seed, step, name] = tuple(run.uniform(name, range(3)))
                assert tuple(run.uniform(name, range(3))) == draws[seed, step, name]
    run.close()
    assert len(set(draws.values())) == 8
