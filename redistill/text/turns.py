"""Episodes of several turns: token in, token out. What was sampled is never decoded and encoded again.

An episode is one growing list of ids: the prompt as the chat template renders it, then for each turn what the policy sampled
(a span), then what the template puts between that turn and the next, the observation within it. Only the latter is
encoded, once, when it arrives. So a span is predicted from exactly the ids it was sampled after, in every later pass.

A template that rewrites earlier turns when it renders a longer chat (thinking models drop what was thought) would have shown
the policy another history: `rewritten` finds that out by rendering probes, and a run that would be played so is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from redistill.core.episode import Episode
from redistill.core.task import Verdict
from redistill.errors import UserError
from redistill.tasks.worlds import World
from redistill.text.models import LanguageModel
from redistill.text.sampling import Sampling, sample

TokenIds = tuple[int, ...]
_QUESTION, _ANSWER, _REPLY = "Where?", "redistill", "There."


@dataclass(frozen=True)
class Turn:
    """One turn of an episode: what the policy wrote and what the world said to it."""

    action: str
    observation: str
    reward: float = 0.0
    malformed: bool = False
    progress: float = 0.0
    """Share of the task that is done after this turn, where the world says (0 to 1)."""


@dataclass(frozen=True)
class Trajectory:
    """A response: its token ids and the half-open ranges of them that are the policy's own. `turns` are those of a world, one
    for each span; `after` is the episode that came before, where a turn was read afresh instead of appended (rltf)."""

    ids: TokenIds
    spans: tuple[tuple[int, int], ...]
    turns: tuple[Turn, ...] = ()
    after: Episode | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Played:
    """One finished episode, in the shape of `Sampled`: `logp_T` has one log-prob for each token of the spans."""

    trajectory: Trajectory
    logp_T: Tensor
    finish: str
    """"stop" (the world ended it), "turns" (out of turns), "length" (no room for another turn)."""
    verdict: Verdict

    @property
    def ids(self) -> TokenIds:
        """All ids after the prompt."""
        return self.trajectory.ids

    @property
    def text(self) -> str:
        """The actions, one a line."""
        return "\n".join(turn.action for turn in self.trajectory.turns)


class Between:
    """What a chat template puts between a response and the next one, with the observation in it."""

    def __init__(self, lm: LanguageModel) -> None:
        self.lm, self.eos = lm, frozenset(lm.eos_ids)

    def __call__(self, last: int, observation: str) -> TokenIds:
        """Ids to append after a response that ended with id `last`: the end of its turn where the policy did not write one
        (cut off by its limit), the observation as a user's turn, and the opening of the next response."""
        chat = [
            {"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER},
            {"role": "user", "content": observation},
        ]  # fmt: skip
        tail = _text(self.lm.tokenizer, chat).partition(_ANSWER)[2]
        ids = self.lm.tokenizer.encode(tail, add_special_tokens=False)
        if last in self.eos and ids and ids[0] in self.eos:
            ids = ids[1:]
        return tuple(ids)


def rewritten(tokenizer: Any) -> list[str]:
    """What a chat template changes of earlier turns when it renders a longer chat, in words; empty when nothing."""
    found = []
    asked = [{"role": "user", "content": _QUESTION}]
    for answer, what in (
        (_ANSWER, "turns that were answered"),
        (f"<think>\nHm.\n</think>\n\n{_ANSWER}", "what was thought in earlier turns"),
        (f" {_ANSWER} \n", "white space around earlier answers"),
    ):
        chat = [*asked, {"role": "assistant", "content": answer}, {"role": "user", "content": _REPLY}]
        if not _text(tokenizer, chat).startswith(_text(tokenizer, asked) + answer):
            found.append(what)
    return found


def check_template(name: str, tokenizer: Any, history: str) -> list[str]:
    """Refuse a template that rewrites history unless `history` is "keep": then every sampled token stays in the context,
    whatever the template would do. Returns sentences to read about what the episodes keep and the template would not."""
    found = rewritten(tokenizer)
    grave = [what for what in found if "white space" not in what]
    if grave and history != "keep":
        raise UserError(
            f"the chat template of model {name!r} rewrites {grave[0]} when a chat goes on, so an appended history is not what "
            "it would render: set history=keep to keep every sampled token in the context all the same"
        )
    return [f"the chat template of model {name!r} rewrites {what}; episodes of several turns keep it" for what in found]


def _text(tokenizer: Any, chat: Sequence[dict[str, str]]) -> str:
    return str(tokenizer.apply_chat_template(list(chat), tokenize=False, add_generation_prompt=True))


@dataclass
class _Game:
    """An episode under way."""

    world: World
    context: TokenIds
    key: tuple[int, ...]
    ids: list[int] = field(default_factory=list)
    logps: list[Tensor] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    finish: str = ""
    feedback: str | None = None

    def act(self, ids: TokenIds, logp_T: Tensor, text: str) -> str:
        """Take the policy's turn to the world; the observation."""
        self.spans.append((len(self.ids), len(self.ids) + len(ids)))
        self.ids += ids
        self.logps.append(logp_T)
        observation, reward, terminated, truncated, info = self.world.step(text)
        malformed, progress = bool(info.get("malformed", False)), float(info.get("progress", 0.0))
        self.turns.append(Turn(text, observation, float(reward), malformed, progress))
        self.feedback = info.get("feedback", self.feedback)
        if terminated or truncated:
            self.finish = "stop" if terminated else "turns"
        return observation

    def played(self) -> Played:
        """The finished episode; its reward is the sum of the turns'."""
        verdict = Verdict(
            sum(turn.reward for turn in self.turns), self.feedback, not any(turn.malformed for turn in self.turns)
        )
        logp_T = torch.cat(self.logps) if self.logps else torch.zeros(0)
        return Played(Trajectory(tuple(self.ids), tuple(self.spans), tuple(self.turns)), logp_T, self.finish, verdict)


def play(
    lm: LanguageModel, contexts: Sequence[TokenIds], worlds: Sequence[Callable[[], World]], *, group_size: int,
    sampling: Sampling, keys: Sequence[tuple[int, ...]], max_turns: int, max_batch: int = 64,
) -> list[list[Played]]:  # fmt: skip
    """Play `group_size` episodes of each prompt to their end; result [prompt][sample].

    `sampling.max_new_tokens` bounds each turn. The draws of the first turn are those of `sample` with the same keys (so an
    episode of one turn is a single-turn episode, bit for bit); turn k of sample g of prompt i is keyed (*keys[i], g, k).
    """
    games = [[_Game(make(), tuple(context), (*key, g)) for g in range(group_size)]
             for context, make, key in zip(contexts, worlds, keys, strict=True)]  # fmt: skip
    for group in games:
        for game in group:
            game.world.reset()
    between, live = Between(lm), [game for group in games for game in group]
    firsts = sample(lm, contexts, group_size=group_size, sampling=sampling, keys=keys, max_batch=max_batch)
    taken = [one for group in firsts for one in group]
    for number in range(1, max_turns + 1):
        for game, one in zip(live, taken, strict=True):
            observation = game.act(one.ids, one.logp_T, one.text)
            if not game.finish and number == max_turns:
                game.finish = "turns"
            if not game.finish:
                more = between(one.ids[-1], observation)
                if len(game.context) + len(game.ids) + len(more) + sampling.max_new_tokens > lm.context:
                    game.finish = "length"
                else:
                    game.ids += more
        live = [game for game in live if not game.finish]
        if not live:
            break
        groups = sample(
            lm, [(*game.context, *game.ids) for game in live], group_size=1, sampling=sampling,
            keys=[(*game.key, number) for game in live], max_batch=max_batch,
        )  # fmt: skip
        taken = [group[0] for group in groups]
    return [[game.played() for game in group] for group in games]


def script(lm: LanguageModel, context: TokenIds, world: World, actions: Sequence[str]) -> Played | None:
    """An episode whose actions were written, not sampled (an expert's); None when it does not fit in the context. Actions after
    the world's end are left out."""
    between = Between(lm)
    game = _Game(world, context, ())
    world.reset()
    for number, action in enumerate(actions):
        ids = (*lm.tokenizer.encode(action, add_special_tokens=False), lm.eos_ids[0])
        observation = game.act(ids, torch.zeros(0), action)
        if game.finish:
            break
        if number + 1 < len(actions):
            game.ids += between(ids[-1], observation)
    game.finish = game.finish or "turns"
    return game.played() if len(context) + len(game.ids) <= lm.context else None


def by_turn(episode: Episode) -> list[Episode]:
    """An episode of several turns as one row for each turn: the earlier turns are part of its context. For methods that weigh
    turns apart; the steps, their log-probs and their predictions are the same."""
    made: list[Episode] = []
    ids, at = episode.trajectory.ids, 0
    logp_T = episode.behaviour_logp_T
    for number, (low, high) in enumerate(episode.trajectory.spans):
        size = high - low
        turns = episode.trajectory.turns[number : number + 1]
        made.append(
            replace(
                episode, context=(*episode.context, *ids[:low]), steps=size,
                trajectory=Trajectory(ids[low:high], ((0, size),), turns, made[-1] if made else None),
                behaviour_logp_T=None if logp_T is None else logp_T[at : at + size],
                text=turns[0].action if turns else episode.text,
            )
        )  # fmt: skip
        at += size
    return made
