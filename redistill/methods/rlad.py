"""RLAD: the teacher inside the importance ratio of GRPO (trust-region ratio distillation, TRRD)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from redistill.core.episode import Group, flat
from redistill.core.method import Context, Method, register
from redistill.core.options import option
from redistill.core.signal import Signal, Teacher, TeacherLogProb, Term
from redistill.core.specs import Normaliser, Support, TeacherWeights
from redistill.methods.grpo import GRPO
from redistill.objectives.terms import AnchoredRatio, Divergence
from redistill.text.checks import need_group, need_teacher, refuse_truncated_sampling
from redistill.text.settings import Settings
from redistill.text.views import Evidence


@register
@dataclass(frozen=True)
class RLAD(Method):
    """GRPO whose trust region is anchored between the old student and a teacher. The advantage keeps its sign and size; the
    teacher only decides how far each token may move, from the first update on:

        r = pS / (p_old^alpha pT^(1-alpha)),    L = -mean_i mean_t min(r A_i, clip(r, 1 - e_low, 1 + e_high) A_i).

    The anchor is not normalised over the vocabulary. log(pS / pT) is kept inside [-1, 1] before the power. alpha = 1 is GRPO,
    alpha to 0 is anchored at the teacher alone. With A = 0 nothing pulls towards the teacher.
    """

    slug = "rlad"
    title = "RLAD: reinforcement-aware knowledge distillation"
    paper = "arXiv 2602.22495"
    axes = {"signal": "outcome + logit", "access": "white-box", "granularity": "hybrid"}
    taxonomy = {"divergence": "none: the teacher is in the ratio", "support": "sampled"}
    objective = "J = mean_i mean_t min(r A_i, clip(r, 1-e_low, 1+e_high) A_i) - kl KL(p || p_ref),  log r = a (lp - lp_old) + (1-a) clamp(lp - lp_T)"
    says_does = (
        ("alpha = 1 is GRPO (equation, appendix C)", "one sentence of the text says the reverse: taken as a slip"),
        ("the teacher's log-ratio is clamped to [-1, 1]", "its gradient there is not told: clamped away, clamp_gradient=true keeps it"),
        ("mean over each answer, then over answers", "the mathematics runs' recipe may be a token mean: normaliser=token"),
    )  # fmt: skip
    run_defaults = {"prompts_per_step": 32, "group_size": 8, "learning_rate": 1e-6}

    teacher: TeacherWeights | None = option(None, "whose weights anchor, e.g. checkpoint(path); required")
    alpha: float = option(0.5, "share of the old student in the anchor; 1 is GRPO", low=0, high=1)
    clamp: float | None = option(1.0, "bound of |log(pS / pT)| before the power; none is off", above=0)
    clamp_gradient: bool = option(False, "let the gradient of log pS through where it is clamped")
    std: str = option("population", "what centred rewards are divided by", choices=("none", "population", "sample"))
    clip_low: float = option(0.2, "lower bound of the ratio is 1 - this", low=0)
    clip_high: float = option(0.28, "upper bound of the ratio is 1 + this", low=0)
    drop_dead_groups: bool = option(False, "leave groups with equal rewards out of the counts")
    kl: float = option(0.0, "coefficient of KL to the initial policy (k3, sampled)", low=0)
    normaliser: Normaliser = option(Normaliser("sequence"), "by what the loss is divided")

    def check(self, config: Settings) -> None:
        """A teacher, a group, and the whole distribution that was sampled from."""
        need_teacher(self.slug, self.teacher)
        need_group(self.slug, config)
        refuse_truncated_sampling(self.slug, config)

    def teachers(self) -> Sequence[TeacherWeights]:
        """The anchor's teacher, and the initial policy when there is a KL to it."""
        named = (self.teacher,) if self.teacher is not None else ()
        return (*named, TeacherWeights("frozen")) if self.kl else named

    def signal(self, groups: Sequence[Group], ctx: Context) -> Signal:
        """GRPO's term with another ratio, and the KL where asked for."""
        assert self.teacher is not None
        rows = flat(groups)

        def reads_the_question(weights: TeacherWeights) -> Teacher:
            teacher: Teacher = ctx.domain.teacher(weights, rows, "plain", [Evidence()] * len(rows))
            return teacher

        grpo = GRPO(
            std=self.std, clip_low=self.clip_low, clip_high=self.clip_high, normaliser=self.normaliser,
            drop_dead_groups=self.drop_dead_groups,
        )  # fmt: skip
        anchor = reads_the_question(self.teacher)
        ratio = AnchoredRatio(anchor, self.alpha, self.clamp, self.clamp_gradient)
        terms: list[Term] = [replace(grpo.policy_gradient(groups), ratio=ratio, reads=(TeacherLogProb(anchor),))]
        if self.kl:
            terms.append(
                Divergence(
                    name="kl", coefficient=self.kl, normaliser=self.normaliser, support=Support("sampled"), estimator="k3",
                    teacher=reads_the_question(TeacherWeights("frozen")),
                )
            )  # fmt: skip
        return Signal(rows, terms)
