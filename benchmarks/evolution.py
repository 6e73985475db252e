"""Finds what evolves: a fingerprint of everything that can be reached from an object, by path, with the class that holds it."""

from __future__ import annotations

import functools
import hashlib
import io
import random
import sys
import types
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any

import numpy as np
import torch

PLAIN = (bool, int, float, complex, str, bytes, type(None), Enum, torch.dtype, torch.device, torch.Size)
CLOSED = (type, types.ModuleType, io.IOBase)
SEQUENCES = (list, tuple, set, frozenset, deque)


class Mark(str):
    """A fingerprint, and the name of the class whose attribute it is of."""

    holder: str = ""


def _mark(text: str, holder: str) -> Mark:
    mark = Mark(text)
    mark.holder = holder
    return mark


def _digest(tensor: torch.Tensor) -> str:
    dense = tensor.detach() if tensor.layout == torch.strided else tensor.detach().to_dense()
    return hashlib.sha256(dense.contiguous().numpy().tobytes()).hexdigest()


def _label(key: Any) -> str:
    """A key as a path; an optimiser's keys are parameters, told apart by what they hold."""
    return _digest(key)[:12] if isinstance(key, torch.Tensor) else repr(key)


def _leaf(value: Any) -> str | None:
    """The fingerprint of what has no parts; None for anything else. Generators of random numbers count as what they hold."""
    if isinstance(value, PLAIN):
        return repr(value)
    if isinstance(value, torch.Tensor):
        return _digest(value)
    if isinstance(value, np.ndarray):
        return hashlib.sha256(value.tobytes()).hexdigest()
    if isinstance(value, torch.Generator):
        return _digest(value.get_state())
    if isinstance(value, random.Random):
        return repr(value.getstate())
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return repr(value.get_state())
    return None


def _hidden(value: Any) -> Iterator[tuple[str, Any]]:
    """What a function, a bound method, a running generator or an iterator holds beside its attributes."""
    if isinstance(value, types.FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or ()):
            if cell is not None and not _empty(cell):
                yield f"<{name}>", cell.cell_contents
    elif isinstance(value, (types.MethodType, types.BuiltinMethodType)):
        yield ".__self__", value.__self__
    elif isinstance(value, functools.partial):
        yield ".args", (value.func, value.args, value.keywords)
    elif isinstance(value, types.GeneratorType):
        yield ".at", (value.gi_frame.f_lasti, dict(value.gi_frame.f_locals)) if value.gi_frame else None
    elif isinstance(value, Iterator) and not hasattr(value, "__dict__"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                yield ".at", value.__reduce__()[1:]
            except TypeError:
                return


def _empty(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is None
    except ValueError:
        return True


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield f"[{_label(key)}]", entry
    elif isinstance(value, SEQUENCES):
        for number, entry in enumerate(sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value):
            yield f"[{number}]", entry
    yield from _hidden(value)
    slots = (name for kind in type(value).__mro__ for name in _slots(kind) if hasattr(value, name))
    for name in slots:
        yield f".{name}", getattr(value, name)
    for name, entry in getattr(value, "__dict__", {}).items():
        yield f".{name}", entry


def _slots(kind: type) -> Iterable[str]:
    """Attributes that a class of Python keeps in slots."""
    named = vars(kind).get("__slots__", ())
    return [name for name in ((named,) if isinstance(named, str) else named) if not name.startswith("__")]


def fingerprints(roots: Mapping[str, Any]) -> dict[str, Mark]:
    """Path -> fingerprint of every number, text, tensor and random generator that can be reached from the roots."""
    found: dict[str, Mark] = {}
    seen: set[int] = set()
    kept: list[Any] = []  # so that ids stay taken
    waiting = [(name, value, "root") for name, value in roots.items()]
    while waiting:
        path, value, holder = waiting.pop()
        if isinstance(value, PLAIN):
            found[path] = _mark(repr(value), holder)
            continue
        if id(value) in seen or isinstance(value, CLOSED):
            continue
        if not isinstance(value, tuple):  # whether two places share a tuple or hold equal ones is no difference
            seen.add(id(value))
        kept.append(value)
        leaf = _leaf(value)
        if leaf is None:
            own = type(value).__name__
            container = isinstance(value, (Mapping, *SEQUENCES)) and not hasattr(value, "__dict__")
            waiting += [(path + name, entry, holder if container else own) for name, entry in _parts(value)]
            continue
        found[path] = _mark(leaf, holder)
        if isinstance(value, torch.Tensor) and value.is_leaf and value.grad is not None:
            waiting.append((f"{path}.grad", value.grad, holder))
    return found


def differences(one: Mapping[str, str], other: Mapping[str, str]) -> set[str]:
    """Paths whose fingerprints differ, or that only one of them has."""
    return {path for path in one.keys() | other.keys() if one.get(path) != other.get(path)}


def of_the_process(package: str = "redistill") -> dict[str, Any]:
    """What belongs to no object: the global random generators, and what the package's modules and classes hold."""
    found: dict[str, Any] = {
        "random of torch": torch.get_rng_state(), "random of numpy": repr(np.random.get_state()),  # noqa: NPY002
        "random of Python": repr(random.getstate()),
    }  # fmt: skip
    for name, module in list(sys.modules.items()):
        if module is None or name.partition(".")[0] != package:
            continue
        for key, value in vars(module).items():
            if isinstance(value, type) and value.__module__ == name:
                for own, held in vars(value).items():
                    if not (own.startswith("__") or own == "_abc_impl" or callable(held) or isinstance(held, property)):
                        found[f"{name}.{key}.{own}"] = held
            elif not (key.startswith("__") or callable(value) or isinstance(value, types.ModuleType)):
                found[f"{name}.{key}"] = value
    return found
