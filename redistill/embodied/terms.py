"""Terms of the embodied domain, in the shape of redistill/objectives/terms.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redistill.core.signal import DivergenceOf, LogProb, Losses, Quantity, Teacher, Term, Values
from redistill.core.specs import DivergenceKind, Support
from redistill.embodied.quantities import ImitationError, Value
from redistill.objectives.policy_gradient import MAX_LOG_RATIO
from redistill.objectives.returns import standardised, value_loss
from redistill.objectives.terms import PolicyGradient


@dataclass(frozen=True, eq=False, kw_only=True)
class StandardisedPolicyGradient(PolicyGradient):
    """The clipped policy gradient with advantages of mean 0 and deviation 1 in every mini-batch (PPO)."""

    def prepared(self) -> StandardisedPolicyGradient:
        """Standardise over the steps of this update."""
        kept_N = torch.ones_like(self.advantage_N, dtype=torch.bool) if self.mask_N is None else self.mask_N
        return replace(self, advantage_N=standardised(self.advantage_N, kept_N))


@dataclass(frozen=True, eq=False, kw_only=True)
class ValueRegression(Term):
    """(V - R)^2 / 2, optionally held within `clip` of the value before."""

    name: str = "value"
    return_N: Tensor
    before_N: Tensor | None = None
    clip: float | None = None

    def quantities(self) -> tuple[Quantity, ...]:
        """The critic's value."""
        return (Value(),)

    def losses(self, values: Values, at_n: Tensor, lengths: Sequence[int]) -> Losses:
        """The squared error per step."""
        value_n = values[Value()]
        before_n = None if self.before_N is None else self.before_N[at_n].to(value_n)
        loss_n = value_loss(value_n, self.return_N[at_n].to(value_n), before_n, self.clip)
        return Losses(loss_n, {"value": value_n.detach(), "error": loss_n.detach()})


@dataclass(frozen=True, eq=False, kw_only=True)
class Imitation(Term):
    """The distance of the student's Gaussian from a teacher's proposals: "mse", "l1" or "bc"."""

    name: str = "imitation"
    teacher: Teacher
    kind: str = "mse"

    def quantities(self) -> tuple[Quantity, ...]:
        """The distance itself."""
        return (ImitationError(self.teacher, self.kind),)

    def losses(self, values: Values, at_n: Tensor, lengths: Sequence[int]) -> Losses:
        """The distance per step."""
        loss_n = values[ImitationError(self.teacher, self.kind)]
        return Losses(loss_n, {self.kind: loss_n.detach()})


@dataclass(frozen=True, eq=False, kw_only=True)
class ProximalDistillation(Term):
    """KL(student || teacher) max(r, 1 - clip) with r the importance ratio, bounded from below alone (PPD, arXiv 2407.15134).
    Gradient flows through the KL and through r."""

    name: str = "imitation"
    teacher: Teacher
    behaviour_N: Tensor
    clip: float = 0.2

    def _divergence(self) -> DivergenceOf:
        return DivergenceOf(self.teacher, DivergenceKind("reverse_kl"), Support("full"))

    def quantities(self) -> tuple[Quantity, ...]:
        """The divergence, and the log-prob for the ratio."""
        return (self._divergence(), LogProb())

    def losses(self, values: Values, at_n: Tensor, lengths: Sequence[int]) -> Losses:
        """The weighted divergence per step."""
        logp_n, kl_n = values[LogProb()], values[self._divergence()]
        gap_n = (logp_n - self.behaviour_N[at_n].to(logp_n)).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        return Losses(kl_n * gap_n.exp().clamp(min=1.0 - self.clip), {"kl": kl_n.detach()})
