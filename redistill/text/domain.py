"""The language domain: renders views, samples and judges episodes, measures quantities, evaluates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from redistill.core.budget import tally
from redistill.core.domain import Measured
from redistill.core.episode import Episode, Group
from redistill.core.files import put_folder
from redistill.core.players import Player
from redistill.core.signal import Quantity, Signal, Teacher
from redistill.core.specs import TeacherWeights
from redistill.core.state import Stateful
from redistill.core.task import Prompt, Task, checked_verdict
from redistill.core.teachers import TeacherBank, swapped
from redistill.core.trace import Inspection
from redistill.errors import UserError
from redistill.tasks.worlds import World, WorldTask
from redistill.text import packing
from redistill.text.attention import supports
from redistill.text.checkpointing import recompute_layers, recomputing
from redistill.text.credit import row_facts, temperature_of
from redistill.text.decoder import forget
from redistill.text.described import described
from redistill.text.evaluate import evaluate
from redistill.text.head import StatesAt, TeacherPart, TeacherStates, at_least_float32, measure
from redistill.text.judging import Judge
from redistill.text.models import Head, LanguageModel, compare_tokenizers, load_model, write_model
from redistill.text.pool import AnswerPool
from redistill.text.published import public_name, weights_file, write_beside
from redistill.text.sampling import Sampled, Sampling, attention_windows, sample
from redistill.text.served import Served, ServedTeacher, refuse_unserved
from redistill.text.settings import Settings
from redistill.text.turns import Played, Trajectory, check_template, play, script
from redistill.text.views import VIEWS, WORDINGS, Evidence

TokenIds = tuple[int, ...]
__all__ = ["TextDomain", "Trajectory"]


class TextDomain:
    """Everything the core and the methods may ask of language."""

    def __init__(self, lm: LanguageModel, task: Task, config: Settings) -> None:
        self.lm, self.task, self.config = lm, task, config
        if config.checkpointing:
            recompute_layers(lm)
        for part in lm.module.modules():
            if isinstance(part, nn.Embedding):
                part.padding_idx = None  # else the embedding of that id gets no gradient, and pad is often eos (law 5)
        student = Player(
            "student", lm.module, lm.trainable(), config.learning_rate, config.warmup_steps, config.weight_decay,
            config.beta2, config.grad_clip, published=weights_file(lm), public_name=public_name,
        )  # fmt: skip
        self.players: Mapping[str, Player] = {"student": student}
        self.bank = TeacherBank(student, self._other_model)
        self.wording = WORDINGS[task.wording]
        self.judge = Judge(task)
        self.sampling = Sampling(config.temperature, config.top_p, config.top_k, config.min_p, config.max_new_tokens)
        self.served = Served(
            lm.tokenizer, len(lm.head().weight_VD), config.served_timeout, config.served_tries
        )  # fmt: skip
        self.step = 0
        self.calls = 0
        self.omitted: Counter[str] = Counter()
        self.generated: Counter[str] = Counter()

    def _other_model(self, name: str) -> LanguageModel | ServedTeacher | AnswerPool:
        """A teacher that is another model, a server or a pool of answers. What is compared with the student id by id must
        have its tokens."""
        if name.startswith("served("):
            return self.served.connect(TeacherWeights.parse(name))
        if name.startswith("text("):
            return AnswerPool(TeacherWeights.parse(name).path)
        other = load_model(name, dtype=self.config.dtype)
        compare_tokenizers(self.lm.tokenizer, other.tokenizer)
        own, theirs = (len(lm.head().weight_VD) for lm in (self.lm, other))
        if theirs < own:
            raise UserError(
                f"teacher checkpoint({name}) has {theirs} output rows and the student {own}: it lacks some ids"
            )
        return other

    def answers(self, spec: TeacherWeights, prompt: Prompt) -> Sequence[str]:
        """What a text(pool) teacher wrote to a prompt; empty (and counted) where it wrote nothing."""
        pool = self.bank.others[str(spec)]
        assert isinstance(pool, AnswerPool)
        found = pool.answers(prompt)
        self.omitted["teacher's answer"] += not found
        return found

    # --- views ------------------------------------------------------------------------------------------------------
    def render(self, view: str, prompt: Prompt, evidence: Evidence = Evidence()) -> TokenIds | None:
        """Token ids of a prompt in a view; None when its evidence is missing or it is too long (counted)."""
        messages = VIEWS[view](prompt.content, evidence, self.wording)
        if messages is None:
            return None
        ids = tuple(self.lm.render(messages))
        limit = min(self.config.max_prompt_tokens, self.lm.context - self.config.max_new_tokens)
        if len(ids) > limit:
            self.omitted[view] += 1
            return None
        return ids

    def teacher(self, weights: TeacherWeights, rows: Sequence[Episode], view: str, seen: Sequence[Evidence]) -> Teacher:
        """A teacher that reads each row's prompt in `view` with the row's evidence."""
        rendered = [self.render(view, row.prompt, evidence) for row, evidence in zip(rows, seen)]
        for i, (ids, row) in enumerate(zip(rendered, rows)):
            # Only an episode of several turns can be longer than the room that a view leaves for one response.
            if ids is not None and len(ids) + len(row.trajectory.ids) > self.lm.context:
                self.omitted[view] += 1
                rendered[i] = None
        return Teacher(weights, tuple(rendered))

    def covered(self, teacher: Teacher, rows: Sequence[Episode]) -> Tensor:
        """Steps of the rows whose teacher has a context, bool [N]: the mask of a term with this teacher."""
        return torch.cat(
            [torch.full((row.steps,), context is not None) for row, context in zip(rows, teacher.contexts)]
        )

    # --- episodes ---------------------------------------------------------------------------------------------------
    def begin_step(self, step: int) -> None:
        """A new step: draws are keyed by it."""
        self.step, self.calls = step, 0
        self.omitted.clear()
        self.generated.clear()

    def rollout(
        self,
        prompts: Sequence[Prompt],
        view: str = "plain",
        seen: Sequence[Evidence] | None = None,
        size: int | None = None,
        worlds: Sequence[Callable[[], World]] | None = None,
        key: tuple[int, ...] | None = None,
    ) -> list[Group]:
        """Sample and judge a group of `size` episodes for each prompt under a view. A prompt that cannot be rendered is
        left out and counted; the episodes are to be trained under the view they were sampled under unless re-labelled.
        Draws are keyed by seed, step and call, or by `key` where they shall be the same at any step.
        Prompts of a task that has worlds (or of which `worlds` are given) are played, in turns, to the end."""
        evidence = seen or [Evidence()] * len(prompts)
        rendered = [(i, self.render(view, prompt, e)) for i, (prompt, e) in enumerate(zip(prompts, evidence))]
        kept = [(i, ids) for i, ids in rendered if ids is not None]
        if not kept:
            raise UserError(
                f"no prompt of this step fits in view {view!r}: the limit is max_prompt_tokens={self.config.max_prompt_tokens} "
                f"and the model's context is {self.lm.context} with max_new_tokens={self.config.max_new_tokens}"
            )
        keys = [(*((self.config.seed, self.step, self.calls) if key is None else key), i) for i, _ in kept]
        self.calls += key is None
        if worlds is None and isinstance(self.task, WorldTask):
            worlds = [partial(self.task.world, prompt) for prompt in prompts]
        made = None if worlds is None else [worlds[i] for i, _ in kept]
        asked = [prompts[i] for i, _ in kept]
        sampled = self._sampled(asked, [ids for _, ids in kept], made, size or self.config.group_size, keys)
        texts = [(i, n, asked[i], one.text) for i, row in enumerate(sampled) for n, one in enumerate(row)]
        self.judge.together([] if made is not None else texts)
        groups = []
        for place, ((_, ids), key, answers) in enumerate(zip(kept, keys, sampled)):
            prompt = asked[place]
            rows = [self._episode(prompt, ids, one, view, (*key, n), (place, n)) for n, one in enumerate(answers)]
            groups.append(Group(prompt, rows))
        self.judge.done()
        tally(self.generated, groups)
        return groups

    def _sampled(
        self, prompts: Sequence[Prompt], contexts: Sequence[TokenIds], worlds: Sequence[Callable[[], World]] | None,
        size: int, keys: Sequence[tuple[int, ...]],
    ) -> Sequence[Sequence[Sampled | Played]]:  # fmt: skip
        if worlds is None:
            with self.judge.beside(prompts) as finished:
                return sample(
                    self.lm, contexts, group_size=size, sampling=self.sampling, keys=keys,
                    max_batch=self.config.sample_batch, on_finished=finished,
                )  # fmt: skip
        check_template(self.lm.name, self.lm.tokenizer, self.config.history)
        return play(
            self.lm, contexts, worlds, group_size=size, sampling=self.sampling, keys=keys,
            max_turns=self.config.max_turns, max_batch=self.config.sample_batch,
        )  # fmt: skip

    def _episode(
        self, prompt: Prompt, context: TokenIds, one: Sampled | Played, view: str, key: tuple[int, ...],
        place: tuple[int, int],
    ) -> Episode:  # fmt: skip
        if isinstance(one, Played):
            trajectory, verdict = one.trajectory, one.verdict
        else:
            trajectory = Trajectory(one.ids, ((0, len(one.ids)),))
            verdict = self.judge.verdict(*place, prompt, one.text)
        return Episode(
            prompt=prompt, context=context, trajectory=trajectory, steps=len(one.logp_T), text=one.text,
            behaviour_logp_T=one.logp_T, sampling=self.sampling, sampled_under=view, trained_under=view,
            finish=one.finish, key=key, verdict=checked_verdict(self.task, prompt, verdict),
        )  # fmt: skip

    @contextmanager
    def writing_as(self, weights: TeacherWeights) -> Iterator[None]:
        """Inside the block rollouts are written by a teacher, with its own log-probs as behaviour. UserError for a mixture,
        which has no weights of its own to sample from."""
        parts = self.bank.parts(weights)
        if len(parts) != 1:
            raise UserError(f"teacher={weights} is a mixture of two models: it can judge answers, not write them")
        student = self.lm
        other = parts[0].module
        try:
            with swapped(self.players["student"].tensors, parts[0].copy):
                self.lm = other if isinstance(other, LanguageModel) else student
                yield
        finally:
            self.lm = student

    def written(
        self, prompt: Prompt, text: str, view: str = "plain", evidence: Evidence = Evidence(), judged: bool = True
    ) -> Episode | None:
        """An episode that was written, not sampled (a reference solution): `text` and EOS, without behaviour log-probs; for
        a task with worlds, one action a line, played. None when the view cannot be rendered or the text does not fit in
        max_new_tokens (counted). `judged` False for what is no answer of the task's (a critique)."""
        context = self.render(view, prompt, evidence)
        if judged and isinstance(self.task, WorldTask):
            return self._scripted(prompt, context, text, view)
        ids = (*self.lm.tokenizer.encode(text, add_special_tokens=False), self.lm.eos_ids[0])
        if len(ids) > self.config.max_new_tokens:
            self.omitted["solution"] += 1
        if context is None or len(ids) > self.config.max_new_tokens:
            return None
        verdict = checked_verdict(self.task, prompt, self.task.verify(prompt, text)) if judged else None
        return Episode(
            prompt=prompt, context=context, trajectory=Trajectory(ids, ((0, len(ids)),)), steps=len(ids), text=text,
            sampled_under="written", trained_under=view, verdict=verdict,
        )  # fmt: skip

    def _scripted(self, prompt: Prompt, context: TokenIds | None, text: str, view: str) -> Episode | None:
        """A written episode of several turns."""
        assert isinstance(self.task, WorldTask)
        played = None if context is None else script(self.lm, context, self.task.world(prompt), text.split("\n"))
        if context is None or played is None:
            self.omitted["solution"] += context is not None
            return None
        steps = sum(high - low for low, high in played.trajectory.spans)
        return Episode(
            prompt=prompt, context=context, trajectory=played.trajectory, steps=steps, text=played.text,
            sampled_under="written", trained_under=view, finish=played.finish,
            verdict=checked_verdict(self.task, prompt, played.verdict),
        )  # fmt: skip

    # --- measuring --------------------------------------------------------------------------------------------------
    def pieces(self, rows: Sequence[Episode], contexts: Sequence[Any] | None = None) -> list[packing.Piece]:
        """Rows as pieces to pack, under their own context or under given ones; rows without a context are left out."""
        under = [row.context for row in rows] if contexts is None else contexts
        return [
            packing.Piece(i, context, row.trajectory.ids, row.trajectory.spans)
            for i, (row, context) in enumerate(zip(rows, under))
            if context is not None
        ]

    def micro_batches(self, signal: Signal) -> Iterator[Sequence[int]]:
        """Rows that some term covers, in pieces of at most micro_batch_tokens tokens."""
        covers = [True] * len(signal.rows)
        if all(term.mask_N is not None for term in signal.terms):
            for row, at_n in enumerate(torch.arange(sum(signal.lengths)).split(signal.lengths)):
                covers[row] = any(bool(term.mask_N[at_n].any()) for term in signal.terms if term.mask_N is not None)
        forget(self.lm)
        pieces = [piece for piece in self.pieces(signal.rows) if covers[piece.row]]
        yield from packing.micro_batches(pieces, self.config.micro_batch_tokens)

    def measure(self, signal: Signal, rows: Sequence[int], quantities: Sequence[Quantity]) -> Measured:
        """One forward of the student (with gradient) and one of each teacher (without) over the rows; then the head."""
        hidden_nD, packed, warm, teachers = self._states(signal, rows, quantities)
        return Measured(measure(hidden_nD, self.lm.head(), packed.target_n, warm, teachers, quantities, adding=True))

    def _states(
        self, signal: Signal, rows: Sequence[int], quantities: Sequence[Quantity]
    ) -> tuple[Tensor, packing.Line | packing.Packed, Tensor, dict[Teacher, StatesAt]]:
        """(the student's hidden states [n, D], their layout, temperatures [n], each teacher's states) at the rows' steps."""
        episodes = [signal.rows[row] for row in rows]
        teachers: dict[Teacher, StatesAt] = {}
        for quantity in quantities:
            refuse_unserved(quantity)
            teacher: Teacher | None = getattr(quantity, "teacher", None)
            if teacher is not None and teacher not in teachers:
                contexts = [teacher.contexts[row] for row in rows]
                teachers[teacher] = self._teacher_states(teacher.weights, episodes, contexts)
        hidden_nD, packed = _hidden(self.lm, self.pieces(episodes))
        warm = hidden_nD.new_tensor([temperature_of(episodes[row]) for row in packed.row_n.tolist()])
        return hidden_nD, packed, warm, teachers

    @torch.no_grad()
    def inspect(self, signal: Signal, quantities: Sequence[Quantity], k: int) -> Inspection:
        """Quantities at the steps of a signal of one row, and what the viewer shows of it (core/trace.py)."""
        hidden_TD, packed, warm_T, teachers = self._states(signal, [0], quantities)
        values = measure(hidden_TD, self.lm.head(), packed.target_n, warm_T, teachers, quantities)
        return Inspection(values, [row_facts(self.lm, signal.rows[0], hidden_TD, teachers, values, k)])

    @torch.no_grad()
    def score(self, rows: Sequence[Episode], quantities: Sequence[Quantity]) -> Mapping[Quantity, Tensor]:
        """Measure without gradient over any number of rows [N] (gates and weights that a method computes beforehand)."""
        signal = Signal(rows, [])
        found: dict[Quantity, list[Tensor]] = {quantity: [] for quantity in quantities}
        for batch in packing.micro_batches(self.pieces(rows), self.config.micro_batch_tokens):
            values = self.measure(signal, batch, quantities).values
            for quantity in quantities:
                found[quantity].append(values[quantity])
        return {quantity: torch.cat(pieces) if pieces else torch.zeros(0) for quantity, pieces in found.items()}

    @torch.no_grad()
    def _teacher_states(self, weights: TeacherWeights, rows: Sequence[Episode], contexts: Sequence[Any]) -> StatesAt:
        pieces = self.pieces(rows, contexts)
        steps = [row.steps for row in rows]
        if weights.name == "served":
            return self.served.states(weights, pieces, steps)
        valid_n = torch.cat([torch.full((n,), context is not None) for n, context in zip(steps, contexts)])
        parts = []
        for part in self.bank.parts(weights):
            lm = part.module if isinstance(part.module, LanguageModel) else self.lm
            with swapped(self.players["student"].tensors, part.copy):
                head = _narrowed(lm.head().detached(), len(self.lm.head().weight_VD))
                states_nD = torch.zeros(len(valid_n), head.weight_VD.shape[1], dtype=head.weight_VD.dtype)
                if pieces:
                    states_nD[valid_n] = _hidden(lm, pieces)[0]
            parts.append(TeacherPart(part.share, states_nD, head))
        return TeacherStates(parts, valid_n)

    # --- the rest of the contract -----------------------------------------------------------------------------------
    def evaluate(self, label: str) -> Mapping[str, Any]:
        """Held-out accuracy (and teacher utility); see text/evaluate.py."""
        return evaluate(self.lm, self.task, self.config, detailed=label == "saved")

    def describe(self, groups: Sequence[Group], signals: Sequence[Signal]) -> str:
        """What the first row's student and its teachers read, as the model reads it."""
        return described(signals, self.lm.tokenizer)

    def facts(self) -> Mapping[str, Any]:
        """Where the weights came from."""
        return {
            "model": dict(self.lm.source),
            "dtype": str(self.lm.dtype),
            "trainable": sum(p.numel() for p in self.lm.trainable().values()),
        }

    def stateful(self) -> Mapping[str, Stateful]:
        """Language has no evolving parts beside players and teachers, since every draw is keyed; a served teacher is remembered,
        so that a resumed run does not go on with another."""
        return {"served": self.served} if self.served.known else {}

    def write_beside(self, folder: Path) -> None:
        """Make a checkpoint's folder one that transformers (or peft) can read."""
        write_beside(self.lm, folder)

    def save(self, folder: Path) -> None:
        """Save as ordinary transformers files."""
        put_folder(folder, lambda temporary: write_model(self.lm, temporary))


def _narrowed(head: Head, rows: int) -> Head:
    """A teacher's head without the padding rows that it has beyond the student's (vocabularies are padded unlike)."""
    if len(head.weight_VD) == rows:
        return head
    bias_V = None if head.bias_V is None else head.bias_V[:rows]
    return replace(head, weight_VD=head.weight_VD[:rows], bias_V=bias_V)


def _hidden(lm: LanguageModel, pieces: Sequence[packing.Piece]) -> tuple[Tensor, packing.Line | packing.Packed]:
    """Hidden states [n, D] that predict the steps of the pieces, and how these were laid out."""
    if supports(lm.causal):
        line = packing.line(pieces)
        with recomputing(lm.causal):
            output = lm.hidden(line.ids_1T, position_ids=line.position_1T, layout=line.layout)
        return at_least_float32(output.last_hidden_state[0][line.predict_n]), line
    packed = packing.pack(pieces)
    mask = packing.windowed(packed.mask_B1TT, packed.position_BT, attention_windows(lm.causal.config))
    with recomputing(lm.causal):
        output = lm.hidden(packed.ids_BT, attention_mask=mask, position_ids=packed.position_BT)
    return at_least_float32(output.last_hidden_state.flatten(0, 1)[packed.predict_n]), packed
