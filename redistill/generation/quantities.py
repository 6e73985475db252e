"""Quantities of the generation domain and how they are measured. Errors are means over the pixels of a latent.

Suffixes: n steps of the rows at hand, S pixels of a side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from redistill.core.signal import LogProb, Quantity, Teacher, TeacherLogProb
from redistill.generation.flow import gaussian_logp, over, sde_mean, sde_std
from redistill.generation.trajectories import Steps

FLOOR = 1e-5
"""Lower bound of the adaptive weight's denominator."""


@dataclass(frozen=True)
class VelocityError(Quantity):
    """mean (v - v*)^2 of the student at a noised sample, v* = eps - x0; `adaptive` divides it by sg[mean |v - v*|]."""

    adaptive: bool = False


@dataclass(frozen=True)
class TeacherVelocityError(Quantity):
    """The same of a teacher, at the same (x0, t, eps). No gradient."""

    teacher: Teacher
    adaptive: bool = False


@dataclass(frozen=True)
class VelocityGap(Quantity):
    """mean (v - sg v_T)^2 between the student and a teacher under its own guidance, at any step."""

    teacher: Teacher


@dataclass(frozen=True)
class MixedError(Quantity):
    """mean (m - v*)^2 of the mixture m = (1-share) sg v_T + share v: DiffusionNFT's implicit positive (share b) and
    negative (share -b) policies (arXiv 2509.16117). In space "x0" the error is that of the clean image, t^2 times as
    large; `adaptive` divides by sg[mean |error|] in the same space."""

    teacher: Teacher
    share: float
    space: str = "x0"
    adaptive: bool = True


@dataclass(frozen=True)
class StepDivergence(Quantity):
    """KL between the SDE steps of student and teacher, two Gaussians of one width: mean (mu - mu_T)^2 / (2 g^2 D), in
    the units of a log-prob that is a mean over pixels. Without `exact` the divisor is 2 g^2 (Flow-GRPO's released code)."""

    teacher: Teacher
    exact: bool = True


TeacherVelocity = tuple[Tensor, Tensor]
"""A teacher's velocities [n, S, S] and which steps have them, bool [n]; zero velocity where there is none."""


def squared(error_nSS: Tensor, adaptive: bool) -> Tensor:
    """Mean square [n] of an error; with `adaptive` over its detached mean absolute value, at least FLOOR."""
    mean_n = error_nSS.square().mean((1, 2))
    return mean_n / error_nSS.detach().abs().mean((1, 2)).clamp(min=FLOOR) if adaptive else mean_n


def measure(
    steps: Steps,
    v_nSS: Tensor,
    teachers: Mapping[Teacher, TeacherVelocity],
    quantities: Sequence[Quantity],
    total: bool,
) -> dict[Quantity, Tensor]:
    """Values [n] of quantities, given the student's velocities and those of the teachers they name; NaN where a row has
    no such teacher. `total` says how log-probs take the pixels. Raises ValueError for a quantity that the steps lack."""
    found: dict[Quantity, Tensor] = {}
    for quantity in quantities:
        _check(steps, quantity)
        teacher = getattr(quantity, "teacher", None)
        if teacher is None:
            found[quantity] = _own(steps, v_nSS, quantity, total)
            continue
        teacher_nSS, valid_n = teachers[teacher]
        value_n = _WITH_TEACHER[type(quantity)](steps, v_nSS, teacher_nSS, quantity, total)
        # Masked at the end, so that what a masked step sends back is zero and never NaN.
        found[quantity] = value_n if bool(valid_n.all()) else value_n.masked_fill(~valid_n, torch.nan)
    return found


def _check(steps: Steps, quantity: Quantity) -> None:
    on_chain = isinstance(quantity, (LogProb, TeacherLogProb, StepDivergence))
    on_noised = isinstance(quantity, (VelocityError, TeacherVelocityError, MixedError))
    if (on_chain and bool(steps.g_n.isnan().any())) or (on_noised and not bool(steps.g_n.isnan().all())):
        kind = "the steps of an SDE chain" if on_chain else "noised samples"
        raise ValueError(f"{type(quantity).__name__} is a quantity of {kind}, and some rows are not")


def _logp(steps: Steps, v_nSS: Tensor, total: bool) -> Tensor:
    t, after, g = steps.t_n, steps.next_t_n, steps.g_n
    return gaussian_logp(steps.next_nSS, sde_mean(steps.x_nSS, v_nSS, t, after, g), sde_std(t, after, g), total)


def _own(steps: Steps, v_nSS: Tensor, quantity: Quantity, total: bool) -> Tensor:
    if isinstance(quantity, LogProb):
        return _logp(steps, v_nSS, total)
    if isinstance(quantity, VelocityError):
        return squared(v_nSS - steps.target_nSS, quantity.adaptive)
    raise ValueError(f"{type(quantity).__name__} is not a quantity of the generation domain")


def _teacher_error(steps: Steps, v: Tensor, teacher_nSS: Tensor, quantity: TeacherVelocityError, total: bool) -> Tensor:
    return squared(teacher_nSS - steps.target_nSS, quantity.adaptive)


def _teacher_logp(steps: Steps, v: Tensor, teacher_nSS: Tensor, quantity: TeacherLogProb, total: bool) -> Tensor:
    return _logp(steps, teacher_nSS, total)


def _gap(steps: Steps, v_nSS: Tensor, teacher_nSS: Tensor, quantity: VelocityGap, total: bool) -> Tensor:
    return squared(v_nSS - teacher_nSS, False)


def _mixed(steps: Steps, v_nSS: Tensor, teacher_nSS: Tensor, quantity: MixedError, total: bool) -> Tensor:
    mixed_nSS = (1.0 - quantity.share) * teacher_nSS + quantity.share * v_nSS
    scale = over(steps.t_n) if quantity.space == "x0" else 1.0
    return squared(scale * (mixed_nSS - steps.target_nSS), quantity.adaptive)


def _divergence(steps: Steps, v_nSS: Tensor, teacher_nSS: Tensor, quantity: StepDivergence, total: bool) -> Tensor:
    t, after, g = steps.t_n, steps.next_t_n, steps.g_n
    gap = sde_mean(steps.x_nSS, v_nSS, t, after, g) - sde_mean(steps.x_nSS, teacher_nSS, t, after, g)
    width_n = sde_std(t, after, g) if quantity.exact else g
    summed = gap.square().sum((1, 2)) if total else gap.square().mean((1, 2))
    return summed / (2.0 * width_n.square())


_WITH_TEACHER: dict[type, Callable[..., Tensor]] = {
    TeacherVelocityError: _teacher_error, TeacherLogProb: _teacher_logp, VelocityGap: _gap, MixedError: _mixed,
    StepDivergence: _divergence,
}  # fmt: skip
