"""Finds what evolves: a fingerprint of everything that can be reached from an object, by path."""

from __future__ import annotations

import hashlib
import io
import types
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

import numpy as np
import torch

PLAIN = (bool, int, float, complex, str, bytes, type(None), Enum, torch.dtype, torch.device, torch.Size)
CLOSED = (type, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType, io.IOBase)


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()


def _label(key: Any) -> str:
    """A key as a path; an optimiser's keys are parameters, told apart by what they hold."""
    return _digest(key)[:12] if isinstance(key, torch.Tensor) else repr(key)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield f"[{_label(key)}]", entry
    elif isinstance(value, (list, tuple, set, frozenset)):
        for number, entry in enumerate(sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value):
            yield f"[{number}]", entry
    for name, entry in getattr(value, "__dict__", {}).items():
        yield f".{name}", entry


def fingerprints(roots: Mapping[str, Any]) -> dict[str, str]:
    """Path -> fingerprint of every number, text and tensor that can be reached from the roots."""
    found: dict[str, str] = {}
    seen: set[int] = set()
    kept: list[Any] = []  # so that ids stay taken
    waiting = list(roots.items())
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, PLAIN):
            found[path] = repr(value)
            continue
        if id(value) in seen or isinstance(value, CLOSED):
            continue
        seen.add(id(value))
        kept.append(value)
        if isinstance(value, torch.Tensor):
            found[path] = _digest(value)
            if value.is_leaf and value.grad is not None:
                waiting.append((f"{path}.grad", value.grad))
        elif isinstance(value, np.ndarray):
            found[path] = hashlib.sha256(value.tobytes()).hexdigest()
        else:
            waiting += [(path + name, entry) for name, entry in _parts(value)]
    return found


def differences(one: Mapping[str, str], other: Mapping[str, str]) -> set[str]:
    """Paths whose fingerprints differ, or that only one of them has."""
    return {path for path in one.keys() | other.keys() if one.get(path) != other.get(path)}
