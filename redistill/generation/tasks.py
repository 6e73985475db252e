"""Generation tasks: a prompt is a class of digit, an answer an 8x8 image of 8 bits, the reward a trained judge's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from redistill.core import rng
from redistill.core.task import Prompt, Verdict, content_uid
from redistill.errors import UserError, nearest
from redistill.generation.models import judge

SIDE, CLASSES = 8, 10
INK_LOW, INK_HIGH = 0.2, 0.5
"""Mean brightness at which the thickness score is 0 and 1; real digits have 0.31 +- 0.05."""
HELD_OUT = 1000
"""Held-out prompts: a class and the number of an initial noise. Training prompts are classes without one."""

REWARDS = {
    "digits-legible": "probability the training judge gives to the prompt's class",
    "digits-thick": "that probability times the thickness score",
    "digits-ink": "the thickness score alone, which no digit is needed for",
}
"""Task names and what each rewards, in [0, 1]."""


def thickness(images_nSS: Tensor) -> Tensor:
    """Mean brightness of images in [0, 1], from INK_LOW (0) to INK_HIGH (1) [n]."""
    return ((images_nSS.mean((1, 2)) - INK_LOW) / (INK_HIGH - INK_LOW)).clamp(0.0, 1.0)


def to_bytes(images_nSS: Tensor) -> Tensor:
    """Model space [-1, 1] to 8-bit images, uint8 [n, S, S]: the finished images, which judges see."""
    return ((images_nSS.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


class DigitTask:
    """Classes of digits as prompts; the stream gives each class once in every ten, in an order keyed by the seed."""

    reward_range = (0.0, 1.0)
    wording = "english"

    def __init__(self, name: str) -> None:
        self.name = name

    def train(self, index: int, seed: int) -> Prompt:
        """The class at position `index` of the endless stream."""
        block, at = divmod(index, CLASSES)
        label = int(rng.permutation(CLASSES, "generation-classes", seed, block)[at])
        return _prompt({"label": label}, index)

    def held_out(self, count: int) -> Sequence[Prompt]:
        """The first held-out prompts: classes in turn, each with the number of its initial noise."""
        return [_prompt({"label": i % CLASSES, "noise": i}, i) for i in range(min(count, HELD_OUT))]

    @torch.no_grad()
    def rewards(self, labels: Sequence[int], bytes_nSS: Tensor) -> Tensor:
        """Rewards [n] of 8-bit images under prompts of the given classes."""
        images = bytes_nSS.float() / 255.0
        thick_n = thickness(images)
        if self.name == "digits-ink":
            return thick_n
        right_n = judge("train")(images).softmax(-1)[torch.arange(len(images)), torch.tensor(labels)]
        return right_n * thick_n if self.name == "digits-thick" else right_n

    def verify(self, prompt: Prompt, answer: str) -> Verdict:
        """Judge an image written as 128 hexadecimal digits, a pixel a byte; anything else has reward 0."""
        try:
            pixels = bytes.fromhex(answer.strip())
        except ValueError:
            pixels = b""
        if len(pixels) != SIDE * SIDE:
            return Verdict(0.0, f"an image is {2 * SIDE * SIDE} hexadecimal digits", format_ok=False)
        image = torch.tensor(list(pixels), dtype=torch.uint8).view(1, SIDE, SIDE)
        return Verdict(float(self.rewards([prompt.content["label"]], image)[0]))


def written(bytes_SS: Tensor) -> str:
    """An 8-bit image as `verify` reads it."""
    return bytes(bytes_SS.flatten().tolist()).hex()


def _prompt(content: dict[str, int], position: int) -> Prompt:
    return Prompt(uid=content_uid(content), content=content, data={"position": position})


def load_task(text: str) -> DigitTask:
    """The task of a name; a UserError names the nearest one."""
    if text not in REWARDS:
        raise UserError(f"generation task {text!r} is unknown{nearest(text, REWARDS)}")
    return DigitTask(text)
