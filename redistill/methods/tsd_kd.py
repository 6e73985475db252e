"""TSD-KD: token-selective dual distillation, the student explaining in its own words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from redistill.core.episode import Group, flat
from redistill.core.method import Context, Method, register
from redistill.core.options import option
from redistill.core.signal import EntropyOf, Signal, Teacher, TeacherEntropy, Term
from redistill.core.specs import DivergenceKind, Normaliser, TeacherWeights
from redistill.errors import UserError
from redistill.objectives.gates import most_uncertain, opening, sureness_gate
from redistill.objectives.terms import Divergence, Entropy, Ranking
from redistill.text.checks import need_teacher
from redistill.text.settings import Settings
from redistill.text.views import Evidence


@register
@dataclass(frozen=True)
class TSDKD(Method):
    """On the student's own answers, three losses that each choose their tokens:

    - indirect: in the opener (the first steps that hold 10% of the answer's entropy) the teacher only ranks the student's own
      ten likeliest tokens, -log P_PL(teacher's order) under Plackett and Luce;
    - direct: JSD(0.9) at every token, times sigmoid(H_S - H_T), large where the student is unsure and the teacher sure;
    - entropy minimisation on the 10% most uncertain tokens.

        L = alpha L_ind + L_dir + L_EM
    """

    slug = "tsd-kd"
    title = "TSD-KD: token-selective dual knowledge distillation"
    paper = "arXiv 2603.13260"
    axes = {"signal": "logit", "access": "white-box", "granularity": "token"}
    objective = "L = alpha mean_{opener} -log P_PL(order by p_T | p) + mean_t s(H_S - H_T) JSD_b(p_T, p) + mean_{top 10% H} H(p)"
    says_does = (
        ("P_PL with suffix sums (best first)", "released code sums prefixes: the probability of the worst-first order; release_order=true"),
        ("entropy is minimised on the 10% most uncertain tokens", "released keeps those above the 10th percentile: entropy_share=0.9"),
        ("the opener is a row's own", "released computes one length from the flattened batch; here per answer"),
        ("L_ind is a sum over the opener", "released: a mean, for which alpha 0.1 is meant; a mean here"),
        ("L_dir is 1/|y| of a sum", "released: a mean over all response tokens of a micro-batch; normaliser=token is that, global"),
    )  # fmt: skip
    run_defaults = {"prompts_per_step": 16, "group_size": 1, "learning_rate": 5e-6}

    teacher: TeacherWeights | None = option(None, "whose weights teach, e.g. checkpoint(path); required")
    divergence: DivergenceKind = option(DivergenceKind("jsd", 0.9), "of the direct path, full vocabulary")
    gate: bool = option(True, "weigh the direct path by sigmoid(H_S - H_T)")
    gate_temperature: float = option(1.0, "divides the difference of entropies", above=0)
    ranking: float = option(0.1, "alpha, coefficient of the indirect path", low=0)
    candidates: int = option(10, "k, the student's likeliest tokens that are ranked", low=1)
    opener: float = option(0.1, "share of an answer's entropy that its opener holds", above=0, high=1)
    release_order: bool = option(False, "rank worst first, as the released code does by mistake")
    entropy: float = option(1.0, "coefficient of the entropy's minimisation", low=0)
    entropy_share: float = option(
        0.1, "share of an answer's tokens, the most uncertain, whose entropy is minimised", above=0, high=1
    )
    on_policy: float = option(1.0, "probability that a prompt's answers are the student's own", low=0, high=1)
    normaliser: Normaliser = option(Normaliser("sequence"), "by what each path is divided, over its own tokens")

    def check(self, config: Settings) -> None:
        """A teacher that is not the student."""
        need_teacher(self.slug, self.teacher)

    def teachers(self) -> Sequence[TeacherWeights]:
        """The one teacher."""
        return (self.teacher,) if self.teacher is not None else ()

    def collect(self, ctx: Context) -> Sequence[Group]:
        """The student's rollouts of some prompts, the reference solutions of the others."""
        prompts = ctx.next_prompts()
        own = ctx.uniform("on_policy", range(len(prompts))) < self.on_policy
        sampled = [prompt for prompt, mine in zip(prompts, own) if mine]
        groups: list[Group] = list(ctx.domain.rollout(sampled)) if sampled else []
        for prompt in (prompt for prompt, mine in zip(prompts, own) if not mine):
            if prompt.solution is None:
                raise UserError(
                    f"on_policy={self.on_policy:g} needs reference solutions, and task {ctx.task.name!r} has none"
                )
            episode = ctx.domain.written(prompt, prompt.solution)
            groups += [Group(prompt, [episode])] if episode is not None else []
        return groups

    def signal(self, groups: Sequence[Group], ctx: Context) -> Signal:
        """The three paths; what selects their tokens is measured first, without gradient."""
        assert self.teacher is not None
        rows = flat(groups)
        lengths = [row.steps for row in rows]
        teacher: Teacher = ctx.domain.teacher(self.teacher, rows, "plain", [Evidence()] * len(rows))
        found = ctx.domain.score(rows, [EntropyOf(), TeacherEntropy(teacher)])
        unsure_N, sure_N = found[EntropyOf()], found[TeacherEntropy(teacher)]
        gate_N = sureness_gate(unsure_N, sure_N, self.gate_temperature)
        opener_N = opening(unsure_N, lengths, self.opener)
        if rows:
            ctx.log("gate", float(gate_N.mean()) if len(gate_N) else 0.0)
            ctx.log("opener", float(opener_N.double().mean()) if len(opener_N) else 0.0)
        terms: list[Term] = [
            Divergence(
                teacher=teacher,
                kind=self.divergence,
                weight_N=gate_N if self.gate else None,
                normaliser=self.normaliser,
            )
        ]
        if self.ranking:
            terms.append(
                Ranking(
                    coefficient=self.ranking, teacher=teacher, k=self.candidates, reverse=self.release_order, mask_N=opener_N,
                    normaliser=self.normaliser,
                )
            )  # fmt: skip
        if self.entropy:
            chosen_N = most_uncertain(unsure_N, lengths, self.entropy_share)
            terms.append(Entropy(coefficient=-self.entropy, mask_N=chosen_N, normaliser=self.normaliser))
        return Signal(rows, terms)
