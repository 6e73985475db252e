"""Signals joined into one: each term keeps its rows, its count and its teachers."""

from __future__ import annotations

import torch
from redistill.core.signal import Signal, Teacher, joined
from redistill.core.specs import TeacherWeights
from redistill.core.update import Tally, accumulate
from redistill.objectives.terms import Divergence, Likelihood
from toy import ToyDomain, toy_row

LIVE = TeacherWeights("live")


def test_the_gradient_of_the_whole_is_the_sum_of_the_parts_gradients() -> None:
    domain = ToyDomain()
    rows = [toy_row(steps) for steps in range(1, 6)]
    parts = [
        Signal(rows[:2], [Likelihood(coefficient=0.5)]),
        Signal(rows[2:4], [Likelihood(weight_N=torch.arange(sum(r.steps for r in rows[2:4])).float())]),
        Signal([rows[4]], [Likelihood(coefficient=2.0, mask_N=torch.arange(5) == 2)]),
    ]

    def gradient(signal: Signal) -> torch.Tensor:
        for p in domain.players["student"].parameters.values():
            p.grad = None
        accumulate(signal, domain, Tally())
        return torch.cat([p.grad.flatten() for p in domain.players["student"].parameters.values()])

    whole = joined(parts)
    assert len(whole.rows) == 5
    torch.testing.assert_close(gradient(whole), sum(gradient(part) for part in parts))


def test_a_teacher_has_no_context_outside_its_part_and_counts_as_itself() -> None:
    rows = [toy_row(steps) for steps in range(1, 4)]
    teacher = Teacher(LIVE, (7,))
    whole = joined([Signal(rows[:2], [Likelihood()]), Signal(rows[2:], [Divergence(teacher=teacher)])])
    term = whole.terms[1]
    assert isinstance(term, Divergence)
    assert term.teacher.contexts == (None, None, 7)
    assert term.teacher == teacher
    assert term.mask_N is not None
    assert term.mask_N.tolist() == [False] * sum(r.steps for r in rows[:2]) + [True] * rows[2].steps
