"""The embedded sampler: episodes from a causal language model in this process, with exact log-probs and keyed draws.

A prompt is read once and its keys and values are copied to every episode of its group. Each episode owns a slot (a row)
of a preallocated cache in which column j holds position j, so there is no left padding and no mask by token id: a row
sees its columns up to its own position, nothing else. Rows that finish hand their slot on at once, so rows of any
length decode side by side. Each token takes one uniform, keyed by (prompt key, sample, position), through the inverse
of the distribution function in vocabulary order (law 10): neither order nor batch size changes a draw.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from redistill.core import rng
from redistill.errors import UserError
from redistill.text.cache import attention_windows
from redistill.text.decoder import decoder_of
from redistill.text.drawing import draw
from redistill.text.generic import Modules
from redistill.text.truncation import Sampling

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redistill.text.models import LanguageModel

__all__ = ["Sampled", "Sampling", "attention_windows", "sample"]

_PREFILL_TOKENS = 8192
"""Prompt tokens (padding included) that one prefill pass may hold, unless a single prompt is longer."""
_FIRST_COLUMNS = 128
"""Columns that a slot has at first for the response; long responses get more as they grow."""


@dataclass(frozen=True)
class Sampled:
    """One response. `ids` holds the EOS that ended it, when one did, and the tokens that complete a stop string."""

    ids: tuple[int, ...]
    logp_T: Tensor
    """float32 [T]: log-prob of each token under the sampling spec (tempered, truncated, renormalised on the support).
    A greedy response records the log-prob at temperature 1 without truncation."""
    finish: str
    """"stop" (EOS or a stop string) or "length"."""
    text: str
    """`ids` without the closing EOS, decoded without special tokens; a stop string stays in it."""


@dataclass
class _Prefilled:
    """Prompts that were read: keys and values by layer, next-token logits, and the (row, episode) still to start."""

    layers: list[tuple[Tensor, Tensor]]
    logits_PV: Tensor
    waiting: deque[tuple[int, int]]


class _Run:
    """One call of `sample`. Episode e is sample e % group_size of prompt e // group_size; `rows` are those that decode, by
    slot. What an episode has so far is in row e of `ids_ET` and `logp_ET`, `count_E` tokens of it."""

    def __init__(
        self, lm: LanguageModel, prompts: Sequence[Sequence[int]], group_size: int, sampling: Sampling,
        keys: Sequence[tuple[int, ...]], max_batch: int, on_finished: Callable[[int, int, str], None] | None,
    ) -> None:  # fmt: skip
        self.on_finished = on_finished
        self.lm, self.prompts, self.group_size, self.sampling = lm, prompts, group_size, sampling
        self.keys, self.max_batch = keys, max_batch
        self.model = decoder_of(lm) or Modules(lm)
        # Longest first: prompts of like length share a prefill with little padding, and the cache is wide early.
        self.queue = deque(sorted(range(len(prompts)), key=lambda i: -len(prompts[i])))
        self.ready: _Prefilled | None = None
        total, longest = len(prompts) * group_size, sampling.max_new_tokens
        self.ids_ET = np.zeros((total, longest), dtype=np.int64)
        self.logp_ET = np.zeros((total, longest), dtype=np.float32)
        self.count_E = np.zeros(total, dtype=np.int64)
        self.finish_E = [""] * total
        self.length_E = np.repeat([len(prompt) for prompt in prompts], group_size).astype(np.int64)
        self.rows = np.zeros(0, dtype=np.int64)
        self.uniforms_ST = np.zeros((max_batch, longest))
        self.cache = self.model.cache(max_batch)
        self.eos = np.array(lm.eos_ids, dtype=np.int64)
        self.done = 0
        if prompts:
            self.model.reach(max(map(len, prompts)) + longest)

    def prefill(self, wanted: int) -> None:
        """Read the next prompts, enough for `wanted` episodes, in one right-padded pass (causality hides the pads)."""
        taken: list[int] = []
        width = 0
        while self.queue and len(taken) * self.group_size < wanted:
            width = max(width, len(self.prompts[self.queue[0]]))
            if taken and width * (len(taken) + 1) > _PREFILL_TOKENS:
                break
            taken.append(self.queue.popleft())
        texts = [list(self.prompts[prompt]) for prompt in taken]
        ids_PL = torch.tensor([text + [0] * (width - len(text)) for text in texts], device=self.model.device)
        layers, hidden_PLD = self.model.prefill(ids_PL)
        last_P = torch.tensor([len(text) - 1 for text in texts], device=self.model.device)
        logits_PV = self.model.logits(hidden_PLD[torch.arange(len(texts), device=self.model.device), last_P])
        size = self.group_size
        waiting = deque((row, prompt * size + g) for row, prompt in enumerate(taken) for g in range(size))
        self.ready = _Prefilled(layers, logits_PV, waiting)

    def admit(self) -> None:
        """Start episodes in the free slots. Those that end with their first token never take a slot."""
        free = self.max_batch - len(self.rows)
        if self.ready is None:
            self.prefill(free)
        assert self.ready is not None
        ready = self.ready
        started = [ready.waiting.popleft() for _ in range(min(free, len(ready.waiting)))]
        if not ready.waiting:
            self.ready = None
        source_N, fresh_N = np.array(started, dtype=np.int64).T
        uniforms_NT = self.uniforms(fresh_N)
        ended_N = self.take(
            fresh_N, ready.logits_PV[torch.from_numpy(source_N).to(self.model.device)], uniforms_NT[:, 0]
        )
        self.done += int(ended_N.sum())
        going_N = fresh_N[~ended_N]
        if len(going_N):
            more = min(self.sampling.max_new_tokens, _FIRST_COLUMNS)
            self.cache.start(ready.layers, source_N[~ended_N], self.length_E[going_N], len(self.rows), more)
            self.uniforms_ST[len(self.rows) : len(self.rows) + len(going_N)] = uniforms_NT[~ended_N]
            self.rows = np.concatenate([self.rows, going_N])

    def uniforms(self, episodes_N: np.ndarray) -> np.ndarray:
        """The uniforms of episodes, [N, max_new_tokens]: a pure function of (prompt key, sample, position)."""
        places_T = np.arange(self.sampling.max_new_tokens)
        prompts_N, numbers_N = episodes_N // self.group_size, episodes_N % self.group_size
        drawn_NT = np.empty((len(episodes_N), len(places_T)))
        for prompt in set(prompts_N.tolist()):
            own_N = prompts_N == prompt
            drawn_NT[own_N] = rng.uniform("sample", *self.keys[prompt], numbers_N[own_N][:, None], places_T)
        return drawn_NT

    def take(self, episodes_N: np.ndarray, logits_NV: Tensor, uniforms_N: np.ndarray) -> np.ndarray:
        """Draw the next token of each episode; bool [N], which of them it finishes."""
        ids, logp = draw(logits_NV, uniforms_N, self.sampling)
        ids_N, count_N = ids.cpu().numpy(), self.count_E[episodes_N]
        self.ids_ET[episodes_N, count_N] = ids_N
        self.logp_ET[episodes_N, count_N] = logp.cpu().numpy()
        self.count_E[episodes_N] = count_N + 1
        stopped_N = np.isin(ids_N, self.eos)
        if self.sampling.stop:
            for n in np.flatnonzero(~stopped_N).tolist():
                stopped_N[n] = self.stops(int(episodes_N[n]))
        ended_N: np.ndarray = stopped_N | (count_N + 1 == self.sampling.max_new_tokens)
        for n in np.flatnonzero(ended_N).tolist():
            episode = int(episodes_N[n])
            self.finish_E[episode] = "stop" if stopped_N[n] else "length"
            if self.on_finished is not None:
                self.on_finished(episode // self.group_size, episode % self.group_size, self.text(episode))
        return ended_N

    def stops(self, episode: int) -> bool:
        """Whether the newest token completes a stop string. A token has one byte or more, so a tail of as many tokens as
        the longest stop string has bytes is enough (and a few, for a byte sequence that starts cut)."""
        reach = max(len(text.encode()) for text in self.sampling.stop) + 4
        count = int(self.count_E[episode])
        ids = self.ids_ET[episode, max(0, count - reach) : count].tolist()
        tail = self.lm.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return any(text in tail for text in self.sampling.stop)

    def step(self) -> None:
        """Feed the newest token of every row and draw the next one; finished rows leave at once."""
        rows, device = self.rows, self.model.device
        count_N = self.count_E[rows]
        column_N = self.length_E[rows] + count_N - 1
        newest_N = torch.from_numpy(self.ids_ET[rows, count_N - 1]).to(device)
        column = torch.from_numpy(column_N).to(device)
        self.cache.point(column, int(column_N.max()) + 1)
        logits_NV = self.model.step(newest_N, column, self.cache)
        ended_N = self.take(rows, logits_NV, self.uniforms_ST[np.arange(len(rows)), count_N])
        if ended_N.any():
            self.leave(ended_N)

    def leave(self, ended_N: np.ndarray) -> None:
        """Close the gaps that finished rows leave, by moving the last rows into them: rows stay 0..N-1, without a copy
        of those that stay."""
        left = int((~ended_N).sum())
        self.done += len(ended_N) - left
        targets = np.flatnonzero(ended_N[:left])
        sources = left + np.flatnonzero(~ended_N[left:])
        self.rows[targets] = self.rows[sources]
        self.rows = self.rows[:left].copy()
        if len(targets):
            self.uniforms_ST[targets] = self.uniforms_ST[sources]
            self.cache.move(sources.tolist(), targets.tolist())

    def text(self, episode: int) -> str:
        """What an episode says, without its end."""
        ids = self.ids_ET[episode, : self.count_E[episode]].tolist()
        spoken = ids[:-1] if ids[-1] in self.lm.eos_ids else ids
        return str(self.lm.tokenizer.decode(spoken, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def collected(self) -> list[list[Sampled]]:
        """The responses by prompt."""
        groups: list[list[Sampled]] = []
        for episode, count in enumerate(self.count_E.tolist()):
            ids, text = self.ids_ET[episode, :count].tolist(), self.text(episode)
            logp_T = torch.from_numpy(self.logp_ET[episode, :count].copy())
            if episode % self.group_size == 0:
                groups.append([])
            groups[-1].append(Sampled(tuple(ids), logp_T, self.finish_E[episode], text))
        return groups


def sample(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    group_size: int,
    sampling: Sampling,
    keys: Sequence[tuple[int, ...]],
    max_batch: int = 64,
    on_progress: Callable[[int, int], None] | None = None,
    on_finished: Callable[[int, int, str], None] | None = None,
) -> list[list[Sampled]]:
    """Sample `group_size` responses to each prompt (token ids); result [prompt][sample], in the order of `prompts`.

    `keys[i]` keys the draws of prompt i: token t of its sample g takes rng.uniform("sample", *keys[i], g, t). At most
    `max_batch` rows decode at a time. `on_progress(finished, total)` counts episodes, `on_finished(prompt, sample, text)`
    hands out each answer as it ends. The model is put in eval mode and
    back. Raises UserError for an empty prompt, or one that `max_new_tokens` would carry beyond the model's context.
    """
    _check(lm, prompts, group_size, sampling, keys, max_batch)
    total = len(prompts) * group_size
    reported = 0
    with _evaluating(lm.module), torch.no_grad():
        run = _Run(lm, prompts, group_size, sampling, keys, min(max_batch, max(total, 1)), on_finished)
        while run.queue or run.ready or len(run.rows):
            if (run.queue or run.ready) and len(run.rows) <= run.max_batch * 3 // 4:
                run.admit()
            else:
                run.step()
            if on_progress is not None and run.done > reported:
                reported = run.done
                on_progress(reported, total)
    return run.collected()


@contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Eval mode (no dropout) inside, the former mode after."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def _check(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    group_size: int,
    sampling: Sampling,
    keys: Sequence[tuple[int, ...]],
    max_batch: int,
) -> None:
    for key, value in (("group_size", group_size), ("max_batch", max_batch)):
        if value < 1:
            raise UserError(f"{key} is {value}, it must be 1 or more")
    if len(keys) != len(prompts):
        raise ValueError(f"{len(keys)} keys for {len(prompts)} prompts")
    for i, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise UserError(f"prompt {i} has no tokens; the sampler needs at least one (a BOS token will do)")
        if len(prompt) + sampling.max_new_tokens > lm.context:
            raise UserError(
                f"prompt {i} has {len(prompt)} tokens and max_new_tokens is {sampling.max_new_tokens}, together more"
                f" than the model's context of {lm.context}; max_new_tokens could be at most"
                f" {max(lm.context - len(prompt), 0)}"
            )
