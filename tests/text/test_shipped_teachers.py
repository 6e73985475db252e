"""The teachers that ship beside pocket: they can stand beside it, and are as good as their cards say."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import pytest
from redistill.build import settings
from redistill.core.task import Prompt, Task
from redistill.tasks.confidence import Confident, with_confidence
from redistill.tasks.loading import load_task
from redistill.tasks.sums import Sums
from redistill.text import weights
from redistill.text.evaluate import evaluate
from redistill.text.models import compare_tokenizers, load_model
from redistill.text.sampling import Sampling, sample
from redistill.text.views import TERSE, VIEWS, Evidence

PUPILS = ("pocket", "pocket-self", "pocket-copy", "pocket-sketch", "pocket-turns")


@pytest.mark.parametrize("name", [name for name in weights.SHIPPED if name not in PUPILS])
def test_a_shipped_teacher_is_what_its_card_says(name: str) -> None:
    lm = load_model(name)
    compare_tokenizers(load_model("pocket").tokenizer, lm.tokenizer)
    card = json.loads((weights.ASSETS / name / "expert.json").read_text())
    for task, told in card["accuracy"].items():
        config = settings("sft", {"eval_prompts": 120, "utility": "false", "max_new_tokens": 24})[1]
        found = evaluate(lm, load_task(task), config)
        assert found["low"] - 1e-9 <= told["greedy"] <= found["high"] + 1e-9


def test_pocket_self_is_what_its_card_says() -> None:
    """Shares of 150 held-out prompts, sampled at temperature 1 as the card's, within 3.3 standard errors of them."""
    lm = load_model("pocket-self")
    compare_tokenizers(load_model("pocket").tokenizer, lm.tokenizer)
    card = json.loads((weights.ASSETS / "pocket-self" / "pocket-self.json").read_text())["accuracy"]
    three, four, sure = Sums(), Sums(terms=4), Confident(Sums())

    def answers(contexts: Sequence[Sequence[int]], draw: int = 0) -> list[str]:
        told, keys = Sampling(max_new_tokens=28), [(draw, i) for i in range(len(contexts))]
        return [one[0].text for one in sample(lm, contexts, group_size=1, sampling=told, keys=keys, max_batch=64)]

    def reads(view: str, task: Task, evidence: Callable[[Prompt], Evidence]) -> list[Sequence[int]]:
        made = [VIEWS[view](p.content, evidence(p), TERSE) for p in task.held_out(150)]
        return [lm.render(messages) for messages in made if messages is not None]

    def right(task: Task, texts: Sequence[str]) -> list[float]:
        return [task.verify(p, text).reward for p, text in zip(task.held_out(150), texts, strict=True)]

    plain = reads("plain", three, lambda p: Evidence())
    first = answers(plain)
    good = right(three, first)
    phrases = [first[i] + (TERSE.rephrase if good[i] else TERSE.redo) for i in range(150)]
    again = [[*c, *lm.tokenizer.encode(text, add_special_tokens=False)] for c, text in zip(plain, phrases, strict=True)]
    second = right(three, answers(again, draw=1))
    copied = answers(
        reads("demonstrated", sure, lambda p: Evidence(solution=with_confidence(p.solution or "", 0.38, "terse")))
    )
    found = {
        "plain": good, "revised_after_right": [s for s, g in zip(second, good, strict=True) if g],
        "revised_after_wrong": [s for s, g in zip(second, good, strict=True) if not g],
        "demonstrated": right(sure, copied), "confidence_copied": [text.endswith("C0.38") for text in copied],
        "four_plain": right(four, answers(reads("plain", four, lambda p: Evidence()))),
        "four_with_hint": right(four, answers(reads("with_hint", four, lambda p: Evidence(hint=p.data["hint"])))),
    }  # fmt: skip
    for name, values in found.items():
        gap = abs(sum(values) / len(values) - card[name])
        assert gap < 3.3 * (card[name] * (1 - card[name]) / len(values)) ** 0.5, name
