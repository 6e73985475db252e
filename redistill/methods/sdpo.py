"""SDPO: the policy re-scores its own answer after reading feedback, and learns from that hindsight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from redistill.core.episode import Episode, Group, behaviour, flat
from redistill.core.method import Context, Method, register
from redistill.core.options import option
from redistill.core.signal import Signal, Term
from redistill.core.specs import DivergenceKind, Normaliser, Support, TeacherWeights
from redistill.errors import UserError
from redistill.methods.grpo import GRPO
from redistill.objectives.terms import Divergence
from redistill.text.checks import refuse_truncated_sampling
from redistill.text.settings import Settings
from redistill.text.views import Evidence


@register
@dataclass(frozen=True)
class SDPO(Method):
    """Re-score each sampled answer with the same network (slowly averaged weights) that has read a sibling's correct answer
    or the verifier's feedback, and distil that next-token distribution into the feedback-free policy.

    `grpo_weight` lam gives lam * L_GRPO + (1 - lam) * L_SDPO (mixing inside a top-k support is unspecified in the paper).
    `test_time` works on one held-out question until it is solved: each failure learns from its own feedback.
    """

    slug = "sdpo"
    title = "Reinforcement learning via self-distillation"
    paper = "arXiv 2601.20802"
    axes = {"signal": "self-play", "access": "self", "granularity": "token"}
    objective = (
        "L = (1/N) sum_it s_i w_it D(p(. | x, y_i<t), sg q(. | x, f_i, y_i<t)),  w = min(p/p_old, 2), q = EMA weights"
    )
    says_does = (
        ("1 / sum |y_i| over the batch", "released: token mean inside micro-batches of one, masked rows count as zeros: normaliser=sequence(rows=all)"),
        ("EMA 0.01 for code tasks", "released script sets a key that is not read (`ema_update_rate`)"),
        ("success threshold", "trainer yaml 0.5, dataclass 1.0; here 1.0"),
    )  # fmt: skip
    run_defaults = {
        "prompts_per_step": 32,
        "group_size": 8,
        "learning_rate": 1e-5,
        "warmup_steps": 10,
        "weight_decay": 0.01,
    }

    divergence: DivergenceKind = option(DivergenceKind("jsd", 0.5), "jsd(0.5), or reverse_kl as for code and test time")
    support: Support = option(Support("top_k", 100), "student's top-k with a tail; full; sampled (reverse_kl only)")
    teacher: TeacherWeights = option(TeacherWeights("ema", 0.05), "whose weights read the feedback")
    threshold: float = option(1.0, "an episode with at least this reward is a solution")
    solution: str = option("sibling", "where a shown solution comes from", choices=("sibling", "reference", "none"))
    own_success: bool = option(False, "a success may be shown its own answer")
    feedback: str = option(
        "without_solution", "when feedback is shown", choices=("without_solution", "always", "never")
    )
    attempt: bool = option(False, "show the failed attempt too (the paper: lowers entropy and accuracy)")
    route: str = option("all", "which episodes are distilled", choices=("all", "failures"))
    ratio_cap: float = option(2.0, "upper bound of the importance weight p / p_old", above=0)
    advantage_clip: float | None = option(
        None, "bound of |log q - log p| (reverse_kl; 5 at test time); none is off", above=0
    )
    normaliser: Normaliser = option(Normaliser("token"), "by what the loss is divided")
    grpo_weight: float = option(
        0.0, "lam of lam * L_GRPO + (1 - lam) * L_SDPO (the paper's hybrid: 0.9)", low=0, high=1
    )
    wrong_context: bool = option(False, "control: show the evidence of another prompt's group")
    test_time: bool = option(False, "work on one held-out question until it is solved")
    question: int = option(0, "which held-out question, with test_time", low=0)

    def check(self, config: Settings) -> None:
        """Refuse what has no meaning: clipped or sampled kinds other than reverse_kl, ratios of truncated sampling."""
        if self.divergence.name != "reverse_kl" and (self.support.name == "sampled" or self.advantage_clip is not None):
            raise UserError(f"support=sampled and advantage_clip need divergence=reverse_kl, not {self.divergence}")
        if self.solution == "none" and self.feedback == "never":
            raise UserError("solution=none with feedback=never shows the teacher nothing: set one of them")
        refuse_truncated_sampling(self.slug, config)

    def teachers(self) -> Sequence[TeacherWeights]:
        """The one teacher."""
        return (self.teacher,)

    def utility_view(self) -> str | None:
        """The teacher's view."""
        return "hindsight"

    def collect(self, ctx: Context) -> Sequence[Group]:
        """Rollouts of the step's prompts, or of the one question at test time."""
        prompts = ctx.next_prompts()
        if self.test_time:
            held_out = ctx.task.held_out(self.question + 1)
            if self.question >= len(held_out):
                raise UserError(
                    f"question={self.question} is out of range: task {ctx.task.name!r} has {len(held_out)} held-out prompts"
                )
            prompts = [held_out[self.question]]
        groups: Sequence[Group] = ctx.domain.rollout(prompts)
        return groups

    def done(self, groups: Sequence[Group], ctx: Context) -> bool:
        """At test time, the first success ends it."""
        return self.test_time and any(group.successes(self.threshold) for group in groups)

    def evidence(self, group: Group, episode: Episode) -> Evidence:
        """f_i: what the teacher is shown about this episode; empty evidence makes no view, so the row is masked."""
        failed = episode.reward < self.threshold
        if self.route == "failures" and not failed:
            return Evidence()
        solution = group.prompt.solution if self.solution == "reference" else None
        if self.solution == "sibling":
            sibling = group.sibling(episode, self.threshold, own=self.own_success)
            solution = sibling.text if sibling is not None and sibling.text.strip() else None
        feedback = episode.verdict.feedback if episode.verdict is not None else None
        if self.feedback == "never" or (self.feedback == "without_solution" and solution is not None):
            feedback = None
        attempt = episode.text if self.attempt and failed and episode.text.strip() else None
        return Evidence(solution=solution, feedback=feedback, attempt=attempt)

    def contexts(self, groups: Sequence[Group]) -> list[Evidence]:
        """The evidence of every episode, in order (rolled by one group for the control)."""
        seen = [[self.evidence(group, episode) for episode in group] for group in groups]
        if self.wrong_context:
            seen = [*seen[1:], seen[0]]
        return [evidence for group in seen for evidence in group]

    def signal(self, groups: Sequence[Group], ctx: Context) -> Signal | Sequence[Signal]:
        """The distillation term over rows with evidence, and the hybrid's policy gradient."""
        if self.done(groups, ctx):
            return []
        rows = flat(groups)
        teacher = ctx.domain.teacher(self.teacher, rows, "hindsight", self.contexts(groups))
        mask_N: Tensor = ctx.domain.covered(teacher, rows)
        ctx.log("active", sum(context is not None for context in teacher.contexts) / max(1, len(rows)))
        terms: list[Term] = [
            Divergence(
                coefficient=1.0 - self.grpo_weight, teacher=teacher, kind=self.divergence, support=self.support,
                advantage_clip=self.advantage_clip, behaviour_N=behaviour(rows), ratio_cap=self.ratio_cap,
                normaliser=self.normaliser, mask_N=mask_N,
            )
        ]  # fmt: skip
        if self.grpo_weight:
            hybrid = GRPO(std="none", clip_high=0.28, normaliser=self.normaliser)
            terms.append(hybrid.policy_gradient(groups, coefficient=self.grpo_weight))
        return Signal(rows, terms)
