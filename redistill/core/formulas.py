"""Formulas in one variable u, written as text: `(sqrt(u) - 1)^2`. Read by Python's grammar, never run as code. Torch-free."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import pairwise
from types import MappingProxyType
from typing import Any

from redistill.errors import UserError, nearest

FUNCTIONS = ("log", "exp", "sqrt", "abs", "log1p")
MATH: Mapping[str, Callable[[Any], Any]] = MappingProxyType(
    {"log": math.log, "exp": math.exp, "sqrt": math.sqrt, "abs": abs, "log1p": math.log1p}
)
LONGEST = 200
_OPERATORS: Mapping[type, Callable[[Any, Any], Any]] = MappingProxyType(
    {
        ast.Add: lambda a, b: a + b,
        ast.Sub: lambda a, b: a - b,
        ast.Mult: lambda a, b: a * b,
        ast.Div: lambda a, b: a / b,
        ast.Pow: lambda a, b: a**b,
    }
)
_GRID = [math.exp(at / 4.0) for at in range(-28, 29)]
"""Points between e^-7 and e^7 at which convexity is looked at."""


@lru_cache(maxsize=64)
def parsed(text: str) -> ast.expr:
    """The tree of a formula of numbers, u, + - * / ^ and FUNCTIONS. Raises UserError for anything else."""
    where = f"generator {text!r}"
    if len(text) > LONGEST:
        raise UserError(f"generator {text[:20]!r}... is longer than {LONGEST} characters")
    try:
        tree = ast.parse(text.strip().replace("^", "**"), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UserError(f"{where} is not a formula such as u*log(u)") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else "?"
            if name not in FUNCTIONS or len(node.args) != 1 or node.keywords:
                raise UserError(f"{where} calls {name!r} of one number{nearest(name, FUNCTIONS)}")
        elif isinstance(node, ast.Name):
            if node.id not in ("u", *FUNCTIONS):
                raise UserError(
                    f"{where} has the name {node.id!r}: the one variable is u, the teacher's probability over the student's"
                )
        elif isinstance(node, ast.Constant):
            number = node.value
            if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
                raise UserError(f"{where} has {node.value!r}, which is not a number")
        elif not isinstance(node, (ast.BinOp, ast.UnaryOp, ast.Load, *_OPERATORS, ast.USub, ast.UAdd)):
            raise UserError(f"{where} has {type(node).__name__}, which is not arithmetic")
    return tree


def value(tree: ast.expr, u: Any, functions: Mapping[str, Callable[[Any], Any]]) -> Any:
    """A formula at u, a number or a tensor, with functions of the same kind."""
    if isinstance(tree, ast.Constant):
        assert isinstance(tree.value, (int, float))
        return float(tree.value)  # whole numbers would grow without bound under ^
    if isinstance(tree, ast.Name):
        return u
    if isinstance(tree, ast.UnaryOp):
        inner = value(tree.operand, u, functions)
        return -inner if isinstance(tree.op, ast.USub) else inner
    if isinstance(tree, ast.BinOp):
        return _OPERATORS[type(tree.op)](value(tree.left, u, functions), value(tree.right, u, functions))
    assert isinstance(tree, ast.Call)
    assert isinstance(tree.func, ast.Name)
    return functions[tree.func.id](value(tree.args[0], u, functions))


@lru_cache(maxsize=64)
def check_generator(text: str) -> None:
    """Raise UserError unless the formula may generate a divergence: f(1) = 0, finite and convex where it is looked at."""
    tree = parsed(text)

    def f(u: float) -> float:
        found = value(tree, u, MATH)
        if isinstance(found, complex):
            raise ValueError("complex")
        return float(found)

    try:
        at_one, values = f(1.0), [f(u) for u in _GRID]
        middles = [f((low + high) / 2) for low, high in pairwise(_GRID)]
    except (ValueError, ZeroDivisionError, OverflowError):
        raise UserError(f"generator {text!r} is not a finite number at every u above 0") from None
    if not abs(at_one) <= 1e-9:
        raise UserError(f"generator {text!r} is {at_one:g} at u = 1, where teacher and student agree: it must be 0")
    for low, high, middle in zip(values, values[1:], middles, strict=False):
        if not middle <= (low + high) / 2 + 1e-9 * max(1.0, abs(low), abs(high)):
            raise UserError(f"generator {text!r} is not convex, so it generates no divergence")
    if max(values) - min(values) <= 1e-9:
        raise UserError(f"generator {text!r} is the same for every u: it would teach nothing")
