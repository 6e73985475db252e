"""A user's own verifier, in the helper process's side (see worker.py): it is given a model's text, may take for ever over it
or end the process, and the run must go on.

The function is found as `module:function`: in MODULE.py of the current folder, else in a module that can be imported. What
is wrong with it (no such module, no such function, an exception, a result that is none) comes back as a sentence.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from redistill.core.task import Prompt, Verdict
from redistill.errors import UserError, nearest
from redistill.tasks.hints import shorten


@lru_cache(maxsize=64)
def _function(folder: str, paths: tuple[str, ...], name: str) -> Callable[[Prompt, str], Any]:
    """The function called `name`; UserError when there is none."""
    module, _, function = name.partition(":")
    os.chdir(folder)
    # Last: a file of the user's must not hide a package.
    sys.path.extend(path for path in (*paths, folder) if path not in sys.path)
    judge: Any = getattr(made := _module(folder, name, module), function, None)
    if not callable(judge):
        known = [key for key, value in vars(made).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"verifier={name!r}: module {module!r} has no function {function!r}{nearest(function, known)}")
    found: Callable[[Prompt, str], Any] = judge
    return found


def _module(folder: str, name: str, module: str) -> ModuleType:
    path = Path(folder) / f"{module}.py"
    try:
        if path.is_file():  # read anew: another folder may have a file of that name
            spec = importlib.util.spec_from_file_location(module, path)
            assert spec is not None
            assert spec.loader is not None
            made = importlib.util.module_from_spec(spec)
            sys.modules[module] = made
            spec.loader.exec_module(made)
            return made
        if importlib.util.find_spec(module) is None:
            raise UserError(f"verifier={name!r}: there is no module {module!r} and no file {path.name} in this folder")
        return importlib.import_module(module)
    except UserError:
        raise
    except Exception as error:  # whatever the user's own module raises while it is imported
        raise UserError(
            f"verifier={name!r} cannot be imported: {type(error).__name__}: {shorten(str(error))}"
        ) from error


def find(folder: str, paths: Sequence[str], name: str) -> str | None:
    """Import the function; a sentence when that fails."""
    try:
        _function(folder, tuple(paths), name)
    except UserError as error:
        return str(error)
    return None


def judge(folder: str, paths: Sequence[str], name: str, prompt: Mapping[str, Any], reply: str) -> dict[str, Any]:
    """The verdict of the function on a reply: the fields of a Verdict, or {"problem": sentence}."""
    asked = Prompt(**prompt)
    try:
        verdict = _function(folder, tuple(paths), name)(asked, reply)
    except UserError as error:
        return {"problem": str(error)}
    except Exception as error:  # whatever the user's function raises on a model's text
        told = f"{type(error).__name__}: {shorten(str(error))}"
        return {"problem": f"verifier={name!r} failed on prompt {asked.uid}: {told}"}
    if isinstance(verdict, (int, float)) and math.isfinite(verdict):
        return asdict(Verdict(float(verdict), answer=reply or None))  # it reads no answer out: the reply is the answer
    if not isinstance(verdict, Verdict):
        return {"problem": f"verifier={name!r} must return a Verdict or a finite number, got {shorten(repr(verdict))}"}
    return asdict(verdict)


OPERATIONS: Mapping[str, Callable[..., Any]] = MappingProxyType({"find": find, "judge": judge})
