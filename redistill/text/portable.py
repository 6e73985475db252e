"""The decode step's arithmetic outside the matrix products in plain torch: for machines without a compiler, for devices
other than the CPU, and as what the compiled kernels (native.py) are compared with. Same names, same meaning."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Portable", "normed", "rotated", "split"]

_BLOCK = 256
"""Tokens in a block of the two-level inverse of the distribution function."""


class Portable:
    """The functions of native.Kernels on tensors anywhere."""

    def attend(
        self, qkv_NE: Tensor, slots: tuple[Tensor, Tensor, Tensor], cos: Tensor, sin: Tensor,
        norms: tuple[Tensor | None, Tensor | None], window: int | None, eps: float, scale: float,
    ) -> Tensor:  # fmt: skip
        """Attention of one new token a row; writes its key and value. Returns [N, heads * width]. `slots` are keys and
        values [slots, heads, columns, width] and the rows' newest columns [N]."""
        keys, values, column_N = slots
        rows, (_, kv_heads, _, width) = len(qkv_NE), keys.shape
        q_NHd, k_NKd, v_NKd = split(qkv_NE, kv_heads, width)
        cos_N1d, sin_N1d = cos[column_N][:, None], sin[column_N][:, None]
        q_NHd = rotated(normed(q_NHd, norms[0], eps), cos_N1d, sin_N1d).to(qkv_NE.dtype)
        k_NKd = rotated(normed(k_NKd, norms[1], eps), cos_N1d, sin_N1d).to(qkv_NE.dtype)
        every = torch.arange(rows, device=qkv_NE.device)
        keys[every, :, column_N] = k_NKd
        values[every, :, column_N] = v_NKd
        seen = int(column_N.max()) + 1
        column_S = torch.arange(seen, device=qkv_NE.device)
        visible_NS = column_S <= column_N[:, None]
        if window is not None:
            visible_NS &= column_S > column_N[:, None] - window
        # The query heads that share a key head are its queries, so keys are not repeated.
        out_NKGd = F.scaled_dot_product_attention(
            q_NHd.view(rows, kv_heads, -1, width), keys[:rows, :, :seen], values[:rows, :, :seen],
            attn_mask=visible_NS[:, None, None], scale=scale,
        )  # fmt: skip
        return out_NKGd.reshape(rows, -1)

    def read(
        self, qkv_ME: Tensor, prompts: int, kv_heads: int, width: int, cos: Tensor, sin: Tensor,
        norms: tuple[Tensor | None, Tensor | None], window: int | None, eps: float, scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Causal attention of prompts of equal length, one after the other in [M, E]: what the tokens see
        [M, heads * width], and keys and values [prompts, heads, length, width]."""
        length, dtype = len(qkv_ME) // prompts, qkv_ME.dtype
        q, k, v = (part.transpose(1, 2) for part in split(qkv_ME.view(prompts, length, -1), kv_heads, width))
        q = rotated(normed(q, norms[0], eps), cos[:length], sin[:length]).to(dtype)
        k, v = rotated(normed(k, norms[1], eps), cos[:length], sin[:length]).to(dtype).contiguous(), v.contiguous()
        mask = None
        if window is not None and window < length:
            at = torch.arange(length, device=qkv_ME.device)
            mask = (at[:, None] >= at) & (at[:, None] - at < window)
        groups = q.shape[1] // kv_heads
        out = F.scaled_dot_product_attention(
            q, k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1), attn_mask=mask, is_causal=mask is None,
            scale=scale,
        )  # fmt: skip
        return out.transpose(1, 2).reshape(len(qkv_ME), -1), k, v

    def add_norm(
        self, x_ND: Tensor, y_ND: Tensor | None, post_D: Tensor | None, weight_D: Tensor, eps: float, dtype: torch.dtype
    ) -> Tensor:
        """x += y (normed and times `post` if given), in place in float32; returns norm(x) * weight in `dtype`."""
        if y_ND is not None:
            x_ND += y_ND if post_D is None else normed(y_ND, post_D, eps)
        return normed(x_ND, weight_D, eps).to(dtype)

    def gated(self, both_NF: Tensor, kind: int) -> Tensor:
        """act(gate) * up of rows [gate | up]; kind 0 is silu, 1 gelu by tanh."""
        gate_NF, up_NF = both_NF.chunk(2, dim=-1)
        return (F.silu(gate_NF) if kind == 0 else F.gelu(gate_NF, approximate="tanh")) * up_NF

    def pick(self, logits_NV: Tensor, uniforms_N: Tensor | None, inverse: float) -> tuple[Tensor, Tensor]:
        """Ids [N] at which the distribution function of softmax(inverse * logits) passes the uniforms (float64), and
        their log-probs [N]; the likeliest ids without uniforms; id -1 where the logits are not finite."""
        top_N1 = logits_NV.amax(-1, keepdim=True)
        weight_NV = (logits_NV - top_N1).mul_(inverse).exp_()
        if uniforms_N is None:
            ids_N1, total_N = logits_NV.argmax(-1, keepdim=True), weight_NV.sum(-1, dtype=torch.float64)
        else:
            ids_N1, total_N = inverse_cdf(weight_NV, uniforms_N)
            ids_N1 = ids_N1.clamp_max(logits_NV.shape[1] - 1)  # of a row that is not finite
        logp_N = (logits_NV.gather(-1, ids_N1) - top_N1).squeeze(-1) * inverse - total_N.log()
        return torch.where(total_N.isfinite(), ids_N1.squeeze(-1), -1), logp_N.float()


def split(qkv_NE: Tensor, kv_heads: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [..., H, width], keys and values [..., K, width] of the fused product."""
    heads = qkv_NE.unflatten(-1, (-1, width))
    query_heads = heads.shape[-2] - 2 * kv_heads
    return heads.split([query_heads, kv_heads, kv_heads], dim=-2)


def normed(x: Tensor, weight_D: Tensor | None, eps: float) -> Tensor:
    """RMS norm over the last dimension in float32 (Zhang & Sennrich, arXiv 1910.07467); x as it is without a weight."""
    if weight_D is None:
        return x
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight_D


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions in float32 (Su et al., arXiv 2104.09864), the halves being the two parts of each pair."""
    one, two = x.float().chunk(2, dim=-1)
    return x.float() * cos + torch.cat([-two, one], dim=-1) * sin


def inverse_cdf(weight_NV: torch.Tensor, uniforms_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [N, 1] at which the cumulative weight passes u * total, and the totals [N] (float64).

    Two levels: first the block of tokens, then the token in it, so that the whole vocabulary is only summed once.
    A token of zero weight is never taken, whatever the rounding: targets are kept below the last cumulative weight.
    """
    rows, vocabulary = weight_NV.shape
    if vocabulary <= 4 * _BLOCK:
        passed_NV = weight_NV.double().cumsum(-1)
        total_N1 = passed_NV[:, -1:]
        return _first_past(passed_NV, uniforms_N[:, None] * total_N1)[0], total_N1.squeeze(-1)
    whole = vocabulary // _BLOCK * _BLOCK
    block_NB = weight_NV[:, :whole].view(rows, -1, _BLOCK).sum(-1, dtype=torch.float32)
    if whole < vocabulary:
        block_NB = torch.cat([block_NB, weight_NV[:, whole:].sum(-1, keepdim=True)], dim=-1)
    passed_NB = block_NB.double().cumsum(-1)
    total_N1 = passed_NB[:, -1:]
    chosen_N1, rest_N1 = _first_past(passed_NB, uniforms_N[:, None] * total_N1)
    ids_NK = chosen_N1 * _BLOCK + torch.arange(_BLOCK, device=weight_NV.device)
    inside_NK = weight_NV.gather(-1, ids_NK.clamp_max(vocabulary - 1)).double()
    inside_NK.masked_fill_(ids_NK >= vocabulary, 0.0)
    offset_N1, _ = _first_past(inside_NK.cumsum(-1), rest_N1)
    return chosen_N1 * _BLOCK + offset_N1, total_N1.squeeze(-1)


def _first_past(passed_NB: torch.Tensor, target_N1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First index whose cumulative weight is above the target, and how far into that entry the target lies."""
    last_N1 = passed_NB[:, -1:]
    target_N1 = torch.minimum(target_N1, torch.nextafter(last_N1, torch.zeros_like(last_N1)))
    index_N1 = torch.searchsorted(passed_NB, target_N1, right=True)
    before_N1 = torch.where(index_N1 > 0, passed_NB.gather(-1, (index_N1 - 1).clamp_min(0)), 0.0)
    return index_N1, (target_N1 - before_N1).clamp_min_(0.0)
