"""Two tasks in turn: `mix:first="sums:terms=3",second="sums:terms=2"`. Each prompt carries its domain's tag."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from redistill.core.task import Prompt, Task, Verdict
from redistill.errors import UserError

DOMAINS = ("first", "second")
"""The tags: `prompt.data["domain"]`."""


@dataclass(frozen=True)
class Mixture:
    """Prompts of two tasks in turn, each judged by its own. A method may look at the tag (g-opd's experts); an evaluation
    also tells the accuracy in each domain."""

    first: str = "sums:terms=3,digits=2"
    second: str = "sums:terms=2,digits=2"
    parts: Sequence[Task] = field(init=False, repr=False, compare=False)
    reward_range: tuple[float, float] = field(init=False)
    wording: str = field(init=False)

    name = "mix"

    def __post_init__(self) -> None:
        from redistill.tasks.loading import load_task

        if any(spec.partition(":")[0] == "mix" for spec in (self.first, self.second)):
            raise UserError("task mix is made of two other tasks, not of mixtures")
        first, second = load_task(self.first), load_task(self.second)
        for what in ("wording", "reward_range"):
            if getattr(first, what) != getattr(second, what):
                told = f"{getattr(first, what)!r} and {getattr(second, what)!r}"
                raise UserError(
                    f"task mix needs two tasks of one {what}; {self.first!r} and {self.second!r} have {told}"
                )
        for key, value in (
            ("parts", (first, second)),
            ("reward_range", first.reward_range),
            ("wording", first.wording),
        ):
            object.__setattr__(self, key, value)

    def train(self, index: int, seed: int) -> Prompt:
        """The prompt at `index`: even ones are the first task's, odd ones the second's."""
        return _tagged(self.parts[index % 2].train(index // 2, seed), index % 2)

    def held_out(self, count: int) -> Sequence[Prompt]:
        """Held-out prompts of both, in turn, as many of each; fewer when one of them has no more."""
        halves = [self.parts[at].held_out((count + 1 - at) // 2) for at in (0, 1)]
        return [_tagged(prompt, at) for pair in zip(*halves) for at, prompt in enumerate(pair)] + [
            _tagged(prompt, 0) for prompt in halves[0][len(halves[1]) :][: count % 2]
        ]

    def verify(self, prompt: Prompt, answer: str) -> Verdict:
        """Judged by the task that the prompt is of."""
        return self.parts[DOMAINS.index(prompt.data["domain"])].verify(prompt, answer)


def _tagged(prompt: Prompt, at: int) -> Prompt:
    return replace(prompt, data={**prompt.data, "domain": DOMAINS[at]})
