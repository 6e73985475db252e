"""RLTF: text critiques exist in training only; learn from the second attempts that they made possible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from redistill.core.episode import Episode, Group, behaviour, flat
from redistill.core.method import Context, Method, register
from redistill.core.options import option
from redistill.core.signal import LogProb, Signal, Term, per_step
from redistill.core.specs import Normaliser
from redistill.core.task import Prompt, Verdict
from redistill.errors import UserError
from redistill.objectives.terms import Likelihood, PolicyGradient
from redistill.text.checks import refuse_truncated_sampling
from redistill.text.retry import CORRECTNESS, Retry
from redistill.text.settings import Settings
from redistill.text.turns import by_turn
from redistill.text.views import Evidence


@register
@dataclass(frozen=True)
class RLTF(Method):
    """Two turns of GRPO: a failed first attempt y0 is answered with a critique c0 and tried again, y1 ~ p(. | x0, y0, c0).

    `variant=sd` distils: y1 is also trained under the first prompt alone, weighted by its reward minus the mean *first*-turn
    reward, so that the signal does not vanish when second attempts become right. `variant=fm` also predicts the critique
    from question and attempt. `none` is two-turn GRPO, `sft` the likelihood of right second attempts, `both` sd and fm.
    The judge here is the task's verifier, which says what is wrong and never the answer (the paper's is a 235B model).
    """

    slug = "rltf"
    title = "Reinforcement learning from text feedback (RLTF-SD, RLTF-FM)"
    paper = "arXiv 2602.02482"
    axes = {"signal": "feedback", "access": "self", "granularity": "sequence"}
    objective = (
        "L = -(1/N) sum_h sum_t r_t A_h + L_SD + lam L_FM,  A_h = R_h - mean_group R_h,  R_h = sum_k gamma^(k-h) r_k;  "
        "L_SD = -(c/N) sum (r1 - mean r0) log p(y1 | x0) where log p >= -5;  L_FM = -(1/N) sum log p(c0 | x0, y0)"
    )
    says_does = (
        ("baseline of SD: the group's first-turn rewards", "released loop never forwards the flag: baseline=second"),
        ("sums over tokens", "here divided by the tokens of the policy-gradient part, so that lengths do not set the step size"),
        ("SD weight 0.1, linear from 0 for maths", "ramp_steps: updates of the rise, 0 for none"),
    )  # fmt: skip
    run_defaults = {"prompts_per_step": 32, "group_size": 8, "learning_rate": 2e-5, "lora_rank": 32}

    variant: str = option("sd", "what is learnt beside two-turn GRPO", choices=("sd", "fm", "both", "sft", "none"))
    horizon: int = option(2, "turns of an episode; 1 is single-turn GRPO", low=1, high=2)
    layout: str = option("fresh", "second prompt: written afresh, or the chat goes on", choices=("fresh", "chat"))
    critic: str = option("verifier", "what the critique says", choices=("verifier", "correctness"))
    threshold: float = option(1.0, "a first attempt with at least this reward ends the episode")
    gamma: float = option(0.1, "discount of the second turn's reward in the first turn's return", low=0, high=1)
    format_penalty: float = option(0.1, "taken off the reward of a turn whose format is wrong", low=0)
    baseline: str = option("first", "turn whose mean reward SD's advantage is taken from", choices=("first", "second"))
    ratio: str = option("none", "SD: no ratio, or y1's ratio to its own view", choices=("none", "ppo", "cispo"))
    sd_weight: float = option(0.1, "weight of SD (and of sft); not of the ppo and cispo ablations", low=0)
    ramp_steps: int = option(0, "updates over which sd_weight rises from 0", low=0)
    mask_below: float = option(-5.0, "SD leaves out tokens with a smaller log-prob under the first prompt", high=0)
    fm_weight: float = option(0.1, "weight of the critique's likelihood", low=0)
    normaliser: Normaliser = option(Normaliser("token"), "token (of the policy-gradient part) or constant(n)")

    def check(self, config: Settings) -> None:
        """Ratios need the whole distribution; a group needs two; one divisor serves all parts."""
        refuse_truncated_sampling(self.slug, config)
        if config.group_size < 2:
            raise UserError(f"group_size={config.group_size} gives rltf no group to compare with: it must be >= 2")
        if self.normaliser.name == "sequence":
            raise UserError("normaliser=sequence is not a choice of rltf; the choices are token, constant(n)")

    def told(self, prompt: Prompt, verdict: Verdict, wording: str) -> str:
        """c0, the critique of a failed attempt."""
        if self.critic == "verifier" and verdict.feedback is None:
            raise UserError(
                f"the task says nothing about a wrong answer of prompt {prompt.uid}: set critic=correctness"
            )
        return CORRECTNESS[wording] if self.critic == "correctness" else str(verdict.feedback)

    def collect(self, ctx: Context) -> Sequence[Group]:
        """First attempts, and a second one for each that failed (`trajectory.after` is the first)."""
        prompts, wording = ctx.next_prompts(), ctx.task.wording
        if self.layout == "chat" and self.horizon == 2:
            told = partial(self.told, wording=wording)
            worlds = [partial(Retry, ctx.task, prompt, self.threshold, told) for prompt in prompts]
            played = ctx.domain.rollout(prompts, worlds=worlds)
            return [Group(group.prompt, [turn for episode in group for turn in _turns(episode)]) for group in played]
        groups: list[Group] = list(ctx.domain.rollout(prompts))
        failed = [episode for episode in flat(groups) if episode.reward < self.threshold]
        seconds: list[Episode] = []
        if failed and self.horizon == 2:
            seen = [Evidence(attempt=e.text if e.text.strip() else None, feedback=self.told(e.prompt, _verdict(e), wording)) for e in failed]  # fmt: skip
            view = ["with_attempt" if evidence.attempt else "with_feedback" for evidence in seen]
            for name in sorted(set(view)):
                at = [i for i, each in enumerate(view) if each == name]
                again = ctx.domain.rollout([failed[i].prompt for i in at], name, [seen[i] for i in at], size=1)
                seconds += [_following(e, failed[at[e.key[3]]]) for e in flat(again)]
        return [
            Group(g.prompt, [*g, *(e for e in seconds if any(e.trajectory.after is first for first in g))])
            for g in groups
        ]

    def reward(self, episode: Episode) -> float:
        """r_h: the verdict's reward, less the penalty for a wrong format."""
        return episode.reward - (0.0 if _verdict(episode).format_ok else self.format_penalty)

    def advantages(self, group: Group) -> tuple[Tensor, Tensor]:
        """(A_h of every episode of the group, SD's advantage of the second attempts), in order."""
        firsts, seconds = split(group)
        later = {id(e.trajectory.after): self.reward(e) for e in seconds}
        r0 = torch.tensor([self.reward(e) for e in firsts], dtype=torch.float64)
        r1 = torch.tensor([self.reward(e) for e in seconds], dtype=torch.float64)
        returns = r0 + self.gamma * torch.tensor([later.get(id(e), 0.0) for e in firsts], dtype=torch.float64)
        base = r0.mean() if self.baseline == "first" else r1.mean()
        return torch.cat([returns - returns.mean(), r1 - r1.mean()]), r1 - base

    def signal(self, groups: Sequence[Group], ctx: Context) -> Signal:
        """Policy gradient of both turns; SD rows (x0, y1); critique rows."""
        ordered = [Group(g.prompt, [*split(g)[0], *split(g)[1]]) for g in groups]
        acted = flat(ordered)
        seconds = [e for e in acted if e.trajectory.after is not None]
        advantages = [self.advantages(group) for group in ordered]
        again = [e.trained_as(e.trajectory.after.context, "plain") for e in seconds]
        critiques = self._critiques(seconds, ctx) if self.variant in ("fm", "both") else []
        rows = [*acted, *again, *critiques]
        sizes = [sum(row.steps for row in part) for part in (acted, again, critiques)]
        counted = Normaliser("constant", max(1, sizes[0])) if self.normaliser.name == "token" else self.normaliser
        masks = [torch.arange(3).repeat_interleave(torch.tensor(sizes)) == part for part in range(3)]
        zeros = torch.zeros(sizes[1] + sizes[2])
        terms: list[Term] = [
            PolicyGradient(
                advantage_N=torch.cat([per_step(torch.cat([a for a, _ in advantages]), [e.steps for e in acted]), zeros]),
                behaviour_N=torch.cat([behaviour(acted), zeros]), clip_low=None, clip_high=None, normaliser=counted,
                mask_N=masks[0],
            )
        ]  # fmt: skip
        if self.variant in ("sd", "both") and again:
            terms.append(self._sd(again, torch.cat([a for _, a in advantages]), masks[1], sizes, counted, ctx))
        if self.variant == "sft" and again:
            right_N = per_step([e.reward >= self.threshold for e in again], [e.steps for e in again], torch.bool)
            terms.append(
                Likelihood(
                    name="sft", coefficient=self._weight(ctx), normaliser=counted, mask_N=_within(masks[1], right_N)
                )
            )
        if critiques:
            terms.append(Likelihood(name="fm", coefficient=self.fm_weight, normaliser=counted, mask_N=masks[2]))
        ctx.log(
            "reward_first",
            sum(e.reward for e in acted if e.trajectory.after is None) / max(1, len(acted) - len(seconds)),
        )
        ctx.log("reward_second", sum(e.reward for e in seconds) / max(1, len(seconds)))
        return Signal(rows, terms)

    def _weight(self, ctx: Context) -> float:
        return self.sd_weight * (min(1.0, ctx.step / self.ramp_steps) if self.ramp_steps else 1.0)

    def _sd(
        self, again: Sequence[Episode], advantage_R: Tensor, mask_N: Tensor, sizes: Sequence[int], counted: Normaliser,
        ctx: Context,
    ) -> Term:  # fmt: skip
        """The term over (x0, y1): ratio 1 with its gradient, or the ablations' ratio to p_old(y1 | x1)."""
        logp_n = ctx.domain.score(again, [LogProb()])[LogProb()].float()
        old_n = behaviour(again)
        kept_n = logp_n >= self.mask_below if self.ratio == "none" else torch.ones_like(logp_n, dtype=torch.bool)
        weight_n = (logp_n - old_n).exp().clamp(0.8, 1.2) if self.ratio == "cispo" else torch.ones_like(logp_n)
        padded = partial(_placed, sizes=sizes)
        return PolicyGradient(
            name="sd", coefficient=self._weight(ctx) if self.ratio == "none" else 1.0, normaliser=counted,
            mask_N=_within(mask_N, kept_n), advantage_N=padded(per_step(advantage_R, [e.steps for e in again])),
            weight_N=padded(weight_n), behaviour_N=padded(old_n) if self.ratio == "ppo" else None,
            clip_low=0.2 if self.ratio == "ppo" else None, clip_high=0.2 if self.ratio == "ppo" else None,
        )  # fmt: skip

    def _critiques(self, seconds: Sequence[Episode], ctx: Context) -> list[Episode]:
        """Rows (question and attempt -> critique) of the first attempts that received one."""
        made = []
        for first in [e.trajectory.after for e in seconds]:
            told = self.told(first.prompt, _verdict(first), ctx.task.wording)
            seen = Evidence(attempt=first.text if first.text.strip() else None)
            made.append(ctx.domain.written(first.prompt, told, "critique", seen, judged=False))
        return [row for row in made if row is not None]


def split(group: Group) -> tuple[list[Episode], list[Episode]]:
    """First attempts and second attempts of a group."""
    return [e for e in group if e.trajectory.after is None], [e for e in group if e.trajectory.after is not None]


def _verdict(episode: Episode) -> Verdict:
    assert episode.verdict is not None
    return episode.verdict


def _following(second: Episode, first: Episode) -> Episode:
    return replace(second, trajectory=replace(second.trajectory, after=first))


def _turns(episode: Episode) -> list[Episode]:
    """The turns of a chat as episodes of their own, each with its own verdict and linked to the one before."""
    made: list[Episode] = []
    for row, turn in zip(by_turn(episode), episode.trajectory.turns):
        verdict = Verdict(turn.progress, turn.observation, not turn.malformed)
        made.append(replace(row, verdict=verdict, trajectory=replace(row.trajectory, after=made[-1] if made else None)))
    return made


def _placed(value_n: Tensor, sizes: Sequence[int]) -> Tensor:
    """Values of the second part's steps as a vector over all three parts."""
    before, after = (value_n.new_zeros(sizes[part]) for part in (0, 2))
    return torch.cat([before, value_n, after])


def _within(mask_N: Tensor, kept_n: Any) -> Tensor:
    """The mask, cut further by one value for each step that it covers."""
    found = mask_N.clone()
    found[mask_N] = kept_n
    return found
