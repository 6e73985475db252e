"""Two tasks in turn."""

from __future__ import annotations

import pytest
from redistill.build import settings
from redistill.core.task import Task
from redistill.errors import UserError
from redistill.tasks.loading import load_task
from redistill.text.evaluate import evaluate
from redistill.text.models import load_model

SPEC = 'mix:first="sums:terms=3,digits=2",second="sums:terms=2,digits=2"'


def test_prompts_come_in_turn_and_carry_their_domain() -> None:
    task, first, second = load_task(SPEC), load_task("sums:terms=3,digits=2"), load_task("sums:terms=2,digits=2")
    assert isinstance(task, Task)
    for index in range(6):
        prompt, own = task.train(index, 5), (first, second)[index % 2].train(index // 2, 5)
        assert (prompt.uid, prompt.content, prompt.solution) == (own.uid, own.content, own.solution)
        assert prompt.data["domain"] == ("first", "second")[index % 2]
        assert task.verify(prompt, own.solution or "").reward == 1.0
        assert task.verify(prompt, "0").reward == 0.0


@pytest.mark.parametrize("count", [1, 2, 7, 10])
def test_held_out_prompts_are_those_of_both(count: int) -> None:
    task = load_task(SPEC)
    prompts = task.held_out(count)
    assert [prompt.data["domain"] for prompt in prompts] == [("first", "second")[at % 2] for at in range(count)]
    assert [p.uid for p in prompts[::2]] == [
        p.uid for p in load_task("sums:terms=3,digits=2").held_out((count + 1) // 2)
    ]


def test_an_evaluation_tells_of_each_domain() -> None:
    config = settings("sft", {"eval_prompts": 60, "utility": "false", "max_new_tokens": 16})[1]
    found = evaluate(load_model("pocket-pairs"), load_task(SPEC), config)
    assert (found["accuracy_first"], found["accuracy_second"], found["accuracy_min"]) == (0.0, 1.0, 0.0)
    assert found["accuracy"] == 0.5


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ('mix:first="mix"', "not of mixtures"),
        ('mix:second="chain_sum"', "one wording"),
        ('mix:first="sums:terms=99"', "terms=99"),
        ("mix:third=sums", "third"),
    ],
)
def test_what_does_not_mix_is_refused(spec: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_task(spec)
