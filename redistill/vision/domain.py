"""The vision domain: reads images, labels or samples episodes, measures quantities, evaluates.

A row's context is (image, down, right): an index into the task's images and a shift in pixels. Its trajectory is a
label and its one step the prediction of it. A stored teacher's context is a distribution itself: log-probs [V].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redistill.core import rng
from redistill.core.budget import tally
from redistill.core.domain import Measured
from redistill.core.episode import Episode, Group
from redistill.core.files import put_folder
from redistill.core.players import Player
from redistill.core.signal import Quantity, Signal, Teacher
from redistill.core.specs import TeacherWeights
from redistill.core.state import Stateful
from redistill.core.task import Prompt, checked_verdict
from redistill.core.teachers import TeacherBank, swapped
from redistill.errors import UserError
from redistill.vision.evaluate import evaluate
from redistill.vision.head import TeacherLogits, measure
from redistill.vision.models import ImageModel, fresh_module, load_model, save_model, write_config
from redistill.vision.settings import Settings, milestones_of
from redistill.vision.snapshot import IMAGES, snapshot
from redistill.vision.tasks import ImageTask

ImageContext = tuple[int, int, int]
"""(image, pixels down, pixels right)."""


class VisionDomain:
    """Everything the core and the methods may ask of vision."""

    def __init__(self, model: ImageModel, task: ImageTask, config: Settings) -> None:
        self.model, self.task, self.config = model, task, config
        if model.couples and config.micro_batch:
            raise UserError(
                f"micro_batch={config.micro_batch} changes what batch norm computes: set it to 0, or use norm=group"
            )
        images = task.options.train
        if images % config.prompts_per_step:
            fitting = [size for size in range(1, images + 1) if images % size == 0]
            close = min(fitting, key=lambda size: abs(size - config.prompts_per_step))
            raise UserError(
                f"prompts_per_step={config.prompts_per_step} does not divide the {images} training images, so an epoch "
                f"is not a number of updates; the nearest that does is {close}"
            )
        self.epoch_steps = images // config.prompts_per_step
        self.epochs = -(-config.steps // self.epoch_steps)
        edges, decay, per_epoch = milestones_of(config), config.decay, self.epoch_steps
        student = Player(
            "student", model.module, dict(model.module.named_parameters()), config.learning_rate, config.warmup_steps,
            config.weight_decay, config.beta2, config.grad_clip, algorithm=config.optimiser, momentum=config.momentum,
            schedule=lambda updates: decay ** sum(updates >= edge * per_epoch for edge in edges),
            published="model.safetensors",
        )  # fmt: skip
        self.players: Mapping[str, Player] = {"student": student}
        self.dtype = next(model.module.parameters()).dtype
        self.pixels_NSS = torch.from_numpy(task.data.images_NSS).to(self.dtype)
        self.bank = TeacherBank(student, self._other)
        self.step = 0
        self.calls = 0
        self.generated: Counter[str] = Counter()
        self.recorded: dict[tuple[int, ...], Tensor] = {}

    def _other(self, path: str) -> ImageModel:
        return load_model(path, side=self.model.side, classes=self.model.classes, dtype=self.dtype)

    @property
    def classes(self) -> int:
        """Number of classes V."""
        return self.model.classes

    def epoch(self, step: int) -> int:
        """The epoch, from 1, that a step (counted from 0) belongs to."""
        return step // self.epoch_steps + 1

    # --- images and episodes ----------------------------------------------------------------------------------------
    def read(self, contexts: Sequence[ImageContext]) -> Tensor:
        """The pixels [n, S, S] of some contexts; what a shift uncovers is 0."""
        image_n, down_n, right_n = torch.tensor(contexts, dtype=torch.int64).reshape(-1, 3).unbind(-1)
        images = self.pixels_NSS[image_n]
        reach = int(max(down_n.abs().max(), right_n.abs().max())) if len(contexts) else 0
        if not reach:
            return images
        side = self.model.side
        padded = F.pad(images, (reach,) * 4)
        at = torch.arange(side)
        rows = at[None] + (reach - down_n)[:, None]
        columns = at[None] + (reach - right_n)[:, None]
        return padded[torch.arange(len(contexts))[:, None, None], rows[:, :, None], columns[:, None, :]]

    def context(self, prompt: Prompt) -> ImageContext:
        """Where a prompt's image is and how it is shifted."""
        down, right = prompt.content["shift"]
        return (prompt.content["image"], down, right)

    def begin_step(self, step: int) -> None:
        """A new step: draws are keyed by it, and no prediction has been recorded."""
        self.step, self.calls = step, 0
        self.generated.clear()
        self.recorded.clear()

    def labelled(self, prompts: Sequence[Prompt]) -> list[Group]:
        """One written episode for each image: the label the data set gives it. Not judged: it is not an answer."""
        groups = []
        for prompt in prompts:
            assert prompt.answer is not None
            row = Episode(
                prompt=prompt, context=self.context(prompt), trajectory=int(prompt.answer), steps=1, text=prompt.answer,
                sampled_under="written", key=(prompt.data["position"],),
            )  # fmt: skip
            groups.append(Group(prompt, [row]))
        return groups

    def rollout(self, prompts: Sequence[Prompt], size: int | None = None) -> list[Group]:
        """Sample and judge labels from the student's predictions (saved statistics), keyed by seed, step and image."""
        count = size or self.config.group_size
        logp_nV = self.log_probs([self.context(prompt) for prompt in prompts])
        key = (self.config.seed, self.step, self.calls)
        self.calls += 1
        u_nG = rng.uniform("vision-sample", *key, np.arange(len(prompts))[:, None], np.arange(count)[None, :])
        edges_nV = logp_nV.double().exp().cumsum(-1)
        label_nG = torch.searchsorted(edges_nV, torch.from_numpy(u_nG) * edges_nV[:, -1:], right=True)
        label_nG = label_nG.clamp(max=self.classes - 1)
        groups = []
        for i, prompt in enumerate(prompts):
            episodes = [
                Episode(
                    prompt=prompt, context=self.context(prompt), trajectory=label, steps=1, text=str(label),
                    behaviour_logp_T=logp_nV[i, label].reshape(1), key=(*key, i, number),
                    verdict=checked_verdict(self.task, prompt, self.task.verify(prompt, str(label))),
                )
                for number, label in enumerate(label_nG[i].tolist())
            ]  # fmt: skip
            groups.append(Group(prompt, episodes))
        tally(self.generated, groups)
        return groups

    # --- teachers ---------------------------------------------------------------------------------------------------
    def teacher(self, weights: TeacherWeights, rows: Sequence[Episode]) -> Teacher:
        """A teacher that reads each row's image as the student does."""
        return Teacher(weights, tuple(row.context for row in rows))

    def stored(self, logp: Sequence[Tensor | None]) -> Teacher:
        """A teacher that is a distribution for each row (log-probs [V], or None: the row has no teacher)."""
        return Teacher(TeacherWeights("stored"), tuple(logp))

    def covered(self, teacher: Teacher, rows: Sequence[Episode]) -> Tensor:
        """Rows whose teacher has a context, bool [N]: the mask of a term with this teacher."""
        return torch.tensor([context is not None for context in teacher.contexts])

    @torch.no_grad()
    def _teacher_logits(self, weights: TeacherWeights, contexts: Sequence[Any]) -> TeacherLogits:
        valid_n = torch.tensor([context is not None for context in contexts])
        given = [context for context in contexts if context is not None]
        blank_nV = torch.zeros(len(contexts), self.classes, dtype=self.dtype)
        if weights.name == "stored":
            if given:
                blank_nV[valid_n] = torch.stack(given).to(self.dtype)
            return TeacherLogits([(1.0, blank_nV)], valid_n)
        parts = []
        for part in self.bank.parts(weights):
            module = part.module.module if isinstance(part.module, ImageModel) else self.model.module
            with swapped(self.players["student"].tensors, part.copy):
                logits_nV = blank_nV.clone()
                if given:
                    logits_nV[valid_n] = self._forward(module, given, self.config.teacher_norm == "batch")
            parts.append((part.share, logits_nV))
        return TeacherLogits(parts, valid_n)

    # --- measuring --------------------------------------------------------------------------------------------------
    def micro_batches(self, signal: Signal) -> Iterator[Sequence[int]]:
        """Rows that some term covers: all at once, or `micro_batch` at a time. A row that no term covers is not read,
        so it cannot act on its neighbours through batch norm either."""
        rows = list(range(len(signal.rows)))
        if all(term.mask_N is not None for term in signal.terms):
            covers_N = torch.stack([term.mask_N for term in signal.terms if term.mask_N is not None]).any(0)
            rows = [row for row in rows if bool(covers_N[row])]
        size = self.config.micro_batch or max(1, len(rows))
        for low in range(0, len(rows), size):
            yield rows[low : low + size]

    def measure(self, signal: Signal, rows: Sequence[int], quantities: Sequence[Quantity]) -> Measured:
        """The student's training forward (batch statistics, which it also takes into its running ones) and each
        teacher's, then the quantities. What the student predicted is kept for `predicted`."""
        episodes = [signal.rows[row] for row in rows]
        teachers = self._teachers(quantities, rows)
        self.model.module.train()
        logits_nV = self.model.module(self.read([row.context for row in episodes]))
        logp_nV = F.log_softmax(logits_nV.detach(), dim=-1)
        self.recorded.update((row.key, logp) for row, logp in zip(episodes, logp_nV))
        target_n = torch.tensor([row.trajectory for row in episodes])
        return Measured(measure(logits_nV, target_n, teachers, quantities))

    def _teachers(self, quantities: Sequence[Quantity], rows: Sequence[int]) -> dict[Teacher, TeacherLogits]:
        found: dict[Teacher, TeacherLogits] = {}
        for quantity in quantities:
            teacher: Teacher | None = getattr(quantity, "teacher", None)
            if teacher is not None and teacher not in found:
                found[teacher] = self._teacher_logits(teacher.weights, [teacher.contexts[row] for row in rows])
        return found

    @torch.no_grad()
    def score(self, rows: Sequence[Episode], quantities: Sequence[Quantity]) -> Mapping[Quantity, Tensor]:
        """Measure without gradient and without side effects: saved statistics, nothing recorded."""
        teachers = self._teachers(quantities, range(len(rows)))
        logits_nV = self._forward(self.model.module, [row.context for row in rows], False)
        return measure(logits_nV, torch.tensor([row.trajectory for row in rows]), teachers, quantities)

    def predicted(self, rows: Sequence[Episode]) -> Tensor:
        """Log-probs [n, V] of the training forward that made this step's gradient, for rows that were in it."""
        return torch.stack([self.recorded[row.key] for row in rows])

    @torch.no_grad()
    def log_probs(self, contexts: Sequence[ImageContext], chunk: int = 500) -> Tensor:
        """The student's log-probs [n, V] with saved statistics (as at evaluation)."""
        pieces = [
            F.log_softmax(self._forward(self.model.module, contexts[low : low + chunk], False), dim=-1)
            for low in range(0, len(contexts), chunk)
        ]
        return torch.cat(pieces)

    @torch.no_grad()
    def _forward(self, module: nn.Module, contexts: Sequence[ImageContext], batch_statistics: bool) -> Tensor:
        """Logits without gradient; running statistics are left as they were either way."""
        module.train(batch_statistics)
        with _kept(module) if batch_statistics else nullcontext():
            logits: Tensor = module(self.read(contexts))
        return logits

    # --- the rest of the contract -----------------------------------------------------------------------------------
    def restart(self, *key: Any) -> None:
        """Give the student new initial weights (and statistics), a function of the run's seed and the key."""
        model = self.model
        fresh = fresh_module(
            model.kind, model.options, model.side, model.classes, self.dtype, self.config.seed, *key
        ).state_dict()
        with torch.no_grad():
            for name, tensor in self.players["student"].tensors.items():
                tensor.copy_(fresh[name])

    def evaluate(self, label: str) -> Mapping[str, Any]:
        """Held-out accuracy, likelihood, calibration and selective risk; see vision/evaluate.py."""
        return evaluate(self.log_probs, self.task, self.config)

    def snapshot(self) -> Mapping[str, Any]:
        """What the report shows: the first held-out images as the student sees them now."""
        return snapshot(self.task.held_out(IMAGES), self.read, self.log_probs)

    def describe(self, groups: Sequence[Group], signals: Sequence[Signal]) -> str:
        """The first row's image in characters, its label, and what each teacher reads or says of it."""
        rows = [(signal, row) for signal in signals for row in signal.rows]
        if not rows:
            return "no row was trained in this step"
        signal, row = rows[0]
        parts = [f"=== the student reads ({row.prompt.content}) ===", _drawing(self.read([row.context])[0])]
        for teacher in {
            id(t): t for term in signal.terms if (t := getattr(term, "teacher", None)) is not None
        }.values():
            context = teacher.contexts[0]
            if isinstance(context, Tensor):
                context = "a stored distribution " + " ".join(f"{p:.3f}" for p in context.exp().tolist())
            parts.append(f"=== the teacher {teacher.weights} reads ===\n{context}")
        return "\n".join([*parts, "=== the label ===", str(row.trajectory)])

    def facts(self) -> Mapping[str, Any]:
        """Where model and images came from."""
        return {
            "model": dict(self.model.source), "images": " ".join(self.task.data.source),
            "trainable": sum(p.numel() for p in self.model.module.parameters()),
            self.task.data.source[0]: version(self.task.data.source[0]),
        }  # fmt: skip

    def stateful(self) -> Mapping[str, Stateful]:
        """Vision has no evolving parts beside players and teachers: every draw is keyed."""
        return {}

    def write_beside(self, folder: Path) -> None:
        """Make a checkpoint's folder a model's folder too."""
        write_config(self.model, folder)

    def save(self, folder: Path) -> None:
        """Save weights and statistics as safetensors with a config.json."""
        put_folder(folder, lambda temporary: save_model(self.model, temporary))


@contextmanager
def _kept(module: nn.Module) -> Iterator[None]:
    """Running statistics are after the block what they were before it."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    yield
    for buffer, value in before:
        buffer.copy_(value)


def _drawing(image_SS: Tensor) -> str:
    shades = " .:-=+*#%@"
    return "\n".join(
        "".join(shades[min(9, int(float(value) * 10))] * 2 for value in line).rstrip() for line in image_SS
    )
