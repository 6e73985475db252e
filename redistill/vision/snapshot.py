"""What the report shows of a classifier through training: the same held-out images, what it calls them, and how sure it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from redistill.core.task import Prompt

IMAGES = 20
"""Held-out images that are shown."""
ImageContext = tuple[int, int, int]


def snapshot(
    prompts: Sequence[Prompt],
    read: Callable[[Sequence[ImageContext]], Tensor],
    log_probs: Callable[[Sequence[ImageContext]], Tensor],
) -> dict[str, Any]:
    """JSON values: for each prompt its pixels (hexadecimal, a byte each), what the student says and whether it is right."""
    contexts = [(prompt.content["image"], 0, 0) for prompt in prompts]
    pixels_nSS = (read(contexts).clamp(0.0, 1.0) * 255.0).round().int()
    best = log_probs(contexts).exp().max(-1)
    pictures = [
        {
            "hex": bytes(image_SS.flatten().tolist()).hex(), "side": len(image_SS), "caption": f"{said} ({p:.0%})",
            "right": str(said) == prompt.answer,
        }
        for prompt, image_SS, p, said in zip(prompts, pixels_nSS, best.values.tolist(), best.indices.tolist())
    ]  # fmt: skip
    return {"what": "The same held-out images: what the student calls them, and how sure it is.", "pictures": pictures}
