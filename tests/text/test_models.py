"""Language models: head against transformers' own logits, LoRA, saving, tokenizer comparison, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from redistill.errors import UserError
from redistill.tasks.sums import Sums
from redistill.text import models, precision, weights
from redistill.text.models import LanguageModel, compare_tokenizers, load_model, save_model
from redistill.text.views import TERSE, Evidence, with_solution
from safetensors.torch import load_file, save_file

IDS = torch.tensor([[0, 2, 23, 24, 25, 16, 26, 3, 9], [0, 2, 30, 31, 32, 33, 34, 3, 40]])
SHAPE: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 1,
    "eos_token_id": 1,
    "bos_token_id": 0,
}
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a tiny random model of a transformers family, with pocket's tokenizer; return its folder."""

    def written(family: str, change: Callable[[Any], None] | None = None, **options: Any) -> Path:
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(**SHAPE | options)
        folder = tmp_path / family
        getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(weights.POCKET)
        if change is not None:
            change(tokenizer)
        tokenizer.save_pretrained(folder)
        return folder

    return written


@torch.no_grad()
def theirs(lm: LanguageModel) -> torch.Tensor:
    return lm.module(input_ids=IDS).logits


@torch.no_grad()
def ours(lm: LanguageModel) -> torch.Tensor:
    return lm.head().logits(lm.hidden(IDS).last_hidden_state)


# ---- pocket ----


def answers(lm: LanguageModel, chats: list[Any]) -> list[str]:
    lm.tokenizer.padding_side = "left"
    asked = lm.tokenizer.pad({"input_ids": [lm.render(chat) for chat in chats]}, return_tensors="pt")
    out = lm.module.generate(**asked, max_new_tokens=16, do_sample=False)
    return lm.tokenizer.batch_decode(out[:, asked["input_ids"].shape[1] :], skip_special_tokens=True)


def test_pocket_answers_as_its_card_says() -> None:
    """Greedy accuracy on 150 held-out prompts within 3.3 standard errors of the card's (1 in 1,000 otherwise)."""
    card = json.loads((weights.POCKET / "pocket.json").read_text())["accuracy"]
    lm, task = load_model("pocket"), Sums()
    prompts = list(task.held_out(150))
    told = answers(lm, [p.content for p in prompts])
    right = sum(task.verify(p, text).reward for p, text in zip(prompts, told)) / len(prompts)
    assert abs(right - card["plain_greedy"]) < 3.3 * (card["plain_greedy"] * (1 - card["plain_greedy"]) / 150) ** 0.5
    solved = answers(lm, [with_solution(p.content, Evidence(solution=p.solution), TERSE) for p in prompts])
    assert sum(task.verify(p, text).reward for p, text in zip(prompts, solved)) >= 145
    assert 0.2 < card["plain_sampled"] < 0.5 < card["plain_pass_at_8"]
    assert card["with_solution"] >= 0.97
    assert card["with_feedback"] > card["plain_greedy_where_feedback"]


def test_pocket_renders_and_decodes_every_character() -> None:
    lm = load_model("pocket")
    text = "".join(map(chr, range(32, 127))) + "\n"
    ids = lm.tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) == len(set(ids)) == len(text) == 96
    assert lm.tokenizer.decode(ids) == text
    assert lm.tokenizer.decode(lm.render([{"role": "user", "content": "1+2="}])) == "<s><u>1+2=<a>"
    assert lm.tokenizer.convert_ids_to_tokens(lm.tokenizer.encode("é", add_special_tokens=False)) == ["<unk>"]
    assert (lm.eos_ids, lm.context, lm.dtype) == ((1,), 128, torch.float32)


def test_two_turns() -> None:
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    lm = load_model("pocket")
    assert lm.tokenizer.decode(lm.render(chat)) == "<s><u>a<a>b</s><u>c<a>"


# ---- head and hidden states ----


def test_head_of_pocket() -> None:
    lm = load_model("pocket")
    torch.testing.assert_close(ours(lm), theirs(lm), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("family", "options", "expected"),
    [
        ("Gemma3Text", {"final_logit_softcapping": 3.0, "sliding_window": 4}, (1.0, 3.0)),
        ("Cohere", {"logit_scale": 0.0625}, (0.0625, None)),
        ("Granite", {"logits_scaling": 8.0}, (0.125, None)),
        ("Qwen2", {}, (1.0, None)),
    ],
)
def test_head_of_families(make: Make, family: str, options: dict[str, Any], expected: tuple[float, Any]) -> None:
    if family == "Gemma3Text":
        options = options | {"layer_types": ["sliding_attention", "full_attention"]}
        lm = load_model(str(gemma_folder(make, options)))
    else:
        lm = load_model(str(make(family, **options)))
    head = lm.head()
    assert (head.scale, head.softcap) == expected
    torch.testing.assert_close(ours(lm), theirs(lm), rtol=1e-6, atol=1e-6)
    assert head.detached().weight_VD.requires_grad is False
    assert head.weight_VD.requires_grad is True


def gemma_folder(make: Make, options: dict[str, Any]) -> Path:
    """Gemma 3's text config goes by another name than its model."""
    torch.manual_seed(0)
    folder = make("Qwen2")
    config = transformers.Gemma3TextConfig(**SHAPE | options)
    transformers.Gemma3ForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_head_we_do_not_know_is_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = gemma_folder(make, {"final_logit_softcapping": 3.0})
    monkeypatch.setattr(models, "_scale_and_softcap", lambda config: (1.0, None))
    with pytest.raises(UserError, match="computes its logits in a way Redistill does not know"):
        load_model(str(folder))


def test_gradient_reaches_the_head_through_the_logits() -> None:
    lm = load_model("pocket")
    lm.head().logits(lm.hidden(IDS).last_hidden_state).square().mean().backward()
    mine = lm.causal.get_output_embeddings().weight.grad.clone()
    lm.module.zero_grad()
    lm.module(input_ids=IDS).logits.square().mean().backward()
    torch.testing.assert_close(mine, lm.causal.get_output_embeddings().weight.grad)


@torch.no_grad()
def test_hidden_with_a_cache_is_hidden_without() -> None:
    lm = load_model("pocket")
    whole = lm.hidden(IDS).last_hidden_state
    first = lm.hidden(IDS[:, :5], use_cache=True)
    rest = lm.hidden(IDS[:, 5:], past_key_values=first.past_key_values, use_cache=True).last_hidden_state
    torch.testing.assert_close(torch.cat([first.last_hidden_state, rest], dim=1), whole, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_bfloat16_is_autocast() -> None:
    exact, rough = load_model("pocket"), load_model("pocket", dtype="bfloat16")
    assert {p.dtype for p in rough.module.parameters()} == {torch.float32}
    difference = (ours(rough) - ours(exact)).abs().max() / ours(exact).abs().max()
    assert 1e-5 < difference < 0.05
    assert ours(rough).dtype == torch.float32


@torch.no_grad()
def test_weights_cast_once_give_what_weights_cast_at_every_call_give() -> None:
    lm = load_model("pocket", dtype="bfloat16", lora_rank=2)
    for name, parameter in lm.trainable().items():
        if "lora_B" in name:
            parameter.fill_(0.02)
    outside, before = ours(lm), {name: p.clone() for name, p in lm.module.named_parameters()}
    with lm.computing() as causal:
        assert {part.weight.dtype for part in causal.modules() if isinstance(part, torch.nn.Linear)} == {
            torch.bfloat16, torch.float32,
        }  # fmt: skip
        assert lm.head().weight_VD.dtype == torch.float32
        assert torch.equal(ours(lm), outside)
        with lm.computing():
            assert torch.equal(ours(lm), outside)
        assert torch.equal(ours(lm), outside)
    assert all(torch.equal(p, before[name]) and p.dtype == torch.float32 for name, p in lm.module.named_parameters())


def test_computing_in_float32_changes_nothing() -> None:
    lm = load_model("pocket")
    places = [p.data_ptr() for p in lm.module.parameters()]
    with lm.computing():
        assert [p.data_ptr() for p in lm.module.parameters()] == places


@pytest.mark.parametrize(("flags", "expected"), [({"avx2"}, torch.float32), ({"avx512_bf16"}, torch.bfloat16)])
def test_auto_dtype_asks_the_processor(monkeypatch: pytest.MonkeyPatch, flags: set[str], expected: torch.dtype) -> None:
    monkeypatch.setattr(precision, "cpu_flags", lambda: flags)
    assert precision.compute_dtype("auto", "cpu")[0] == expected


def test_unknown_dtype() -> None:
    with pytest.raises(UserError, match=r"dtype 'float16' is unknown; did you mean 'bfloat16'\?|'float32'"):
        load_model("pocket", dtype="float16")


# ---- training ----


def test_everything_trains_and_tied_weights_count_once() -> None:
    lm = load_model("pocket")
    card = json.loads((weights.POCKET / "pocket.json").read_text())
    assert sum(p.numel() for p in lm.trainable().values()) == card["parameters"]
    assert not any(module.training for module in lm.module.modules())


def test_dropout_is_removed(make: Make) -> None:
    lm = load_model(str(make("Qwen2", attention_dropout=0.3)))
    assert lm.module.config.attention_dropout == 0.0
    assert lm.source["notes"]["dropout_removed"] == {"attention_dropout": 0.3}
    lm.module.train()
    torch.testing.assert_close(ours(lm), ours(lm), rtol=0, atol=0)


def test_lora_trains_the_linear_layers_and_nothing_else() -> None:
    plain, lm = load_model("pocket"), load_model("pocket", lora_rank=3)
    linear = [name for name, part in plain.module.named_modules() if isinstance(part, torch.nn.Linear)]
    inner = [name for name in linear if name != "lm_head"]
    names = {f"base_model.model.{name}.lora_{side}.default.weight" for name in inner for side in "AB"}
    assert set(lm.trainable()) == names
    torch.testing.assert_close(ours(lm), ours(plain), rtol=0, atol=0)
    assert all(config.lora_alpha == 6 for config in lm.module.peft_config.values())
    lm.head().logits(lm.hidden(IDS).last_hidden_state).square().mean().backward()
    assert {name for name, p in lm.module.named_parameters() if p.grad is not None} == names
    torch.manual_seed(123)  # the start of an adapter does not depend on what ran before
    again = load_model("pocket", lora_rank=3)
    assert all(torch.equal(p, again.trainable()[name]) for name, p in lm.trainable().items())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lora_rank": -1}, "lora_rank=-1 is outside 1 to 96"),
        ({"lora_rank": 97}, "lora_rank=97 is outside 1 to 96"),
        ({"lora_rank": 4, "lora_alpha": 0.0}, "lora_alpha=0.0 is not above 0"),
        ({"lora_alpha": 8.0}, "needs a lora_rank of 1 or more"),
    ],
)
def test_lora_options_out_of_range(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_model("pocket", **options)


# ---- saving ----


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    lm = load_model("pocket")
    with torch.no_grad():
        for p in lm.trainable().values():
            p.mul_(1.01)
    for _ in range(2):  # the second time replaces the first
        save_model(lm, tmp_path / "out")
    again = load_model(str(tmp_path / "out"))
    torch.testing.assert_close(ours(again), ours(lm), rtol=0, atol=0)
    compare_tokenizers(again.tokenizer, lm.tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    torch.testing.assert_close(other(input_ids=IDS).logits.detach(), theirs(lm), rtol=0, atol=0)


def test_lora_is_saved_merged_with_its_adapter_beside(tmp_path: Path) -> None:
    lm = load_model("pocket", lora_rank=4)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in lm.trainable().values():
            p.add_(0.05 * torch.randn_like(p))
    before = {name: p.detach().clone() for name, p in lm.module.named_parameters()}
    save_model(lm, tmp_path / "out")
    assert all(torch.equal(p, before[name]) for name, p in lm.module.named_parameters())
    expected = ours(lm)
    assert (expected - ours(load_model("pocket"))).abs().max() > 0.1
    torch.testing.assert_close(ours(load_model(str(tmp_path / "out"))), expected, rtol=1e-4, atol=1e-4)
    adapted = peft.PeftModel.from_pretrained(load_model("pocket").module, tmp_path / "out" / "adapter")
    torch.testing.assert_close(adapted(input_ids=IDS).logits.detach(), expected, rtol=0, atol=0)


# ---- refusals ----


def test_no_chat_template(make: Make) -> None:
    folder = make("Qwen2")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=r"tokenizer of model '.*Qwen2' has no chat template.*instruct"):
        load_model(str(folder))


def test_pad_falls_back_to_eos_and_says_so(make: Make) -> None:
    lm = load_model(str(make("Qwen2", lambda tokenizer: setattr(tokenizer, "pad_token", None))))
    assert lm.tokenizer.pad_token == lm.tokenizer.eos_token
    assert "eos is used" in lm.source["notes"]["pad"]


def test_the_turn_end_of_the_template_comes_first(make: Make) -> None:
    """An instruct model whose tokenizer names the base model's end of text: turns end with the template's token."""

    def change(tokenizer: Any) -> None:
        tokenizer.chat_template = tokenizer.chat_template.replace("{{ eos_token }}", "<u>\n")

    lm = load_model(str(make("Qwen2", change)))
    assert lm.eos_ids == (lm.tokenizer.convert_tokens_to_ids("<u>"), lm.tokenizer.eos_token_id)


@pytest.mark.parametrize("how", ["missing", "shape"])
def test_weights_that_do_not_fit_the_config(make: Make, how: str) -> None:
    file = make("Qwen2") / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name][:-1].clone()
    if how == "missing":
        del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"(lacks|another shape).*up_proj\.weight"):
        load_model(str(file.parent))


def test_more_tokens_than_embeddings(make: Make) -> None:
    with pytest.raises(UserError, match="has 102 tokens but the model has 101 embeddings"):
        load_model(str(make("Qwen2", lambda tokenizer: tokenizer.add_tokens(["<extra>"]))))


def test_messages_that_the_template_refuses(make: Make) -> None:
    def change(tokenizer: Any) -> None:
        no_system = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
        tokenizer.chat_template = no_system + tokenizer.chat_template

    lm = load_model(str(make("Qwen2", change)))
    with pytest.raises(UserError, match="refuses these messages: no system turn"):
        lm.render([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}])


def test_not_a_language_model(make: Make) -> None:
    folder = make("Qwen2")
    transformers.ViTConfig().save_pretrained(folder)
    with pytest.raises(UserError, match="is not a causal language model"):
        load_model(str(folder))


# ---- tokenizers ----


def test_the_same_tokenizer_agrees_with_itself() -> None:
    a, b = (transformers.AutoTokenizer.from_pretrained(weights.POCKET) for _ in range(2))
    compare_tokenizers(a, b)


def swapped(tokenizer: Any) -> Any:
    """The same tokens with two ids exchanged."""
    raw = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = raw["model"]["vocab"]
    vocabulary["3"], vocabulary["4"] = vocabulary["4"], vocabulary["3"]
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers_from(raw), **tokenizer.special_tokens_map)


def lower_cased(tokenizer: Any) -> Any:
    """The same vocabulary, but lower-cased before it is cut."""
    raw = json.loads(tokenizer.backend_tokenizer.to_str())
    raw["normalizer"] = {"type": "Lowercase"}
    other = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers_from(raw), **tokenizer.special_tokens_map)
    other.add_special_tokens({"additional_special_tokens": ["<u>", "<a>"]})
    return other


def tokenizers_from(raw: dict[str, Any]) -> Any:
    import tokenizers

    return tokenizers.Tokenizer.from_str(json.dumps(raw))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.add_tokens(["<extra>"]) and t, "in vocabulary size: 101 and 102 tokens"),
        (swapped, r"in token 25: '3' and '4'"),
        (lambda t: setattr(t, "eos_token", "<a>") or t, "in eos_token: '</s>' and '<a>'"),
        (lambda t: t.add_special_tokens({"additional_special_tokens": ["!"]}) and t, "'!' is special"),
        (lower_cased, "in how they encode"),
        (lambda t: setattr(t, "chat_template", "{{ messages }}") or t, "in their chat templates"),
    ],
)
def test_the_first_difference_is_named(change: Callable[[Any], Any], words: str) -> None:
    a = transformers.AutoTokenizer.from_pretrained(weights.POCKET)
    b = change(transformers.AutoTokenizer.from_pretrained(weights.POCKET))
    with pytest.raises(UserError, match=words):
        compare_tokenizers(a, b)
