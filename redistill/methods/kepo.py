"""KEPO: distil only what was rewarded; where nothing was, let a teacher's hint lead the student to an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from redistill.core.episode import Episode, Group, flat
from redistill.core.method import Context, Method, register
from redistill.core.options import option
from redistill.core.signal import Signal, Teacher, Term, per_step
from redistill.core.specs import DivergenceKind, Normaliser, Support, TeacherWeights
from redistill.core.task import Prompt
from redistill.objectives.advantages import group_advantages
from redistill.objectives.terms import Divergence, PolicyGradient
from redistill.text.checks import need_group, need_teacher
from redistill.text.settings import Settings
from redistill.text.views import Evidence


@register
@dataclass(frozen=True)
class KEPO(Method):
    """GRPO plus on-policy distillation, with two gates. (i) A rollout is distilled only if its reward reaches `gate`. (ii) For
    a prompt without any reward the teacher, who sees the answer, writes a hint; the student answers with the hint in view until
    it is right, and those answers take the place of some rollouts, under the original prompt and with ratio 1:

        L = L_RL + sum_i m_i sum_t JSD_b(p_T, p_S) / sum_i m_i |y_i|,    m_i = [r_i >= gate],  r = accuracy + format.
    """

    slug = "kepo"
    title = "KEPO: knowledge-enhanced preference optimisation"
    paper = "arXiv 2602.00400"
    axes = {"signal": "outcome + logit", "access": "white-box", "granularity": "hybrid"}
    objective = "L = -mean_i A_i mean_t sg-ratio + rl_kl KL + sum_i [r_i >= gate] sum_t JSD_b(p_T, p) / sum_i [r_i >= gate] |y_i|"
    says_does = (
        ("distil where the reward passes a threshold", "released tau=1 with r = accuracy + format lets wrong answers through; gate=2 here"),
        ("hints for prompts without any reward", "released: for all prompts of a micro-batch; here a prompt's own, by trigger"),
        ("keep hinted answers that are right", "released: only if all of a micro-batch are; here each on its own"),
        ("some rollouts are overwritten", "released draws the places with replacement; here without"),
        ("mean over gated tokens", "released divides 0 by 0 when nothing passes; here an empty gate is no loss"),
        ("sampled with top-p 0.95, ratio 1", "so the score is the whole distribution's though the tail is never drawn; top_p=1 for none of that"),
        ("a vision-language paper", "the algorithm needs no images; here on text"),
    )  # fmt: skip
    run_defaults = {"prompts_per_step": 16, "group_size": 8, "learning_rate": 2e-6, "temperature": 0.9, "top_p": 0.95}

    teacher: TeacherWeights | None = option(None, "whose weights teach and hint, e.g. checkpoint(path); required")
    gate: float | None = option(2.0, "least reward of a distilled rollout; none distils nothing (GRPO)")
    trigger: str = option(
        "accuracy", "hints where no answer is right, where all rewards are 0, always or never",
        choices=("accuracy", "reward", "always", "never"),
    )  # fmt: skip
    hinted: int = option(2, "rollouts of a prompt that hinted answers replace", low=1)
    attempts: int = option(5, "rounds of hinted answers before a prompt is given up", low=1)
    hint_view: str = option(
        "with_solution",
        "where the student reads the hint: as a solution (v1) or as a hint (v0)",
        choices=("with_solution", "with_hint"),
    )
    hint_share: float = option(1.0, "share of the teacher's text that is shown", above=0, high=1)
    writer_view: str = option(
        "with_solution", "what the teacher reads when it writes", choices=("with_solution", "plain")
    )
    threshold: float = option(1.0, "an answer with at least this reward is right")
    format_reward: float = option(1.0, "added to the reward of a well-formed answer", low=0)
    divergence: DivergenceKind = option(DivergenceKind("jsd", 0.5), "teacher against student, on gated rollouts")
    distillation: float = option(1.0, "coefficient of the distillation", low=0)
    std: str = option("sample", "what centred rewards are divided by", choices=("none", "population", "sample"))
    rl_kl: float = option(0.0, "coefficient of KL to the initial policy (k3, sampled)", low=0)
    normaliser: Normaliser = option(Normaliser("sequence"), "by what the policy gradient is divided")

    def check(self, config: Settings) -> None:
        """A teacher, a group, and room in it for what hints bring."""
        need_teacher(self.slug, self.teacher)
        need_group(self.slug, config)

    def teachers(self) -> Sequence[TeacherWeights]:
        """The one teacher, and the initial policy when there is a KL to it."""
        named = (self.teacher,) if self.teacher is not None else ()
        return (*named, TeacherWeights("frozen")) if self.rl_kl else named

    def reward(self, episode: Episode) -> float:
        """r = accuracy + format."""
        return episode.reward + self.format_reward * float(episode.verdict is not None and episode.verdict.format_ok)

    def collect(self, ctx: Context) -> Sequence[Group]:
        """The student's rollouts; in the groups that need it, some of them replaced by answers that a hint led to."""
        groups: list[Group] = list(ctx.domain.rollout(ctx.next_prompts()))
        stuck = [i for i, group in enumerate(groups) if self.needs_hint(group)]
        led = self.led([groups[i].prompt for i in stuck], ctx) if stuck else {}
        for i in stuck:
            found = led.get(groups[i].prompt.uid, [])
            groups[i] = self.injected(groups[i], found, ctx)
        ctx.log("stuck", len(stuck) / max(1, len(groups)))
        ctx.log("led", len(led) / max(1, len(stuck)))
        return groups

    def needs_hint(self, group: Group) -> bool:
        """Whether the trigger fires for a group."""
        if self.trigger == "reward":
            return all(self.reward(episode) == 0 for episode in group)
        return self.trigger == "always" or (self.trigger == "accuracy" and group.all_failed(self.threshold))

    def led(self, prompts: Sequence[Prompt], ctx: Context) -> dict[str, list[Episode]]:
        """Right answers given with the teacher's hint in view, by prompt; prompts that were given up are left out."""
        assert self.teacher is not None
        with ctx.domain.writing_as(self.teacher):
            seen = [Evidence(solution=prompt.solution or prompt.answer) for prompt in prompts]
            texts = {g.prompt.uid: g.episodes[0].text for g in ctx.domain.rollout(prompts, self.writer_view, seen, 1)}
        hints = {uid: text[: max(1, round(self.hint_share * len(text)))].strip() for uid, text in texts.items()}
        key = "solution" if self.hint_view == "with_solution" else "hint"
        found: dict[str, list[Episode]] = {}
        for _ in range(self.attempts):
            left = [p for p in prompts if hints.get(p.uid) and len(found.get(p.uid, [])) < self.hinted]
            if not left:
                break
            shown = [Evidence(**{key: hints[prompt.uid]}) for prompt in left]
            for group in ctx.domain.rollout(left, self.hint_view, shown, self.hinted):
                right = [*found.get(group.prompt.uid, []), *group.successes(self.threshold)]
                if right:
                    found[group.prompt.uid] = right[: self.hinted]
        return found

    def injected(self, group: Group, found: Sequence[Episode], ctx: Context) -> Group:
        """The group with `found` in places drawn without replacement, to be trained under the original prompt."""
        draws = torch.as_tensor(ctx.uniform("place", group.prompt.uid, range(len(group))))
        places = draws.argsort()[: len(found)].tolist()
        episodes = list(group.episodes)
        for place, episode in zip(places, found):
            episodes[place] = episode.trained_as(episodes[place].context, "plain")
        return Group(group.prompt, episodes)

    def signal(self, groups: Sequence[Group], ctx: Context) -> Signal:
        """Policy gradient with ratio 1 over all rollouts, distillation over the gated ones."""
        assert self.teacher is not None
        rows = flat(groups)
        lengths = [row.steps for row in rows]
        rewards = [torch.tensor([self.reward(episode) for episode in group], dtype=torch.float64) for group in groups]
        advantage = torch.cat(group_advantages(rewards, std=self.std, eps=1e-4))
        terms: list[Term] = [
            PolicyGradient(
                advantage_N=per_step(advantage, lengths), clip_low=None, clip_high=None, normaliser=self.normaliser
            )
        ]
        if self.gate is not None and self.distillation:
            passed = torch.cat(rewards) >= self.gate
            ctx.log("gated", float(passed.double().mean()))
            teacher: Teacher = ctx.domain.teacher(self.teacher, rows, "plain", [Evidence()] * len(rows))
            terms.append(
                Divergence(
                    coefficient=self.distillation, teacher=teacher, kind=self.divergence,
                    mask_N=per_step(passed, lengths, torch.bool),
                )
            )  # fmt: skip
        if self.rl_kl:
            initial = ctx.domain.teacher(TeacherWeights("frozen"), rows, "plain", [Evidence()] * len(rows))
            kl = Divergence(
                name="kl", coefficient=self.rl_kl, teacher=initial, support=Support("sampled"), estimator="k3"
            )
            terms.append(replace(kl, normaliser=self.normaliser))
        return Signal(rows, terms)
