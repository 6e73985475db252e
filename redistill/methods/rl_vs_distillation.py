"""RL against distillation: imitation of right answers of a chosen writer to questions of a chosen difficulty, accuracy and capability apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from redistill.core.episode import Episode, Group, flat
from redistill.core.method import Context, Method, Stage, register
from redistill.core.options import option
from redistill.core.signal import Signal
from redistill.core.specs import Normaliser, TeacherWeights
from redistill.core.stores import Store
from redistill.core.task import Prompt
from redistill.errors import UserError
from redistill.objectives.terms import Likelihood
from redistill.text.settings import Settings
from redistill.text.splice import row_of


@register
@dataclass(frozen=True)
class RLvsDistillation(Method):
    """A measurement of what training changes: accuracy (pass@1) and capability (pass@k at a large k) apart, by the difficulty
    that a question had for the base model. RL and distillation of known patterns raise the first by way of the easier questions;
    new knowledge raises both. `redistill eval -k 64` measures it on any model, `redistill reproduce rl-vs-distillation` the paper's five.

    The method itself makes the distilled ones: it gathers right answers of a writer to training questions and maximises their
    likelihood. `writer=frozen` is the base on its own right answers (M_self), `checkpoint(an RL model)` M_RLdist, `none` the reference
    solutions, a teacher that knows everything: with `questions=solved` only of questions the base can solve (M_reason), with `all`
    (M_know) of the others too. All sets have the same size.
    """

    slug = "rl-vs-distillation"
    title = "RL against distillation: accuracy and capability apart"
    paper = "arXiv 2505.14216"
    axes = {"signal": "text", "access": "black-box", "granularity": "token"}
    objective = "L = - (1/N) sum_t log p(y_t | x, y_<t),  y right and of the writer;  Acc = mean_i p_i,  Cap_k = mean_i 1 - (1 - p_i)^k"
    says_does = (
        (
            "Cap_k is the share of questions solved in k = 256 samples",
            "the same at the k of `eval_samples`, and the unbiased estimator for smaller k",
        ),
        (
            "the model with new knowledge is DeepSeek-R1's public distillation",
            "the same imitation as the others', of reference solutions to questions that the base cannot solve too",
        ),
    )
    taxonomy = {"sampler": "the writer, once"}
    run_defaults = {
        "learning_rate": 1e-4, "warmup_steps": 25, "weight_decay": 1e-4, "prompts_per_step": 32, "group_size": 1, "utility": False,
    }  # fmt: skip

    writer: TeacherWeights | None = option(
        TeacherWeights("frozen"),
        "who writes: frozen (the base itself), checkpoint(path), or none for the reference solutions",
    )
    questions: str = option(
        "all", "which questions, by whether the base solves them", choices=("all", "solved", "unsolved")
    )
    tries: int = option(16, "samples of the base that tell whether it solves a question", low=1)
    writes: int = option(8, "answers of the writer to a question, of which one right one is kept", low=1)
    size: int = option(512, "answers to train on", low=1)
    gather_steps: int = option(200, "most steps spent gathering them", low=1)
    normaliser: Normaliser = option(Normaliser("token"), "by what the loss is divided")
    store: Store = field(default_factory=Store, compare=False, repr=False)

    def check(self, config: Settings) -> None:
        """The base can write and be tried; a writer has weights."""
        if self.writer is not None and self.writer.name in ("served", "text", "live"):
            raise UserError(f"writer={self.writer} cannot write here: take frozen, checkpoint(path) or none")

    def teachers(self) -> Sequence[TeacherWeights]:
        """The base, which tells what can be solved, and the writer."""
        return (TeacherWeights("frozen"), *((self.writer,) if self.writer is not None else ()))

    def stages(self) -> Sequence[Stage]:
        """Gather, then imitate."""
        return (Stage("gather", Gather(self), self.gather_steps), Stage(self.slug, self))

    def state(self) -> Mapping[str, Any]:
        """The answers to train on."""
        return {"store": self.store}

    def collect(self, ctx: Context) -> Sequence[Group]:
        """The step's batch of kept answers."""
        if not self.store.records:
            raise UserError(
                f"rl-vs-distillation gathered no right answer in {self.gather_steps} steps (questions={self.questions}): "
                "more tries, writes or gather_steps, or another writer"
            )
        rows = []
        for index in self.store.batch(ctx.stage_step, ctx.domain.config.prompts_per_step, ctx.domain.config.seed):
            kept = self.store.records[index]
            rows.append(
                row_of(
                    Prompt(**kept["prompt"]), kept["prompt_ids"], kept["answer_ids"], "plain", kept["text"], (index,)
                )
            )
        return [Group(row.prompt, [row]) for row in rows]

    def signal(self, groups: Sequence[Group], ctx: Context) -> Signal:
        """Likelihood of the answers."""
        return Signal(flat(groups), [Likelihood(normaliser=self.normaliser)])


@dataclass(frozen=True)
class Gather(Method):
    """The first stage: questions of the wanted kind, and a right answer of the writer to each."""

    of: RLvsDistillation
    slug = "rl-vs-distillation-gather"

    def wanted(self, prompts: Sequence[Prompt], ctx: Context) -> list[Prompt]:
        """Those that the base solves, or does not, in `tries` samples; all where that does not matter."""
        if self.of.questions == "all":
            return list(prompts)
        best = ctx.task.reward_range[1]
        tried = ctx.domain.rollout(
            prompts, size=self.of.tries
        )  # the student is the base still: nothing has been trained
        return [group.prompt for group in tried if (group.pass_rate(best) > 0) == (self.of.questions == "solved")]

    def answers(self, prompts: Sequence[Prompt], ctx: Context) -> list[Episode]:
        """One right answer of the writer to each question that it can answer."""
        best = ctx.task.reward_range[1]
        if self.of.writer is None:
            if any(prompt.solution is None for prompt in prompts):
                raise UserError(f"writer=none needs reference solutions, and task {ctx.task.name!r} has none")
            written = [ctx.domain.written(prompt, prompt.solution) for prompt in prompts]
            return [row for row in written if row is not None and row.reward >= best]
        with ctx.domain.writing_as(self.of.writer):
            groups = ctx.domain.rollout(prompts, size=self.of.writes) if prompts else []
        return [group.successes(best)[0] for group in groups if not group.all_failed(best)]

    def collect(self, ctx: Context) -> Sequence[Group]:
        """Keep what the step's questions give, up to `size`."""
        rows = self.answers(self.wanted(ctx.next_prompts(), ctx), ctx)
        for row in rows[: self.of.size - len(self.of.store)]:
            self.of.store.add({
                "prompt": asdict(row.prompt), "text": row.text, "prompt_ids": ctx.domain.render("plain", row.prompt),
                "answer_ids": row.trajectory.ids,
            })  # fmt: skip
        ctx.log("kept", len(self.of.store))
        return [Group(row.prompt, [row]) for row in rows]

    def signal(self, groups: Sequence[Group], ctx: Context) -> Sequence[Signal]:
        """Nothing is trained yet."""
        return []

    def done(self, groups: Sequence[Group], ctx: Context) -> bool:
        """Enough."""
        return len(self.of.store) >= self.of.size
