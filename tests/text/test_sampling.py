"""The embedded sampler against plain forward passes, transformers' masks and the exact distribution of small models."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from redistill.core import rng
from redistill.errors import UserError
from redistill.text import decoder, generic, native
from redistill.text.models import LanguageModel, load_model
from redistill.text.sampling import Sampled, Sampling, sample
from redistill.text.truncation import truncate
from scipy.stats import chisquare
from torch import nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz .,"
EOS = len(LETTERS)


class Letters:
    """A tokenizer with one letter a token, and EOS (which is also the padding token) last."""

    pad_token_id = eos_token_id = EOS

    def decode(self, ids: list[int], skip_special_tokens: bool = False, **_: Any) -> str:
        return "".join(LETTERS[i] if i < EOS else ("" if skip_special_tokens else "<eos>") for i in ids)


@pytest.fixture(params=["native", "portable", "modules"], autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The three ways of computing a step: compiled kernels, the same in torch, transformers' own modules."""
    name: str = request.param
    if name == "native" and native.get() is None:
        pytest.skip("no C++ compiler here")
    if name == "portable":
        monkeypatch.setattr(native, "get", lambda: None)
    if name == "modules":
        monkeypatch.setattr(decoder, "COVERED", ())
    return name


def made(module: nn.Module, dtype: torch.dtype = torch.float32) -> LanguageModel:
    return LanguageModel("tiny", module.eval(), Letters(), (EOS,), 64, dtype)


SHAPE: dict[str, Any] = {
    "vocab_size": EOS + 1,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,
    "pad_token_id": EOS,
    "eos_token_id": EOS,
    "bos_token_id": None,
}


def tiny(seed: int = 0, **changes: Any) -> LanguageModel:
    torch.manual_seed(seed)
    return made(LlamaForCausalLM(LlamaConfig(**SHAPE | changes)))


PROMPTS = [[3, 5, 7, 9, 11, 2], [1], [4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4], [8, 2], [EOS, 6, EOS]]
KEYS = [(7, i) for i in range(len(PROMPTS))]


def plain_logp(lm: LanguageModel, prompt: list[int], ids: tuple[int, ...], sampling: Sampling) -> torch.Tensor:
    """Log-probs of a response from one forward pass over the whole text, with transformers' own masks and no cache."""
    with torch.no_grad():
        logits = lm.module(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    return truncate(logits, sampling).log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)]


def ids_of(groups: list[list[Sampled]]) -> list[list[tuple[int, ...]]]:
    return [[episode.ids for episode in group] for group in groups]


@pytest.mark.parametrize("group_size", [1, 3])
@pytest.mark.parametrize("max_batch", [1, 4, 64])
def test_logp_agrees_with_a_plain_forward_pass(group_size: int, max_batch: int) -> None:
    """Mixed prompt lengths, a prompt of one token, prompts that hold the EOS = padding id."""
    lm, sampling = tiny(), Sampling(temperature=0.8, top_p=0.95, max_new_tokens=20)
    groups = sample(lm, PROMPTS, group_size=group_size, sampling=sampling, keys=KEYS, max_batch=max_batch)
    assert [len(group) for group in groups] == [group_size] * len(PROMPTS)
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for episode in group:
            expected = plain_logp(lm, prompt, episode.ids, sampling)
            torch.testing.assert_close(episode.logp_T, expected, rtol=0, atol=1e-4)
            assert episode.logp_T.dtype == torch.float32


def test_logp_agrees_with_a_left_padded_batch() -> None:
    """The peer is what a trainer may do: one left-padded batch with a 2-D mask and shifted positions."""
    lm, sampling = tiny(), Sampling(max_new_tokens=12)
    groups = sample(lm, PROMPTS, group_size=1, sampling=sampling, keys=KEYS)
    texts = [[*prompt, *group[0].ids] for prompt, group in zip(PROMPTS, groups, strict=True)]
    width = max(map(len, texts))
    ids = torch.tensor([[EOS] * (width - len(text)) + text for text in texts])
    mask = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts])
    places = (mask.cumsum(-1) - 1).clamp_min(0)
    with torch.no_grad():
        logp = lm.module(input_ids=ids, attention_mask=mask, position_ids=places).logits.log_softmax(-1)
    for row, group in enumerate(groups):
        count = len(group[0].ids)
        expected = logp[row, -count - 1 : -1].gather(-1, torch.tensor(group[0].ids)[:, None])[:, 0]
        torch.testing.assert_close(group[0].logp_T, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["mistral", "gemma3", "eager"])
def test_other_attention(kind: str) -> None:
    """Windows narrower than the text (all layers, or some), a soft cap, and the eager implementation."""
    torch.manual_seed(3)
    if kind == "mistral":
        lm = made(MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=5)))
    elif kind == "gemma3":
        types = ["sliding_attention", "full_attention", "sliding_attention"]
        shape = SHAPE | {"initializer_range": 0.3}
        lm = made(
            Gemma3ForCausalLM(
                Gemma3TextConfig(**shape, head_dim=8, sliding_window=4, layer_types=types, final_logit_softcapping=5.0)
            )
        )
    else:
        lm = tiny(attn_implementation="eager")
    sampling = Sampling(max_new_tokens=18)
    groups = sample(lm, PROMPTS, group_size=2, sampling=sampling, keys=KEYS, max_batch=6)
    assert max(len(episode.ids) for group in groups for episode in group) > 6
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for episode in group:
            expected = plain_logp(lm, prompt, episode.ids, sampling)
            torch.testing.assert_close(episode.logp_T, expected, rtol=0, atol=1e-4)


def test_draws_do_not_depend_on_the_batch() -> None:
    lm, sampling = tiny(), Sampling(temperature=0.9, max_new_tokens=25)
    reference = ids_of(sample(lm, PROMPTS, group_size=4, sampling=sampling, keys=KEYS, max_batch=64))
    assert len(set(itertools.chain(*reference))) > 15
    for max_batch in (1, 3, 7):
        assert ids_of(sample(lm, PROMPTS, group_size=4, sampling=sampling, keys=KEYS, max_batch=max_batch)) == reference
    order = [3, 0, 4, 2, 1]
    prompts, keys = [PROMPTS[i] for i in order], [KEYS[i] for i in order]
    permuted = ids_of(sample(lm, prompts, group_size=4, sampling=sampling, keys=keys, max_batch=5))
    assert permuted == [reference[i] for i in order]
    alone = ids_of(sample(lm, PROMPTS[2:3], group_size=2, sampling=sampling, keys=KEYS[2:3]))
    assert alone == [reference[2][:2]]


def test_the_keyed_uniform_is_what_draws() -> None:
    """The ids again, from plain forward passes and the uniforms of the documented key."""
    lm, sampling = tiny(), Sampling(temperature=0.7, top_k=9, max_new_tokens=8)
    episode = sample(lm, PROMPTS[:1], group_size=2, sampling=sampling, keys=[(11, 5)])[0][1]
    text = list(PROMPTS[0])
    for position, token in enumerate(episode.ids):
        with torch.no_grad():
            logits = lm.module(input_ids=torch.tensor([text])).logits[:, -1]
        passed = truncate(logits, sampling)[0].double().softmax(-1).cumsum(0).numpy()
        assert token == int(np.searchsorted(passed, rng.uniform("sample", 11, 5, 1, position), side="right"))
        text.append(token)


def test_other_keys_draw_otherwise() -> None:
    """No two of sixteen responses agree, over two keys and eight samples of each."""
    lm, sampling = tiny(), Sampling(temperature=3.0, max_new_tokens=12)
    lm.eos_ids = ()
    groups = sample(lm, [PROMPTS[0]] * 2, group_size=8, sampling=sampling, keys=[(1,), (2,)])
    assert len({episode.ids for episode in itertools.chain(*groups)}) == 16


@pytest.mark.parametrize("sampling", [Sampling(max_new_tokens=2), Sampling(1.3, 0.9, max_new_tokens=2)], ids=str)
def test_samples_follow_the_models_distribution(sampling: Sampling) -> None:
    """Chi-square over the first token and over all sequences of two tokens, against exhaustive enumeration; 6,000 fixed
    draws, refused below a p-value of 0.001. Cells that expect fewer than 5 are pooled."""
    lm, draws = tiny(vocab_size=6, pad_token_id=0, eos_token_id=5, initializer_range=0.25), 6000
    lm.eos_ids = (5,)
    prompt = [1, 2, 3]
    groups = sample(lm, [prompt], group_size=draws, sampling=sampling, keys=[(5,)], max_batch=512)
    exact = {}
    with torch.no_grad():
        first = truncate(lm.module(input_ids=torch.tensor([prompt])).logits[:, -1], sampling)[0].softmax(-1)
        for a in range(6):
            if a == 5:
                exact[(a,)] = float(first[a])
                continue
            then = truncate(lm.module(input_ids=torch.tensor([[*prompt, a]])).logits[:, -1], sampling)[0].softmax(-1)
            exact |= {(a, b): float(first[a] * then[b]) for b in range(6)}
    ids = [episode.ids for episode in groups[0]]
    assert min(exact[one] for one in ids) > 0
    for expected, seen in (
        ({(a,): float(first[a]) for a in range(6)}, [one[:1] for one in ids]),
        (exact, ids),
    ):
        cells = [(p * draws, seen.count(key)) for key, p in expected.items() if p > 0]
        rare = [cell for cell in cells if cell[0] < 5]
        cells = [cell for cell in cells if cell[0] >= 5] + ([tuple(map(sum, zip(*rare)))] if rare else [])
        e, o = np.array(cells, dtype=float).T
        assert chisquare(o, e * o.sum() / e.sum()).pvalue > 1e-3


def test_greedy_is_transformers_generate() -> None:
    lm = tiny()
    groups = sample(lm, PROMPTS, group_size=1, sampling=Sampling(temperature=0, max_new_tokens=15), keys=KEYS)
    for prompt, group in zip(PROMPTS, groups, strict=True):
        ids = torch.tensor([prompt])
        out = lm.module.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=15)
        assert group[0].ids == tuple(out[0, len(prompt) :].tolist())
        expected = plain_logp(lm, prompt, group[0].ids, Sampling())
        torch.testing.assert_close(group[0].logp_T, expected, rtol=0, atol=1e-4)


def test_eos_ends_a_response_and_stays_in_it() -> None:
    lm, sampling = tiny(), Sampling(temperature=1.2, max_new_tokens=30)
    episodes = sample(lm, PROMPTS, group_size=12, sampling=sampling, keys=KEYS, max_batch=9)
    finishes = set()
    for episode in itertools.chain(*episodes):
        finishes.add(episode.finish)
        ended = episode.ids[-1] == EOS
        assert EOS not in episode.ids[:-1]
        assert episode.finish == ("stop" if ended else "length")
        assert ended or len(episode.ids) == 30
        assert episode.text == lm.tokenizer.decode(list(episode.ids[: -1 if ended else None]))
        assert len(episode.logp_T) == len(episode.ids)
    assert finishes == {"stop", "length"}


def test_stop_string() -> None:
    """Without the stop string a response starts with the same tokens: it is cut where the string is complete."""
    lm, long = tiny(), Sampling(temperature=0.9, max_new_tokens=30)
    free = list(itertools.chain(*sample(lm, PROMPTS, group_size=6, sampling=long, keys=KEYS)))
    stop = (max(free, key=lambda episode: len(episode.text)).text[3:5], "g")
    spec = Sampling(temperature=0.9, max_new_tokens=30, stop=stop)
    stopped = list(itertools.chain(*sample(lm, PROMPTS, group_size=6, sampling=spec, keys=KEYS, max_batch=4)))
    assert any(len(a.ids) < len(b.ids) for a, b in zip(stopped, free, strict=True))
    for cut, whole in zip(stopped, free, strict=True):
        ends = [whole.text.find(text) + len(text) for text in stop if text in whole.text]
        assert cut.ids == (whole.ids[: min(ends)] if ends else whole.ids)
        assert cut.finish == ("stop" if ends else whole.finish)


def test_prompt_is_read_once_for_its_group_and_finished_rows_leave(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    read, decoded = [], []
    kind: Any = generic.Modules if path == "modules" else decoder.Decoder
    prefill, step = kind.prefill, kind.step
    monkeypatch.setattr(kind, "prefill", lambda self, ids: read.append(tuple(ids.shape)) or prefill(self, ids))
    monkeypatch.setattr(kind, "step", lambda self, ids, *rest: decoded.append(len(ids)) or step(self, ids, *rest))
    lm, sampling = tiny(), Sampling(temperature=1.2, max_new_tokens=30)
    groups = sample(lm, PROMPTS[:2], group_size=16, sampling=sampling, keys=KEYS[:2])
    assert read[-1] == (2, 6)
    assert len(read) == (1 if path == "modules" else 2)  # the other is the probe of the packed weights
    assert sum(decoded) == sum(len(episode.ids) - 1 for episode in itertools.chain(*groups))


def test_results_can_be_used_in_autograd_and_the_mode_is_restored() -> None:
    lm = tiny(attention_dropout=0.5)
    lm.module.train()
    episode = sample(lm, PROMPTS[:1], group_size=1, sampling=Sampling(max_new_tokens=5), keys=KEYS[:1])[0][0]
    assert lm.module.training
    lm.module.eval()
    torch.testing.assert_close(episode.logp_T, plain_logp(lm, PROMPTS[0], episode.ids, Sampling()), rtol=0, atol=1e-4)
    weight = torch.ones(len(episode.ids), requires_grad=True)
    (weight * episode.logp_T).sum().backward()
    logits = lm.module(input_ids=torch.tensor([[*PROMPTS[0], *episode.ids]])).logits
    logits.sum().backward()


def test_progress_counts_to_the_end() -> None:
    seen: list[tuple[int, int]] = []
    sample(
        tiny(),
        PROMPTS,
        group_size=3,
        sampling=Sampling(max_new_tokens=9),
        keys=KEYS,
        max_batch=4,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (15, 15)
    assert seen == sorted(set(seen))


def test_nothing_to_sample() -> None:
    assert sample(tiny(), [], group_size=2, sampling=Sampling(), keys=[]) == []


def test_users_mistakes() -> None:
    lm, sampling = tiny(), Sampling(max_new_tokens=60)
    with pytest.raises(UserError, match=r"prompt 2 has 11 tokens and max_new_tokens is 60.* 64.* 53"):
        sample(lm, [[1], [1, 2], PROMPTS[2]], group_size=1, sampling=sampling, keys=KEYS[:3])
    with pytest.raises(UserError, match="prompt 1 has no tokens"):
        sample(lm, [[1], []], group_size=1, sampling=sampling, keys=KEYS[:2])
    with pytest.raises(UserError, match="group_size is 0"):
        sample(lm, [[1]], group_size=0, sampling=sampling, keys=KEYS[:1])
    with pytest.raises(UserError, match="max_batch is 0"):
        sample(lm, [[1]], group_size=1, sampling=sampling, keys=KEYS[:1], max_batch=0)
    with pytest.raises(ValueError, match="1 keys for 2 prompts"):
        sample(lm, [[1], [2]], group_size=1, sampling=sampling, keys=KEYS[:1])


def test_a_text_may_fill_the_context() -> None:
    lm = tiny()
    lm.eos_ids = ()
    episode = sample(lm, PROMPTS[2:3], group_size=1, sampling=Sampling(max_new_tokens=53), keys=KEYS[:1])[0][0]
    assert len(episode.ids) == 53
    torch.testing.assert_close(episode.logp_T, plain_logp(lm, PROMPTS[2], episode.ids, Sampling()), rtol=0, atol=1e-4)


def test_pocket_and_its_tokenizer() -> None:
    """The model that ships with the library: the same ids for any batch and order, log-probs as in a plain pass."""
    lm, sampling = load_model("pocket"), Sampling(max_new_tokens=24)
    texts = ["1+2+3=", "7=", "45+6+12="]
    prompts = [lm.render([{"role": "user", "content": text}]) for text in texts]
    groups = sample(lm, prompts, group_size=6, sampling=sampling, keys=KEYS[:3])
    for max_batch in (1, 3, 64):
        order = [2, 0, 1]
        again = sample(
            lm,
            [prompts[i] for i in order],
            group_size=6,
            sampling=sampling,
            keys=[KEYS[i] for i in order],
            max_batch=max_batch,
        )
        assert ids_of(again) == [ids_of(groups)[i] for i in order]
    for prompt, group in zip(prompts, groups, strict=True):
        for episode in group:
            expected = plain_logp(lm, prompt, episode.ids, sampling)
            torch.testing.assert_close(episode.logp_T, expected, rtol=0, atol=1e-4)
            assert episode.finish == ("stop" if episode.ids[-1] in lm.eos_ids else "length")


def test_bfloat16_layers() -> None:
    """Autocast around the layers: the cache and the mask follow its types; bfloat16 keeps about two digits."""
    lm = tiny(initializer_range=0.1)
    lm.dtype = torch.bfloat16
    episode = sample(lm, PROMPTS[:1], group_size=1, sampling=Sampling(max_new_tokens=8), keys=KEYS[:1])[0][0]
    torch.testing.assert_close(episode.logp_T, plain_logp(lm, PROMPTS[0], episode.ids, Sampling()), rtol=0, atol=3e-2)
