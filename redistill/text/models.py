"""Language models: loading and saving in ordinary transformers format, and the three things the library asks of one:
hidden states, the head that turns them into logits, and prompts rendered to ids.

Weights are float32, so that small updates are not lost; bfloat16 means that the layers multiply in it (autocast). The
head is computed in float32 either way, since a low-precision head is a known source of mismatch between sampler and
trainer (MiniMax-M1, arXiv 2506.13585).
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
import torch.nn.functional as F
import transformers
from jinja2 import TemplateError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from redistill.core import rng
from redistill.core.arithmetic import fast_float32
from redistill.core.files import replacing
from redistill.errors import UserError
from redistill.text import weights
from redistill.text.attention import Layout, packed_attention
from redistill.text.precision import compute_dtype, linear_layers_in
from redistill.text.quiet import quiet

_PROBE = "redistill"


@dataclass(frozen=True)
class Head:
    """From hidden states to logits: softcap(scale * (h W^T + b)) with softcap(x) = c tanh(x / c)."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    products: torch.dtype = torch.float32
    """What the products of the fused head (text/head.py) round their inputs to; sums and logits are float32."""

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., D], in the dtype of the weight (float32)."""
        logits_NV = F.linear(hidden_ND.to(self.weight_VD.dtype), self.weight_VD, self.bias_V)
        if self.scale != 1.0:
            logits_NV = logits_NV * self.scale
        return logits_NV if self.softcap is None else torch.tanh(logits_NV / self.softcap) * self.softcap

    def detached(self) -> Head:
        """The same head outside the graph, for teachers."""
        bias_V = None if self.bias_V is None else self.bias_V.detach()
        return dataclasses.replace(self, weight_VD=self.weight_VD.detach(), bias_V=bias_V)


@dataclass
class LanguageModel:
    """A causal language model with its tokenizer. Make one with `load_model`."""

    name: str
    module: nn.Module
    """A transformers causal LM in eval mode (no dropout anywhere), or a PeftModel around one."""
    tokenizer: Any
    eos_ids: tuple[int, ...]
    """Ids that end a response; the first is the one the chat template ends an assistant turn with."""
    context: int
    """Most positions the model can read, in tokens."""
    dtype: torch.dtype
    """What the layers compute in; the weights are float32 (see `computing`)."""
    source: dict[str, Any] = field(default_factory=dict)
    """Where the weights come from: name, path, sha256 by file, versions, notes on choices made while loading."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.module.parameters()).device

    @property
    def causal(self) -> Any:
        """The transformers causal LM, with the LoRA layers in place if there are any."""
        return self.module.get_base_model() if isinstance(self.module, peft.PeftModel) else self.module

    def hidden(
        self,
        input_ids: Tensor,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = False,
        layout: Layout | None = None,
    ) -> Any:
        """The base model's output for ids [B, T], no head: `last_hidden_state` [B, T, D] and `past_key_values`. With a
        `layout` (B = 1) tokens see what it says, no mask."""
        half = self.dtype != torch.float32
        with contextlib.ExitStack() as stack:
            if half:
                stack.enter_context(torch.autocast(self.device.type, self.dtype))
            if layout is not None:
                stack.enter_context(packed_attention(self.causal))
            return self.causal.base_model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **({} if layout is None else {"layout": layout}),
            )

    @contextlib.contextmanager
    def computing(self) -> Iterator[Any]:
        """Inside the block the linear layers of `causal` (which is yielded) hold their weights in `dtype`, cast once.

        For many no-grad forwards with the same weights: decoding, scoring. `hidden` then gives exactly what it gives
        outside, without casting every weight at every call; code of its own may read the layers' weights (in `dtype`;
        do not keep them beyond the block). Embeddings, norms and the output layer stay float32. Where `dtype` is
        float32 nothing changes. Blocks may be nested, in each other and in `core.teachers.swapped`.
        """
        with linear_layers_in(self.causal, self.dtype):
            yield self.causal

    def head(self) -> Head:
        """The output layer, sharing memory (and gradient) with the weights."""
        output = self.causal.get_output_embeddings()
        scale, softcap = _scale_and_softcap(self.causal.config)
        return Head(output.weight, getattr(output, "bias", None), scale, softcap, self.dtype)

    def render(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Ids of a chat that the assistant is about to answer; UserError if the template refuses the messages."""
        return render(self.name, self.tokenizer, messages)

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that train, by name: all of them (tied ones once), or the adapter's with LoRA."""
        return {name: parameter for name, parameter in self.module.named_parameters() if parameter.requires_grad}


def load_model(
    name: str,
    *,
    dtype: str = "float32",
    lora_rank: int = 0,
    lora_alpha: float | None = None,
    device: str = "cpu",
) -> LanguageModel:
    """Load a model by name, folder or hub id (see `weights.resolve`); weights come out float32, dropout off, eval mode.

    `dtype` is float32, bfloat16 or auto (bfloat16 only where the processor multiplies it natively). A `lora_rank` above
    0 freezes the model and adds LoRA (Hu et al., arXiv 2106.09685) to every linear layer but the head, scaled by
    alpha / rank; alpha defaults to twice the rank. Raises UserError for anything that does not fit together.
    """
    compute, why = compute_dtype(dtype, device)
    multiplies = fast_float32()
    folder = weights.resolve(name)
    config = read_config(name, folder)
    tokenizer, notes = load_tokenizer(name, folder)
    dropped = _without_dropout(config)
    module = _load_module(name, folder, config)
    module.eval()
    module.to(torch.device(device))
    _check_rows(name, tokenizer, module)
    notes |= {"dtype": why, "float32_products": multiplies} | ({"dropout_removed": dropped} if dropped else {})
    lm = LanguageModel(
        name=name,
        module=module,
        tokenizer=tokenizer,
        eos_ids=_eos_ids(tokenizer, module),
        context=context_of(name, config),
        dtype=compute,
        source={
            "name": name,
            "path": str(folder),
            "sha256": weights.hashes(folder),
            "versions": {
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "peft": peft.__version__,
            },
            "notes": notes,
        },
    )
    _check_head(lm)
    if lora_rank or lora_alpha is not None:
        lm.module = _with_lora(lm, lora_rank, lora_alpha)
    return lm


def _load_module(name: str, folder: Path, config: Any) -> nn.Module:
    """The transformers model of a folder, whole and float32; a UserError where it is another kind or in part."""
    with quiet():
        try:
            module, loading = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                attn_implementation="sdpa",
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, in one sentence
            )
        except ValueError as error:
            raise UserError(
                f"model {name!r} is not a causal language model that transformers can load: {error}"
            ) from error
    _refuse_partial(name, loading)
    loaded: nn.Module = module
    return loaded


def save_model(lm: LanguageModel, folder: str | Path) -> Path:
    """Write `lm` to `folder` as ordinary transformers files (LoRA merged, and its adapter in folder/adapter).

    The folder appears, or is replaced, in one step; UserError if it exists and is something other than a model.
    """
    with replacing(Path(folder)) as temporary:
        write_model(lm, temporary)
    return Path(folder)


def write_model(lm: LanguageModel, folder: Path) -> None:
    """The files of `save_model`, into an empty folder."""
    with quiet():
        module: Any = lm.module
        if isinstance(module, peft.PeftModel):
            module.save_pretrained(folder / "adapter", save_embedding_layers=False)
            (folder / "adapter" / "README.md").unlink()  # a form to fill in
            # Merging a copy: merging in place and undoing it would leave rounding in the weights that go on training.
            module = copy.deepcopy(module).merge_and_unload()
        module.save_pretrained(folder)
        lm.tokenizer.save_pretrained(folder)


def _without_dropout(config: Any) -> dict[str, float]:
    """Set every dropout rate of a config (and its text part) to 0; return those that were not."""
    found: dict[str, float] = {}
    for part in {id(config): config, id(config.get_text_config()): config.get_text_config()}.values():
        for key, value in part.to_dict().items():
            is_rate = isinstance(value, float) and value > 0
            if is_rate and ("dropout" in key or "drop_prob" in key or key.endswith("pdrop")):
                found[key] = value
                setattr(part, key, 0.0)
    return found


def _refuse_partial(name: str, loading: dict[str, Any]) -> None:
    """transformers fills weights it does not find with random numbers; here that is an error."""
    missing = sorted(loading["missing_keys"])
    mismatched = sorted(key for key, _, _ in loading["mismatched_keys"])
    for words, keys in (("lacks the weight", missing), ("has another shape for the weight", mismatched)):
        if keys:
            more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
            raise UserError(f"model {name!r} {words} {keys[0]!r}{more} that its config.json calls for")


def read_config(name: str, folder: Path) -> Any:
    """The transformers config of a model folder; a UserError where transformers does not know its kind."""
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"model {name!r} is not of a kind that transformers can load: {said}") from error


def context_of(name: str, config: Any) -> int:
    """Most positions the model can read, in tokens."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is None:
        raise UserError(f"model {name!r} does not say how much it can read: its config has no max_position_embeddings")
    return int(positions)


def load_tokenizer(name: str, folder: Path) -> tuple[Any, dict[str, Any]]:
    """The tokenizer of a model folder, with a chat template, an end and a padding token, and notes on choices made."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the tokenizers package raises Exception itself
        said = " ".join(str(error).split())[:200]
        raise UserError(f"the tokenizer of model {name!r} cannot be loaded: {said}") from error
    notes: dict[str, Any] = {}
    if not tokenizer.chat_template:
        raise UserError(
            f"the tokenizer of model {name!r} has no chat template, so it is likely a base model; take its instruct "
            f"version, or put a chat_template.jinja beside the tokenizer in a local folder and give that folder"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of model {name!r} names no end-of-sequence token; set eos_token in its config")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
        notes["pad"] = "the tokenizer has no padding token; eos is used (masks come from lengths, so nothing is lost)"
    return tokenizer, notes


def render(name: str, tokenizer: Any, messages: Sequence[dict[str, str]]) -> list[int]:
    """Ids of a chat that the assistant is about to answer; UserError if the template refuses the messages."""
    try:
        ids = tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=False,
            tokenizer_kwargs={"verbose": False},  # it warns of long prompts, which are refused or counted here
        )  # fmt: skip
    except TemplateError as error:
        said = " ".join(str(error).split())
        raise UserError(f"the chat template of model {name!r} refuses these messages: {said}") from error
    return list(ids)


def _check_rows(name: str, tokenizer: Any, module: Any) -> None:
    rows = module.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UserError(
            f"the tokenizer of model {name!r} has {len(tokenizer)} tokens but the model has {rows} embeddings"
        )


def _eos_ids(tokenizer: Any, module: Any) -> tuple[int, ...]:
    """Ids that end a response: what the template puts after an assistant's turn, then tokenizer's and model's own."""
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _PROBE}]
    tail = tokenizer.apply_chat_template(chat, tokenize=False).rpartition(_PROBE)[2]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    after = [i for i in tokenizer.encode(tail, add_special_tokens=False) if i in special][:1]
    own = module.generation_config.eos_token_id if module.generation_config is not None else None
    configured = [own] if isinstance(own, int) else list(own or [])
    return tuple(dict.fromkeys([*after, tokenizer.eos_token_id, *configured]))


def _scale_and_softcap(config: Any) -> tuple[float, float | None]:
    """Factor on the logits and soft cap, under the names that model families give them."""
    text = config.get_text_config().to_dict()
    scale = float(text.get("logit_scale") or 1.0)  # Cohere multiplies
    scale /= float(text.get("logits_scaling") or 1.0)  # Granite divides
    scale *= float(text.get("lm_head_multiplier") or 1.0)  # Falcon-H1
    softcap = text.get("final_logit_softcapping")  # Gemma
    return scale, None if softcap is None else float(softcap)


@torch.no_grad()
def _check_head(lm: LanguageModel) -> None:
    """Refuse a family whose logits are not what `Head` computes, instead of training on other ones."""
    ids_BT = torch.tensor([lm.render([{"role": "user", "content": "1"}])[-8:]], device=lm.device)
    theirs = lm.module(input_ids=ids_BT).logits.float()
    ours = dataclasses.replace(lm, dtype=torch.float32).hidden(ids_BT).last_hidden_state
    difference = float((lm.head().logits(ours) - theirs).abs().max())
    if not difference <= 1e-3 * float(theirs.abs().max()) + 1e-4:
        kind = lm.causal.config.model_type
        raise UserError(
            f"model {lm.name!r} (type {kind!r}) computes its logits in a way Redistill does not know: they are off by "
            f"{difference:.2g}"
        )


def _with_lora(lm: LanguageModel, rank: int, alpha: float | None) -> nn.Module:
    widest = int(lm.causal.config.get_text_config().hidden_size)
    if rank == 0:
        raise UserError(f"lora_alpha={alpha} needs a lora_rank of 1 or more; it is 0, which trains all weights")
    if not 1 <= rank <= widest:
        raise UserError(f"lora_rank={rank} is outside 1 to {widest}, the width of model {lm.name!r}")
    if alpha is not None and not alpha > 0:
        raise UserError(f"lora_alpha={alpha} is not above 0; none means twice the rank, {2 * rank}")
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=0.0,
        target_modules="all-linear",  # peft leaves the output layer out
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(int(rng.bits("lora", rank) >> 1))  # the same start for every run, whatever ran before
        return peft.get_peft_model(lm.module, config).eval()


def compare_tokenizers(a: Any, b: Any) -> None:
    """Raise UserError naming the first thing in which two tokenizers differ; return None when they agree.

    Compared: number of tokens (of the tokenizers; padded widths of the models' output layers do not matter), the string
    of every id, special tokens, how some probe texts are encoded, and the chat template.
    """
    names = f"the tokenizers of {getattr(a, 'name_or_path', 'a')!r} and {getattr(b, 'name_or_path', 'b')!r} differ"
    if len(a) != len(b):
        raise UserError(f"{names} in vocabulary size: {len(a)} and {len(b)} tokens")
    every = list(range(len(a)))
    for at, (mine, theirs) in enumerate(
        zip(a.convert_ids_to_tokens(every), b.convert_ids_to_tokens(every), strict=True)
    ):
        if mine != theirs:
            raise UserError(f"{names} in token {at}: {mine!r} and {theirs!r}")
    for key in ("eos_token", "bos_token", "unk_token"):
        if getattr(a, key) != getattr(b, key):
            raise UserError(f"{names} in {key}: {getattr(a, key)!r} and {getattr(b, key)!r}")
    odd = sorted(map(str, set(a.all_special_tokens) ^ set(b.all_special_tokens)))
    if odd:
        raise UserError(f"{names} in special tokens: {odd[0]!r} is special in one of them only")
    for text in ("12+34= 56\n\tif x:  # don't", "Grüße, 世界! \U0001f600", " 1234567890 [MASK] </s>"):
        if a.encode(text, add_special_tokens=False) != b.encode(text, add_special_tokens=False):
            raise UserError(f"{names} in how they encode {text!r}")
    if a.chat_template != b.chat_template:
        raise UserError(f"{names} in their chat templates, so the same messages become different prompts")
