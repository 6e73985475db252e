"""Teacher hacking: distillation under an oracle, which tells when getting nearer to the teacher is getting farther from the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from redistill.core import rng
from redistill.core.episode import Episode, Group, flat
from redistill.core.method import Context, Method, register
from redistill.core.options import option
from redistill.core.signal import DivergenceOf, Signal
from redistill.core.specs import DivergenceKind, Normaliser, Support, TeacherWeights
from redistill.core.task import Prompt
from redistill.errors import UserError
from redistill.evaluation.hacking import History
from redistill.objectives.terms import Divergence
from redistill.text.settings import Settings
from redistill.text.views import Evidence

DATA, HELD_OUT = -1, -2
"""What keys the draws of stored answers and of the held-out ones, in the place of a step."""


@register
@dataclass(frozen=True)
class TeacherHacking(Method):
    """A measurement: an oracle stands above the teacher, so that the true objective can be seen. A student distilled for many epochs on
    answers that were written once can go on approaching its teacher (`proxy`) while it moves away from the oracle (`golden`): it
    hacks the teacher. Answers written afresh, by the teacher or the student, or more prompts, prevent it.

    Every evaluation has `proxy` = dist(teacher, student) and `golden` = dist(oracle, student) on held-out prompts, with dist(p, q) the
    mean over tokens of KL(p || q) on answers that p wrote once, the same for every run; `golden_rise` and `proxy_rise` above their lowest
    so far (hacking: the first rises, the second does not), `hacking`, their difference; `departure`, how far log proxy has left its
    own early power law of the step (the paper's sign of hacking that needs no oracle).
    """

    slug = "teacher-hacking"
    title = "Teacher hacking, measured under an oracle"
    paper = "arXiv 2502.02671"
    axes = {"signal": "logit", "access": "white-box", "granularity": "token"}
    objective = "L = E_x E_{y ~ nu(.|x)} sum_t D(p_T(. | x, y_<t), p(. | x, y_<t)),  nu = stored answers, or fresh ones of teacher or student"
    says_does = (
        (
            "T5 models of 250M to 3B, 390,625 steps on 200,000 prompts",
            "pocket (oracle), a teacher and a student a third of its size, some hundred steps",
        ),
        (
            "the distance is a KL of sequences",
            "the mean over tokens of it, on answers of the first of the two (inferred: sum or mean was not found)",
        ),
    )
    taxonomy = {"sampler": "the teacher, once; with fresh > 0 teacher or student at every step"}
    run_defaults = {
        "model": "pocket-sketch", "task": "sums", "prompts_per_step": 32, "group_size": 1, "learning_rate": 3e-4, "warmup_steps": 100,
        "max_new_tokens": 16, "eval_prompts": 200, "utility": False,
    }  # fmt: skip

    teacher: TeacherWeights = option(TeacherWeights.parse("checkpoint(pocket-copy)"), "whose distribution is learnt")
    oracle: TeacherWeights = option(TeacherWeights.parse("checkpoint(pocket)"), "the truth: measures, never teaches")
    prompts: int = option(500, "distinct training prompts", low=1)
    answers: int = option(1, "stored answers to each prompt", low=1)
    stored_by: str = option("teacher", "who writes the stored answers", choices=("teacher", "oracle"))
    fresh: float = option(0.0, "share of the answers that are written anew at each step", low=0, high=1)
    fresh_by: str = option("student", "who writes those", choices=("student", "teacher"))
    divergence: DivergenceKind = option(DivergenceKind("forward_kl"), "between teacher and student, all outcomes")
    normaliser: Normaliser = option(Normaliser("token"), "by what the loss is divided")
    history: History = field(default_factory=History, compare=False, repr=False)
    cache: dict[str, list[Episode]] = field(default_factory=dict, compare=False, repr=False)
    """Answers that were written once: a function of their keys, so it is no state."""

    def check(self, config: Settings) -> None:
        """Teacher and oracle judge whole distributions."""
        for name in ("teacher", "oracle"):
            if getattr(self, name).name in ("served", "text", "live"):
                raise UserError(f"{name}={getattr(self, name)} has no distribution of its own: take checkpoint(path)")

    def teachers(self) -> Sequence[TeacherWeights]:
        """Both models."""
        return (self.teacher, self.oracle)

    def state(self) -> Mapping[str, Any]:
        """The distances so far."""
        return {"history": self.history}

    def written(
        self, ctx: Context, name: str, by: TeacherWeights, prompts: Sequence[Prompt], size: int, key: int
    ) -> list[Episode]:
        """Answers of a model that are the same whenever they are asked for."""
        if name not in self.cache:
            seed, counted = ctx.domain.config.seed if key == DATA else 0, dict(ctx.domain.generated)
            with ctx.domain.writing_as(by):
                self.cache[name] = flat(ctx.domain.rollout(prompts, size=size, key=(seed, key)))
            ctx.domain.generated.clear()  # data of the run, not rollouts of a step: a resumed run writes them again
            ctx.domain.generated.update(counted)
        return self.cache[name]

    def stored(self, ctx: Context) -> list[Episode]:
        """The data: `answers` of each of `prompts` prompts, in order."""
        prompts = [ctx.task.train(index, ctx.domain.config.seed) for index in range(self.prompts)]
        by = self.teacher if self.stored_by == "teacher" else self.oracle
        return self.written(ctx, "data", by, prompts, self.answers, DATA)

    def collect(self, ctx: Context) -> Sequence[Group]:
        """The step's rows of an epoch's order: stored answers, or fresh ones to the same prompts."""
        count, size = ctx.domain.config.prompts_per_step, self.prompts * self.answers
        picked = []
        for position in range(ctx.stage_step * count, (ctx.stage_step + 1) * count):
            epoch, at = divmod(position, size)
            picked.append(int(rng.permutation(size, "hacking", ctx.domain.config.seed, epoch)[at]))
        anew = ctx.uniform("fresh", range(count)) < self.fresh
        data = self.stored(ctx) if self.fresh < 1 else []
        groups = [Group(data[i].prompt, [data[i]]) for i, own in zip(picked, anew) if not own]
        again = [ctx.task.train(i // self.answers, ctx.domain.config.seed) for i, own in zip(picked, anew) if own]
        if not again:
            return groups
        if self.fresh_by == "student":
            return [*groups, *ctx.domain.rollout(again, size=1)]
        with ctx.domain.writing_as(self.teacher):
            return [*groups, *ctx.domain.rollout(again, size=1)]

    def signal(self, groups: Sequence[Group], ctx: Context) -> Signal:
        """One divergence over all outcomes."""
        rows = flat(groups)
        teacher = ctx.domain.teacher(self.teacher, rows, "plain", [Evidence()] * len(rows))
        return Signal(rows, [Divergence(teacher=teacher, kind=self.divergence, normaliser=self.normaliser)])

    def measures(self, ctx: Context) -> Mapping[str, float]:
        """`proxy`, `golden` and what their history says."""
        held_out = list(ctx.task.held_out(ctx.domain.config.eval_prompts))
        found = {}
        for name, weights in (("proxy", self.teacher), ("golden", self.oracle)):
            rows = self.written(ctx, name, weights, held_out, 1, HELD_OUT)
            reader = ctx.domain.teacher(weights, rows, "plain", [Evidence()] * len(rows))
            asked = DivergenceOf(reader, DivergenceKind("forward_kl"), Support("full"))
            found[name] = float(ctx.domain.score(rows, [asked])[asked].double().mean())
        return found | self.history.add(ctx.step, found["proxy"], found["golden"])
