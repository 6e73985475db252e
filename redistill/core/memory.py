"""Memory that was freed, given back to the system."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable

__all__ = ["give_back"]


@functools.cache
def _trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back() -> None:
    """Return freed memory to the system where the C library keeps it (glibc holds on to blocks below 32 MB, which is what a
    small model's weights and activations are); elsewhere nothing happens."""
    trim = _trim()
    if trim is not None:
        trim(0)
