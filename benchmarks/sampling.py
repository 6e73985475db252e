"""The embedded sampler beside transformers.generate and beside what the matrix products alone would allow.

    python benchmarks/sampling.py [--dtype bfloat16] [--rounds 5] [--new-tokens 48] [--json FILE]

Both sample the same prompts (8 prompts, 8 responses to each, 64 rows) for the same number of tokens, EOS being ignored;
rounds alternate, and the ratio is the median of the rounds' ratios with its range. The roofline is the time of a decode
step's matrix products alone, measured in the same rounds: the same shapes, a different weight each time, whichever of
torch's F.linear and packed oneDNN is faster.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from redistill.text.decoder import Product, decoder_of
from redistill.text.models import LanguageModel, load_model
from redistill.text.sampling import Sampling, sample

GROUPS, SIZE = 8, 8
TASK = "Alice has {} apples and buys {} bags of {} apples each. She gives away {}. How many apples are left? Answer:"


def prompts_of(lm: LanguageModel) -> list[list[int]]:
    """Eight questions of nearly the same length (40 to 60 tokens), as the model's chat template has them."""
    texts = [TASK.format(3 + i, 2 * i + 1, 10 + i, i) for i in range(GROUPS)]
    return [lm.render([{"role": "user", "content": text}]) for text in texts]


def ours(lm: LanguageModel, prompts: Sequence[Sequence[int]], new_tokens: int, key: int) -> float:
    """Seconds to sample 64 responses of exactly `new_tokens` tokens."""
    started = time.perf_counter()
    groups = sample(
        lm, prompts, group_size=SIZE, sampling=Sampling(max_new_tokens=new_tokens),
        keys=[(key, i) for i in range(len(prompts))], max_batch=GROUPS * SIZE,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    assert {len(one.ids) for group in groups for one in group} == {new_tokens}
    return seconds


@torch.no_grad()
def theirs(model: Any, prompts: Sequence[Sequence[int]], new_tokens: int, pad: int) -> float:
    """Seconds of transformers.generate for the same."""
    width = max(map(len, prompts))
    rows = [prompt for prompt in prompts for _ in range(SIZE)]
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    started = time.perf_counter()
    out = model.generate(
        input_ids=ids, attention_mask=mask, do_sample=True, top_k=0, top_p=1.0, temperature=1.0,
        min_new_tokens=new_tokens, max_new_tokens=new_tokens, pad_token_id=pad,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    assert out.shape == (len(rows), width + new_tokens)
    return seconds


def products(lm: LanguageModel, rows: int) -> dict[str, Callable[[], None]]:
    """The matrix products of one decode step, by two ways of multiplying: each call runs all of them once."""
    config, dtype = lm.causal.config, lm.dtype
    width, inner, depth = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    heads, kv, each = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    shapes = [(width, (heads + 2 * kv) * each), (heads * each, width), (width, 2 * inner), (inner, width)] * depth
    weights = [torch.randn(out, into).to(dtype) for into, out in shapes]
    weights.append(torch.randn(config.vocab_size, width))  # the head is float32
    inputs = {into: torch.randn(rows, into).to(dtype) for into, _ in shapes}
    head_input = torch.randn(rows, width)
    packed = [Product(weight, None, weight.dtype) for weight in weights]

    def linear() -> None:
        for weight in weights[:-1]:
            F.linear(inputs[weight.shape[1]], weight)
        F.linear(head_input, weights[-1])

    def onednn() -> None:
        for product, weight in zip(packed[:-1], weights):
            product(inputs[weight.shape[1]])
        packed[-1](head_input)

    return {"F.linear": linear, "packed oneDNN": onednn}


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def bandwidth() -> float:
    """Memory read and written by a copy of 256 MB, in GB/s."""
    source = torch.ones(64 << 20)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * source.numel() * 4 / min(_seconds(lambda: target.copy_(source)) for _ in range(3)) / 1e9


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def measure(dtype: str, rounds: int = 5, new_tokens: int = 48, model: str = "smollm2-135m") -> dict[str, Any]:
    """Tokens per second of both, their ratio, and the share of what the products alone allow, over `rounds` rounds."""
    lm = replace(load_model(model, dtype=dtype), eos_ids=())
    prompts, rows = prompts_of(lm), GROUPS * SIZE
    peer = load_model(model).module.to(lm.dtype)
    peer.generation_config.eos_token_id = None
    work = products(lm, rows)
    with torch.no_grad():
        for one in work.values():
            one()
        ours(lm, prompts, 4, 0)
        theirs(peer, prompts, 4, 0)
        mine, other, step = [], [], []
        for i in range(rounds):
            mine.append(ours(lm, prompts, new_tokens, i))
            step.append(min(_seconds(one) for one in work.values() for _ in range(3)))
            other.append(theirs(peer, prompts, new_tokens, 0))
    tokens = rows * new_tokens
    decoder = decoder_of(lm)
    return {
        "model": model, "dtype": dtype, "rows": rows, "new_tokens": new_tokens, "threads": torch.get_num_threads(),
        "kernels": type(decoder.kernels).__name__ if decoder else "transformers",
        "tokens_per_second": _spread([tokens / s for s in mine]),
        "generate_tokens_per_second": _spread([tokens / s for s in other]),
        "products_tokens_per_second": _spread([rows / s for s in step]),
        "vs_generate": _spread([b / a for a, b in zip(mine, other)]),
        "roofline": _spread([new_tokens * s / a for a, s in zip(mine, step)]),
        "bandwidth": bandwidth(),
    }  # fmt: skip


def main() -> None:
    """Measure and print; the figures of docs/performance.md."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], action="append")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = [measure(dtype, given.rounds, given.new_tokens) for dtype in given.dtype or ["float32", "bfloat16"]]
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
