"""A headless Chromium for the pages: the system's, or the one that `make test` brings (scripts/browser.py); else a skip."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from browser import find

ARTEFACTS = Path(__file__).parents[2] / "artefacts" / "pages"
"""Where screenshots are kept: not in git, for whoever wants to look at what was tested."""


@dataclass
class Opened:
    """A page in a browser and what went wrong in it so far."""

    page: Any
    problems: list[str] = field(default_factory=list)

    def picture(self, name: str, full: bool = False) -> None:
        """Keep a screenshot."""
        ARTEFACTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=str(ARTEFACTS / f"{name}.png"), full_page=full)

    def fits(self) -> bool:
        """Whether nothing makes the page scroll sideways."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


Open = Callable[..., Opened]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, started once."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (pip install -e '.[dev]')"
    )
    found = find()
    if found is None:
        pytest.skip("no Chromium on this system and none in .browser (python scripts/browser.py brings one)")
    path, needs = found
    with playwright.sync_playwright() as started:
        one = started.chromium.launch(executable_path=str(path), args=["--no-sandbox"], env={**os.environ, **needs})
        yield one
        one.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Open a page without network: (path, width=1200, height=900, dark=False, touch=False) -> Opened. Errors, failed
    policies and requests are its problems."""
    contexts = []

    def opened(path: Path, width: int = 1200, height: int = 900, dark: bool = False, touch: bool = False) -> Opened:
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", offline=True,
            has_touch=touch, is_mobile=touch,
        )  # fmt: skip
        contexts.append(context)
        made = Opened(context.new_page())
        address = path.resolve().as_uri()
        made.page.on("console", lambda m: made.problems.append(m.text) if m.type in ("error", "warning") else None)
        made.page.on("pageerror", lambda error: made.problems.append(str(error)))
        made.page.on(
            "request",
            lambda asked: None if asked.url.split("#")[0] == address or asked.url.startswith(("data:", "blob:"))
            else made.problems.append(f"it asked for {asked.url}"),
        )  # fmt: skip
        made.page.goto(address)
        return made

    yield opened
    for context in contexts:
        context.close()
