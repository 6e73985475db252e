"""Image classification as a task: training images with their given (perhaps wrong) labels, clean held-out images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from redistill.core import rng
from redistill.core.naming import named
from redistill.core.options import option
from redistill.core.task import Prompt, Verdict
from redistill.errors import UserError
from redistill.vision.images import ImageSet, load_images


@dataclass(frozen=True)
class Digits:
    """Options of `digits`."""

    train: int = option(500, "training images, drawn by the run's seed", low=1)
    noise: float = option(0.0, "share of training labels redrawn uniformly over all classes", low=0, high=1)
    augment: int = option(1, "images are shifted by up to so many pixels each way; 0 is off", low=0)


@dataclass(frozen=True)
class Mnist5k(Digits):
    """Options of `mnist5k`."""

    train: int = option(2000, "training images, drawn by the run's seed", low=1)
    augment: int = option(2, "images are shifted by up to so many pixels each way; 0 is off", low=0)


KINDS: dict[str, type[Digits]] = {"digits": Digits, "mnist5k": Mnist5k}
"""Task names and their options."""


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """What one seed trains on: images (indices into the set), the labels given, and which of those are right."""

    image_N: NDArray[np.int64]
    label_N: NDArray[np.int64]
    right_N: NDArray[np.bool_]


class ImageTask:
    """Images of a set. An epoch is one pass over the training images in an order keyed by seed and epoch."""

    reward_range = (0.0, 1.0)
    wording = "english"

    def __init__(self, name: str, data: ImageSet, options: Digits) -> None:
        self.name, self.data, self.options = name, data, options
        if options.train > data.pool:
            raise UserError(f"task {name!r} option train={options.train} is more than the {data.pool} images there are")
        if options.augment >= data.side:
            raise UserError(
                f"task {name!r} option augment={options.augment} shifts whole images of {data.side} pixels away"
            )
        self._epoch = lru_cache(maxsize=8)(self._draw_epoch)
        self.training_set = lru_cache(maxsize=8)(self._draw_training_set)

    def _draw_training_set(self, seed: int) -> TrainingSet:
        count, noise = self.options.train, self.options.noise
        image_N = self.data.held_out + rng.permutation(self.data.pool, "vision-train", seed)[:count]
        true_N = self.data.label_N[image_N]
        redrawn_N = rng.uniform("vision-noise", seed, image_N) < noise
        drawn_N = (rng.uniform("vision-label", seed, image_N) * self.data.classes).astype(np.int64)
        label_N = np.where(redrawn_N, drawn_N, true_N)
        return TrainingSet(image_N, label_N, label_N == true_N)

    def _draw_epoch(self, seed: int, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The order [N] of an epoch's rows and the shift [N, 2] (down, right) of each position."""
        order_N = rng.permutation(self.options.train, "vision-order", seed, epoch)
        reach = self.options.augment
        u_N2 = rng.uniform("vision-shift", seed, epoch, np.arange(self.options.train)[:, None], np.arange(2)[None])
        return order_N, np.floor(u_N2 * (2 * reach + 1)).astype(np.int64) - reach

    def train(self, index: int, seed: int) -> Prompt:
        """The image at position `index` of the endless stream: its row in the training set, shift and given label."""
        epoch, at = divmod(index, self.options.train)
        order_N, shift_N2 = self._epoch(seed, epoch)
        chosen, row = self.training_set(seed), int(order_N[at])
        image, label = int(chosen.image_N[row]), int(chosen.label_N[row])
        return Prompt(
            uid=self.data.uid_N[image], content={"image": image, "shift": shift_N2[at].tolist()}, answer=str(label),
            data={"row": row, "right": bool(chosen.right_N[row]), "position": index},
        )  # fmt: skip

    def held_out(self, count: int) -> Sequence[Prompt]:
        """The first held-out images, unshifted, with their true labels."""
        return [
            Prompt(
                uid=self.data.uid_N[i], content={"image": i, "shift": [0, 0]}, answer=str(int(self.data.label_N[i])),
                data={"row": i, "right": True, "position": i},
            )
            for i in range(min(count, self.data.held_out))
        ]  # fmt: skip

    def verify(self, prompt: Prompt, answer: str) -> Verdict:
        """1 for the prompt's label, else 0."""
        return Verdict(float(answer.strip() == prompt.answer), format_ok=answer.strip().isdigit())


def load_task(text: str) -> ImageTask:
    """The task that `digits:train=500,noise=0.3` names. Raises UserError for anything unknown or out of range."""
    name, options = named(text, "vision task", KINDS)
    return ImageTask(name, load_images(name), options)
