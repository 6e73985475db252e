"""Counter-based randomness (law 10): a draw depends on its key alone, never on order, batching or resume.

The generator is SplitMix64's finaliser (Steele, Lea & Flood, OOPSLA 2014) folded over the parts of the key. There is no
hidden state, so there is nothing to save, restore or seed.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _as_words(part: Any) -> NDArray[np.uint64]:
    if isinstance(part, str):
        return np.asarray(int.from_bytes(hashlib.blake2b(part.encode(), digest_size=8).digest()), dtype=np.uint64)
    words = np.asarray(part)
    if words.size and words.dtype.kind not in "iub":  # numpy takes an empty range for floats
        raise TypeError(f"a key is made of whole numbers and strings, not {words.dtype}")
    return words.astype(np.int64).astype(np.uint64)


def bits(*key: Any) -> NDArray[np.uint64]:
    """64 random bits for a key of ints, strings and int arrays (broadcast together); shape is the broadcast shape."""
    with np.errstate(over="ignore"):
        state = np.asarray(0, dtype=np.uint64)
        for part in key:
            state = _mix((state ^ _as_words(part)) + _GAMMA)
        return _mix(state + _GAMMA)


def uniform(*key: Any) -> NDArray[np.float64]:
    """Uniform draws in [0, 1) with 53 bits, one for each key; shape is the broadcast shape of the key's parts."""
    return (bits(*key) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(size: int, *key: Any) -> NDArray[np.int64]:
    """A permutation of range(size) that is a pure function of the key."""
    return np.argsort(bits(*key, np.arange(size)), kind="stable")


def generator(*key: Any) -> np.random.Generator:
    """A numpy generator keyed like everything else, for the rare place that needs more than uniforms."""
    return np.random.Generator(np.random.Philox(key=int(bits(*key))))
