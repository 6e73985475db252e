"""pi-Distill: one model learns at once as a teacher that sees privileged information and as the student that does not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from redistill.core.episode import Episode, Group, behaviour, flat
from redistill.core.method import Context, Method, register
from redistill.core.options import option
from redistill.core.signal import DivergenceOf, LogProb, Signal, Teacher, Term, Values, joined, per_step
from redistill.core.specs import DivergenceKind, Normaliser, Support, TeacherWeights
from redistill.core.task import Prompt
from redistill.errors import UserError
from redistill.objectives.advantages import group_advantages, zero_variance
from redistill.objectives.terms import Divergence, Entropy, Likelihood, PolicyGradient
from redistill.text.checks import refuse_truncated_sampling
from redistill.text.settings import Settings
from redistill.text.views import Evidence

LIVE, FULL = TeacherWeights("live"), Support("full")
REVERSE, FORWARD = DivergenceKind("reverse_kl"), DivergenceKind("forward_kl")
LEAKS = re.compile(r"\b(hint|secret|privileged)", re.IGNORECASE)
"""Words by which an answer gives away that it was told something."""


def trajectory_ratio(values: Values, behaviour_n: Tensor, lengths: Sequence[int]) -> Tensor:
    """The log-ratio of the whole answer at each of its steps [n]: the sum (not the mean) over the row."""
    gaps = (values[LogProb()] - behaviour_n.detach()).split(list(lengths))
    return torch.cat([gap.sum().expand(len(gap)) for gap in gaps])


@register
@dataclass(frozen=True)
class PiDistill(Method):
    """Sample with privileged information I in view; train the same tokens twice, as teacher (context with I) and as student
    (without), on one advantage; the student's ratio is S_theta / sg T. In the reward, beta times the answer's KL(T || S), with the
    current student as reference, keeps the teacher where the student can follow. Each episode is two rows.

    `variant=opsd` samples from the student and adds beta KL(S || sg T) to its policy gradient. A prompt without I is sampled plain,
    where T = S and both rows are ordinary RL. The length penalty for long traces is not implemented.
    """

    slug = "pi-distill"
    title = "Privileged information distillation"
    paper = "arXiv 2602.04942"
    axes = {"signal": "outcome+self-play", "access": "self", "granularity": "token"}
    objective = (
        "J = a J_T + (1-a) J_S,  J_T = mean_t min(r_T A, clip(r_T) A), r_T = T / T_old;  J_S the same with r_S = S / sg T_old;  "
        "A_k = R'_k - mean R',  R'_k = R_k - beta sum_t KL(T || sg S).  opsd: J = GRPO(S) - beta mean_t KL(S || sg T)"
    )
    says_does = (
        ("J_S holds -beta KL(sg T || S)", "its appendix puts one KL into the shared reward: kl=reward; kl=pathwise is the equation"),
        ("opsd: KL in the gradient", "its pseudo-code puts it into the reward: kl=reward with variant=opsd"),
        ("trajectory-level ratio in the pseudo-code", "background and released loss: token level; ratio=trajectory is the former"),
        ("loss on the student", "released too: TOPR (student_loss=topr), and CE(S, T) - c H(S) (entropy_share=c)"),
        ("token mean", "the released PPO function sums and leaves detaching T to its caller"),
    )  # fmt: skip
    run_defaults = {
        "temperature": 0.75, "group_size": 5, "prompts_per_step": 64, "minibatches": 3, "learning_rate": 5e-6, "steps": 600,
    }  # fmt: skip

    variant: str = option(
        "pi-distill", "who samples: the teacher, or (opsd) the student", choices=("pi-distill", "opsd")
    )
    privilege: str = option(
        "with_solution", "what the teacher sees beside the question", choices=("with_solution", "with_hint")
    )
    alpha: float = option(0.5, "share of the teacher's objective", low=0, high=1)
    alpha_steps: int = option(0, "steps over which alpha rises linearly from 0", low=0)
    beta: float = option(0.25, "weight of the KL between teacher and student (opsd in the paper: 0.5)", low=0)
    kl: str = option(
        "own", "where the KL goes; own: reward for pi-distill, pathwise for opsd", choices=("own", "reward", "pathwise")
    )
    ratio: str = option("token", "importance ratio of a token or of the whole answer", choices=("token", "trajectory"))
    student_loss: str = option("clipped", "the student's surrogate: clipped, or TOPR's", choices=("clipped", "topr"))
    entropy_share: float = option(1.0, "opsd, pathwise: c of CE(S, T) - c H(S); 1 is the KL", low=0)
    clip_low: float = option(0.2, "lower bound of the ratios is 1 - this", low=0)
    clip_high: float = option(0.2, "upper bound of the ratios is 1 + this", low=0)
    drop_dead_groups: bool = option(True, "leave groups whose rewards (with the KL) are equal out of the counts")
    leak_penalty: float = option(0.1, "taken from the reward for each word that gives the information away", low=0)
    normaliser: Normaliser = option(Normaliser("token"), "by what each objective is divided")
    wrong_context: bool = option(False, "control: the teacher sees another prompt's information")

    def check(self, config: Settings) -> None:
        """A ratio needs the whole distribution that was sampled from, and a group needs two."""
        refuse_truncated_sampling(self.slug, config)
        if config.group_size < 2:
            raise UserError(
                f"group_size={config.group_size} gives pi-distill no group to compare with: it must be >= 2"
            )

    def utility_view(self) -> str | None:
        """The teacher's view."""
        return self.privilege

    @property
    def in_reward(self) -> bool:
        """Whether the KL is part of the reward."""
        return self.kl == "reward" or (self.kl == "own" and self.variant == "pi-distill")

    def evidence(self, prompts: Sequence[Prompt]) -> list[Evidence]:
        """I of each prompt; empty where there is none."""
        seen = [
            Evidence(solution=p.solution) if self.privilege == "with_solution" else Evidence(hint=p.data.get("hint"))
            for p in prompts
        ]
        return [*seen[1:], *seen[:1]] if self.wrong_context else seen

    def collect(self, ctx: Context) -> Sequence[Group]:
        """Rollouts of the teacher where it has information, of the student elsewhere (opsd: everywhere)."""
        prompts = ctx.next_prompts()
        seen = self.evidence(prompts)
        told = [i for i, e in enumerate(seen) if e != Evidence() and self.variant == "pi-distill"]
        plain = [prompt for i, prompt in enumerate(prompts) if i not in set(told)]
        groups: list[Group] = ctx.domain.rollout(plain) if plain else []
        if told:
            groups += ctx.domain.rollout([prompts[i] for i in told], self.privilege, [seen[i] for i in told])
        return groups

    def signal(self, groups: Sequence[Group], ctx: Context) -> Signal:
        """Rows as teacher and rows as student (opsd: as student alone), each with its objective."""
        rows = flat(groups)
        plain = tuple(ctx.domain.render("plain", row.prompt) for row in rows)
        if self.variant == "opsd":
            seen = self.evidence([group.prompt for group in groups])
            each = [evidence for evidence, group in zip(seen, groups) for _ in group]
            other: tuple[Any, ...] = ctx.domain.teacher(LIVE, rows, self.privilege, each).contexts
            return self.objective_of(1.0, "student", rows, other, *self.advantages(groups, other, ctx), ctx)
        told = tuple(row.context for row in rows)
        alpha = self.alpha * min(1.0, (ctx.stage_step + 1) / self.alpha_steps) if self.alpha_steps else self.alpha
        ctx.log("alpha", alpha)
        advantage_N, keep_N = self.advantages(groups, plain, ctx)
        students = [row.trained_as(context, "plain") for row, context in zip(rows, plain)]
        objectives = []
        if alpha > 0:
            objectives.append(self.objective_of(alpha, "teacher", rows, plain, advantage_N, keep_N, ctx))
        if alpha < 1:
            objectives.append(self.objective_of(1.0 - alpha, "student", students, told, advantage_N, keep_N, ctx))
        return joined(objectives)

    def advantages(self, groups: Sequence[Group], other: tuple[Any, ...], ctx: Context) -> tuple[Tensor, Tensor]:
        """A_k spread over the steps of the episodes [N], and which steps belong to groups that say something [N]. `other` is
        what the one who did not sample reads."""
        rows, lengths = flat(groups), [row.steps for row in flat(groups)]
        reward = torch.tensor([row.reward - self.leak_penalty * len(LEAKS.findall(row.text)) for row in rows]).double()
        if self.beta and self.in_reward:
            gap = DivergenceOf(Teacher(LIVE, other), REVERSE, FULL)  # KL of who sampled against the other
            kl_R = torch.stack([piece.double().sum() for piece in ctx.domain.score(rows, [gap])[gap].split(lengths)])
            ctx.log("kl", float(kl_R.mean()))
            reward = reward - self.beta * kl_R
        per_group = reward.split([len(group) for group in groups])
        alive = (~zero_variance(per_group)) | (not self.drop_dead_groups)
        keep = torch.cat([alive[i].expand(len(group)) for i, group in enumerate(groups)])
        return per_step(torch.cat(group_advantages(per_group)), lengths), per_step(keep, lengths, torch.bool)

    def objective_of(
        self, share: float, name: str, rows: Sequence[Episode], other: tuple[Any, ...], advantage_N: Tensor, keep_N: Tensor,
        ctx: Context,
    ) -> Signal:  # fmt: skip
        """The teacher's or the student's objective over its rows; `other` is what the other one reads."""
        behaviour_N = behaviour(rows)
        terms: list[Term] = []
        if self.student_loss == "topr" and name == "student":
            ratio_N = (ctx.domain.score(rows, [LogProb()])[LogProb()] - behaviour_N).exp()
            bounded_N = torch.where(advantage_N > 0, 1.0, ratio_N.clamp(1.0 - self.clip_low, 1.0 + self.clip_high))
            terms.append(
                Likelihood(
                    name=name, coefficient=share, normaliser=self.normaliser, mask_N=keep_N, weight_N=advantage_N * bounded_N
                )
            )  # fmt: skip
        else:
            terms.append(
                PolicyGradient(
                    name=name, coefficient=share, normaliser=self.normaliser, mask_N=keep_N, advantage_N=advantage_N,
                    behaviour_N=behaviour_N, clip_low=self.clip_low, clip_high=self.clip_high,
                    ratio=trajectory_ratio if self.ratio == "trajectory" else "token",
                )
            )  # fmt: skip
        if self.beta and not self.in_reward:
            # Who sampled is the first argument: KL(T || sg S) and KL(sg T || S); for opsd KL(S || sg T).
            kind = REVERSE if name == "teacher" or self.variant == "opsd" else FORWARD
            teacher = Teacher(LIVE, other)
            both = {"normaliser": self.normaliser, "mask_N": ctx.domain.covered(teacher, rows)}
            terms.append(
                Divergence(name=f"{name}_kl", coefficient=share * self.beta, teacher=teacher, kind=kind, **both)
            )
            if self.variant == "opsd" and self.entropy_share != 1.0:
                terms.append(Entropy(coefficient=(self.entropy_share - 1.0) * self.beta, **both))
        return Signal(rows, terms)
