"""The embodied domain: plays episodes, makes a row of each action, measures Gaussians and values, evaluates.

A row's context is what was seen [O], its trajectory the action that was taken [D]. A teacher's context is what it sees (for
weights), or the actions it proposes [S, D] (for the run's `teacher`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from redistill.core.budget import tally
from redistill.core.domain import Measured
from redistill.core.episode import Episode, Group, flat
from redistill.core.files import put_folder
from redistill.core.noise import normal
from redistill.core.players import Player
from redistill.core.signal import Quantity, Signal, Teacher
from redistill.core.specs import TeacherWeights
from redistill.core.state import Piece, Stateful
from redistill.core.task import Prompt, Verdict, checked_verdict
from redistill.core.teachers import TeacherBank, swapped
from redistill.embodied.evaluate import evaluate, teacher_result
from redistill.embodied.models import ControlModel, load_model, save_model, write_config
from redistill.embodied.quantities import Student, TeacherActions, Value, measure
from redistill.embodied.rollout import Trace, play
from redistill.embodied.settings import Settings
from redistill.embodied.snapshot import snapshot
from redistill.embodied.tasks import ControlTask
from redistill.embodied.teachers import Proposer, check_teacher
from redistill.errors import UserError
from redistill.objectives.gaussian import log_prob, mixed
from redistill.objectives.returns import gae

HALF = 0.5
"""The success rate that `steps_to_half` waits for."""


@dataclass(frozen=True, eq=False)
class Played:
    """What an episode keeps: what was seen [T+1, O], the actions [T, D], rewards [T] float64, values [T+1], and how it ended."""

    seen: Tensor
    actions: Tensor
    rewards: Tensor
    values: Tensor
    terminated: bool
    success_at: int | None


@dataclass
class Progress:
    """Actions taken in training so far, and how many when an evaluation first saw half of the episodes succeed."""

    env_steps: int = 0
    steps_to_half: int | None = None

    def state(self) -> Piece:
        """Both."""
        return Piece(facts=asdict(self))

    def restore(self, piece: Piece) -> None:
        """Load them."""
        self.env_steps, self.steps_to_half = piece.facts["env_steps"], piece.facts["steps_to_half"]


class EmbodiedDomain:
    """Everything the core and the methods may ask of control."""

    def __init__(self, model: ControlModel, task: ControlTask, config: Settings) -> None:
        self.model, self.task, self.config = model, task, config
        student = Player(
            "student", model.module, dict(model.module.named_parameters()), config.learning_rate, config.warmup_steps,
            config.weight_decay, config.beta2, config.grad_clip, config.epsilon, published="model.safetensors",
        )  # fmt: skip
        self.players: Mapping[str, Player] = {"student": student}
        self.dtype = next(model.module.parameters()).dtype
        self.bank = TeacherBank(student, self._other)
        self.expert = check_teacher(config.teacher, task)
        self.proposer = None if self.expert is None else Proposer(self.expert, task)
        self.progress = Progress()
        self.step = 0
        self.calls = 0
        self.generated: Counter[str] = Counter()

    def _other(self, path: str) -> ControlModel:
        sizes = {"observations": self.task.observations, "actions": self.task.actions}
        return load_model(path, **sizes, dtype=self.dtype, what="teacher")

    def _tensor(self, array: Any) -> Tensor:
        return torch.as_tensor(np.asarray(array)).to(self.dtype)

    # --- episodes ---------------------------------------------------------------------------------------------------
    def begin_step(self, step: int) -> None:
        """A new step: draws are keyed by it."""
        self.step, self.calls = step, 0
        self.generated.clear()

    @torch.no_grad()
    def rollout(self, prompts: Sequence[Prompt]) -> list[Group]:
        """Play `group_size` episodes from each start with actions drawn from the student, keyed, and judge them by their
        mean reward."""
        count, key = self.config.group_size, (self.config.seed, self.step, self.calls)
        self.calls += 1
        at_N = np.arange(len(prompts) * count)
        size, module, cap = self.task.actions, self.model.module, self.task.options.cap
        noise_NTD = normal(
            "embodied-action", *key, (at_N // count)[:, None, None], (at_N % count)[:, None, None],
            np.arange(cap)[:, None], np.arange(size),
        ).to(self.dtype)  # fmt: skip
        std_D = module.log_std.exp()
        taken: list[list[Tensor]] = [[] for _ in at_N]
        logps: list[list[Tensor]] = [[] for _ in at_N]

        def act(seen: NDArray[np.float64], at: Sequence[int], t: int) -> NDArray[np.float64]:
            mean_ED = module.mean(self._tensor(seen))
            action_ED = mean_ED + std_D * noise_NTD[list(at), t]
            for i, action, logp in zip(at, action_ED, log_prob(action_ED, mean_ED, module.log_std)):
                taken[i].append(action)
                logps[i].append(logp)
            return action_ED.double().numpy()

        starts = [prompt for prompt in prompts for _ in range(count)]
        traces = play(self.task, starts, act, self.config.simulators)
        self.progress.env_steps += sum(len(trace.rewards) for trace in traces)
        values = module.value(self._tensor(np.concatenate([np.stack(trace.observations) for trace in traces])))
        ends = np.cumsum([len(trace.observations) for trace in traces])
        groups = []
        for i, prompt in enumerate(prompts):
            episodes = []
            for j in range(count):
                n = i * count + j
                own = values[ends[n] - len(traces[n].observations) : ends[n]]
                episodes.append(self._episode(prompt, traces[n], taken[n], logps[n], own, (*key, i, j)))
            groups.append(Group(prompt, episodes))
        tally(self.generated, groups)
        return groups

    def _episode(
        self,
        prompt: Prompt,
        trace: Trace,
        taken: list[Tensor],
        logps: list[Tensor],
        values: Tensor,
        key: tuple[int, ...],
    ) -> Episode:
        path = Played(
            self._tensor(np.stack(trace.observations)), torch.stack(taken),
            torch.tensor(trace.rewards, dtype=torch.float64), values, trace.terminated, trace.success_at,
        )  # fmt: skip
        ended = "success" if trace.success_at is not None else "terminated" if trace.terminated else "cap"
        text = f"{len(taken)} actions, return {sum(trace.rewards):.3f}, " + (
            f"success after {trace.success_at}" if ended == "success" else f"ended by {ended}"
        )
        return Episode(
            prompt=prompt, context=None, trajectory=path, steps=len(taken), text=text, behaviour_logp_T=torch.stack(logps),
            finish="length" if ended == "cap" else "stop", key=key,
            verdict=checked_verdict(self.task, prompt, Verdict(trace.mean_reward)),
        )  # fmt: skip

    # --- rows and what goes with them -------------------------------------------------------------------------------
    def transitions(self, groups: Sequence[Group]) -> list[Episode]:
        """A row for each action of each episode, in order."""
        rows = []
        for episode in flat(groups):
            path, logp_T = episode.trajectory, episode.behaviour_logp_T
            assert logp_T is not None
            parts = zip(path.seen[:-1].unbind(), path.actions.unbind(), logp_T.split(1))
            rows += [
                replace(episode, context=seen, trajectory=action, steps=1, behaviour_logp_T=logp, key=(*episode.key, t))
                for t, (seen, action, logp) in enumerate(parts)
            ]
        return rows

    def advantages(
        self, groups: Sequence[Group], *, gamma: float, decay: float, finite_horizon: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(advantages, returns, values when played) of all actions in order, each [N]: generalised advantage estimates; a
        return is the advantage plus the value. Nothing is worth anything after an end that is the world's own."""
        paths = [episode.trajectory for episode in flat(groups)]
        lengths = [len(path.rewards) for path in paths]
        reward_ET = torch.zeros(len(paths), max(lengths), dtype=torch.float64)
        value_EV = torch.zeros(len(paths), max(lengths) + 1, dtype=torch.float64)
        for i, path in enumerate(paths):
            reward_ET[i, : lengths[i]] = path.rewards
            value_EV[i, : lengths[i] + 1] = path.values.double()
        ended_E = torch.tensor([path.terminated for path in paths])
        found_ET = gae(reward_ET, value_EV, lengths, ended_E, gamma=gamma, decay=decay, finite_horizon=finite_horizon)
        kept = [torch.cat([table[i, :length] for i, length in enumerate(lengths)]) for table in (found_ET, value_EV)]
        return kept[0], kept[0] + kept[1], kept[1]

    # --- teachers ---------------------------------------------------------------------------------------------------
    def proposals(self, rows: Sequence[Episode], samples: int) -> Teacher:
        """The run's teacher at each row: `samples` actions that it proposes for what the student saw, keyed by the row."""
        if self.proposer is None:
            raise UserError(
                f"teacher={self.config.teacher} proposes nothing: write teacher=expert:noise=1 or teacher=policy:folder=PATH"
            )
        seen_nO = torch.stack([row.context for row in rows]).double().numpy()
        keys = np.asarray([row.key for row in rows]).T[:, :, None, None]
        noise = normal("embodied-teacher", *keys, np.arange(samples)[:, None], np.arange(self.task.actions)).numpy()
        actions = self._tensor(self.proposer.propose(seen_nO, noise))
        return Teacher(TeacherWeights("stored"), tuple(actions.unbind()))

    def teacher(self, weights: TeacherWeights, rows: Sequence[Episode]) -> Teacher:
        """A teacher that is a copy of the weights and sees what each row saw."""
        return Teacher(weights, tuple(row.context for row in rows))

    @torch.no_grad()
    def _taught(self, teacher: Teacher, contexts: Sequence[Tensor | None]) -> TeacherActions:
        valid_n = torch.tensor([context is not None for context in contexts])
        given = [context for context in contexts if context is not None]
        if teacher.weights.name == "stored":
            blank = given[0] if given else torch.zeros(1, self.task.actions, dtype=self.dtype)
            proposed_nSD = torch.stack([torch.zeros_like(blank) if c is None else c for c in contexts])
            least = self.config.teacher_least_std  # proposals at the edge of the range may all be the same
            spread_nD = torch.full_like(proposed_nSD[:, 0], torch.nan)
            if len(blank) > 1:
                spread_nD = proposed_nSD.std(1).clamp(min=least)
            return TeacherActions(proposed_nSD, proposed_nSD.mean(1), spread_nD.log(), valid_n)
        seen_nO = torch.stack(
            [torch.zeros(self.task.observations, dtype=self.dtype) if c is None else c for c in contexts]
        )
        means, log_stds, shares = [], [], []
        for part in self.bank.parts(teacher.weights):
            module = part.module.module if isinstance(part.module, ControlModel) else self.model.module
            with swapped(self.players["student"].tensors, part.copy):
                means.append(module.mean(seen_nO))
                log_stds.append(module.log_std.detach().clone())
                shares.append(part.share)
        mean_nD, log_std_D = mixed(means, log_stds, shares)
        return TeacherActions(mean_nD[:, None], mean_nD, log_std_D.expand_as(mean_nD), valid_n)

    # --- measuring --------------------------------------------------------------------------------------------------
    def micro_batches(self, signal: Signal) -> Iterator[Sequence[int]]:
        """All rows at once, or `micro_batch` at a time."""
        size = self.config.micro_batch or max(1, len(signal.rows))
        for low in range(0, len(signal.rows), size):
            yield range(low, min(low + size, len(signal.rows)))

    def measure(self, signal: Signal, rows: Sequence[int], quantities: Sequence[Quantity]) -> Measured:
        """The student's Gaussian (and value, where asked for), each teacher's, then the quantities."""
        teachers: dict[Teacher, TeacherActions] = {}
        for quantity in quantities:
            teacher = getattr(quantity, "teacher", None)
            if teacher is not None and teacher not in teachers:
                teachers[teacher] = self._taught(teacher, [teacher.contexts[row] for row in rows])
        seen_nO = torch.stack([signal.rows[row].context for row in rows])
        action_nD = torch.stack([signal.rows[row].trajectory for row in rows])
        module = self.model.module
        value_n = module.value(seen_nO) if any(isinstance(quantity, Value) for quantity in quantities) else None
        student = Student(module.mean(seen_nO), module.log_std, value_n)
        return Measured(measure(student, action_nD, teachers, quantities))

    # --- the rest of the contract -----------------------------------------------------------------------------------
    def evaluate(self, label: str) -> Mapping[str, Any]:
        """Held-out starts with the mean action. During a run also `env_steps`, the actions that training has taken, and
        `steps_to_half`: how many when half of the episodes first succeeded, or all so far while they have not; and, where there
        is a teacher, `teacher_success`, its own success from the same starts."""
        count, side_by_side = self.config.eval_prompts, self.config.simulators
        found = evaluate(self.task, self.task.held_out(count), self._mean_action, side_by_side)
        if label != "saved":
            progress = self.progress
            if progress.steps_to_half is None and self.task.succeeds and found["success"] >= HALF:
                progress.steps_to_half = progress.env_steps
            half = progress.env_steps if progress.steps_to_half is None else progress.steps_to_half
            found |= {"env_steps": progress.env_steps, "steps_to_half": half}
        if self.expert is not None:
            found[f"teacher_{found['metric']}"] = teacher_result(self.task, self.expert, count, side_by_side)
        return found

    @torch.no_grad()
    def _mean_action(self, seen: NDArray[np.float64], at: Sequence[int], t: int) -> NDArray[np.float64]:
        return self.model.module.mean(self._tensor(seen)).double().numpy()

    def snapshot(self) -> Mapping[str, Any]:
        """What the report shows: an episode from the first held-out start."""
        return snapshot(self.task, self.task.held_out(1), self._mean_action)

    def describe(self, groups: Sequence[Group], signals: Sequence[Signal]) -> str:
        """What the first row saw, did and was told."""
        rows = [(signal, row) for signal in signals for row in signal.rows]
        if not rows:
            return "no row was trained in this step"
        signal, row = rows[0]
        parts = [f"=== the student sees ===\n{_numbers(row.context)}", f"=== it does ===\n{_numbers(row.trajectory)}"]
        for term in signal.terms:
            teacher = getattr(term, "teacher", None)
            if teacher is not None:
                what = "proposes" if teacher.weights.name == "stored" else f"{teacher.weights} sees"
                parts.append(f"=== {term.name}: the teacher {what} ===\n{_numbers(teacher.contexts[0])}")
        return "\n".join([*parts, f"=== its episode ===\n{row.text}"])

    def facts(self) -> Mapping[str, Any]:
        """Where the policy came from, and the simulators' versions."""
        packages = [name for name in ("metaworld", "mujoco", "gymnasium") if find_spec(name) is not None]
        trainable = sum(p.numel() for p in self.model.module.parameters())
        return {"model": dict(self.model.source), "trainable": trainable, **{name: version(name) for name in packages}}

    def stateful(self) -> Mapping[str, Stateful]:
        """Counts of actions. Simulators hold nothing: every update plays whole episodes from keyed starts."""
        return {"progress": self.progress}

    def write_beside(self, folder: Path) -> None:
        """Make a checkpoint's folder a model's folder too."""
        write_config(self.model, folder)

    def save(self, folder: Path) -> None:
        """Save the policy."""
        put_folder(folder, lambda temporary: save_model(self.model, temporary))


def _numbers(values: Tensor) -> str:
    return np.array2string(values.numpy(), precision=3, suppress_small=True, max_line_width=120)
