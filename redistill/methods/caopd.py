"""CaOPD: on-policy self-distillation whose stated confidence is overwritten with the student's own success rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from redistill.core.episode import Episode, Group, flat
from redistill.core.method import Context, Method, register
from redistill.core.options import option
from redistill.core.signal import Signal
from redistill.core.specs import DivergenceKind, Normaliser, Support, TeacherWeights
from redistill.errors import UserError
from redistill.objectives.terms import Divergence
from redistill.tasks.confidence import NOTES, with_confidence
from redistill.tasks.loading import CONFIDENT
from redistill.text.settings import Settings
from redistill.text.splice import sampled_under
from redistill.text.views import Evidence


@register
@dataclass(frozen=True)
class CaOPD(Method):
    """A teacher that has read a demonstration is right more often than the student can be, so on-policy self-distillation teaches
    over-confidence. Overwrite the confidence, in the student's answer and in the demonstration, with the student's success rate
    over its K = group_size rollouts of this step, and run the same divergence over all tokens.

    `revise=false` is the plain method (SDFT with `shown=demonstration`, SDPO's view with `shown=sibling`). An edited answer is
    encoded again, since its text was edited; there is no importance weight, for the same reason. Without a right rollout
    `shown=sibling` has nothing to show and the prompt is skipped.
    """

    slug = "caopd"
    title = "Calibration-aware on-policy distillation"
    paper = "arXiv 2604.16830"
    axes = {"signal": "outcome+demonstration", "access": "self", "granularity": "token"}
    objective = (
        "L = E sum_t KL(p(. | x, y~_<t) || sg p_ema(. | x, z~, y~_<t)),  y~ = (answer, mu), z~ = demonstration with confidence mu, "
        "mu = (1/K) sum_k R(x, a_k)"
    )
    says_does = (
        ("reverse KL", "released script never sets its key and runs forward KL: divergence=forward_kl"),
        ("all completion tokens", "released: without the first three: skip_first=3"),
        ("overwrites the demonstration's confidence", "released: also inserts a note with the value (note=true, here too), and with a system "
         "message in front edits the wrong message; here the question's turn"),
        ("averages of Monte Carlo rollouts", "released: all K rollouts are edited and trained on; here too"),
    )  # fmt: skip
    run_defaults = {
        "task": "confident+sums", "prompts_per_step": 32, "group_size": 8, "learning_rate": 2e-5, "warmup_steps": 10,
        "weight_decay": 0.01,
    }  # fmt: skip

    revise: bool = option(True, "overwrite the confidences; false is plain on-policy self-distillation")
    note: bool = option(True, "with revise: tell the teacher the value, beside overwriting the demonstration's")
    source: str = option(
        "verifier", "where mu comes from: verified rollouts, or agreement with an answer sampled from the teacher",
        choices=("verifier", "agreement"),
    )  # fmt: skip
    shown: str = option(
        "demonstration", "what the teacher reads: the reference solution, or a right rollout of the same prompt",
        choices=("demonstration", "sibling"),
    )  # fmt: skip
    divergence: DivergenceKind = option(
        DivergenceKind("reverse_kl"), "reverse_kl is the paper's; the code's alpha is a jsd"
    )
    support: Support = option(Support("full"), "full, or top_k(100) as for SDPO's backbone")
    teacher: TeacherWeights = option(
        TeacherWeights("ema", 0.01), "whose weights read the demonstration (SDPO's backbone: 0.05)"
    )
    skip_first: int = option(0, "tokens at the start of each answer without loss", low=0)
    normaliser: Normaliser = option(Normaliser("sequence"), "by what the loss is divided")
    wrong_context: bool = option(False, "control: show another prompt's demonstration")

    def check(self, config: Settings) -> None:
        """Confidences have to be asked for, and a note needs a value."""
        if not config.task.startswith(CONFIDENT):
            raise UserError(
                f"task={config.task} does not ask for a confidence: caopd needs task={CONFIDENT}{config.task}"
            )
        if self.source == "agreement" and not self.revise:
            raise UserError("source=agreement has no meaning with revise=false: no confidence is overwritten")

    def teachers(self) -> Sequence[TeacherWeights]:
        """The one teacher."""
        return (self.teacher,)

    def utility_view(self) -> str | None:
        """The teacher's view."""
        return "demonstrated"

    def success(self, groups: Sequence[Group], ctx: Context) -> list[float]:
        """mu of each group: the share of right rollouts, or of those that agree with the teacher's answer."""
        if self.source == "verifier":
            return [group.pass_rate(ctx.task.reward_range[1]) for group in groups]
        prompts = [group.prompt for group in groups]
        contexts = [ctx.domain.render("demonstrated", p, Evidence(solution=p.solution)) for p in prompts]
        taught = sampled_under(ctx.domain, prompts, contexts, "demonstrated", weights=self.teacher)
        said = [[row.verdict.answer if row.verdict else None for row in group] for group in groups]
        asked = [[row.verdict.answer if row.verdict else None for row in group] for group in taught]
        return [
            sum(one is not None and one in reference for one in answers) / max(1, len(answers))
            for answers, reference in zip(said, asked)
        ]

    def evidence(self, group: Group, row: Episode, mu: float, ctx: Context) -> Evidence:
        """What the teacher reads about one rollout."""
        solution = group.prompt.solution
        if self.shown == "sibling":
            other = group.sibling(row, ctx.task.reward_range[1])
            solution = None if other is None else other.text
        if solution is None or not self.revise:
            return Evidence(solution=solution)
        note = NOTES[ctx.task.wording].format(f"{mu:.2f}") if self.note else None
        return Evidence(solution=with_confidence(solution, mu, ctx.task.wording), hint=note)

    def signal(self, groups: Sequence[Group], ctx: Context) -> Signal:
        """Edit answers and demonstrations, then one divergence term."""
        success = self.success(groups, ctx)
        rows: list[Episode] = []
        seen: list[Evidence] = []
        for group, mu in zip(groups, success):
            for row in group:
                edited = row
                if self.revise:
                    edited = ctx.domain.written(row.prompt, with_confidence(row.text, mu, ctx.task.wording))
                if edited is not None:
                    rows.append(edited)
                    seen.append(self.evidence(group, row, mu, ctx))
        shift = len(groups[0]) if self.wrong_context and groups else 0
        teacher = ctx.domain.teacher(self.teacher, rows, "demonstrated", [*seen[shift:], *seen[:shift]])
        stated = [row.verdict.confidence for row in flat(groups) if row.verdict and row.verdict.confidence is not None]
        ctx.log("success", sum(success) / max(1, len(success)))
        ctx.log("stated", sum(stated) / max(1, len(stated)))
        later_N: Tensor = torch.cat([torch.arange(row.steps) >= self.skip_first for row in rows] or [torch.ones(0) > 0])
        term = Divergence(
            teacher=teacher, kind=self.divergence, support=self.support, normaliser=self.normaliser,
            mask_N=ctx.domain.covered(teacher, rows) & later_N,
        )  # fmt: skip
        return Signal(rows, [term])
