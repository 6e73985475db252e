"""The sampling spec and what it does to logits: temperature, top-k, top-p, min-p, in this order (vLLM's and HF's).

The spec travels with every episode (law 8): a log-prob that was recorded under it can only be compared with one that
was computed under it, on the same support. `truncate` is the one definition, for the sampler and for whoever
renormalises; drawing.py takes a token from what it leaves.
Top-p is nucleus sampling (Holtzman et al., arXiv 1904.09751); min-p is Nguyen et al., arXiv 2407.01082.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from redistill.errors import UserError

_NUCLEUS_GUESSES = (256, 8192)
"""How many of the largest logits top-p looks at, one after the other, before it sorts the whole vocabulary."""


def _number(key: str, value: Any, kind: type) -> None:
    allowed = (int, float) if kind is float else (int,)
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise UserError(f"sampling {key} is {value!r}, it must be {'a number' if kind is float else 'a whole number'}")


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. The defaults sample from the model itself, untouched."""

    temperature: float = 1.0
    """Divides the logits, 0 or more; 0 is greedy (argmax), which ignores the three truncations."""
    top_p: float = 1.0
    """Keep the smallest set of tokens whose mass is at least this, above 0 and up to 1; 1 is off."""
    top_k: int = 0
    """Keep this many tokens (all that tie with the last); 0 is off."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the most likely one, 0 up to 1; 0 is off."""
    max_new_tokens: int = 64
    """The longest response in tokens, the closing EOS included; 1 or more."""
    stop: tuple[str, ...] = ()
    """Strings that end a response beside EOS; none of them empty."""

    def __post_init__(self) -> None:
        for key in ("temperature", "top_p", "min_p"):
            _number(key, getattr(self, key), float)
        for key in ("top_k", "max_new_tokens"):
            _number(key, getattr(self, key), int)
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(
                f"sampling temperature is {self.temperature:g}, it must be 0 (greedy) or a finite number above"
            )
        if not 0 < self.top_p <= 1:
            raise UserError(f"sampling top_p is {self.top_p:g}, it must be above 0 and at most 1 (1 is off)")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"sampling min_p is {self.min_p:g}, it must be between 0 (off) and 1")
        if self.top_k < 0:
            raise UserError(f"sampling top_k is {self.top_k}, it must be 0 (off) or more")
        if self.max_new_tokens < 1:
            raise UserError(f"sampling max_new_tokens is {self.max_new_tokens}, it must be 1 or more")
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise UserError(f"sampling stop is {self.stop!r}, it must be a tuple of strings, none of them empty")
        object.__setattr__(self, "stop", tuple(self.stop))

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken each time (temperature 0)."""
        return self.temperature == 0

    @property
    def truncated(self) -> bool:
        """Whether some tokens can have no chance because of top_p, top_k or min_p (a greedy spec ignores the three)."""
        return not self.greedy and (self.top_p < 1 or self.top_k > 0 or self.min_p > 0)


def truncate(logits_NV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Logits of the distribution that `sampling` draws from: divided by temperature, -inf off the support.

    `logits_NV` [N, V] is left as it is; the result may share its memory when nothing changes. A greedy spec returns the
    logits untouched, because greedy log-probs are recorded at temperature 1. The support is chosen without gradient;
    gradients flow through the kept logits. A log_softmax of the result is renormalised on the support.
    """
    if sampling.greedy:
        return logits_NV
    if sampling.temperature != 1.0:
        logits_NV = logits_NV / sampling.temperature
    if not sampling.truncated:
        return logits_NV
    with torch.no_grad():
        dropped_NV = _dropped(logits_NV.detach(), sampling)
    return logits_NV.masked_fill(dropped_NV, -math.inf)


def _dropped(logits_NV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Which tokens are off the support, bool [N, V], for logits already divided by temperature."""
    vocabulary = logits_NV.shape[-1]
    dropped_NV = torch.zeros_like(logits_NV, dtype=torch.bool)
    if 0 < sampling.top_k < vocabulary:
        smallest_N1 = logits_NV.topk(sampling.top_k, dim=-1, sorted=False).values.amin(-1, keepdim=True)
        dropped_NV |= logits_NV < smallest_N1
    if sampling.top_p < 1:
        dropped_NV |= _outside_nucleus(logits_NV.masked_fill(dropped_NV, -math.inf), sampling.top_p)
    if sampling.min_p > 0:  # the most likely token is never dropped by the two above, so their order does not matter
        dropped_NV |= logits_NV < logits_NV.amax(-1, keepdim=True) + math.log(sampling.min_p)
    return dropped_NV


def _outside_nucleus(
    logits_NV: torch.Tensor, top_p: float, guesses: tuple[int, ...] = _NUCLEUS_GUESSES
) -> torch.Tensor:
    """Which tokens are outside the smallest set of mass >= top_p, bool [N, V]; among equals the lower id is kept.

    A token is kept when the mass of those ahead of it is below top_p, so at least one always is. Only the largest
    logits are sorted; rows whose nucleus is wider than those, or ends inside a tie, go on to the next guess and last to
    a sort in full.
    """
    vocabulary = logits_NV.shape[-1]
    guess = min(guesses[0], vocabulary) if guesses else vocabulary
    if guesses:
        top_NK, ids_NK = logits_NV.topk(guess, dim=-1)
    else:  # stable, unlike topk
        top_NK, ids_NK = logits_NV.sort(dim=-1, descending=True, stable=True)
    kept_NK = _in_nucleus(top_NK - logits_NV.logsumexp(-1, keepdim=True), top_p)
    outside_NV = torch.ones_like(logits_NV, dtype=torch.bool).scatter_(-1, ids_NK, ~kept_NK)
    if guesses:
        edge_N1 = top_NK.gather(-1, (kept_NK.sum(-1, keepdim=True) - 1).clamp_min(0))  # none is kept of a NaN row
        tied_N = (top_NK == edge_N1).sum(-1) > 1
        unsure_N = (kept_NK.all(-1) & (guess < vocabulary)) | tied_N
        if bool(unsure_N.any()):
            outside_NV[unsure_N] = _outside_nucleus(logits_NV[unsure_N], top_p, guesses[1:])
    return outside_NV


def _in_nucleus(sorted_logp_NK: torch.Tensor, top_p: float) -> torch.Tensor:
    """For log-probs in descending order: whether the mass ahead of each is below top_p (float64 sums), bool [N, K]."""
    p_NK = sorted_logp_NK.double().exp()
    return (p_NK.cumsum(-1) - p_NK < top_p) & (p_NK > 0)
