"""What a person sees in the terminal: progress with rate and time left, evaluations, tables. Rich does the drawing."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from redistill.core.loop import Report

OUT = Console()
SHOWN = ("reward", "loss", "length", "active", "grad_norm")


def reporter(*, quiet: bool, silent: bool) -> Report:
    """How a run tells what happens: a progress bar, plain lines (`quiet`, for logs) or nothing (`silent`)."""
    if silent:
        return lambda event, facts: None
    return Lines(bar=not quiet and sys.stderr.isatty())


class Lines:
    """Prints events; keeps a progress bar when asked to."""

    def __init__(self, bar: bool) -> None:
        self.console = Console(stderr=False, soft_wrap=True, highlight=False)
        self.bar = bar
        self.progress: Progress | None = None
        self.job: Any = None

    def __call__(self, event: str, facts: Mapping[str, Any]) -> None:
        """Show one event."""
        if event == "start":
            self._start(facts)
        elif event == "views":
            self.console.print(Panel(escape(facts["text"]), title="what is read (kept in views.txt)", expand=False))
        elif event == "stage":
            self.console.print(f"stage {facts['stage']} begins at step {facts['step']}")
        elif event == "step":
            self._step(facts)
        elif event == "evaluated":
            self.console.print(evaluation_line(facts))
        elif event == "warning":
            self.console.print(f"warning: {escape(facts['text'])}")
        elif event == "alarm":
            self.console.print(
                f"alarm at step {facts['step']}, {facts['name']}: {escape(facts['means'])} Try: {escape(facts['try'])}."
            )
        elif event == "resumed":
            self.console.print(f"resumed from {facts['path']} at step {facts['step']}")
        elif event == "finished":
            self._stop()
            self.console.print(outcome(facts["evaluations"]))
            self.console.print(
                f"run folder: {facts['folder']}  ({facts['seconds']:.0f} s, {facts['skipped_updates']} updates skipped)"
            )
        elif event == "close":
            self._stop()

    def _start(self, facts: Mapping[str, Any]) -> None:
        self.console.print(f"run folder: {facts['folder']}")
        if self.bar:
            self.progress = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                TextColumn("left"), TimeRemainingColumn(), console=self.console,
            )  # fmt: skip
            self.progress.start()
            self.job = self.progress.add_task("training", total=facts["steps"], completed=facts["at"])

    def _step(self, facts: Mapping[str, Any]) -> None:
        words = "  ".join(f"{name} {facts[name]:.4g}" for name in SHOWN if name in facts)
        seconds = sum(value for key, value in facts.items() if key.startswith("seconds_"))
        if self.progress is not None:
            self.progress.update(self.job, completed=facts["step"], total=facts["of"], description=words)
        else:
            left = seconds * (facts["of"] - facts["step"])
            self.console.print(
                f"step {facts['step']}/{facts['of']}  {words}  {seconds:.1f} s/step  left {left / 60:.1f} min"
            )

    def _stop(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


def evaluation_line(facts: Mapping[str, Any]) -> str:
    """One line about an evaluation: its main metric with the interval, then every other number."""
    metric = facts["metric"]
    interval = f" [{facts['low']:.3f}, {facts['high']:.3f}]" if "low" in facts else ""
    line = f"{facts['label']} (step {facts['step']}): held-out {metric} {facts[metric]:.3f}{interval}"
    skipped = {"step", "low", "high", metric}
    others = [f"{k} {v:.3g}" for k, v in facts.items() if k not in skipped and isinstance(v, (int, float))]
    return line + (": " + ", ".join(others) if others else "")


def outcome(evaluations: Mapping[str, Any]) -> str:
    """The run in one sentence: the main metric before and after, with the paired interval of the difference where each
    evaluation kept its outcomes."""
    from redistill.evaluation.intervals import paired_difference

    before, after = evaluations["before"], evaluations["after"]
    metric = after["metric"]
    words = [
        f"{name} {facts[metric]:.3f}" + (f" [{facts['low']:.3f}, {facts['high']:.3f}]" if "low" in facts else "")
        for name, facts in (("before", before), ("after", after))
    ]
    sentence = f"held-out {metric} {', '.join(words)}"
    if "outcomes" in after and len(after["outcomes"]) == len(before["outcomes"]):
        gap = paired_difference(after["outcomes"], before["outcomes"])
        sentence += f": {gap.estimate:+.3f}, 95% interval [{gap.low:+.3f}, {gap.high:+.3f}] (paired over {len(after['outcomes'])} prompts)"
    return sentence


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """`redistill list`: one line a method; a narrow terminal does without the titles."""
    console = OUT if OUT.is_terminal else Console(width=160)
    columns = ["slug", "title", "family", "paper", "objective", "recipe", "evidence", "scale"]
    if console.width < 140:
        columns.remove("title")
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True)
    for row in rows:
        cells = {**row, "paper": row["paper"].partition(" (")[0]}
        table.add_row(*({True: "yes", False: "no"}.get(cells[key], str(cells[key])) for key in columns))
    console.print(table)


def print_taxonomy(records: Sequence[Mapping[str, Any]]) -> None:
    """`redistill list --taxonomy`: the survey's table."""
    from redistill.taxonomy import COLUMNS

    table = Table(box=None, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, overflow="fold")
    for one in records:
        table.add_row(*(escape(one[column]) for column in COLUMNS))
    (OUT if OUT.is_terminal else Console(width=200)).print(table)


def print_method(facts: Mapping[str, Any]) -> None:
    """`redistill show`."""
    OUT.print(f"[bold]{escape(facts['slug'])}[/]: {escape(facts['title'])} ({facts['paper']})\n")
    # The docstring's own line breaks are for the file's width, a blank line is a paragraph.
    paragraphs = [" ".join(part.split()) for part in facts["idea"].split("\n\n")]
    OUT.print(escape("\n\n".join(paragraphs)) + "\n")
    OUT.print("[bold]objective[/]\n  " + escape(facts["objective"]) + "\n")
    table = Table(box=None, pad_edge=False, title="options (--set key=value)", title_justify="left")
    for column in ("option", "default", "range", "meaning"):
        table.add_column(column, overflow="fold")
    for item in facts["options"]:
        table.add_row(*(escape(str(item[key])) for key in ("name", "default", "range", "meaning")))
    OUT.print(table)
    if facts["run_defaults"]:
        OUT.print(
            "\n[bold]run settings of the paper[/]: "
            + escape(", ".join(f"{k}={v}" for k, v in facts["run_defaults"].items()))
        )
    for says, does in facts["says_does"]:
        OUT.print(f"[bold]paper says[/] {escape(says)}\n  [bold]code does[/] {escape(does)}")
    OUT.print(f"\n[bold]evidence[/]: {escape(facts['evidence'])}")


def print_evaluation(result: Mapping[str, Any]) -> None:
    """`redistill eval`."""
    OUT.print(evaluation_line({"label": result["target"], "step": result.get("step", 0), **result}))
    for task, gap in result.get("against", {}).items():
        OUT.print(
            f"{escape(task)} against {escape(result['base'])}: {gap['metric']} {gap['before']:.3f} -> {gap['after']:.3f}, "
            f"{gap['difference']:+.3f}, 95% interval [{gap['low']:+.3f}, {gap['high']:+.3f}] (paired over {gap['prompts']} prompts)"
        )
