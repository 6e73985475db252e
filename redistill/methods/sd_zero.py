"""SD-Zero: learn to revise from right/wrong alone, then distil the reviser, who has read the attempt, into the generator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from redistill.core.episode import Episode, Group, flat
from redistill.core.method import Context, Method, Stage, register
from redistill.core.options import option
from redistill.core.signal import Signal, Teacher
from redistill.core.specs import DivergenceKind, Normaliser, Support, TeacherWeights
from redistill.core.stores import Store
from redistill.core.task import Prompt
from redistill.errors import UserError
from redistill.objectives.terms import Divergence, Likelihood
from redistill.text.settings import Settings
from redistill.text.splice import encoded, row_of, sampled_under, spliced, without_end


@register
@dataclass(frozen=True)
class SDZero(Method):
    """Phase 1 (self-revision training): sample an answer, append a control phrase that says whether it was right, sample
    revisions, keep the right ones, and train on both the revision and the whole. Phase 2: freeze that model; the student answers
    on-policy and is distilled towards what the frozen one would write after reading the answer and the phrase.

    Answer and phrase stand inside one assistant turn, as in training; the answer's own end token is taken out. Stages: `gather`
    makes the store of traces, `srt` trains on it, `sd-zero` distils. The teacher is the model at the start of its stage
    (frozen); `teacher=sync(n)` renews it every n updates, the paper's iterated variant.
    """

    slug = "sd-zero"
    title = "Self-distillation zero: self-revision turns binary rewards into dense supervision"
    paper = "arXiv 2604.12002"
    axes = {"signal": "outcome+self-play", "access": "self", "granularity": "token"}
    objective = (
        "phase 1: L = -log p(y_rev | x, y, P_r) - log p([y; P_r; y_rev] | x) over right revisions; "
        "phase 2: L = (1/N) sum_t KL(p(. | x, y_<t) || sg p_SRT(. | x, y, P_r, y_<t)),  r = verifier(y)"
    )
    says_does = (
        ("sum over tokens", "aggregation not stated; here a token mean over the batch"),
        ("top-64 with the mass outside kept", "whose top-64 is not stated; here the student's with one tail bucket"),
        ("training at T 0.7, limit 16k", "its table: T 1.0 and 8192 in phase 2; the table is used"),
        ("about half of the traces start from a wrong answer", "no rule given; here balance=true drops the surplus kind"),
    )  # fmt: skip
    run_defaults = {
        "prompts_per_step": 128, "group_size": 1, "learning_rate": 5e-6, "warmup_steps": 20, "weight_decay": 0.01,
    }  # fmt: skip

    phases: str = option(
        "both", "both, self-revision training alone, or distillation alone", choices=("both", "srt", "distil")
    )
    gather_steps: int = option(79, "steps of gathering (the paper: 10k questions in 128 a step)", low=1)
    revisions: int = option(3, "revisions sampled for each answer", low=1)
    gather_temperature: float = option(0.7, "sampling temperature of answers and revisions in phase 1", above=0)
    filtered: bool = option(True, "keep right revisions only (the paper: unfiltered ones hurt)")
    balance: bool = option(True, "as many traces that start wrong as that start right")
    srt_steps: int = option(
        4500, "updates of self-revision training (the paper: 3 epochs of 6k traces, 4 a batch)", low=1
    )
    srt_batch: int = option(4, "traces in each of them", low=1)
    parts: str = option(
        "both", "what a trace trains: revision, whole generation, or both", choices=("both", "revision", "generation")
    )
    divergence: DivergenceKind = option(
        DivergenceKind("reverse_kl"), "reviser against generator; reverse_kl is the paper's"
    )
    support: Support = option(Support("top_k", 64), "student's top-k with a tail, or full")
    teacher: TeacherWeights = option(TeacherWeights("frozen"), "the reviser: frozen after phase 1, or sync(n)")
    phrase: str = option(
        "own",
        "the phrase of the answer's own correctness, of its opposite, or always `redo`",
        choices=("own", "flipped", "redo"),
    )
    wrong_context: bool = option(False, "control: the reviser reads another prompt's question and answer")
    store: Store = field(default_factory=Store, repr=False, compare=False)

    def check(self, config: Settings) -> None:
        """The reviser reads the answer twice over."""
        if self.phases == "srt" and self.wrong_context:
            raise UserError("wrong_context=true has no meaning with phases=srt: nothing is distilled")

    def teachers(self) -> Sequence[TeacherWeights]:
        """The reviser."""
        return () if self.phases == "srt" else (self.teacher,)

    def stages(self) -> Sequence[Stage]:
        """Gather, train on revisions, distil (or the ablations that leave phases out)."""
        train = [Stage("gather", Gather(self), self.gather_steps), Stage("srt", Revise(self), self.srt_steps)]
        return {"both": [*train, Stage(self.slug, self)], "srt": train, "distil": [Stage(self.slug, self)]}[self.phases]

    def state(self) -> Mapping[str, Any]:
        """The traces."""
        return {} if self.phases == "distil" else {"store": self.store}

    def said(self, row: Episode, ctx: Context) -> str:
        """P_r: what is put after an answer."""
        right = (row.reward >= ctx.task.reward_range[1]) != (self.phrase == "flipped")
        wording = ctx.domain.wording
        return str(wording.rephrase if right and self.phrase != "redo" else wording.redo)

    def reviser(self, rows: Sequence[Episode], ctx: Context) -> Teacher:
        """[x][y][P_r] for each row; None where y and P_r leave no room for y again."""
        room = ctx.domain.lm.context
        contexts = [spliced(ctx.domain, row, self.said(row, ctx)) for row in rows]
        if self.wrong_context:
            contexts = [*contexts[1:], contexts[0]]
        fits = [len(ids) + len(row.trajectory.ids) <= room for ids, row in zip(contexts, rows)]
        ctx.domain.omitted["reviser"] += sum(not fit for fit in fits)
        return Teacher(self.teacher, tuple(ids if fit else None for ids, fit in zip(contexts, fits)))

    def signal(self, groups: Sequence[Group], ctx: Context) -> Signal:
        """Phase 2: one divergence term over all tokens of right and wrong answers."""
        rows = flat(groups)
        teacher = self.reviser(rows, ctx)
        term = Divergence(
            teacher=teacher, kind=self.divergence, support=self.support, normaliser=Normaliser("token"),
            mask_N=ctx.domain.covered(teacher, rows),
        )  # fmt: skip
        return Signal(rows, [term])


@dataclass(frozen=True)
class Gather(Method):
    """Answers, and revisions of each after its phrase; the right ones are kept."""

    of: SDZero
    slug = "sd-zero-gather"

    def collect(self, ctx: Context) -> Sequence[Group]:
        """One answer a question, its revisions, and what is kept of them."""
        own, prompts = self.of, ctx.next_prompts()
        first = sampled_under(
            ctx.domain,
            prompts,
            [ctx.domain.render("plain", p) for p in prompts],
            "plain",
            temperature=own.gather_temperature,
        )
        rows = flat(first)
        contexts = [spliced(ctx.domain, row, own.said(row, ctx)) for row in rows]
        revised = sampled_under(
            ctx.domain,
            [row.prompt for row in rows],
            contexts,
            "revision",
            size=own.revisions,
            temperature=own.gather_temperature,
        )
        best = ctx.task.reward_range[1]
        for row, group in zip(rows, revised):
            for revision in group:
                if revision.reward >= best or not own.filtered:
                    own.store.add({
                        "prompt": asdict(row.prompt), "right": row.reward >= best, "context_ids": row.context,
                        "attempt_ids": without_end(ctx.domain, row.trajectory.ids),
                        "phrase_ids": encoded(ctx.domain, own.said(row, ctx)), "revision_ids": revision.trajectory.ids,
                    })  # fmt: skip
        made = flat(revised)
        ctx.log("right_first", sum(row.reward >= best for row in rows) / max(1, len(rows)))
        ctx.log("right_revised", sum(row.reward >= best for row in made) / max(1, len(made)))
        ctx.log("kept", len(own.store))
        return revised

    def signal(self, groups: Sequence[Group], ctx: Context) -> Sequence[Signal]:
        """Nothing is trained."""
        return []


@dataclass(frozen=True)
class Revise(Method):
    """Self-revision training on the kept traces."""

    of: SDZero
    slug = "sd-zero-srt"

    def enter(self, ctx: Context) -> None:
        """Balance the store: the kind of trace that there are more of is cut to the other's number."""
        kinds = [[i for i, r in enumerate(self.of.store.records) if r["right"] == right] for right in (True, False)]
        if self.of.balance and all(kinds):
            size = min(map(len, kinds))
            self.of.store.keep(sorted([*kinds[0][:size], *kinds[1][:size]]))

    def collect(self, ctx: Context) -> Sequence[Group]:
        """The step's traces, each as one or two rows: the revision after its context, the whole after the question."""
        if not self.of.store.records:
            raise UserError("sd-zero gathered no trace: no revision was right, so there is nothing to train phase 1 on")
        groups = []
        for index in self.of.store.batch(ctx.stage_step, self.of.srt_batch, ctx.domain.config.seed):
            kept = self.of.store.records[index]
            prompt, before = Prompt(**kept["prompt"]), (*kept["attempt_ids"], *kept["phrase_ids"])
            whole, revision = (*before, *kept["revision_ids"]), kept["revision_ids"]
            rows = []
            if self.of.parts != "generation":
                rows.append(row_of(prompt, (*kept["context_ids"], *before), revision, "revision", key=(index,)))
            if self.of.parts != "revision":
                rows.append(row_of(prompt, kept["context_ids"], whole, "plain", key=(index,)))
            groups.append(Group(prompt, rows))
        return groups

    def signal(self, groups: Sequence[Group], ctx: Context) -> Signal:
        """L_revision + L_generation, by token."""
        return Signal(flat(groups), [Likelihood()])
