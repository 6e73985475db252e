"""The survey's table is read from the methods: every one has its place on the three axes, and the page is complete."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from redistill.cli import main
from redistill.core.method import registered
from redistill.core.options import option
from redistill.core.specs import DivergenceKind
from redistill.methods.opd import OPD
from redistill.taxonomy import COLUMNS, record, taxonomy


def test_every_method_has_a_whole_record() -> None:
    records = taxonomy()
    assert [one["method"] for one in records] == list(registered())
    for one in records:
        assert all(one[axis] not in ("", "-") for axis in ("signal", "access", "granularity")), one["method"]
        assert one["objective"], one["method"]
        assert one["sampler"], one["method"]


def test_records_say_what_the_methods_do() -> None:
    found = {one["method"]: one for one in taxonomy()}
    assert found["opd"]["divergence"] == "reverse_kl"
    assert (found["opd"]["support"], found["opd"]["teacher"], found["opd"]["year"]) == ("full", "external", "2026")
    assert (found["grpo"]["sampler"], found["grpo"]["teacher"], found["grpo"]["divergence"]) == ("student", "-", "-")
    assert (found["tsd-kd"]["divergence"], found["tsd-kd"]["normaliser"]) == ("jsd(0.9)", "sequence")
    assert found["paced"]["sampler"].startswith("the student's rollouts, and one answer of the teacher's")
    assert found["g-opd"]["support"] == "sampled"


def test_a_record_follows_the_methods_own_defaults() -> None:
    @dataclass(frozen=True)
    class Other(OPD):
        divergence: DivergenceKind = option(DivergenceKind("neyman"), "another default")

    assert record(Other)["divergence"] == "neyman"


def test_list_prints_the_taxonomy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--taxonomy"]) == 0
    printed = capsys.readouterr().out
    assert all(column in printed for column in COLUMNS)
    assert all(slug in printed for slug in registered())
    assert main(["list", "--taxonomy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == taxonomy()


def test_the_page_has_a_row_a_method_in_each_table() -> None:
    page = (Path(__file__).parent.parent / "docs" / "methods.md").read_text()
    for slug in registered():
        assert page.count(f"\n| `{slug}` |") == 2
