"""Worlds: gymnasium's calls, verdicts by replay, splits that never meet, levels that can be solved."""

from __future__ import annotations

import random
from itertools import pairwise, product
from typing import Any

import pytest
from redistill.core.task import Task, is_held_out
from redistill.errors import UserError
from redistill.tasks import load_task
from redistill.tasks.sokoban import MOVES, Level, Sokoban, push, solve
from redistill.tasks.tools import Tools
from redistill.tasks.worlds import WorldTask

TASKS = [
    Tools(), Tools(steps=3, slack=0, style="english"), Tools(partial=True, levels=7), Sokoban(),
    Sokoban(size=4, boxes=2, low=4, high=12, style="english"), Sokoban(turns=9, levels=5),
]  # fmt: skip


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_is_a_task_with_worlds(task: Any) -> None:
    assert isinstance(task, Task)
    assert isinstance(task, WorldTask)
    assert task.wording in ("terse", "english")
    prompt = task.train(3, 1)
    assert prompt == task.train(3, 1)
    assert task.world(prompt).reset()[0] in prompt.content[-1]["content"]


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_solutions_solve_and_a_turn_short_they_do_not(task: Any) -> None:
    for index in range(10):
        prompt = task.train(index, 0)
        verdict = task.verify(prompt, prompt.solution)
        assert (verdict.reward, verdict.format_ok, verdict.feedback) == (1.0, True, None)
        short = task.verify(prompt, "\n".join(prompt.solution.split("\n")[:-1]))
        assert short.reward < 1.0


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_any_text_is_answered_and_rewards_stay_in_range(task: Any) -> None:
    draw = random.Random(0)
    words = [
        "",
        "?",
        "a7",
        "U",
        "[up]",
        "b(3)",
        "x" * 5000,
        "\n",
        "é\x00",
        "go [left]",
        *("cdefgh"[i] + "1" for i in range(6)),
    ]
    for index in range(20):
        prompt = task.train(index, 0)
        world = task.world(prompt)
        first, _ = world.reset(seed=1, options={})
        total, over, turns = 0.0, False, 0
        while not over:
            observation, reward, terminated, truncated, info = world.step(draw.choice(words))
            assert observation.strip()
            assert 0.0 <= info["progress"] <= 1.0
            assert isinstance(info["malformed"], bool)
            total, over, turns = total + reward, terminated or truncated, turns + 1
            assert turns < 100
        assert 0.0 <= total <= 1.0
        assert terminated or info["feedback"].strip()
        with pytest.raises(RuntimeError, match="reset first"):
            world.step("a7")
        assert world.reset()[0] == first
        assert 0.0 <= task.verify(prompt, draw.choice(words)).reward <= 1.0


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_splits_never_meet(task: Any) -> None:
    held_out = task.held_out(20)
    assert len({p.uid for p in held_out}) == 20
    assert all(is_held_out(p.uid) for p in held_out)
    assert not any(is_held_out(task.train(i, s).uid) for i, s in product(range(10), range(3)))
    assert task.held_out(5) == held_out[:5]
    assert task.held_out(0) == []


def test_levels_are_the_same_for_every_seed_and_met_once_a_pass() -> None:
    task = Tools(levels=7)
    passes = [[task.train(i, seed).uid for i in range(low, low + 7)] for seed in (0, 1) for low in (0, 7)]
    assert len({frozenset(one) for one in passes}) == 1
    assert len(set(passes[0])) == 7
    assert len({tuple(one) for one in passes}) == 4, "in another order each time"


def test_tools_replies() -> None:
    task = Tools(steps=3, slack=5)
    prompt = task.train(0, 0)
    (a, x), (b, y), (c, z) = prompt.data["calls"]
    world = task.world(prompt)
    wrong = str((int(x) + 1) % 10)
    told = [world.step(call)[0] for call in (b + y, a + wrong, a + x, a + x, "look", "a77", b + y)]
    assert told == ["x", "v", "+", "d", "?", "?", "+"]
    assert world.step(c + z)[:4] == ("+", 1.0, True, False)
    assert prompt.data["hint"] == a + b + c
    sheet = prompt.content[0]["content"]
    assert {sheet[i : i + 3] for i in range(0, 9, 3)} == {a + x + ".", b + y + a, c + z + b}


def test_tools_reward_comes_at_the_end_and_partial_is_the_share() -> None:
    for partial, reward in ((False, 0.0), (True, 2 / 3)):
        task = Tools(steps=3, slack=1, partial=partial)
        prompt = task.train(0, 0)
        calls = prompt.solution.split("\n")
        world = task.world(prompt)
        steps = [world.step(action) for action in (calls[0], calls[2], calls[1], "?")]
        assert [step[1] for step in steps[:-1]] == [0.0] * 3
        assert steps[-1][1] == pytest.approx(reward)
        assert steps[-1][2:4] == (False, True)
        assert steps[-1][4]["feedback"] == f"2!2:{calls[2]}"


def test_sokoban_pushes_boxes_and_walls_stop_them() -> None:
    floor = frozenset(product(range(3), range(3)))
    state = ((1, 0), frozenset({(1, 1)}))
    assert push(state, "R", floor) == ((1, 1), frozenset({(1, 2)}))
    assert push(push(state, "R", floor), "R", floor) == ((1, 1), frozenset({(1, 2)})), "against the wall"
    assert push(state, "L", floor) == state
    two = ((1, 0), frozenset({(1, 1), (1, 2)}))
    assert push(two, "R", floor) == two, "two boxes in a row"
    assert push(((0, 0), frozenset({(2, 2)})), "D", floor) == ((1, 0), frozenset({(2, 2)}))


def test_sokoban_solutions_are_shortest_by_an_independent_search() -> None:
    """Iterative deepening over all move strings, written without `solve`."""
    task = Sokoban(high=5)
    for index in range(6):
        prompt = task.train(index, 2)
        level = Level(prompt.data, "terse", 99)

        def reaches(moves: tuple[str, ...], level: Level = level) -> bool:
            state = level.start
            for move in moves:
                state = push(state, move, level.floor)
            return state[1] == level.targets

        best = next(n for n in range(1, 6) if any(reaches(moves) for moves in product(MOVES, repeat=n)))
        assert len(prompt.data["solution"]) == best
        assert task.low <= best <= task.high
        assert solve(level.start, level.targets, level.floor, best - 1) is None


def test_sokoban_symbols_and_malformed_moves() -> None:
    layout = {
        "floor": [[r, c] for r in range(3) for c in range(3) if (r, c) != (2, 2)], "targets": [[0, 0], [1, 1]],
        "boxes": [[1, 1], [0, 1]], "player": [0, 2], "size": 3,
    }  # fmt: skip
    level = Level(layout, "terse", 9)
    assert level.reset()[0] == "OXP/_T_/__#"
    assert level.step("jump")[0] == "?"
    assert level.step("L")[0] == "TP_/_T_/__#"
    words = Level(layout, "english", 9)
    assert words.reset()[0] == "#####\n#OXP#\n#_T_#\n#__##\n#####"
    assert words.step("I push it. [left]")[2]
    assert "not a move" in Level(layout, "english", 9).step("left")[0]


def test_summaries_keep_what_brought_progress_and_the_first_that_did_not() -> None:
    task = Tools(steps=3, slack=3)
    skill = task.summary(["b1", "a2", "?!", "b1"], [0.0, 1 / 3, 1 / 3, 2 / 3], [False, False, True, False])
    assert (skill.golden_workflow, skill.mistake_analysis) == ("a2b1", "b1")
    assert skill.text("terse") == "a2b1!b1"
    assert skill.text("english").count("\n") == 2
    assert task.summary([], [], []).text("terse") == "!"
    moves = Sokoban().summary(["U", "x", "R"], [0.0, 0.0, 1.0], [False, True, False])
    assert moves.text("terse") == "UR!"
    assert Sokoban().summary(["U", "L"], [0.0, 0.0], [False, False]).text("terse") == "!U"


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("tools:steps=9", "task tools steps=9 is outside 2 to 8; the nearest is 8"),
        ("tools:style=loud", "task tools style='loud' is not terse or english"),
        ("sokoban:size=2", "task sokoban size=2 is outside 3 to 8; the nearest is 3"),
        ("sokoban:low=5,high=4", "task sokoban high=4 is outside 5 to 30; the nearest is 5"),
        ("sokoban:levels=-1", "task sokoban levels=-1 is below 0; 0 means endless"),
        ("sokoban:box=1", "task 'sokoban' has no option 'box' (given box=1); did you mean 'boxes'?"),
    ],
)
def test_bad_options(spec: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        load_task(spec)
    assert str(caught.value).startswith(sentence)


def test_a_level_that_cannot_be_made_is_said_in_a_sentence() -> None:
    with pytest.raises(UserError, match="finds no layout"):
        Sokoban(size=3, boxes=1, low=29, high=30).train(0, 0)


def test_prompts_of_a_stream_differ() -> None:
    task = Tools()
    assert all(one != other for one, other in pairwise(task.train(i, 0).uid for i in range(20)))
