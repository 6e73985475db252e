"""The page of a comparison in a real browser: charts with bands, hover, a phone, dark colours, no error, no request."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from test_compare_page import NAMES, found, page_path  # noqa: F401  (fixtures)

DRAWN = """[...document.querySelectorAll('figure.chart .plot')].map(
    plot => plot.querySelectorAll('.scatterlayer .trace path, .barlayer .point path').length)"""


def test_every_chart_is_drawn(page_path: Path, open_page: Any) -> None:  # noqa: F811
    seen = open_page(page_path)
    plots = seen.page.locator("figure.chart .plot")
    assert plots.count() == 1 + 3 + 2 + 4
    seen.page.wait_for_function(f"{DRAWN}.every(count => count > 0)")
    fills = seen.page.evaluate("document.querySelector('figure.chart .plot').querySelectorAll('.js-fill').length")
    assert fills >= len(NAMES), "a band for each method"
    assert seen.fits()
    seen.picture("compare-light", full=True)
    assert seen.problems == []


def test_hover_says_the_score(page_path: Path, open_page: Any) -> None:  # noqa: F811
    seen = open_page(page_path)
    chart = seen.page.locator("figure.chart .plot").first
    chart.scroll_into_view_if_needed()
    box = chart.locator(".nsewdrag").first.bounding_box()
    seen.page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] / 2)
    words = chart.locator(".hoverlayer text")
    words.first.wait_for()
    assert re.search(r"\d", words.first.text_content())
    assert seen.problems == []


def test_on_a_phone_in_dark_colours(page_path: Path, open_page: Any) -> None:  # noqa: F811
    seen = open_page(page_path, width=390, height=800, dark=True, touch=True)
    seen.page.wait_for_function(f"{DRAWN}.every(count => count > 0)")
    assert seen.fits()
    seen.picture("compare-phone-dark", full=True)
    assert seen.problems == []
