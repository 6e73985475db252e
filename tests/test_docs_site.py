"""The documentation site builds without a warning, its links lead somewhere, and what its pages claim is there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from redistill.cli import main

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it: a warning ends the build."""
    pytest.importorskip("sphinx", reason="the site needs the dev extra")
    out = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "-n",
        "-q",
        "-b",
        "html",
        "-d",
        str(out / "trees"),
        str(DOCS),
        str(out / "html"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return out / "html"


class Links(HTMLParser):
    """What a page links to, loads, and can be linked to."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("id"):
            self.anchors.add(str(given["id"]))
        if tag == "a" and given.get("href"):
            self.targets.append(str(given["href"]))
        if tag in ("script", "img") and given.get("src"):
            self.loads.append(str(given["src"]))
        if tag == "link" and given.get("rel") in ("stylesheet", "icon"):
            self.loads.append(str(given["href"]))


def read(page: Path) -> Links:
    links = Links()
    links.feed(page.read_text())
    return links


def test_every_link_inside_the_site_leads_to_a_place(site: Path) -> None:
    pages = {page: read(page) for page in site.rglob("*.html")}
    assert len(pages) > 40
    broken = []
    for page, links in pages.items():
        for target in links.targets + links.loads:
            parts = urlsplit(target)
            if parts.scheme in ("http", "https", "mailto", "data"):
                continue
            to = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            known = pages.get(to)
            anchored = not parts.fragment or known is None or unquote(parts.fragment) in known.anchors
            if not to.exists() or not anchored:
                broken.append(f"{page.relative_to(site)}: {target}")
    assert not broken


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert not [source for source in read(page).loads if urlsplit(source).scheme not in ("", "data")], page.name


def test_every_method_has_its_page(site: Path) -> None:
    from redistill.catalogue import rows

    for row in rows():
        text = (site / "method" / f"{row['slug']}.html").read_text()
        assert "Options" in text or row["slug"] == "ce"


def test_every_page_can_be_reached_from_the_start(site: Path) -> None:
    seen, waiting = set(), [site / "index.html"]
    while waiting:
        page = waiting.pop()
        if page in seen:
            continue
        seen.add(page)
        for target in read(page).targets:
            parts = urlsplit(target)
            to = (page.parent / unquote(parts.path)).resolve() if not parts.scheme and parts.path else page
            if to.suffix == ".html":
                waiting.append(to)
    sources = {path.relative_to(DOCS).with_suffix("") for path in DOCS.rglob("*.md") if "images" not in path.parts}
    assert sources <= {page.relative_to(site).with_suffix("") for page in seen}


def test_every_test_that_the_page_of_pitfalls_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (DOCS / "pitfalls.md").read_text()))
    assert len(named) > 40
    defined = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        defined |= set(re.findall(r"def (test_\w+)", path.read_text()))
    assert not named - defined


def test_the_numbers_of_the_guide_are_those_of_the_evidence() -> None:
    """Every interval that the guide quotes is, rounded, in some verdict."""
    import json

    known = set()
    for path in (ROOT / "evidence").rglob("verdict.json"):
        verdict = json.loads(path.read_text())
        for gap in [verdict["difference"], *dict(verdict["controls"]).values()]:
            for digits in (2, 3):
                known.add(tuple(f"{gap[key]:+.{digits}f}" for key in ("estimate", "low", "high")))
    quoted = re.findall(r"([+-]\d\.\d+) \[([+-]\d\.\d+), ([+-]\d\.\d+)\]", (DOCS / "which-method.md").read_text())
    assert len(quoted) > 8
    assert not set(quoted) - known


def test_every_command_of_the_tutorial_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, in one folder, with the file that the page shows."""
    blocks = re.findall(r"```(\w+)\n(.*?)```", (DOCS / "tutorial.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jsonl").write_text(next(text for kind, text in blocks if kind == "json"))
    lines = [line for kind, text in blocks if kind == "sh" for line in text.splitlines()]
    assert len(lines) >= 5
    for line in lines:
        program, *words = shlex.split(line, comments=True)
        assert program == "redistill"
        assert main(words) == 0, line


def test_the_mistake_of_the_tutorial_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    page = (DOCS / "tutorial.md").read_text()
    shown = re.search(r"\$ (redistill run opsd --set learning_rat=1e-4)\n(.*)\n", page)
    assert shown is not None
    assert main(shlex.split(shown[1])[1:]) == 2
    assert capsys.readouterr().err.strip() == shown[2]
