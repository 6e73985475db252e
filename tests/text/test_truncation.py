"""Truncation against transformers' warpers and small cases by hand; draws against the exact distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from redistill.core import rng
from redistill.errors import UserError
from redistill.text import truncation
from redistill.text.truncation import Sampling, draw, truncate
from scipy.stats import chisquare
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper


def random_logits(rows: int, vocabulary: int, spread: float = 3.0) -> torch.Tensor:
    values = rng.generator("test truncation", rows, vocabulary).normal(size=(rows, vocabulary)) * spread
    return torch.tensor(values, dtype=torch.float32)


def peer(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """transformers' warpers in the order in which its `generate` applies them."""
    if sampling.temperature != 1:
        logits = TemperatureLogitsWarper(sampling.temperature)(None, logits)
    if sampling.top_k:
        logits = TopKLogitsWarper(sampling.top_k)(None, logits)
    if sampling.top_p < 1:
        logits = TopPLogitsWarper(sampling.top_p)(None, logits)
    if sampling.min_p:
        logits = MinPLogitsWarper(sampling.min_p)(None, logits)
    return logits


SPECS = [
    Sampling(temperature=0.6),
    Sampling(top_p=0.8),
    Sampling(top_p=0.02),
    Sampling(top_k=7),
    Sampling(min_p=0.05),
    Sampling(temperature=1.7, top_k=20, top_p=0.9),
    Sampling(temperature=0.7, top_p=0.95, min_p=0.1),
    Sampling(temperature=2.0, top_k=50, top_p=0.7, min_p=0.02),
    Sampling(top_k=100_000),
]


@pytest.mark.parametrize("sampling", SPECS, ids=str)
@pytest.mark.parametrize("vocabulary", [11, 500, 3000])
def test_same_logits_as_transformers(sampling: Sampling, vocabulary: int) -> None:
    logits = random_logits(16, vocabulary)
    before = logits.clone()
    ours, theirs = truncate(logits, sampling), peer(logits, sampling)
    assert torch.equal(torch.isinf(ours), torch.isinf(theirs))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    assert torch.equal(logits, before)


def test_nucleus_wider_than_the_guesses() -> None:
    """A peaked, a broad and a nearly flat row in one batch: each nucleus of .9 takes another guess, or a full sort."""
    logits = random_logits(3, 12_000) * torch.tensor([[2.0], [0.6], [0.01]])
    sampling = Sampling(top_p=0.9)
    kept = torch.isfinite(truncate(logits, sampling))
    small, large = truncation._NUCLEUS_GUESSES
    counts = kept.sum(-1).tolist()
    assert counts[0] < small < counts[1] < large < counts[2]
    assert torch.equal(kept, torch.isfinite(peer(logits, sampling)))


def test_nucleus_by_hand() -> None:
    """p = .5 .3 .15 .05: the smallest sets of mass >= .5, .51, .8+, .96 have 1, 2, 3 and 4 tokens."""
    logits = torch.tensor([[0.15, 0.5, 0.05, 0.3]], dtype=torch.float64).log()
    for top_p, kept in ((0.499, [1]), (0.51, [1, 3]), (0.81, [0, 1, 3]), (0.96, [0, 1, 2, 3]), (1e-9, [1])):
        assert torch.isfinite(truncate(logits, Sampling(top_p=top_p)))[0].nonzero().flatten().tolist() == kept


def test_ties_in_the_nucleus_keep_the_lower_ids() -> None:
    """Four equal tokens: just under half the mass is two of them, for a small and for a large vocabulary."""
    for width in (4, 5000):
        logits = torch.full((1, width), -40.0)
        logits[0, :4] = 0.0
        assert torch.isfinite(truncate(logits, Sampling(top_p=0.49)))[0].nonzero().flatten().tolist() == [0, 1]


def test_renormalised_on_the_support_with_gradient() -> None:
    logits = random_logits(3, 40).requires_grad_()
    logp = truncate(logits, Sampling(top_k=5)).log_softmax(-1)
    torch.testing.assert_close(logp.exp().sum(-1), torch.ones(3))
    logp.amax(-1).sum().backward()
    assert logits.grad is not None
    assert torch.equal((logits.grad != 0).sum(-1), torch.full((3,), 5))


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
    expected = peer(logits, sampling)[0].double().softmax(-1).numpy()
    seen = np.bincount(ids.numpy(), minlength=12)
    support = expected > 0
    assert not seen[~support].any()
    assert chisquare(seen[support], expected[support] / expected.sum() * 20_000).pvalue > 1e-3


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


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.inf),
        ("temperature", math.nan),
        ("temperature", "warm"),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_k", True),
        ("max_new_tokens", 0),
        ("stop", "end"),
        ("stop", ("",)),
    ],
)
def test_bad_spec_is_a_users_mistake(key: str, value: object) -> None:
    with pytest.raises(UserError, match=key):
        Sampling(**{key: value})


def test_truncated() -> None:
    assert not Sampling().truncated
    assert not Sampling(temperature=0.5).truncated
    assert not Sampling(temperature=0, top_k=3).truncated
    assert Sampling(top_k=3).truncated
    assert Sampling(top_p=0.9).truncated
    assert Sampling(min_p=0.1).truncated
    assert Sampling(stop=["a"]).stop == ("a",)  # type: ignore[arg-type]
