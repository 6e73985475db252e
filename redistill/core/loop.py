"""The loop: collect, signal, update, evolve, evaluate, save. Read this file to know what a run does."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from redistill.config import RunConfig
from redistill.core import rng
from redistill.core.budget import Clock, Dry, spend
from redistill.core.cursor import Cursor
from redistill.core.domain import Domain
from redistill.core.episode import Group
from redistill.core.method import Method, Stage
from redistill.core.runs import Log, RunFolder
from redistill.core.signal import Signal
from redistill.core.state import Piece, State, Stateful, newest_good
from redistill.core.stopping import Interrupted, Stop
from redistill.core.task import Prompt, Task
from redistill.core.trace import Recorder
from redistill.core.update import update
from redistill.core.vitals import activity, describe_groups
from redistill.errors import OutsideFault, UserError
from redistill.evaluation.health import Watch

Report = Callable[[str, Mapping[str, Any]], None]
"""Told what happens ("start", "views", "step", "evaluated", "saved", "warning", ...) with its facts; prints or ignores."""

IDLE_STEPS = 10
"""Steps in a row without any gradient after which a run says so."""
DRIFT_EVERY, DRIFT_SAMPLE = 5, 4096
"""Steps between two looks at how far teacher copies are from the student, and the numbers of each tensor that are looked at."""


@dataclass
class Run:
    """One run of one method. Implements the `Context` that methods see."""

    method: Method
    config: RunConfig
    task: Task
    domain: Domain
    folder: RunFolder
    stages: Sequence[Stage]
    report: Report
    stop: Stop = field(default_factory=Stop)
    cursor: Cursor = field(default_factory=Cursor)
    metrics: dict[str, float] = field(default_factory=dict)
    saved: tuple[int, int] | None = None
    dry: Dry = field(default_factory=Dry)

    def __post_init__(self) -> None:
        self.log_file = Log(self.folder.path / "metrics.jsonl")
        self.samples = Log(self.folder.path / "samples.jsonl", limit=int(self.config.samples_mb * 1e6))
        self.alarms, self.watch = Log(self.folder.path / "alarms.jsonl"), Watch()
        self.credit = Log(self.folder.path / "credit.jsonl")
        self.recorder = Recorder(self)
        self.state = State()
        parts: dict[str, Stateful] = {"cursor": self.cursor, "watch": self.watch, **self.domain.stateful()}
        parts |= {f"player-{name}": player for name, player in self.domain.players.items()}
        parts |= {"teachers": self.domain.bank, "recorder": self.recorder}
        kept = {f"{stage.name}-{name}": part for stage in self.stages for name, part in stage.method.state().items()}
        self.kept, parts = list(kept.values()), parts | kept
        # Logs last: what is cut off them when they are restored does not come back.
        parts |= {"metrics": self.log_file, "samples": self.samples, "alarms": self.alarms, "credit": self.credit}
        for name, part in parts.items():
            self.state.register(name, part)

    # --- the context that methods see -------------------------------------------------------------------------------
    @property
    def step(self) -> int:
        """Updates done so far."""
        return self.cursor.step

    @property
    def stage_step(self) -> int:
        """Updates done in this stage."""
        return self.cursor.step - self.cursor.stage_began

    def next_prompts(self) -> list[Prompt]:
        """The step's training prompts."""
        first = self.cursor.prompts
        self.cursor.prompts += self.config.prompts_per_step
        return [self.task.train(index, self.config.seed) for index in range(first, self.cursor.prompts)]

    def uniform(self, *key: Any) -> Any:
        """Uniform draws keyed by run seed, step and key."""
        return rng.uniform("method", self.config.seed, self.cursor.step, *key)

    def log(self, name: str, value: float) -> None:
        """Add a number to the step's metrics."""
        self.metrics[name] = float(value)

    # --- the loop ---------------------------------------------------------------------------------------------------
    def go(self, resume: bool) -> dict[str, Any]:
        """Run to the end and return the result that is also written to result.json."""
        began = time.monotonic()
        with self.stop.held():
            if resume:
                self._resume()
            self.report("start", {"steps": self._total(), "at": self.cursor.step, "folder": str(self.folder.path)})
            try:
                self._train()
            except Interrupted as interrupted:
                self._save()
                interrupted.checkpoint = newest_good(self.folder.checkpoints)[0]
                raise
            except OutsideFault as gone:
                newest = newest_good(self.folder.checkpoints)[0]
                kept = f"{newest} is intact" if newest else "there was no checkpoint yet"
                raise UserError(f"{gone}; {kept}: --resume --out {self.folder.path} goes on from there") from None
            return self._finish(time.monotonic() - began)

    def _train(self) -> None:
        """Step after step; between two of them the evaluations that are due, a checkpoint when it is time for one, and
        the moment at which the run may be stopped."""
        while True:
            for label in self._due():
                self._evaluate(label)
            finished = self.cursor.stage == len(self.stages)
            best = self.config.keep_best > 0 and self.cursor.step in self.cursor.best(self.config.keep_best)
            if finished:  # before the checkpoint, which counts what is recorded
                self.recorder.finished(self.stages[-1])
            if finished or best or (self.cursor.step and self.cursor.step % self.config.save_every == 0):
                self._save(finished)
            if finished:
                return
            self.stop.check()
            stage = self.stages[self.cursor.stage]
            if self.cursor.step == self.cursor.stage_began:
                self._enter(stage)
            self.cursor.done = self._one_step(stage)
            if self.cursor.done or self.cursor.step - self.cursor.stage_began >= self._steps(stage):
                self.cursor.stage += 1
                if self.cursor.stage < len(self.stages):
                    self.cursor.stage_began = self.cursor.step
            if self.config.budget and self.config.budget.share(self.cursor.spent) >= 1:
                self.cursor.stage, self.cursor.done = len(self.stages), True

    def _due(self) -> list[str]:
        """Labels of the evaluations that belong to this moment and have not been made (a stop may have come before)."""
        stage, step = self.cursor.stage, self.cursor.step
        labels = [] if step else ["before"]
        if stage == len(self.stages):
            labels.append("after")
        else:
            if stage and step == self.cursor.stage_began:
                labels.append(f"after {self.stages[stage - 1].name}")
            if step and self.config.eval_every and step % self.config.eval_every == 0:
                labels.append(f"step-{step}")
            part = self.config.budget.part(self.cursor.spent, self.config.eval_parts) if self.config.budget else 0
            labels += [f"part-{part}"] if part else []
        return [label for label in labels if label not in self.cursor.evaluations]

    def _steps(self, stage: Stage) -> int:
        return self.config.steps if stage.steps is None else stage.steps

    def _total(self) -> int:
        """Steps of the run if no stage ends early."""
        if self.cursor.stage == len(self.stages):
            return self.cursor.step
        share = self.config.budget.share(self.cursor.spent) if self.config.budget else 0.0
        if share:
            return min(self.config.steps, math.ceil(self.cursor.step / min(share, 1.0)))
        return self.cursor.stage_began + sum(self._steps(stage) for stage in self.stages[self.cursor.stage :])

    def _enter(self, stage: Stage) -> None:
        """At the first step of a stage: its learning rate, fresh optimisers, and teacher copies of the weights as they are."""
        rate = self.config.learning_rate if stage.learning_rate is None else stage.learning_rate
        for player in self.domain.players.values():
            player.learning_rate = rate
            player.fresh_optimiser()
        self.domain.bank.refresh()
        stage.method.enter(self)
        self.watch.enter()
        self.report("stage", {"stage": stage.name, "step": self.cursor.step})

    def _one_step(self, stage: Stage) -> bool:
        """One step of a stage; whether its method says that it is done."""
        self.metrics = {}
        clock = Clock()
        recorded = self.recorder.mark()
        self.recorder.before(stage)
        clock.lap("record")
        self.domain.begin_step(self.cursor.step)
        # A step is finished where a method keeps things (how they were is not remembered), or where a stage has just begun.
        begins = self.cursor.step == self.cursor.stage_began
        with nullcontext() if begins or self.kept else self._breakable(recorded):
            groups = stage.method.collect(self)
        clock.lap("collect")
        made = stage.method.signal(groups, self)
        signals: Sequence[Signal] = [made] if isinstance(made, Signal) else list(made)
        clock.lap("signal")
        self._show_views(stage, groups, signals)
        self.recorder.training(stage, groups, signals)
        clock.lap("record")
        for number, signal in enumerate(signals):
            measured = update(signal, self.domain, self.config.minibatches, self._orders(number, len(signal.rows)))
            prefix = "" if signal.player == "student" else f"{signal.player}/"
            self.metrics |= {prefix + name: value for name, value in measured.items()}
        clock.lap("update")
        self.metrics |= activity(signals, groups)
        self.cursor.step += 1
        stage.method.after_update(groups, self)
        self.domain.bank.after_step(self.cursor.step - self.cursor.stage_began)
        if self.stage_step % DRIFT_EVERY == 1:
            self.metrics |= {f"drift/{name}": gap for name, gap in self.domain.bank.drift(DRIFT_SAMPLE).items()}
        clock.lap("evolve")
        self._record(stage, groups, clock, bool(signals))
        return stage.method.done(groups, self)

    def _show_views(self, stage: Stage, groups: Sequence[Group], signals: Sequence[Signal]) -> None:
        """Keep what is read at a stage's first training step: the last stage's is views.txt."""
        path = self.folder.path / ("views.txt" if stage is self.stages[-1] else f"views-{stage.name}.txt")
        if signals and (self.cursor.step == self.cursor.stage_began or not path.exists()):
            views = self.domain.describe(groups, signals)
            self.folder.write(path.name, views)
            self.report("views", {"text": views})

    def _orders(self, number: int, rows: int) -> list[Sequence[int]]:
        """The order of a signal's rows in each epoch: as they are for one epoch, else keyed shuffles."""
        if self.config.epochs == 1:
            return [range(rows)]
        key = ("shuffle", self.config.seed, self.cursor.step, number)
        return [rng.permutation(rows, *key, epoch).tolist() for epoch in range(self.config.epochs)]

    def _record(self, stage: Stage, groups: Sequence[Group], clock: Clock, trains: bool) -> None:
        self.metrics |= describe_groups(groups)
        if self.metrics.get("given_up"):
            count = f"{self.metrics['given_up']:.0f} answers"
            self._warn_once("given_up", f"{count} could not be judged within a limit and got the lowest reward")
        self._count_omitted()
        made = getattr(self.domain, "generated", {})
        self.metrics |= spend(self.cursor.spent, made, clock.seconds)
        self.dry.watch(self.method.slug, self.config.budget, made, self._steps(stage))
        record = {"step": self.cursor.step, "stage": stage.name, **self.metrics}
        self.log_file.add({**record, **clock.seconds})
        for group in list(groups)[:1]:
            for episode in list(group)[:2]:
                verdict = episode.verdict
                added = self.samples.add({
                    "step": self.cursor.step, "prompt": group.prompt.content, "view": episode.sampled_under,
                    "text": episode.text, "finish": episode.finish, "reward": verdict.reward if verdict else None,
                    "feedback": verdict.feedback if verdict else None,
                })  # fmt: skip
                if not added:
                    limit = f"samples_mb={self.config.samples_mb:g}"
                    self._warn_once("samples.jsonl", f"samples.jsonl has reached {limit} and grows no more")
        self.report("step", {**record, **clock.seconds, "of": self._total()})
        self._tell(self.watch.step(self.cursor.step, record))
        self._watch_signal(trains)
        for name, player in self.domain.players.items():
            if self.metrics.get("skipped" if name == "student" else f"{name}/skipped"):
                self.report(
                    "warning",
                    {"text": f"step {self.cursor.step}: a non-finite loss or gradient; {name} was not updated"},
                )
            if player.bad_in_a_row >= self.config.max_bad_updates:
                newest = newest_good(self.folder.checkpoints)[0]
                kept = f"its checkpoint {newest} is intact" if newest else "it had not saved a checkpoint yet"
                raise UserError(
                    f"{player.bad_in_a_row} updates in a row were not finite at step {self.cursor.step}; the run stops and "
                    f"{kept} (try a smaller learning_rate)"
                )

    def _watch_signal(self, trains: bool) -> None:
        """Warn when the gradient has been exactly zero for a while: a run that learns nothing looks like one that has
        learnt everything. A step that asks for no update (a stage that only gathers) is neither."""
        idle = trains and not self.metrics.get("skipped") and self.metrics.get("grad_norm", 0.0) == 0.0
        self.cursor.idle = self.cursor.idle + 1 if idle else 0
        if self.cursor.idle == IDLE_STEPS:
            dead = self.metrics.get("dead_groups")
            share = "" if dead is None else f" ({dead:.0%} of the groups have one reward for all answers)"
            text = (
                f"step {self.cursor.step}: no gradient in the last {IDLE_STEPS} steps{share}: nothing is being learnt"
            )
            self.report("warning", {"text": text})

    def _tell(self, alarms: Sequence[Mapping[str, Any]]) -> None:
        """Keep what the watch has to say, and say it."""
        for alarm in alarms:
            self.alarms.add(alarm)
            self.report("alarm", alarm)

    def _count_omitted(self) -> None:
        """Log what a domain left out of the step (prompts that do not fit, by view), and tell of each kind once."""
        for what, count in getattr(self.domain, "omitted", {}).items():
            self.metrics[f"omitted/{what}"] = float(count)
            self._warn_once(what, f"{count} of {what!r} did not fit and were left out")

    def _warn_once(self, what: str, text: str) -> None:
        """Warn of a kind of thing that is counted at every step, the first time it happens."""
        if what not in self.cursor.told:
            self.cursor.told.append(what)
            self.report("warning", {"text": f"step {self.cursor.step}: {text}; every step's count is in metrics.jsonl"})

    def _evaluate(self, label: str) -> None:
        with self._breakable():
            result = {**self.domain.evaluate(label), **self.method.measures(self)}
        self.cursor.evaluations[label] = {"step": self.cursor.step, **result}
        # The log stays small: what each prompt came to is in result.json.
        short = {key: value for key, value in result.items() if key not in ("outcomes", "counts")}
        self.log_file.add({"step": self.cursor.step, "evaluation": label, **short})
        self.report("evaluated", {"label": label, "step": self.cursor.step, **result})
        taught = any(stage.method.teachers() and stage.method.utility_view() for stage in self.stages)
        self._tell(self.watch.evaluated(self.cursor.step, result, taught))

    @contextmanager
    def _breakable(self, recorded: tuple[int, int] | None = None) -> Iterator[None]:
        """A block that a signal may break off at once, wherever it is: what it has counted and recorded (since `recorded`), and
        whose weights it has swapped in, is put back, as if it had not begun."""
        parts = [*self.domain.stateful().values(), *self.kept]
        prompts, counted = self.cursor.prompts, [(part, deepcopy(part.state())) for part in parts]
        tensors = [tensor for player in self.domain.players.values() for tensor in player.tensors.values()]
        own = [tensor.data for tensor in tensors]
        try:
            with self.stop.at_once():
                yield
        except Interrupted:
            for tensor, data in zip(tensors, own):
                tensor.data = data
            for part, before in counted:
                part.restore(before)
            self.cursor.prompts = prompts
            if recorded is not None:
                self.recorder.rewind(recorded)
            raise

    def _save(self, finished: bool = False) -> None:
        """Save a checkpoint, unless there is one of this very moment. After updates that were not finite, only the end of
        the run is saved: the weights may be spoilt already, and good checkpoints must not make room for them."""
        moment = (self.cursor.step, len(self.cursor.evaluations))
        bad = any(player.bad_in_a_row for player in self.domain.players.values())
        if moment == self.saved or (bad and not finished):
            return
        path = self.state.save(
            self.folder.checkpoints, self.cursor.step, self.config.keep_last,
            keep=self.cursor.best(self.config.keep_best), beside=self.domain.write_beside,
        )  # fmt: skip
        self.saved = moment
        self.report("saved", {"path": str(path)})

    def _resume(self) -> None:
        asked = (self._steps(self.stages[-1]), len(self.stages))
        folder, refused = self.state.load_newest(
            self.folder.checkpoints, lambda parts: Cursor.check_saved(parts, *asked, self.folder.path)
        )
        if refused and folder is None:  # to start again would cut off the logs of what was done
            raise UserError(
                f"{refused[0]}, and no other checkpoint is good: to start from the beginning, remove {self.folder.checkpoints}"
            )
        for sentence in refused:
            self.report("warning", {"text": f"{sentence}; the one before it is used"})
        if folder is None:
            for log in (self.log_file, self.samples, self.alarms, self.credit):
                log.restore(Piece(facts={"bytes": 0}))
            self.report(
                "warning",
                {"text": f"no checkpoint in {self.folder.checkpoints}: the run starts from the beginning"},
            )
            return
        self.cursor.reopen(*asked)
        self.saved = (self.cursor.step, len(self.cursor.evaluations))
        self.report("resumed", {"path": str(folder), "step": self.cursor.step})

    def _finish(self, seconds: float) -> dict[str, Any]:
        if self.config.save_model:
            self.domain.save(self.folder.path / "model")
        skipped = sum(player.skipped for player in self.domain.players.values())
        result = {
            "method": self.method.slug, "steps": self.cursor.step, "prompts": self.cursor.prompts,
            "evaluations": self.cursor.evaluations, "skipped_updates": skipped, "seconds": round(seconds, 1),
            "spent": {"updates": self.cursor.step, **self.cursor.spent},
        }  # fmt: skip
        if self.config.keep_best:
            result["best_steps"] = self.cursor.best(self.config.keep_best)
        self.folder.write("result.json", result)
        self.report("finished", {**result, "folder": str(self.folder.path)})
        return result

    def close(self) -> None:
        """Close the run's files, end what listens to it, and let go of its folder."""
        self.report("close", {})
        for log in (self.log_file, self.samples, self.alarms, self.credit):
            log.close()
        self.folder.close()
