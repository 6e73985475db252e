"""The Python calls: run, load, compare, evaluate, show. Each does what its command does and has the same errors (UserError).

Nothing heavy is imported before it is needed, so that `import redistill` stays quick.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redistill.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Finished:
    """A finished run: what result.json says, its folder, and what can be asked of it."""

    result: dict[str, Any]
    folder: Path

    @property
    def records(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: steps and evaluations, in their order."""
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    @property
    def metrics(self) -> pd.DataFrame:
        """What every step logged, a row a step (docs/running.md tells the columns)."""
        return table([line for line in self.records if "evaluation" not in line], "step")

    @property
    def evaluations(self) -> pd.DataFrame:
        """What every evaluation measured, a row each, named `before`, ..., `after`."""
        return table([line for line in self.records if "evaluation" in line], "evaluation")

    @property
    def samples(self) -> pd.DataFrame:
        """Two sampled answers of every step, with prompt, reward and feedback."""
        return table([json.loads(line) for line in (self.folder / "samples.jsonl").read_text().splitlines()], "step")

    @cached_property
    def model(self) -> Any:
        """The trained model: a `LanguageModel` (`.module` is the transformers model, `.tokenizer` its tokenizer), or the model
        of the run's domain. UserError where the run has kept no checkpoint."""
        from redistill.evaluation.saved import restored

        domain: Any = restored(self.folder)[1]
        return domain.lm if hasattr(domain, "lm") else domain.model

    def eval(self, task: str | None = None, k: int = 0, prompts: int | None = None, **settings: Any) -> dict[str, Any]:
        """Evaluate the trained model as `redistill eval` does: on the run's own task unless another is named."""
        return evaluate(self.folder, task, k, prompts, **settings)

    def report(self, out: str | Path | None = None, *, show: bool = False) -> Path:
        """Write the run's page (`report.html` in its folder unless `out` is given) and return its path; `show` opens it."""
        from redistill.reporting.run_page import report

        path = Path(out) if out is not None else self.folder / "report.html"
        report([self.folder], path)
        return opened(path, show)


@dataclass(frozen=True)
class Comparison:
    """A finished comparison: the content of compare.json, and its folder."""

    result: dict[str, Any]
    folder: Path

    @property
    def table(self) -> pd.DataFrame:
        """A row a method: final score, difference from the baseline, mean over the budget, cost (means over seeds)."""
        rows = []
        for name, facts in self.result["methods"].items():
            gap = facts["difference"] or {}
            row = {"method": name, **_bounds("final", facts["final"]), **_bounds("difference", gap)}
            row |= {"verdict": gap.get("verdict", "baseline"), **_bounds("area", facts["area"])}
            row |= {"reaches_baseline_at": facts["reach"]["estimate"]}
            row |= {unit: sum(values) / len(values) for unit, values in facts["cost"].items()}
            rows.append(row)
        return table(rows, "method")

    @property
    def curves(self) -> pd.DataFrame:
        """The learning curves with their bands: columns method, at (budget spent), estimate, low, high."""
        methods = self.result["methods"].items()
        return table([{"method": name, **point} for name, facts in methods for point in facts["curve"]])

    @property
    def page(self) -> Path:
        """The page, one self-contained HTML file."""
        return self.folder / "compare.html"

    def report(self, *, show: bool = False) -> Path:
        """The page's path; `show` opens it in a browser."""
        return opened(self.page, show)


def run(
    slug: str | None = None, *, out: str | Path | None = None, recipe: str | None = None, resume: bool = False,
    progress: bool = False, **settings: Any,
) -> Finished:  # fmt: skip
    """Run a method as `redistill run` does; settings are those of the run and of the method. UserError for a mistake.

    `recipe` starts from a shipped recipe or a .toml file, `out` is the run folder, `resume` continues the run that is in
    it, `progress` prints a line a step.
    """
    from redistill.build import prepare
    from redistill.config import load_recipe
    from redistill.reporting.terminal import reporter

    given = dict(settings)
    if recipe is not None:
        read = load_recipe(recipe)
        if slug not in (None, read.method):
            raise UserError(f"recipe {recipe!r} is of method {read.method!r}, not {slug!r}")
        slug, given = read.method, {**read.run, **read.options, **given}
    if slug is None:
        raise UserError("name a method (redistill.methods()) or a recipe=")
    if resume and out is None:
        raise UserError("resume=True needs out=, the folder of the run to continue")
    report = reporter(quiet=True, silent=not progress)
    folder = None if out is None else Path(out)
    made = prepare(slug, _texts(given), out=folder, resume=resume, report=report)
    try:
        return Finished(made.go(resume), made.folder.path)
    finally:
        made.close()


def load(folder: str | Path) -> Finished:
    """A run that has finished, from its folder."""
    path = Path(folder) / "result.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no finished run (it has no result.json)")
    return Finished(json.loads(path.read_text()), Path(folder))


def compare(
    *methods: str, task: str, budget: str, model: str | None = None, seeds: Iterable[int] = (0, 1, 2),
    out: str | Path | None = None,
    progress: bool = False, **settings: Any,
) -> Comparison:  # fmt: skip
    """Compare methods as `redistill compare` does; the first is the baseline. Settings are those of all runs."""
    from redistill.evaluation.compare import compare as compare_methods
    from redistill.reporting.compare_terminal import watcher

    found = compare_methods(
        methods, task=task, model=model, budget=budget, seeds=list(seeds), out=None if out is None else Path(out),
        common=_texts(settings), report=watcher(quiet=True, silent=not progress),
    )  # fmt: skip
    return Comparison(found, Path(found["page"]).parent)


def evaluate(
    target: str | Path, task: str | None = None, k: int = 0, prompts: int | None = None, **settings: Any
) -> dict[str, Any]:
    """Evaluate a run folder, a model folder or a model by name as `redistill eval` does."""
    from redistill.evaluation.saved import evaluate_saved

    return evaluate_saved(str(target), task, k, prompts, _texts(settings))


def show(slug: str) -> dict[str, Any]:
    """Everything `redistill show` tells of a method: idea, objective, options with defaults and ranges, evidence."""
    from redistill.catalogue import describe

    return describe(slug)


def table(rows: Sequence[Mapping[str, Any]], index: str | None = None) -> pd.DataFrame:
    """Rows as a dataframe. pandas is an extra: without it `records` and `result` have the same numbers."""
    try:
        import pandas as pd
    except ImportError:
        raise UserError("tables need pandas, which is not installed: pip install 'redistill[notebook]'") from None
    made = pd.DataFrame(list(rows))
    return made.set_index(index) if index and len(made) else made


def opened(path: Path, show: bool) -> Path:
    """The path; opened in a browser where that is asked for."""
    if show:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())
    return path


def _bounds(name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: facts.get("estimate"), f"{name}_low": facts.get("low"), f"{name}_high": facts.get("high")}


def _texts(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings whose values may be paths."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}
