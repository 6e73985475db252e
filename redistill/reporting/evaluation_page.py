"""The page of one evaluation: what it measured, whether confidence can be trusted, what more samples solve, what changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from redistill.reporting.page import Bars, Chart, Line, Page


def evaluation_page(result: Mapping[str, Any]) -> Page:
    """A page of what `evaluate_saved` returned."""
    from redistill.reporting.terminal import evaluation_line

    page = Page(
        f"evaluation of {result['target']}", f"step {result['step']}, {result.get('prompts', '?')} held-out prompts"
    )
    page.sentence(evaluation_line({**result, "label": result["target"]}), lead=True)
    diagrams = [
        _reliability(result[f"reliability_{kind}"], kind)
        for kind in ("stated", "likelihood")
        if result.get(f"reliability_{kind}")
    ]
    if diagrams:
        page.heading("Calibration")
        page.charts(diagrams)
    if "pass_curve" in result:
        page.heading("Accuracy and capability")
        curve = {int(k): value for k, value in result["pass_curve"].items()}
        line = Line("pass@k", list(curve), list(curve.values()), markers=True)
        page.chart(Chart("pass@k", x="samples", y="share solved", series=[line], note="unbiased", y_range=(0.0, 1.0)))
        if "by_difficulty" in result:
            rows = [
                [name, one["questions"], one["accuracy"], one["solved"]]
                for name, one in result["by_difficulty"].items()
            ]
            page.table(
                ["difficulty", "questions", "pass@1", "solved"],
                rows,
                "told by half of the samples, measured on the other",
            )
    if "against" in result:
        page.heading(f"Against {result['base']}")
        page.table(
            ["task", "metric", "before", "after", "difference", "low", "high"],
            [[task, *(gap[key] for key in ("metric", "before", "after", "difference", "low", "high"))] for task, gap in result["against"].items()],
        )  # fmt: skip
    page.heading("Numbers")
    page.table(
        ["measure", "value"], [[k, v] for k, v in result.items() if isinstance(v, (int, float, str)) and k != "label"]
    )
    return page


def _reliability(bins: Sequence[Mapping[str, float]], kind: str) -> Chart:
    """Accuracy of answers by their confidence; on the diagonal where confidence is right."""
    middle = [(one["low"] + one["high"]) / 2 for one in bins]
    counts = [f"{one['count']:.0f} answers, mean confidence {one['confidence']:.2f}" for one in bins]
    diagonal = Line("calibrated", [0.05, 0.95], [0.05, 0.95], dash=True)
    what = {"stated": "stated confidence", "likelihood": "probability of the answer"}[kind]
    return Chart(
        f"Reliability of the {what}", x=what, y="accuracy", series=[Bars("answers", middle, [one["accuracy"] for one in bins], text=counts), diagonal],
        y_range=(0.0, 1.0),
    )  # fmt: skip
