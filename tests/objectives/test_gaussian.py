"""Gaussian actions against torch.distributions, written-out closed forms and float64 gradients."""

from __future__ import annotations

import math

import pytest
import torch
from redistill.errors import UserError
from redistill.objectives.gaussian import entropy, imitation_error, kl, log_prob
from torch.distributions import Independent, Normal, kl_divergence

G = torch.Generator().manual_seed(0)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=G, dtype=torch.float64)


def test_log_prob_and_entropy_are_torch_s() -> None:
    mean, log_std, action = draw(7, 3), 0.5 * draw(3), draw(7, 3)
    theirs = Independent(Normal(mean, log_std.exp()), 1)
    torch.testing.assert_close(log_prob(action, mean, log_std), theirs.log_prob(action))
    torch.testing.assert_close(entropy(log_std.expand(7, 3)), theirs.entropy())


def test_kl_is_torch_s_in_both_directions() -> None:
    one, other = (draw(7, 3), 0.5 * draw(3)), (draw(7, 3), 0.5 * draw(7, 3))
    first, second = (Independent(Normal(mean, log_std.expand(7, 3).exp()), 1) for mean, log_std in (one, other))
    torch.testing.assert_close(kl(first=one, second=other), kl_divergence(first, second))
    torch.testing.assert_close(kl(first=other, second=one), kl_divergence(second, first))
    assert float(kl(first=one, second=one).abs().max()) == 0.0


def test_kl_of_one_dimension_written_out() -> None:
    mu, sigma, m, s = 0.3, 0.7, -0.4, 1.3
    expected = math.log(s / sigma) + (sigma**2 + (mu - m) ** 2) / (2 * s**2) - 0.5
    given = [
        (torch.tensor([[a]], dtype=torch.float64), torch.tensor([math.log(b)], dtype=torch.float64))
        for a, b in ((mu, sigma), (m, s))
    ]
    assert float(kl(first=given[0], second=given[1])) == pytest.approx(expected, rel=1e-12)


def test_kl_is_the_mean_log_ratio_of_samples() -> None:
    one, other = (draw(1, 2), 0.3 * draw(2)), (draw(1, 2), 0.3 * draw(2))
    samples = one[0] + one[1].exp() * draw(400_000, 2)
    ratio = log_prob(samples, *one) - log_prob(samples, *other)
    assert float(ratio.mean()) == pytest.approx(float(kl(first=one, second=other)), rel=0.01)


@pytest.mark.parametrize("kind", ["mse", "l1", "bc"])
def test_imitation_errors_written_out(kind: str) -> None:
    mean, log_std, proposed = draw(5, 3), 0.5 * draw(3), draw(5, 2, 3)
    found = imitation_error(kind, proposed, mean, log_std)
    for n in range(5):
        each = []
        for s in range(2):
            gaps = [float(mean[n, d] - proposed[n, s, d]) for d in range(3)]
            if kind == "mse":
                each.append(sum(gap**2 for gap in gaps) / 3)
            elif kind == "l1":
                each.append(sum(abs(gap) for gap in gaps) / 3)
            else:
                widths = log_std.exp().tolist()
                each.append(
                    sum(
                        0.5 * (gap / w) ** 2 + math.log(w) + 0.5 * math.log(2 * math.pi) for gap, w in zip(gaps, widths)
                    )
                )
        assert float(found[n]) == pytest.approx(sum(each) / 2, rel=1e-12)


def test_gradients_of_imitation() -> None:
    """mse: 2 (mu - a) / D and none for the deviation; bc: 1 - ((a - mu) / sigma)^2 for its log."""
    mean, log_std = draw(5, 3).requires_grad_(), (0.5 * draw(3)).requires_grad_()
    proposed = draw(5, 1, 3).requires_grad_()
    (slope,) = torch.autograd.grad(imitation_error("mse", proposed, mean, log_std).sum(), mean)
    torch.testing.assert_close(slope, 2 * (mean - proposed[:, 0]).detach() / 3)
    unused = torch.autograd.grad(
        imitation_error("mse", proposed, mean, log_std).sum(), (log_std, proposed), allow_unused=True
    )
    assert unused == (None, None)
    (slope,) = torch.autograd.grad(imitation_error("bc", proposed, mean, log_std).mean(), log_std)
    torch.testing.assert_close(slope, (1 - ((proposed[:, 0] - mean) / log_std.exp()).square()).mean(0).detach())


def test_an_unknown_error_is_one_sentence() -> None:
    with pytest.raises(UserError, match="imitation loss 'mes' is unknown; did you mean 'mse'"):
        imitation_error("mes", draw(1, 1, 2), draw(1, 2), draw(2))
