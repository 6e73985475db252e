"""Divergences between a teacher P and a student Q at each step, from log-probs (f-divergences: arXiv 2604.00626).

Inputs are log-probs over the last dimension V, float32 or float64, normalised; -inf is a legal log-prob on either side
(0 log 0 = 0). Gradient flows to the student alone. The derivative of each kind with respect to the student's log-probs
is written by hand beside its value: autograd would make NaN of 0 * inf and keep six tensors [N, V] where one is enough.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from redistill.core import formulas
from redistill.core.specs import GENERATORS, DivergenceKind, Support
from redistill.errors import UserError

Generator = Callable[[Tensor], Tensor]
"""f of an f-divergence: convex, f(1) = 0, applied elementwise to u = P/Q >= 0."""


TORCH: dict[str, Callable[[Tensor], Tensor]] = {
    "log": torch.log, "exp": torch.exp, "sqrt": torch.sqrt, "abs": torch.abs, "log1p": torch.log1p,
}  # fmt: skip
"""What a generator's formula may call."""


class _WithSlope(torch.autograd.Function):
    """A value [N] whose derivative with respect to an input [N, V] is known: one tensor [N, V] waits for backward."""

    @staticmethod
    def forward(ctx: Any, logp_NV: Tensor, value_N: Tensor, slope_NV: Tensor) -> Tensor:
        ctx.save_for_backward(slope_NV)
        return value_N.clone()

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None, None]:
        if torch.is_grad_enabled():
            raise NotImplementedError("this divergence or entropy has a hand-written derivative, without a second one")
        (slope_NV,) = ctx.saved_tensors
        grad_N1 = grad_N.unsqueeze(-1)
        # A step of weight 0 is out of the loss even when its slope is infinite, and the other way round.
        return (slope_NV * grad_N1).masked_fill_((slope_NV == 0) | (grad_N1 == 0), 0.0), None, None


def with_slope(logp_NV: Tensor, value_N: Tensor, slope_NV: Tensor) -> Tensor:
    """`value_N` with the stated derivative `slope_NV` with respect to `logp_NV`; create_graph=True raises."""
    value: Tensor = _WithSlope.apply(logp_NV, value_N, slope_NV)
    return value


def _times(weight: Tensor, value: Tensor) -> Tensor:
    """weight * value with 0 * inf = 0 where the weight is 0."""
    return (weight * value).masked_fill_(weight == 0, 0.0)


def _log_ratio(log_p: Tensor, log_q: Tensor) -> Tensor:
    """log p - log q; 0 where both are -inf."""
    return (log_p - log_q).masked_fill_((log_p == -torch.inf) & (log_q == -torch.inf), 0.0)


def _to_mixture(delta: Tensor, teacher_share: float) -> tuple[Tensor, Tensor]:
    """(log m - log p, log m - log q) for m = s p + (1-s) q, from delta = log p - log q. Exactly 0 where p = q, and the
    exponential never overflows: each side is expanded around the larger of p and q."""
    teacher_is_larger = delta >= 0
    share = torch.where(teacher_is_larger, delta.new_tensor(1.0 - teacher_share), delta.new_tensor(teacher_share))
    from_larger = torch.log1p(share * torch.expm1(-delta.abs()))
    from_smaller = from_larger + delta.abs()
    m_over_p = torch.where(teacher_is_larger, from_larger, from_smaller)
    return m_over_p, torch.where(teacher_is_larger, from_smaller, from_larger)


# Each kind: (log p, log q, number) -> (contribution of each outcome, its derivative with respect to that log q).


def _forward_kl(log_p: Tensor, log_q: Tensor, _: float) -> tuple[Tensor, Tensor]:
    p = log_p.exp()
    return _times(p, _log_ratio(log_p, log_q)), -p


def _reverse_kl(log_p: Tensor, log_q: Tensor, _: float) -> tuple[Tensor, Tensor]:
    q = log_q.exp()
    entry = _times(q, -_log_ratio(log_p, log_q))
    return entry, entry + q


def _jsd(log_p: Tensor, log_q: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    p, q = log_p.exp(), log_q.exp()
    m_over_p, m_over_q = _to_mixture(_log_ratio(log_p, log_q), beta)
    student_part = _times(q, m_over_q).mul_(beta - 1.0)
    return student_part - _times(p, m_over_p).mul_(beta), student_part


def _tvd(log_p: Tensor, log_q: Tensor, _: float) -> tuple[Tensor, Tensor]:
    q = log_q.exp()
    return (log_p.exp() - q).abs().mul_(0.5), 0.5 * q * torch.sign(-_log_ratio(log_p, log_q))


def _skew_forward_kl(log_p: Tensor, log_q: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    p = log_p.exp()
    m_over_p, m_over_q = _to_mixture(_log_ratio(log_p, log_q), alpha)
    return _times(p, -m_over_p), (alpha - 1.0) * p * torch.exp(-m_over_q)


def _skew_reverse_kl(log_p: Tensor, log_q: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    q = log_q.exp()
    m_over_p, m_over_q = _to_mixture(_log_ratio(log_p, log_q), 1.0 - alpha)
    entry = _times(q, -m_over_q)
    return entry, entry + (1.0 - alpha) * q * torch.exp(-m_over_p)


def _generated(f: Generator, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Contributions q f(u) and their derivatives q (f(u) - u f'(u)) of an f-divergence that is given by its generator, f' by
    autograd, in float64 (u may be large). At u = 0 the limits are taken just above it, unless f is infinite there."""
    wide_p, wide_q = log_p.double(), log_q.double()
    q = wide_q.exp()
    none = (wide_q == -torch.inf) & (wide_p == -torch.inf)
    u = torch.exp((wide_p - wide_q).masked_fill(none, 0.0))
    with torch.enable_grad():
        at = u.clamp(min=torch.finfo(torch.float64).tiny).requires_grad_()
        value = f(at)
        (slope,) = torch.autograd.grad(value.sum(), at)
    value = torch.where((u == 0) & torch.isinf(f(u)), torch.inf, value.detach())
    entry, tilt = (q * value).masked_fill(none, 0.0), (q * (value - at.detach() * slope)).masked_fill(none, 0.0)
    return entry.to(log_q.dtype), tilt.to(log_q.dtype)


_KINDS: dict[str, Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]] = {
    "forward_kl": _forward_kl,
    "reverse_kl": _reverse_kl,
    "jsd": _jsd,
    "tvd": _tvd,
    "skew_forward_kl": _skew_forward_kl,
    "skew_reverse_kl": _skew_reverse_kl,
}


def _check_pair(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape or student.dtype != teacher.dtype:
        raise ValueError(
            f"log-probs differ: student {tuple(student.shape)} {student.dtype}, "
            f"teacher {tuple(teacher.shape)} {teacher.dtype}"
        )
    if student.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"divergences need float32 or float64 log-probs, got {student.dtype}")


def divergence(kind: DivergenceKind, *, student: Tensor, teacher: Tensor, clip: float | None = None) -> Tensor:
    """D(teacher P, student Q) per step, in nats: log-probs [N, V] -> [N].

    forward_kl = KL(P||Q); reverse_kl = KL(Q||P); jsd(b) = b KL(P||M) + (1-b) KL(Q||M), M = bP + (1-b)Q, at most ln 2;
    tvd = half the L1 distance, at most 1; skew_forward_kl(a) = KL(P || aP + (1-a)Q) and skew_reverse_kl(a) = KL(Q ||
    (1-a)P + aQ) (DistiLLM, arXiv 2402.03898). forward_kl is +inf where P has mass and Q none (its gradient stays finite),
    reverse_kl where Q has mass and P none (its gradient is then infinite too); the others are always finite. "Mass" is
    what is above 0 after exp in the inputs' dtype. Any other kind is E_Q[f(P/Q)] by its generator, summed in float64: +inf
    where f is at u = 0, NaN where P has mass and Q is exactly 0 (the limit of f(u)/u is not known).

    `clip` (OPSD, arXiv 2601.18734) bounds each outcome's contribution from above before the sum: outcomes above it get
    no gradient of their own, and the sum may be negative. The derivative is that of the formula in the student's
    log-probs taken as free variables. Raises UserError for a clip not above 0, ValueError for unlike or half inputs.
    """
    _check_pair(student, teacher)
    if clip is not None and not clip > 0:
        raise UserError(f"divergence clip needs a number above 0, got {clip:g}")
    with torch.no_grad():
        if kind.name in _KINDS:
            entry_NV, slope_NV = _KINDS[kind.name](teacher, student, kind.beta or 0.0)
        else:
            entry_NV, slope_NV = _generated(generator(kind), teacher, student)
        if clip is not None:
            slope_NV.masked_fill_(entry_NV > clip, 0.0)
            entry_NV.clamp_(max=clip)
        value_N = entry_NV.sum(-1)
    return with_slope(student, value_N, slope_NV)


def _mass(logp_NV: Tensor, index_NK: Tensor) -> tuple[Tensor, Tensor]:
    """(log-probs at the indices [N, K], the probability they hold [N], detached)."""
    top_NK = logp_NV.gather(-1, index_NK)
    return top_NK, top_NK.detach().exp().sum(-1)


def _tail(logp_NV: Tensor, index_NK: Tensor) -> Tensor:
    """Log of the mass outside the indices [N], summed over what is outside: exact however small, -inf when nothing."""
    with torch.no_grad():
        rest_NV = logp_NV.scatter(-1, index_NK, -torch.inf)
        tail_N = rest_NV.logsumexp(-1)
        share_NV = rest_NV.sub_(tail_N.masked_fill(tail_N == -torch.inf, 0.0).unsqueeze(-1)).exp_()
    return with_slope(logp_NV, tail_N, share_NV)


def tail_logp(top_logp_NK: Tensor) -> Tensor:
    """log(1 - sum of the top K) [N], for a teacher known by its top K only (cached or served).

    The formula of SDPO's code: log(-expm1(logsumexp)), with logsumexp at most -1e-7. So a tail below 1e-7 reads as
    1e-7 without gradient, and in float32 a tail below 1e-6 is rounding; `restrict` sums the tail itself and has
    neither limit.
    """
    return torch.log(-torch.expm1(top_logp_NK.logsumexp(-1).clamp(max=-1e-7)))


def restrict(
    support: Support, *, student_logp_NV: Tensor, teacher_logp_NV: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Narrow both sides to a support: (student [N, K'], teacher [N, K'], captured by student [N], by teacher [N]).

    `top_k` takes the indices of the K likeliest outcomes of `support.of`; log-probs keep their full normaliser. With a
    tail, K' = K + 1: the last outcome is everything else, so the result is normalised and a divergence on it never
    exceeds the full one (SDPO, arXiv 2601.20802). Without, both sides are renormalised over the K (OPSD's top-k
    variant); a side that has no mass at all on the K is then NaN. K >= V is the full support, without a tail, exactly.
    `captured` is the probability on the K before either, detached: a metric. Gradient flows to the student alone, not
    through the choice of indices. Raises ValueError for `sampled` (see estimators) and for unlike inputs.
    """
    _check_pair(student_logp_NV, teacher_logp_NV)
    teacher_logp_NV = teacher_logp_NV.detach()
    if support.name == "sampled":
        raise ValueError("support sampled has no outcomes to sum over: use redistill.objectives.estimators.estimate")
    if support.name == "full" or support.k >= student_logp_NV.shape[-1]:
        whole_N = torch.ones_like(teacher_logp_NV[..., 0])
        return student_logp_NV, teacher_logp_NV, whole_N, whole_N
    chosen_NV = student_logp_NV.detach() if support.of == "student" else teacher_logp_NV
    index_NK = chosen_NV.topk(support.k, dim=-1).indices
    student_NK, student_captured_N = _mass(student_logp_NV, index_NK)
    teacher_NK, teacher_captured_N = _mass(teacher_logp_NV, index_NK)
    if support.tail:
        student_NK = torch.cat([student_NK, _tail(student_logp_NV, index_NK).unsqueeze(-1)], dim=-1)
        teacher_NK = torch.cat([teacher_NK, _tail(teacher_logp_NV, index_NK).unsqueeze(-1)], dim=-1)
    else:
        student_NK = student_NK.log_softmax(-1)
        teacher_NK = teacher_NK.log_softmax(-1)
    return student_NK, teacher_NK, student_captured_N, teacher_captured_N


def generator(kind: DivergenceKind) -> Generator:
    """f(u) of each kind in the survey's convention D_f(P||Q) = E_Q[f(P/Q)] (arXiv 2604.00626), u = teacher/student."""
    formula = kind.formula or GENERATORS.get(kind.name)
    if formula:
        tree = formulas.parsed(formula)
        return lambda u: formulas.value(tree, u, TORCH)
    b = kind.beta or 0.0
    generators: dict[str, Generator] = {
        "forward_kl": lambda u: torch.xlogy(u, u),
        "reverse_kl": lambda u: -torch.log(u),
        "jsd": lambda u: b * torch.xlogy(u, u / (b * u + 1 - b)) - (1 - b) * torch.log(b * u + 1 - b),
        "tvd": lambda u: 0.5 * (u - 1).abs(),
        "skew_forward_kl": lambda u: torch.xlogy(u, u / (b * u + 1 - b)),
        "skew_reverse_kl": lambda u: -torch.log((1 - b) * u + b),
    }
    return generators[kind.name]


def f_divergence(f: Generator, *, student: Tensor, teacher: Tensor) -> Tensor:
    """E_Q[f(P/Q)] per step by the direct formula, for any convex f with f(1) = 0: log-probs [N, V] -> [N].

    The gradient is autograd's and flows to the student alone. The student must have mass wherever the teacher has (the
    limit of f(u)/u is not known here): a row where it has none is NaN. Where the teacher has none (u = 0) the gradient
    is as good as that of f. `divergence` has neither limit for the named kinds, but no second derivative.
    """
    _check_pair(student, teacher)
    teacher = teacher.detach()
    q_NV = student.exp()
    empty_NV = (q_NV == 0) & (teacher.exp() == 0)
    u_NV = torch.exp((teacher - student).masked_fill(empty_NV, 0.0))
    return (q_NV * f(u_NV)).masked_fill((q_NV == 0) & ~empty_NV, torch.nan).masked_fill(empty_NV, 0.0).sum(-1)
