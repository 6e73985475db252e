"""Sokoban: push every box onto a target, one move a turn. Levels are made backwards (pulled from the solved state), so
each can be solved; breadth-first search then finds a shortest solution, which must have `low` to `high` moves.

Symbols: # wall, _ floor, O target, X box, P player, T box on a target, S player on a target. Terse, the inner rows stand
joined by "/" and a move is one of U D L R; in English the whole grid is shown and a move is written [up].
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from redistill.core import rng
from redistill.core.task import Prompt
from redistill.tasks.worlds import MAX_ACTION, PlayedTask, Skill

Cell = tuple[int, int]
State = tuple[Cell, frozenset[Cell]]
"""(player, boxes)."""
MOVES: Mapping[str, Cell] = {"U": (-1, 0), "D": (1, 0), "L": (0, -1), "R": (0, 1)}
_WORDS = {"up": "U", "down": "D", "left": "L", "right": "R"}
_ACTION = {"terse": re.compile(r"\s*([UDLR])\s*"), "english": re.compile(r".*\[(up|down|left|right)\]\s*", re.DOTALL)}
_MALFORMED = {"terse": "?", "english": "That is not a move: end with one of [up], [down], [left], [right]."}
WALLS = 0.08
"""Share of the inner cells that are walls."""


def push(state: State, move: str, floor: frozenset[Cell]) -> State:
    """The state after a move; the same state where wall or box stand in the way."""
    (row, column), boxes = state
    down, right = MOVES[move]
    to, beyond = (row + down, column + right), (row + 2 * down, column + 2 * right)
    if to not in floor or (to in boxes and (beyond not in floor or beyond in boxes)):
        return state
    return to, boxes - {to} | {beyond} if to in boxes else boxes


def solve(state: State, targets: frozenset[Cell], floor: frozenset[Cell], most: int) -> str | None:
    """A shortest solution of at most `most` moves (the first in the order U D L R), or None."""
    seen, queue = {state}, deque([(state, "")])
    while queue:
        here, path = queue.popleft()
        if here[1] == targets:
            return path
        if len(path) < most:
            for move in MOVES:
                there = push(here, move, floor)
                if there not in seen:
                    seen.add(there)
                    queue.append((there, path + move))
    return None


class Level:
    """One episode of a level."""

    def __init__(self, layout: Mapping[str, Any], style: str, turns: int) -> None:
        self.floor = frozenset((int(r), int(c)) for r, c in layout["floor"])
        self.targets = frozenset((int(r), int(c)) for r, c in layout["targets"])
        boxes = frozenset((int(r), int(c)) for r, c in layout["boxes"])
        self.start: State = ((int(layout["player"][0]), int(layout["player"][1])), boxes)
        self.size, self.style, self.turns = int(layout["size"]), style, turns
        self.state, self.used = self.start, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Back to the start."""
        self.state, self.used = self.start, 0
        return self.render(), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """One move. At the end the reward is the share of boxes on targets."""
        if self.state[1] == self.targets or self.used >= self.turns:
            raise RuntimeError("the episode is over: reset first")
        self.used += 1
        match = _ACTION[self.style].fullmatch(action) if len(action) <= MAX_ACTION else None
        if match is not None:
            self.state = push(self.state, _WORDS.get(match.group(1), match.group(1)), self.floor)
        home = len(self.state[1] & self.targets)
        solved, late = home == len(self.targets), self.used >= self.turns
        info: dict[str, Any] = {"malformed": match is None, "progress": home / len(self.targets)}
        if late and not solved:
            told = {"terse": f"{home}", "english": f"{home} of {len(self.targets)} boxes stand on targets."}
            info["feedback"] = told[self.style]
        reward = home / len(self.targets) if solved or late else 0.0
        observation = self.render() if match is not None else _MALFORMED[self.style]
        return observation, reward, solved, late and not solved, info

    def render(self) -> str:
        """The level as it stands, in the style's symbols."""
        player, boxes = self.state

        def symbol(cell: Cell) -> str:
            if cell not in self.floor:
                return "#"
            target = cell in self.targets
            if cell in boxes:
                return "T" if target else "X"
            return ("S" if target else "P") if cell == player else ("O" if target else "_")

        inner = range(self.size) if self.style == "terse" else range(-1, self.size + 1)
        rows = ["".join(symbol((row, column)) for column in inner) for row in inner]
        return "/".join(rows) if self.style == "terse" else "\n".join(rows)


@dataclass(frozen=True)
class Sokoban(PlayedTask):
    """Levels of `size` x `size` inner cells (3 to 8) with `boxes` (1 to 3), whose shortest solution has `low` to `high`
    moves (1 to 30), to be solved in `turns` moves (0 means twice the shortest solution)."""

    size: int = 3
    boxes: int = 1
    low: int = 2
    high: int = 6
    turns: int = 0

    name: ClassVar[str] = "sokoban"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.in_range(size=(3, 8), boxes=(1, 3), low=(1, 30), high=(self.low, 30), turns=(0, 100))

    def layout(self, *key: Any) -> Mapping[str, Any] | None:
        """Pull boxes away from their targets along a keyed walk; None when the level is too short or too long."""
        cells = [(row, column) for row in range(self.size) for column in range(self.size)]
        walls = rng.uniform("sokoban", "walls", *key, range(len(cells)))
        free = [cell for cell, u in zip(cells, walls) if u >= WALLS]
        if len(free) < 2 * self.boxes + 2:
            return None
        order = rng.permutation(len(free), "sokoban", "places", *key)
        targets = frozenset(free[i] for i in order[: self.boxes])
        player, boxes, floor = free[order[self.boxes]], targets, frozenset(free)
        steps = rng.uniform("sokoban", "walk", *key, range(8 * self.high))
        for move, pull in zip(steps * 4, steps * 4 % 1):
            down, right = list(MOVES.values())[int(move)]
            to, behind = (player[0] + down, player[1] + right), (player[0] - down, player[1] - right)
            if to in floor and to not in boxes:
                if behind in boxes and pull < 0.8:
                    boxes = boxes - {behind} | {player}
                player = to
        solution = None if boxes == targets else solve((player, boxes), targets, floor, self.high)
        if solution is None or len(solution) < self.low:
            return None
        lists = {"floor": sorted(floor), "targets": sorted(targets), "boxes": sorted(boxes)}
        plain = {name: [list(cell) for cell in values] for name, values in lists.items()}
        return {**plain, "player": list(player), "size": self.size, "solution": solution}

    def from_layout(self, layout: Mapping[str, Any]) -> Prompt:
        """The level as a prompt."""
        grid = Level(layout, self.style, 1).render()
        moves = list(layout["solution"])
        if self.style == "terse":
            return self.made(layout, grid, moves)
        words = {letter: f"[{word}]" for word, letter in _WORDS.items()}
        text = (
            "Sokoban: push every box onto a target. # wall, _ floor, O target, X box, P you, T box on a target, S you on a "
            f"target.\n{grid}\nAnswer with one move a message: [up], [down], [left] or [right]."
        )
        return self.made(layout, text, [words[move] for move in moves])

    def summary(self, actions: Sequence[str], progress: Sequence[float], malformed: Sequence[bool]) -> Skill:
        """The moves up to where most boxes first stood on targets (a move that brings no box home may still be needed);
        where none ever did, the first move is the mistake."""
        best = max(progress, default=0.0)
        joiner = "" if self.style == "terse" else ", "
        last = list(progress).index(best) + 1 if best > 0 else 0
        kept = [action.strip() for action, bad in zip(actions[:last], malformed) if not bad]
        mistake = "" if best > 0 or not actions else ("?" if malformed[0] else actions[0].strip())
        return Skill(f"{best:.0%} of the boxes came home", mistake, joiner.join(kept))

    def world(self, prompt: Prompt) -> Level:
        """The level of a prompt, at its start."""
        turns = self.turns or 2 * len(prompt.data["solution"])
        return Level(prompt.data, self.style, turns)
