"""Teacher hacking (arXiv 2502.02671) as numbers: what the distances to teacher (proxy) and oracle (golden) did as training went on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from redistill.core.state import Piece


def rise(values: Sequence[float]) -> float:
    """How far the last value is above the lowest so far; 0 or more."""
    return values[-1] - min(values)


def departure(steps: Sequence[int], values: Sequence[float]) -> float:
    """How far the values have left the power law of their beginning: log v = a + b log step fitted to the first third of the
    points (least squares), mean residual over the last third. 0 for a power law, above it for a curve that flattens or
    turns up. Points at step 0 or below value 0 are left out; fewer than six points give 0."""
    points = [(math.log(step), math.log(value)) for step, value in zip(steps, values) if step > 0 and value > 0]
    third = len(points) // 3
    if third < 2:
        return 0.0
    xs, ys = zip(*points[:third])
    middle_x, middle_y = sum(xs) / third, sum(ys) / third
    spread = sum((x - middle_x) ** 2 for x in xs)
    slope = sum((x - middle_x) * (y - middle_y) for x, y in zip(xs, ys)) / spread
    return sum(y - (middle_y + slope * (x - middle_x)) for x, y in points[-third:]) / third


@dataclass
class History:
    """The distances at every evaluation so far."""

    points: list[tuple[int, float, float]] = field(default_factory=list)

    def add(self, step: int, proxy: float, golden: float) -> dict[str, float]:
        """Keep a point (one for each step: the last evaluation of a run may be at a step that has one); what all of them say."""
        self.points = [point for point in self.points if point[0] != step] + [(step, proxy, golden)]
        steps, proxies, goldens = zip(*self.points)
        found = {"golden_rise": rise(goldens), "proxy_rise": rise(proxies), "departure": departure(steps, proxies)}
        return {**found, "hacking": found["golden_rise"] - found["proxy_rise"]}

    def state(self) -> Piece:
        """All points."""
        return Piece(facts={"points": [list(point) for point in self.points]})

    def restore(self, piece: Piece) -> None:
        """Load them."""
        self.points = [(int(step), float(proxy), float(golden)) for step, proxy, golden in piece.facts["points"]]
