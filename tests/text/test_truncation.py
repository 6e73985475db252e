"""Truncation against transformers' warpers and small cases by hand."""

from __future__ import annotations

import math

import pytest
import torch
from redistill.core import rng
from redistill.errors import UserError
from redistill.text import truncation
from redistill.text.truncation import Sampling, truncate
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
