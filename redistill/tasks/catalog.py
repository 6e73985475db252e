"""The helper process's side (see worker.py): reasoning-gym's generators, their options, items and scores; formulas.

Scores are the generators' own, except where those reward what is not an answer:
- the base class pays len(answer)/len(text) for any text that contains the answer; here only the answer itself counts;
- `game_of_life_halting` pays for any text that is not empty; `puzzle24` does not look which numbers were used;
- four generators pass a wrong answer to `eval`; here only a Python literal gets that far. Five pass it to sympy's
  parser, which evaluates it; here only numbers, operators and the names of functions do;
- a score outside [0, 1], or an exception while scoring, is 0.
"""

from __future__ import annotations

import ast
import dataclasses
import datetime
import decimal
import enum
import json
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from redistill.tasks.solutions import FACTS

BLOCK = 500
"""Items of one dataset object; some generators make all of an object's items at once."""
_BY_EVAL = frozenset({"string_insertion", "spiral_matrix", "binary_matrix", "n_queens"})
_ARITHMETIC = frozenset({"countdown", "puzzle24"})
_ALGEBRA = frozenset({"simple_integration", "intermediate_integration", "polynomial_multiplication"})
_FUNCTIONS = frozenset(
    [
        "sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "arcsin", "arccos", "arctan",
        "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "exp", "log", "ln", "sqrt", "Abs", "pi", "E",
    ]
)  # fmt: skip
_MAX_FORMULA = 1000


@lru_cache(maxsize=1)
def _datasets() -> Mapping[str, tuple[type, type]]:
    import reasoning_gym  # noqa: F401  registers the generators
    from reasoning_gym.factory import DATASETS

    return typing.cast(Mapping[str, tuple[type, type]], DATASETS)


def names() -> list[str]:
    """Names of all generators."""
    return sorted(_datasets())


def _as_json(value: Any) -> Any:
    """A default as a JSON value; raises TypeError for what has none."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (list, tuple)):
        return [_as_json(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{type(value).__name__} is not a plain value")


def _kind(hint: Any, default: Any) -> str:
    """Name of an option's type: int, float, bool, str, date, time, list[...], with " or none" when None is a choice."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = next(argument for argument in arguments if argument is not type(None))
        return _kind(inner, default) + " or none"
    if hint in (list, tuple) or origin in (list, tuple) or (origin is not None and isinstance(default, (list, tuple))):
        inner = arguments[0] if arguments else str
        return f"list[{_kind(inner, None)}]"
    if hint in (bool, int, float, datetime.date, datetime.time):
        return str(hint.__name__)
    if hint is str or origin is typing.Literal or (isinstance(hint, type) and issubclass(hint, enum.Enum)):
        return "str"
    raise TypeError(f"{hint} cannot be written as text")


def _fields(name: str) -> list[tuple[str, Any, Any]]:
    config = _datasets()[name][1]
    hints = typing.get_type_hints(config)
    found = []
    for field in dataclasses.fields(config):
        if field.name in ("seed", "size"):
            continue
        made = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        found.append((field.name, hints[field.name], made))
    return found


def describe(name: str) -> list[tuple[str, Any, str]]:
    """(option, default, type) of each option of a generator that can be written as text, in the generator's order."""
    if name == "composite":
        return [("datasets", [], "list[str]")]
    found = []
    for option, hint, default in _fields(name):
        try:
            found.append((option, _as_json(default), _kind(hint, default)))
        except TypeError:
            continue  # board formats and ranges of ranges: structures that stay at their defaults
    return found


def _typed(hint: Any, default: Any, value: Any) -> Any:
    """A JSON value as the generator wants it: enums, dates and tuples are rebuilt."""
    arguments = typing.get_args(hint)
    if isinstance(value, list):
        items = [_typed(arguments[0], None, item) if arguments else item for item in value]
        return tuple(items) if isinstance(default, tuple) else items
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint(value)
    if hint in (datetime.date, datetime.time):
        return hint.fromisoformat(value)
    if typing.get_origin(hint) is typing.Literal and value not in arguments:
        raise ValueError(f"{value!r} is not one of {', '.join(map(str, arguments))}")
    return value


def _build(name: str, options: Mapping[str, Any], seed: int) -> Any:
    dataset_class, config_class = _datasets()[name]
    if name == "composite":
        from reasoning_gym.composite import DatasetSpec

        values: dict[str, Any] = {"datasets": [DatasetSpec(part, 1.0, {}) for part in options.get("datasets", [])]}
    else:
        known = {option: (hint, default) for option, hint, default in _fields(name)}
        values = {option: _typed(*known[option], value) for option, value in options.items()}
    config = config_class(**values, seed=seed, size=BLOCK)
    if hasattr(config, "validate"):
        config.validate()
    return dataset_class(config)


@lru_cache(maxsize=8)
def _dataset(name: str, options: str, seed: int) -> Any:
    return _build(name, json.loads(options), seed)


@lru_cache(maxsize=1024)
def _entry(name: str, options: str, seed: int, index: int) -> dict[str, Any]:
    with decimal.localcontext():
        entry: dict[str, Any] = _dataset(name, options, seed)[index]
        return entry


def check(name: str, options: str) -> None:
    """Raise the generator's own error when it refuses `options` (JSON) or cannot make an item with them."""
    _entry(name, options, 0, 0)


def make(name: str, options: str, seed: int, index: int) -> dict[str, Any]:
    """Item `index` (0 to BLOCK-1) of the dataset of `seed`: question, answer (or None), source (the generator's
    name) and the facts that a worked solution needs."""
    entry = _entry(name, options, seed, index)
    metadata = entry.get("metadata", {})
    facts = {key: _as_json(metadata[key]) for key in FACTS if _is_plain(metadata.get(key))}
    source = metadata.get("source_dataset", name) if name == "composite" else name
    answer = entry["answer"]
    if source in _ALGEBRA and "Integral" in answer:
        answer = None  # sympy gave up: this is the question again, worth nothing as a solution
    return {"question": entry["question"], "answer": answer, "source": source, "facts": facts}


def _is_plain(value: Any) -> bool:
    try:
        return value is not None and json.dumps(_as_json(value)) is not None
    except TypeError:
        return False


def prepare(name: str, options: str, seed: int, index: int) -> None:
    """Make that item now, so that the time limit of `score` is for scoring alone."""
    _entry(name, options, seed, index)


def score(name: str, options: str, seed: int, index: int, answer: str) -> float:
    """Score in [0, 1] of `answer` for that item."""
    entry, dataset = _entry(name, options, seed, index), _dataset(name, options, seed)
    if name == "composite":
        name = entry["metadata"]["source_dataset"]
        dataset = dataset.datasets[name]
    right = entry["answer"]
    if name in _BY_EVAL and answer.strip() in entry["metadata"].get("valid_answers", [right.strip()]):
        return 1.0
    if name == "game_of_life_halting":
        return float(answer.strip().lower() == right.strip().lower())
    if not _may_be_scored(name, answer, entry):
        return 0.0
    from reasoning_gym.dataset import ProceduralDataset

    if type(dataset).score_answer is ProceduralDataset.score_answer:
        return float(answer.strip() == right.strip())
    try:
        with decimal.localcontext():
            decimal.getcontext().prec = getattr(dataset.config, "precision", 28)
            value = float(dataset.score_answer(answer, entry))
    except Exception:  # scorers are many and other people's: whatever one raises on a model's text is a score of 0
        return 0.0
    return value if math.isfinite(value) and 0.0 <= value <= 1.0 else 0.0


def _may_be_scored(name: str, answer: str, entry: Mapping[str, Any]) -> bool:
    """Whether a generator's scorer may see `answer` (see the module's text)."""
    if name in _BY_EVAL:
        return _is_literal(answer)
    if name in _ARITHMETIC:
        plain = len(answer) <= _MAX_FORMULA and re.fullmatch(r"[0-9+\-*/() .]+", answer) and "**" not in answer
        if name == "puzzle24":
            used = sorted(map(int, re.findall(r"[0-9]{1,9}", answer)))
            return bool(plain) and used == sorted(int(number) for number in entry["metadata"]["numbers"])
        return bool(plain)
    return name not in _ALGEBRA or _is_formula(answer)


def _is_literal(text: str) -> bool:
    try:
        return isinstance(ast.literal_eval(text.strip()), (list, tuple))
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return False


def _is_formula(text: str) -> bool:
    """Numbers of at most 12 digits, operators, brackets, one-letter names and known functions; nothing that looks
    inside."""
    if len(text) > _MAX_FORMULA or not re.fullmatch(r"[0-9A-Za-z+\-*/^() .,]+", text):
        return False
    words = re.findall(r"[A-Za-z][A-Za-z0-9]*", text)
    if any(len(word) > 1 and word not in _FUNCTIONS for word in words) or re.search(r"[0-9]{13}", text):
        return False
    return not re.search(r"\.\s*[A-Za-z]|[A-Za-z)]\s*\.", text)


def formulas(right: str, answer: str, boxed: bool) -> dict[str, bool]:
    """Whether math-verify reads `right` (`reference`) and `answer` (`read`) as formulas, and whether they are
    `equal`. Text around a formula is looked through for it only when there are words or dollar signs, so "x+1" is
    never read as 1."""
    from math_verify import parse, verify

    options: dict[str, Any] = {"fallback_mode": "no_fallback", "parsing_timeout": 0}
    gold = parse(f"\\boxed{{{right}}}", **options) or parse(right, **options)
    if not gold:
        return {"reference": False, "read": False, "equal": False}
    prose = not boxed and bool(re.search(r"\$|\\[(\[]|(?<![\\A-Za-z])[A-Za-z]{2,}", answer))
    given = parse(answer, **options) if prose else parse(f"\\boxed{{{answer}}}", **options)
    equal = bool(given) and bool(verify(gold, given, timeout_seconds=0))
    return {"reference": True, "read": bool(given), "equal": equal}


def matches(pattern: str, text: str) -> bool:
    """Whether the regular expression `pattern` matches all of `text`."""
    return re.fullmatch(pattern, text) is not None


OPERATIONS: Mapping[str, Callable[..., Any]] = types.MappingProxyType(
    {
        "names": names,
        "describe": describe,
        "check": check,
        "make": make,
        "prepare": prepare,
        "score": score,
        "formulas": formulas,
        "matches": matches,
    }
)
