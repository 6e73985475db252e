"""From hidden states to quantities, a chunk of steps at a time: no [N, V] tensor outlives its chunk (law 7).

A chunk's logits (the student's, and each teacher's that is needed) are matrix products into buffers that all chunks share.
Everything else happens a block of rows at a time, so small that its tensors stay in the processor's cache. Forward keeps the
values and, for divergences over K outcomes, what the memo holds. Backward makes the logits again (a single chunk kept them),
turns them into the gradient of the loss with respect to them (objectives/slopes.py), in place, and multiplies that by the
head and by the hidden states. Teachers come as hidden states, never as logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from redistill.core.signal import DivergenceOf, Quantity, Teacher
from redistill.objectives.measure import WITHOUT_GRADIENT, Memo, TeacherAt, measure_choices
from redistill.objectives.slopes import logit_slopes
from redistill.text.halves import halved
from redistill.text.models import Head

CHUNK_BYTES = 128 * 2**20
"""Memory budget of one [chunk, V] float32 tensor of logits; there is one for the student and one for each teacher."""
BLOCK_BYTES = 2**20
"""Size of a block's tensors, of which a handful should fit the cache of a core."""


class StatesAt(Protocol):
    """What a teacher is at the steps at hand, however it is held; `valid_n` False where the row has no context."""

    @property
    def valid_n(self) -> Tensor:
        """Which steps have a teacher, bool [n]."""
        ...

    def chunk(self, low: int, high: int) -> StatesAt:
        """The steps from low to high."""
        ...

    def log_probs(self, temperature: Tensor | float) -> Tensor:
        """log q [n, V] at a temperature."""
        ...


@dataclass(frozen=True)
class TeacherPart:
    """One component of a teacher at the steps at hand: its share in log space, hidden states and its own head."""

    share: float
    hidden_nD: Tensor
    head: Head


@dataclass(frozen=True)
class TeacherStates:
    """A teacher at the steps at hand; `valid_n` False where the row has no context (its values are then 0)."""

    parts: Sequence[TeacherPart]
    valid_n: Tensor

    def chunk(self, low: int, high: int) -> TeacherStates:
        """The steps from low to high."""
        parts = [TeacherPart(part.share, part.hidden_nD[low:high], part.head) for part in self.parts]
        return TeacherStates(parts, self.valid_n[low:high])

    def log_probs(self, temperature: Tensor | float) -> Tensor:
        """log q [n, V] at a temperature, as a whole."""
        made = [part.share * at_least_float32(part.head.logits(part.hidden_nD)) for part in self.parts]
        return F.log_softmax(torch.stack(made).sum(0) / temperature, dim=-1)

    def logits_(self, low: int, high: int, out_nV: Tensor) -> None:
        """Write the logits of the steps from low to high: the (geometric) mixture of the parts, not normalised. A
        mixture of log-probs and one of logits differ by a constant per step only."""
        if not bool(self.valid_n[low:high].any()):
            out_nV.zero_()
            return
        for i, part in enumerate(self.parts):
            own_nV = out_nV if i == 0 else torch.empty_like(out_nV)
            _product(part.head, part.hidden_nD[low:high], own_nV)
            _shape_(part.head, own_nV)
            if len(self.parts) > 1:
                own_nV.mul_(part.share)
            if i:
                out_nV.add_(own_nV)


@dataclass
class _TeacherBlock:
    """A teacher at a block of steps, as `measure_choices` asks for it."""

    valid_n: Tensor
    logits_nV: Tensor | None
    known: dict[float, Tensor] = field(default_factory=dict)

    def log_probs(self, temperature: Tensor | float) -> Tensor:
        """log q [n, V] at a temperature; made once for each number."""
        assert self.logits_nV is not None
        if isinstance(temperature, Tensor):
            low, high = (float(end) for end in temperature.aminmax())
            if low < high:
                return F.log_softmax(self.logits_nV / temperature, dim=-1)
            temperature = low
        if temperature not in self.known:
            logits_nV = self.logits_nV if temperature == 1.0 else self.logits_nV / temperature
            self.known[temperature] = F.log_softmax(logits_nV, dim=-1)
        return self.known[temperature]


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def chunk_steps(vocabulary: int) -> int:
    """Steps of one chunk within the memory budget, at least 1."""
    return max(1, CHUNK_BYTES // (4 * vocabulary))


def block_steps(vocabulary: int) -> int:
    """Steps of one block, at least 1."""
    return max(1, BLOCK_BYTES // (4 * vocabulary))


def measure(
    hidden_nD: Tensor, head: Head, target_n: Tensor, temperature_n: Tensor,
    teachers: Mapping[Teacher, StatesAt], quantities: Sequence[Quantity], adding: bool = False,
) -> dict[Quantity, Tensor]:  # fmt: skip
    """Values [n] of each quantity, differentiable in `hidden_nD` and the head's own parameters.

    With `adding`, `backward` adds to a gradient that the head's weight already has, in place, instead of making a second
    [V, D] tensor to be added: only for a plain `backward` into parameters, which is what an update does.
    """
    if not len(target_n):
        return dict.fromkeys(quantities, hidden_nD.new_zeros(0))
    work = _Work(head, target_n, temperature_n, teachers, tuple(quantities), adding)
    hidden_nD = hidden_nD.to(head.weight_VD.dtype)
    values: Sequence[Tensor] = _Fused.apply(hidden_nD, head.weight_VD, head.bias_V, work)
    return dict(zip(quantities, values, strict=True))


def measure_whole(
    hidden_nD: Tensor, head: Head, target_n: Tensor, temperature_n: Tensor,
    teachers: Mapping[Teacher, StatesAt], quantities: Sequence[Quantity],
) -> dict[Quantity, Tensor]:  # fmt: skip
    """The same with whole tensors and autograd throughout: what `measure` is compared with, and nothing else."""
    return measure_choices(at_least_float32(head.logits(hidden_nD)), target_n, temperature_n, teachers, quantities)


@dataclass
class _Work:
    """What is to be measured at which steps."""

    head: Head
    target_n: Tensor
    temperature_n: Tensor
    teachers: Mapping[Teacher, StatesAt]
    quantities: tuple[Quantity, ...]
    adding: bool = False

    def chunks(self) -> Iterator[tuple[int, int]]:
        """(low, high) of each chunk."""
        steps = chunk_steps(len(self.head.weight_VD))
        for low in range(0, len(self.target_n), steps):
            yield low, min(low + steps, len(self.target_n))

    def blocks(self, low: int, high: int) -> Iterator[slice]:
        """The blocks of a chunk, as ranges of its own rows."""
        steps = block_steps(len(self.head.weight_VD))
        for at in range(0, high - low, steps):
            yield slice(at, min(at + steps, high - low))

    def asked(self, found: Sequence[Tensor | None]) -> dict[Quantity, Tensor]:
        """The quantities that a gradient came back for."""
        return {quantity: grad_n for quantity, grad_n in zip(self.quantities, found) if grad_n is not None}

    def taught(self, quantities: Sequence[Quantity]) -> list[Teacher]:
        """Teachers whose logits the gradient of some quantities needs: not those that the memo stands for."""
        vocabulary = len(self.head.weight_VD)
        found = [
            quantity.teacher
            for quantity in quantities
            if hasattr(quantity, "teacher")
            and not (isinstance(quantity, DivergenceOf) and quantity.support.name == "top_k"
                     and quantity.support.k < vocabulary)
        ]  # fmt: skip
        return list(dict.fromkeys(found))


class _Buffers:
    """The logits of one chunk: of the student and of teachers, in memory that every chunk uses again."""

    def __init__(self, work: _Work, taught: Sequence[Teacher], like: Tensor) -> None:
        self.work = work
        low, high = next(work.chunks())
        shape = (high - low, len(work.head.weight_VD))
        self.student = like.new_empty(shape)
        self.held = {teacher: work.teachers[teacher] for teacher in taught}
        self.teachers = {
            teacher: like.new_empty(shape) for teacher, held in self.held.items() if isinstance(held, TeacherStates)
        }

    def fill(self, hidden_nD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, low: int, high: int) -> None:
        """Make the logits of a chunk (the student's still without scale and soft cap)."""
        _multiply(self.work.head, hidden_nD[low:high], weight_VD, bias_V, self.student[: high - low])
        for teacher, buffer in self.teachers.items():
            held = self.held[teacher]
            assert isinstance(held, TeacherStates)
            held.logits_(low, high, buffer[: high - low])

    def block(self, low: int, at: slice) -> tuple[Tensor, Tensor, Tensor, dict[Teacher, TeacherAt]]:
        """(logits, target, temperature, teachers) of a block of the chunk that starts at `low`."""
        here = slice(low + at.start, low + at.stop)
        teachers: dict[Teacher, TeacherAt] = {}
        for teacher, states in self.work.teachers.items():
            if isinstance(states, TeacherStates):
                buffer = self.teachers.get(teacher)
                teachers[teacher] = _TeacherBlock(states.valid_n[here], None if buffer is None else buffer[at])
            else:
                teachers[teacher] = states.chunk(here.start, here.stop)
        return self.student[at], self.work.target_n[here], self.work.temperature_n[here], teachers


class _Kept:
    """What outlives a block, in tensors over all steps: a small tensor kept from each block would stand in the place that
    the next block's large ones come from, and the process would grow by a block each time."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.values: dict[Quantity, Tensor] = {}
        self.memo: Memo = {}

    def write(self, at: slice, values: Mapping[Quantity, Tensor], memo: Memo) -> None:
        """Copy what was found at some steps."""
        for quantity, value_r in values.items():
            if quantity not in self.values:
                self.values[quantity] = value_r.new_empty(self.steps)
            self.values[quantity][at] = value_r
        for key, parts in memo.items():
            if key not in self.memo:
                index, taught, own = (part.new_empty(self.steps, *part.shape[1:]) for part in parts)
                self.memo[key] = (index, taught, own)
            for whole, part in zip(self.memo[key], parts):
                whole[at] = part


class _Fused(torch.autograd.Function):
    """hidden, weight, bias, work -> one tensor [n] for each quantity."""

    @staticmethod
    def forward(
        ctx: Any, hidden_nD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, work: _Work
    ) -> tuple[Tensor, ...]:
        buffers = _Buffers(work, list(work.teachers), hidden_nD)
        kept = _Kept(len(hidden_nD))
        for low, high in work.chunks():
            buffers.fill(hidden_nD, weight_VD, bias_V, low, high)
            for at in work.blocks(low, high):
                logits_rV, target_r, temperature_r, teachers = buffers.block(low, at)
                _shape_(work.head, logits_rV)
                memo: Memo = {}
                values = measure_choices(logits_rV, target_r, temperature_r, teachers, work.quantities, memo)
                kept.write(slice(low + at.start, low + at.stop), values, memo)
        values_n = tuple(kept.values[quantity] for quantity in work.quantities)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(
            *(value for quantity, value in zip(work.quantities, values_n) if isinstance(quantity, WITHOUT_GRADIENT))
        )
        ctx.save_for_backward(hidden_nD, weight_VD, bias_V)
        ctx.work, ctx.memo = work, kept.memo
        ctx.kept = buffers if len(list(work.chunks())) == 1 and any(ctx.needs_input_grad) else None
        return values_n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_nD, weight_VD, bias_V = ctx.saved_tensors
        work: _Work = ctx.work
        slopes = work.asked(grads)
        buffers, ctx.kept = ctx.kept, None  # its logits are overwritten: a second backward makes them again
        shaped = buffers is not None
        buffers = buffers or _Buffers(work, work.taught(list(slopes)), hidden_nD)
        sums = _Gradients(work, ctx.needs_input_grad, hidden_nD, weight_VD, bias_V)
        for low, high in work.chunks():
            if not shaped:
                buffers.fill(hidden_nD, weight_VD, bias_V, low, high)
            for at in work.blocks(low, high):
                logits_rV, target_r, temperature_r, teachers = buffers.block(low, at)
                factor_rV = _shape_(work.head, logits_rV, shaped, slope=True)
                place = slice(low + at.start, low + at.stop)
                here = {quantity: grad_n[place] for quantity, grad_n in slopes.items()}
                memo = {
                    key: (index[place], taught[place], own[place]) for key, (index, taught, own) in ctx.memo.items()
                }
                found_rV = logit_slopes(logits_rV, target_r, temperature_r, teachers, here, memo)
                if found_rV is not logits_rV:
                    logits_rV.copy_(found_rV)
                if factor_rV is not None:
                    logits_rV.mul_(factor_rV)
            sums.add(buffers.student[: high - low], low, high)
        return sums.hidden_nD, None if sums.added else sums.weight_VD, sums.bias_V, None


class _Gradients:
    """Gradients of hidden states, head and bias, each made where it is needed; the head's is summed in place."""

    def __init__(
        self, work: _Work, needed: Sequence[bool], hidden_nD: Tensor, weight_VD: Tensor, bias_V: Tensor | None
    ) -> None:
        self.half = _half(work.head)
        held_VD = weight_VD.grad if work.adding and weight_VD.is_leaf else None
        self.added = held_VD is not None
        self.of_hidden_nD, self.of_weight_VD = hidden_nD, weight_VD
        self.hidden_nD = torch.empty_like(hidden_nD) if needed[0] else None
        self.weight_VD = (torch.empty_like(weight_VD) if held_VD is None else held_VD) if needed[1] else None
        self.bias_V = torch.zeros_like(bias_V) if needed[2] and bias_V is not None else None

    def add(self, slope_cV: Tensor, low: int, high: int) -> None:
        """Add what dL/dlogits of the steps from low to high contributes."""
        if self.bias_V is not None:
            self.bias_V += slope_cV.sum(0)
        if self.half:
            self._add_half(slope_cV.to(torch.bfloat16), low, high)
            return
        if self.hidden_nD is not None:
            torch.mm(slope_cV, self.of_weight_VD, out=self.hidden_nD[low:high])
        if self.weight_VD is not None:
            self.weight_VD.addmm_(slope_cV.t(), self.of_hidden_nD[low:high], beta=float(low > 0 or self.added))

    def _add_half(self, slope_cV: Tensor, low: int, high: int) -> None:
        """The same with bfloat16 products, which are summed over chunks in float32."""
        if self.hidden_nD is not None:
            self.hidden_nD[low:high] = slope_cV @ halved(self.of_weight_VD).plain_VD
        if self.weight_VD is not None:
            made_VD = slope_cV.t() @ self.of_hidden_nD[low:high].to(torch.bfloat16)
            _ = self.weight_VD.add_(made_VD) if low or self.added else self.weight_VD.copy_(made_VD)


def _half(head: Head) -> bool:
    """Whether the products of a head are bfloat16 ones: its model computes so, and its weights are float32."""
    return head.products == torch.bfloat16 and head.weight_VD.dtype == torch.float32


def _product(head: Head, hidden_nD: Tensor, out_nV: Tensor) -> None:
    _multiply(head, hidden_nD.to(head.weight_VD.dtype), head.weight_VD, head.bias_V, out_nV)


def _multiply(head: Head, hidden_nD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, out_nV: Tensor) -> None:
    if _half(head):
        halved(weight_VD).logits_(hidden_nD, out_nV)
        if bias_V is not None:
            out_nV += bias_V
    elif bias_V is None:
        torch.mm(hidden_nD, weight_VD.t(), out=out_nV)
    else:
        torch.addmm(bias_V, hidden_nD, weight_VD.t(), out=out_nV)


def _shape_(head: Head, raw_nV: Tensor, shaped: bool = False, slope: bool = False) -> Tensor | None:
    """Apply scale and soft cap in place (unless they have been). With `slope`, return the derivative of the result with
    respect to the raw product, None for 1."""
    if not shaped:
        if head.scale != 1.0:
            raw_nV.mul_(head.scale)
        if head.softcap is not None:
            raw_nV.div_(head.softcap).tanh_().mul_(head.softcap)
    if not slope or (head.scale == 1.0 and head.softcap is None):
        return None
    if head.softcap is None:
        return raw_nV.new_tensor(head.scale)
    return (raw_nV / head.softcap).square_().neg_().add_(1.0).mul_(head.scale)
