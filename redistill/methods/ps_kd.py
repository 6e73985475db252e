"""PS-KD: targets are softened with the model's own prediction of the previous epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from redistill.core.episode import Episode, Group, flat
from redistill.core.method import Context, Method, register
from redistill.core.options import option
from redistill.core.signal import Signal, Teacher
from redistill.core.specs import DivergenceKind, Normaliser, TeacherWeights
from redistill.errors import UserError
from redistill.objectives.terms import Divergence, Likelihood
from redistill.vision.settings import Settings
from redistill.vision.table import PredictionTable

PER_IMAGE = Normaliser("token", rows="all")
"""The mean over all images of the update, those without a teacher included."""


@register
@dataclass(frozen=True)
class PSKD(Method):
    """Soften each one-hot target with the model's own prediction for that very image from the previous epoch, trusting
    it linearly more as training goes on: q = (1-alpha_t) y + alpha_t P_{t-1}(x), L = H(q, p_t), alpha_t = alpha t / T.

    Said in the general terms: H(q, p) = (1-alpha_t) H(y, p) + alpha_t KL(P_{t-1} || p) + alpha_t H(P_{t-1}); the last
    summand has no gradient and is left out of the reported loss. In the first epoch there is no prediction and the loss
    is cross-entropy. `teacher=stored` is the released code's table: the softmax of the very training forward that made
    the gradient (its augmentation, batch statistics and mid-epoch weights), at no cost. `teacher=sync(E)`, with E
    updates an epoch, is the text's model of epoch t-1: a copy that reads the same augmented image (with
    its saved batch statistics, or the batch's by `teacher_norm=batch`), for label spaces too large for a table.
    """

    slug = "ps-kd"
    title = "Self-knowledge distillation with progressive refinement of targets"
    paper = "arXiv 2006.12000"
    family = "vision"
    domain = "vision"
    axes = {"signal": "self", "access": "self", "granularity": "prediction"}
    objective = "L_t = H((1-a_t) y + a_t sg P_{t-1}(x), p_t(x)),  a_t = a_T t / T;  first epoch: a = 0"
    says_does = (
        ("teacher is the model of epoch t-1", "released: a table of training forwards; teacher=sync(E) is the text's"),
        ("alpha_1 = alpha_T / T > 0", "released: one-hot rows in the first epoch, so cross-entropy; here too"),
        ("calibration error", "released: 10 bins; here 15 (ece_bins)"),
    )  # fmt: skip

    alpha: float = option(0.8, "alpha_T, the trust in the last epoch's prediction at the end", low=0, high=1)
    schedule: str = option(
        "linear", "alpha_t: alpha t / T, or alpha from the second epoch on", choices=("linear", "constant")
    )
    ramp_epochs: int | None = option(None, "T; none means the epochs of the run (alpha stays after T)", low=1)
    teacher: TeacherWeights = option(
        TeacherWeights("stored"), "stored (a table), or sync(E): a copy, E updates an epoch"
    )
    shuffled: bool = option(False, "control: each image is given the prediction of another image of its batch")
    table: PredictionTable = field(default_factory=PredictionTable, repr=False, compare=False)
    """Last prediction of each training image (state, not an option)."""

    def check(self, config: Settings) -> None:
        """Last epoch's model is a table or a copy once an epoch."""
        if self.teacher.name not in ("stored", "sync"):
            raise UserError(f"teacher={self.teacher} is not last epoch's model: ps-kd takes stored or sync(E)")

    def teachers(self) -> Sequence[TeacherWeights]:
        """The copy, where the teacher is one."""
        return (self.teacher,) if self.teacher.name == "sync" else ()

    def state(self) -> Mapping[str, Any]:
        """The table."""
        return {"table": self.table}

    def enter(self, ctx: Context) -> None:
        """An empty table; a copy must be of the last epoch."""
        domain = ctx.domain
        if self.teacher.name == "sync" and int(self.teacher.rate) != domain.epoch_steps:
            raise UserError(
                f"teacher={self.teacher} is not last epoch's model: an epoch of this run is {domain.epoch_steps} "
                f"updates, so write sync({domain.epoch_steps})"
            )
        self.table.start(domain.task.options.train, domain.classes, self.length(ctx), domain.dtype)

    def length(self, ctx: Context) -> int:
        """T, the epochs over which alpha rises."""
        return int(ctx.domain.epochs) if self.ramp_epochs is None else self.ramp_epochs

    def alpha_at(self, epoch: int, epochs: int) -> float:
        """alpha_t for epoch t = 1..T (equation 5): alpha t / T, and alpha after T; with `constant`, alpha."""
        return self.alpha if self.schedule == "constant" else self.alpha * min(epoch, epochs) / epochs

    def collect(self, ctx: Context) -> Sequence[Group]:
        """The step's images with their given labels."""
        groups: Sequence[Group] = ctx.domain.labelled(ctx.next_prompts())
        return groups

    def last_epoch(self, rows: Sequence[Episode], ctx: Context) -> Teacher:
        """P_{t-1} for each row (None in the first epoch), rolled by one image for the control."""
        domain = ctx.domain
        if self.teacher.name == "stored":
            teacher: Teacher = domain.stored(self.table.read([row.prompt.data["row"] for row in rows]))
        elif domain.epoch(ctx.step) == 1:
            teacher = Teacher(self.teacher, (None,) * len(rows))
        else:
            teacher = domain.teacher(self.teacher, rows)
        if self.shuffled:
            teacher = Teacher(teacher.weights, (*teacher.contexts[1:], *teacher.contexts[:1]))
        return teacher

    def signal(self, groups: Sequence[Group], ctx: Context) -> Signal:
        """Likelihood with weight 1 - alpha_t and divergence from the last epoch's prediction with weight alpha_t."""
        rows = flat(groups)
        epochs = self.length(ctx)
        if epochs != self.table.epochs:
            raise UserError(
                f"steps={ctx.domain.config.steps} would stretch alpha's schedule from {self.table.epochs} to {epochs} "
                f"epochs in the middle of a run: set ramp_epochs from the start of runs that are to be prolonged"
            )
        alpha = self.alpha_at(ctx.domain.epoch(ctx.step), epochs)
        teacher = self.last_epoch(rows, ctx)
        mask_N: Tensor = ctx.domain.covered(teacher, rows)
        alpha_N = alpha * mask_N.double()
        ctx.log("alpha", alpha)
        ctx.log("taught", float(mask_N.double().mean()))
        self._log_targets(rows, teacher, alpha_N, ctx)
        likelihood = Likelihood(weight_N=1.0 - alpha_N, normaliser=PER_IMAGE)
        if not bool(alpha_N.any()):
            return Signal(rows, [likelihood])
        soften = Divergence(
            teacher=teacher, kind=DivergenceKind("forward_kl"), weight_N=alpha_N, mask_N=mask_N, normaliser=PER_IMAGE
        )
        return Signal(rows, [likelihood, soften])

    def after_update(self, groups: Sequence[Group], ctx: Context) -> None:
        """Fill the table with the predictions that made the gradient; log how much each image was rescaled."""
        rows = flat(groups)
        now_nV = ctx.domain.predicted(rows)
        at_n = torch.tensor([row.prompt.data["row"] for row in rows])
        if self.teacher.name == "stored" and bool(self.table.seen_N[at_n].all()):
            # sum |dL_PSKD| / sum |dL_CE| = 1 - alpha gamma_{t-1} / gamma_t, gamma the probability of being wrong.
            label_n1 = torch.tensor([row.trajectory for row in rows])[:, None]
            gamma = [-torch.expm1(logp.gather(-1, label_n1)[:, 0]) for logp in (self.table.logp_NV[at_n], now_nV)]
            alpha = self.alpha_at(ctx.domain.epoch(ctx.step - 1), self.table.epochs)
            self._log_split("rescaling", 1.0 - alpha * gamma[0] / gamma[1].clamp(min=1e-12), rows, ctx)
        self.table.write(at_n, now_nV)

    def _log_targets(self, rows: Sequence[Episode], teacher: Teacher, alpha_N: Tensor, ctx: Context) -> None:
        """The share of the given label in the blended target, for labels that are right and wrong."""
        if self.teacher.name != "stored":
            return
        own = [1.0 if c is None else float(c[row.trajectory].exp()) for row, c in zip(rows, teacher.contexts)]
        self._log_split("target", 1.0 - alpha_N + alpha_N * torch.tensor(own), rows, ctx)

    def _log_split(self, name: str, value_n: Tensor, rows: Sequence[Episode], ctx: Context) -> None:
        right_n = torch.tensor([row.prompt.data["right"] for row in rows])
        for what, mask_n in (("right", right_n), ("wrong", ~right_n)):
            if bool(mask_n.any()):
                ctx.log(f"{name}_{what}_label", float(value_n[mask_n].median()))
