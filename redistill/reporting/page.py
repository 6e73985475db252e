"""One self-contained HTML page: headings, sentences, tables, charts; light and dark, phone and keyboard, offline.

A page is one file. Style, scripts, the charting library (plotly.js, see docs/dependencies.md) and all data are inside it, and
a content security policy forbids it to load anything else. Whatever is not written by this package passes through `escape`
(text) or `script_json` (data), so a sampled answer that looks like HTML stays text.

    page = Page("grpo on sums", "smollm2-135m, 200 steps")
    page.sentence("held-out accuracy 0.21 before, 0.43 after", lead=True)
    page.heading("Learning")
    page.charts([Chart("reward", x="updates", y="mean reward", series=[Line("grpo", steps, mean, low=low, high=high)])])
    page.table(["arm", "accuracy"], [["grpo", 0.43]])
    page.write(Path("page.html"))
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from redistill.core.runs import finite
from redistill.errors import UserError

ASSETS = Path(__file__).parent.parent / "assets" / "page"
LIBRARY = "plotly-basic.min.js"
LARGEST = 5_000_000
"""Bytes that a page may have: above it browsers on phones become slow; what makes a page decides what to leave out."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"


@dataclass(frozen=True)
class Line:
    """A curve, with a band between `low` and `high` where given. Missing numbers are None or NaN: a gap. `colour` is a place
    in the page's palette (default: the series' own place in the chart), so that an arm has one colour in all charts."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    colour: int | None = None
    dash: bool = False
    faint: bool = False
    """Thin and pale: one seed of several, raw values under a smoothed curve."""
    markers: bool = False
    text: Sequence[str] | None = None
    """What the hover adds to each point."""
    kind: str = "line"


@dataclass(frozen=True)
class Bars:
    """A bar for each of the labels `x`, with an interval where `low` and `high` are given."""

    name: str
    x: Sequence[str | float]
    y: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    colour: int | None = None
    text: Sequence[str] | None = None
    kind: str = "bars"


@dataclass(frozen=True)
class Level:
    """A dashed line at one height (`x` False) or one place (`x` True) of a chart: a teacher's accuracy, the end of a stage."""

    at: float
    name: str
    x: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart: what it is called, what its axes are, what it shows. `note` is one sentence for the reader under the title."""

    title: str
    x: str
    y: str
    series: Sequence[Line | Bars]
    note: str = ""
    levels: Sequence[Level] = ()
    y_range: tuple[float, float] | None = None
    log_y: bool = False
    stacked: bool = False
    """Bars on top of each other instead of side by side."""
    equal: bool = False
    """One unit is as long on both axes (positions in a plane)."""


def script_json(value: Any) -> str:
    """JSON that may stand inside a <script> element: numbers that JSON lacks are null, and no character can end the element
    or the line."""
    text = json.dumps(finite(value), ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def number(value: Any) -> str:
    """A value as a table shows it: four significant digits, thousands apart, an en dash for what is missing."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"
    return str(value)


class Page:
    """Builds a page from top to bottom; `html` puts the file together."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title, self.subtitle = title, subtitle
        self.body: list[str] = []
        self.sections: list[tuple[str, str]] = []
        self.data: dict[str, Any] = {"charts": {}}
        self.scripts: list[str] = []
        self.needs_charts = False

    # --- words ------------------------------------------------------------------------------------------------------
    def heading(self, text: str) -> None:
        """A section, which the list of sections at the top leads to."""
        name = "section-" + (re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x")  # no script's id begins so
        taken = {name for name, _ in self.sections}
        name = next(n for n in (name, *(f"{name}-{i}" for i in range(2, 99))) if n not in taken)
        self.sections.append((name, text))
        self.body.append(f'<h2 id="{name}" tabindex="-1">{escape(text)}</h2>')

    def subheading(self, text: str) -> None:
        """A heading within a section."""
        self.body.append(f"<h3>{escape(text)}</h3>")

    def sentence(self, text: str, lead: bool = False) -> None:
        """A paragraph; `lead` for the one that says the outcome."""
        self.body.append(f"<p{' class=lead' if lead else ''}>{escape(text)}</p>")

    def notice(self, text: str, grave: bool = False) -> None:
        """A paragraph in a box, for what the reader must not miss."""
        self.body.append(f'<p class="notice{" grave" if grave else ""}">{escape(text)}</p>')

    def alarm(self, name: str, when: str, means: str, remedy: str) -> None:
        """A health alarm: what it is called, when it rang, what it means and what to try."""
        tried = f"<p><b>Try</b> {escape(remedy)}</p>" if remedy else ""
        self.body.append(
            f'<div class="notice alarm"><h3>{escape(name)} <span class="soft">{escape(when)}</span></h3>'
            f"<p>{escape(means)}</p>{tried}</div>"
        )

    def code(self, text: str) -> None:
        """Text as it is: a command, a prompt."""
        self.body.append(f'<pre tabindex="0">{escape(text)}</pre>')

    def tiles(self, facts: Iterable[tuple[str, Any, str]]) -> None:
        """Large numbers side by side: (what, value, remark)."""
        cells = [
            f"<div><dt>{escape(what)}</dt><dd>{escape(number(value))}</dd>"
            + (f'<dd class="remark">{escape(remark)}</dd>' if remark else "")
            + "</div>"
            for what, value, remark in facts
        ]
        self.body.append(f'<dl class="tiles">{"".join(cells)}</dl>')

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> None:
        """A table; numbers are aligned to the right and rounded to four digits. Wide ones scroll within themselves."""
        right = [any(_numeric(row[at]) for row in rows) for at in range(len(columns))]
        head = "".join(
            f'<th scope="col"{" class=n" if at else ""}>{escape(column)}</th>' for column, at in zip(columns, right)
        )
        body = "".join("<tr>" + "".join(map(_cell, row, right)) + "</tr>" for row in rows)
        told = f"<caption>{escape(caption)}</caption>" if caption else ""
        label = escape(caption or ", ".join(columns), quote=True)
        self.body.append(
            f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table>{told}<thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )

    @contextmanager
    def folded(self, summary: str, is_open: bool = False) -> Iterator[None]:
        """What is added inside the block can be folded away."""
        self.body.append(f"<details{' open' if is_open else ''}><summary>{escape(summary)}</summary>")
        yield
        self.body.append("</details>")

    # --- charts and what has a script of its own --------------------------------------------------------------------
    def chart(self, chart: Chart) -> None:
        """A chart over the whole width."""
        self.body.append(self._figure(chart))

    def charts(self, charts: Sequence[Chart]) -> None:
        """Charts side by side where there is room."""
        self.body.append(f'<div class="grid">{"".join(map(self._figure, charts))}</div>')

    def _figure(self, chart: Chart) -> str:
        for series in chart.series:
            lengths = {len(v) for v in (series.x, series.y, series.low, series.high, series.text) if v is not None}
            if len(lengths) > 1:
                raise ValueError(f"chart {chart.title!r}, series {series.name!r}: lists of different lengths {lengths}")
        name = f"chart-{len(self.data['charts']) + 1}"
        self.data["charts"][name] = {key: _short(value) for key, value in asdict(chart).items()}
        note = f'<p class="note">{escape(chart.note)}</p>' if chart.note else ""
        return (
            f'<figure class="chart"><figcaption><strong>{escape(chart.title)}</strong>{note}</figcaption>'
            f'<div class="plot" id="{name}" tabindex="0" role="group" aria-label="Chart: {escape(chart.title, quote=True)}. '
            'Left and right arrows read its points."></div><p class="said" aria-live="polite"></p></figure>'
        )

    def widget(self, name: str, data: Any, script: str, markup: str = "") -> None:
        """A part with its own script (a file of redistill/assets/page): `markup` is its place, `data` is kept under `name`,
        which must be new to the page."""
        if name in self.data:
            raise ValueError(f"the page has a part {name!r} already")
        self.data[name] = data
        if script not in self.scripts:
            self.scripts.append(script)
        self.body.append(markup or f'<div id="{escape(name, quote=True)}"></div>')

    # --- the file ---------------------------------------------------------------------------------------------------
    def html(self) -> str:
        """The whole file."""
        scripts = [LIBRARY] if self.data["charts"] or self.needs_charts else []
        parts = [asset(name) for name in [*scripts, "page.js", *self.scripts]]
        links = "".join(f'<a href="#{name}">{escape(text)}</a>' for name, text in self.sections)
        nav = f'<nav aria-label="sections">{links}</nav>' if links else ""
        below = f"<p>{escape(self.subtitle)}</p>" if self.subtitle else ""
        return "\n".join([
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">',
            f"<title>{escape(self.title)}</title>\n<style>\n{asset('page.css')}</style>\n</head>\n<body>",
            f'<a class="skip" href="#main">Skip to the content</a>\n<header><div><h1>{escape(self.title)}</h1>{below}</div>',
            '<button id="theme" type="button" aria-label="Dark colours">☾</button></header>',
            f'{nav}\n<main id="main" tabindex="-1">',
            "<noscript><p class=notice>Charts and the viewer need JavaScript; tables and sentences do not.</p></noscript>",
            *self.body,
            "</main>\n<footer>Made by redistill. One file, no network.</footer>",
            f'<script type="application/json" id="data">{script_json(self.data)}</script>',
            *(f"<script>\n{part}\n</script>" for part in parts),
            "</body>\n</html>\n",
        ])  # fmt: skip

    def write(self, path: Path) -> int:
        """Write the file; its size in bytes. UserError where it cannot be written or is larger than a page may be."""
        content = self.html().encode()
        if len(content) > LARGEST:
            raise UserError(f"the page {path} would have {len(content) / 1e6:.1f} MB, more than {LARGEST / 1e6:.0f} MB")
        try:
            path.write_bytes(content)
        except OSError as error:
            raise UserError(
                f"page {path} cannot be written ({error.strerror or error}); choose another --out"
            ) from None
        return len(content)


def asset(name: str) -> str:
    """A file of the page's assets, as text that may stand inside its element."""
    text = (ASSETS / name).read_text(encoding="utf-8")
    if re.search(r"</(script|style)", text, re.IGNORECASE):
        raise ValueError(f"asset {name} would end the element that it stands in")
    return text


def _cell(value: Any, right: bool) -> str:
    return f"<td{' class=n' if right else ''}>{escape(number(value))}</td>"


def _numeric(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _short(value: Any) -> Any:
    """Numbers with six significant digits: a page must stay small, and no screen shows more."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _short(item) for key, item in value.items()}
    return [_short(item) for item in value] if isinstance(value, (list, tuple)) else value
