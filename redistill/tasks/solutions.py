"""Worked solutions, written as a careful student would, for generators whose item says how it was made.

`facts` are the parts of an item's metadata that tell it: `expression`, `numbers` or `word`. A solution that does not
end on the item's own answer is not given (None), so a view never shows wrong work.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from redistill.tasks.answers import wrap

FACTS = ("expression", "numbers", "word")
"""Metadata keys that a worked solution may need."""
_SYMBOLS: Mapping[type, str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


def _arithmetic(expression: str) -> tuple[list[str], str] | None:
    """Steps "a + b = c" in the order of evaluation; None for what is not integer arithmetic with exact divisions."""
    steps: list[str] = []

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return node.value
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value(node.operand)
        if not isinstance(node, ast.BinOp) or type(node.op) not in _SYMBOLS:
            raise ValueError("not plain arithmetic")
        left, right = value(node.left), value(node.right)
        symbol = _SYMBOLS[type(node.op)]
        if symbol == "/" and (right == 0 or left % right):
            raise ValueError("not an exact division")
        result = {"+": left + right, "-": left - right, "*": left * right}.get(symbol)
        result = left // right if result is None else result
        steps.append(f"{left} {symbol} {right} = {result}")
        return result

    try:
        result = value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError):
        return None
    return steps, str(result)


def _greatest_divisor(numbers: list[int]) -> tuple[list[str], str] | None:
    """Euclid's divisions, number after number."""
    steps: list[str] = []
    divisor = numbers[0]
    for number in numbers[1:]:
        large, small = max(divisor, number), min(divisor, number)
        while small:
            steps.append(f"{large} = {large // small} * {small} + {large % small}")
            large, small = small, large % small
        divisor = large
        steps.append(f"So the divisor so far is {divisor}.")
    return steps, str(divisor)


def _backward(word: str) -> tuple[list[str], str]:
    return [f"The letters are {', '.join(word)}.", f"Backward they are {', '.join(word[::-1])}."], word[::-1]


def worked_steps(generator: str, facts: Mapping[str, Any]) -> tuple[list[str], str] | None:
    """(the lines of work, the result) for an item of `generator`, or None when no work can be written for it."""
    if generator in ("chain_sum", "products", "basic_arithmetic") and isinstance(facts.get("expression"), str):
        return _arithmetic(facts["expression"])
    if generator == "gcd" and facts.get("numbers"):
        return _greatest_divisor([int(number) for number in facts["numbers"]])
    if generator == "spell_backward" and facts.get("word"):
        return _backward(facts["word"])
    return None


def solution(generator: str, facts: Mapping[str, Any], answer: str | None, answer_format: str) -> str | None:
    """The worked solution of an item where there is one, else its bare answer in the asked format; None without an
    answer."""
    if answer is None or not answer.strip():
        return None
    work = worked_steps(generator, facts)
    if work is None or work[1] != answer:
        return wrap(answer, answer_format)
    return "\n".join([*work[0], f"The answer is {wrap(answer, answer_format)}."])
