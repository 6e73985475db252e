"""The arithmetic of rectified flows, on tensors alone: times, noising, Euler and SDE steps, Gaussian log-probs.

Convention: x_t = (1-t) x0 + t eps with t from 0 (clean) to 1 (noise), v = eps - x0, so x0 = x_t - t v and
eps = x_t + (1-t) v. Suffixes: n samples (each with its own time), S pixels of a side, K sampling steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from redistill.errors import UserError, nearest

KERNELS = ("flow", "constant")


@dataclass(frozen=True)
class Kernel:
    """The noise of an SDE sampler. "flow": g = level * sqrt(t / (1-t)), with the second time for t = 1 in the denominator
    (Flow-GRPO, arXiv 2505.05470); "constant": g = level (DanceGRPO, arXiv 2505.07818). It travels with each chain."""

    name: str = "flow"
    level: float = 0.7

    def __post_init__(self) -> None:
        if self.name not in KERNELS:
            raise UserError(f"kernel {self.name!r} is unknown{nearest(self.name, KERNELS)}")
        if not 0 < self.level < math.inf:
            raise UserError(f"the noise level of an SDE must be above 0, got {self.level:g}")

    def scales(self, times_K1: Tensor) -> Tensor:
        """g at each of the K steps of a schedule [K + 1]."""
        if self.name == "constant":
            return torch.full_like(times_K1[:-1], self.level)
        below = torch.where(times_K1[:-1] >= 1.0, times_K1[1], times_K1[:-1])
        return self.level * (times_K1[:-1] / (1.0 - below)).sqrt()


def schedule(steps: int, shift: float = 1.0) -> Tensor:
    """Times 1 = t_0 > ... > t_K = 0 of a sampler, float64 [K + 1]: evenly spaced, then t <- s t / (1 + (s-1) t)."""
    even = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)
    return shift * even / (1.0 + (shift - 1.0) * even)


def over(values_n: Tensor) -> Tensor:
    """[n] -> [n, 1, 1], to multiply images."""
    return values_n[:, None, None]


def noised(x0_nSS: Tensor, eps_nSS: Tensor, t_n: Tensor) -> Tensor:
    """x_t = (1-t) x0 + t eps."""
    return (1.0 - over(t_n)) * x0_nSS + over(t_n) * eps_nSS


def euler_step(x_nSS: Tensor, v_nSS: Tensor, t_n: Tensor, next_n: Tensor) -> Tensor:
    """The ODE from t to the (smaller) next time."""
    return x_nSS - over(t_n - next_n) * v_nSS


def sde_mean(x_nSS: Tensor, v_nSS: Tensor, t_n: Tensor, next_n: Tensor, g_n: Tensor) -> Tensor:
    """Mean of one Euler-Maruyama step with noise scale g: x - D v + g^2 D s / 2, where D = t - next and the score is
    s = -(x + (1-t) v) / t; the step's standard deviation is `sde_std`. It keeps the marginals of the ODE."""
    score = -(x_nSS + over(1.0 - t_n) * v_nSS) / over(t_n)
    return euler_step(x_nSS, v_nSS, t_n, next_n) + over(0.5 * g_n.square() * (t_n - next_n)) * score


def sde_std(t_n: Tensor, next_n: Tensor, g_n: Tensor) -> Tensor:
    """g sqrt(t - next) [n]."""
    return g_n * (t_n - next_n).sqrt()


def gaussian_logp(x_nSS: Tensor, mean_nSS: Tensor, std_n: Tensor, total: bool = False) -> Tensor:
    """Log-density [n] of x under an isotropic Gaussian: the mean over pixels (what the released trainers of Flow-GRPO
    and DanceGRPO take for the log-prob), or with `total` the sum (the density itself)."""
    logp = -(x_nSS - mean_nSS).square() / over(2.0 * std_n.square()) - over(std_n.log()) - 0.5 * math.log(2.0 * math.pi)
    return logp.sum((1, 2)) if total else logp.mean((1, 2))


def guided(conditional_nSS: Tensor, free_nSS: Tensor, scale_n: Tensor) -> Tensor:
    """Classifier-free guidance: v_u + s (v_c - v_u); 1 is no guidance, 0 no class."""
    return free_nSS + over(scale_n) * (conditional_nSS - free_nSS)
