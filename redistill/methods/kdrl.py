"""KDRL: GRPO and reverse-KL distillation from a teacher, on the same rollouts of the student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from redistill.core.episode import Group, flat
from redistill.core.method import Context, Method, register
from redistill.core.options import option
from redistill.core.signal import LogProb, Signal, Teacher, TeacherLogProb, Term, per_step
from redistill.core.specs import Normaliser, Support, TeacherWeights
from redistill.errors import UserError
from redistill.methods.grpo import GRPO
from redistill.objectives.advantages import teacher_advantages
from redistill.objectives.terms import Divergence
from redistill.text.checks import need_group, need_teacher, refuse_truncated_sampling
from redistill.text.settings import Settings
from redistill.text.views import Evidence


@register
@dataclass(frozen=True)
class KDRL(Method):
    """Maximise the verifier's reward and minimise KL(student || teacher) at once, both on what the student wrote:

        L = L_GRPO + beta(s) mean_{kept steps} (log pT - log p)^2 / 2,    beta(s) = max(beta - s * decay, beta_min).

    The k2 estimate has the exact gradient of the reverse KL; k3 has the forward KL's; k1 differentiated has none and is not
    offered. A mask may drop the KL where the verifier is content already. `fusion=advantage` adds beta (log pT - log p),
    detached, to the advantage inside the clipped term instead: the same expected gradient while the ratio is 1.
    `reward=0` is pure distillation (KD-RKL), `beta=0` is GRPO, `switch` is distillation first and then GRPO.
    """

    slug = "kdrl"
    title = "KDRL: knowledge distillation and RL in one objective"
    paper = "arXiv 2506.02208"
    axes = {"signal": "logit + outcome", "access": "white-box", "granularity": "hybrid"}
    taxonomy = {"divergence": "reverse_kl"}
    objective = "L = L_GRPO + beta(s) mean_t m_t (log p_T(y_t) - log p(y_t))^2 / 2,  m = kept by the reward mask"
    says_does = (
        ("GRPO without a KL to the initial model (inferred)", "RLAD describes KDRL as GRPO with the teacher in its place; so it is here"),
        ("k2 is the unbiased gradient", "third-party recipes differentiate k1, whose expected gradient is zero: not offered"),
        ("constant beta 2e-3, or annealed from 5e-3 to 1e-3 by 5e-5 an update", "the annealed one is the default; beta=2e-3 beta_decay=0"),
    )  # fmt: skip
    run_defaults = {"prompts_per_step": 16, "group_size": 8, "learning_rate": 1e-6}

    teacher: TeacherWeights | None = option(None, "whose weights teach, e.g. checkpoint(path); required")
    beta: float = option(5e-3, "weight of the KL at the first update; 0 is GRPO", low=0)
    beta_min: float = option(1e-3, "what it falls to", low=0)
    beta_decay: float = option(5e-5, "how much it falls at each update; 0 is constant", low=0)
    estimator: str = option("k2", "with support=sampled and fusion=loss: the KL's estimate", choices=("k2", "k3"))
    support: Support = option(Support("sampled"), "sampled | full | top_k(32, tail=false), the paper's biased variant")
    mask: str = option(
        "none", "where the KL is left out: right answers, or groups with one", choices=("none", "response", "group")
    )
    threshold: float = option(1.0, "an answer with at least this reward is right, for the mask")
    fusion: str = option("loss", "the KL as a loss of its own, or in the advantage", choices=("loss", "advantage"))
    reward: float = option(1.0, "weight of the reward; 0 is pure distillation (KD-RKL)", low=0)
    switch: int | None = option(
        None, "distil only up to this update, then GRPO only; none mixes them throughout", low=1
    )
    std: str = option("sample", "what centred rewards are divided by", choices=("none", "population", "sample"))
    clip_low: float = option(0.2, "lower bound of the ratio is 1 - this", low=0)
    clip_high: float = option(0.2, "upper bound of the ratio is 1 + this", low=0)
    normaliser: Normaliser = option(Normaliser("token"), "by what both losses are divided; the KL's counts kept steps")

    def check(self, config: Settings) -> None:
        """A teacher, a group, and no option that would not be read."""
        need_teacher(self.slug, self.teacher)
        need_group(self.slug, config)
        refuse_truncated_sampling(self.slug, config)
        if self.beta_min > self.beta:
            raise UserError(f"beta_min={self.beta_min:g} is above beta={self.beta:g}: set beta_min to at most that")
        if self.fusion == "advantage" and (self.support.name != "sampled" or self.estimator != "k2"):
            raise UserError(
                "fusion=advantage adds the sampled log-ratio itself: leave support=sampled and estimator=k2"
            )
        if self.support.name != "sampled" and self.estimator != "k2":
            raise UserError(f"estimator={self.estimator} has no meaning with support={self.support}, which is exact")

    def teachers(self) -> Sequence[TeacherWeights]:
        """The one teacher."""
        return (self.teacher,) if self.teacher is not None else ()

    def beta_at(self, update: int) -> float:
        """The KL's weight at an update, counted from 0."""
        return max(self.beta - self.beta_decay * update, self.beta_min)

    def distilled(self, groups: Sequence[Group]) -> list[bool]:
        """Whether each episode's steps take part in the KL."""
        if self.mask == "response":
            return [episode.reward < self.threshold for group in groups for episode in group]
        return [self.mask == "none" or group.all_failed(self.threshold) for group in groups for _ in group]

    def signal(self, groups: Sequence[Group], ctx: Context) -> Signal:
        """The policy gradient and the KL, as one term or two."""
        assert self.teacher is not None
        rows = flat(groups)
        reward, beta = self.reward, self.beta_at(ctx.stage_step)
        if self.switch is not None:
            reward, beta = (0.0, 1.0) if ctx.stage_step < self.switch else (1.0, 0.0)
        ctx.log("beta", beta)
        mask_N = per_step(self.distilled(groups), [row.steps for row in rows], torch.bool)
        teacher: Teacher = ctx.domain.teacher(self.teacher, rows, "plain", [Evidence()] * len(rows))
        grpo = GRPO(std=self.std, clip_low=self.clip_low, clip_high=self.clip_high, normaliser=self.normaliser)
        gradient = grpo.policy_gradient(groups)
        if self.fusion == "advantage":
            found = ctx.domain.score(rows, [LogProb(), TeacherLogProb(teacher)])
            gap_N = teacher_advantages(student_logp_N=found[LogProb()], teacher_logp_N=found[TeacherLogProb(teacher)])
            added_N = torch.where(mask_N, beta * gap_N.float(), 0.0)
            return Signal(rows, [replace(gradient, advantage_N=reward * gradient.advantage_N + added_N)])
        terms: list[Term] = [replace(gradient, coefficient=reward)] if reward else []
        if beta:
            terms.append(
                Divergence(
                    coefficient=beta, teacher=teacher, support=self.support, estimator=self.estimator, mask_N=mask_N,
                    normaliser=self.normaliser,
                )
            )  # fmt: skip
        return Signal(rows, terms)
