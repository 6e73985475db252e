"""The update: mini-batches, empty signals, steps that are not finite, and what it refuses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from redistill.core.episode import behaviour, flat
from redistill.core.signal import LogProb, Losses, Signal, Teacher, TeacherLogProb, Term, per_step
from redistill.core.specs import DivergenceKind, Normaliser, Support, TeacherWeights
from redistill.core.update import Tally, accumulate, cut, update
from redistill.objectives.terms import Divergence, Likelihood, PolicyGradient
from toy import ToyDomain, toy_row, weights


def signal(*terms: Any, steps: tuple[int, ...] = (2, 3, 0, 4)) -> Signal:
    return Signal([toy_row(n, i) for i, n in enumerate(steps)], terms or [Likelihood()])


@pytest.mark.parametrize("count", [0, 1, 5, 8])
@pytest.mark.parametrize("pieces", [1, 3, 8])
def test_cut_covers_everything_in_exactly_so_many_pieces(count: int, pieces: int) -> None:
    parts = cut(count, pieces)
    assert len(parts) == pieces
    assert [i for part in parts for i in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_minibatches_are_updates_one_after_the_other() -> None:
    one, other = ToyDomain(), ToyDomain()
    update(signal(), one, minibatches=2)
    for rows in ((0, 1), (2, 3)):
        update(signal().subset(rows), other)
    assert torch.equal(weights(one), weights(other))
    assert one.player.updates == 2


def test_the_loss_is_the_mean_over_the_whole_update() -> None:
    domain = ToyDomain(rows_a_batch=1)
    whole = signal()
    with torch.no_grad():
        expected = -float(torch.cat([domain.logp(whole, [i]) for i in (0, 1, 3)]).mean())
    assert update(whole, domain)["loss"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "empty",
    [Signal([], [Likelihood()]), signal(steps=(0, 0)), signal(Likelihood(mask_N=torch.zeros(9, dtype=torch.bool)))],
)
def test_nothing_to_learn_from_is_no_update(empty: Signal) -> None:
    domain = ToyDomain()
    before = weights(domain)
    found = update(empty, domain)
    assert found["empty_updates"] == 1.0
    assert found["skipped"] == 0.0
    assert torch.equal(weights(domain), before)
    assert domain.player.updates == 0


def test_a_loss_that_is_not_finite_is_skipped_and_counted() -> None:
    domain = ToyDomain()
    before = weights(domain)
    found = update(Signal([toy_row(2), toy_row(2, wild=True)], [Likelihood()]), domain)
    assert found["skipped"] == 1.0
    assert "grad_norm" not in found
    assert torch.equal(weights(domain), before)
    assert domain.player.bad_in_a_row == 1
    assert update(signal(), domain)["skipped"] == 0.0
    assert domain.player.bad_in_a_row == 0


def test_a_wild_row_behind_the_mask_does_not_matter() -> None:
    """The row's own loss is NaN; its slope would be NaN as well."""
    rows = [toy_row(2), toy_row(2, 1)]
    teacher = Teacher(TeacherWeights("live"), (None, None))
    mask_N = torch.tensor([True, True, False, False])
    wild_N = torch.tensor([0.1, -0.2, float("nan"), float("inf")])
    terms = (
        PolicyGradient(advantage_N=wild_N, behaviour_N=wild_N, mask_N=mask_N),
        Divergence(teacher=teacher, kind=DivergenceKind("reverse_kl"), support=Support("sampled"), mask_N=mask_N),
    )
    one, other = ToyDomain(), ToyDomain()
    both, first = Tally(), Tally()
    alone = [replace(term, **sliced(term)) for term in terms]
    assert accumulate(Signal(rows, terms), one, both) == accumulate(Signal(rows[:1], alone), other, first)
    for p, q in zip(one.player.parameters.values(), other.player.parameters.values()):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-12, atol=1e-15)
    assert both.means() == pytest.approx(first.means())


@dataclass(frozen=True, eq=False, kw_only=True)
class Scaled(Term):
    """Minus the log-prob, times a factor of the step's own."""

    name: str = "scaled"
    factor_N: torch.Tensor

    def quantities(self) -> tuple[Any, ...]:
        return (LogProb(),)

    def losses(self, values: Any, at_n: torch.Tensor, lengths: Any) -> Losses:
        return Losses(-values[LogProb()] * self.factor_N[at_n], {})


@pytest.mark.parametrize("wild", [float("inf"), float("nan")])
def test_an_infinite_slope_behind_the_mask_does_not_reach_its_neighbours(wild: float) -> None:
    gradients = []
    for factor in (wild, 0.0):
        domain = ToyDomain()
        term = Scaled(
            factor_N=torch.tensor([1.0, factor, 2.0], dtype=torch.float64), mask_N=torch.tensor([True, False, True])
        )
        accumulate(Signal([toy_row(3)], [term]), domain, Tally())
        gradients.append(torch.cat([p.grad.flatten() for p in domain.player.parameters.values()]))
    assert bool(gradients[0].isfinite().all())
    assert torch.equal(*gradients)


def test_an_infinite_slope_in_front_of_the_mask_is_skipped_not_hidden() -> None:
    domain = ToyDomain()
    before = weights(domain)
    term = Scaled(factor_N=torch.tensor([1.0, float("inf")], dtype=torch.float64))
    assert update(Signal([toy_row(2)], [term]), domain)["skipped"] == 1.0
    assert torch.equal(weights(domain), before)


def sliced(term: Any) -> dict[str, Any]:
    found = {name: getattr(term, name)[:2] for name in ("mask_N", "advantage_N", "behaviour_N") if _is(term, name)}
    return found | ({"teacher": Teacher(TeacherWeights("live"), (None,))} if _is(term, "teacher") else {})


def _is(term: Any, name: str) -> bool:
    return getattr(term, name, None) is not None


def test_terms_add_up_with_their_coefficients() -> None:
    gradients = []
    for terms in (
        [Likelihood(coefficient=2.0), Likelihood(coefficient=0.5, normaliser=Normaliser("sequence"))],
        [Likelihood()], [Likelihood(normaliser=Normaliser("sequence"))],
    ):  # fmt: skip
        domain = ToyDomain()
        accumulate(signal(*terms), domain, Tally())
        gradients.append(torch.cat([p.grad.flatten() for p in domain.player.parameters.values()]))
    torch.testing.assert_close(gradients[0], 2.0 * gradients[1] + 0.5 * gradients[2], rtol=1e-12, atol=1e-14)


def test_vectors_of_the_wrong_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mask_N has shape \(3,\), rows have 9 steps"):
        signal(Likelihood(mask_N=torch.ones(3, dtype=torch.bool)))
    with pytest.raises(ValueError, match="1 teacher contexts for 4 rows"):
        signal(Divergence(teacher=Teacher(TeacherWeights("live"), (None,))))


def test_a_teacher_inside_what_a_custom_ratio_reads_follows_the_rows() -> None:
    """A ratio that reads a teacher's log-prob (rlad) names it in `reads` and looks it up; a mini-batch of the signal
    must measure it for its own rows, and the ratio must still find it."""
    stale = Teacher(TeacherWeights("live"), (None,))
    with pytest.raises(ValueError, match="1 teacher contexts for 4 rows"):
        signal(PolicyGradient(advantage_N=torch.ones(9), reads=(TeacherLogProb(stale),)))
    teacher = Teacher(TeacherWeights("live"), (0, 1, 2, 3))
    quantity = TeacherLogProb(teacher)

    def anchored(values: Any, behaviour_n: torch.Tensor, lengths: Any) -> torch.Tensor:
        return values[LogProb()] - values[quantity]

    whole = signal(PolicyGradient(advantage_N=torch.arange(9.0), reads=(quantity,), ratio=anchored))
    part = whole.subset([3, 1])
    (read,) = part.terms[0].reads
    assert read.teacher.contexts == (3, 1)
    assert read == quantity
    assert part.subset([0]).terms[0].reads[0].teacher.contexts == (3,)
    assert accumulate(part, ToyDomain(), Tally()) != 0.0


def test_steps_of_and_per_step() -> None:
    found = signal()
    assert found.steps_of([3, 0]).tolist() == [5, 6, 7, 8, 0, 1]
    assert found.steps_of([2]).tolist() == []
    assert per_step([1.0, 2.0, 3.0, 4.0], found.lengths).tolist() == [1, 1, 2, 2, 2, 4, 4, 4, 4]
    edges = [0, 2, 5, 5, 9]
    assert [len(found.steps_of([i])) for i in range(4)] == [high - low for low, high in pairwise(edges)]


def test_rows_without_behaviour_have_none() -> None:
    with pytest.raises(ValueError, match="not sampled by a policy of ours"):
        behaviour([toy_row(2)])
    assert behaviour([]).shape == (0,)
    assert flat([]) == []


def test_quantities_are_compared_by_value_but_teachers_by_identity() -> None:
    assert LogProb() == LogProb()
    one, two = (Teacher(TeacherWeights("live"), (None,)) for _ in range(2))
    assert TeacherLogProb(one) == TeacherLogProb(one) != TeacherLogProb(two)
