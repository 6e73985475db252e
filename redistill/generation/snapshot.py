"""What the report shows of a generator through training: the images it makes of the same noises for the same prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

IMAGES = 20
"""Images that are made."""


def snapshot(labels: Sequence[int], bytes_nSS: Tensor, rewards: Sequence[float]) -> dict[str, Any]:
    """JSON values: each image (uint8 [n, S, S], hexadecimal here), the class it was asked for and its reward."""
    pictures = [
        {"hex": bytes(image_SS.flatten().tolist()).hex(), "side": len(image_SS), "caption": f"{label}: {reward:.2f}"}
        for label, image_SS, reward in zip(labels, bytes_nSS, rewards)
    ]
    return {"what": "Images of the same noises for the same prompts (the class, and the reward).", "pictures": pictures}
