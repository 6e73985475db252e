"""Entropy against torch.distributions, its closed-form gradient, and empty outcomes."""

import math

import pytest
import torch
from redistill.objectives.entropy import entropy


def logits(rows: int = 5, outcomes: int = 7) -> torch.Tensor:
    source = torch.Generator().manual_seed(0)
    return (3 * torch.randn(rows, outcomes, generator=source, dtype=torch.float64)).requires_grad_()


def test_value_is_that_of_torch_distributions() -> None:
    z = logits()
    torch.testing.assert_close(entropy(z.log_softmax(-1)), torch.distributions.Categorical(logits=z).entropy())
    assert entropy(torch.zeros(1, 8).log_softmax(-1)).item() == pytest.approx(math.log(8))


def test_gradient_in_closed_form_and_by_gradcheck() -> None:
    z = logits()
    logp = z.log_softmax(-1)
    value = entropy(logp)
    (gradient,) = torch.autograd.grad(value.sum(), z)
    p = logp.detach().exp()
    torch.testing.assert_close(gradient, -p * (logp.detach() + value.detach()[:, None]), rtol=1e-10, atol=1e-14)
    assert torch.autograd.gradcheck(entropy, z.detach().log_softmax(-1).requires_grad_())


def test_empty_outcomes_cost_nothing() -> None:
    z = torch.tensor([[0.0, 1.0, -math.inf], [-math.inf, 0.0, -math.inf]], dtype=torch.float64, requires_grad=True)
    value = entropy(z.log_softmax(-1))
    q = 1 / (1 + math.e)
    assert value.tolist() == pytest.approx([-q * math.log(q) - (1 - q) * math.log(1 - q), 0.0])
    (gradient,) = torch.autograd.grad(value.sum(), z)
    assert torch.isfinite(gradient).all()
    assert (gradient[z.detach() == -math.inf] == 0).all()


def test_one_tensor_of_the_vocabulary_waits_for_backward() -> None:
    logp = logits(4, 1000).detach().log_softmax(-1).requires_grad_()
    kept: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        entropy(logp)
    assert kept == [torch.Size([4, 1000])]
