"""Activation checkpointing changes memory, nothing else."""

from __future__ import annotations

import pytest
import torch
from redistill.errors import UserError
from redistill.text import packing
from redistill.text.checkpointing import recompute_layers
from redistill.text.domain import _hidden
from redistill.text.models import LanguageModel, load_model
from torch import Tensor

PIECES = [packing.Piece(i, (5, 6, 7), tuple(range(8 + i, 20 + i)), ((0, 12),)) for i in range(3)]


def gradients(lm: LanguageModel) -> tuple[dict[str, Tensor], int]:
    """Gradients of a loss over packed rows, and the bytes that autograd kept for it."""
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = _hidden(lm, PIECES)[0].square().sum()
    lm.module.zero_grad()
    loss.backward()
    return {
        name: parameter.grad.clone() for name, parameter in lm.trainable().items() if parameter.grad is not None
    }, kept


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_gradients_are_the_same_and_less_is_kept(dtype: str, lora_rank: int) -> None:
    lm = load_model("pocket", dtype=dtype, lora_rank=lora_rank)
    plain, much = gradients(lm)
    recompute_layers(lm)
    assert not any(isinstance(part, torch.nn.Dropout) and part.training for part in lm.module.modules())
    again, little = gradients(lm)
    assert plain.keys() == again.keys()
    for name in plain:
        torch.testing.assert_close(again[name], plain[name], rtol=0, atol=0)
    assert little < much / 2


def test_a_model_that_cannot_is_refused() -> None:
    lm = load_model("pocket")
    lm.causal.supports_gradient_checkpointing = False
    with pytest.raises(UserError, match="checkpointing=false"):
        recompute_layers(lm)
