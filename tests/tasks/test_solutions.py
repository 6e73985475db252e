import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redistill.tasks.gym import GymTask
from redistill.tasks.solutions import solution, worked_steps


def test_a_careful_student() -> None:
    assert solution("chain_sum", {"expression": "4 - 1"}, "3", "plain") == "4 - 1 = 3\nThe answer is 3."
    assert solution("chain_sum", {"expression": "4 - 1 + 7"}, "10", "boxed") == (
        "4 - 1 = 3\n3 + 7 = 10\nThe answer is \\boxed{10}."
    )
    assert solution("basic_arithmetic", {"expression": "2 + 3 * -( 4 - 8 / 2 )"}, "2", "plain") == (
        "8 / 2 = 4\n4 - 4 = 0\n3 * 0 = 0\n2 + 0 = 2\nThe answer is 2."
    )
    assert solution("gcd", {"numbers": [26, 760]}, "2", "plain") == (
        "760 = 29 * 26 + 6\n26 = 4 * 6 + 2\n6 = 3 * 2 + 0\nSo the divisor so far is 2.\nThe answer is 2."
    )
    assert solution("spell_backward", {"word": "sun"}, "nus", "tag") == (
        "The letters are s, u, n.\nBackward they are n, u, s.\nThe answer is <answer>nus</answer>."
    )


def test_no_wrong_work() -> None:
    assert solution("chain_sum", {"expression": "4 - 1"}, "5", "plain") == "5"
    assert worked_steps("basic_arithmetic", {"expression": "7 / 2"}) is None
    assert worked_steps("basic_arithmetic", {"expression": "__import__('os')"}) is None
    assert worked_steps("basic_arithmetic", {"expression": "2 ** 9"}) is None
    assert solution("sudoku", {}, "1 2", "boxed") == "\\boxed{1 2}"
    assert solution("graph_color", {}, None, "plain") is None


@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=4))
def test_euclid(numbers: list[int]) -> None:
    work = worked_steps("gcd", {"numbers": numbers})
    assert work is not None
    assert work[1] == str(math.gcd(*numbers))


@pytest.mark.parametrize("answer_format", ["plain", "boxed", "tag"])
@pytest.mark.parametrize("name", ["chain_sum", "basic_arithmetic", "gcd", "products", "spell_backward"])
def test_every_worked_solution_is_worth_1(name: str, answer_format: str) -> None:
    task = GymTask(name, answer_format=answer_format)
    worked = 0
    for index in range(40):
        prompt = task.train(index, 3)
        assert prompt.solution is not None
        worked += "\nThe answer is " in prompt.solution
        assert task.verify(prompt, prompt.solution).reward == 1.0
    # basic_arithmetic now and then divides with a remainder and rounds down; a student would not, so no work is shown.
    assert worked >= (36 if name == "basic_arithmetic" else 40)
