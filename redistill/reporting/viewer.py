"""The parts of a run's page with a slider over training: the credit viewer (language), and what a policy makes (other domains)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from redistill.reporting.page import Page, script_json
from redistill.reporting.run_files import Record, RunFiles

BUDGET = 2_500_000
"""Bytes of a page that the records may have; with more of them, some moments in between are left out."""
MOMENTS = 60
"""Most moments of a slider."""
CREDIT = '<div id="credit-viewer" class="viewer" role="region" aria-label="Credit viewer"></div>'
SNAPSHOTS = (
    '<div id="snapshot-viewer" class="viewer" role="region" aria-label="What the policy makes"><p class="note"></p><div class="slide">'
    '<label for="snapshot-step">Training</label><input type="range" id="snapshot-step" min="0" step="1">'
    '<output for="snapshot-step"></output></div><div class="shown"></div></div>'
)


def add_credit(page: Page, run: RunFiles) -> None:
    """The credit viewer, where the run has recorded it; a sentence where it was switched off."""
    rows = [row for row in run.credit if row["kind"] in ("fixed", "training")]
    if not rows:
        if not any(row["kind"] == "snapshot" for row in run.credit):
            page.heading("Credit")
            page.sentence("This run has recorded no credit of its steps (trace_prompts=0 switches that off).")
        return
    page.heading("Credit")
    page.sentence(
        "What each term asked of each step: tokens are coloured by the chosen quantity; point at one, or move with the arrow "
        "keys, for the likeliest tokens of student and teacher there. The slider goes through training with the same prompt."
    )
    steps = run.steps[-1]["step"] if run.steps else 0
    data = {"steps": steps, "stages": len({row["stage"] for row in rows}), "prompts": bounded(prompts(rows))}
    page.widget("credit", data, "credit.js", CREDIT)


def prompts(rows: Sequence[Record]) -> list[dict[str, Any]]:
    """Rows of credit.jsonl as the viewer reads them: each fixed prompt with its moments, then the training episodes."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        training = row["kind"] == "training"
        key = "training" if training else row["uid"]
        name = (
            "sampled in training (another prompt each time)"
            if training
            else f"held-out: {_short(question(row['question']))}"
        )
        moments = found.setdefault(key, {"name": name, "moments": {}})["moments"]
        moment = moments.setdefault(
            (row["step"], row["stage"]), {"step": row["step"], "stage": row["stage"], "rows": []}
        )
        moment["rows"].append(
            {key: value for key, value in row.items() if key not in ("step", "stage", "kind", "uid", "question")}
        )
    ordered = sorted(found.items(), key=lambda item: item[0] == "training")
    return [{**each, "moments": list(each["moments"].values())} for _, each in ordered]


def bounded(found: list[dict[str, Any]], budget: int = BUDGET) -> list[dict[str, Any]]:
    """The same with fewer moments where they are too many or too large, evenly from first to last."""
    count = min(MOMENTS, max((len(each["moments"]) for each in found), default=0))
    while True:
        kept = [{**each, "moments": thinned(each["moments"], count)} for each in found]
        if count <= 2 or len(script_json(kept).encode()) <= budget:
            return kept
        count = max(2, int(count * 0.75))


def thinned(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` (2 or more) items, evenly from first to last."""
    if len(items) <= max(2, count):
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def add_snapshots(page: Page, run: RunFiles) -> None:
    """Images or an episode through training, where the run has recorded them."""
    rows = [row for row in run.credit if row["kind"] == "snapshot"]
    if not rows:
        return
    page.heading("Through training")
    if any("episode" in row for row in rows):
        page.sentence(
            "Positions are drawn instead of rendered frames: rendering is too slow without a graphics processor."
        )
        page.needs_charts = True
    kept = thinned(rows, MOMENTS)
    while len(script_json(kept).encode()) > BUDGET and len(kept) > 2:
        kept = thinned(kept, max(2, int(len(kept) * 0.75)))
    page.widget("snapshots", kept, "snapshots.js", SNAPSHOTS)


def question(content: Any) -> str:
    """A prompt's content as one text: the messages of a chat, or what there is."""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        return "\n".join(str(m["content"]) if isinstance(m, Mapping) and "content" in m else str(m) for m in content)
    return (
        ", ".join(f"{key} {value}" for key, value in content.items()) if isinstance(content, Mapping) else str(content)
    )


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 70 else f"{line[:67]}..."
