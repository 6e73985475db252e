"""The pages as files: nothing is loaded, data can be read back, what a model wrote stays text. Browsers: test_in_browser.py."""

from __future__ import annotations

import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from redistill.errors import UserError
from redistill.reporting.page import ASSETS, LIBRARY, Bars, Chart, Level, Line, Page, number, script_json

HOSTILE = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(2)> & \u2028 'quoted' \"twice\""


class Reader(HTMLParser):
    """What a page would load, and what its data is."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.elements: list[str] = []
        self.texts: dict[str, str] = {}
        self.inside = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        known = dict(attributes)
        self.elements.append(tag)
        self.inside = "data" if known.get("id") == "data" else tag
        for name in ("src", "href", "srcset", "action", "poster", "data"):
            address = known.get(name)
            if address and not address.startswith(("#", "data:")):
                self.loads.append(f"{tag} {name}={address}")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        self.texts[self.inside] = self.texts.get(self.inside, "") + data


def check_page(html: str) -> dict:
    """What every page must keep to; its data."""
    assert len(html.encode()) < 5_000_000
    reader = Reader()
    reader.feed(html)
    assert reader.loads == []
    assert "default-src 'none'" in html
    assert not re.search(r"url\(\s*['\"]?(?!data:)\w", reader.texts["style"])
    assert "@import" not in reader.texts["style"]
    assert not {"iframe", "object", "embed", "img"} & set(reader.elements)
    return json.loads(reader.texts["data"])


def full_page() -> Page:
    page = Page(f"title {HOSTILE}", f"below {HOSTILE}")
    page.sentence(HOSTILE, lead=True)
    page.notice(HOSTILE, grave=True)
    page.tiles([("what", 0.123456, HOSTILE)])
    page.heading("Learning")
    page.heading("Learning")
    page.subheading(HOSTILE)
    line = Line(f"grpo {HOSTILE}", [0, 1, 2], [0.1, None, math.nan], low=[0.0, 0.1, 0.2], high=[0.2, 0.3, math.inf])
    page.charts([Chart("reward", "updates", "reward", [line], note=HOSTILE, levels=[Level(0.5, HOSTILE)])])
    page.chart(Chart("cost", "method", "seconds", [Bars("collect", ["a", "b"], [1.0, 2.0])], stacked=True))
    page.table(["arm", HOSTILE], [["grpo", 1234567], [HOSTILE, None], ["x", True]], caption=HOSTILE)
    with page.folded(HOSTILE):
        page.code(HOSTILE)
    page.widget("part", {"text": HOSTILE}, "page.js")
    return page


def test_a_page_loads_nothing_and_what_was_written_stays_text():
    html = full_page().html()
    data = check_page(html)
    assert data["part"] == {"text": HOSTILE}
    assert data["charts"]["chart-1"]["series"][0]["y"] == [0.1, None, None]
    assert "alert(1)</script>" not in html
    assert "<img" not in html.replace("<!-- <img", "")


def test_sections_of_one_name_have_names_of_their_own():
    page = full_page()
    assert [name for name, _ in page.sections] == ["section-learning", "section-learning-2"]
    assert all(f'href="#{name}"' in page.html() for name, _ in page.sections)


def test_a_page_without_charts_leaves_the_library_out():
    page = Page("words")
    page.sentence("nothing to draw")
    assert len(page.html()) < 40_000
    check_page(page.html())


def test_json_in_a_script_is_read_back_as_it_was():
    value = {"a": HOSTILE, "b": [1, 2.5, None, True]}
    text = script_json(value)
    assert json.loads(text) == value
    assert not set("<>&\u2028") & set(text)
    assert json.loads(script_json([math.nan, -math.inf])) == [None, None]


def test_series_of_unequal_lists_are_a_mistake_of_the_program():
    with pytest.raises(ValueError, match="different lengths"):
        Page("x").chart(Chart("c", "x", "y", [Line("a", [1, 2], [1.0])]))


def test_a_page_that_is_too_large_is_refused(tmp_path):
    page = Page("large")
    page.sentence("x" * 5_000_001)
    with pytest.raises(UserError, match=r"5\.0 MB, more than 5 MB"):
        page.write(tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_page_that_cannot_be_written_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        Page("x").write(tmp_path / "no" / "page.html")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (0.123456, "0.1235"),
        (1234567, "1,234,567"),
        (True, "yes"),
        (123456.7, "123,457"),
        ("", "–"),
        ("a", "a"),
    ],
)
def test_numbers_as_a_person_reads_them(value, shown):
    assert number(value) == shown


def test_the_library_is_the_file_that_the_docs_name():
    digest = hashlib.sha256((ASSETS / LIBRARY).read_bytes()).hexdigest()
    assert digest in Path("docs/dependencies.md").read_text()
    assert "MIT" in (ASSETS / "plotly-LICENSE").read_text()
