"""Packed attention: the hidden states and gradients of texts read one by one by transformers' own attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from redistill.text import attention
from redistill.text.attention import Row, attend, layout, packed_attention, supports
from redistill.text.packing import Piece, line

SHAPE: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 64, "initializer_range": 0.4,
    "pad_token_id": 0, "eos_token_id": 0, "bos_token_id": 1,
}  # fmt: skip
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("Llama", {}),
    ("Qwen3", {}),
    ("Mistral", {"sliding_window": 3}),
    ("Gemma2", {"attn_logit_softcapping": 0.3, "sliding_window": 3, "query_pre_attn_scalar": 7}),
]


def model(family: str, options: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SHAPE | options)
    config._attn_implementation = "eager"
    return getattr(transformers, f"{family}ForCausalLM")(config).eval()


def pieces() -> list[Piece]:
    """Two prompts that are shared and one that is not, responses of many lengths, two spans in one."""
    prompts = [(5, 6, 7), (8, 9), (8, 9), (5, 6, 7), (11, 12, 13, 14), (5, 6, 7)]
    sizes = [4, 9, 1, 7, 6, 2]
    spans = [((0, 4),), ((1, 3), (5, 9)), ((0, 1),), ((0, 7),), ((0, 6),), ((0, 2),)]
    return [
        Piece(i, p, tuple(20 + i + j for j in range(n)), s) for i, (p, n, s) in enumerate(zip(prompts, sizes, spans))
    ]


def one_by_one(module: Any, found: list[Piece]) -> torch.Tensor:
    states = []
    for piece in found:
        hidden = module.base_model(torch.tensor([piece.prompt + piece.response])).last_hidden_state[0]
        states.append(hidden[[len(piece.prompt) + j - 1 for j in piece.chosen()]])
    return torch.cat(states)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("longest", [0, 512])
@pytest.mark.parametrize(("family", "options"), FAMILIES, ids=[family for family, _ in FAMILIES])
def test_packed_is_one_by_one(
    family: str, options: dict[str, Any], longest: int, share: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and gradients, with written-out scores and with the fused kernel."""
    monkeypatch.setattr(attention, "LONGEST_DENSE", longest)
    module, found = model(family, options), pieces()
    assert supports(module)
    expected = one_by_one(module, found)
    mix = torch.randn(expected.shape)
    (expected * mix).sum().backward()
    wanted = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    made = line(found, share)
    with packed_attention(module):
        output = module.base_model(made.ids_1T, position_ids=made.position_1T, layout=made.layout, use_cache=False)
    packed = output.last_hidden_state[0][made.predict_n]
    (packed * mix).sum().backward()
    torch.testing.assert_close(packed, expected, rtol=1e-5, atol=2e-5)
    for name, parameter in module.named_parameters():
        if name in wanted:
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-4, msg=name)
    assert module.config._attn_implementation == "eager"


def test_a_bucket_wastes_little_and_rows_of_like_length_share_it() -> None:
    sizes = [3, 40, 41, 4, 39, 100]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    rows = [Row(range(a, a + n), range(a, a + n)) for a, n in zip(starts, sizes)]
    made = layout(rows, torch.cat([torch.arange(n) for n in sizes]))
    assert [tuple(bucket.back_RLS.shape) for bucket in made.buckets] == [(2, 4, 4), (3, 41, 41), (1, 100, 100)]


def test_a_call_it_is_not_made_for_is_refused() -> None:
    some = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match="one line of tokens with its layout"):
        attend(torch.nn.Identity(), some, some, some, None)
