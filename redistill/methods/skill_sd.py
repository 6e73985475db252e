"""Skill-SD: skills written from finished trajectories are shown to the re-scoring teacher only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from redistill.core.episode import Episode, Group, behaviour, flat
from redistill.core.method import Context, Method, register
from redistill.core.options import option
from redistill.core.signal import LogProb, Signal, Teacher, Term
from redistill.core.specs import Normaliser, Support, TeacherWeights
from redistill.core.task import Prompt
from redistill.errors import UserError
from redistill.methods.grpo import GRPO
from redistill.objectives.terms import Divergence
from redistill.text.checks import refuse_truncated_sampling
from redistill.text.settings import Settings
from redistill.text.skills import SkillBank
from redistill.text.views import Evidence


@register
@dataclass(frozen=True)
class SkillSD(Method):
    """Multi-turn GRPO from the plain prompt, and beside it a reverse KL to the same weights that have read one skill of the
    task: what brought progress in earlier trajectories and the first thing that did not. A bandit (UCB) picks the skill.

    k3 alone has the *forward* KL's gradient; times rho = p / sg p_old with its gradient kept it has the reverse KL's. Skills
    are written by the world's deterministic summary (the paper: an auxiliary model) and used from the next step on. Baselines:
    `rollouts=augmented skill_weight=0` acts with the skill; `grpo_weight=0 estimator=policy_gradient teacher=frozen` is OPD.
    """

    slug = "skill-sd"
    title = "Skill-conditioned self-distillation for multi-turn agents"
    paper = "arXiv 2604.10674"
    axes = {"signal": "self-play", "access": "self", "granularity": "token"}
    objective = (
        "L = L_GRPO + lam (1/N) sum_it rho_it (exp(-l_it) - 1 + l_it),  l = log p(y | x) - log p_bar(y | x + S(x)),  "
        "rho = p / sg p_old;  S(x) = argmax_e mean reward(e) + c sqrt(ln N / n(e))"
    )
    says_does = (
        ("which rewards update a skill is not said", "its source's reward once, then the mean reward of each group it taught"),
        ("size of the bank is not said", "`keep` best a task"),
        ("lam 0.001 at the paper's scale", "rescale: the distillation's gradient at 5 to 20% of GRPO's"),
    )  # fmt: skip
    run_defaults = {"prompts_per_step": 16, "group_size": 4, "learning_rate": 1e-6, "max_turns": 40}

    skill_weight: float = option(0.001, "lam, the weight of the distillation", low=0)
    grpo_weight: float = option(1.0, "weight of GRPO; 0 with estimator=policy_gradient is OPD", low=0)
    teacher: TeacherWeights = option(TeacherWeights("sync", 1), "sync(1): the student at the step's start; or frozen")
    estimator: str = option("k3", "sampled estimate of the KL", choices=("k3", "k2", "policy_gradient"))
    ratio: str = option(
        "attached", "rho: with its gradient, without it, or 1", choices=("attached", "detached", "none")
    )
    rollouts: str = option(
        "student", "who acts: the student; augmented: shown the skill; teacher: shown it and trained without it",
        choices=("student", "augmented", "teacher"),
    )  # fmt: skip
    exploration: float = option(2**0.5, "c of the bandit", low=0)
    keep: int = option(8, "skills kept for a task", low=1)
    wrong_skill: bool = option(False, "control: the teacher reads the skill of another task of the step")
    clip_low: float = option(0.2, "lower bound of GRPO's ratio is 1 - this", low=0)
    clip_high: float = option(0.28, "upper bound of GRPO's ratio is 1 + this", low=0)
    std: str = option("population", "what centred rewards are divided by", choices=("none", "population", "sample"))
    normaliser: Normaliser = option(Normaliser("token"), "by what both losses are divided")
    bank: SkillBank = field(default_factory=SkillBank, repr=False, compare=False)
    """The skills of each task (state, not an option)."""

    def check(self, config: Settings) -> None:
        """Ratios need the whole distribution, a group two, and something must be learnt."""
        refuse_truncated_sampling(self.slug, config)
        if config.group_size < 2:
            raise UserError(f"group_size={config.group_size} gives skill-sd no group to compare with: it must be >= 2")
        if self.grpo_weight == 0 and self.skill_weight == 0:
            raise UserError("grpo_weight=0 with skill_weight=0 leaves nothing to learn: set one of them")

    def teachers(self) -> Sequence[TeacherWeights]:
        """The teacher's weights."""
        return (self.teacher,)

    def utility_view(self) -> str | None:
        """The teacher's view."""
        return "with_skill"

    def state(self) -> Mapping[str, Any]:
        """The skills and their statistics."""
        return {"skills": self.bank}

    def skill(self, prompt: Prompt) -> str | None:
        """S(x): the bandit's choice for a task; None before there is one."""
        return self.bank.choose(prompt.uid, self.exploration)

    def collect(self, ctx: Context) -> Sequence[Group]:
        """Rollouts of the step's tasks, by whoever acts; with the skill in view where there is one and it is to be seen."""
        if not hasattr(ctx.task, "summary"):
            raise UserError(
                f"skill-sd needs a task that is played in turns, such as tools or sokoban, not {ctx.task.name!r}"
            )
        prompts = ctx.next_prompts()
        skills = [None if self.rollouts == "student" else self.skill(prompt) for prompt in prompts]
        groups: dict[int, Group] = {}
        for view, at in (("plain", [i for i, s in enumerate(skills) if s is None]), ("with_skill", [i for i, s in enumerate(skills) if s])):  # fmt: skip
            if at:
                made = ctx.domain.rollout([prompts[i] for i in at], view, [Evidence(skill=skills[i]) for i in at])
                groups |= {at[group.episodes[0].key[3]]: group for group in made}
        return [self._relabelled(groups[i], ctx) for i in sorted(groups)]

    def _relabelled(self, group: Group, ctx: Context) -> Group:
        if self.rollouts != "teacher":
            return group
        plain = ctx.domain.render("plain", group.prompt)
        return Group(group.prompt, [episode.trained_as(plain, "plain") for episode in group])

    def taught(self, groups: Sequence[Group], ctx: Context) -> Teacher:
        """The teacher of every episode: under its task's skill; under the plain prompt where there is none yet."""
        skills = [self.skill(group.prompt) for group in groups]
        if self.wrong_skill:
            skills = [*skills[1:], *skills[:1]]
        rows, each = flat(groups), [skill for group, skill in zip(groups, skills) for _ in group]
        shown = ctx.domain.teacher(self.teacher, rows, "with_skill", [Evidence(skill=skill) for skill in each])
        plain = ctx.domain.teacher(self.teacher, rows, "plain", [Evidence()] * len(rows))
        ctx.log("skilled", sum(skill is not None for skill in each) / max(1, len(each)))
        return replace(shown, contexts=tuple(a if s else b for a, b, s in zip(shown.contexts, plain.contexts, each)))

    def signal(self, groups: Sequence[Group], ctx: Context) -> Signal:
        """GRPO, and the importance-weighted distillation on the same action tokens."""
        rows = flat(groups)
        acted_N, student_N = behaviour(rows), self._student(rows, ctx)
        teacher = self.taught(groups, ctx)
        grpo = GRPO(
            std=self.std, std_epsilon=1e-8, clip_low=self.clip_low, clip_high=self.clip_high, normaliser=self.normaliser
        )
        terms: list[Term] = []
        if self.grpo_weight:
            # The clip is centred on the old student, whoever acted.
            terms.append(replace(grpo.policy_gradient(groups, self.grpo_weight), behaviour_N=student_N))
        if self.skill_weight:
            terms.append(
                Divergence(
                    name="skill", coefficient=self.skill_weight, normaliser=self.normaliser, teacher=teacher,
                    support=Support("sampled"), estimator=self.estimator, mask_N=ctx.domain.covered(teacher, rows),
                    behaviour_N=None if self.ratio == "none" else acted_N, importance=self.ratio == "attached",
                    ratio_cap=float("inf") if self.ratio == "detached" else None,
                )
            )  # fmt: skip
        return Signal(rows, terms)

    def _student(self, rows: Sequence[Episode], ctx: Context) -> Tensor:
        """log p_old of the student's own view: what was recorded, or scored where the teacher acted."""
        if self.rollouts != "teacher":
            return behaviour(rows)
        scored: Tensor = ctx.domain.score(rows, [LogProb()])[LogProb()]
        return scored

    def after_update(self, groups: Sequence[Group], ctx: Context) -> None:
        """Credit the skills that taught, then write one from each task's best trajectory, for the next steps."""
        for group in groups:
            self.bank.credit(group.prompt.uid, self.skill(group.prompt), float(group.rewards.mean()))
        for group in groups:
            best = max(group, key=lambda episode: episode.reward)
            turns = best.trajectory.turns
            told = ctx.task.summary(  # type: ignore[attr-defined]
                [turn.action for turn in turns], [turn.progress for turn in turns], [turn.malformed for turn in turns]
            )
            self.bank.add(group.prompt.uid, told.text(ctx.task.wording), best.reward, self.keep)
        ctx.log("skills", float(len(self.bank)))
