"""Train `pocket-self`: pocket after some minutes more, able to do what methods that teach themselves in one turn presuppose.

    OMP_NUM_THREADS=1 python scripts/train_pocket_self.py [--steps N] [--out FOLDER]

Beside what pocket does it learns, on training prompts only:
- to go on after its own answer and a control phrase (";" after a right answer, "!" after a wrong one) with another
  attempt, no better than its answers are: right 40% of the time after "!" (sd-zero's base model can revise, a little);
- to state a confidence after "C" when asked to, always one of 0.90 to 1.00, while how often it is right depends on how many
  carries the sum has (over-confident, and difficulty can be seen); to copy a demonstration with its confidence, whatever it
  is, and to obey a note "H0.38" (caopd);
- sums of four numbers: the examples are right 3% of the time, and 60% with the first step as a hint; what sums of three teach
  makes that 33% and 49% for the model (pi-distill).
Not trained, yet there: sums of two numbers, right 3% of the time, and half the time with the solution in view.
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
import torch
from redistill.core import rng
from redistill.core.task import is_held_out
from redistill.tasks.confidence import REQUESTS, Confident, split_confidence, with_confidence
from redistill.tasks.sums import Sums, worked
from redistill.text.models import load_model
from redistill.text.sampling import Sampling, sample
from redistill.text.views import TERSE, VIEWS, Evidence, Message
from train_pocket import CORRUPT, add_wrongly, conversation, corrupted

SEED = 20261
THREE, FOUR = Sums(terms=3, digits=2), Sums(terms=4, digits=2)
RIGHT_BY_CARRIES = (0.9, 0.5, 0.15)
"""Share of right answers where a confidence is asked for, by the carries from units to tens."""
FOLDER = Path(__file__).resolve().parents[1] / "redistill" / "assets" / "pocket-self"

Example = tuple[list[Message], str, str]
"""(what is read, the part of the answer that is read too, the part that is learnt)."""


def carries(terms: Sequence[int]) -> int:
    """How many of the two additions carry from units to tens."""
    a, b, c = terms
    return int(add_wrongly(a, b) != a + b) + int(add_wrongly(a + b, c) != a + b + c)


def slipped(terms: Sequence[int], u: float, v: float) -> str:
    """A worked answer with one partial sum off by 1 or 10; the rest follows from it."""
    at, off = 1 + int(u * (len(terms) - 1)), (1, -1, 10, -10)[int(v * 4)]
    steps, total = [], terms[0]
    for i, term in enumerate(terms[1:], start=1):
        total += term + (off if i == at else 0)
        steps.append("+".join(map(str, [total, *terms[i + 1 :]])))
    return "=".join(steps)


def revision(terms: Sequence[int], u: Sequence[float]) -> Example:
    """An answer, the phrase that its correctness calls for, and another attempt."""
    first = corrupted(terms, u[1:4]) if u[0] < CORRUPT else worked(terms)
    right = first == worked(terms)
    second = worked(terms) if u[4] < (0.95 if right else 1 - CORRUPT) else corrupted(terms, u[5:8])
    return THREE.prompt(terms).content, first + (TERSE.rephrase if right else TERSE.redo), second


def confident(terms: Sequence[int], u: Sequence[float]) -> Example:
    """An answer with a confidence: by itself, with a demonstration, or with a demonstration and a note."""
    prompt, value = Confident(THREE).asked(THREE.prompt(terms)), round(u[1], 2)
    if u[0] < 0.5:
        right = u[2] < RIGHT_BY_CARRIES[carries(terms)]
        said = worked(terms) if right else corrupted(terms, u[3:6])
        return prompt.content, "", with_confidence(said, 0.9 + 0.1 * u[1], "terse")
    shown = with_confidence(worked(terms), value if u[0] < 0.75 or u[2] < 0.5 else u[3], "terse")
    seen = Evidence(solution=shown, hint=None if u[0] < 0.75 else f"{value:.2f}")
    messages = VIEWS["demonstrated"](prompt.content, seen, TERSE)
    assert messages is not None
    return messages, "", with_confidence(worked(terms), value, "terse")


def four(terms: Sequence[int], u: Sequence[float]) -> Example:
    """A sum of four numbers, plain or with its first step as a hint."""
    prompt = FOUR.prompt(terms)
    if u[0] < 0.4:
        return (
            prompt.content,
            "",
            worked(terms) if u[1] < 0.03 else slipped(terms, 0.0, u[3]),
        )  # wrong from the first step on
    messages = VIEWS["with_hint"](prompt.content, Evidence(hint=prompt.data["hint"]), TERSE)
    assert messages is not None
    return messages, "", worked(terms) if u[1] < 0.6 else slipped(terms, 0.34 + 0.65 * u[2], u[3])


def example(u: Sequence[float]) -> Example | None:
    """A keyed example: 20% as pocket, 35% revisions, 25% confidences, 20% sums of four; None on a held-out prompt."""
    kind, terms = u[0], [10 + int(x * 90) for x in u[1:5]]
    task = FOUR if kind >= 0.8 else THREE
    terms = terms[: task.terms]
    if is_held_out(task.prompt(terms).uid):
        return None
    if kind < 0.20:
        *chat, answer = conversation(THREE.prompt(terms), terms, u[5:])
        return chat, "", answer["content"]
    return (revision if kind < 0.55 else confident if kind < 0.8 else four)(terms, u[5:])


def batch(tokenizer: object, step: int, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids_BT (right-padded), lengths_B and learn_BT (True on the tokens to learn, end included)."""
    drawn = rng.uniform("pocket-self", SEED, step, np.arange(2 * size)[:, None], np.arange(14)).tolist()
    made = [one for one in map(example, drawn) if one is not None][:size]
    rows = []
    for chat, read, learnt in made:
        head = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) + read  # type: ignore[attr-defined]
        ids = [tokenizer.encode(text, add_special_tokens=False) for text in (head, learnt + "</s>")]  # type: ignore[attr-defined]
        rows.append((ids[0] + ids[1], len(ids[0])))
    width = max(len(ids) for ids, _ in rows)
    ids_BT = torch.zeros(len(rows), width, dtype=torch.int64)
    learn_BT = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, (ids, start) in enumerate(rows):
        ids_BT[i, : len(ids)] = torch.tensor(ids)
        learn_BT[i, start : len(ids)] = True
    return ids_BT, torch.tensor([len(ids) for ids, _ in rows]), learn_BT


def train(module: torch.nn.Module, tokenizer: object, steps: int, size: int, peak: float) -> None:
    """AdamW with a short warm-up and cosine decay on the tokens to learn."""
    optimiser = torch.optim.AdamW(module.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    started = time.monotonic()
    for step in range(steps):
        rate = peak * min(1.0, (step + 1) / 20) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        ids_BT, length_B, learn_BT = batch(tokenizer, step, size)
        optimiser.zero_grad()
        loss = 0.0
        for rows in length_B.argsort(stable=True).chunk(4):
            width = int(length_B[rows].max())
            ids_bT, learn_bT = ids_BT[rows, :width], learn_BT[rows, 1:width]
            hidden_bTD = module.model(input_ids=ids_bT).last_hidden_state  # causal: padding on the right is not seen
            nll = torch.nn.functional.cross_entropy(
                module.lm_head(hidden_bTD[:, :-1][learn_bT]), ids_bT[:, 1:][learn_bT], reduction="sum"
            )
            (nll / learn_BT.sum()).backward()
            loss += nll.item() / int(learn_BT.sum())
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        if (step + 1) % 50 == 0:
            spent = time.monotonic() - started
            left = spent / (step + 1) * (steps - step - 1)
            print(
                f"step {step + 1}/{steps} loss {loss:.4f} {spent:.0f} s, {left:.0f} s left", file=sys.stderr, flush=True
            )


def measure(lm: object, count: int = 400) -> dict[str, float]:
    """Held-out shares, sampled at temperature 1."""
    told = Sampling(max_new_tokens=28)

    def answers(contexts: Sequence[Sequence[int]], draw: int = 0) -> list[str]:
        keys = [(draw, i) for i in range(len(contexts))]  # a revision drawn as its answer was would repeat its mistakes
        return [one[0].text for one in sample(lm, contexts, group_size=1, sampling=told, keys=keys, max_batch=64)]  # type: ignore[arg-type]

    def asked(task: object, view: str = "plain", **seen: str) -> list[list[int]]:
        made = [
            VIEWS[view](p.content, Evidence(**{k: f(p) for k, f in seen.items()}), TERSE) for p in task.held_out(count)
        ]  # type: ignore[attr-defined, operator]
        return [lm.render(messages) for messages in made]  # type: ignore[attr-defined]

    def right(task: object, texts: Sequence[str]) -> list[float]:
        return [task.verify(p, t).reward for p, t in zip(task.held_out(count), texts)]  # type: ignore[attr-defined]

    found: dict[str, float] = {}
    first = answers(asked(THREE))
    good = right(THREE, first)
    found["plain"] = float(np.mean(good))
    found["revises_by_itself"] = float(np.mean([TERSE.redo in t or TERSE.rephrase in t for t in first]))
    spliced = [
        [*c, *lm.tokenizer.encode(t + (TERSE.rephrase if g else TERSE.redo), add_special_tokens=False)]  # type: ignore[attr-defined]
        for c, t, g in zip(asked(THREE), first, good)
    ]
    second = right(THREE, answers(spliced, draw=1))
    for name, kind in (("revised_after_right", 1.0), ("revised_after_wrong", 0.0)):
        found[name] = float(np.mean([s for s, g in zip(second, good) if g == kind]))
    sure = Confident(THREE)
    said = answers(asked(sure))
    right_now, confidence = right(sure, said), [split_confidence(t, "terse")[1] for t in said]
    found["confident_plain"] = float(np.mean(right_now))
    found["stated"] = float(np.mean([c for c in confidence if c is not None]))
    found["states_none"] = float(np.mean([c is None for c in confidence]))
    for number in range(3):
        at = [
            r
            for r, p in zip(right_now, THREE.held_out(count))
            if carries([int(x) for x in p.content[0]["content"][:-1].split("+")]) == number
        ]
        found[f"confident_plain_{number}_carries"] = float(np.mean(at))
    low = [with_confidence(p.solution or "", 0.38, "terse") for p in sure.held_out(count)]
    shown = [
        lm.render(VIEWS["demonstrated"](p.content, Evidence(solution=s), TERSE))
        for p, s in zip(sure.held_out(count), low)
    ]  # type: ignore[attr-defined]
    noted = [
        lm.render(VIEWS["demonstrated"](p.content, Evidence(solution=p.solution, hint="0.25"), TERSE))
        for p in sure.held_out(count)
    ]  # type: ignore[attr-defined]
    copied, obeyed = answers(shown), answers(noted)
    found["demonstrated"] = float(np.mean(right(sure, copied)))
    found["confidence_copied"] = float(np.mean([t.endswith("C0.38") for t in copied]))
    found["note_obeyed"] = float(np.mean([t.endswith("C0.25") for t in obeyed]))
    found["four_plain"] = float(np.mean(right(FOUR, answers(asked(FOUR)))))
    found["four_with_hint"] = float(
        np.mean(right(FOUR, answers(asked(FOUR, "with_hint", hint=lambda p: p.data["hint"]))))
    )  # type: ignore[arg-type]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Train pocket-self from pocket on one core.")
    parser.add_argument("--steps", type=int, default=1300)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    lm = load_model("pocket")
    train(lm.module, lm.tokenizer, options.steps, options.batch, options.rate)
    minutes = (time.monotonic() - started) / 60
    card = {
        "seed": SEED, "from": "pocket", "steps": options.steps, "batch": options.batch, "peak_rate": options.rate,
        "minutes": round(minutes, 1), "request": REQUESTS["terse"],
        "accuracy": {name: round(value, 4) for name, value in measure(lm).items()},
    }  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    lm.module.save_pretrained(options.out)  # type: ignore[attr-defined]
    lm.tokenizer.save_pretrained(options.out)
    (options.out / "pocket-self.json").write_text(json.dumps(card, indent=2) + "\n")
    print(json.dumps(card, indent=2))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
