"""A comparison in the terminal: how far it is, and what came out, as a table."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from redistill.core.loop import Report


def watcher(*, quiet: bool, silent: bool) -> Report:
    """How a comparison tells how far it is: a bar, lines (`quiet`, for logs) or nothing (`silent`)."""
    return (lambda event, facts: None) if silent else Watch(bar=not quiet and sys.stdout.isatty())


class Watch:
    """Counts runs and the share of the one under way; the time left is at the mean pace of what ran now."""

    def __init__(self, bar: bool) -> None:
        self.console = Console(soft_wrap=True, highlight=False)
        self.runs, self.ended, self.ran, self.share, self.began = 0, 0, 0.0, 0.0, time.monotonic()
        self.name, self.updates, self.run_began = "", 0, self.began
        self.progress: Progress | None = None
        if bar:
            columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
            self.progress = Progress(*columns, console=self.console)

    def __call__(self, event: str, facts: Mapping[str, Any]) -> None:
        """Show one event, of the comparison or of the run under way."""
        if event == "plan":
            self.runs = facts["runs"]
            self.console.print(f"{self.runs} runs, {facts['ended']} of them there already; in {escape(facts['out'])}")
            if self.progress is not None:
                self.progress.start()
                self.job = self.progress.add_task("", total=self.runs)
        elif event == "run":
            self.name, self.share, self.updates, self.run_began = (
                f"{facts['method']}, seed {facts['seed']}", 0.0, 0, time.monotonic(),
            )  # fmt: skip
            self.there = facts["ended"]
            self._line("there already" if self.there else "begins")
        elif event == "step":
            self.share, self.updates = facts["step"] / facts["of"], self.updates + 1
            self._bar()
        elif event == "evaluated":
            self._line(f"{facts['label']}: {facts['metric']} {facts[facts['metric']]:.3f}{self._pace()}")
        elif event == "warning":
            self.console.print(f"warning: {escape(self.name)}: {escape(facts['text'])}")
        elif event == "ran":
            spent = ", ".join(f"{value:,.0f} {unit}" for unit, value in facts["spent"].items())
            if not self.there:
                self._line(f"spent {spent}")
            self.ended, self.ran, self.share = self.ended + 1, self.ran + (not self.there), 0.0
            self._bar()
        elif event in ("compared", "end"):
            self.stop()

    def _pace(self) -> str:
        """Updates a second of the run under way and minutes left of all, where they can be told."""
        rate = self.updates / max(1e-9, time.monotonic() - self.run_began)
        done = self.ran + self.share
        if not self.updates or done <= 0:
            return ""
        left = (time.monotonic() - self.began) / done * (self.runs - self.ended - self.share)
        return f"  {rate:.1f} updates/s, about {left / 60:.1f} min left"

    def _line(self, text: str) -> None:
        words = f"run {min(self.ended + 1, self.runs)} of {self.runs}: {self.name}: {text}"
        if self.progress is None:
            self.console.print(escape(words))
        else:
            self._bar()

    def _bar(self) -> None:
        if self.progress is not None:
            words = f"run {min(self.ended + 1, self.runs)} of {self.runs}: {self.name}{self._pace()}"
            self.progress.update(self.job, completed=self.ended + self.share, description=escape(words))

    def stop(self) -> None:
        """Let go of the terminal."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


COLUMNS = (
    "method",
    "final",
    "against the baseline",
    "",
    "mean over the budget",
    "reaches the baseline's final at",
    "cost of a run",
)


def rows(found: Mapping[str, Any]) -> list[list[str]]:
    """A row of words for each method, for the terminal and the page."""
    made = []
    for name, facts in found["methods"].items():
        gap = facts["difference"]
        made.append([
            name, bounds(facts["final"]), "" if gap is None else bounds(gap, sign=True),
            "baseline" if gap is None else gap["verdict"], bounds(facts["area"]), reached(facts["reach"], found["budget"]),
            cost(facts["cost"]),
        ])  # fmt: skip
    return made


def bounds(facts: Mapping[str, Any], sign: bool = False) -> str:
    """An estimate and its interval; without bounds where there are none."""
    form = "+.3f" if sign else ".3f"
    low, high = facts["low"], facts["high"]
    told = f"{facts['estimate']:{form}}"
    known = low is not None and high is not None and abs(low) != float("inf")
    return f"{told} [{low:{form}}, {high:{form}}]" if known else f"{told} (no interval)"


def reached(facts: Mapping[str, Any], budget: Mapping[str, Any]) -> str:
    """The budget until the baseline's final score."""
    if facts["estimate"] is None:
        return f"not reached ({facts['reached']:.0%} of resamples do)"
    high = "beyond" if facts["high"] is None else f"{facts['high']:,.0f}"
    low = "beyond" if facts["low"] is None else f"{facts['low']:,.0f}"
    return f"{facts['estimate']:,.0f} {budget['unit']} [{low}, {high}]"


def cost(facts: Mapping[str, Any]) -> str:
    """The mean cost of a run."""
    mean = {unit: sum(values) / len(values) for unit, values in facts.items()}
    return ", ".join(f"{mean[unit]:,.0f} {unit}" for unit in ("updates", "rollouts", "tokens", "seconds"))


def heading(found: Mapping[str, Any]) -> str:
    """What was compared, in one sentence."""
    budget, seeds = found["budget"], found["seeds"]
    over = "prompts" if len(seeds) == 1 else "seeds and prompts"
    return (
        f"held-out {found['metric']} of {found['model']} on {found['task']}, {budget['amount']:,.0f} {budget['unit']} a run, "
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}, {found['prompts']} prompts; 95% intervals over {over}"
    )


def print_comparison(found: Mapping[str, Any]) -> None:
    """The table of `redistill compare`."""
    console = Console()
    console = console if console.is_terminal else Console(width=200)
    console.print(escape(heading(found)), soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, overflow="fold")
    for row in rows(found):
        table.add_row(*map(escape, row))
    console.print(table)
    for note in found["notes"]:
        console.print(f"note: {escape(note)}", soft_wrap=True)
    if found.get("page"):
        console.print(f"page: {escape(found['page'])}", soft_wrap=True)
