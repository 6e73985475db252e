"""Draws against the exact distribution, by the compiled kernel and by torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from redistill.core import rng
from redistill.errors import UserError
from redistill.text import native
from redistill.text.drawing import draw
from redistill.text.truncation import Sampling, truncate
from scipy.stats import chisquare

SPECS = [
    Sampling(),
    Sampling(temperature=0.6),
    Sampling(top_k=3, top_p=0.9),
    Sampling(min_p=0.1),
    Sampling(temperature=0),
]


@pytest.fixture(params=["native", "portable"], autouse=True)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "portable":
        monkeypatch.setattr(native, "get", lambda: None)
    elif native.get() is None:
        pytest.skip("no C++ compiler here")


def random_logits(rows: int, vocabulary: int, spread: float = 3.0) -> torch.Tensor:
    values = rng.generator("test truncation", rows, vocabulary).normal(size=(rows, vocabulary)) * spread
    return torch.tensor(values, dtype=torch.float32)


@pytest.mark.parametrize("vocabulary", [3, 256, 1024, 1025, 2000])
def test_draw_is_the_inverse_of_the_distribution_function(vocabulary: int) -> None:
    """Against numpy's cumulative sum in float64, over a grid of uniforms that holds both ends."""
    logits = random_logits(1, vocabulary, spread=1.0)
    uniforms = np.append(np.linspace(0, 1, 4001)[:-1], 1 - 2.0**-53)
    ids, logp = draw(logits.expand(len(uniforms), -1), uniforms, Sampling())
    logp_V = logits[0].double().log_softmax(-1)
    passed = np.cumsum(logp_V.exp().numpy())
    assert ids[0] == 0
    assert ids[-1] == vocabulary - 1
    low = np.concatenate([[0.0], passed])[ids.numpy()]
    assert np.all(low - 1e-6 <= uniforms)
    assert np.all(uniforms <= passed[ids.numpy()] + 1e-6)
    torch.testing.assert_close(logp.double(), logp_V[ids], rtol=0, atol=1e-5)


@pytest.mark.parametrize("vocabulary", [700, 1800])
def test_draw_never_leaves_the_support(vocabulary: int) -> None:
    """Uniforms at both ends of [0, 1) with holes at the start, the middle and the end of the vocabulary."""
    logits = torch.full((4, vocabulary), -math.inf)
    logits[:, [3, 300, 650]] = torch.tensor([0.0, 1.0, 0.5])
    ids, logp = draw(logits, np.array([0.0, 0.3, 0.9, 1 - 2.0**-53]), Sampling())
    assert ids.tolist() == [3, 300, 650, 650]
    torch.testing.assert_close(logp, logits[0].log_softmax(-1)[ids])


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=1.5, top_k=6), Sampling(top_p=0.8, min_p=0.05)], ids=str
)
def test_draws_follow_the_distribution(sampling: Sampling) -> None:
    """Chi-square of 20,000 keyed draws over 12 tokens, refused below a p-value of 0.001 (a fixed key: never flaky)."""
    logits = random_logits(1, 12, spread=1.0)
    ids, _ = draw(logits.expand(20_000, -1), rng.uniform("chi-square", np.arange(20_000)), sampling)
    expected = truncate(logits, sampling)[0].double().softmax(-1).numpy()
    seen = np.bincount(ids.numpy(), minlength=12)
    support = expected > 0
    assert not seen[~support].any()
    assert chisquare(seen[support], expected[support] / expected.sum() * 20_000).pvalue > 1e-3


def test_a_row_is_drawn_alone() -> None:
    """The same ids and log-probs, bit for bit, whatever rows are beside (law 10)."""
    logits, uniforms = random_logits(50, 3001), rng.uniform("rows", np.arange(50))
    ids, logp = draw(logits, uniforms, Sampling(temperature=0.8))
    for row in (0, 17, 49):
        one, alone = draw(logits[row : row + 1], uniforms[row : row + 1], Sampling(temperature=0.8))
        assert one[0] == ids[row]
        assert alone[0] == logp[row]


def test_greedy_takes_the_first_best_and_records_temperature_one() -> None:
    logits = random_logits(5, 30)
    ids, logp = draw(logits, np.zeros(5), Sampling(temperature=0, top_k=2, top_p=0.5))
    assert torch.equal(ids, logits.argmax(-1))
    torch.testing.assert_close(logp, logits.log_softmax(-1).amax(-1))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("vocabulary", [10, 3000])
def test_logits_that_are_not_finite(value: float, vocabulary: int) -> None:
    logits = random_logits(2, vocabulary)
    logits[1, 4] = value
    for sampling in SPECS:
        with pytest.raises(UserError, match="not finite"):
            draw(logits, np.array([0.5, 0.5]), sampling)
