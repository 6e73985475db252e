"""SCOPE: right answers imitated, wrong ones distilled, each weighted by perplexity inside its group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from redistill.core.episode import Episode, Group, behaviour, flat
from redistill.core.method import Context, Method, register
from redistill.core.options import option
from redistill.core.signal import Signal, Teacher, TeacherLogProb, Term, per_step
from redistill.core.specs import DivergenceKind, Normaliser, Support, TeacherWeights
from redistill.objectives.advantages import shares, teacher_advantages
from redistill.objectives.terms import Divergence, PolicyGradient
from redistill.text.checks import need_teacher, refuse_truncated_sampling
from redistill.text.settings import Settings
from redistill.text.views import Evidence

SIGNS = {"high": -1.0, "low": 1.0}
"""Whose perplexity weighs more: with the mean log-prob as score, a high perplexity is a low score."""


@register
@dataclass(frozen=True)
class SCOPE(Method):
    """Route every answer by its correctness. A wrong one is distilled (sampled-token reverse KL), more so where the teacher
    finds it likely and its signal is reliable; a right one is reinforced with advantage 1, more so where the student found
    it unlikely:

        w_i^S = softmax over right answers of -mean_t log p_S / tau,   w_i^T = softmax over wrong ones of mean_t log p_T / tau,
        L = -sum_right w^S rho - sum_wrong w^T rho (log p_T - log p_S), inside each prompt's group.
    """

    slug = "scope"
    title = "SCOPE: signal-calibrated dual-path on-policy distillation"
    paper = "arXiv 2604.10688"
    axes = {"signal": "logit + outcome", "access": "white-box", "granularity": "hybrid"}
    taxonomy = {"divergence": "reverse_kl on wrong answers", "normaliser": "token, a path"}
    objective = "L = - sum_{right} w^S_i rho_it - sum_{wrong} w^T_i rho_it sg(log p_T - log p_S),  w = softmax in the group of -+ mean log p / tau"
    says_does = (
        ("L_OPD is called a forward KL", "it is the sampled-token reverse KL (the log-ratio as a reward); so it is here"),
        ("right answers: high student perplexity weighs more (Eq. 4)", "released scripts give low perplexity more: student_weight=low"),
        ("weights sum to 1, sums over tokens, mean over prompts", "aggregation=paper; by default mean-1 weights and a token mean a path"),
        ("no clip in the equations", "released: clip 0.2 and dual clip 3, which do nothing with one update a batch"),
        ("released: wrong answers are averaged over the tokens of all", "aggregation=released"),
    )  # fmt: skip
    run_defaults = {
        "prompts_per_step": 256,
        "group_size": 8,
        "learning_rate": 5e-5,
        "temperature": 0.6,
        "weight_decay": 0.01,
    }

    teacher: TeacherWeights | None = option(None, "whose weights teach, e.g. checkpoint(path); required")
    temperature_of_weights: float = option(1.0, "tau of both softmaxes; large is uniform", above=0)
    student_weight: str = option(
        "high", "which student perplexity makes a right answer weigh more", choices=("high", "low", "none")
    )
    teacher_weight: str = option(
        "low", "which teacher perplexity makes a wrong answer weigh more", choices=("low", "high", "none")
    )
    threshold: float = option(1.0, "an answer with at least this reward is right")
    imitation: float = option(1.0, "coefficient of the path of right answers", low=0)
    route: bool = option(True, "false: every answer is distilled, none imitated (plain OPD)")
    support: Support = option(
        Support("sampled"), "of the distillation: sampled | full | top_k(k, of=teacher, tail=false)"
    )
    aggregation: str = option(
        "path",
        "token mean of each path; the equations' sums; or the released code's",
        choices=("path", "paper", "released"),
    )
    clip: float = option(0.2, "the ratio is clipped to 1 -+ this", low=0)
    dual_clip: float | None = option(3.0, "bound c of the loss for negative advantages; none is off", above=1)

    def check(self, config: Settings) -> None:
        """A teacher, and the whole distribution that was sampled from."""
        need_teacher(self.slug, self.teacher)
        refuse_truncated_sampling(self.slug, config)

    def teachers(self) -> Sequence[TeacherWeights]:
        """The one teacher."""
        return (self.teacher,) if self.teacher is not None else ()

    def weights(self, score: Tensor, chosen: Tensor, which: str, sizes: Sequence[int]) -> Tensor:
        """Weights of the chosen rows [R], inside each group: of mean 1 over them, or (aggregation=paper) of sum 1."""
        found = []
        for row_score, members in zip(score.split(list(sizes)), chosen.split(list(sizes))):
            signed = torch.zeros_like(row_score) if which == "none" else SIGNS[which] * row_score
            share = shares(signed, members, self.temperature_of_weights)
            found.append(share if self.aggregation == "paper" else share * members.sum())
        return torch.cat(found)

    def teacher_of(self, rows: Sequence[Episode], wrong: Tensor, ctx: Context) -> Teacher:
        """The teacher, which reads the wrong answers alone."""
        assert self.teacher is not None
        whole: Teacher = ctx.domain.teacher(self.teacher, rows, "plain", [Evidence()] * len(rows))
        kept = tuple(context if bad else None for context, bad in zip(whole.contexts, wrong.tolist()))
        return Teacher(self.teacher, kept)

    def signal(self, groups: Sequence[Group], ctx: Context) -> Signal:
        """A path of right answers and one of wrong answers."""
        rows, sizes = flat(groups), [len(group) for group in groups]
        lengths = [row.steps for row in rows]
        right = torch.tensor([self.route and row.reward >= self.threshold for row in rows], dtype=torch.bool)
        old_N = behaviour(rows).double()
        teacher = self.teacher_of(rows, ~right, ctx)
        judged = [i for i, bad in enumerate((~right).tolist()) if bad]
        taught_N = torch.zeros_like(old_N)
        if judged:
            part = TeacherLogProb(teacher.subset(judged))
            taught_N[Signal(rows, []).steps_of(judged)] = ctx.domain.score([rows[i] for i in judged], [part])[
                part
            ].double()
        student = self.weights(_means(old_N, lengths), right, self.student_weight, sizes)
        taught = self.weights(_means(taught_N, lengths), ~right, self.teacher_weight, sizes)
        ctx.log("right", float(right.double().mean()))
        terms: list[Term] = []
        if self.imitation and bool(right.any()):
            terms.append(self._path("imitation", torch.ones_like(old_N), old_N, student, right, lengths, len(groups)))
        if judged and self.support.name == "sampled":
            gap_N = teacher_advantages(student_logp_N=old_N, teacher_logp_N=taught_N)
            terms.append(self._path("distillation", gap_N, old_N, taught, ~right, lengths, len(groups)))
        elif judged:
            weight_N, normaliser = self._shape(taught, lengths, len(groups), "distillation")
            terms.append(
                Divergence(
                    teacher=teacher, kind=DivergenceKind("reverse_kl"), support=self.support, weight_N=weight_N,
                    mask_N=per_step(~right, lengths, torch.bool), normaliser=normaliser,
                )
            )  # fmt: skip
        return Signal(rows, terms)

    def _shape(self, weight: Tensor, lengths: Sequence[int], prompts: int, path: str) -> tuple[Tensor, Normaliser]:
        """Weights per step and the normaliser that together are the aggregation. The equations' sum over a row's tokens is
        its mean times its length; their mean over prompts the mean over all rows times the rows of a prompt."""
        if self.aggregation == "paper":
            weight = weight * torch.tensor(lengths, dtype=torch.float64) * (len(lengths) / prompts)
            return per_step(weight, lengths, torch.float64), Normaliser("sequence", rows="all")
        every = self.aggregation == "released" and path == "distillation"
        return per_step(weight, lengths, torch.float64), Normaliser("token", rows="all" if every else "active")

    def _path(
        self, name: str, advantage_N: Tensor, old_N: Tensor, weight: Tensor, chosen: Tensor, lengths: Sequence[int], prompts: int
    ) -> PolicyGradient:  # fmt: skip
        weight_N, normaliser = self._shape(weight, lengths, prompts, name)
        return PolicyGradient(
            name=name, coefficient=self.imitation if name == "imitation" else 1.0, advantage_N=advantage_N, behaviour_N=old_N,
            clip_low=self.clip, clip_high=self.clip, dual_clip=self.dual_clip, weight_N=weight_N, normaliser=normaliser,
            mask_N=per_step(chosen, lengths, torch.bool),
        )  # fmt: skip


def _means(logp_N: Tensor, lengths: Sequence[int]) -> Tensor:
    """Mean log-prob of each row [R]; 0 (perplexity 1) for one without steps."""
    return torch.stack([row.mean() if len(row) else row.new_zeros(()) for row in logp_N.split(list(lengths))])
