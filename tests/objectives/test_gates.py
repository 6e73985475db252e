"""Weights per step against their closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from redistill.core.specs import Support
from redistill.errors import UserError
from redistill.objectives.divergence import restrict
from redistill.objectives.entropy import entropy
from redistill.objectives.gates import entropy_weights

EVERY = torch.ones(2, dtype=torch.bool)


def test_srpo_check_1_two_tokens_have_the_stated_weights() -> None:
    weights = entropy_weights(torch.tensor([0.0, math.log(2)], dtype=torch.float64), 1.0, EVERY)
    torch.testing.assert_close(weights, torch.tensor([4 / 3, 2 / 3], dtype=torch.float64))


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 7.0])
def test_srpo_check_1_the_mean_weight_is_1_and_beta_0_weighs_all_alike(beta: float) -> None:
    torch.manual_seed(0)
    entropy_N, mask_N = 5 * torch.rand(40, dtype=torch.float64), torch.rand(40) > 0.4
    weights = entropy_weights(entropy_N, beta, mask_N)
    assert float(weights[mask_N].mean()) == pytest.approx(1.0, abs=1e-12)
    assert float(weights[~mask_N].abs().max()) == 0.0
    if beta == 0.0:
        assert torch.equal(weights[mask_N], torch.ones(int(mask_N.sum()), dtype=torch.float64))


def test_srpo_check_6_a_uniform_teacher_has_weight_v_to_the_minus_beta_and_a_tail_lowers_entropy() -> None:
    v, beta = 50, 0.7
    uniform = torch.full((1, v), -math.log(v), dtype=torch.float64)
    assert float(entropy(uniform)) == pytest.approx(math.log(v))
    pair = entropy_weights(torch.tensor([0.0, float(entropy(uniform))]), beta, EVERY)
    assert float(pair[1] / pair[0]) == pytest.approx(v**-beta, rel=1e-5)
    logp = torch.randn(30, v, dtype=torch.float64).log_softmax(-1)
    for k in (1, 5, 20):
        narrowed = restrict(Support("top_k", k, "teacher"), student_logp_NV=logp, teacher_logp_NV=logp)[1]
        assert bool((entropy(narrowed) <= entropy(logp) + 1e-12).all())


def test_large_entropies_do_not_underflow_and_an_empty_mask_is_zeros() -> None:
    weights = entropy_weights(torch.tensor([800.0, 800.0 + math.log(2)], dtype=torch.float64), 1.0, EVERY)
    torch.testing.assert_close(weights, torch.tensor([4 / 3, 2 / 3], dtype=torch.float64))
    assert float(entropy_weights(torch.ones(2), 1.0, ~EVERY).abs().max()) == 0.0


def test_a_negative_beta_is_refused() -> None:
    with pytest.raises(UserError, match="beta"):
        entropy_weights(torch.zeros(2), -1.0, EVERY)
