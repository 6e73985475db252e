"""Estimates of a KL from the sampled step alone, by the log-probs [N] that student and teacher give to it.

Which gradient an estimate has, in expectation over steps drawn from the student with the prefix fixed, is not what its
value suggests (arXiv 2604.00626; values: J. Schulman, "Approximating KL divergence", 2020):

    name             value                      mean of the value   mean of the gradient
    k1               log pS - log pT            KL(S||T)            zero
    k2               (log pS - log pT)^2 / 2    biased              reverse KL, KL(S||T), exact
    k3               exp(d) - 1 - d             KL(S||T)            forward KL, KL(T||S), exact
    policy_gradient  sg[log pS - log pT] log pS none                reverse KL, KL(S||T), exact

with d = log pT - log pS and sg = no gradient. Gradient flows to the student alone. If the teacher gives a sampled step
no mass at all, k1 and k3 have an infinite value and a finite gradient; k2 and policy_gradient have both infinite.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

from torch import Tensor, expm1

from redistill.errors import UserError, nearest

MAX_LOG_RATIO = 20.0
"""k3 takes d = log pT - log pS as at most this, so that exp(d) stays below 4.9e8 (SDPO's code bounds its ratio at the
same 20). A step above it, drawn at under 2e-9 of the teacher's probability, is a constant: it gets no gradient. This
is the only bound in this file; below, exp(d) needs none."""


def k1(student_logp_N: Tensor, teacher_logp_N: Tensor) -> Tensor:
    """log pS - log pT [N]. As a value unbiased for KL(student||teacher); its gradient is zero in expectation."""
    return student_logp_N - teacher_logp_N.detach()


def k2(student_logp_N: Tensor, teacher_logp_N: Tensor) -> Tensor:
    """(log pS - log pT)^2 / 2 [N]. Its gradient is that of the reverse KL(student||teacher) in expectation."""
    return (student_logp_N - teacher_logp_N.detach()).square() / 2


def k3(student_logp_N: Tensor, teacher_logp_N: Tensor) -> Tensor:
    """exp(d) - 1 - d [N], d = log pT - log pS, at least 0. Its value is unbiased for the reverse KL(student||teacher),
    its gradient is that of the *forward* KL(teacher||student) in expectation. Times a ratio pS / sg[behaviour] that
    keeps its own gradient, it has the reverse KL's (Skill-SD). d is bounded above: see MAX_LOG_RATIO."""
    d_N = (teacher_logp_N.detach() - student_logp_N).clamp(max=MAX_LOG_RATIO)
    return expm1(d_N) - d_N


def sampled_reverse_kl(student_logp_N: Tensor, teacher_logp_N: Tensor) -> Tensor:
    """sg[log pS - log pT] * log pS [N]: the policy-gradient form (SDPO's and OPSD's sampled-token variants). Its
    gradient is that of the reverse KL(student||teacher) in expectation; its value measures nothing."""
    return (student_logp_N - teacher_logp_N).detach() * student_logp_N


ESTIMATORS: MappingProxyType[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {"k1": k1, "k2": k2, "k3": k3, "policy_gradient": sampled_reverse_kl}
)


def estimate(name: str, student_logp_N: Tensor, teacher_logp_N: Tensor) -> Tensor:
    """The estimator called `name` (k1, k2, k3, policy_gradient) -> [N]. Raises UserError for another name."""
    if name not in ESTIMATORS:
        raise UserError(f"estimator {name!r} is unknown{nearest(name, ESTIMATORS)}")
    return ESTIMATORS[name](student_logp_N, teacher_logp_N)
