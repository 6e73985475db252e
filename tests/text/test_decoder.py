"""The lean decoder against transformers' modules: every covered family, adapters, and weights that change."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from redistill.core.teachers import swapped
from redistill.text import decoder, native
from redistill.text.models import LanguageModel
from torch import nn

SHAPE: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
MIXED = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied-biased": ("Llama", {"tie_word_embeddings": True, "attention_bias": True}),
    "llama-3": ("Llama", {"rope_parameters": LLAMA3}),
    "mistral-window": ("Mistral", {"sliding_window": 5}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {}),
    "qwen3-mixed": ("Qwen3", {"layer_types": MIXED, "sliding_window": 4, "use_sliding_window": True}),
    "gemma3": ("Gemma3", {"layer_types": MIXED, "sliding_window": 4, "final_logit_softcapping": 5.0}),
}


def made(name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> LanguageModel:
    kind, options = FAMILIES[name]
    torch.manual_seed(5)
    config = getattr(transformers, f"{kind}TextConfig" if kind == "Gemma3" else f"{kind}Config")
    module = getattr(transformers, f"{kind}ForCausalLM")(config(**SHAPE | options | changes)).eval()
    with torch.no_grad():  # norms and biases start at one value; other values show a wrong one
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.rand_like(parameter) * 0.5)
    return LanguageModel(name, module, None, (1,), 64, dtype)


def of(lm: LanguageModel) -> decoder.Decoder:
    found = decoder.decoder_of(lm)
    assert found is not None
    return found


@torch.no_grad()
def last_logits(lm: LanguageModel, ids_BT: torch.Tensor, read: int) -> torch.Tensor:
    """The decoder's logits after reading `read` tokens in one pass and the others one at a time."""
    lean = of(lm)
    cache = lean.cache(len(ids_BT))
    lean.reach(ids_BT.shape[1])
    layers, hidden = lean.prefill(ids_BT[:, :read])
    cache.start(layers, np.arange(len(ids_BT)), np.full(len(ids_BT), read), 0, 1)
    logits = lean.logits(hidden[:, -1])
    for column in range(read, ids_BT.shape[1]):
        at = torch.full((len(ids_BT),), column)
        cache.point(at, column + 1)
        logits = lean.step(ids_BT[:, column].contiguous(), at, cache)
    return logits


@pytest.fixture(params=["native", "portable"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "portable":
        monkeypatch.setattr(native, "get", lambda: None)
    elif native.get() is None:
        pytest.skip("no C++ compiler here")


IDS = torch.arange(3 * 14).reshape(3, 14) * 7 % 50


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("read", [1, 9, 14])
@torch.no_grad()
def test_logits_are_the_models(name: str, read: int, kernels: None) -> None:
    lm = made(name)
    expected = lm.module(input_ids=IDS).logits[:, -1]
    torch.testing.assert_close(last_logits(lm, IDS, read), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_bfloat16_rounds_no_more_than_autocast(name: str, kernels: None) -> None:
    """Both compute in bfloat16 and neither is exact; the decoder is as near the float32 model as autocast is."""
    lm, ids = made(name, torch.bfloat16), torch.arange(40 * 14).reshape(40, 14) * 7 % 47
    exact = lm.module(input_ids=ids).logits[:, -1].log_softmax(-1)
    half = lm.head().logits(lm.hidden(ids).last_hidden_state[:, -1].float()).log_softmax(-1)
    ours = last_logits(lm, ids, 9).log_softmax(-1)
    assert (ours - exact).square().mean() <= 2 * (half - exact).square().mean() + 1e-6


def adapted(lm: LanguageModel) -> LanguageModel:
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.0)
    lm.module = peft.get_peft_model(lm.module, config).eval()
    with torch.no_grad():
        for name, parameter in lm.module.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    return lm


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3"])
@torch.no_grad()
def test_adapters_are_in_the_packed_weights_and_training_weights_untouched(name: str) -> None:
    lm = adapted(made(name))
    before = {key: value.clone() for key, value in lm.module.state_dict().items()}
    torch.testing.assert_close(last_logits(lm, IDS, 9), lm.module(input_ids=IDS).logits[:, -1], rtol=1e-4, atol=1e-4)
    with lm.module.disable_adapter():
        plain = lm.module(input_ids=IDS).logits[:, -1]
        torch.testing.assert_close(last_logits(lm, IDS, 9), plain, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain, last_logits(lm, IDS, 9), atol=1e-2)
    assert all(torch.equal(value, before[key]) for key, value in lm.module.state_dict().items())


def lora_of(lm: LanguageModel) -> nn.Parameter:
    return next(p for name, p in lm.module.named_parameters() if "lora_B" in name)


@torch.no_grad()
def test_weights_that_changed_are_packed_again() -> None:
    """An optimiser's write, a single value, weights that are swapped in and those that evolve while they are away, an
    adapter's write; and nothing is packed again without a change."""
    lm = made("llama")
    first = of(lm)
    assert of(lm) is first

    def fresh() -> None:
        expected = lm.module(input_ids=IDS).logits[:, -1]
        torch.testing.assert_close(last_logits(lm, IDS, 9), expected, rtol=1e-4, atol=1e-4)

    optimiser = torch.optim.SGD(lm.module.parameters(), lr=0.1)
    for parameter in lm.module.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimiser.step()
    assert of(lm) is not first
    fresh()
    weight = lm.module.model.layers[2].mlp.down_proj.weight
    weight[3, 4] += 1.0
    fresh()
    own = dict(lm.module.named_parameters())
    copy = {name: p.clone() + 0.05 for name, p in own.items()}
    before = last_logits(lm, IDS, 9)
    for _ in range(2):  # in place and away from the model, as an EMA teacher's weights
        with swapped(own, copy):
            fresh()
        for tensor in copy.values():
            tensor.mul_(0.9)
    torch.testing.assert_close(last_logits(lm, IDS, 9), before)
    adapted(lm)
    fresh()
    lora_of(lm)[0, 0] += 0.5
    fresh()


@torch.no_grad()
def test_what_is_not_covered_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    config = transformers.GPTNeoXConfig(**SHAPE | {"num_attention_heads": 4})
    lm = LanguageModel("other", transformers.GPTNeoXForCausalLM(config).eval(), None, (1,), 64, torch.float32)
    with caplog.at_level(logging.WARNING):
        assert decoder.decoder_of(lm) is None
        next(lm.module.parameters()).add_(1.0)
        assert decoder.decoder_of(lm) is None
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert said[0].startswith("other is sampled through transformers' modules, slower: model type 'gpt_neox'")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"hidden_act": "relu"}, "activation 'relu'"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "rotary embedding 'dynamic'"),
    ],
)
def test_options_that_are_not_covered(changes: dict[str, Any], why: str) -> None:
    assert decoder.uncovered(made("llama", **changes)) == why


def test_a_wrong_translation_is_noticed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The probe: packed weights that compute something else are not sampled from."""
    lm = made("llama")
    monkeypatch.setattr(decoder, "_norm", lambda module: module.weight.detach().float() * 1.1)
    with caplog.at_level(logging.WARNING), torch.no_grad():
        assert decoder.decoder_of(lm) is None
    assert "compute something else" in caplog.text
