"""Cross-entropy and label smoothing against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vision_lab import Lab


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2}])
def test_law_4_the_loss_is_torchs(options):
    """Same gradient; the value lacks the constant e log V."""
    lab = Lab("ce", **options)
    share = options.get("label_smoothing", 0.0)
    lab.advance(9)
    signal = lab.signal(lab.collect())
    loss, gradient = lab.gradient(signal)
    logits = lab.domain.model.module(lab.domain.read([row.context for row in signal.rows]))
    target = torch.tensor([row.trajectory for row in signal.rows])
    whole = F.cross_entropy(logits, target, label_smoothing=share)
    expected = torch.autograd.grad(whole, list(lab.domain.players["student"].parameters.values()))
    torch.testing.assert_close(gradient, torch.cat([g.flatten() for g in expected]), rtol=1e-9, atol=1e-12)
    assert loss + share * float(torch.tensor(10.0).log()) == pytest.approx(whole.item(), abs=1e-7)
