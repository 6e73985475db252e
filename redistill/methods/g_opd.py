"""G-OPD and ExOPD: on-policy distillation with a scaled reward and a free reference, one teacher or one for each domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from redistill.core.episode import Episode, Group, behaviour, flat
from redistill.core.method import Context, Method, register
from redistill.core.options import option
from redistill.core.signal import LogProb, Quantity, Signal, Teacher, TeacherLogProb
from redistill.core.specs import Normaliser, TeacherWeights
from redistill.errors import UserError, nearest
from redistill.objectives.advantages import returns_to_go, teacher_advantages
from redistill.objectives.terms import PolicyGradient
from redistill.text.checks import need_teacher, refuse_truncated_sampling
from redistill.text.settings import Settings
from redistill.text.views import Evidence


def parse_experts(text: str) -> dict[str | None, TeacherWeights]:
    """Read "addition=checkpoint(a) + code=checkpoint(b)": a teacher for each domain tag, in order."""
    found: dict[str | None, TeacherWeights] = {}
    for part in filter(None, (piece.strip() for piece in text.split(" + "))):
        domain, equals, weights = (piece.strip() for piece in part.partition("="))
        if not equals or not domain:
            raise UserError(f"experts {part!r} is not of the form domain=teacher (several joined by ' + ')")
        if domain in found:
            raise UserError(f"experts name domain {domain!r} twice")
        found[domain] = TeacherWeights.parse(weights)
    return found


@register
@dataclass(frozen=True)
class GOPD(Method):
    """On-policy distillation is KL-constrained RL whose reward log(pT / p_ref) has weight 1. Give it a weight lam:

        J = E[lam log(pT / p_ref) - KL(p || p_ref)],    A_t = lam (log pT - log p_ref) - (log p - log p_ref),

    so the optimum is pT^lam p_ref^(1-lam): lam = 0 stays, lam = 1 is OPD, lam > 1 (ExOPD) extrapolates past the teacher. The
    advantage is a token's own (discount 0), neither normalised nor compared with a group; there is no verifier. With
    `experts` each prompt's domain tag chooses its teacher and one reference serves all: experts merged into one student.
    """

    slug = "g-opd"
    title = "G-OPD and ExOPD: generalised on-policy distillation"
    paper = "arXiv 2602.12125"
    axes = {"signal": "logit", "access": "white-box", "granularity": "token"}
    taxonomy = {
        "divergence": "reverse_kl",
        "support": "sampled",
        "teacher": "external or one a domain, reference: frozen",
    }
    objective = "L = -mean_t clip-min(r A_t),  A_t = lam (log p_T - log p_ref) - (log p - log p_ref)"
    says_does = (
        ("A_t is printed with both brackets negated", "released code has the sign that maximises J; so it is here"),
        ("one reference, the student's initial policy", "released: without two base paths set it falls back to plain OPD, silently"),
        ("lam log(pT / p_ref) unbounded", "the same by default; reward_clip=5 is our option for tiny teachers"),
    )  # fmt: skip
    run_defaults = {"prompts_per_step": 1024, "group_size": 1, "learning_rate": 1e-5, "steps": 50}

    teacher: TeacherWeights | None = option(None, "whose weights teach, e.g. checkpoint(path); this or experts")
    experts: str = option("", "a teacher for each domain tag: 'a=checkpoint(x) + b=checkpoint(y)'")
    teacher_view: str = option(
        "plain", "what the teacher reads; with_solution is context distillation", choices=("plain", "with_solution")
    )
    reference: TeacherWeights = option(
        TeacherWeights("frozen"), "p_ref: the initial student, or the teacher before its RL (reward correction)"
    )
    scale: float = option(1.25, "lam: 0 stays, 1 is OPD, above 1 extrapolates", low=0)
    reward_clip: float | None = option(None, "bound of |log pT - log p_ref|; none is off", above=0)
    discount: float = option(
        0.0, "advantages are discounted sums over the rest of the answer; 1 is exact", low=0, high=1
    )
    clip: float = option(0.2, "the ratio is clipped to 1 -+ this", low=0)
    dual_clip: float | None = option(3.0, "bound c of the loss for negative advantages; none is off", above=1)
    normaliser: Normaliser = option(Normaliser("token"), "by what the loss is divided")

    def check(self, config: Settings) -> None:
        """One teacher or experts, and a reference that is not the student itself."""
        if bool(self.experts.strip()) == (self.teacher is not None):
            raise UserError("g-opd needs either a teacher or experts: --set 'teacher=checkpoint(path or model name)'")
        for weights in self.named().values():
            need_teacher(self.slug, weights, self.teacher_view)
        if self.reference.name in ("live", "stored"):
            raise UserError(f"reference={self.reference} is no fixed policy: use frozen or checkpoint(path)")
        refuse_truncated_sampling(self.slug, config)

    def named(self) -> Mapping[str | None, TeacherWeights]:
        """The teacher of each domain tag; of every prompt, under None, where there is one only."""
        return parse_experts(self.experts) if self.teacher is None else {None: self.teacher}

    def teachers(self) -> Sequence[TeacherWeights]:
        """All of them, and the reference."""
        return (*self.named().values(), self.reference)

    def assigned(self, rows: Sequence[Episode], ctx: Context) -> list[Teacher]:
        """One teacher a domain, each with a context for the rows of its domain only."""
        named = self.named()
        tags = [None if None in named else row.prompt.data.get("domain") for row in rows]
        for tag in tags:
            if tag not in named:
                raise UserError(f"a prompt of domain {tag!r} has no expert{nearest(str(tag), map(str, named))}")
        seen = [Evidence(solution=row.prompt.solution) for row in rows]
        found = []
        for name, weights in named.items():
            whole: Teacher = ctx.domain.teacher(weights, rows, self.teacher_view, seen)
            own = tuple(context if tag == name else None for tag, context in zip(tags, whole.contexts))
            found.append(Teacher(weights, own))
        return found

    def advantages(self, rows: Sequence[Episode], ctx: Context) -> tuple[Tensor, Tensor]:
        """(A [N], which steps have a teacher [N]). A step without one has 0 from all, and one has a value from just one."""
        experts = self.assigned(rows, ctx)
        reference: Teacher = ctx.domain.teacher(self.reference, rows, "plain", [Evidence()] * len(rows))
        asked: list[Quantity] = [LogProb(), TeacherLogProb(reference), *(TeacherLogProb(each) for each in experts)]
        found = ctx.domain.score(rows, asked)
        taught = torch.stack([found[TeacherLogProb(each)] for each in experts]).sum(0)
        covered = torch.stack([ctx.domain.covered(each, rows) for each in experts]).any(0)
        advantage = teacher_advantages(
            student_logp_N=found[LogProb()], teacher_logp_N=taught, reference_logp_N=found[TeacherLogProb(reference)],
            scale=self.scale, clip=self.reward_clip,
        )  # fmt: skip
        if bool(covered.any()):
            ctx.log("advantage", float(advantage[covered].mean()))
            ctx.log("teacher_reward", float((taught - found[TeacherLogProb(reference)])[covered].mean()))
        return returns_to_go(advantage, [row.steps for row in rows], self.discount), covered

    def signal(self, groups: Sequence[Group], ctx: Context) -> Signal:
        """One clipped term with token advantages."""
        rows = flat(groups)
        advantage_N, covered_N = self.advantages(rows, ctx)
        term = PolicyGradient(
            advantage_N=advantage_N, behaviour_N=behaviour(rows), clip_low=self.clip, clip_high=self.clip,
            dual_clip=self.dual_clip, mask_N=covered_N, normaliser=self.normaliser,
        )  # fmt: skip
        return Signal(rows, [term])
