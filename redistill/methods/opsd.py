"""OPSD: on-policy self-distillation from the same model that has read the reference solution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from redistill.core.episode import Group, flat
from redistill.core.method import Context, Method, register
from redistill.core.options import option
from redistill.core.signal import Signal
from redistill.core.specs import DivergenceKind, Normaliser, Support, TeacherWeights
from redistill.errors import UserError
from redistill.objectives.terms import Divergence
from redistill.text.checks import refuse_truncated_sampling
from redistill.text.settings import Settings
from redistill.text.views import Evidence


@register
@dataclass(frozen=True)
class OPSD(Method):
    """The student answers from the question alone; the initial policy, shown the reference solution, gives a full
    distribution at every position of that answer, and the student moves towards it. No reward is used.

    Each vocabulary entry's contribution is bounded from above by `clip` before the sum: entries above it get no gradient
    and the "divergence" may be negative, which is intended. Both logits are divided by the sampling temperature. The
    variant in which the teacher first writes an analysis of the solution is not implemented.
    """

    slug = "opsd"
    title = "Self-Distilled Reasoner: on-policy self-distillation"
    paper = "arXiv 2601.18734"
    axes = {"signal": "self-play", "access": "self", "granularity": "token"}
    objective = "L = (1/N) sum_n sum_v min(p_T(v) log(p_T(v) / p_S(v)), tau),  p_T = p_0(. | x, y*, y_<n),  p_S = p(. | x, y_<n)"
    says_does = (
        (
            "mean over each answer, then over answers",
            "released code: mean over the tokens of a micro-batch; here normaliser=token, global",
        ),
        (
            "v3: forward KL, clip 0.05",
            "first release: JSD(0.5), no clip, lr 2e-4: divergence=jsd(0.5) clip=none learning_rate=2e-4",
        ),
        ("EOS is part of the answer", "released code drops EOS where pad = EOS; here masks come from lengths"),
    )
    run_defaults = {
        "prompts_per_step": 32, "group_size": 1, "temperature": 1.1, "top_p": 0.95, "top_k": 20, "learning_rate": 5e-6,
        "lora_rank": 64, "steps": 100,
    }  # fmt: skip

    divergence: DivergenceKind = option(
        DivergenceKind("forward_kl"), "teacher against student; forward_kl is the paper's"
    )
    clip: float | None = option(0.05, "upper bound of each vocabulary entry's contribution; none is off", above=0)
    support: Support = option(Support("full"), "full | top_k(k, of=teacher, tail=false) | sampled")
    teacher: TeacherWeights = option(TeacherWeights("frozen"), "whose weights read the solution")
    loss_temperature: float | None = option(None, "divides both logits; none means the sampling temperature", above=0)
    normaliser: Normaliser = option(Normaliser("token"), "by what the loss is divided")
    context: str = option(
        "own", "own solution, another prompt's (control), or none at all", choices=("own", "wrong", "none")
    )

    def check(self, config: Settings) -> None:
        """A sampled divergence is the reverse KL, has no entries to clip, and is read under the sampling temperature."""
        if self.support.name != "sampled":
            return
        if self.divergence.name != "reverse_kl":
            raise UserError(f"support=sampled estimates reverse_kl only, not divergence={self.divergence}")
        for key in ("clip", "loss_temperature"):
            if getattr(self, key) is not None:
                raise UserError(f"{key}={getattr(self, key):g} has no meaning with support=sampled: set {key}=none")
        refuse_truncated_sampling(self.slug, config)

    def teachers(self) -> Sequence[TeacherWeights]:
        """The one teacher."""
        return (self.teacher,)

    def utility_view(self) -> str | None:
        """The teacher's view."""
        return "with_solution"

    def signal(self, groups: Sequence[Group], ctx: Context) -> Signal:
        """One divergence term; rows without a solution are masked."""
        rows = flat(groups)
        solutions = [group.prompt.solution for group in groups]
        if self.context == "wrong":
            solutions = [*solutions[1:], solutions[0]]
        seen = [Evidence(solution=s) for group, s in zip(groups, solutions) for _ in group]
        view = "plain" if self.context == "none" else "with_solution"
        teacher = ctx.domain.teacher(self.teacher, rows, view, seen)
        mask_N = ctx.domain.covered(teacher, rows)
        ctx.log("active", sum(context is not None for context in teacher.contexts) / max(1, len(rows)))
        sampled_at = ctx.domain.sampling.temperature or 1.0
        temperature = self.loss_temperature if self.loss_temperature is not None else sampled_at
        term = Divergence(
            teacher=teacher, kind=self.divergence, support=self.support, clip=self.clip, temperature=temperature,
            normaliser=self.normaliser, mask_N=mask_N,
        )  # fmt: skip
        return Signal(rows, [term])
