import re
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redistill.errors import UserError
from redistill.tasks import hints
from redistill.tasks.answers import (
    MAX_ANSWER,
    MAX_REPLY,
    check_answer_format,
    final_number,
    final_text,
    last_boxed,
    last_tag,
    number_value,
    numbers_in,
    wrap,
)


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ("4", "4"), ("The answer is 4.", "4"), ("The answer is: 4", "4"), ("2 + 2 = 4", "4"), ("2 + 2 = 4.", "4"),
        ("First 3, then 7, so the answer is 12.\nBecause 5 < 7.", "12"),
        ("The answer is 3 + 1 = 4. I used 9 steps.", "4"), ("5-3", "3"), ("5 - 3 = 2", "2"), ("+7", "7"),
        ("The answer is\n\n 46", "46"), ("-3", "-3"), ("x = -3", "-3"), ("x = \u22123", "-3"),
        ("it costs $1,234.50", "1234.50"), ("1,2,3", "3"), ("1,234,56", "56"), ("1e5", "1e5"), (".5", ".5"),
        ("\\boxed{4} but the answer is 5", "4"), ("**42**", "42"), ("It is 42, I think", "42"),
        ("The answer is 4 or 5 or 6", "6"), ("4\n5\n6", "6"), ("answer is 4, the answer is 5", "5"),
    ],
)  # fmt: skip
def test_plain_number(reply: str, number: str) -> None:
    assert final_number(reply).text == number


@pytest.mark.parametrize(
    ("reply", "answer_format", "problem"),
    [
        ("four", "plain", "No number was found in the reply."),
        ("", "plain", "The reply is empty."),
        ("\uff14\uff16", "plain", "No number was found in the reply."),
        ("\u0664", "plain", "No number was found in the reply."),
        ("4", "boxed", "No \\boxed{...} was found in the reply."),
        ("\\boxed{4", "boxed", "No \\boxed{...} was found in the reply."),
        ("\\boxed{}", "boxed", "The final answer is empty."),
        ("\\boxed{4 or 5}", "boxed", "There is more than one number in the final answer."),
        ("4</answer>", "tag", "No <answer>...</answer> was found in the reply."),
        ("<answer>4, 5</answer>", "tag", "There is more than one number in the final answer."),
        ("9" * 1001, "plain", "The number is longer than 1000 characters."),
        ("4" + " " * MAX_REPLY, "plain", f"The reply has {MAX_REPLY + 1} characters; at most {MAX_REPLY} are read."),
    ],
)
def test_form_errors_are_named(reply: str, answer_format: str, problem: str) -> None:
    final = final_number(reply, answer_format)
    assert final.text is None
    assert final.problem == problem


def test_boxes_nest_and_the_one_that_closes_last_wins() -> None:
    assert last_boxed("\\boxed{\\boxed{4}}") == "4"
    assert last_boxed("\\boxed{x + \\boxed{4}}") == "x + \\boxed{4}"
    assert last_boxed("\\boxed{1} \\boxed{\\frac{1}{2}}") == "\\frac{1}{2}"
    assert last_boxed("\\boxed{1} and \\boxed{2") == "1"
    assert last_boxed("\\boxed{\\{1, 2\\}}") == "\\{1, 2\\}"
    assert last_boxed("}}}{ boxed{3}") is None
    assert last_tag("<answer>1</answer> no, <answer> 2 </answer> <answer>3") == "2"
    assert last_tag("</answer> <answer>") is None


def test_text_answers() -> None:
    assert final_text("I think.\nThe answer is nus.", expected="sun").text == "nus"
    assert final_text("s, u, n\nnus", expected="nus").text == "nus"
    assert final_text("The answer is **True**.", expected="True").text == "True"
    assert final_text("It works.", expected="It works.").text == "It works."
    assert final_text("1 2\n3 4", expected="1 2\n3 4").text == "1 2\n3 4"
    assert final_text("The answer is True. Because so.", expected="True").text == "True"
    assert final_text("x" * (MAX_ANSWER + 1), expected="x").text is None


@given(st.fractions() | st.integers(-(10**30), 10**30))
def test_number_value_reads_what_fraction_prints(value: Fraction) -> None:
    assert number_value(str(value)) == value


@given(st.integers(-(10**12), 10**12), st.sampled_from(["plain", "boxed", "tag"]))
def test_a_wrapped_number_is_found(value: int, answer_format: str) -> None:
    assert final_number(f"We add 7 and 8. So {wrap(f'{value:,}', answer_format)}", answer_format).text == str(value)


@settings(max_examples=150)
@given(st.text(alphabet=st.sampled_from("09-+.,eE/={}\\ boxed\n<answer>/is:\uff14")) | st.text())
def test_reading_is_total(reply: str) -> None:
    for answer_format in ("plain", "boxed", "tag"):
        for final in (final_number(reply, answer_format), final_text(reply, answer_format, "a b")):
            assert (final.text is None) != (final.problem is None)


@pytest.mark.parametrize(
    "piece",
    ["1", "1,", "1,234", "-", "\\boxed{", "{", "}", "answer is ", "answer ", " ", "<answer>", "=", "1.", "1e", "."],
)
def test_reading_is_linear(piece: str) -> None:
    reply = piece * (MAX_REPLY // len(piece))
    start = time.perf_counter()
    for answer_format in ("plain", "boxed", "tag"):
        final_number(reply, answer_format)
        final_text(reply, answer_format, "x")
    assert time.perf_counter() - start < 5.0


def test_unknown_format() -> None:
    with pytest.raises(UserError, match="answer_format='box' is unknown; did you mean 'boxed'"):
        check_answer_format("box")


def test_digit_feedback() -> None:
    assert hints.wrong("46", "42") == "The answer 46 is wrong. Its correct digits, others hidden: 4?"
    assert hints.wrong("1.25", "1.35") == "The answer 1.25 is wrong. Its correct digits, others hidden: 1.?5"
    assert hints.wrong("7", "8") == "The answer 7 is wrong."
    assert hints.wrong("-46", "46") == "The answer -46 is wrong."
    assert hints.wrong("146", "46") == "The answer 146 is wrong."


@given(st.integers(-(10**8), 10**8), st.integers(-(10**8), 10**8))
def test_digit_feedback_is_right_and_never_the_whole_answer(answer: int, right: int) -> None:
    mask = hints.digit_mask(str(answer), str(right))
    if mask is not None and answer != right:
        shown = [symbol for symbol in mask if symbol != "?"]
        assert 0 < len(shown) < len(str(abs(right)))
        for place, symbol in enumerate(reversed(mask)):
            assert symbol == "?" or symbol == str(abs(right))[::-1][place]
    assert str(right) not in re.findall(
        r"-?[0-9]+", hints.wrong_number("0", str(right)).replace("answer 0 ", "answer ")
    ) or (right == 0)


def test_token_feedback() -> None:
    assert hints.wrong("a x c y e", "a b c d e").endswith("3 of 5 tokens are right; the first wrong one is token 2.")
    assert hints.wrong("a b", "a b c").endswith("It has 2 token(s), the right one has 3. 2 of 3 tokens are right.")
    assert hints.wrong("nas", "nus").endswith("2 of 3 characters are right; the first wrong one is character 2.")
    assert hints.wrong("True", "False") == "The answer 'True' is wrong."
    assert "layout" in hints.wrong("1 2\n3 4", "1 2 3 4")


def test_numbers_in_order() -> None:
    assert numbers_in("3 apples, 4.5 pears and v2 of x7: 1,000") == ["3", "4.5", "1000"]
