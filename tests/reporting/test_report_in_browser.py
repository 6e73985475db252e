"""The page of a run in a real browser: charts, hover, the viewer, the slider, keys, colours, a phone, no network."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from redistill.build import prepare
from redistill.reporting.run_page import report
from test_page import HOSTILE


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a small run of SDPO, with an alarm, and with a sampled answer that would be HTML."""
    path = tmp_path_factory.mktemp("run") / "run"
    given: dict[str, Any] = {
        "model": "pocket", "task": "sums", "steps": 4, "prompts_per_step": 2, "group_size": 4, "max_new_tokens": 12,
        "eval_prompts": 6, "eval_every": 2, "eval_samples": 2, "trace_every": 1, "learning_rate": 3e-3, "save_model": "false",
    }  # fmt: skip
    run = prepare("sdpo", given, out=path, report=lambda event, facts: None)
    run.go(False)
    run.close()
    alarm = {"step": 2, "name": "dead signal", "value": 0.9, "means": "most groups teach nothing", "try": HOSTILE}
    (path / "alarms.jsonl").write_text(json.dumps(alarm) + "\n")
    rows = [json.loads(line) for line in (path / "credit.jsonl").read_text().splitlines()]
    for row in rows:
        row["reads"] = row["reads"] + HOSTILE
        row["feedback"] = HOSTILE
    (path / "credit.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report([path], None)
    return path / "report.html"


def tokens(page: Any) -> list[str]:
    return list(page.locator("#credit-tokens .tok").all_inner_texts())


def test_charts_are_drawn_without_an_error_or_a_request(page_path: Path, open_page: Any) -> None:
    seen = open_page(page_path)
    charts = seen.page.locator("figure.chart .plot")
    assert charts.count() >= 8
    drawn = seen.page.evaluate(
        "[...document.querySelectorAll('figure.chart .plot')].map(p => p.querySelectorAll('.scatterlayer .trace path').length)"
    )
    assert all(count > 0 for count in drawn)
    assert "most groups teach nothing" in seen.page.locator(".alarm").first.inner_text()
    assert seen.fits()
    seen.picture("report-light", full=True)
    assert seen.problems == []


def test_hover_over_a_chart_says_its_numbers(page_path: Path, open_page: Any) -> None:
    seen = open_page(page_path)
    chart = seen.page.locator("figure.chart .plot").nth(1)
    chart.scroll_into_view_if_needed()
    box = chart.locator(".nsewdrag").first.bounding_box()
    seen.page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] / 2)
    words = chart.locator(".hoverlayer text")
    words.first.wait_for()
    assert re.search(r"\d", words.first.text_content())
    assert seen.problems == []


def test_the_slider_changes_the_tokens_of_the_same_prompt(page_path: Path, open_page: Any) -> None:
    seen = open_page(page_path)
    page = seen.page
    slider = page.locator("#credit-step")
    prompt = page.locator("#credit-prompt").input_value()
    versions = set()
    for moment in range(5):
        slider.fill(str(moment))
        assert f"after {moment} of 4 updates" in page.locator("output[for=credit-step]").inner_text()
        versions.add(tuple(tokens(page)))
    assert len(versions) > 1
    assert page.locator("#credit-prompt").input_value() == prompt
    slider.focus()
    page.keyboard.press("Home")
    assert "after 0 of" in page.locator("output[for=credit-step]").inner_text()
    page.keyboard.press("ArrowRight")
    assert "after 1 of" in page.locator("output[for=credit-step]").inner_text()
    assert seen.problems == []


def test_pointing_at_a_token_shows_what_student_and_teacher_hold_likely(page_path: Path, open_page: Any) -> None:
    seen = open_page(page_path)
    page = seen.page
    first, third = page.locator("#credit-tokens .tok").nth(0), page.locator("#credit-tokens .tok").nth(2)
    first.hover()
    assert page.locator(".detail .which").inner_text().startswith("token 1 of")
    assert page.locator(".detail .likely").count() >= 2
    assert page.locator(".detail .likely").first.locator(".alt").count() == 5
    before = page.locator(".detail").inner_text()
    third.hover()
    assert page.locator(".detail .which").inner_text().startswith("token 3 of")
    assert page.locator(".detail").inner_text() != before
    assert page.locator("#credit-views pre").count() == 2
    assert page.locator("#credit-views mark").count() >= 1
    seen.picture("report-credit")
    assert seen.problems == []


def test_the_colours_follow_the_chosen_quantity(page_path: Path, open_page: Any) -> None:
    seen = open_page(page_path)
    page = seen.page
    looks: Any = "[...document.querySelectorAll('#credit-tokens .tok')].map(t => t.style.background)"
    chosen = page.locator("#credit-by")
    options = chosen.locator("option").all_inner_texts()
    assert any(text.startswith("teacher minus student") for text in options)
    assert any("divergence" in text for text in options)
    assert any("entropy" in text for text in options)
    found = set()
    for text in options:
        chosen.select_option(label=text)
        found.add(tuple(page.evaluate(looks)))
    assert len(found) > 3
    assert seen.problems == []


def test_everything_is_reached_by_keys_alone(page_path: Path, open_page: Any) -> None:
    seen = open_page(page_path)
    page = seen.page
    reached, said = set(), set()
    for _ in range(150):
        page.keyboard.press("Tab")
        known = page.evaluate("(e => [e.id, e.className, e.tagName])(document.activeElement)")
        reached.add(known[0] or known[1] or known[2])
        if known[1].startswith("plot") or "js-plotly-plot" in known[1]:
            page.keyboard.press("ArrowRight")
            said.add(page.evaluate("document.activeElement.parentElement.querySelector('.said').textContent"))
        if "tok" in known[1].split():
            which = page.locator(".detail .which")
            page.keyboard.press("Home")
            assert which.inner_text().startswith("token 1 of")
            page.keyboard.press("ArrowRight")
            assert which.inner_text().startswith("token 2 of")
        if page.evaluate("document.activeElement === document.body"):
            break
    assert {"theme", "credit-prompt", "credit-row", "credit-by", "credit-step"} <= reached
    assert any("tok" in name.split() for name in reached)
    assert any(re.search(r"updates \d.*: .*\d", words) for words in said)
    assert seen.problems == []


@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark_by_the_system_and_by_the_button(page_path: Path, open_page: Any, dark: bool) -> None:
    seen = open_page(page_path, dark=dark)
    shade = "getComputedStyle(document.body).backgroundColor"
    ink = "getComputedStyle(document.querySelector('.plot .xtick text')).fill"
    first, words = seen.page.evaluate(shade), seen.page.evaluate(ink)
    assert (sum(map(int, re.findall(r"\d+", first)[:3])) < 384) == dark
    seen.picture(f"report-{'dark' if dark else 'light'}-top")
    seen.page.locator("#theme").click()
    assert (sum(map(int, re.findall(r"\d+", seen.page.evaluate(shade))[:3])) < 384) != dark
    assert seen.page.evaluate(ink) != words, "charts are drawn again in the other colours"
    seen.page.reload()
    assert (sum(map(int, re.findall(r"\d+", seen.page.evaluate(shade))[:3])) < 384) != dark, "the choice is kept"
    assert seen.problems == []


def test_on_a_phone_nothing_scrolls_sideways(page_path: Path, open_page: Any) -> None:
    seen = open_page(page_path, width=360, height=740, touch=True)
    assert seen.fits()
    for summary in seen.page.locator("summary").all():
        summary.click()
    assert seen.fits()
    seen.page.locator("#credit-tokens .tok").nth(1).tap()
    assert seen.page.locator(".detail .which").inner_text().startswith("token 2 of")
    seen.page.locator("#credit-viewer").scroll_into_view_if_needed()
    seen.picture("report-phone", full=True)
    assert seen.problems == []


def test_what_a_model_wrote_stays_text(page_path: Path, open_page: Any) -> None:
    seen = open_page(page_path)
    assert "alert(1)" in seen.page.locator("#credit-views").inner_text()
    assert "alert(1)" in seen.page.locator(".feedback").inner_text()
    assert seen.page.locator("main img").count() == 0
    assert seen.problems == []
