"""What `redistill report` shows of a run's inside: now and then, what each term asks of each step, into credit.jsonl.

Before some updates the method is run on a few fixed held-out prompts (collect and signal, as in training, without an update),
and the rows it makes are measured: what the terms say of every step, what student and teachers hold likely there, what both
read. One of the step's own episodes is measured too. The recorder only looks: draws are keyed, what evolves is put back,
nothing is logged, so a run is the same bit for bit with and without it. A failure here ends the record, never the run.

A domain takes part by one verb: `inspect(signal, quantities, k)` (language: rows of steps) or `snapshot()` (what its
policy makes now: images, an episode).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from redistill.core.episode import Episode, Group
from redistill.core.method import Stage
from redistill.core.signal import LogProb, Quantity, Signal, Teacher, TeacherLogProb, Term, Values
from redistill.core.state import Piece
from redistill.core.task import Prompt

if TYPE_CHECKING:
    from redistill.core.loop import Run

ALTERNATIVES = 5
"""Likeliest outcomes of student and teachers that are kept at each step."""
RECORDS = 20
"""Most records of a run when nothing is asked for."""
APART, SHARE = 15, 0.02
"""When nothing is asked for: least updates between records, and the largest share of the rollouts that they may add. A record
took 0.4 to 0.6 of a step of `pocket` with 8 prompts of 8 episodes, so this is 3 to 4% of a run."""
EPISODES = 2
"""Episodes of a prompt that are kept: its first, and the first with another reward."""
LARGEST = 32_000_000
"""Bytes of credit.jsonl after which only the trained model is still recorded."""
LONGEST_TEXT = 4000
"""Characters of a view, a question or a feedback that are kept."""


@dataclass(frozen=True)
class Inspection:
    """What a domain tells of some rows: values [n] of the quantities at their steps in order, and for each row JSON values
    for the viewer (tokens, what is read, the likeliest outcomes)."""

    values: Values
    rows: Sequence[Mapping[str, Any]]


class Recorder:
    """Writes a run's credit.jsonl."""

    def __init__(self, run: Run) -> None:
        self.run, config = run, run.config
        self.domain: Any = run.domain  # its verb is not one of those that every domain has
        self.on = config.trace_prompts > 0 and any(hasattr(self.domain, verb) for verb in ("inspect", "snapshot"))
        sampled = max(1, math.ceil(config.trace_prompts / (config.prompts_per_step * SHARE)))
        self.every = config.trace_every or max(APART, sampled, -(-config.steps // RECORDS))
        self.last = -1

    def state(self) -> Piece:
        """The step of the last record, which a run that is given more steps must not make again."""
        return Piece(facts={"last": self.last})

    def restore(self, piece: Piece) -> None:
        """Load it."""
        self.last = int(piece.facts["last"])

    def mark(self) -> tuple[int, int]:
        """Where the record is: what `rewind` goes back to."""
        return self.run.credit.size, self.last

    def rewind(self, mark: tuple[int, int]) -> None:
        """Take back what was recorded since `mark`: the step that it belongs to is broken off and comes again."""
        size, self.last = mark
        self.run.credit.restore(Piece(facts={"bytes": size}))

    def due(self, step: int) -> bool:
        """Whether there is a record before the update that follows step `step`."""
        return self.on and step % self.every == 0 and self.run.credit.size < LARGEST

    def before(self, stage: Stage) -> None:
        """The record that belongs to this moment, where one does: the fixed prompts under the weights as they are."""
        if self.due(self.run.step) and self.last != self.run.step:
            self._fixed(stage)

    def finished(self, stage: Stage) -> None:
        """The record of the trained model."""
        if self.on and self.last != self.run.step:
            self._fixed(stage)

    def training(self, stage: Stage, groups: Sequence[Group], signals: Sequence[Signal]) -> None:
        """One of the step's own episodes, before the update."""
        if self.due(self.run.step) and hasattr(self.domain, "inspect"):
            with self._only_looking():
                for row in rows_of(self.domain, groups[:1], signals, {}):
                    self._write(stage, "training", row)

    def _fixed(self, stage: Stage) -> None:
        run, domain = self.run, self.domain
        self.last = run.step
        with self._only_looking():
            if not hasattr(domain, "inspect"):
                self._write(stage, "snapshot", domain.snapshot())
                return
            domain.begin_step(run.step)
            prompts = run.task.held_out(run.config.trace_prompts)
            context = Aside(run, prompts)
            groups = stage.method.collect(context)
            made = stage.method.signal(groups, context)
            signals = [made] if isinstance(made, Signal) else list(made)
            for prompt in prompts:
                own = [group for group in groups if group.prompt.uid == prompt.uid]
                for row in rows_of(domain, own, signals, context.domain.asked):
                    self._write(stage, "fixed", row)

    def _write(self, stage: Stage, kind: str, row: Mapping[str, Any]) -> None:
        self.run.credit.add({"step": self.run.step, "stage": stage.name, "kind": kind, **row})

    @contextmanager
    def _only_looking(self) -> Iterator[None]:
        """Put back what a method (of any stage: they share stores) or a domain changes within the block. What goes wrong
        there is told once."""
        parts = [part for stage in self.run.stages for part in stage.method.state().values()]
        parts += self.run.domain.stateful().values()
        before = [copy.deepcopy(part.state()) for part in parts]
        try:
            with torch.random.fork_rng(devices=[]):
                yield
        except Exception as error:
            self.on = False
            sentence = str(error) or type(error).__name__
            text = (
                f"step {self.run.step}: the credit of steps could not be recorded ({sentence}); the run goes on without"
            )
            self.run.report("warning", {"text": text})
        finally:
            for part, piece in zip(parts, before):
                part.restore(piece)


class Asked:
    """A domain that remembers which teachers a method asked it about, and for which rows."""

    def __init__(self, domain: Any) -> None:
        self._domain = domain
        self.asked: dict[int, list[tuple[Teacher, int]]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._domain, name)

    def score(self, rows: Sequence[Episode], quantities: Sequence[Quantity]) -> Mapping[Quantity, Tensor]:
        """As the domain's own; a row is known again by its trajectory."""
        for teacher in dict.fromkeys(q.teacher for q in quantities if hasattr(q, "teacher")):
            for at, row in enumerate(rows):
                self.asked.setdefault(id(row.trajectory), []).append((teacher, at))
        found: Mapping[Quantity, Tensor] = self._domain.score(rows, quantities)
        return found


class Aside:
    """The context of a method that is run aside: other prompts, the same step and draws, a log that nobody reads."""

    def __init__(self, run: Run, prompts: Sequence[Prompt]) -> None:
        self.run, self.prompts = run, prompts
        self.task, self.config = run.task, run.config
        self.domain = Asked(run.domain)
        self.step, self.stage_step = run.step, run.stage_step

    def next_prompts(self) -> list[Prompt]:
        """The fixed prompts."""
        return list(self.prompts)

    def uniform(self, *key: Any) -> Any:
        """The run's keyed draws."""
        return self.run.uniform(*key)

    def log(self, name: str, value: float) -> None:
        """Nothing."""


def chosen(groups: Sequence[Group]) -> list[Episode]:
    """The first episode of some groups of a prompt, and the first with another reward."""
    episodes = [episode for group in groups for episode in group]
    rewards = [None if episode.verdict is None else episode.reward for episode in episodes]
    kept = [0, *(i for i, reward in enumerate(rewards) if reward != rewards[0])][:EPISODES] if episodes else []
    return [episodes[i] for i in kept]


def rows_of(
    domain: Any, groups: Sequence[Group], signals: Sequence[Signal], asked: Mapping[int, list[tuple[Teacher, int]]]
) -> Iterator[dict[str, Any]]:
    """JSON of the rows that the signals made of the chosen episodes; of an episode that no signal took, what it was."""
    for episode in chosen(groups):
        found = [
            (signal, i)
            for signal in signals
            for i, row in enumerate(signal.rows)
            if row.trajectory is episode.trajectory
        ]
        if not found:
            found = [
                (signal, i) for signal in signals for i, row in enumerate(signal.rows) if row.prompt is episode.prompt
            ][:1]
        for signal, i in found or [(Signal([episode], []), 0)]:
            yield inspected(domain, signal, i, asked)


def inspected(
    domain: Any, signal: Signal, row: int, asked: Mapping[int, list[tuple[Teacher, int]]] | None = None
) -> dict[str, Any]:
    """Everything that is recorded of one row of a signal."""
    one = signal.prepared().subset([row])
    episode = one.rows[0]
    own = dict.fromkeys(q.teacher for term in one.terms for q in term.quantities() if hasattr(q, "teacher"))
    for teacher, at in (asked or {}).get(id(episode.trajectory), []):
        own.setdefault(teacher.subset([at]))
    quantities = dict.fromkeys([LogProb(), *(q for term in one.terms for q in term.quantities())])
    quantities |= dict.fromkeys(
        TeacherLogProb(t) for t in own if t.weights.name != "text" and t.contexts[0] is not None
    )
    seen: Inspection = domain.inspect(one, list(quantities), ALTERNATIVES)
    verdict = episode.verdict
    behaviour = {} if episode.behaviour_logp_T is None else {"behaviour_logp": numbers(episode.behaviour_logp_T)}
    return {
        "uid": episode.prompt.uid, "player": signal.player, "question": shortened(episode.prompt.content),
        "reference": shortened(episode.prompt.answer), "sampled_under": episode.sampled_under,
        "trained_under": episode.trained_under, "finish": episode.finish,
        "reward": None if verdict is None else verdict.reward,
        "feedback": None if verdict is None else shortened(verdict.feedback),
        "logp": numbers(seen.values[LogProb()]), **behaviour, **seen.rows[0],
        "terms": [_term(term, seen.values, episode.steps) for term in one.terms],
    }  # fmt: skip


def _term(term: Term, values: Values, steps: int) -> dict[str, Any]:
    """What a term says of a row's steps: its vectors, its losses and what it observes."""
    losses = term.losses(values, torch.arange(steps), [steps])
    vectors = {
        item.name.removesuffix("_N"): getattr(term, item.name) for item in fields(term) if item.name.endswith("_N")
    }
    told = {
        **{name: v for name, v in vectors.items() if isinstance(v, Tensor)},
        "loss": losses.loss_n,
        **losses.observed,
    }
    return {
        "name": term.name, "kind": type(term).__name__, "coefficient": term.coefficient,
        "normaliser": str(term.normaliser), "values": {name: numbers(value) for name, value in told.items()},
    }  # fmt: skip


def numbers(values: Tensor) -> list[float | None]:
    """Numbers of a tensor with four significant digits; None for what is not finite."""
    listed = values.detach().double().flatten().tolist()
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in listed]


def shortened(content: Any) -> Any:
    """A text (or the texts of chat messages) of a bounded length."""
    if isinstance(content, str):
        return content if len(content) <= LONGEST_TEXT else content[:LONGEST_TEXT] + " ..."
    if isinstance(content, (list, tuple)):
        return [shortened(item) for item in content]
    return {key: shortened(item) for key, item in content.items()} if isinstance(content, Mapping) else content
