"""Every reasoning-gym generator as a task (Stojanovski et al., arXiv 2505.24760), with its own options and its own
scorer.

An item is a pure function of (generator, options, dataset seed, index), so a prompt's `data` is those two numbers
and the verifier makes the item again when it needs more than the answer. Items are made in one helper process
(worker.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from redistill.core.rng import bits
from redistill.core.task import Prompt, Verdict, content_uid, is_held_out
from redistill.errors import UserError, nearest
from redistill.tasks import hints
from redistill.tasks.answers import (
    REQUESTS,
    Final,
    check_answer_format,
    final_number,
    final_text,
    foreign_digit,
    is_plain_number,
    number_value,
)
from redistill.tasks.catalog import BLOCK
from redistill.tasks.solutions import solution
from redistill.tasks.worker import ANSWER_SECONDS, MAKE_SECONDS, WorkerError, WorkerTimeout, call

TRAIN_ATTEMPTS = 100
"""Draws for one training position before the task is said to have no training content (a share of 0.2 is held out)."""
HELD_OUT_PATIENCE = 500
"""Consecutive draws without a new held-out content before a task's held-out contents are taken as exhausted."""
MANY_ANSWERS = frozenset(
    [
        "arc_agi", "boxnet", "codeio", "countdown", "cryptarithm", "futoshiki", "graph_color",
        "group_anagrams", "intermediate_integration", "jugs", "kakurasu", "knight_swap", "knights_knaves",
        "list_functions", "n_queens", "palindrome_generation", "palindrome_partitioning", "path_star",
        "polynomial_equations", "polynomial_multiplication", "prime_factorization", "propositional_logic",
        "puzzle24", "quantum_lock", "rearc", "rubiks_cube", "rush_hour", "shortest_path",
        "simple_integration", "sokoban", "survo", "tower_of_hanoi", "word_ladder",
    ]
)  # fmt: skip
"""Generators with more than one right answer (or form of it): comparing with the stored one would mislead."""


def gym_names() -> list[str]:
    """Names of all reasoning-gym generators."""
    found: list[str] = call("names", MAKE_SECONDS)
    return found


@lru_cache(maxsize=256)
def gym_options(name: str) -> tuple[tuple[str, Any, str], ...]:
    """(option, default, type) of each option of generator `name` that can be written as text."""
    return tuple((option, default, kind) for option, default, kind in call("describe", MAKE_SECONDS, name=name))


class GymTask:
    """A reasoning-gym generator. `options` are the generator's own, `answer_format` is plain (the question as it
    is), boxed or tag (a short request is added), `system` is an optional system prompt. Raises UserError for a value
    it refuses."""

    wording = "english"
    reward_range = (0.0, 1.0)

    def __init__(
        self,
        name: str,
        options: Mapping[str, Any] | None = None,
        answer_format: str = "plain",
        system: str | None = None,
    ) -> None:
        self.name = name
        self.answer_format = check_answer_format(answer_format)
        self.system = system
        for part in (options or {}).get("datasets", []) if name == "composite" else []:
            if part not in gym_names():
                raise UserError(f"task 'composite' option datasets: {part!r} is unknown{nearest(part, gym_names())}")
        self._options = json.dumps(dict(options or {}), sort_keys=True)
        try:
            call("check", MAKE_SECONDS, name=name, options=self._options)
        except (WorkerError, WorkerTimeout) as error:
            raise UserError(f"task {name!r} refuses {self._told()}: {_sentence(error)}") from None

    def _told(self) -> str:
        options = json.loads(self._options)
        return ", ".join(f"{key}={value!r}" for key, value in options.items()) if options else "its default options"

    def _item(self, key: tuple[Any, ...], position: int) -> Prompt:
        """The prompt at `position` of the stream named by `key`, whichever split it belongs to."""
        block, index = divmod(position, BLOCK)
        seed = int(bits("gym", self.name, *key, block)) % 2**32
        try:
            item = call("make", MAKE_SECONDS, name=self.name, options=self._options, seed=seed, index=index)
        except (WorkerError, WorkerTimeout) as error:
            raise UserError(f"task {self.name!r} cannot make an item with {self._told()}: {_sentence(error)}") from None
        request = REQUESTS[self.answer_format]
        content = [{"role": "system", "content": self.system}] if self.system else []
        content.append({"role": "user", "content": item["question"] + ("\n" + request if request else "")})
        return Prompt(
            uid=content_uid(content),
            content=content,
            answer=item["answer"],
            solution=solution(item["source"], item["facts"], item["answer"], self.answer_format),
            data={"generator": item["source"], "seed": seed, "index": index},
        )

    def train(self, index: int, seed: int) -> Prompt:
        """The prompt at `index` of the stream of `seed`, never a held-out one; a pure function of both. Raises
        UserError when TRAIN_ATTEMPTS draws were all held out."""
        if index < 0:
            raise ValueError(f"index is 0 or more, got {index}")
        for attempt in range(TRAIN_ATTEMPTS):
            prompt = self._item(("train", seed, attempt), index)
            if not is_held_out(prompt.uid):
                return prompt
        raise UserError(f"task {self.name!r} with {self._told()} has too few contents: none was found for training")

    def held_out(self, count: int) -> Sequence[Prompt]:
        """The first `count` distinct held-out prompts, the same for every seed. Fewer when HELD_OUT_PATIENCE draws
        in a row brought no new one; raises UserError when that is so for the very first."""
        found: dict[str, Prompt] = {}
        position = last = 0
        while len(found) < count and position - last < HELD_OUT_PATIENCE:
            prompt = self._item(("held_out",), position)
            position += 1
            if prompt.uid not in found and is_held_out(prompt.uid):
                found[prompt.uid] = prompt
                last = position
        if count > 0 and not found:
            raise UserError(f"task {self.name!r} with {self._told()} has too few contents: none was found for held-out")
        return list(found.values())

    def final(self, prompt: Prompt, answer: str) -> Final:
        """The final answer of a reply: a number where the right answer is one, else text (rules in answers.py)."""
        if is_plain_number(prompt.answer):
            return final_number(answer, self.answer_format)
        return final_text(answer, self.answer_format, prompt.answer)

    def verify(self, prompt: Prompt, answer: str) -> Verdict:
        """Judge a reply by the generator's own scorer (exceptions in catalog.py). Any text gets a verdict; one that
        takes over ANSWER_SECONDS to score gets 0."""
        final = self.final(prompt, answer)
        if final.text is None:
            return Verdict(0.0, feedback=final.problem, format_ok=False)
        right = prompt.answer
        text = final.text
        digit = foreign_digit(text)
        if digit is not None and digit not in (right or ""):
            return Verdict(0.0, feedback=f"{digit!r} is not a digit from 0 to 9.", format_ok=False)
        if right is not None and is_plain_number(right) and number_value(text) == number_value(right):
            text = right  # 3.0 or 1,000 for 3 or 1000: the same number, whatever the scorer thinks of its form
        item = {"name": self.name, "options": self._options, "seed": prompt.data["seed"], "index": prompt.data["index"]}
        try:
            call("prepare", MAKE_SECONDS, **item)
        except (WorkerError, WorkerTimeout) as error:
            raise UserError(f"task {self.name!r} cannot make the item of a prompt again: {_sentence(error)}") from None
        try:
            reward = call("score", ANSWER_SECONDS, **item, answer=text)
        except WorkerTimeout:
            late = f"The answer could not be checked within {ANSWER_SECONDS:g} seconds."
            return Verdict(0.0, feedback=late, answer=final.text, limit="time")
        except WorkerError:  # the process ran out of memory over it
            return Verdict(0.0, feedback="The answer could not be checked.", answer=final.text, limit="memory")
        if reward >= 1.0:
            return Verdict(1.0, answer=final.text)
        return Verdict(reward, feedback=self._feedback(prompt, final.text, reward), answer=final.text)

    def _feedback(self, prompt: Prompt, given: str, reward: float) -> str:
        if prompt.answer is not None and prompt.data["generator"] not in MANY_ANSWERS:
            return hints.wrong(given, prompt.answer)
        return f"The answer {hints.shorten(given)!r} is wrong: it scores {reward:.3g} of 1."


def _sentence(error: Exception) -> str:
    """An error's text on one line, without a closing full stop and without the name of a plain assertion."""
    text = " ".join(str(error).split()).removeprefix("AssertionError: ").removeprefix("ValueError: ").rstrip(".")
    return "a value is out of its range" if text == "AssertionError" else text
