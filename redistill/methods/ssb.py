"""SSB: the base model writes a robust solution after seeing a right and a wrong attempt of its own; its logits are distilled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from redistill.core.episode import Episode, Group, flat
from redistill.core.method import Context, Method, Stage, register
from redistill.core.options import option
from redistill.core.signal import Signal, Teacher, Term
from redistill.core.specs import DivergenceKind, Normaliser, TeacherWeights
from redistill.core.stores import Store
from redistill.core.task import Prompt
from redistill.errors import UserError
from redistill.objectives.terms import Divergence, Likelihood
from redistill.text.settings import Settings
from redistill.text.splice import encoded, row_of, sampled_under, without_end
from redistill.text.views import Evidence


def exemplars(answers: Sequence[str | None], right: Sequence[bool], draw: float) -> tuple[int, int] | None:
    """(index of the right rollout, index of the wrong one) to show, or None: the first right one, and the first that gives
    the most common wrong answer, or a random distinct one (`draw` in [0, 1)) when none occurs twice. An answer of None could
    not be read and is never the wrong exemplar."""
    wrong = Counter(answer for answer, yes in zip(answers, right) if answer is not None and not yes)
    if not wrong or not any(right):
        return None
    common, times = wrong.most_common(1)[0]
    chosen = common if times > 1 else list(wrong)[int(draw * len(wrong))]
    is_wrong = [answer == chosen and not yes for answer, yes in zip(answers, right)]
    return list(right).index(True), is_wrong.index(True)


@register
@dataclass(frozen=True)
class SSB(Method):
    """Show the base model one correct and one typical wrong attempt of its own, let it write a robust solution, keep it if it is
    still correct, and distil the distribution it had under that hinted prompt into the same model given the question alone.

    Stage `gather` makes the store of kept solutions (no training), stage `ssb` trains on it, `batch` of them a step, every one
    once an epoch: the paper's 3 epochs of 256 are 192 steps. The teacher is recomputed, never stored.
    """

    slug = "ssb"
    title = "Semantic soft bootstrapping"
    paper = "arXiv 2512.05105"
    axes = {"signal": "self-play", "access": "self", "granularity": "token"}
    objective = (
        "L = a T^2 (1/N) sum_t KL(softmax(u_t / T) || softmax(z_t / T)) + b CE,  u = base model given question, right and wrong attempt, "
        "z = student given the question, on the base model's robust solution"
    )
    says_does = (
        ("student reads the question", "released: without the chat template (student_prompt=raw), unlike the teacher; here with it"),
        ("the reply is distilled", "released: without its end-of-sequence token (end=false), so stopping is not taught; here with it"),
        ("learning rate falls linearly (inferred)", "constant here"),
    )  # fmt: skip
    run_defaults = {
        "prompts_per_step": 8, "group_size": 4, "temperature": 0.8, "top_k": 50, "learning_rate": 2e-4, "lora_rank": 32,
        "lora_alpha": 32, "steps": 192,
    }  # fmt: skip

    pairs: int = option(256, "kept solutions at which gathering ends", low=1)
    gather_steps: int = option(1000, "most steps of gathering", low=1)
    batch: int = option(4, "kept solutions in a training step", low=1)
    kd_weight: float = option(1.0, "weight of the divergence", low=0)
    ce_weight: float = option(
        0.0, "weight of the likelihood of the same replies (1 with kd_weight=0: SFT on them)", low=0
    )
    loss_temperature: float = option(2.0, "T, divides both logits; the divergence is multiplied by its square", above=0)
    reply_temperature: float = option(0.4, "sampling temperature of the robust solution", low=0)
    teacher: TeacherWeights = option(TeacherWeights("frozen"), "whose weights read the two attempts")
    student_prompt: str = option("chat", "the question in the chat template, or its bare text", choices=("chat", "raw"))
    end: bool = option(True, "the end-of-sequence token belongs to the reply")
    wrong_context: bool = option(False, "control: the teacher reads another kept question's prompt")
    store: Store = field(default_factory=Store, repr=False, compare=False)

    def check(self, config: Settings) -> None:
        """A pair needs two rollouts, and something has to be learnt."""
        if config.group_size < 2:
            raise UserError(f"group_size={config.group_size} cannot hold a right and a wrong rollout: it must be >= 2")
        if not self.kd_weight and not self.ce_weight:
            raise UserError("kd_weight=0 with ce_weight=0 teaches nothing: set one of them")

    def teachers(self) -> Sequence[TeacherWeights]:
        """The one teacher."""
        return (self.teacher,)

    def utility_view(self) -> str | None:
        """The teacher's view."""
        return "contrast"

    def stages(self) -> Sequence[Stage]:
        """Gather, then distil."""
        return (Stage("gather", Gather(self), self.gather_steps), Stage(self.slug, self))

    def state(self) -> Mapping[str, Any]:
        """The kept solutions."""
        return {"store": self.store}

    def remember(self, robust: Episode, ctx: Context) -> None:
        """Keep a robust solution: what its student and its teacher read, and its tokens."""
        prompt, ids = robust.prompt, robust.trajectory.ids
        bare = encoded(ctx.domain, " ".join(message["content"] for message in prompt.content))
        self.store.add({
            "prompt": asdict(prompt), "text": robust.text, "teacher_ids": robust.context,
            "student_ids": bare if self.student_prompt == "raw" else ctx.domain.render("plain", prompt),
            "response_ids": ids if self.end else without_end(ctx.domain, ids),
        })  # fmt: skip

    def collect(self, ctx: Context) -> Sequence[Group]:
        """The step's batch of kept solutions."""
        if not self.store.records:
            raise UserError(
                f"ssb gathered no solution in {self.gather_steps} steps: it needs questions with right and wrong answers among "
                "group_size, and a model that answers rightly when shown both"
            )
        rows = []
        for index in self.store.batch(ctx.stage_step, self.batch, ctx.domain.config.seed):
            kept = self.store.records[index]
            rows.append(
                row_of(
                    Prompt(**kept["prompt"]), kept["student_ids"], kept["response_ids"], "plain", kept["text"], (index,)
                )
            )
        return [Group(row.prompt, [row]) for row in rows]

    def signal(self, groups: Sequence[Group], ctx: Context) -> Signal:
        """Forward KL from the hinted base model at T, and the likelihood where asked for."""
        rows, count = flat(groups), len(self.store)
        shift = int(self.wrong_context)
        contexts = [self.store.records[(row.key[0] + shift) % count]["teacher_ids"] for row in rows]
        terms: list[Term] = []
        if self.kd_weight:
            terms.append(
                Divergence(
                    coefficient=self.kd_weight * self.loss_temperature**2, teacher=Teacher(self.teacher, tuple(contexts)),
                    kind=DivergenceKind("forward_kl"), temperature=self.loss_temperature, normaliser=Normaliser("token"),
                )
            )  # fmt: skip
        if self.ce_weight:
            terms.append(Likelihood(coefficient=self.ce_weight))
        return Signal(rows, terms)


@dataclass(frozen=True)
class Gather(Method):
    """SSB's first stage: rollouts, exemplars, robust solutions, and what is kept of them."""

    of: SSB
    slug = "ssb-gather"

    def collect(self, ctx: Context) -> Sequence[Group]:
        """Rollouts of the step's prompts, and a robust solution for each that has both kinds of answer."""
        groups: Sequence[Group] = ctx.domain.rollout(ctx.next_prompts())
        draws = ctx.uniform("exemplar", range(len(groups)))
        contexts = [self.hinted(group, float(draw), ctx) for group, draw in zip(groups, draws)]
        mixed = sum(context is not None for context in contexts)
        robust = sampled_under(
            ctx.domain, [group.prompt for group in groups], contexts, "contrast", temperature=self.of.reply_temperature
        )
        kept = [row for row in flat(robust) if row.reward >= ctx.task.reward_range[1]]
        for row in kept[: self.of.pairs - len(self.of.store)]:
            self.of.remember(row, ctx)
        ctx.log("mixed", mixed / max(1, len(groups)))
        ctx.log("right_when_shown_both", len(kept) / max(1, mixed))
        ctx.log("kept", len(self.of.store))
        return groups

    def hinted(self, group: Group, draw: float, ctx: Context) -> tuple[int, ...] | None:
        """The prompt with the two exemplars; None where there are none, or where it does not fit."""
        answers = [None if row.verdict is None else row.verdict.answer for row in group]
        right = [row.reward >= ctx.task.reward_range[1] for row in group]
        found = exemplars(answers, right, draw)
        if found is None:
            return None
        good, bad = (group.episodes[i].text for i in found)
        context: tuple[int, ...] | None = ctx.domain.render(
            "contrast", group.prompt, Evidence(solution=good, attempt=bad)
        )
        return context

    def signal(self, groups: Sequence[Group], ctx: Context) -> Sequence[Signal]:
        """Nothing is trained."""
        return []

    def done(self, groups: Sequence[Group], ctx: Context) -> bool:
        """The store is full."""
        return len(self.of.store) >= self.of.pairs
