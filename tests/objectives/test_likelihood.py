"""Weighted likelihood against torch's cross entropy."""

import math

import pytest
import torch
import torch.nn.functional as F
from redistill.objectives.likelihood import weighted_nll


def test_value_and_gradient_are_those_of_cross_entropy() -> None:
    source = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, generator=source, dtype=torch.float64, requires_grad=True)
    taken = torch.tensor([0, 4, 2, 2, 1, 3])
    weight = torch.tensor([1.0, 0.5, 0.0, -0.25, 2.0, 1.0], dtype=torch.float64)
    logp = logits.log_softmax(-1)[torch.arange(6), taken]
    peer = F.cross_entropy(logits, taken, reduction="none")
    torch.testing.assert_close(weighted_nll(logp), peer)
    torch.testing.assert_close(weighted_nll(logp, weight), weight * peer)
    got, want = (
        torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in (weighted_nll(logp, weight), weight * peer)
    )
    torch.testing.assert_close(got, want)


def test_weight_zero_is_out_and_weights_get_no_gradient() -> None:
    logp = torch.tensor([-math.inf, -1.0], requires_grad=True)
    weight = torch.tensor([0.0, 2.0], requires_grad=True)
    loss = weighted_nll(logp, weight)
    assert loss.tolist() == [0.0, 2.0]
    loss.sum().backward()
    assert logp.grad is not None
    assert logp.grad.tolist() == [0.0, -2.0]
    assert weight.grad is None
    with pytest.raises(ValueError, match="differ in shape"):
        weighted_nll(logp, weight[:1])
