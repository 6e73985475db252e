"""Activation checkpointing (Chen et al., arXiv 1604.06174): a layer's inner states are made again in the backward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from redistill.errors import UserError
from redistill.text.attention import NAME, packed_attention
from redistill.text.models import LanguageModel

__all__ = ["recompute_layers", "recomputing"]


def recompute_layers(lm: LanguageModel) -> None:
    """Keep one state a layer in every packed forward pass with gradient from now on. UserError for a model that cannot."""
    layers = _layers(lm.causal)
    if not layers or not lm.causal.supports_gradient_checkpointing:
        raise UserError(f"model {lm.name!r} cannot make its activations again: set checkpointing=false")

    def again(function: Callable[..., Any], *inputs: Any) -> Any:
        packed = lm.causal.config.get_text_config()._attn_implementation == NAME

        def run(*inner: Any) -> Any:  # in the backward pass the model's attention is its own again
            with packed_attention(lm.causal) if packed else contextlib.nullcontext():
                return function(*inner)

        return checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=False)

    for layer in layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = again


@contextlib.contextmanager
def recomputing(causal: Any) -> Iterator[None]:
    """Inside the block layers told by `recompute_layers` do so, if there is a gradient. transformers asks a layer whether it
    trains; only the layers say yes, their parts stay in eval mode. Without a gradient they must not say so: a layer that
    trains drops the cache of keys and values."""
    layers = [layer for layer in _layers(causal) if layer.gradient_checkpointing] if torch.is_grad_enabled() else []
    try:
        for layer in layers:
            layer.training = True
        yield
    finally:
        for layer in layers:
            layer.training = False


def _layers(causal: Any) -> list[Any]:
    return [part for part in causal.modules() if isinstance(part, GradientCheckpointingLayer)]
