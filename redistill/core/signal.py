"""Signals: what a method asks of an update, in words that no domain owns.

A signal holds rows (episodes under the view they are trained under) and terms. A term names the *quantities* it needs; the
domain measures them, one differentiable value per step; the term turns them into losses; its normaliser says by what the
sum over the whole update batch is divided. All vectors with the suffix _N run over the steps of all rows, in order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from redistill.core.episode import Episode
from redistill.core.specs import DivergenceKind, Normaliser, Support, TeacherWeights


@dataclass(frozen=True, eq=False)
class Teacher:
    """Weights x one context per row. A row whose context is None has no teacher: terms must mask it.

    Teachers are compared by identity; that of some of the rows counts as the one it came from, so that whoever holds the
    whole (a custom ratio) finds what was measured for the part.
    """

    weights: TeacherWeights
    contexts: tuple[Any | None, ...]
    origin: Teacher | None = field(default=None, repr=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Teacher) and (self.origin or self) is (other.origin or other)

    def __hash__(self) -> int:
        return id(self.origin or self)

    def subset(self, rows: Sequence[int]) -> Teacher:
        """The teacher of some of the rows."""
        return Teacher(self.weights, tuple(self.contexts[row] for row in rows), self.origin or self)


class Quantity:
    """A number per step that a domain can measure. Subclasses are frozen dataclasses, compared by value."""


@dataclass(frozen=True)
class LogProb(Quantity):
    """Log-probability of the step that was taken, under the row's own sampling temperature. Differentiable."""


@dataclass(frozen=True)
class EntropyOf(Quantity):
    """Entropy (nats) of the student's distribution at the step, under the row's own sampling temperature."""


@dataclass(frozen=True)
class TeacherLogProb(Quantity):
    """Log-probability the teacher gives to the step that was taken, under the row's temperature. No gradient."""

    teacher: Teacher


@dataclass(frozen=True)
class TeacherEntropy(Quantity):
    """Entropy (nats) of the teacher's distribution at the step, over all outcomes, under the row's own sampling
    temperature. No gradient; 0 where the row has no teacher."""

    teacher: Teacher


@dataclass(frozen=True)
class DivergenceOf(Quantity):
    """Divergence between teacher and student at the step; both logits divided by `temperature`. `clip` is the upper
    bound of each outcome's contribution (OPSD); `advantage_clip` bounds |log q - log p| (SDPO, reverse KL only)."""

    teacher: Teacher
    kind: DivergenceKind
    support: Support
    clip: float | None = None
    advantage_clip: float | None = None
    temperature: float = 1.0


@dataclass(frozen=True)
class CapturedMass(Quantity):
    """Probability mass of the student inside a truncated support, for the log (pitfall 8). No gradient."""

    teacher: Teacher
    support: Support
    temperature: float = 1.0


@dataclass(frozen=True)
class PlackettLuce(Quantity):
    """-log of the probability that the student's k likeliest outcomes come in the teacher's order (TSD-KD), both at
    temperature 1; `reverse` is the order upside down. Differentiable in the student."""

    teacher: Teacher
    k: int
    reverse: bool = False


Values = Mapping[Quantity, Tensor]


@dataclass(frozen=True)
class Losses:
    """What a term says of some steps: losses [n] (differentiable) and named per-step observations [n] for the log."""

    loss_n: Tensor
    observed: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False, kw_only=True)
class Term(ABC):
    """One component of a signal. `mask_N` says which steps it covers (None: all); `weight_N` multiplies its losses."""

    name: str
    coefficient: float = 1.0
    normaliser: Normaliser = Normaliser("token")
    mask_N: Tensor | None = None
    weight_N: Tensor | None = None

    @abstractmethod
    def quantities(self) -> tuple[Quantity, ...]:
        """What the domain has to measure for this term."""

    @abstractmethod
    def losses(self, values: Values, at_n: Tensor, lengths: Sequence[int]) -> Losses:
        """Losses of the steps `at_n` (indices into the signal's steps), which are whole rows of the given lengths."""

    def prepared(self) -> Term:
        """This term for one update over exactly its steps: the place for statistics of a mini-batch (PPO normalises its
        advantages here). Called once for each update, before it is cut into micro-batches."""
        return self

    def subset(self, at_n: Tensor, rows: Sequence[int]) -> Term:
        """This term over some rows only: vectors over steps are sliced, teachers keep the contexts of the rows."""
        changed: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor) and item.name.endswith("_N"):
                changed[item.name] = value[at_n]
            elif isinstance(value, Teacher):
                changed[item.name] = value.subset(rows)
            elif isinstance(value, tuple) and any(isinstance(entry, Quantity) for entry in value):
                changed[item.name] = tuple(_of_rows(quantity, rows) for quantity in value)
        return replace(self, **changed)


def _of_rows(quantity: Quantity, rows: Sequence[int]) -> Quantity:
    """A quantity that a term reads, of some rows only."""
    teacher = getattr(quantity, "teacher", None)
    return quantity if teacher is None else replace(quantity, teacher=teacher.subset(rows))  # type: ignore[type-var]


@dataclass(frozen=True)
class Limit:
    """An early stop: before the update of a mini-batch, the mean of what a term observed (`observed`, for example
    "policy_gradient/kl") is compared with `bound`; above it, this update and the rest of the batch's are not done."""

    observed: str
    bound: float


@dataclass(frozen=True, eq=False)
class Signal:
    """Rows and terms for one player. The same episode may be several rows (one for each view it is trained under)."""

    rows: Sequence[Episode]
    terms: Sequence[Term]
    player: str = "student"
    limit: Limit | None = None

    def __post_init__(self) -> None:
        steps = sum(self.lengths)
        for term in self.terms:
            for item in fields(term):
                value = getattr(term, item.name)
                if isinstance(value, Tensor) and item.name.endswith("_N") and value.shape != (steps,):
                    raise ValueError(
                        f"term {term.name}: {item.name} has shape {tuple(value.shape)}, rows have {steps} steps"
                    )
            for teacher in {q.teacher for q in term.quantities() if hasattr(q, "teacher")}:
                if len(teacher.contexts) != len(self.rows):
                    raise ValueError(
                        f"term {term.name}: {len(teacher.contexts)} teacher contexts for {len(self.rows)} rows"
                    )

    @cached_property
    def lengths(self) -> list[int]:
        """Steps of each row."""
        return [row.steps for row in self.rows]

    @cached_property
    def _edges(self) -> tuple[Tensor, Tensor]:
        """(steps of each row, the index behind its last), int64 [R]: made once, since rows may be thousands of actions."""
        length_R = torch.tensor(self.lengths, dtype=torch.int64)
        return length_R, length_R.cumsum(0)

    def steps_of(self, rows: Sequence[int]) -> Tensor:
        """Indices of the steps of some rows, in the order of `rows`: int64 [n]."""
        row_r = torch.tensor(rows, dtype=torch.int64)
        length_R, end_R = self._edges
        length_r = length_R[row_r]
        first_r = end_R[row_r] - length_r - (length_r.cumsum(0) - length_r)
        return first_r.repeat_interleave(length_r) + torch.arange(int(length_r.sum()))

    def subset(self, rows: Sequence[int]) -> Signal:
        """The signal of some rows, as a signal of its own (a mini-batch)."""
        at_n = self.steps_of(rows)
        terms = [term.subset(at_n, rows) for term in self.terms]
        return replace(self, rows=[self.rows[row] for row in rows], terms=terms)

    def prepared(self) -> Signal:
        """The signal with its terms prepared for one update."""
        return replace(self, terms=[term.prepared() for term in self.terms])


def joined(parts: Sequence[Signal]) -> Signal:
    """Several signals of one player as one: all rows, and each term over its own part's rows alone (masked elsewhere), so
    that they share an update and the normalisers stay their own. Limits are not joined."""
    rows = [row for part in parts for row in part.rows]
    terms: list[Term] = []
    before = 0
    for part in parts:
        after = len(rows) - before - len(part.rows)
        terms += [_among(term, part, rows[:before], rows[len(rows) - after :]) for term in part.terms]
        before += len(part.rows)
    return Signal(rows, terms, player=parts[0].player if parts else "student")


def _among(term: Term, own: Signal, before: Sequence[Episode], after: Sequence[Episode]) -> Term:
    """A term of `own` among rows before and after it, which it masks."""
    ahead, behind = sum(row.steps for row in before), sum(row.steps for row in after)

    def wide(value_N: Tensor) -> Tensor:
        return torch.cat([value_N.new_zeros(ahead), value_N, value_N.new_zeros(behind)])

    def more(teacher: Teacher) -> Teacher:
        contexts = (*[None] * len(before), *teacher.contexts, *[None] * len(after))
        return Teacher(teacher.weights, contexts, teacher.origin or teacher)

    mask_N = torch.ones(sum(own.lengths), dtype=torch.bool) if term.mask_N is None else term.mask_N
    changed: dict[str, Any] = {"mask_N": wide(mask_N)}
    for item in fields(term):
        value = getattr(term, item.name)
        if isinstance(value, Tensor) and item.name.endswith("_N") and item.name != "mask_N":
            changed[item.name] = wide(value)
        elif isinstance(value, Teacher):
            changed[item.name] = more(value)
        elif isinstance(value, tuple) and any(isinstance(entry, Quantity) for entry in value):
            changed[item.name] = tuple(
                replace(q, teacher=more(q.teacher)) if hasattr(q, "teacher") else q for q in value
            )
    return replace(term, **changed)


def per_step(values: Sequence[float] | Tensor, lengths: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Spread one value per row over the row's steps: [R] -> [N]."""
    return torch.as_tensor(values).to(dtype).repeat_interleave(torch.as_tensor(lengths, dtype=torch.int64))
