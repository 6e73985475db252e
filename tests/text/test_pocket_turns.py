"""pocket-turns, the pupil of the worlds: as good as its card says, and the premise of what is learnt on it."""

from __future__ import annotations

import json

from redistill.build import settings
from redistill.tasks.tools import Tools
from redistill.text import weights
from redistill.text.evaluate import answer, correct
from redistill.text.models import load_model
from redistill.text.sampling import Sampling
from redistill.text.views import Evidence

CARD = json.loads((weights.ASSETS / "pocket-turns" / "pocket-turns.json").read_text())
COUNT = 100


def success(lm, task, seen):
    """Share of held-out orders done greedily."""
    _, config = settings("rft", {"max_new_tokens": 4, "max_turns": 16})
    prompts = list(task.held_out(COUNT))
    groups = answer(lm, task, config, prompts, [seen(p) for p in prompts], Sampling(0.0, max_new_tokens=4), 1)
    return sum(correct(task, [(p, g[0]) for p, g in zip(prompts, groups)])) / COUNT


def test_is_what_its_card_says_and_knows_more_in_view_than_it_plays() -> None:
    lm, task = load_model("pocket-turns"), Tools(steps=4)
    told = CARD["accuracy"]["tools-4+1"]
    skill = success(lm, task, lambda p: Evidence(skill="".join(str(p.solution).split("\n")) + "!"))
    solution = success(lm, task, lambda p: Evidence(solution=p.solution))
    plain = success(lm, task, lambda p: Evidence())
    for found, name in ((skill, "with_skill"), (solution, "with_solution"), (plain, "plain")):
        assert abs(found - told[name]) < 0.02, name
    assert solution > skill > plain + 0.2
