"""The one place where losses meet counts (pitfalls 1, 4-7, 31, 33): weights per step and one global count for each term."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from redistill.core.specs import Normaliser


def step_weights(
    normaliser: Normaliser, lengths: Sequence[int], mask_N: Tensor | None, weight_N: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return (w_N, count): the term's value is sum(w * loss) / count, both taken over the whole update batch.

    token: w = mask, count = active steps. sequence: w = mask / active steps of the row, count = rows with an active step.
    constant(n): w = mask, count = n. With rows=all, masked steps and rows count as zeros: token counts all steps,
    sequence divides by the row's full length and counts every row. With rows=weighted the count is the sum of the weights
    (of the rows' mean weights for sequence), so that the value is a weighted mean. An empty selection has count 0 and no weight.
    float64, so that a sum over ranks or micro-batches does not depend on their order beyond rounding.
    """
    total = sum(lengths)
    mask = torch.ones(total, dtype=torch.float64) if mask_N is None else mask_N.to(torch.float64)
    counted = torch.ones_like(mask) if normaliser.rows == "all" else mask
    w_N = mask
    if normaliser.name == "token":
        count = counted.sum()
    elif normaliser.name == "constant":
        count = torch.tensor(normaliser.n, dtype=torch.float64)
    else:
        row_of_N = torch.arange(len(lengths)).repeat_interleave(torch.as_tensor(lengths, dtype=torch.int64))
        per_row = torch.zeros(len(lengths), dtype=torch.float64).index_add_(0, row_of_N, counted)
        w_N = mask / per_row.clamp(min=1.0)[row_of_N]
        count = torch.tensor(float(len(lengths))) if normaliser.rows == "all" else (per_row > 0).sum()
    if weight_N is not None:
        # Behind the mask a weight may be anything, NaN too: it is not read.
        w_N = torch.where(w_N != 0, w_N * weight_N.to(torch.float64), 0.0)
        count = w_N.sum() if normaliser.rows == "weighted" else count
    return w_N, count.to(torch.float64)
