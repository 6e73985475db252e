"""A task whose answers end in a stated confidence: `confident+sums`, `confident+chain_sum:max_terms=2`. Torch-free.

The answer and the confidence are judged apart: the reward is the inner task's for the text before the mark, and the number
after it is read into the verdict. A prompt keeps the inner prompt's uid, so that the splits of both are the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from redistill.core.rng import uniform
from redistill.core.task import Prompt, Task, Verdict

MARKS = {"english": "\nConfidence: ", "terse": "C"}
"""What comes before the number, by the task's wording."""
REQUESTS = {
    "english": '\n\nEnd with a line "Confidence: " and a number between 0 and 1: how sure you are that your answer is right.',
    "terse": "C",
}
"""What is added to the question."""
NOTES = {
    "english": "The measured success rate on this question is {}: state exactly this value as the confidence.",
    "terse": "{}",
}
"""Tells a privileged reader which confidence to state."""
_NUMBER = re.compile(r"\s*([0-9]*\.?[0-9]+)")
SURE = (0.9, 1.0)
"""The range of the confidence that reference solutions state."""


def split_confidence(text: str, wording: str) -> tuple[str, float | None]:
    """(the answer without its confidence, the confidence between 0 and 1 or None where there is none). The mark's last
    occurrence counts for the number, its first for where the answer ends."""
    mark = MARKS[wording].strip()
    answer, found, _ = text.partition(mark)
    if not found:
        return text, None
    match = _NUMBER.match(text.rpartition(mark)[2])
    return answer.rstrip(), None if match is None else min(1.0, max(0.0, float(match.group(1))))


def with_confidence(text: str, value: float, wording: str) -> str:
    """The text with its confidence (if any) replaced by `value`, two decimals. Idempotent; what is before the mark stays."""
    return f"{split_confidence(text, wording)[0]}{MARKS[wording]}{value:.2f}"


class Confident:
    """The `inner` task with a stated confidence. Verdicts carry it; feedback is the inner task's."""

    def __init__(self, inner: Task) -> None:
        self.inner, self.name = inner, f"confident+{inner.name}"
        self.wording, self.reward_range = inner.wording, inner.reward_range

    def asked(self, prompt: Prompt) -> Prompt:
        """An inner prompt with the request for a confidence. Its solution states one that is sure (SURE), drawn by the uid."""
        content = [dict(message) for message in prompt.content]
        content[-1]["content"] += REQUESTS[self.wording]
        solution = prompt.solution
        if solution is not None:
            low, high = SURE
            solution = with_confidence(
                solution, low + (high - low) * float(uniform("confident", prompt.uid)), self.wording
            )
        return replace(prompt, content=content, solution=solution)

    def train(self, index: int, seed: int) -> Prompt:
        """The inner task's training prompt, asked for a confidence."""
        return self.asked(self.inner.train(index, seed))

    def held_out(self, count: int) -> Sequence[Prompt]:
        """The inner task's held-out prompts, asked for a confidence."""
        return [self.asked(prompt) for prompt in self.inner.held_out(count)]

    def verify(self, prompt: Prompt, answer: str) -> Verdict:
        """The inner verdict on the answer alone, with the confidence that was read."""
        said, confidence = split_confidence(answer, self.wording)
        return replace(self.inner.verify(prompt, said), confidence=confidence)
