"""Classical knowledge distillation from a trained teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from redistill.core.episode import Group, flat
from redistill.core.method import Context, Method, Stage, register
from redistill.core.options import option
from redistill.core.signal import Signal
from redistill.core.specs import DivergenceKind, TeacherWeights
from redistill.errors import UserError
from redistill.methods.ce import CE
from redistill.objectives.terms import Divergence, Likelihood
from redistill.vision.settings import Settings


@register
@dataclass(frozen=True)
class KD(Method):
    """A student learns from labels and from a trained teacher's softened predictions on the same (shifted) image.

    `teacher=checkpoint(FOLDER)` is a saved run or model. With `teacher=frozen` a first stage trains the teacher: the
    same network by cross-entropy for as many steps; the student then starts from new weights (at twice the cost).
    """

    slug = "kd"
    title = "Knowledge distillation"
    paper = "arXiv 1503.02531"
    family = "vision"
    domain = "vision"
    axes = {"signal": "teacher", "access": "white-box", "granularity": "prediction"}
    objective = "L = -(1-w) log p(y | x) + w T^2 KL(q_T || p_T),  q_T, p_T = softmax(logits / T)"

    weight: float = option(0.9, "share w of the teacher's term", low=0, high=1)
    loss_temperature: float = option(4.0, "T, divides both logits; the term is multiplied by its square", above=0)
    teacher: TeacherWeights = option(
        TeacherWeights("frozen"), "checkpoint(FOLDER), or frozen: trained in a first stage"
    )

    def check(self, config: Settings) -> None:
        """A teacher is trained before the student is: saved, or made by the first stage."""
        if self.teacher.name not in ("frozen", "checkpoint"):
            raise UserError(f"teacher={self.teacher} is not a trained teacher: kd takes checkpoint(FOLDER) or frozen")

    def teachers(self) -> Sequence[TeacherWeights]:
        """The one teacher."""
        return (self.teacher,)

    def stages(self) -> Sequence[Stage]:
        """Teacher first where there is none yet."""
        own = Stage(self.slug, self)
        return (Stage("teacher", CE()), own) if self.teacher.name == "frozen" else (own,)

    def enter(self, ctx: Context) -> None:
        """The trained weights are the frozen copy by now; the student starts anew."""
        if self.teacher.name == "frozen":
            ctx.domain.restart("student")

    def collect(self, ctx: Context) -> Sequence[Group]:
        """The step's images with their given labels."""
        groups: Sequence[Group] = ctx.domain.labelled(ctx.next_prompts())
        return groups

    def signal(self, groups: Sequence[Group], ctx: Context) -> Signal:
        """Likelihood of the labels and divergence from the teacher."""
        rows = flat(groups)
        temperature = self.loss_temperature
        distil = Divergence(
            coefficient=self.weight * temperature**2, teacher=ctx.domain.teacher(self.teacher, rows),
            kind=DivergenceKind("forward_kl"), temperature=temperature,
        )  # fmt: skip
        return Signal(rows, [Likelihood(coefficient=1.0 - self.weight), distil])
