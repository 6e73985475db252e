"""Tasks from text: `chain_sum`, `chain_sum:min_terms=2,max_terms=4`, `sums:terms=4`, `data.jsonl:verifier=math`,
`confident+sums`.

Values are read by the option's type; a list is `[a|b]`; a value with commas is put in double quotes.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_type_hints

from redistill.core.task import Task
from redistill.errors import UserError, nearest

Option = tuple[str, Any, str]
"""(name, default, type)."""
_FILE = re.compile(r"^(.*?\.(?:jsonl|parquet))(?::(.*))?$", re.DOTALL)
_GYM_OPTIONS: Sequence[Option] = (("answer_format", "plain", "str"), ("system", None, "str or none"))
_FILE_OPTIONS: Sequence[Option] = (
    ("verifier", "exact", "str"), *_GYM_OPTIONS, ("low", 0.0, "float"), ("high", 1.0, "float"),
    ("partial", False, "bool"), ("seconds", 2, "int"), ("memory_mb", 256, "int"), ("unsafe_exec", False, "bool"),
)  # fmt: skip


def _own() -> dict[str, type[Any]]:
    """The tasks that are dataclasses of ours, by name."""
    from redistill.tasks.code import Code
    from redistill.tasks.mixture import Mixture
    from redistill.tasks.sokoban import Sokoban
    from redistill.tasks.sums import Sums
    from redistill.tasks.tools import Tools

    return {kind.name: kind for kind in (Sums, Sokoban, Tools, Mixture, Code)}


CONFIDENT = "confident+"
"""Before a task's name: its answers end in a stated confidence (tasks/confidence.py)."""


def task_names() -> list[str]:
    """Names that `load_task` knows beside paths of files: our own (`sums`, ...) and every reasoning-gym generator."""
    from redistill.tasks.gym import gym_names

    return sorted([*gym_names(), *_own()])


def task_options(name: str) -> list[Option]:
    """(option, default, type) of each option of the task `name` or of a file's path, in order. Raises UserError for an
    unknown name."""
    if _FILE.match(name):
        return list(_FILE_OPTIONS)
    if name in (own := _own()):
        hints = get_type_hints(own[name])
        fields = [field for field in dataclasses.fields(own[name]) if field.init]
        return [(field.name, field.default, hints[field.name].__name__) for field in fields]
    names = task_names()
    if name not in names:
        raise UserError(f"task {name!r} is unknown{nearest(name, names)}")
    from redistill.tasks.gym import gym_options

    return [*gym_options(name), *_GYM_OPTIONS]


def load_task(spec: str) -> Task:
    """The task that `spec` names (see the module's text). Raises UserError for anything unknown, malformed or out of
    range."""
    if spec.startswith(CONFIDENT):
        from redistill.tasks.confidence import Confident

        return Confident(load_task(spec.removeprefix(CONFIDENT)))
    match = _FILE.match(spec)
    name, text = (match.group(1), match.group(2)) if match else (spec.partition(":")[0], spec.partition(":")[2])
    if not name.strip():
        raise UserError("task is empty: name a task such as chain_sum, or the path of a .jsonl or .parquet file")
    if match is None and (re.search(r"[/\\]", name) or re.search(r"\.[a-z]{1,7}$", name)):
        raise UserError(f"task file {name!r} must end in .jsonl or .parquet")
    known = {option: (default, kind) for option, default, kind in task_options(name)}
    options = {key: parse_value(name, key, value, known[key][1]) for key, value in _pairs(name, text or "", known)}
    if match:
        from redistill.tasks.files import FileTask

        return FileTask(name, **options)
    if name in (own := _own()):
        made: Task = own[name](**options)
        return made
    from redistill.tasks.gym import GymTask

    common = {key: options.pop(key) for key, _, _ in _GYM_OPTIONS if key in options}
    return GymTask(name, options, **common)


def unsafe(spec: str | None) -> str:
    """`spec` with unsafe_exec=true: what the flag --unsafe-exec means. Raises UserError for a task that runs no programs."""
    if spec is None:
        raise UserError("--unsafe-exec needs a --task that runs programs, such as code or data.jsonl:verifier=code")
    match = _FILE.match(spec)
    name, options = (match.group(1), match.group(2)) if match else (spec.partition(":")[0], spec.partition(":")[2])
    if not any(option == "unsafe_exec" for option, _, _ in task_options(name)):
        raise UserError(f"--unsafe-exec is for tasks that run programs, and {name!r} runs none")
    return f"{name}:{options + ',' if options else ''}unsafe_exec=true"


def _pairs(name: str, text: str, known: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Split "key=value,key=[a|b],key="a, b"" and check the keys."""
    found: dict[str, str] = {}
    for part in re.findall(r'(?:[^,"\[]|"[^"]*"|\[[^\]]*\]|["\[])+', text):
        key, equals, value = part.partition("=")
        key, value = key.strip(), value.strip()
        if not equals or not key:
            raise UserError(f"task {name!r} option {part.strip()!r} is not of the form key=value")
        if key not in known:
            raise UserError(f"task {name!r} has no option {key!r} (given {key}={value}){_reason(key, known)}")
        if key in found:
            raise UserError(f"task {name!r} option {key!r} is given twice: {found[key]} and {value}")
        found[key] = value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value
    if text.strip(" ,") != text.strip() or (text and not found):
        raise UserError(f"task {name!r} options {text!r} are not of the form key=value,key=value")
    return list(found.items())


def _reason(key: str, known: Mapping[str, Any]) -> str:
    return ": the run's seed decides" if key in ("seed", "size") else nearest(key, known)


def parse_value(task: str, key: str, text: str, kind: str) -> Any:
    """`text` as a value of type `kind`: int, float, bool, str, date, time, list[...], each with " or none". Raises
    UserError."""
    where = f"task {task!r} option {key}={text!r}"
    inner = kind.removesuffix(" or none")
    if inner != kind and text.lower() == "none":
        return None
    if inner.startswith("list["):
        if not (text.startswith("[") and text.endswith("]")):
            raise UserError(f"{where} must be a list: write [a|b]")
        parts = [part.strip() for part in text[1:-1].split("|")] if text[1:-1].strip() else []
        return [parse_value(task, key, part, inner[5:-1]) for part in parts]
    if inner == "bool":
        if text.lower() not in ("true", "false"):
            raise UserError(f"{where} must be true or false")
        return text.lower() == "true"
    try:
        if inner == "int":
            return int(text)
        if inner == "float":
            return _finite(text)
        if inner in ("date", "time"):
            (datetime.date if inner == "date" else datetime.time).fromisoformat(text)
    except ValueError:
        told = {
            "int": "a whole number",
            "float": "a number",
            "date": "a date like 1999-12-31",
            "time": "a time like 23:59",
        }
        raise UserError(f"{where} must be {told[inner]}") from None
    if not text:
        raise UserError(f"{where} must not be empty")
    return text


def _finite(text: str) -> float:
    value = float(text)
    if value - value != 0.0:
        raise ValueError(text)
    return value
