"""The clipped policy gradient of PPO (arXiv 1707.06347) and the ratios that go into it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from redistill.errors import UserError

MAX_LOG_RATIO = 20.0
"""Log-ratios are taken between -20 and 20, so that a ratio stays below 4.9e8 in float32; beyond it has no gradient."""


def _check_bounds(clip_low: float | None, clip_high: float | None, dual_clip: float | None) -> None:
    for name, value in (("clip_low", clip_low), ("clip_high", clip_high)):
        if value is not None and not value >= 0:
            raise UserError(f"{name} needs a number of 0 or more (or none for no bound), got {value:g}")
    if dual_clip is not None and not dual_clip > 1:
        raise UserError(f"dual_clip needs a number above 1 (or none for no bound), got {dual_clip:g}")


def policy_gradient(
    logp_N: Tensor,
    behaviour_logp_N: Tensor,
    advantage_N: Tensor,
    *,
    clip_low: float | None,
    clip_high: float | None,
    dual_clip: float | None = None,
    log_ratio_N: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) per step: (loss [N], clipped [N] bool).

    r = exp(logp - behaviour), or exp(log_ratio_N) when that is given (rlad's anchored ratio, GSPO's sequence ratio);
    the log-ratio is bounded to MAX_LOG_RATIO. None leaves a side unclipped. `dual_clip` c > 1 bounds the loss of a
    negative advantage by -c A (arXiv 1912.09729). `clipped` marks the steps at a bound: their loss is constant,
    without gradient. Gradient flows through r alone. Raises UserError for a negative clip or a dual_clip of 1 or less.
    """
    _check_bounds(clip_low, clip_high, dual_clip)
    if log_ratio_N is None:
        log_ratio_N = logp_N - behaviour_logp_N.detach()
    ratio_N = log_ratio_N.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    advantage_N = advantage_N.detach()
    with torch.no_grad():
        low = 0.0 if clip_low is None else 1.0 - clip_low
        high = torch.inf if clip_high is None else 1.0 + clip_high
        # The min is pessimistic: above the range it binds for A > 0 only, below it for A < 0 only.
        bounded_N = torch.where(advantage_N > 0, ratio_N.clamp(max=high), ratio_N.clamp(min=low))
        if dual_clip is not None:
            bounded_N = torch.where(advantage_N < 0, bounded_N.clamp(max=dual_clip), bounded_N)
        clipped_N = (bounded_N != ratio_N) & (advantage_N != 0)
    return -advantage_N * torch.where(clipped_N, bounded_N, ratio_N), clipped_N


def sequence_log_ratio(
    logp_N: Tensor, behaviour_N: Tensor, lengths: Sequence[int], *, per_token: bool = False
) -> Tensor:
    """GSPO's log-ratio (arXiv 2507.18071) [N]: the mean of logp - behaviour over each row, at every step of the row.

    `lengths` are the rows' steps, in order, 0 legal; all steps of a row must be here. The mean (not the sum: the ratio
    would grow with length) is the definition of the ratio, not a normaliser. `per_token` is GSPO-token: the same
    value, with step t's gradient that of log p_t alone (sg[mean] + log p_t - sg[log p_t]), for advantages that differ
    within a row. Raises ValueError when the lengths do not add up to N.
    """
    if sum(lengths) != logp_N.numel():
        raise ValueError(f"lengths add up to {sum(lengths)}, log-probs to {logp_N.numel()}")
    length_B = torch.as_tensor(lengths, device=logp_N.device, dtype=torch.int64)
    row_of_N = torch.arange(len(lengths), device=logp_N.device).repeat_interleave(length_B)
    sum_B = logp_N.new_zeros(len(lengths)).index_add(0, row_of_N, logp_N - behaviour_N.detach())
    mean_N = (sum_B / length_B.clamp(min=1))[row_of_N]
    return mean_N.detach() + logp_N - logp_N.detach() if per_token else mean_N


def shaped_ratio(ratio_N: Tensor, gamma: float | Tensor) -> Tensor:
    """r / (r + gamma) [N], between 0 and 1 (guide, LUFFY and AMPO: off-policy steps in place of a clip). Its
    derivative in log r is r gamma / (r + gamma)^2: largest at r = gamma, vanishing at both ends. Raises UserError for
    gamma <= 0."""
    if not bool((torch.as_tensor(gamma) > 0).all()):
        raise UserError(f"gamma of a shaped ratio needs a number above 0, got {gamma}")
    gamma = gamma.detach() if isinstance(gamma, Tensor) else gamma
    return ratio_N / (ratio_N + gamma)


def anchored_log_ratio(
    logp_N: Tensor, behaviour_N: Tensor, teacher_N: Tensor, alpha: float, *, bound: float | None = None,
    keep_gradient: bool = False,
) -> Tensor:  # fmt: skip
    """log of (pS / p_old)^alpha (pS / pT)^(1 - alpha) per step [N] (RLAD, arXiv 2602.22495), the trust region's anchor a
    mixture of old student and teacher; alpha 1 is the ordinary ratio and does not look at the teacher.

    `bound` keeps log pS / pT inside [-bound, bound] before the power; beyond it that factor is constant, unless
    `keep_gradient` lets the gradient of log pS through. Gradient flows to the student alone.
    """
    own_N = logp_N - behaviour_N.detach()
    if alpha == 1.0:
        return own_N
    gap_N = logp_N - teacher_N.detach()
    if bound is not None:
        inside_N = gap_N.clamp(-bound, bound)
        gap_N = inside_N.detach() + gap_N - gap_N.detach() if keep_gradient else inside_N
    return alpha * own_N + (1.0 - alpha) * gap_N
