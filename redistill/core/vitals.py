"""What every run records of a step beside its losses, at no cost worth naming: what it sampled, and how much of that taught."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from redistill.core.episode import Episode, Group
from redistill.core.signal import Signal


def describe_groups(groups: Sequence[Group]) -> dict[str, float]:
    """Of the step's episodes: reward, dead groups, length, truncation and, where a policy of ours sampled them, `entropy`:
    the mean surprisal -log p of what was sampled, an unbiased estimate of the policy's entropy per step (nats)."""
    episodes = [episode for group in groups for episode in group]
    judged = [group for group in groups if all(episode.verdict is not None for episode in group) and len(group)]
    if not episodes:
        return {"episodes": 0.0}
    found = {
        "episodes": float(len(episodes)),
        "length": sum(episode.steps for episode in episodes) / len(episodes),
        "truncated": sum(episode.finish == "length" for episode in episodes) / len(episodes),
    }
    if judged:
        rewards = [float(group.rewards.mean()) for group in judged]
        found["reward"] = sum(rewards) / len(rewards)
        found["given_up"] = float(sum(e.verdict is not None and e.verdict.limit is not None for e in episodes))
        found["dead_groups"] = sum(float(group.rewards.max() == group.rewards.min()) for group in judged) / len(judged)
    drawn = [e.behaviour_logp_T for e in episodes if e.behaviour_logp_T is not None and not _greedy(e)]
    if sum(map(len, drawn)):
        found["entropy"] = -float(torch.cat(drawn).double().mean())
    return found


def _greedy(episode: Episode) -> bool:
    """Whether the likeliest outcome was taken each time: its surprisal is no estimate of an entropy."""
    return bool(getattr(episode.sampling, "greedy", False))


def activity(signals: Sequence[Signal], groups: Sequence[Group]) -> dict[str, float]:
    """`active_episodes` and `active_tokens`: the shares of what was gathered that some term of the student asks anything of.
    A step is active where a term covers it with a weight (and a policy gradient with an advantage) that is not 0."""
    own = [signal for signal in signals if signal.player == "student"]
    if not own:
        return {}
    rows = sum(len(signal.rows) for signal in own)
    steps = sum(sum(signal.lengths) for signal in own)
    gathered = [episode for group in groups for episode in group]
    active = [_active_steps(signal) for signal in own]
    alive = sum(_alive(signal, active_N) for signal, active_N in zip(own, active))
    return {
        "active_episodes": alive / max(1, rows, len(gathered)),
        "active_tokens": sum(float(active_N.sum()) for active_N in active)
        / max(1, steps, sum(episode.steps for episode in gathered)),
    }


def _active_steps(signal: Signal) -> Tensor:
    """Steps of the signal that some term asks something of, bool [N]."""
    active_N = torch.zeros(sum(signal.lengths), dtype=torch.bool)
    for term in signal.terms:
        asks_N = torch.full_like(active_N, term.coefficient != 0)
        if term.mask_N is not None:
            asks_N &= term.mask_N.bool()
        for weight_N in (term.weight_N, getattr(term, "advantage_N", None)):
            if weight_N is not None:
                asks_N &= weight_N != 0
        active_N |= asks_N
    return active_N


def _alive(signal: Signal, active_N: Tensor) -> int:
    """How many rows have an active step."""
    length_R = torch.tensor(signal.lengths, dtype=torch.int64)
    row_N = torch.arange(len(length_R)).repeat_interleave(length_R)
    return int((torch.zeros(len(length_R), dtype=torch.int64).index_add(0, row_N, active_N.long()) > 0).sum())
