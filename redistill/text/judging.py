"""Verdicts on sampled answers; where judging is slow it runs while the rest of the batch is still being sampled."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from redistill.core.task import Prompt, Task, Verdict

__all__ = ["Judge"]

SLOW = 0.1
"""Judging that takes more than this share of the sampling before it is done beside the next sampling."""

Finished = Callable[[int, int, str], None]


class Judge:
    """Asks a task for verdicts. One thread judges beside the sampler, so a task is never asked twice at a time, and a
    verdict does not depend on when it is asked for: it is a function of prompt and text."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.slow = False
        self.ahead: dict[tuple[int, int], Future[tuple[Verdict, float]]] = {}
        self.seconds, self.sampled_in = 0.0, 0.0

    @contextmanager
    def beside(self, prompts: Sequence[Prompt]) -> Iterator[Finished | None]:
        """Inside, the sampler may tell of finished answers (prompt's number, answer's number, text) if judging was slow the
        last time; None if it was not. What is still being judged at the end is waited for by `verdict`; what an error
        leaves behind is dropped."""
        began = time.perf_counter()
        self.seconds, self.ahead = 0.0, {}
        if not self.slow:
            yield None
        else:
            pool = ThreadPoolExecutor(1, "judge")

            def finished(i: int, number: int, text: str) -> None:
                self.ahead[i, number] = pool.submit(self._timed, prompts[i], text)

            try:
                yield finished
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            pool.shutdown(wait=False)
        self.sampled_in = time.perf_counter() - began

    def together(self, asked: Sequence[tuple[int, int, Prompt, str]]) -> None:
        """Judge answers (prompt's number, answer's number, prompt, text) at once, for a task that can: one whose judge runs
        programs side by side. Nothing happens where they are judged beside the sampling already."""
        many = getattr(self.task, "verify_all", None)
        if many is None or self.ahead or not asked:
            return
        began = time.perf_counter()
        found: Sequence[Verdict] = many([one[2:] for one in asked])
        taken = (time.perf_counter() - began) / len(asked)
        for (i, number, _, _), verdict in zip(asked, found, strict=True):
            self.ahead[i, number] = Future()
            self.ahead[i, number].set_result((verdict, taken))

    def verdict(self, i: int, number: int, prompt: Prompt, text: str) -> Verdict:
        """The verdict on answer `number` of prompt i."""
        known = self.ahead.pop((i, number), None)
        verdict, taken = known.result() if known is not None else self._timed(prompt, text)
        self.seconds += taken
        return verdict

    def done(self) -> None:
        """All verdicts of a rollout are there: decide how the next one is judged."""
        self.slow = self.seconds > SLOW * self.sampled_in

    def _timed(self, prompt: Prompt, text: str) -> tuple[Verdict, float]:
        began = time.perf_counter()
        return self.task.verify(prompt, text), time.perf_counter() - began
