"""Specs: what a user may write, that it prints as it was meant, and the sentence for every mistake."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redistill.core.specs import DIVERGENCES, DivergenceKind, Normaliser, Support, TeacherWeights, parse_call
from redistill.errors import UserError

Spec = type[DivergenceKind] | type[Support] | type[TeacherWeights] | type[Normaliser]

MEANINGS = [
    (DivergenceKind, "forward_kl", DivergenceKind("forward_kl")),
    (DivergenceKind, " tvd ", DivergenceKind("tvd")),
    (DivergenceKind, "reverse_kl()", DivergenceKind("reverse_kl")),
    (DivergenceKind, "jsd(0.5)", DivergenceKind("jsd", 0.5)),
    (DivergenceKind, "skew_forward_kl( 1e-1 )", DivergenceKind("skew_forward_kl", 0.1)),
    (Support, "full", Support()),
    (Support, "sampled", Support("sampled")),
    (Support, "top_k(100)", Support("top_k", 100, "student", True)),
    (Support, "top_k(20, of=teacher, tail=false)", Support("top_k", 20, "teacher", False)),
    (Support, "top_k(k=5, of='teacher', tail=False)", Support("top_k", 5, "teacher", False)),
    (TeacherWeights, "live", TeacherWeights("live")),
    (TeacherWeights, "frozen", TeacherWeights("frozen")),
    (TeacherWeights, "ema(0.05)", TeacherWeights("ema", 0.05)),
    (TeacherWeights, "ema(0)", TeacherWeights("ema", 0.0)),
    (
        TeacherWeights,
        "slowing_ema(1, 0.0075, 0.001, 75)",
        TeacherWeights("slowing_ema", 1.0, slope=0.0075, last=0.001, delay=75),
    ),
    (TeacherWeights, "sync(10)", TeacherWeights("sync", 10)),
    (TeacherWeights, "trust_region(1)", TeacherWeights("trust_region", 1.0)),
    (TeacherWeights, "checkpoint(org/some-model)", TeacherWeights("checkpoint", path="org/some-model")),
    (Normaliser, "token", Normaliser()),
    (Normaliser, "sequence(rows=all)", Normaliser("sequence", rows="all")),
    (Normaliser, "sequence(rows=weighted)", Normaliser("sequence", rows="weighted")),
    (Normaliser, "constant(1024)", Normaliser("constant", 1024.0)),
    (Normaliser, "constant(1024, rows=all)", Normaliser("constant", 1024.0, "all")),
]


@pytest.mark.parametrize(("spec", "text", "want"), MEANINGS, ids=[text for _, text, _ in MEANINGS])
def test_text_means_what_it_says_and_prints_back(spec: Spec, text: str, want: object) -> None:
    got = spec.parse(text)
    assert got == want
    assert spec.parse(str(got)) == got


MISTAKES = [
    (DivergenceKind, "foward_kl", "divergence 'foward_kl' is unknown; did you mean 'forward_kl'?"),
    (DivergenceKind, "jsd", "divergence jsd takes one number"),
    (DivergenceKind, "tvd(1)", "divergence tvd takes no number"),
    (DivergenceKind, "jsd(0)", "jsd(0) is identically zero: generalised JSD vanishes at its ends; write forward_kl"),
    (DivergenceKind, "jsd(1)", "jsd(1) is identically zero: generalised JSD vanishes at its ends; write reverse_kl"),
    (DivergenceKind, "jsd(1.5)", "divergence jsd needs a number between 0 and 1 (exclusive), got 1.5"),
    (DivergenceKind, "skew_reverse_kl(1)", "skew_reverse_kl needs a number between 0 and 1 (exclusive), got 1"),
    (DivergenceKind, "jsd(nan)", "divergence jsd needs a number between 0 and 1 (exclusive), got nan"),
    (DivergenceKind, "jsd(half)", "divergence jsd needs a number, got 'half'"),
    (DivergenceKind, "jsd(0.1, 0.2)", "divergence 'jsd(0.1, 0.2)' takes at most one plain number"),
    (DivergenceKind, "jsd(beta=0.5)", "divergence 'jsd(beta=0.5)' takes at most one plain number"),
    (DivergenceKind, "jsd(0.5", "divergence 'jsd(0.5' is not of the form name or name(value, key=value)"),
    (Support, "ful", "support 'ful' is unknown; did you mean 'full'?"),
    (Support, "full(3)", "support 'full' takes no arguments, got 'full(3)'"),
    (Support, "sampled(k=1)", "support 'sampled' takes no arguments, got 'sampled(k=1)'"),
    (Support, "top_k", "support top_k needs k of 1 or more, got 0"),
    (Support, "top_k(0)", "support top_k needs k of 1 or more, got 0"),
    (Support, "top_k(2.5)", "support top_k needs a whole number, got 2.5"),
    (Support, "top_k(many)", "support top_k needs a number, got 'many'"),
    (Support, "top_k(5, of=tacher)", "support top_k of='tacher' is unknown; did you mean 'teacher'?"),
    (Support, "top_k(5, tail=maybe)", "support top_k tail='maybe' is not true or false"),
    (Support, "top_k(5, 6)", "support 'top_k(5, 6)' is not top_k(k, of=student|teacher, tail=true|false)"),
    (Support, "top_k(5, tails=true)", "is not top_k(k, of=student|teacher, tail=true|false)"),
    (TeacherWeights, "liv", "teacher 'liv' is unknown; did you mean 'live'?"),
    (TeacherWeights, "live(1)", "teacher 'live(1)' is not of the form live"),
    (TeacherWeights, "ema", "teacher 'ema' is not of the form ema(value)"),
    (TeacherWeights, "ema(rate=0.1)", "teacher 'ema(rate=0.1)' is not of the form ema(value)"),
    (TeacherWeights, "ema(2)", "teacher ema needs a rate between 0 and 1, got 2"),
    (TeacherWeights, "trust_region(-0.1)", "teacher trust_region needs a rate between 0 and 1, got -0.1"),
    (TeacherWeights, "ema(nan)", "teacher ema needs a rate between 0 and 1, got nan"),
    (TeacherWeights, "ema(slow)", "teacher ema needs a number, got 'slow'"),
    (
        TeacherWeights,
        "slowing_ema(0.5)",
        "'slowing_ema(0.5)' is not of the form slowing_ema(first, slope, last, delay)",
    ),
    (
        TeacherWeights,
        "slowing_ema(0.5, 0, 0.6, 0)",
        "needs 0 <= last <= first <= 1 and a slope between 0 and 1, got first 0.5",
    ),
    (
        TeacherWeights,
        "slowing_ema(nan, 0, 0, 0)",
        "needs 0 <= last <= first <= 1 and a slope between 0 and 1, got first nan",
    ),
    (
        TeacherWeights,
        "slowing_ema(1, 0, 0, 1.5)",
        "teacher slowing_ema needs a whole number of updates of delay, got 1.5",
    ),
    (
        TeacherWeights,
        "slowing_ema(1, 0, 0, inf)",
        "teacher slowing_ema needs a whole number of updates of delay, got inf",
    ),
    (TeacherWeights, "sync(0)", "teacher sync needs a whole number of updates, 1 or more, got 0"),
    (TeacherWeights, "sync(2.5)", "teacher sync needs a whole number of updates, 1 or more, got 2.5"),
    (TeacherWeights, "checkpoint()", "teacher 'checkpoint()' is not of the form checkpoint(value)"),
    (Normaliser, "toke", "normaliser 'toke' is unknown; did you mean 'token'?"),
    (Normaliser, "token(5)", "is not token, sequence or constant(n), each with an optional rows=all"),
    (Normaliser, "token(row=all)", "is not token, sequence or constant(n), each with an optional rows=all"),
    (Normaliser, "constant", "normaliser constant needs a number above 0, got 0"),
    (Normaliser, "constant(3, rows=weighted)", "normaliser constant has no weights to count"),
    (Normaliser, "constant(-3)", "normaliser constant needs a number above 0, got -3"),
    (Normaliser, "constant(nan)", "normaliser constant needs a number above 0, got nan"),
    (Normaliser, "constant(x)", "normaliser constant needs a number, got 'x'"),
    (Normaliser, "token(rows=al)", "normaliser rows='al' is unknown; did you mean 'all'?"),
]


@pytest.mark.parametrize(("spec", "text", "sentence"), MISTAKES, ids=[text for _, text, _ in MISTAKES])
def test_every_mistake_has_one_sentence(spec: Spec, text: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        spec.parse(text)
    message = str(caught.value)
    assert sentence in message
    assert "\n" not in message


def test_mistakes_in_python_are_caught_too() -> None:
    with pytest.raises(UserError, match="needs a path or model name"):
        TeacherWeights("checkpoint")
    with pytest.raises(UserError, match="takes one number"):
        DivergenceKind("jsd")
    with pytest.raises(UserError, match="k of 1 or more, got -1"):
        Support("top_k", -1)


SPECS = st.one_of(
    st.sampled_from([name for name, numbers in DIVERGENCES.items() if not numbers and name != "f"]).map(DivergenceKind),
    st.builds(
        DivergenceKind,
        st.sampled_from([name for name, numbers in DIVERGENCES.items() if numbers]),
        st.integers(1, 9999).map(lambda n: n / 10_000),
    ),
    st.builds(
        Support, st.just("top_k"), st.integers(1, 300_000), st.sampled_from(["student", "teacher"]), st.booleans()
    ),
    st.builds(
        TeacherWeights, st.sampled_from(["ema", "trust_region"]), st.integers(0, 10_000).map(lambda n: n / 10_000)
    ),
    st.integers(1, 99_999).map(lambda n: TeacherWeights("sync", n)),
    st.builds(Normaliser, st.sampled_from(["token", "sequence"]), st.just(0.0), st.sampled_from(["active", "all"])),
    st.builds(Normaliser, st.just("constant"), st.integers(1, 99_999), st.sampled_from(["active", "all"])),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(SPECS)
def test_print_then_parse_is_the_identity(spec: DivergenceKind | Support | TeacherWeights | Normaliser) -> None:
    assert type(spec).parse(str(spec)) == spec


@pytest.mark.parametrize(
    "spec",
    [DivergenceKind("jsd", 1 / 3), TeacherWeights("ema", 0.123456789), Normaliser("constant", 1234567.0)],
    ids=["jsd", "ema", "constant"],
)
def test_print_keeps_every_digit(spec: DivergenceKind | TeacherWeights | Normaliser) -> None:
    assert type(spec).parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("spec", "text"),
    [(Support, "top_k(inf)"), (Support, "top_k(nan)"), (TeacherWeights, "sync(inf)"), (Normaliser, "constant(inf)"),
     (Support, "top_k(5, k=6)")],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_numbers_that_are_none_and_arguments_given_twice(spec: Spec, text: str) -> None:
    with pytest.raises(UserError):
        spec.parse(text)


def test_parse_call_splits_names_values_and_keys() -> None:
    assert parse_call("f", "spec") == ("f", [], {})
    assert parse_call(" f( 1, 'two' , k = \"v\" ) ", "spec") == ("f", ["1", "two"], {"k": "v"})
    for bad in ("", "F(1)", "f)(", "2f", "f(1) g"):
        with pytest.raises(UserError, match=r"spec .* is not of the form"):
            parse_call(bad, "spec")


def test_specs_are_values() -> None:
    assert len({Support.parse("top_k(5)"), Support("top_k", 5)}) == 1
    assert DivergenceKind("jsd", 0.5) != DivergenceKind("jsd", 0.4)
    assert math.isclose(DivergenceKind.parse("jsd(.25)").beta or 0.0, 0.25)
