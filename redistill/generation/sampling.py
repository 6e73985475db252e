"""Samplers: from initial noise to images, by the ODE or the SDE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from redistill.generation.flow import Kernel, euler_step, gaussian_logp, over, sde_mean, sde_std

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x [n, S, S], t [n]) -> v [n, S, S], class and guidance settled."""
Draw = Callable[[int], Tensor]
"""The noise [n, S, S] of a sampling step."""


@dataclass(frozen=True, eq=False)
class Sampled:
    """States [n, K + 1, S, S] of a chain and its log-probs [n, K]; of the ODE only the last state and no log-probs."""

    states: Tensor
    logp: Tensor | None = None


@torch.no_grad()
def ode(velocity: Velocity, x_nSS: Tensor, times: Tensor) -> Tensor:
    """Euler steps along `times` [K + 1]; the clean images [n, S, S]."""
    times = times.to(x_nSS)
    for step in range(len(times) - 1):
        t_n, next_n = times[step].expand(len(x_nSS)), times[step + 1].expand(len(x_nSS))
        x_nSS = euler_step(x_nSS, velocity(x_nSS, t_n), t_n, next_n)
    return x_nSS


@torch.no_grad()
def sde(velocity: Velocity, x_nSS: Tensor, times: Tensor, kernel: Kernel, draw: Draw, total: bool) -> Sampled:
    """Euler-Maruyama steps along `times` with a kernel's noise; `total` says how log-probs take the pixels."""
    times = times.to(x_nSS)
    g_K = kernel.scales(times)
    states, logps = [x_nSS], []
    for step in range(len(times) - 1):
        t_n, next_n, g_n = (value.expand(len(x_nSS)) for value in (times[step], times[step + 1], g_K[step]))
        mean = sde_mean(x_nSS, velocity(x_nSS, t_n), t_n, next_n, g_n)
        std_n = sde_std(t_n, next_n, g_n)
        x_nSS = mean + over(std_n) * draw(step)
        states.append(x_nSS)
        logps.append(gaussian_logp(x_nSS, mean, std_n, total))
    return Sampled(torch.stack(states, 1), torch.stack(logps, 1))
