"""The general terms: policy gradient, likelihood, divergence, entropy. Domains add theirs in the same shape.

Legend of suffixes: N steps of all rows of a signal, n steps of the rows at hand, V outcomes, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from redistill.core.signal import (
    CapturedMass,
    DivergenceOf,
    EntropyOf,
    LogProb,
    Losses,
    PlackettLuce,
    Quantity,
    Teacher,
    TeacherLogProb,
    Term,
    Values,
)  # fmt: skip
from redistill.core.specs import DivergenceKind, Support
from redistill.objectives.estimators import estimate
from redistill.objectives.policy_gradient import anchored_log_ratio, policy_gradient, sequence_log_ratio

LogRatio = Callable[[Values, Tensor, Sequence[int]], Tensor]
"""A custom ratio: (values, behaviour_n, lengths) -> log-ratio [n], differentiable in the student (rlad's anchored ratio)."""


@dataclass(frozen=True)
class AnchoredRatio:
    """RLAD's ratio, anchored at old student and teacher: a LogRatio that reads `TeacherLogProb(teacher)`."""

    teacher: Teacher
    alpha: float
    bound: float | None = None
    keep_gradient: bool = False

    def __call__(self, values: Values, behaviour_n: Tensor, lengths: Sequence[int]) -> Tensor:
        """The log-ratio per step [n]."""
        return anchored_log_ratio(
            values[LogProb()], behaviour_n, values[TeacherLogProb(self.teacher)], self.alpha, bound=self.bound,
            keep_gradient=self.keep_gradient,
        )  # fmt: skip


@dataclass(frozen=True, eq=False, kw_only=True)
class PolicyGradient(Term):
    """PPO's clipped objective on the steps taken (arXiv 1707.06347), as a loss. `behaviour_N` is the recorded log-prob
    (None: ratio 1 with its gradient, i.e. REINFORCE). `ratio` is "token", "sequence" (GSPO, arXiv 2507.18071) or a LogRatio."""

    name: str = "policy_gradient"
    advantage_N: Tensor
    behaviour_N: Tensor | None = None
    clip_low: float | None = 0.2
    clip_high: float | None = 0.2
    dual_clip: float | None = None
    ratio: str | LogRatio = "token"
    reads: tuple[Quantity, ...] = ()

    def quantities(self) -> tuple[Quantity, ...]:
        """The log-prob of the taken step, and what a custom ratio reads."""
        return (LogProb(), *self.reads)

    def losses(self, values: Values, at_n: Tensor, lengths: Sequence[int]) -> Losses:
        """-min(r A, clip(r) A) per step; observed: the share of clipped steps, the ratio and its spread."""
        logp_n = values[LogProb()]
        behaviour_n = logp_n.detach() if self.behaviour_N is None else self.behaviour_N[at_n].to(logp_n)
        log_ratio_n = None
        if self.ratio == "sequence":
            log_ratio_n = sequence_log_ratio(logp_n, behaviour_n, lengths)
        elif callable(self.ratio):
            log_ratio_n = self.ratio(values, behaviour_n, lengths)
        loss_n, clipped_n = policy_gradient(
            logp_n, behaviour_n, self.advantage_N[at_n].to(logp_n), clip_low=self.clip_low, clip_high=self.clip_high,
            dual_clip=self.dual_clip, log_ratio_N=log_ratio_n,
        )  # fmt: skip
        gap_n = (logp_n - behaviour_n).detach()
        ratio_n = gap_n.exp()
        # k3 of KL(behaviour || student), what PPO's early stop looks at.
        observed = {
            "clipped": clipped_n, "ratio": ratio_n, "ratio_variance": (ratio_n - 1.0).square(), "logp_gap": gap_n.abs(),
            "kl": ratio_n - 1.0 - gap_n,
        }  # fmt: skip
        return Losses(loss_n, observed)


@dataclass(frozen=True, eq=False, kw_only=True)
class Likelihood(Term):
    """Weighted negative log-likelihood of the steps taken: SFT is weight 1."""

    name: str = "likelihood"

    def quantities(self) -> tuple[Quantity, ...]:
        """The log-prob of the taken step."""
        return (LogProb(),)

    def losses(self, values: Values, at_n: Tensor, lengths: Sequence[int]) -> Losses:
        """-log p per step."""
        loss_n = -values[LogProb()]
        return Losses(loss_n, {"nll": loss_n.detach()})


@dataclass(frozen=True, eq=False, kw_only=True)
class Divergence(Term):
    """A divergence between a teacher and the student at each step, over a support.

    With support `sampled` only the step taken is looked at and `estimator` says how: "policy_gradient" (the reverse KL's
    exact gradient in expectation), "k1" (none), "k2" (reverse KL), "k3" (forward KL's gradient); see objectives/estimators.py.
    `behaviour_N` with `ratio_cap` weighs each step by min(exp(log p - behaviour), cap), detached (SDPO's off-policy weight); with
    `importance` by exp(log p - behaviour) itself, unclipped and with its gradient (Skill-SD: that of k3 is then the reverse KL's).
    """

    name: str = "divergence"
    teacher: Teacher
    kind: DivergenceKind = DivergenceKind("reverse_kl")
    support: Support = Support("full")
    estimator: str = "policy_gradient"
    clip: float | None = None
    advantage_clip: float | None = None
    temperature: float = 1.0
    behaviour_N: Tensor | None = None
    ratio_cap: float | None = None
    importance: bool = False

    def _whole(self) -> DivergenceOf:
        return DivergenceOf(self.teacher, self.kind, self.support, self.clip, self.advantage_clip, self.temperature)

    def quantities(self) -> tuple[Quantity, ...]:
        """The divergence itself, or the two log-probs of the sampled step."""
        taken: tuple[Quantity, ...] = (LogProb(), TeacherLogProb(self.teacher))
        if self.support.name == "sampled":
            return taken
        found: list[Quantity] = [self._whole()]
        if self.support.name == "top_k":
            found.append(CapturedMass(self.teacher, self.support, self.temperature))
        if self.ratio_cap is not None or self.importance:
            found.append(LogProb())
        return tuple(found)

    def losses(self, values: Values, at_n: Tensor, lengths: Sequence[int]) -> Losses:
        """The divergence (or its sampled estimate) per step."""
        if self.support.name == "sampled":
            student_n, teacher_n = values[LogProb()], values[TeacherLogProb(self.teacher)]
            loss_n = estimate(self.estimator, student_n, teacher_n)
            observed = {"log_ratio": (student_n - teacher_n).detach()}
        else:
            loss_n = values[self._whole()]
            observed = {self.kind.name: loss_n.detach()}
            if self.support.name == "top_k":
                observed["captured_mass"] = values[CapturedMass(self.teacher, self.support, self.temperature)]
        if self.importance and self.behaviour_N is not None:
            loss_n = loss_n * (values[LogProb()] - self.behaviour_N[at_n].to(loss_n)).exp()
        elif self.ratio_cap is not None and self.behaviour_N is not None:
            gap_n = (values[LogProb()].detach() - self.behaviour_N[at_n].to(loss_n)).clamp(-20.0, 20.0)
            loss_n = loss_n * gap_n.exp().clamp(max=self.ratio_cap)
        return Losses(loss_n, observed)


@dataclass(frozen=True, eq=False, kw_only=True)
class Entropy(Term):
    """Minus the student's entropy per step: a positive coefficient rewards entropy (exploration), a negative one sharpens."""

    name: str = "entropy"

    def quantities(self) -> tuple[Quantity, ...]:
        """The student's entropy."""
        return (EntropyOf(),)

    def losses(self, values: Values, at_n: Tensor, lengths: Sequence[int]) -> Losses:
        """-H per step."""
        entropy_n = values[EntropyOf()]
        return Losses(-entropy_n, {"entropy": entropy_n.detach()})


@dataclass(frozen=True, eq=False, kw_only=True)
class Ranking(Term):
    """The student's k likeliest outcomes in the teacher's order, by Plackett and Luce (TSD-KD, arXiv 2603.13260)."""

    name: str = "ranking"
    teacher: Teacher
    k: int = 10
    reverse: bool = False

    def quantities(self) -> tuple[Quantity, ...]:
        """The negative log-likelihood of the order."""
        return (PlackettLuce(self.teacher, self.k, self.reverse),)

    def losses(self, values: Values, at_n: Tensor, lengths: Sequence[int]) -> Losses:
        """-log P of the order per step."""
        loss_n = values[PlackettLuce(self.teacher, self.k, self.reverse)]
        return Losses(loss_n, {"nll": loss_n.detach()})
