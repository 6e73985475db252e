"""The Python calls: as the commands, with dataframes; and `import redistill` stays light."""

from __future__ import annotations

import builtins
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redistill
from redistill.errors import UserError
from redistill.text.models import LanguageModel

SMALL: dict[str, Any] = {
    "prompts_per_step": 2,
    "group_size": 2,
    "max_new_tokens": 12,
    "eval_prompts": 6,
    "learning_rate": 3e-3,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> redistill.Finished:
    """A finished run of three steps."""
    out = tmp_path_factory.mktemp("api") / "run"
    return redistill.run("rft", task="sums", model="pocket", steps=3, eval_every=2, out=str(out), **SMALL)


def test_importing_it_imports_no_torch_and_no_pandas() -> None:
    code = (
        "import sys, redistill; redistill.UserError, redistill.run;"
        "print([m for m in ('torch', 'transformers', 'pandas', 'numpy', 'rich', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_of_methods_can_be_called_before_and_after_it_is_imported() -> None:
    code = (
        "import redistill; one = redistill.methods(); import redistill.methods; from redistill.methods.grpo import GRPO;"
        "two = redistill.methods(); print(one == two, len(one) > 20, one[0].keys() >= {'slug', 'title', 'paper'}, GRPO.slug)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "True", "grpo"]


def test_metrics_and_evaluations_are_dataframes_of_the_log(run: redistill.Finished) -> None:
    assert run.metrics.index.tolist() == [1, 2, 3]
    steps = [line for line in run.records if "evaluation" not in line]
    assert run.metrics["reward"].tolist() == [line["reward"] for line in steps]
    assert run.metrics["sampled"].tolist() == [4.0, 4.0, 4.0]
    assert run.evaluations.index.tolist() == ["before", "step-2", "after"]
    assert run.evaluations.loc["after", "accuracy"] == run.result["evaluations"]["after"]["accuracy"]
    assert run.samples.loc[1, "prompt"] is not None


def test_the_model_is_the_trained_one(run: redistill.Finished) -> None:
    lm = run.model
    assert isinstance(lm, LanguageModel)
    assert run.model is lm, "loaded once"
    from redistill.text.models import load_model

    saved = load_model(str(run.folder / "model")).module.state_dict()
    start = load_model("pocket").module.state_dict()
    for name, value in lm.module.state_dict().items():
        assert value.equal(saved[name])
    assert any(not value.equal(start[name]) for name, value in lm.module.state_dict().items())


def test_eval_is_that_of_the_run_and_takes_other_settings(run: redistill.Finished) -> None:
    assert run.eval()["outcomes"] == run.result["evaluations"]["after"]["outcomes"]
    other = run.eval(task="sums:terms=2", k=2, prompts=4, max_new_tokens=10)
    assert (len(other["outcomes"]), other["k"]) == (4, 2)
    assert redistill.evaluate("pocket", "sums", prompts=3)["prompts"] == 3


def test_report_writes_the_page(run: redistill.Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert run.report() == run.folder / "report.html"
    assert run.report(tmp_path / "mine.html", show=True).read_text().startswith("<!doctype html>")
    assert opened == [(tmp_path / "mine.html").as_uri()]


def test_a_run_is_loaded_and_continued(run: redistill.Finished, tmp_path: Path) -> None:
    assert redistill.load(run.folder) == run
    with pytest.raises(UserError, match="no finished run"):
        redistill.load(tmp_path)
    more = redistill.run(
        "rft", task="sums", model="pocket", steps=4, eval_every=2, out=run.folder, resume=True, **SMALL
    )
    assert more.metrics.index.tolist() == [1, 2, 3, 4]
    assert more.metrics.iloc[:3].equals(run.metrics.iloc[:3])


def test_a_recipe_is_where_it_starts(tmp_path: Path) -> None:
    made = redistill.run(recipe="rft", steps=1, prompts_per_step=2, group_size=2, eval_prompts=2, out=tmp_path / "r")
    assert made.result["method"] == "rft"
    assert (made.folder / "config.json").read_text().count('"learning_rate": 0.0001') == 1


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: redistill.run("grpoo"), "grpo"),
        (lambda: redistill.run("grpo", learning_rat=1), "learning_rate"),
        (lambda: redistill.run(), "name a method"),
        (lambda: redistill.run("grpo", resume=True), "out="),
        (lambda: redistill.run("grpo", recipe="rft"), "'rft', not 'grpo'"),
        (lambda: redistill.show("sdp"), "sdpo"),
        (lambda: redistill.evaluate("pocket"), "task"),
        (lambda: redistill.compare("grpo", task="sums", model="pocket", budget="rollouts=5", out="x"), "two methods"),
    ],
)
def test_a_mistake_is_a_user_error(call: Any, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(redistill.UserError, match=named):
        call()
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        redistill.nothing  # noqa: B018


def test_without_pandas_a_sentence_says_what_to_install(
    run: redistill.Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: Any, **more: Any) -> Any:
        if name == "pandas":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UserError, match=r"pip install 'redistill\[notebook\]'"):
        run.metrics  # noqa: B018
    assert len(run.records) > 3


def test_a_comparison_has_a_table_curves_and_a_page(tmp_path: Path) -> None:
    made = redistill.compare(
        "grpo", "short=rft:group_size=2", task="sums", model="pocket", budget="rollouts=8", seeds=range(2), out=tmp_path / "c",
        eval_parts=2, **SMALL,
    )  # fmt: skip
    assert made.table.index.tolist() == ["grpo", "short"]
    assert made.table.loc["grpo", "verdict"] == "baseline"
    gap = made.result["methods"]["short"]["difference"]
    row = made.table.loc["short"]
    assert (row["difference"], row["difference_low"], row["difference_high"]) == (
        gap["estimate"],
        gap["low"],
        gap["high"],
    )
    assert row["rollouts"] == 8
    assert made.curves.columns.tolist() == ["method", "at", "estimate", "low", "high"]
    assert len(made.curves) == 2 * 3
    assert made.report() == tmp_path / "c" / "compare.html"
    assert made.page.read_text().startswith("<!doctype html>")


def test_show_is_what_the_command_prints() -> None:
    assert {"idea", "objective", "options", "evidence"} <= redistill.show("sdpo").keys()
