"""Advantages from rewards and values along an episode, and the loss of a value function.

Suffixes: E episodes, T actions of the longest one (shorter ones are followed by anything), N steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gae(
    reward_ET: Tensor, value_EV: Tensor, lengths: Sequence[int], terminated_E: Tensor, *, gamma: float, decay: float,
    finite_horizon: bool,
) -> Tensor:  # fmt: skip
    """Generalised advantage estimates (arXiv 1506.02438) at every action [E, T]; 0 behind an episode's end.

    With G_n the return of n rewards and the value behind them, A_t is the mean of the G_n that the episode has, weighted by
    decay^(n-1), minus V_t. `finite_horizon` divides by the weights that there are; without it the last G_n has the weight
    of all that would follow, which is the usual recursion A = r + gamma V' - V + gamma decay A'. `value_EV` holds T + 1
    values, of the state after the last action too; it counts as 0 where the world ended the episode (terminated_E).
    """
    size, horizon = reward_ET.shape
    length_E = torch.as_tensor(lengths, device=reward_ET.device)
    found_ET = torch.zeros_like(reward_ET)
    weights_E, rewards_E, values_E, usual_E = (reward_ET.new_zeros(size) for _ in range(4))
    for t in reversed(range(horizon)):
        inside_E, last_E = t < length_E, t == length_E - 1
        after_E = torch.where(last_E & terminated_E, 0.0, value_EV[:, t + 1])
        if finite_horizon:
            weights_E = torch.where(inside_E, 1.0 + decay * weights_E, 0.0)
            rewards_E = torch.where(inside_E, weights_E * reward_ET[:, t] + gamma * decay * rewards_E, 0.0)
            values_E = torch.where(inside_E, gamma * after_E + gamma * decay * values_E, 0.0)
            advantage_E = (rewards_E + values_E) / weights_E.clamp(min=1.0) - value_EV[:, t]
        else:
            step_E = reward_ET[:, t] + gamma * after_E - value_EV[:, t]
            usual_E = torch.where(inside_E, step_E + gamma * decay * usual_E, 0.0)
            advantage_E = usual_E
        found_ET[:, t] = torch.where(inside_E, advantage_E, 0.0)
    return found_ET


def value_loss(value_N: Tensor, return_N: Tensor, before_N: Tensor | None, clip: float | None) -> Tensor:
    """(V - R)^2 / 2 [N]. With a clip the larger of that and the same for V within `clip` of what it was (PPO2's way of
    holding a value function back). Gradient flows to V alone."""
    error_N = (value_N - return_N.detach()).square()
    if clip is not None and before_N is not None:
        near_N = before_N.detach() + (value_N - before_N.detach()).clamp(-clip, clip)
        error_N = torch.maximum(error_N, (near_N - return_N.detach()).square())
    return 0.5 * error_N


def standardised(value_N: Tensor, kept_N: Tensor, epsilon: float = 1e-8) -> Tensor:
    """(value - mean) / (std + epsilon) over the kept steps [N], with the deviation over one less than their count (as
    PPO's mini-batches do); a lone step becomes 0. Steps that are not kept are 0."""
    count = int(kept_N.sum())
    if count == 0:
        return torch.zeros_like(value_N)
    kept = value_N[kept_N]
    spread = kept.std() if count > 1 else kept.new_zeros(())
    return torch.where(kept_N, (value_N - kept.mean()) / (spread + epsilon), torch.zeros_like(value_N))
