"""The gradient of quantities with respect to logits in closed form, for a block of steps at a time.

What `measure_choices` measures is differentiated here without autograd's intermediate tensors. With log-probs
l = log_softmax(z / T), probabilities q and the slope s = dL/dl, the gradient is dL/dz = (s - q sum(s)) / T; the slope of a
log-prob is one entry, that of a divergence over K outcomes K entries and a multiple of q. What has no closed form here, or is
not finite in it, goes through autograd.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from redistill.core.signal import DivergenceOf, EntropyOf, LogProb, Quantity, Teacher
from redistill.objectives.divergence import value_and_slope
from redistill.objectives.entropy import entropy_and_slope
from redistill.objectives.measure import Memo, TeacherAt, measure_choices, memo_key, teacher_seen, warmed

SMALLEST_TAIL = 1e-30
"""A tail with less mass than this is near underflow and left to autograd, which sums it in log space."""


def logit_slopes(
    logits_nV: Tensor, target_n: Tensor, temperature_n: Tensor, teachers: Mapping[Teacher, TeacherAt],
    slopes: Mapping[Quantity, Tensor], memo: Memo,
) -> Tensor:  # fmt: skip
    """dL/dlogits [n, V] from dL/dquantity [n] of each quantity. The logits are overwritten; the result may be them."""
    groups: dict[float | None, dict[Quantity, Tensor]] = {}
    low, high = (float(end) for end in temperature_n.aminmax())
    for quantity, slope in slopes.items():
        if isinstance(quantity, DivergenceOf):
            groups.setdefault(quantity.temperature, {})[quantity] = slope
        elif isinstance(quantity, (LogProb, EntropyOf)):
            groups.setdefault(low if low == high else None, {})[quantity] = slope
        else:
            return by_autograd(logits_nV, target_n, temperature_n, teachers, slopes, memo)
    found = None
    for temperature, group in groups.items():
        warm = temperature_n[:, None] if temperature is None else logits_nV.new_tensor(temperature)
        own_nV = F.log_softmax(warmed(logits_nV, warm), dim=-1)
        sums = _Sums(own_nV, own_nV.exp(), target_n, warm)
        if not all(sums.add(quantity, slope, teachers, memo) for quantity, slope in group.items()):
            return by_autograd(logits_nV, target_n, temperature_n, teachers, slopes, memo)
        last = len(groups) == 1
        part_nV = sums.result(logits_nV if last else torch.empty_like(logits_nV))
        found = part_nV if found is None else found.add_(part_nV)
    return torch.zeros_like(logits_nV) if found is None else found


def by_autograd(
    logits_nV: Tensor, target_n: Tensor, temperature_n: Tensor, teachers: Mapping[Teacher, TeacherAt],
    slopes: Mapping[Quantity, Tensor], memo: Memo,
) -> Tensor:  # fmt: skip
    """The same for any quantity that `measure_choices` knows. The logits stay."""
    with torch.enable_grad():
        leaf_nV = logits_nV.detach().requires_grad_()
        values = measure_choices(leaf_nV, target_n, temperature_n, teachers, list(slopes), memo)
        pairs = [(values[quantity], slope) for quantity, slope in slopes.items() if values[quantity].requires_grad]
        if not pairs:
            return torch.zeros_like(logits_nV)
        found: Tensor = torch.autograd.grad([value for value, _ in pairs], leaf_nV, [slope for _, slope in pairs])[0]
    return found


@dataclass
class _Sums:
    """The slope s = dL/dl at one temperature, gathered from several quantities: a dense part (None: nothing), entries at
    some outcomes, and its sum over outcomes."""

    own_nV: Tensor
    q_nV: Tensor
    target_n: Tensor
    warm: Tensor
    dense_nV: Tensor | None = None
    entries: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    total_n: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.total_n = self.own_nV.new_zeros(len(self.own_nV))

    def add(
        self, quantity: Quantity, slope_n: Tensor, teachers: Mapping[Teacher, TeacherAt], memo: Memo
    ) -> bool:  # fmt: skip
        """Add a quantity; False where its slope is not finite (the sums are then void)."""
        if isinstance(quantity, LogProb):
            self._add_entries(self.target_n[:, None], slope_n[:, None])
        elif isinstance(quantity, EntropyOf):
            self._add_dense(entropy_and_slope(self.own_nV, self.q_nV)[1]().mul_(slope_n[:, None]))
        else:
            assert isinstance(quantity, DivergenceOf)
            teacher = teachers[quantity.teacher]
            slope_n1 = torch.where(teacher.valid_n, slope_n, 0.0)[:, None]
            known = memo.get(memo_key(quantity))
            if known is None:
                teacher_nV = teacher_seen(quantity, self.own_nV, teacher)
                made = value_and_slope(quantity.kind, teacher_nV, self.own_nV, quantity.clip, self.q_nV)[1]
                self._add_dense(made().mul_(slope_n1))
            elif not self._add_narrow(quantity, slope_n1, *known):
                return False
        return bool(self.total_n.isfinite().all())

    def _add_entries(self, index_nK: Tensor, slope_nK: Tensor) -> None:
        self.entries.append((index_nK, slope_nK))
        self.total_n += slope_nK.sum(-1)

    def _add_dense(self, slope_nV: Tensor) -> None:
        self.total_n += slope_nV.sum(-1)
        self.dense_nV = slope_nV if self.dense_nV is None else self.dense_nV.add_(slope_nV)

    def _add_narrow(
        self, quantity: DivergenceOf, slope_n1: Tensor, index_nK: Tensor, teacher_nK: Tensor, own_nK: Tensor
    ) -> bool:
        """A divergence over K outcomes, with the rest as one more or renormalised."""
        slope_nK = value_and_slope(quantity.kind, teacher_nK, own_nK, quantity.clip)[1]() * slope_n1
        if not quantity.support.tail:
            self._add_entries(index_nK, slope_nK - own_nK.exp() * slope_nK.sum(-1, keepdim=True))
            return True
        rest_nV = self.q_nV.scatter(-1, index_nK, 0.0)
        tail_n1 = rest_nV.sum(-1, keepdim=True)
        if float(tail_n1.min()) < SMALLEST_TAIL:
            return False
        self._add_entries(index_nK, slope_nK[:, :-1])
        self._add_dense(rest_nV.mul_(slope_nK[:, -1:] / tail_n1))
        return True

    def result(self, out_nV: Tensor) -> Tensor:
        """(s - q sum(s)) / T, written to `out_nV`."""
        torch.mul(self.q_nV, -(self.total_n[:, None] / self.warm), out=out_nV)
        if self.dense_nV is not None:
            out_nV.add_(warmed(self.dense_nV, self.warm))
        for index_nK, slope_nK in self.entries:
            out_nV.scatter_add_(-1, index_nK, slope_nK / self.warm)
        return out_nV
