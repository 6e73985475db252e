"""Schedules, noising, Euler and SDE steps against closed forms; keyed normal draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from redistill.core.noise import normal
from redistill.errors import UserError
from redistill.generation.flow import (
    Kernel,
    euler_step,
    gaussian_logp,
    guided,
    noised,
    schedule,
    sde_mean,
    sde_std,
)
from redistill.generation.sampling import ode, sde
from scipy import stats
from torch.distributions import Normal

MEAN, STD = 1.0, 0.5


def exact_velocity(x: torch.Tensor, t_n: torch.Tensor) -> torch.Tensor:
    """E[eps - x0 | x_t] for x0 ~ N(MEAN, STD^2): both are jointly Gaussian with x_t."""
    t = t_n[:, None, None]
    variance = (1 - t) ** 2 * STD**2 + t**2
    return -MEAN + (t - (1 - t) * STD**2) / variance * (x - (1 - t) * MEAN)


def start(count: int = 2000) -> torch.Tensor:
    return normal("start", np.arange(count)[:, None, None], np.arange(8)[:, None], np.arange(8))


def moments(x: torch.Tensor) -> tuple[float, float]:
    return float(x.mean()), float(x.std())


def test_the_ode_carries_noise_to_the_data() -> None:
    mean, std = moments(ode(exact_velocity, start(), schedule(1000)))
    assert mean == pytest.approx(MEAN, rel=5e-3)
    assert std == pytest.approx(STD, rel=5e-3)


@pytest.mark.parametrize("kernel", [Kernel("constant", 0.7), Kernel("flow", 0.7), Kernel("constant", 0.3)])
def test_check_2_the_sde_keeps_the_marginals_of_the_ode(kernel: Kernel) -> None:
    def draw(step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(step)
        return torch.randn(500, 8, 8, generator=generator, dtype=torch.float64)

    x0, times = start(500), schedule(1000)
    made = sde(exact_velocity, x0, times, kernel, draw, False)
    # 32,000 draws: standard errors .0028 and .002.
    mean, std = moments(made.states[:, -1])
    assert mean == pytest.approx(MEAN, abs=0.01)
    assert std == pytest.approx(STD, abs=0.007)
    middle = made.states[:, 500]
    t = float(times[500])
    assert moments(middle)[0] == pytest.approx((1 - t) * MEAN, abs=0.015)
    assert moments(middle)[1] == pytest.approx(((1 - t) ** 2 * STD**2 + t**2) ** 0.5, abs=0.01)

    # Without the score the same noise does not come out at the data's spread.
    x, g = x0, kernel.scales(times)
    for step in range(1000):
        t_n, next_n = times[step].expand(500), times[step + 1].expand(500)
        x = euler_step(x, exact_velocity(x, t_n), t_n, next_n)
        x = x + sde_std(t_n, next_n, g[step].expand(500))[:, None, None] * draw(step)
    assert abs(moments(x)[1] - STD) > 0.02


def test_the_mean_is_flow_grpo_s_published_one() -> None:
    generator = torch.Generator().manual_seed(0)
    x, v = (torch.randn(7, 3, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.linspace(0.1, 1.0, 7, dtype=torch.float64)
    after, g = t - 0.07, torch.linspace(0.2, 0.9, 7, dtype=torch.float64)
    s, d, w = t[:, None, None], 0.07, g[:, None, None]
    expected = x * (1 - w**2 * d / (2 * s)) - v * (1 + w**2 * (1 - s) / (2 * s)) * d
    torch.testing.assert_close(sde_mean(x, v, t, after, g), expected)
    # No noise is the ODE.
    torch.testing.assert_close(sde_mean(x, v, t, after, 0 * g), euler_step(x, v, t, after))


def test_scales_of_the_kernels() -> None:
    times = schedule(4)
    expected = [0.7 * (t / (1 - below)) ** 0.5 for t, below in ((1.0, 0.75), (0.75, 0.75), (0.5, 0.5), (0.25, 0.25))]
    assert Kernel("flow", 0.7).scales(times).tolist() == pytest.approx(expected)
    assert Kernel("constant", 0.3).scales(times).tolist() == [0.3] * 4


def test_shifted_times() -> None:
    times = schedule(16, 5.0)
    assert times[[0, 12, 13, 14, 16]].tolist() == pytest.approx([1.0, 0.625, 0.536, 0.417, 0.0], abs=5e-4)
    assert schedule(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_noising_and_what_the_velocity_gives_back() -> None:
    x0, eps, t = (
        start(3),
        normal("eps", np.arange(3)[:, None, None], np.zeros((8, 8), dtype=int)),
        torch.tensor([0.2, 0.5, 0.9]),
    )
    x, v = noised(x0, eps, t.double()), eps - x0
    torch.testing.assert_close(x - t[:, None, None] * v, x0)
    torch.testing.assert_close(x + (1 - t[:, None, None]) * v, eps)
    torch.testing.assert_close(euler_step(x, v, t.double(), 0 * t.double()), x0)


def test_guidance() -> None:
    c, u = start(2), start(2).flip(0)
    torch.testing.assert_close(guided(c, u, torch.tensor([1.0, 0.0]).double()), torch.stack([c[0], u[1]]))
    torch.testing.assert_close(guided(c, u, torch.full((2,), 4.5).double()), 4.5 * c - 3.5 * u)


def test_log_probs_are_a_normal_s() -> None:
    x, mean, std = start(4), 0.3 * start(4).flip(0), torch.tensor([0.1, 0.5, 1.0, 2.0], dtype=torch.float64)
    expected = Normal(mean, std[:, None, None]).log_prob(x)
    torch.testing.assert_close(gaussian_logp(x, mean, std), expected.mean((1, 2)))
    torch.testing.assert_close(gaussian_logp(x, mean, std, total=True), expected.sum((1, 2)))


def test_normal_draws_are_normal_and_a_function_of_their_key() -> None:
    draws = normal("n", 3, np.arange(200)[:, None], np.arange(100))
    assert stats.kstest(draws.flatten().numpy(), "norm").pvalue > 0.01
    assert float(torch.corrcoef(draws[:2])[0, 1].abs()) < 0.35
    assert float(normal("n", 3, 17, 42)) == float(draws[17, 42])
    assert bool(draws.isfinite().all())


def test_bad_kernels_are_refused() -> None:
    with pytest.raises(UserError, match="kernel 'flwo' is unknown; did you mean 'flow'"):
        Kernel("flwo")
    with pytest.raises(UserError, match="noise level of an SDE must be above 0, got 0"):
        Kernel("flow", 0.0)
