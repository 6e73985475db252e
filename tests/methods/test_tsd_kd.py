"""The checks of TSD-KD's specification, by number."""

from __future__ import annotations

import math

import pytest
import torch
from redistill.errors import UserError
from redistill.objectives.gates import most_uncertain, opening, sureness_gate
from redistill.objectives.ranking import plackett_luce

EXPERT = {"teacher": "checkpoint(pocket-expert)"}
ROWS = [[True, False], [False, False], [True, True]]


def scores(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def test_check_1_plackett_luce_in_numbers():
    student = scores(2.0, 1.0, 0.0)
    expected = math.log(1 + math.exp(-1) + math.exp(-2)) + math.log(1 + math.exp(-1))
    assert expected == pytest.approx(0.7209, abs=5e-5)
    assert float(plackett_luce(student=student, teacher=student, k=3)) == pytest.approx(expected, abs=1e-12)
    assert float(plackett_luce(student=student + 17.0, teacher=student, k=3)) == pytest.approx(expected, abs=1e-12)
    assert float(plackett_luce(student=student, teacher=student, k=1)) == 0.0
    assert float(plackett_luce(student=student, teacher=student, k=99)) == pytest.approx(expected, abs=1e-12)


def test_check_1_probabilities_of_all_orders_add_up():
    import itertools

    student = scores(0.3, -1.0, 0.9, 0.1)
    total = 0.0
    for order in itertools.permutations(range(4)):
        teacher = torch.empty(1, 4, dtype=torch.float64)
        teacher[0, list(order)] = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
        total += math.exp(-float(plackett_luce(student=student, teacher=teacher, k=4)))
    assert total == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(("reverse", "direction"), [(False, 1), (True, -1)])
def test_check_1_descent_brings_the_teachers_order_and_the_released_code_its_reverse(reverse, direction):
    teacher = scores(3.0, 1.0, 2.0, 0.0, -5.0)
    z = scores(0.0, 0.5, 0.1, 0.3, -9.0).requires_grad_()
    for _ in range(200):
        loss = plackett_luce(student=z, teacher=teacher, k=4, reverse=reverse).sum()
        (slope,) = torch.autograd.grad(loss, z)
        z = (z - 0.2 * slope).detach().requires_grad_()
    wanted = (direction * teacher[0, :4]).argsort(descending=True)
    assert torch.equal(z[0, :4].argsort(descending=True), wanted)
    assert float(z[0, 4].detach()) == -9.0  # no candidate, no gradient


def test_check_2_gradient_of_the_first_factor():
    """With k = 2 the last factor is constant: softmax(s) - onehot(teacher's best)."""
    z, teacher = scores(0.4, 1.1).requires_grad_(), scores(2.0, 1.0)
    (slope,) = torch.autograd.grad(plackett_luce(student=z, teacher=teacher, k=2).sum(), z)
    torch.testing.assert_close(slope, z.detach().softmax(-1) - torch.tensor([[1.0, 0.0]], dtype=torch.float64))


def test_check_3_the_gate():
    same = torch.tensor([0.7], dtype=torch.float64)
    assert float(sureness_gate(same, same, 1.0)) == 0.5
    uniform = torch.tensor([math.log(4)], dtype=torch.float64)
    assert float(sureness_gate(uniform, torch.zeros_like(uniform), 1.0)) == pytest.approx(0.8)
    assert float(sureness_gate(uniform, torch.zeros_like(uniform), 0.5)) == pytest.approx(16 / 17)


def test_check_4_a_teacher_that_is_the_student_gives_no_direct_loss(bench):
    ours = bench("tsd-kd", teacher="frozen", ranking=0.0, entropy=0.0)
    assert float(ours.gradient(ours.groups(ROWS)).abs().max()) < 2e-6


def test_check_4_without_gate_ranking_and_entropy_it_is_gkd(bench):
    ours = bench("tsd-kd", **EXPERT, gate="false", ranking=0.0, entropy=0.0, normaliser="token")
    gkd = bench("opd", **EXPERT, divergence="jsd(0.9)")
    groups = ours.groups(ROWS)
    assert torch.equal(ours.gradient(groups), gkd.gradient(groups))


def test_check_5_the_opener():
    first = torch.tensor([4.0] + [1.0] * 6)
    assert int(opening(first, [7], 0.1).sum()) == 1
    even = torch.full((20,), 0.3)
    assert opening(even, [20], 0.1).tolist() == [True] * 2 + [False] * 18
    both = opening(torch.cat([first, even]), [7, 0, 20], 0.1)
    assert torch.equal(both, torch.cat([opening(first, [7], 0.1), opening(even, [20], 0.1)]))
    assert opening(even, [20], 1.0).all()
    assert opening(torch.zeros(3), [3], 0.1).tolist() == [True, False, False]


def test_check_6_size_of_the_most_uncertain_set(bench):
    entropy = torch.rand(47, generator=torch.Generator().manual_seed(0))
    chosen = most_uncertain(entropy, [20, 7, 20], 0.1)
    assert [int(part.sum()) for part in chosen.split([20, 7, 20])] == [2, 1, 2]
    for part, mask in zip(entropy.split([20, 7, 20]), chosen.split([20, 7, 20]), strict=True):
        assert float(part[mask].min()) >= float(part[~mask].max())
    ours = bench("tsd-kd", **EXPERT)
    signal = ours.signal(ours.groups(ROWS))
    sizes = [int(part.sum()) for part in signal.terms[2].mask_N.split(signal.lengths)]
    assert sizes == [math.ceil(length / 10) for length in signal.lengths]


def test_entropy_falls_where_it_is_minimised(bench):
    from redistill.core.signal import EntropyOf
    from redistill.core.update import update

    ours = bench("tsd-kd", teacher="frozen", ranking=0.0, entropy_share=1.0, learning_rate=1e-3)
    groups = ours.groups(ROWS)
    rows = [row for group in groups for row in group]
    before = float(ours.domain.score(rows, [EntropyOf()])[EntropyOf()].mean())
    for _ in range(5):
        update(ours.signal(groups), ours.domain)
    assert float(ours.domain.score(rows, [EntropyOf()])[EntropyOf()].mean()) < 0.9 * before


@pytest.mark.parametrize(
    ("given", "words"),
    [({}, "needs a teacher"), ({"teacher": "live"}, "student itself"), ({**EXPERT, "opener": 0}, "opener"), ({**EXPERT, "divergence": "jsd(1)"}, "reverse_kl")],
)  # fmt: skip
def test_what_cannot_mean_anything_is_refused(bench, given, words):
    with pytest.raises(UserError, match=words):
        bench("tsd-kd", **given)
