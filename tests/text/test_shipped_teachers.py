"""The teachers that ship beside pocket: they can stand beside it, and are as good as their cards say."""

from __future__ import annotations

import json

import pytest
from redistill.build import settings
from redistill.tasks.loading import load_task
from redistill.text import weights
from redistill.text.evaluate import evaluate
from redistill.text.models import compare_tokenizers, load_model


@pytest.mark.parametrize("name", [name for name in weights.SHIPPED if name != "pocket"])
def test_a_shipped_teacher_is_what_its_card_says(name: str) -> None:
    lm = load_model(name)
    compare_tokenizers(load_model("pocket").tokenizer, lm.tokenizer)
    card = json.loads((weights.ASSETS / name / "expert.json").read_text())
    for task, told in card["accuracy"].items():
        config = settings("sft", {"eval_prompts": 120, "utility": "false", "max_new_tokens": 24})[1]
        found = evaluate(lm, load_task(task), config)
        assert found["low"] - 1e-9 <= told["greedy"] <= found["high"] + 1e-9
