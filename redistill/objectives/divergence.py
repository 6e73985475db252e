"""Divergences between a teacher P and a student Q at each step, from log-probs (f-divergences: arXiv 2604.00626).

Inputs are log-probs over the last dimension V, float32 or float64, normalised; -inf is a legal log-prob on either side
(0 log 0 = 0). Gradient flows to the student alone. The derivative of each kind with respect to the student's log-probs
is written by hand beside its value: autograd would make NaN of 0 * inf and keep six tensors [N, V] where one is enough.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
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
        found_NV = slope_NV * grad_N1
        if not bool(found_NV.sum().isfinite()):
            # A step of weight 0 is out of the loss even when its slope is infinite, and the other way round.
            found_NV.masked_fill_((slope_NV == 0) | (grad_N1 == 0), 0.0)
        return found_NV, None, None


@torch.no_grad()
def _evaluated(slope: Callable[[], Tensor]) -> Tensor:
    return slope()


def with_slope(logp_NV: Tensor, value_N: Tensor, slope: Callable[[], Tensor]) -> Tensor:
    """`value_N` with the stated derivative [N, V] with respect to `logp_NV`; create_graph=True raises."""
    value: Tensor = _WithSlope.apply(logp_NV, value_N, _evaluated(slope))
    return value


class _Pair:
    """Teacher and student log-probs with what is computed of them, each once. Where all contributions come out finite no
    product is 0 * inf; the masks for those, most of the work, are for the `careful` second attempt."""

    def __init__(self, log_p: Tensor, log_q: Tensor, careful: bool, q: Tensor | None = None) -> None:
        self.log_p, self.log_q, self.careful = log_p, log_q, careful
        self._q = q

    @cached_property
    def p(self) -> Tensor:
        """Teacher's probabilities."""
        return self.log_p.exp()

    @cached_property
    def q(self) -> Tensor:
        """Student's probabilities."""
        return self.log_q.exp() if self._q is None else self._q

    def ratio(self) -> Tensor:
        """log p - log q (a new tensor); 0 where both are -inf."""
        ratio = self.log_p - self.log_q
        if self.careful:
            ratio.masked_fill_((self.log_p == -torch.inf) & (self.log_q == -torch.inf), 0.0)
        return ratio

    def times(self, weight: Tensor, value: Tensor) -> Tensor:
        """weight * value, in the memory of `value`; 0 * inf = 0 where the weight is 0."""
        value.mul_(weight)
        return value.masked_fill_(weight == 0, 0.0) if self.careful else value


def _to_mixture(delta: Tensor, teacher_share: float) -> tuple[Tensor, Tensor]:
    """(log m - log p, log m - log q) for m = s p + (1-s) q, from delta = log p - log q. Exactly 0 where p = q, and the
    exponential never overflows: each side is expanded around the larger of p and q."""
    teacher_is_larger = delta >= 0
    distance = delta.abs()
    from_larger = torch.expm1(-distance)
    if teacher_share == 0.5:
        from_larger.mul_(0.5)
    else:
        from_larger.mul_(
            torch.where(teacher_is_larger, delta.new_tensor(1.0 - teacher_share), delta.new_tensor(teacher_share))
        )
    from_larger.log1p_()
    from_smaller = distance.add_(from_larger)
    m_over_p = torch.where(teacher_is_larger, from_larger, from_smaller)
    return m_over_p, torch.where(teacher_is_larger, from_smaller, from_larger)


# Each kind: (pair, number) -> (contribution of each outcome, how to get its derivative with respect to that log q).

Kind = tuple[Tensor, Callable[[], Tensor]]


def _forward_kl(of: _Pair, _: float) -> Kind:
    return of.times(of.p, of.ratio()), lambda: -of.p


def _reverse_kl(of: _Pair, _: float) -> Kind:
    entry = of.times(of.q, of.ratio().neg_())
    return entry, lambda: entry + of.q


def _jsd(of: _Pair, beta: float) -> Kind:
    m_over_p, m_over_q = _to_mixture(of.ratio(), beta)
    student_part = of.times(of.q, m_over_q).mul_(beta - 1.0)
    return student_part - of.times(of.p, m_over_p).mul_(beta), lambda: student_part


def _tvd(of: _Pair, _: float) -> Kind:
    # The sign is that of the logs (probabilities may underflow alike); where there is no mass it does not matter.
    return (of.p - of.q).abs_().mul_(0.5), lambda: of.ratio().neg_().sign_().nan_to_num_(0.0).mul_(of.q).mul_(0.5)


def _skew_forward_kl(of: _Pair, alpha: float) -> Kind:
    m_over_p, m_over_q = _to_mixture(of.ratio(), alpha)
    return of.times(of.p, m_over_p.neg_()), lambda: m_over_q.neg_().exp_().mul_(of.p).mul_(alpha - 1.0)


def _skew_reverse_kl(of: _Pair, alpha: float) -> Kind:
    m_over_p, m_over_q = _to_mixture(of.ratio(), 1.0 - alpha)
    entry = of.times(of.q, m_over_q.neg_())
    return entry, lambda: m_over_p.neg_().exp_().mul_(of.q).mul_(1.0 - alpha).add_(entry)


def _generated(f: Generator, log_p: Tensor, log_q: Tensor) -> Kind:
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
    return entry.to(log_q.dtype), lambda: tilt.to(log_q.dtype)


_KINDS: dict[str, Callable[[_Pair, float], Kind]] = {
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


@torch.no_grad()
def value_and_slope(
    kind: DivergenceKind, teacher: Tensor, student: Tensor, clip: float | None = None, q: Tensor | None = None
) -> tuple[Tensor, Callable[[], Tensor]]:
    """(the divergence [N], how to get its derivative with respect to the student's log-probs [N, V]) of log-probs [N, V];
    `q` are the student's probabilities where they are known. See `divergence`."""
    for careful in (False, True):
        if kind.name in _KINDS:
            entry_NV, slope = _KINDS[kind.name](_Pair(teacher, student, careful, q), kind.beta or 0.0)
        else:
            entry_NV, slope = _generated(generator(kind), teacher, student)
        value_N = entry_NV.sum(-1)
        if careful or bool(value_N.isfinite().all()):
            break
    if clip is None:
        return value_N, slope
    value_N = entry_NV.clamp(max=clip).sum(-1)
    return value_N, lambda: slope().masked_fill(entry_NV > clip, 0.0)


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
    value_N, slope = value_and_slope(kind, teacher, student.detach(), clip)
    return with_slope(student, value_N, slope) if torch.is_grad_enabled() else value_N


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
    return with_slope(logp_NV, tail_N, lambda: share_NV)


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
    index_NK = outcomes(support, student_logp_NV=student_logp_NV, teacher_logp_NV=teacher_logp_NV)
    if index_NK is None:
        whole_N = torch.ones_like(teacher_logp_NV[..., 0])
        return student_logp_NV, teacher_logp_NV, whole_N, whole_N
    student_NK, student_captured_N = narrowed(student_logp_NV, index_NK, support.tail)
    teacher_NK, teacher_captured_N = narrowed(teacher_logp_NV, index_NK, support.tail)
    return student_NK, teacher_NK, student_captured_N, teacher_captured_N


@torch.no_grad()
def outcomes(support: Support, *, student_logp_NV: Tensor, teacher_logp_NV: Tensor) -> Tensor | None:
    """Indices [N, K] of the outcomes that a support looks at; None: all. See `restrict`."""
    if support.name == "sampled":
        raise ValueError("support sampled has no outcomes to sum over: use redistill.objectives.estimators.estimate")
    if support.name == "full" or support.k >= student_logp_NV.shape[-1]:
        return None
    return likeliest(student_logp_NV if support.of == "student" else teacher_logp_NV, support.k)


def narrowed(logp_NV: Tensor, index_NK: Tensor, tail: bool) -> tuple[Tensor, Tensor]:
    """(log-probs of the outcomes at the indices and of the rest as one more, or renormalised [N, K'], captured [N])."""
    top_NK, captured_N = _mass(logp_NV, index_NK)
    if tail:
        return torch.cat([top_NK, _tail(logp_NV, index_NK).unsqueeze(-1)], dim=-1), captured_N
    return top_NK.log_softmax(-1), captured_N


def likeliest(values_NV: Tensor, k: int) -> Tensor:
    """Indices [N, K] of the k largest of each row, exactly (order and choice among equals are open). The k largest stand in
    the k groups with the largest maxima, so one pass over the row and a sort of a few groups are enough."""
    size = int((values_NV.shape[-1] / k) ** 0.5)
    groups = values_NV.shape[-1] // max(size, 1)
    if size < 4 or values_NV.ndim != 2:
        return values_NV.topk(k, dim=-1).indices
    whole = groups * size
    best_NG = (
        values_NV[:, :whole].unflatten(-1, (groups, size)).amax(-1).topk(min(k, groups), dim=-1, sorted=False).indices
    )
    inside_NC = (best_NG.unsqueeze(-1) * size + torch.arange(size, device=best_NG.device)).flatten(1)
    beyond_C = torch.arange(whole, values_NV.shape[-1], device=best_NG.device)
    places_NC = torch.cat([inside_NC, beyond_C.expand(len(values_NV), -1)], dim=-1)
    return places_NC.gather(-1, values_NV.gather(-1, places_NC).topk(k, dim=-1).indices)


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
