"""The generation domain: samples images, makes rows of them, measures velocities, evaluates.

A row's context is a `Condition` (class and guidance), and so is a teacher's. Its trajectory is an SDE chain, whose steps
have log-probs, or one noised sample (x0, t, eps), which has errors of velocity; see trajectories.py and quantities.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from redistill.core import rng
from redistill.core.budget import tally
from redistill.core.domain import Measured
from redistill.core.episode import Episode, Group
from redistill.core.files import put_folder
from redistill.core.noise import normal
from redistill.core.players import Player
from redistill.core.signal import Quantity, Signal, Teacher
from redistill.core.specs import TeacherWeights
from redistill.core.state import Stateful
from redistill.core.task import Prompt, Verdict, checked_verdict
from redistill.core.teachers import TeacherBank, swapped
from redistill.errors import UserError
from redistill.generation.evaluate import evaluate
from redistill.generation.flow import Kernel, guided, noised, schedule
from redistill.generation.grid import tiled, write_grid
from redistill.generation.models import FlowModel, load_model, real_digits, save_model, write_config
from redistill.generation.quantities import TeacherVelocity, measure
from redistill.generation.sampling import Sampled, ode, sde
from redistill.generation.settings import Settings
from redistill.generation.snapshot import IMAGES, snapshot
from redistill.generation.tasks import DigitTask, to_bytes, written
from redistill.generation.terms import CentredReward
from redistill.generation.trajectories import Chain, Clean, Condition, Noised, Steps, clean_image, steps_of

LIVE = TeacherWeights("live")


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows made of finished samples. `source` [R] is the index of each row's episode (counted over all groups) and
    `cell` [R] the number of its (group, training time): what a group statistic at one time runs over."""

    rows: Sequence[Episode]
    source: Tensor
    cell: Tensor


class GenerationDomain:
    """Everything the core and the methods may ask of generation."""

    def __init__(self, model: FlowModel, task: DigitTask, config: Settings) -> None:
        self.model, self.task, self.config = model, task, config
        student = Player(
            "student", model.module, dict(model.module.named_parameters()), config.learning_rate, config.warmup_steps,
            config.weight_decay, config.beta2, config.grad_clip, published="model.safetensors",
        )  # fmt: skip
        self.players: Mapping[str, Player] = {"student": student}
        self.dtype = next(model.module.parameters()).dtype
        self.initial = {name: tensor.detach().clone() for name, tensor in student.tensors.items()}
        self.bank = TeacherBank(student, lambda path: load_model(path, dtype=self.dtype))
        self.times = schedule(config.sampling_steps, config.shift)
        self.step = 0
        self.calls = 0
        self.generated: Counter[str] = Counter()
        self.shown: tuple[Tensor, list[int]] | None = None

    # --- velocities -------------------------------------------------------------------------------------------------
    def predict(self, module: nn.Module, x_nSS: Tensor, t_n: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """The (guided) velocity [n, S, S] of a network."""
        label_n = torch.tensor([condition.label for condition in conditions])
        scale_n = torch.tensor([condition.guidance for condition in conditions], dtype=self.dtype)
        conditional: Tensor = module(x_nSS, t_n, label_n)
        if bool((scale_n == 1.0).all()):
            return conditional
        free: Tensor = module(x_nSS, t_n, torch.full_like(label_n, self.model.no_class))
        return guided(conditional, free, scale_n)

    @torch.no_grad()
    def predict_with(
        self, weights: TeacherWeights, x_nSS: Tensor, t_n: Tensor, conditions: Sequence[Condition]
    ) -> Tensor:
        """The velocity of a copy of the weights; a mixture in log space mixes velocities, which are linear in scores."""
        mixed = torch.zeros_like(x_nSS)
        for part in self.bank.parts(weights):
            module = part.module.module if isinstance(part.module, FlowModel) else self.model.module
            with swapped(self.players["student"].tensors, part.copy):
                mixed = mixed + part.share * self.predict(module, x_nSS, t_n, conditions)
        return mixed

    # --- sampling ---------------------------------------------------------------------------------------------------
    def begin_step(self, step: int) -> None:
        """A new step: draws are keyed by it."""
        self.step, self.calls = step, 0
        self.generated.clear()

    def rollout(
        self,
        prompts: Sequence[Prompt],
        weights: TeacherWeights = LIVE,
        kernel: Kernel | None = None,
        shared: bool = False,
    ) -> list[Group]:
        """Sample and judge `group_size` images a prompt under some weights: by the ODE, which keeps x0 only, or with a
        kernel by the SDE, which keeps the chain and its log-probs. `shared`: one initial noise for each prompt."""
        count, key = self.config.group_size, (self.config.seed, self.step, self.calls)
        self.calls += 1
        conditions = [
            Condition(prompt.content["label"], self.config.guidance) for prompt in prompts for _ in range(count)
        ]
        at_P, at_G = np.arange(len(prompts))[:, None], np.arange(count)[None, :]
        start = self._noise("generation-start", *key, at_P, at_G * (not shared)).flatten(0, 1)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            return self.predict_with(weights, x, t, conditions)

        if kernel is None:
            made = Sampled(ode(velocity, start, self.times)[:, None])
        else:
            total = self.config.logp_over == "sum"
            made = sde(
                velocity, start, self.times, kernel,
                lambda k: self._noise("generation-chain", *key, at_P, at_G, k).flatten(0, 1), total,
            )  # fmt: skip
        finished = to_bytes(made.states[:, -1])
        rewards = self.task.rewards([condition.label for condition in conditions], finished).tolist()
        groups = []
        for i, prompt in enumerate(prompts):
            episodes = []
            for j in range(count):
                n = i * count + j
                chain = None if kernel is None else Chain(made.states[n], self.times, kernel)
                episodes.append(
                    Episode(
                        prompt=prompt, context=conditions[n], trajectory=chain or Clean(made.states[n, -1]),
                        steps=1 if chain is None else self.config.sampling_steps, text=written(finished[n]),
                        behaviour_logp_T=None if made.logp is None else made.logp[n], sampling=kernel, key=(*key, i, j),
                        verdict=checked_verdict(self.task, prompt, Verdict(rewards[n])),
                    )
                )  # fmt: skip
            groups.append(Group(prompt, episodes))
        tally(self.generated, groups)
        return groups

    def _noise(self, *key: Any) -> Tensor:
        """Normal draws [..., S, S] in the model's dtype, one image for each key."""
        side = self.model.options.side
        parts = [part[..., None, None] if isinstance(part, np.ndarray) else part for part in key]
        return normal(*parts, np.arange(side)[:, None], np.arange(side)[None, :]).to(self.dtype)

    # --- rows -------------------------------------------------------------------------------------------------------
    def training_times(self, share: float) -> Tensor:
        """The times of the sampler's steps from the noisiest on, the first `share` of them (at least one)."""
        return self.times[: max(1, int(self.config.sampling_steps * share + 1e-9))]

    def noised(self, groups: Sequence[Group], times: int, share: float, per_group: bool) -> Rows:
        """Rows of finished samples: each sample at `times` different times of the sampler's schedule with noises of its
        own, ordered by group, time and sample; keyed. `per_group`: the samples of a group have their times in common."""
        known = self.training_times(share)
        if times > len(known):
            raise UserError(
                f"times={times} is more than the {len(known)} training times that the sampler's schedule has"
            )
        rows: list[Episode] = []
        source: list[int] = []
        cell: list[int] = []
        first = 0
        for i, group in enumerate(groups):
            key = (self.config.seed, self.step, i)
            common = rng.permutation(len(known), "generation-times", *key)
            own = [
                common if per_group else rng.permutation(len(known), "generation-times", *key, j)
                for j in range(len(group))
            ]
            at_T, at_G = np.arange(times)[:, None], np.arange(len(group))[None, :]
            eps_TGSS = self._noise("generation-eps", *key, at_T, at_G)
            for k in range(times):
                for j, episode in enumerate(group):
                    point = Noised(clean_image(episode), float(known[own[j][k]]), eps_TGSS[k, j])
                    condition = Condition(episode.context.label)
                    rows.append(replace(episode, trajectory=point, context=condition, steps=1, behaviour_logp_T=None))
                    source.append(first + j)
                    cell.append(i * times + k)
            first += len(group)
        return Rows(rows, torch.tensor(source), torch.tensor(cell))

    # --- teachers and measuring -------------------------------------------------------------------------------------
    def teacher(self, weights: TeacherWeights, rows: Sequence[Episode], guidance: float | None = None) -> Teacher:
        """A teacher that reads each row's class, with the row's own guidance unless another is given."""
        contexts = [row.context if guidance is None else Condition(row.context.label, guidance) for row in rows]
        return Teacher(weights, tuple(contexts))

    def micro_batches(self, signal: Signal) -> Iterator[Sequence[int]]:
        """Rows that some term covers: all at once, or whole groups of about `micro_batch` rows, in order."""
        rows = list(range(len(signal.rows)))
        if all(term.mask_N is not None for term in signal.terms):
            covers_N = torch.stack([term.mask_N for term in signal.terms if term.mask_N is not None]).any(0)
            rows = [row for row in rows if bool(covers_N[signal.steps_of([row])].any())]
        size = self.config.micro_batch or max(1, len(rows))
        piece: list[int] = []
        for bunch in _bunches(signal, rows):
            if piece and len(piece) + len(bunch) > size:
                yield piece
                piece = []
            piece = [*piece, *bunch]
        if piece:
            yield piece

    def measure(self, signal: Signal, rows: Sequence[int], quantities: Sequence[Quantity]) -> Measured:
        """One forward of the student and one of each teacher over all steps of the rows, then the quantities."""
        return Measured(self._measure([signal.rows[row] for row in rows], rows, quantities))

    @torch.no_grad()
    def score(self, rows: Sequence[Episode], quantities: Sequence[Quantity]) -> Mapping[Quantity, Tensor]:
        """Measure without gradient; a teacher's contexts are those of these rows, in order."""
        return self._measure(rows, range(len(rows)), quantities)

    def _measure(
        self, episodes: Sequence[Episode], rows: Sequence[int], quantities: Sequence[Quantity]
    ) -> dict[Quantity, Tensor]:
        steps = steps_of(episodes, self.dtype)
        conditions = [episodes[row].context for row in steps.row_of_n.tolist()]
        velocity = self.predict(self.model.module, steps.x_nSS, steps.t_n, conditions)
        teachers: dict[Teacher, TeacherVelocity] = {}
        for quantity in quantities:
            teacher = getattr(quantity, "teacher", None)
            if teacher is not None and teacher not in teachers:
                teachers[teacher] = self._taught(teacher, [teacher.contexts[row] for row in rows], steps)
        return measure(steps, velocity, teachers, quantities, self.config.logp_over == "sum")

    def _taught(self, teacher: Teacher, contexts: Sequence[Condition | None], steps: Steps) -> TeacherVelocity:
        own = [contexts[row] for row in steps.row_of_n.tolist()]
        valid_n = torch.tensor([context is not None for context in own])
        velocity = torch.zeros_like(steps.x_nSS)
        if bool(valid_n.any()):
            given = [context for context in own if context is not None]
            velocity[valid_n] = self.predict_with(teacher.weights, steps.x_nSS[valid_n], steps.t_n[valid_n], given)
        return velocity, valid_n

    # --- the rest of the contract -----------------------------------------------------------------------------------
    def drift(self) -> float:
        """Mean (v - v_first)^2 against the weights the run began from, at 100 noised real digits (keyed)."""
        real = real_digits()
        count = 100
        t_n = torch.from_numpy((np.arange(count) + 0.5) / count).to(self.dtype)
        eps = self._noise("generation-drift", np.arange(count))
        x_nSS = noised((2.0 * real["images"][:count] - 1.0).to(self.dtype), eps, t_n)
        conditions = [Condition(label) for label in real["labels"][:count].tolist()]
        with torch.no_grad():
            now = self.predict(self.model.module, x_nSS, t_n, conditions)
            with swapped(self.players["student"].tensors, self.initial):
                before = self.predict(self.model.module, x_nSS, t_n, conditions)
        return float((now - before).double().square().mean())

    def gap(self, weights: TeacherWeights) -> float:
        """Relative L2 distance of a copy of the weights from the student's own; 0 for the student itself."""
        now = self.players["student"].parameters
        (part,) = self.bank.parts(weights)[:1]
        if part.copy is None:
            return 0.0
        apart = sum(float((now[name].detach() - part.copy[name]).double().square().sum()) for name in now)
        size = sum(float(part.copy[name].double().square().sum()) for name in now)
        return float((apart / size) ** 0.5)

    def _held_out(self, prompts: Sequence[Prompt]) -> tuple[Tensor, list[Condition]]:
        """Images [n, S, S] of held-out prompts by the ODE from fixed initial noises, and what they were asked for."""
        conditions = [Condition(prompt.content["label"], self.config.eval_guidance) for prompt in prompts]
        start = self._noise("generation-eval", np.array([prompt.content["noise"] for prompt in prompts]))
        times = schedule(self.config.eval_sampling_steps, self.config.shift)
        return ode(lambda x, t: self.predict_with(LIVE, x, t, conditions), start, times), conditions

    def snapshot(self) -> Mapping[str, Any]:
        """What the report shows: images of the first held-out prompts as the student makes them now."""
        images, conditions = self._held_out(self.task.held_out(IMAGES))
        labels, finished = [condition.label for condition in conditions], to_bytes(images)
        return snapshot(labels, finished, self.task.rewards(labels, finished).tolist())

    def evaluate(self, label: str) -> Mapping[str, Any]:
        """Held-out prompts by the ODE from fixed initial noises: the trained reward, held-out measures and drift."""
        prompts = self.task.held_out(self.config.eval_prompts)
        images, conditions = self._held_out(prompts)
        self.shown = (to_bytes(images), [condition.label for condition in conditions])
        return {**evaluate(self.task, prompts, images), "drift": self.drift()}

    def describe(self, groups: Sequence[Group], signals: Sequence[Signal]) -> str:
        """The first row's condition and image in characters, and what each teacher reads."""
        rows = [(signal, row) for signal in signals for row in signal.rows]
        if not rows:
            return "no row was trained in this step"
        signal, row = rows[0]
        parts = [f"=== the student reads ===\n{row.context}"]
        for term in signal.terms:
            teacher = getattr(term, "teacher", None)
            if teacher is not None:
                parts.append(f"=== {term.name}: the teacher {teacher.weights} reads ===\n{teacher.contexts[0]}")
        return "\n".join([*parts, f"=== its sample (reward {row.reward:.3f}) ===", _drawing(clean_image(row))])

    def facts(self) -> Mapping[str, Any]:
        """Where the model came from."""
        trainable = sum(p.numel() for p in self.model.module.parameters())
        return {"model": dict(self.model.source), "trainable": trainable}

    def stateful(self) -> Mapping[str, Stateful]:
        """Nothing evolves beside players and teachers: every draw is keyed."""
        return {}

    def write_beside(self, folder: Path) -> None:
        """Make a checkpoint's folder a model's folder too."""
        write_config(self.model, folder)

    def save(self, folder: Path) -> None:
        """Save the weights, and a grid of the last evaluation's samples (a row for each class)."""
        shown = self.shown
        if shown is None:  # a run that was stopped after its last evaluation makes them again
            images, conditions = self._held_out(self.task.held_out(self.config.eval_prompts))
            shown = (to_bytes(images), [condition.label for condition in conditions])

        def write(temporary: Path) -> None:
            save_model(self.model, temporary)
            write_grid(temporary / "samples.png", tiled(*shown, across=16))

        put_folder(folder, write)


def _bunches(signal: Signal, rows: Sequence[int]) -> list[list[int]]:
    """Rows that must be measured together: the groups of a centred term, else each row alone."""
    groups = [term.group_N for term in signal.terms if isinstance(term, CentredReward)]
    if not groups:
        return [[row] for row in rows]
    found: dict[tuple[int, ...], list[int]] = {}
    for row in rows:
        found.setdefault(tuple(int(group_N[row]) for group_N in groups), []).append(row)
    return list(found.values())


def _drawing(image_SS: Tensor) -> str:
    shades = " .:-=+*#%@"
    return "\n".join(
        "".join(shades[min(9, int(value * 10 / 256))] * 2 for value in line).rstrip()
        for line in to_bytes(image_SS).tolist()
    )
