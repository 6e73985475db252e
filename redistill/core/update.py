"""One update: measure, weigh, divide by global counts, step. The only place that back-propagates."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from redistill.core.domain import Domain
from redistill.core.ranks import total
from redistill.core.signal import Losses, Signal
from redistill.objectives.reduce import step_weights


@dataclass
class Tally:
    """(sum, count) pairs by name; a mean is taken once, at the end."""

    pairs: dict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0]))

    def add(self, name: str, value: float, count: float) -> None:
        """Add a sum over `count` items."""
        self.pairs[name][0] += value
        self.pairs[name][1] += count

    def means(self) -> dict[str, float]:
        """Mean of each name that has a count."""
        return {name: value / count for name, (value, count) in self.pairs.items() if count}


def accumulate(signal: Signal, domain: Domain, tally: Tally) -> float:
    """Add the gradient of a whole signal to its player's parameters and return the loss.

    Every micro-batch contributes sum(w * loss) / count with the count of the whole signal (over all ranks), so the
    gradient does not depend on how the rows are cut (law 1). Steps that no term covers are not measured.
    """
    lengths = signal.lengths
    weighted = [step_weights(term.normaliser, lengths, term.mask_N, term.weight_N) for term in signal.terms]
    counts = [total(count) for _, count in weighted]
    quantities = list(dict.fromkeys(q for term in signal.terms for q in term.quantities()))
    loss = 0.0
    for rows in domain.micro_batches(signal):
        at_n = signal.steps_of(rows)
        if not len(at_n):
            continue
        measured = domain.measure(signal, rows, quantities)
        for name, (value, count) in measured.observed.items():
            tally.add(name, value, count)
        partial = None
        for term, (w_N, _), count in zip(signal.terms, weighted, counts):
            if count == 0:
                continue
            losses = term.losses(measured.values, at_n, [lengths[row] for row in rows])
            w_n = w_N[at_n].to(losses.loss_n)
            # A masked step contributes exactly nothing, even where its loss is not finite.
            kept_n = torch.where(w_n != 0, losses.loss_n, losses.loss_n.detach().new_zeros(()))
            value = term.coefficient * (w_n * kept_n).sum() / count
            partial = value if partial is None else partial + value
            _observe(tally, term.name, losses, w_N[at_n] != 0)
        if partial is not None:
            loss += float(partial.detach())
            if partial.requires_grad and math.isfinite(float(partial.detach())):
                partial.backward()
    return loss


def _observe(tally: Tally, name: str, losses: Losses, active_n: Tensor) -> None:
    for what, observed_n in losses.observed.items():
        tally.add(f"{name}/{what}", float(observed_n[active_n].double().sum()), float(active_n.sum()))


def update(signal: Signal, domain: Domain, minibatches: int = 1) -> dict[str, float]:
    """Do the update(s) of one signal: one step, or one for each of `minibatches` consecutive pieces of its rows.

    Returns means for the log. A non-finite loss or gradient skips the step and counts it (`skipped` in the result).
    """
    player = domain.players[signal.player]
    tally, skipped = Tally(), 0
    for rows in cut(len(signal.rows), minibatches):
        piece = signal if minibatches == 1 else signal.subset(rows)
        active = [term.mask_N is None or bool(term.mask_N.any()) for term in piece.terms]
        if not piece.rows or not sum(piece.lengths) or not any(active):
            tally.add("empty_updates", 1.0, 1.0)
            continue
        loss = accumulate(piece, domain, tally)
        sum_gradients(player.parameters)
        tally.add("loss", loss, 1.0)
        if not math.isfinite(loss):
            player.skip()
            skipped += 1
            continue
        norm, stepped = player.step()
        skipped += not stepped
        if stepped:
            tally.add("grad_norm", norm, 1.0)
    return {**tally.means(), "skipped": float(skipped)}


def cut(count: int, pieces: int) -> list[Sequence[int]]:
    """range(count) in `pieces` consecutive, nearly equal parts; empty parts are left out."""
    edges = [round(piece * count / pieces) for piece in range(pieces + 1)]
    return [range(low, high) for low, high in zip(edges, edges[1:]) if high > low]


def sum_gradients(parameters: Mapping[str, torch.nn.Parameter]) -> None:
    """Add up gradients over data-parallel ranks (counts are global already, so a sum is the mean's gradient)."""
    for parameter in parameters.values():
        if parameter.grad is not None:
            total(parameter.grad)
