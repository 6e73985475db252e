"""Train `pocket`, the character-level model that ships with the package, from nothing on one core.

    OMP_NUM_THREADS=1 python scripts/train_pocket.py [--steps N] [--out FOLDER]

The model is meant to be a good pupil, not a good calculator: it knows how to add but says so only about 40% of the
time, because 60% of its plain answers were corrupted in training (mostly a forgotten carry), while answers to prompts
that show a worked solution or feedback are always right. So there is something for RL to reinforce and for a
self-teacher to teach. Everything is drawn by counter-based randomness from `SEED`, on the task's training split only;
the accuracies written to pocket.json are measured on its held-out split.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from redistill.core import rng
from redistill.core.task import Prompt, is_held_out
from redistill.tasks.sums import Sums, worked
from redistill.text.views import TERSE, Evidence, Message, hindsight, plain, with_attempt, with_feedback, with_solution
from tokenizers import decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SEED = 20260
TASK = Sums(terms=3, digits=2)
CORRUPT = 0.6
"""Share of the plain training answers that are wrong."""
FORGOTTEN_CARRY = 0.8
"""Share of the wrong answers that forget a carry, where there is one; the others are off by 1 or 10 somewhere."""
FOLDER = Path(__file__).resolve().parents[1] / "redistill" / "assets" / "pocket"
SPECIALS = ["<s>", "</s>", "<u>", "<a>", "<unk>"]
CHARACTERS = "\n" + "".join(c for c in map(chr, range(32, 127)))
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}<u>{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}<a>{{ message['content'] }}{{ eos_token }}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each printable ASCII character and newline, five special ones, pad = eos."""
    vocabulary = {token: at for at, token in enumerate(SPECIALS + list(CHARACTERS))}
    raw = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), behavior="isolated")
    raw.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<u>", "<a>"],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=128,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """About 0.34M parameters: 3 layers of width 96, 4 heads, tied embeddings, 128 positions."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=256,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        attention_dropout=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def add_wrongly(a: int, b: int) -> int:
    """a + b without the carry from units to tens; the right sum where there is none."""
    return a + b - (10 if a % 10 + b % 10 >= 10 else 0)


def corrupted(terms: Sequence[int], draws: Sequence[float]) -> str:
    """A wrong worked answer of a + b + c: a forgotten carry, or a number off by 1 or 10; the rest follows from it."""
    a, b, c = terms
    carries = [add_wrongly(a, b) != a + b, add_wrongly(a + b, c) != a + b + c]
    if any(carries) and draws[0] < FORGOTTEN_CARRY:
        first = carries[0] and (not carries[1] or draws[1] < 0.5)
        partial = add_wrongly(a, b) if first else a + b
        return f"{partial}+{c}={partial + c if first else add_wrongly(partial, c)}"
    off = (1, -1, 10, -10)[int(draws[2] * 4)]
    partial = a + b + (off if draws[1] < 0.5 else 0)
    return f"{partial}+{c}={partial + c + (0 if draws[1] < 0.5 else off)}"


def shown_solution(terms: Sequence[int], draw: float) -> str:
    """The worked solution, in one of a few other spellings now and then."""
    a, b, c = terms
    total = a + b + c
    others = [f"{total}", f"{c}+{a + b}={total}", f"{a}+{b}={a + b}+{c}={total}"]
    return others[int(draw / 0.15 * 3)] if draw < 0.15 else worked(terms)


def conversation(prompt: Prompt, terms: Sequence[int], draws: Sequence[float]) -> list[Message]:
    """One training conversation: 40% plain, 35% with_solution, 20% with_feedback, 5% with the attempt as well."""
    kind, right = draws[0], worked(terms)
    wrong = corrupted(terms, draws[1:4])
    if kind < 0.40:
        messages = plain(prompt.content, Evidence(), TERSE)
        right = wrong if draws[4] < CORRUPT else right
    elif kind < 0.75:
        messages = with_solution(prompt.content, Evidence(solution=shown_solution(terms, draws[4])), TERSE)
    else:
        attempt = wrong.partition("=")[0] if draws[4] < 0.03 else wrong
        told = Evidence(feedback=TASK.verify(prompt, attempt + ("=" if "=" not in attempt else "")).feedback)
        if kind < 0.95:
            messages = with_feedback(prompt.content, told, TERSE)
        elif draws[5] < 0.5:
            messages = with_attempt(prompt.content, Evidence(feedback=told.feedback, attempt=attempt), TERSE)
        else:
            solution = shown_solution(terms, draws[6])
            messages = hindsight(prompt.content, Evidence(solution, told.feedback, attempt), TERSE)
    assert messages is not None
    return [*messages, {"role": "assistant", "content": right}]


def batch(tokenizer: PreTrainedTokenizerFast, step: int, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids_BT (right-padded), attention_BT and response_BT (True on the tokens to learn: after <a>, </s> included)."""
    draws = rng.uniform("pocket", SEED, step, np.arange(2 * size)[:, None], np.arange(10))
    texts: list[str] = []
    for row in draws.tolist():
        terms = [10 + int(u * 90) for u in row[:3]]
        prompt = TASK.prompt(terms)
        if not is_held_out(prompt.uid) and len(texts) < size:
            chat = conversation(prompt, terms, row[3:])
            texts.append(tokenizer.apply_chat_template(chat, tokenize=False))
    encoded = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt")
    ids_BT, attention_BT = encoded["input_ids"], encoded["attention_mask"]
    started_BT = (ids_BT == tokenizer.convert_tokens_to_ids("<a>")).cumsum(1)
    response_BT = (started_BT.roll(1, dims=1) > 0) & (attention_BT > 0)
    response_BT[:, 0] = False
    return ids_BT, attention_BT, response_BT


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int, size: int, peak: float) -> None:
    """AdamW with warm-up and cosine decay on the response tokens; prints a line every 100 steps."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    started = time.monotonic()
    model.train()
    for step in range(steps):
        rate = peak * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        ids_BT, attention_BT, response_BT = batch(tokenizer, step, size)
        optimiser.zero_grad()
        loss = 0.0
        for rows in attention_BT.sum(1).argsort(stable=True).chunk(4):  # by length: padding is half the cost otherwise
            width = int(attention_BT[rows].sum(1).max())
            ids_bT, learn_bT = ids_BT[rows, :width], response_BT[rows, 1:width]
            hidden_bTD = model.model(input_ids=ids_bT, attention_mask=attention_BT[rows, :width]).last_hidden_state
            logits_NV = model.lm_head(hidden_bTD[:, :-1][learn_bT])
            nll = torch.nn.functional.cross_entropy(logits_NV, ids_bT[:, 1:][learn_bT], reduction="sum")
            (nll / response_BT.sum()).backward()
            loss += nll.item() / int(response_BT.sum())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if (step + 1) % 100 == 0 or step == 0:
            spent = time.monotonic() - started
            left = spent / (step + 1) * (steps - step - 1)
            print(
                f"step {step + 1}/{steps} loss {loss:.4f} {spent:.0f} s, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )


@torch.no_grad()
def answers(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, chats: Sequence[Sequence[Message]], samples: int = 0
) -> list[list[str]]:
    """Answers to each chat: one greedy one, or `samples` at temperature 1."""
    texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    encoded = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
    how = {"do_sample": True, "temperature": 1.0, "top_k": 0, "num_return_sequences": samples} if samples else {}
    out = model.generate(
        input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"], max_new_tokens=24, **how
    )
    told = tokenizer.batch_decode(out[:, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    each = max(samples, 1)
    return [told[at : at + each] for at in range(0, len(told), each)]


def measure(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int = 1000) -> dict[str, float]:
    """Held-out accuracies (shares of 1). Feedback is that of the model's own first wrong answer of 8 sampled ones."""
    model.eval()
    torch.manual_seed(SEED)
    prompts = list(TASK.held_out(count))

    def right(prompt: Prompt, text: str) -> bool:
        return TASK.verify(prompt, text).reward == 1.0

    def share(asked: Sequence[Prompt], chats: Sequence[Sequence[Message] | None]) -> float:
        told = answers(model, tokenizer, [chat for chat in chats if chat is not None])
        return float(np.mean([right(p, t[0]) for p, t in zip(asked, told, strict=True)]))

    content = [p.content for p in prompts]
    sampled = answers(model, tokenizer, content, samples=8)
    wrong = {i: [t for t in texts if not right(prompts[i], t)] for i, texts in enumerate(sampled)}
    first = {i: texts[0] for i, texts in wrong.items() if texts and texts[0].strip()}
    missed = [(prompts[i], TASK.verify(prompts[i], text), text) for i, text in first.items()]
    asked = [p for p, _, _ in missed]
    others = prompts[1:] + prompts[:1]
    foreign = [with_solution(p.content, Evidence(solution=o.solution), TERSE) for p, o in zip(prompts, others)]
    copied = answers(model, tokenizer, [chat for chat in foreign if chat is not None])
    solved = [with_solution(p.content, Evidence(solution=p.solution), TERSE) for p in prompts]
    told = [with_feedback(p.content, Evidence(feedback=v.feedback), TERSE) for p, v, _ in missed]
    both = [with_attempt(p.content, Evidence(feedback=v.feedback, attempt=t), TERSE) for p, v, t in missed]
    return {
        "plain_greedy": share(prompts, content),
        "plain_sampled": float(np.mean([[right(p, t) for t in texts] for p, texts in zip(prompts, sampled)])),
        "plain_pass_at_8": float(np.mean([any(right(p, t) for t in texts) for p, texts in zip(prompts, sampled)])),
        "with_solution": share(prompts, solved),
        "with_anothers_solution": share(prompts, foreign),
        "anothers_solution_copied": float(np.mean([t[0] == o.solution for t, o in zip(copied, others)])),
        "with_feedback": share(asked, told),
        "with_attempt_and_feedback": share(asked, both),
        "plain_greedy_where_feedback": share(asked, [p.content for p in asked]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the pocket model from nothing on one core.")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    train(model, tokenizer, options.steps, options.batch, options.rate)
    minutes = (time.monotonic() - started) / 60
    card = {
        "seed": SEED,
        "task": {"name": TASK.name, "terms": TASK.terms, "digits": TASK.digits, "wording": TASK.wording},
        "steps": options.steps,
        "batch": options.batch,
        "peak_rate": options.rate,
        "minutes": round(minutes, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "held_out_prompts": 1000,
        "accuracy": {name: round(value, 4) for name, value in measure(model, tokenizer).items()},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": np.__version__},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    (options.out / "pocket.json").write_text(json.dumps(card, indent=2) + "\n")
    print(json.dumps(card, indent=2))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
