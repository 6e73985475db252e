"""A text domain on the pocket model, and judged groups made by hand, so that a method's signal can be looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from redistill.build import settings
from redistill.core import rng
from redistill.core.episode import Episode, Group
from redistill.core.signal import LogProb, Signal
from redistill.core.task import Prompt
from redistill.core.update import Tally, accumulate
from redistill.tasks.confidence import Confident, split_confidence, with_confidence
from redistill.tasks.sums import Sums
from redistill.text.domain import TextDomain, Trajectory
from redistill.text.models import load_model
from redistill.text.views import Evidence

SMALL = {"prompts_per_step": 3, "group_size": 4, "max_new_tokens": 16, "lora_rank": 0, "lora_alpha": "none"}


class Bench:
    """A method with everything it may use, and verbs that tests need."""

    def __init__(self, slug: str, **given: Any) -> None:
        self.method, self.config = settings(slug, {**SMALL, **given})
        self.task: Any = Confident(Sums()) if self.config.task.startswith("confident+") else Sums()
        self.domain = TextDomain(load_model("pocket"), self.task, self.config)  # type: ignore[arg-type]
        self.domain.bank.need(self.method.teachers())
        self.logged: dict[str, float] = {}
        self.step = self.stage_step = 0
        self.tags: Sequence[str] | None = None
        """Domain tags of the step's prompts, where a method looks at them."""
        self.domain.begin_step(0)

    def next_prompts(self) -> list[Prompt]:
        prompts = [self.task.train(i, self.config.seed) for i in range(self.config.prompts_per_step)]
        if self.tags is None:
            return prompts
        return [
            replace(prompt, data={**prompt.data, "domain": tag}) for prompt, tag in zip(prompts, self.tags, strict=True)
        ]

    def uniform(self, *key: Any) -> Any:
        return rng.uniform("method", self.config.seed, self.step, *key)

    def log(self, name: str, value: float) -> None:
        self.logged[name] = float(value)

    def episode(
        self, prompt: Prompt, text: str, finish: str = "stop", view: str = "plain", seen: Evidence = Evidence()
    ) -> Episode:
        """A sampled-looking episode with a given text, judged, with the model's own log-probs as behaviour."""
        lm = self.domain.lm
        ids = (*lm.tokenizer.encode(text, add_special_tokens=False), lm.eos_ids[0])
        context = self.domain.render(view, prompt, seen)
        row = Episode(
            prompt=prompt, context=context, trajectory=Trajectory(ids, ((0, len(ids)),)), steps=len(ids), text=text,
            finish=finish, verdict=self.task.verify(prompt, text), sampling=self.domain.sampling,
            sampled_under=view, trained_under=view,
        )  # fmt: skip
        logp = self.domain.score([row], [LogProb()])[LogProb()]
        return replace(row, behaviour_logp_T=logp)

    def groups(self, rights: Sequence[Sequence[bool]], alike: bool = False) -> list[Group]:
        """Groups whose episodes are right or wrong as asked (wrong answers differ in length, unless `alike`)."""
        made = []
        for prompt, pattern in zip(self.next_prompts(), rights, strict=False):
            assert prompt.solution is not None
            solution, stated = split_confidence(prompt.solution, "terse")
            head, _, total = solution.rpartition("=")
            wrong = [
                f"{int(total) + 10 * (i + 1)}" if alike else f"{int(total) + 1 + i}{'0' * i}"
                for i in range(len(pattern))
            ]
            texts = [solution if right else f"{head}={wrong[i]}" for i, right in enumerate(pattern)]
            texts = texts if stated is None else [with_confidence(text, 1.0, "terse") for text in texts]
            made.append(Group(prompt, [self.episode(prompt, text) for text in texts]))
        return made

    def seconds(self, groups: Sequence[Group], right: Callable[[int], bool] = lambda n: n % 2 == 0) -> list[Group]:
        """The groups with a second turn for every wrong answer (rltf), read afresh with attempt and feedback; the n-th of
        all is right where `right(n)` says so."""
        made, count = [], 0
        for group in groups:
            episodes = list(group)
            for first in group:
                if first.reward >= 1:
                    continue
                text = first.prompt.solution if right(count) else f"{first.text}1"
                seen = Evidence(attempt=first.text, feedback=first.verdict.feedback)
                second = self.episode(first.prompt, str(text), view="with_attempt", seen=seen)
                episodes.append(replace(second, trajectory=replace(second.trajectory, after=first)))
                count += 1
            made.append(Group(group.prompt, episodes))
        return made

    def signal(self, groups: Sequence[Group]) -> Signal:
        made = self.method.signal(groups, self)
        return made if isinstance(made, Signal) else made[0]

    def gradient(self, groups: Sequence[Group]) -> torch.Tensor:
        """The flattened gradient of the method's signal."""
        for p in self.domain.players["student"].parameters.values():
            p.grad = None
        accumulate(self.signal(groups), self.domain, Tally())
        grads = [
            torch.zeros_like(p) if p.grad is None else p.grad
            for p in self.domain.players["student"].parameters.values()
        ]
        return torch.cat([g.flatten() for g in grads]).double()


@pytest.fixture
def bench() -> Any:
    return Bench
