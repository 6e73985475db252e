"""Terms of the generation domain, in the shape of redistill/objectives/terms.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from redistill.core.signal import Losses, Quantity, Teacher, Term, Values
from redistill.errors import UserError
from redistill.generation.centring import group_mean, pool_weights, softmax_weights
from redistill.generation.quantities import (
    MixedError,
    StepDivergence,
    TeacherVelocityError,
    VelocityError,
    VelocityGap,
)


@dataclass(frozen=True, eq=False, kw_only=True)
class FlowMatching(Term):
    """mean (v - v*)^2 at noised samples: plain flow matching on whatever the rows hold."""

    name: str = "flow_matching"
    adaptive: bool = False

    def quantities(self) -> tuple[Quantity, ...]:
        """The student's error."""
        return (VelocityError(self.adaptive),)

    def losses(self, values: Values, at_n: Tensor, lengths: Sequence[int]) -> Losses:
        """The error per row."""
        loss_n = values[VelocityError(self.adaptive)]
        return Losses(loss_n, {"error": loss_n.detach()})


@dataclass(frozen=True, eq=False, kw_only=True)
class MixedFlow(Term):
    """Flow matching of a mixture of the student and a teacher: DiffusionNFT's positive or negative branch."""

    name: str = "mixed_flow"
    teacher: Teacher
    share: float
    space: str = "x0"
    adaptive: bool = True

    def _error(self) -> MixedError:
        return MixedError(self.teacher, self.share, self.space, self.adaptive)

    def quantities(self) -> tuple[Quantity, ...]:
        """The mixture's error."""
        return (self._error(),)

    def losses(self, values: Values, at_n: Tensor, lengths: Sequence[int]) -> Losses:
        """The error per row."""
        loss_n = values[self._error()]
        return Losses(loss_n, {"error": loss_n.detach()})


@dataclass(frozen=True, eq=False, kw_only=True)
class Anchor(Term):
    """mean (v - sg v_T)^2: holds the student's velocity to a teacher's (guided, where its context says so)."""

    name: str = "anchor"
    teacher: Teacher

    def quantities(self) -> tuple[Quantity, ...]:
        """The gap of velocities."""
        return (VelocityGap(self.teacher),)

    def losses(self, values: Values, at_n: Tensor, lengths: Sequence[int]) -> Losses:
        """The gap per step."""
        loss_n = values[VelocityGap(self.teacher)]
        return Losses(loss_n, {"gap": loss_n.detach()})


@dataclass(frozen=True, eq=False, kw_only=True)
class StepAnchor(Term):
    """KL between the SDE steps of student and teacher."""

    name: str = "kl"
    teacher: Teacher
    exact: bool = True

    def quantities(self) -> tuple[Quantity, ...]:
        """The divergence of a step."""
        return (StepDivergence(self.teacher, self.exact),)

    def losses(self, values: Values, at_n: Tensor, lengths: Sequence[int]) -> Losses:
        """The divergence per step."""
        loss_n = values[StepDivergence(self.teacher, self.exact)]
        return Losses(loss_n, {"kl": loss_n.detach()})


@dataclass(frozen=True, eq=False, kw_only=True)
class CentredReward(Term):
    """CRD's regression (arXiv 2603.14128): the implicit reward rhat = error of the old model - error of the student, and
    the external reward R, both centred inside their group, must agree: (beta rc - Rc)^2.

    `group_N` numbers the groups; all `size_N` members of a group must be in one micro-batch (the domain sees to it) and
    one mini-batch. `temperature` None: uniform means. Else the loss is half that with means weighted by softmax(R / tau)
    and half that with softmax(-R / tau); 0 stands for the means over the members with R above and below `middle`.
    `loss` "bce": binary cross-entropy of beta rc against sigmoid(Rc).
    """

    name: str = "centred_reward"
    teacher: Teacher
    reward_N: Tensor
    group_N: Tensor
    size_N: Tensor
    beta: float = 1.0
    adaptive: bool = True
    temperature: float | None = None
    middle: float = 0.5
    loss: str = "mse"

    def __post_init__(self) -> None:
        if self.mask_N is not None:
            raise ValueError("centred_reward takes whole groups: leave rows out instead of masking them")

    def quantities(self) -> tuple[Quantity, ...]:
        """The forward-process errors of the student and the old model."""
        return (VelocityError(self.adaptive), TeacherVelocityError(self.teacher, self.adaptive))

    def prepared(self) -> CentredReward:
        """Refuse a mini-batch that holds a part of a group."""
        _, at_N, count = torch.unique(self.group_N, return_inverse=True, return_counts=True)
        if not torch.equal(count[at_N], self.size_N):
            raise UserError(
                "minibatches cuts a prompt's group: centring needs whole groups, so minibatches must divide "
                "prompts_per_step times the training times, and epochs must be 1"
            )
        return replace(self)

    def losses(self, values: Values, at_n: Tensor, lengths: Sequence[int]) -> Losses:
        """The regression loss of each row."""
        rhat_n = values[TeacherVelocityError(self.teacher, self.adaptive)] - values[VelocityError(self.adaptive)]
        group_n, reward_n = self.group_N[at_n], self.reward_N[at_n].to(rhat_n)
        if self.temperature is None:
            loss_n, centred_n = self._against(rhat_n, reward_n, group_n, None)
        else:
            pair = [
                self._against(rhat_n, reward_n, group_n, self._weights(reward_n, group_n, sign)) for sign in (1, -1)
            ]
            loss_n, centred_n = 0.5 * (pair[0][0] + pair[1][0]), 0.5 * (pair[0][1] + pair[1][1])
        observed = {"implicit_reward_square": centred_n.detach().square(), "reward": reward_n}
        return Losses(loss_n, observed)

    def _weights(self, reward_n: Tensor, group_n: Tensor, sign: int) -> Tensor:
        if self.temperature:
            return softmax_weights(sign * reward_n, group_n, self.temperature)
        return pool_weights(sign * (reward_n - self.middle) > 0, group_n).to(reward_n)

    def _against(
        self, rhat_n: Tensor, reward_n: Tensor, group_n: Tensor, weight_n: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(loss, centred implicit reward), both [n], for one choice of means."""
        implicit_n = self.beta * (rhat_n - group_mean(rhat_n.detach(), group_n, weight_n))
        external_n = reward_n - group_mean(reward_n, group_n, weight_n)
        if self.loss == "bce":
            return F.binary_cross_entropy_with_logits(implicit_n, external_n.sigmoid(), reduction="none"), implicit_n
        return (implicit_n - external_n).square(), implicit_n
