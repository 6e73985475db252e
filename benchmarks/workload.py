"""The work that every library is given: prompts, reward, lengths. Standard library only, since peers run it in environments
of their own."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

Message = dict[str, str]

SOLUTION = "\n\nHere is a correct solution of this question:\n{}"
"""How SDPO's teacher is shown a sibling's answer; both libraries are given the same wording, so that contexts are equal."""
CLOSING = "\n\nNow answer the question."


@dataclass(frozen=True)
class Workload:
    """One step: `prompts` questions, `group` rollouts for each, every rollout exactly `new_tokens` tokens long (the end of
    sequence does not stop a rollout, in either library, or the work would depend on what is sampled)."""

    prompts: int = 4
    group: int = 8
    new_tokens: int = 48

    @property
    def rollouts(self) -> int:
        """Rollouts of a step."""
        return self.prompts * self.group

    @property
    def sampled(self) -> int:
        """Sampled tokens of a step."""
        return self.rollouts * self.new_tokens


def question(index: int) -> list[Message]:
    """The chat of prompt `index`: a short sum, about 28 tokens for SmolLM2 with its template."""
    draw = random.Random(index)
    a, b, c = (draw.randrange(10, 100) for _ in range(3))
    return [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": f"What is {a} + {b} - {c}?"},
    ]


def questions(count: int, first: int = 0) -> list[list[Message]]:
    """`count` chats from number `first` on."""
    return [question(index) for index in range(first, first + count)]


def reward(text: str) -> float:
    """1 for about half of all texts, whatever they say: the parity of a hash. The judge costs nothing and agrees in both
    libraries; groups have both successes and failures, which SDPO needs."""
    return float(hashlib.sha256(text.encode()).digest()[0] % 2)


def fingerprint(rows: Sequence[Sequence[int]]) -> str:
    """A short hash of token ids, by which two processes show that they were given the same."""
    return hashlib.sha256(json.dumps([list(map(int, row)) for row in rows]).encode()).hexdigest()[:16]
