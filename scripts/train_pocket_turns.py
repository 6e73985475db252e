"""Train `pocket-turns`, the character model of the tools world, which is played in turns, from `pocket` on one core.

    OMP_NUM_THREADS=1 python scripts/train_pocket_turns.py [--steps N] [--out FOLDER]

Like `pocket` it knows more than it says: it can look up which call is due, but alone it mostly goes down the order sheet, because that is
what most of its plain moves did in training; with a solution, the names of the tools or a skill in view it follows them. So
plain play mostly fails, and what a privileged reader knows can be distilled. Everything is drawn by counter-based
randomness from `SEED`, on the training split only; the figures in pocket-turns.json are of the held-out split.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from redistill.build import settings
from redistill.core import rng
from redistill.core.arithmetic import fast_float32
from redistill.core.task import Prompt
from redistill.tasks.tools import NAMES, Tools, Workshop
from redistill.text.evaluate import answer, correct
from redistill.text.models import LanguageModel, load_model, save_model
from redistill.text.sampling import Sampling
from redistill.text.views import TERSE, VIEWS, Evidence

SEED = 20261
RIGHT = 0.3
"""Share of the plain moves that are right in training, beside those where going down the sheet is right too."""
LOOKING, CLEAN = 0.4, 0.7
"""Shares of the steps: the first ones have few calls, and solutions and hints are learnt too (looking a call up in the sheet is
learnt there first); up to the second no move is replaced, so that it is learnt before it is unlearnt in part."""
HABIT = 0.9
"""Share of the wrong calls of the tools that go down the sheet."""
STRAY = 0.15
"""Share of a privileged reader's turns that are a wrong move it must recover from (shown, not learnt)."""
FOLDER = Path(__file__).resolve().parents[1] / "redistill" / "assets" / "pocket-turns"
TASKS = {steps: Tools(steps=steps, slack=1) for steps in (2, 3, 4, 5)}


def moves(world: Workshop, draws: Any) -> tuple[str, str]:
    """(right call, some other call) for a workshop as it stands: mostly the first of the sheet that is not done, whatever it has to
    wait for (the habit of going down the sheet), else any call."""
    due = "".join(world.calls[world.done])
    done = {name for name, _ in world.calls[: world.done]}
    sheet = [world.first[at : at + 2] for at in range(0, len(world.first), 3)]
    if draws[1] < HABIT:
        return due, next(call for call in sheet if call[0] not in done)
    return due, NAMES[int(draws[0] * len(NAMES))] + str(int(draws[3] * 10))


def evidence(kind: float, prompt: Prompt, draws: Any) -> tuple[str, Evidence, int]:
    """(view, evidence, for how many of the moves it tells what to do): 40% plain, 20% the solution, 15% names, 25% a skill."""
    actions = (prompt.solution or "").split("\n")
    if kind < 0.40:
        return "plain", Evidence(), 0
    if kind < 0.60:
        return "with_solution", Evidence(solution=prompt.solution), len(actions)
    if kind < 0.75 and "hint" in prompt.data:
        return "with_hint", Evidence(hint=prompt.data["hint"]), len(actions)
    known = int(draws[0] * (len(actions) + 1))
    wrong = actions[int(draws[1] * len(actions))]
    skill = "".join(actions[:known]) + "!" + ("" if known == len(actions) else wrong)
    return "with_skill", Evidence(skill=skill), known


def conversation(step: int, row: int, stage: int) -> list[tuple[str, bool]]:
    """One conversation as pieces of text, and whether each is to be learnt. Before the last stage every move learnt is right."""
    draws = rng.uniform("turns", SEED, step, row, range(8))
    task = TASKS[(2 if stage == 0 else 3) + int(draws[1] * 3)]
    prompt = task.train(int(draws[2] * 10**9), SEED)
    view, shown, known = evidence(draws[3], prompt, draws[4:6])
    messages = VIEWS[view](prompt.content, shown, TERSE)
    assert messages is not None
    world, question = task.world(prompt), prompt.content[-1]["content"]
    told_text = messages[-1]["content"][len(question) :]
    pieces = [(f"<s><u>{question}", False), (told_text, stage == 0 and view != "with_skill")]
    over, right = False, 0
    while not over:
        own = rng.uniform("turn", SEED, step, row, world.used, range(8))
        due, other = moves(world, own[:4])
        told = right < known
        learn = not (stage and told and own[4] < STRAY)
        sure = stage < 2 or told or own[5] < RIGHT
        action = due if learn and sure else other
        pieces += [("<a>", False), (f"{action}</s>", learn)]
        observation, _, terminated, truncated, _ = world.step(action)
        right = world.done
        over = terminated or truncated
        pieces += [] if over else [(f"<u>{observation}", False)]
    return pieces


def batch(tokenizer: Any, step: int, size: int, stage: int = 2) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """ids_BT and learn_BT, padded on the right, and the lengths."""
    rows = []
    for row in range(size):
        ids: list[int] = []
        learn: list[bool] = []
        for text, wanted in conversation(step, row, stage):
            new = tokenizer.encode(text, add_special_tokens=False)
            ids, learn = ids + new, learn + [wanted] * len(new)
        rows.append((ids, learn))
    rows.sort(key=lambda pair: len(pair[0]))
    width = max(len(ids) for ids, _ in rows)
    ids_BT = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows])
    learn_BT = torch.tensor([learn + [False] * (width - len(learn)) for _, learn in rows])
    return ids_BT, learn_BT, [len(ids) for ids, _ in rows]


def fresh_embeddings(lm: LanguageModel) -> int:
    """Draw the embeddings anew that `pocket` never used, at the length of its digits'; how many those are. Training pushed them all the
    same way, as outputs that are never right (embeddings are tied), so that one letter is hardly told from another.
    The tools' names begin half way to a digit each, which `pocket` can copy already."""
    weight_VD = lm.module.get_input_embeddings().weight.data
    length_V = weight_VD.norm(dim=1)
    digits = lm.tokenizer.encode("0123456789", add_special_tokens=False)
    far = (length_V > 2 * length_V[digits].mean()).nonzero().flatten()
    drawn = torch.randn(len(far), weight_VD.shape[1], generator=torch.Generator().manual_seed(SEED))
    weight_VD[far] = drawn / drawn.norm(dim=1, keepdim=True) * length_V[digits].mean()
    for name, digit in zip(NAMES, "12345678", strict=True):
        new, like = lm.tokenizer.encode(name + digit, add_special_tokens=False)
        weight_VD[new] = 0.7 * (weight_VD[new] + weight_VD[like])
    return len(far)


def train(lm: LanguageModel, steps: int, size: int, peak: float) -> None:
    """AdamW with warm-up and cosine decay on the moves to learn; prints a line every 50 steps."""
    optimiser = torch.optim.AdamW(lm.module.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    began = time.monotonic()
    for step in range(steps):
        rate = peak * min(1.0, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        ids_BT, learn_BT, lengths = batch(lm.tokenizer, step, size, (step >= LOOKING * steps) + (step >= CLEAN * steps))
        optimiser.zero_grad()
        loss, count = 0.0, int(learn_BT.sum())
        for rows in torch.arange(size).chunk(4):
            width = max(lengths[row] for row in rows.tolist())
            ids_bT, learn_bT = ids_BT[rows, :width], learn_BT[rows, 1:width]
            hidden_bTD = lm.hidden(ids_bT).last_hidden_state
            logits_NV = lm.head().logits(hidden_bTD[:, :-1][learn_bT])
            nll = torch.nn.functional.cross_entropy(logits_NV, ids_bT[:, 1:][learn_bT], reduction="sum")
            (nll / count).backward()
            loss += nll.item() / count
        torch.nn.utils.clip_grad_norm_(lm.module.parameters(), 1.0)
        optimiser.step()
        if (step + 1) % 50 == 0 or step == 0:
            spent = time.monotonic() - began
            left = spent / (step + 1) * (steps - step - 1)
            print(
                f"step {step + 1}/{steps} loss {loss:.4f} {spent:.0f} s, {left:.0f} s left", file=sys.stderr, flush=True
            )


def measure(lm: LanguageModel, count: int = 100) -> dict[str, dict[str, float]]:
    """Held-out success: plain greedy, plain sampled, and greedy with the solution, names or skills in view."""
    _, config = settings("rft", {"max_new_tokens": 4, "max_turns": 16})
    found: dict[str, dict[str, float]] = {}
    for task in (Tools(steps=3), Tools(steps=4), Tools(steps=5), Tools(steps=5, slack=0)):
        prompts = list(task.held_out(count))
        name = f"{task.name}-{task.steps}+{task.slack}"
        halves = [(p.solution or "").split("\n") for p in prompts]
        own = {
            "plain": [Evidence()] * count,
            "with_solution": [Evidence(solution=p.solution) for p in prompts],
            "with_anothers_solution": [Evidence(solution=p.solution) for p in [*prompts[1:], prompts[0]]],
            "with_skill": [Evidence(skill="".join(half) + "!") for half in halves],
            "with_half_a_skill": [Evidence(skill="".join(half[: len(half) // 2]) + "!") for half in halves],
        }
        own["with_names"] = [Evidence(hint=p.data["hint"]) for p in prompts]
        greedy = Sampling(temperature=0.0, max_new_tokens=4)
        found[name] = {}
        for label, seen in own.items():
            groups = answer(lm, task, config, prompts, seen, greedy, 1)
            found[name][label] = sum(correct(task, [(p, g[0]) for p, g in zip(prompts, groups)])) / count
        groups = answer(lm, task, config, prompts, own["plain"], Sampling(max_new_tokens=4), 4)
        found[name]["plain_sampled"] = sum(correct(task, [(p, o) for p, g in zip(prompts, groups) for o in g])) / (
            4 * count
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the pocket-turns model from pocket on one core.")
    parser.add_argument("--steps", type=int, default=560)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    fast_float32()
    lm = load_model("pocket")
    lm.causal.config.max_position_embeddings = lm.context = lm.tokenizer.model_max_length = 192
    fresh_embeddings(lm)
    train(lm, options.steps, options.batch, options.rate)
    minutes = (time.monotonic() - began) / 60
    save_model(lm, options.out)
    card = {
        "from": "pocket", "seed": SEED, "steps": options.steps, "batch": options.batch, "peak_rate": options.rate,
        "minutes": round(minutes, 1), "right_moves_in_training": RIGHT, "habit": HABIT,
        "held_out_prompts": 100, "accuracy": measure(lm),
    }  # fmt: skip
    (options.out / "pocket-turns.json").write_text(json.dumps(card, indent=2) + "\n")
    print(json.dumps(card, indent=2))


if __name__ == "__main__":
    main()
