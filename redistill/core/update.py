"""One update: measure, weigh, divide by global counts, step. The only place that back-propagates."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from redistill.core.domain import Domain
from redistill.core.episode import Episode
from redistill.core.ranks import total
from redistill.core.signal import Limit, LogProb, Losses, Signal, Values
from redistill.objectives.reduce import step_weights


@dataclass
class Tally:
    """(sum, count) pairs by name; a mean is taken once, at the end."""

    pairs: dict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0]))

    def add(self, name: str, value: float, count: float) -> None:
        """Add a sum over `count` items."""
        self.pairs[name][0] += value
        self.pairs[name][1] += count

    def merge(self, other: Tally) -> None:
        """Add all pairs of another tally."""
        for name, (value, count) in other.pairs.items():
            self.add(name, value, count)

    def means(self) -> dict[str, float]:
        """Mean of each name that has a count."""
        return {name: value / count for name, (value, count) in self.pairs.items() if count}


def accumulate(signal: Signal, domain: Domain, tally: Tally, same: bool = False) -> float:
    """Add the gradient of a whole signal to its player's parameters and return the loss.

    Every micro-batch contributes sum(w * loss) / count with the count of the whole signal (over all ranks), so the
    gradient does not depend on how the rows are cut (law 1). Steps that no term covers are not measured. `same` says that
    the weights are still those that sampled: then `sampler_gap` is observed where a term asks for log-probs.
    """
    lengths = signal.lengths
    weighted = [step_weights(term.normaliser, lengths, term.mask_N, term.weight_N) for term in signal.terms]
    # A constant is the divisor of the whole update, however many ranks share it.
    counts = [c if t.normaliser.name == "constant" else total(c) for t, (_, c) in zip(signal.terms, weighted)]
    quantities = list(dict.fromkeys(q for term in signal.terms for q in term.quantities()))
    loss = 0.0
    for rows in domain.micro_batches(signal):
        at_n = signal.steps_of(rows)
        if not len(at_n):
            continue
        measured = domain.measure(signal, rows, quantities)
        for name, (value, count) in measured.observed.items():
            tally.add(name, value, count)
        if same and LogProb() in measured.values:
            _compare(tally, [signal.rows[row] for row in rows], measured.values[LogProb()].detach())
        partial: Tensor | None = None
        for term, (w_N, _), divisor in zip(signal.terms, weighted, counts):
            if divisor == 0:
                continue
            active_n = w_N[at_n] != 0
            losses = term.losses(_guarded(measured.values, active_n), at_n, [lengths[row] for row in rows])
            w_n = w_N[at_n].to(losses.loss_n)
            # A masked step contributes exactly nothing, even where its loss is not finite.
            kept_n = torch.where(active_n, losses.loss_n, losses.loss_n.detach().new_zeros(()))
            share = term.coefficient * (w_n * kept_n).sum() / divisor
            asked = (w_n * kept_n.detach()).abs().sum()
            tally.add("signal", abs(term.coefficient) * float(asked / divisor), 0.0)
            partial = share if partial is None else partial + share
            _observe(tally, term.name, losses, active_n)
        if partial is not None:
            loss += float(partial.detach())
            if partial.requires_grad and math.isfinite(float(partial.detach())):
                partial.backward()
    return loss


def _guarded(values: Values, active_n: Tensor) -> Values:
    """The values, such that what a masked step sends back is dropped where it is not finite: a zero weight alone would
    turn an infinite slope (or a NaN that stands for "unknown") into NaN in the gradient of its neighbours."""
    if bool(active_n.all()):
        return values

    def drop(grad_n: Tensor) -> Tensor:
        return torch.where(active_n | grad_n.isfinite(), grad_n, torch.zeros_like(grad_n))

    guarded = {}
    for quantity, value_n in values.items():
        guarded[quantity] = value_n
        if value_n.requires_grad:
            guarded[quantity] = value_n.view_as(value_n)
            guarded[quantity].register_hook(drop)
    return guarded


def _compare(tally: Tally, rows: Sequence[Episode], logp_n: Tensor) -> None:
    """Observe `sampler_gap`, the mean distance of the log-probs that the sampler recorded from the trainer's own, over the
    rows that are trained as they were sampled (a truncated sampler renormalises: its log-probs are others)."""
    pairs = [
        (row.behaviour_logp_T, own_n)
        for row, own_n in zip(rows, logp_n.split([row.steps for row in rows]))
        if row.behaviour_logp_T is not None
        and row.sampled_under == row.trained_under
        and not getattr(row.sampling, "truncated", False)
    ]
    if pairs:
        gap_n = torch.cat([recorded.to(own) - own for recorded, own in pairs])
        tally.add("sampler_gap", float(gap_n.abs().double().sum()), float(len(gap_n)))


def _observe(tally: Tally, name: str, losses: Losses, active_n: Tensor) -> None:
    for what, observed_n in losses.observed.items():
        tally.add(f"{name}/{what}", float(observed_n[active_n].double().sum()), float(active_n.sum()))


def update(
    signal: Signal, domain: Domain, minibatches: int = 1, orders: Sequence[Sequence[int]] | None = None
) -> dict[str, float]:
    """Do the update(s) of one signal: one step, or one for each of `minibatches` consecutive pieces of its rows; so for
    each of `orders` (an epoch is one order of the rows; None is one epoch, as they are), until the signal's limit.

    Returns means for the log. A non-finite loss or gradient skips the step and counts it (`skipped` in the result).
    Over several ranks every decision is taken on sums over them, so that all do the same, those without rows too.
    """
    player = domain.players[signal.player]
    tally, skipped = Tally(), 0
    epochs = [range(len(signal.rows))] if orders is None else orders
    for rows in [[order[i] for i in part] for order in epochs for part in cut(len(signal.rows), minibatches)]:
        whole = minibatches == 1 and len(epochs) == 1
        piece = (signal if whole else signal.subset(rows)).prepared()
        steps = sum(piece.lengths)
        active = any(steps if term.mask_N is None else bool(term.mask_N.any()) for term in piece.terms)
        if not total(torch.tensor(float(active))):
            tally.add("empty_updates", 1.0, 1.0)
            continue
        seen = Tally()
        # Before the first update sampler and trainer have the same weights: what is left between them is an error.
        same = "loss" not in tally.pairs
        own = accumulate(piece, domain, seen, same)
        loss, asked = total(torch.tensor([own, seen.pairs["signal"][0]], dtype=torch.float64)).tolist()
        seen.pairs["signal"] = [asked, 1.0]
        tally.merge(seen)
        if piece.limit is not None and beyond(seen, piece.limit):
            player.optimiser.zero_grad(set_to_none=True)
            tally.add("stopped_early", 1.0, 1.0)
            break
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


def beyond(seen: Tally, limit: Limit) -> bool:
    """Whether the mean of what a mini-batch observed (over all ranks) is above the limit's bound. Raises ValueError for a
    name that no term observes: the limit would never act."""
    value, count = total(torch.tensor(seen.pairs.get(limit.observed, [0.0, 0.0]), dtype=torch.float64)).tolist()
    if not count:
        raise ValueError(f"the limit looks at {limit.observed!r}, which no term of the signal observed")
    return bool(value / count > limit.bound)


def cut(count: int, pieces: int) -> list[Sequence[int]]:
    """range(count) in exactly `pieces` consecutive, nearly equal parts, some of them empty when there are few: every
    rank takes part in every update, whatever it holds."""
    edges = [round(piece * count / pieces) for piece in range(pieces + 1)]
    return [range(low, high) for low, high in pairwise(edges)]


def sum_gradients(parameters: Mapping[str, torch.nn.Parameter]) -> None:
    """Add up gradients over data-parallel ranks (counts are global already, so a sum is the mean's gradient). A rank
    that has none for a parameter adds zeros; a parameter that has none anywhere keeps none."""
    present = total(torch.tensor([float(parameter.grad is not None) for parameter in parameters.values()]))
    for parameter, holders in zip(parameters.values(), present.tolist()):
        if holders:
            parameter.grad = total(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
