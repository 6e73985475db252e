"""Options and run settings: read strictly, in their range, mistakes in one sentence."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redistill.build import settings
from redistill.config import RunConfig, load_recipe, parse_pairs, split_settings
from redistill.core.method import registered
from redistill.core.options import build, option, options_of, plain_values
from redistill.core.specs import DivergenceKind, Normaliser, Support, TeacherWeights
from redistill.errors import UserError


@dataclass(frozen=True)
class Options:
    """One option of each type."""

    whole: int = option(3, "a count", low=1, high=2**62)
    share: float = option(0.5, "a share", low=0, high=1)
    rate: float = option(0.1, "a rate", above=0)
    maybe: float | None = option(None, "a bound or none", above=0)
    switch: bool = option(False, "on or off")
    way: str = option("left", "which way", choices=("left", "right"))
    kind: DivergenceKind = option(DivergenceKind("forward_kl"), "a divergence")
    teacher: TeacherWeights | None = option(None, "a teacher")
    hidden: int = 7


GOOD: list[tuple[str, Any, Any]] = [
    ("whole", "5", 5), ("whole", 5, 5), ("whole", "5.0", 5), ("whole", "1e3", 1000), ("whole", 2**60 + 1, 2**60 + 1),
    ("share", "0", 0.0), ("share", 1, 1.0), ("rate", "1e-9", 1e-9), ("maybe", "none", None), ("maybe", None, None),
    ("maybe", "None", None), ("maybe", "2", 2.0), ("switch", "true", True), ("switch", True, True),
    ("switch", "False", False), ("way", "right", "right"), ("kind", "jsd(0.5)", DivergenceKind("jsd", 0.5)),
    ("kind", DivergenceKind("tvd"), DivergenceKind("tvd")), ("teacher", "ema(0.1)", TeacherWeights("ema", 0.1)),
    ("teacher", "none", None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "given", "wanted"), GOOD)
def test_values_are_read(name: str, given: Any, wanted: Any) -> None:
    found = getattr(build(Options, {name: given}), name)
    assert found == wanted
    assert type(found) is type(wanted)


BAD: list[tuple[str, Any, str]] = [
    ("whole", "2.5", "whole='2.5' is not a whole number"), ("whole", "many", "whole='many' is not a whole number"),
    ("whole", 0, "whole=0 is out of range: it must be >= 1"),
    ("whole", "inf", "whole='inf' is not a finite number"), ("whole", True, "whole=True is not a number"),
    ("share", "nan", "share='nan' is not a finite number"), ("share", 1.01, "share=1.01 is out of range"),
    ("rate", 0, "rate=0 is out of range: it must be > 0"), ("rate", "inf", "rate='inf' is not a finite number"),
    ("rate", "", "rate='' is not a number"), ("rate", None, "rate=None is not a number"),
    ("maybe", "non", "maybe='non' is not a number"), ("switch", "yes", "switch='yes' is not true or false"),
    ("switch", 1, "switch=1 is not true or false"), ("way", "rigth", "did you mean 'right'?"),
    ("kind", "jds(0.5)", "did you mean 'jsd'?"), ("teacher", "ema", "teacher 'ema' is not of the form ema(value)"),
    ("wohle", 3, "did you mean 'whole'?"), ("hidden", 3, "'hidden' is not an option"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "given", "words"), BAD)
def test_every_mistake_is_one_sentence_that_names_the_key(name: str, given: Any, words: str) -> None:
    with pytest.raises(UserError) as caught:
        build(Options, {name: given})
    sentence = str(caught.value)
    assert words in sentence
    assert "\n" not in sentence
    assert "Traceback" not in sentence


def test_plain_values_are_json_and_read_back() -> None:
    made = build(Options, {name: given for name, given, _ in GOOD})
    plain = json.loads(json.dumps(plain_values(made)))
    assert build(Options, plain) == made
    assert "hidden" not in plain


def test_every_option_of_every_method_and_run_has_a_meaning_and_a_default_in_its_range() -> None:
    import redistill.methods  # noqa: F401
    from redistill.build import settings_class

    classes = {*registered().values()}
    for cls in [*classes, *{settings_class(one) for one in classes}, RunConfig]:
        for spec in options_of(cls).values():
            assert spec.meaning.strip(), (cls, spec.name)
            if spec.default is not None:
                read_back = build(cls, {spec.name: plain_values(cls())[spec.name]})
                assert getattr(read_back, spec.name) == spec.default, (cls, spec.name)


def test_settings_are_sorted_into_run_and_method_and_strangers_refused() -> None:
    method, config = settings("grpo", {"clip_high": 0.28, "steps": "7", "group_size": 4})
    assert (method.clip_high, config.steps) == (0.28, 7)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="'clip_hihg' is neither a setting of a run nor an option of grpo") as caught:
        settings("grpo", {"clip_hihg": 0.28})
    assert "clip_high" in str(caught.value)
    with pytest.raises(UserError, match="method 'gpro' is unknown; did you mean 'grpo'"):
        settings("gpro", {})
    assert split_settings({"steps": 1, "std": "none"}, type(method), type(config)) == ({"steps": 1}, {"std": "none"})


def test_a_methods_own_run_defaults_yield_to_what_is_given() -> None:
    assert settings("sdpo", {})[1].warmup_steps == 10
    assert settings("sdpo", {"warmup_steps": 0})[1].warmup_steps == 0


def test_no_method_shares_an_options_name_with_the_run() -> None:
    import redistill.methods  # noqa: F401
    from redistill.build import settings_class

    for cls in registered().values():
        assert not set(options_of(cls)) & set(options_of(settings_class(cls))), cls


def test_pairs_of_the_command_line() -> None:
    assert parse_pairs(["a=1", "b=x=y", "c="]) == {"a": "1", "b": "x=y", "c": ""}
    for bad, words in ((["a"], "--set 'a' is not key=value"), (["=1"], "is not key=value"), (["a=1", "a=2"], "twice")):
        with pytest.raises(UserError, match=words):
            parse_pairs(bad)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("method = grpo", "is not valid TOML"),
        ("steps = 3", "does not name its method"),
        ('method = "grpo"\noptions = 3', "must be a table"),
    ],
)
def test_recipes_that_cannot_be_read(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(UserError, match=words):
        load_recipe(str(tmp_path / "r.toml"))
    with pytest.raises(UserError, match="does not exist"):
        load_recipe("nothing-like-it")


def test_specs_print_as_they_are_read() -> None:
    for spec in (Support("top_k", 5, "teacher", False), Normaliser("constant", 1024.5), TeacherWeights("sync", 3)):
        assert type(spec).parse(str(spec)) == spec
