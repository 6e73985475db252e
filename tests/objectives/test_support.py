"""Truncated supports: SDPO's tail, OPSD's renormalised top-k, and what neither may do."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from redistill.core.specs import DivergenceKind, Support
from redistill.objectives.divergence import divergence, restrict, tail_logp

REVERSE, FORWARD = DivergenceKind("reverse_kl"), DivergenceKind("forward_kl")
KINDS = [
    DivergenceKind.parse(text)
    for text in (
        "forward_kl",
        "reverse_kl",
        "jsd(0.5)",
        "jsd(0.1)",
        "tvd",
        "skew_forward_kl(0.1)",
        "skew_reverse_kl(0.1)",
    )
]


def top_k(k: int, of: str = "student", tail: bool = True) -> Support:
    return Support("top_k", k, of, tail)


def restricted(kind: DivergenceKind, support: Support, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    student, teacher, _, _ = restrict(support, student_logp_NV=student, teacher_logp_NV=teacher)
    return divergence(kind, student=student, teacher=teacher)


def random_logits(seed: int, rows: int = 5, outcomes: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    student, teacher = 2.0 * torch.randn(2, rows, outcomes, generator=source, dtype=torch.float64)
    return student, teacher


P = torch.tensor([[0.6, 0.25, 0.1, 0.05]], dtype=torch.float64).log()
Q = torch.tensor([[0.3, 0.3, 0.2, 0.2]], dtype=torch.float64).log()


def test_sdpo_check_2_tail() -> None:
    for k, want in ((1, 0.1920), (2, 0.2232), (3, 0.2317)):
        assert restricted(REVERSE, top_k(k), P, Q).item() == pytest.approx(want, abs=5e-5)
    full = divergence(REVERSE, student=P, teacher=Q).item()
    assert restricted(REVERSE, top_k(3), P, Q).item() == pytest.approx(full, rel=1e-14)  # the tail is one outcome
    for k in (4, 5, 100):
        student, teacher, mine, theirs = restrict(top_k(k), student_logp_NV=P, teacher_logp_NV=Q)
        assert torch.equal(student, P)
        assert torch.equal(teacher, Q)
        assert mine.item() == theirs.item() == 1.0


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(3, 9).flatmap(lambda n: st.tuples(*[st.lists(st.floats(-9, 9), min_size=n, max_size=n)] * 2)),
    st.integers(1, 8), st.sampled_from(["student", "teacher"]),
)  # fmt: skip
def test_coarser_never_exceeds_finer(pair: tuple[list[float], list[float]], k: int, of: str) -> None:
    student, teacher = (torch.tensor([side], dtype=torch.float64).log_softmax(-1) for side in pair)
    for kind in KINDS:
        coarse = restricted(kind, top_k(k, of), student, teacher).item()
        finer = restricted(kind, top_k(k + 1, of), student, teacher).item()
        assert -1e-13 <= coarse <= finer + 1e-12 <= divergence(kind, student=student, teacher=teacher).item() + 2e-12
        assert restricted(kind, top_k(k, of), student, student).item() == 0.0


@pytest.mark.parametrize("of", ["student", "teacher"])
def test_chosen_outcomes_and_captured_mass_against_numpy(of: str) -> None:
    student, teacher = (x.log_softmax(-1) for x in random_logits(1))
    got_s, got_t, captured_s, captured_t = restrict(top_k(3, of), student_logp_NV=student, teacher_logp_NV=teacher)
    for row in range(5):
        q, p = student[row].exp().numpy(), teacher[row].exp().numpy()
        order = np.argsort(-(q if of == "student" else p))
        for got, captured, mass in ((got_s, captured_s, q), (got_t, captured_t, p)):
            want = np.append(mass[order[:3]], mass[order[3:]].sum())
            np.testing.assert_allclose(got[row].exp().numpy(), want, rtol=1e-13)
            assert captured[row].item() == pytest.approx(mass[order[:3]].sum(), rel=1e-13)


def test_without_tail_both_sides_are_renormalised() -> None:
    student, teacher = (x.log_softmax(-1) for x in random_logits(2))
    got_s, got_t, captured_s, _ = restrict(top_k(3, "teacher", False), student_logp_NV=student, teacher_logp_NV=teacher)
    assert got_s.shape == got_t.shape == (5, 3)
    for row in range(5):
        q, p = student[row].exp().numpy(), teacher[row].exp().numpy()
        chosen = np.argsort(-p)[:3]
        np.testing.assert_allclose(got_s[row].exp().numpy(), q[chosen] / q[chosen].sum(), rtol=1e-13)
        np.testing.assert_allclose(got_t[row].exp().numpy(), p[chosen] / p[chosen].sum(), rtol=1e-13)
        assert captured_s[row].item() == pytest.approx(q[chosen].sum(), rel=1e-13)


@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("of", ["student", "teacher"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_gradient_is_that_of_finite_differences(kind: DivergenceKind, of: str, tail: bool) -> None:
    student, teacher = random_logits(3, rows=2, outcomes=6)
    log_p = teacher.log_softmax(-1)
    z = student.clone().requires_grad_()
    restricted(kind, top_k(2, of, tail), z.log_softmax(-1), log_p).sum().backward()
    assert z.grad is not None
    chosen = (student if of == "student" else teacher).topk(2).indices.numpy()
    step = 1e-6

    def coarse(logits: np.ndarray, row: int) -> torch.Tensor:
        mass = np.exp(logits - np.logaddexp.reduce(logits))
        head = mass[chosen[row]]
        coarse_mass = np.append(head, 1 - head.sum()) if tail else head / head.sum()
        return torch.from_numpy(np.log(coarse_mass))[None]

    for row in range(2):
        fixed = coarse(teacher[row].numpy(), row)
        for i in range(6):
            shift = step * np.eye(6)[i]
            up, down = (
                divergence(kind, student=coarse(student[row].numpy() + sign * shift, row), teacher=fixed).item()
                for sign in (1, -1)
            )
            assert z.grad[row, i].item() == pytest.approx((up - down) / (2 * step), abs=3e-9)


def test_a_tiny_tail_keeps_its_value_and_its_gradient() -> None:
    """Outside the top 2 the student has 1e-12: 1 - sum is 0 in float32, and a clamped log(1 - sum) would stop here."""
    student = torch.tensor([[0.0, -1.0, -28.0, -28.5]], requires_grad=True)
    teacher = torch.tensor([[0.0, -1.0, 0.5, 0.4]]).log_softmax(-1)
    student_NK, teacher_NK, captured, _ = restrict(
        top_k(2), student_logp_NV=student.log_softmax(-1), teacher_logp_NV=teacher
    )
    assert captured.item() == 1.0
    exact = student.detach().double().log_softmax(-1)[0, 2:].logsumexp(-1).item()
    assert student_NK[0, 2].item() == pytest.approx(exact, rel=1e-6)
    divergence(FORWARD, student=student_NK, teacher=teacher_NK).sum().backward()
    assert student.grad is not None
    # Forward KL pulls logit mass toward the tail with the teacher's whole tail mass, shared by the student's shares.
    assert student.grad[0, 2:].sum().item() == pytest.approx(-teacher.exp()[0, 2:].sum().item(), rel=1e-5)


def test_a_tail_without_any_mass() -> None:
    student = torch.tensor([[0.3, -0.2, -math.inf, -math.inf]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[0.1, 0.4, -math.inf, -math.inf]], dtype=torch.float64).log_softmax(-1)
    for kind in KINDS:
        value = restricted(kind, top_k(2), student.log_softmax(-1), teacher)
        full = divergence(kind, student=student.log_softmax(-1), teacher=teacher)
        assert value.item() == pytest.approx(full.item(), rel=1e-14)
        narrow, wide = (torch.autograd.grad(x.sum(), student)[0] for x in (value, full))
        torch.testing.assert_close(narrow, wide, rtol=1e-12, atol=1e-15)


def test_a_student_without_the_teachers_tail_has_an_infinite_forward_kl_and_finite_gradients() -> None:
    student = torch.tensor([[0.3, -0.2, -math.inf, -math.inf]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[0.1, 0.4, 0.0, -1.0]], dtype=torch.float64).log_softmax(-1)
    value = restricted(FORWARD, top_k(2), student.log_softmax(-1), teacher)
    assert value.item() == math.inf
    assert torch.isfinite(torch.autograd.grad(value.sum(), student)[0]).all()


def test_tail_from_the_top_alone_agrees_where_it_can() -> None:
    student, teacher = (x.log_softmax(-1) for x in random_logits(4))
    student_NK, _, _, _ = restrict(top_k(4), student_logp_NV=student, teacher_logp_NV=teacher)
    torch.testing.assert_close(tail_logp(student_NK[:, :4]), student_NK[:, 4], rtol=1e-10, atol=0)
    full_mass = torch.tensor([[0.0]], dtype=torch.float64)
    assert tail_logp(full_mass).item() == pytest.approx(math.log(1e-7), abs=1e-6)  # the floor of SDPO's code


def test_the_teacher_and_the_choice_get_no_gradient() -> None:
    student, teacher = random_logits(5)
    teacher.requires_grad_()
    student.requires_grad_()
    for tail in (True, False):
        student_NK, teacher_NK, *captured = restrict(
            top_k(3, tail=tail), student_logp_NV=student.log_softmax(-1), teacher_logp_NV=teacher.log_softmax(-1)
        )
        assert student_NK.requires_grad
        assert not teacher_NK.requires_grad
        assert not any(x.requires_grad for x in captured)


def test_full_returns_its_inputs_and_sampled_is_refused() -> None:
    student, teacher, mine, theirs = restrict(Support("full"), student_logp_NV=P, teacher_logp_NV=Q)
    assert student is P
    assert torch.equal(teacher, Q)
    assert mine.item() == theirs.item() == 1.0
    with pytest.raises(ValueError, match="estimators"):
        restrict(Support("sampled"), student_logp_NV=P, teacher_logp_NV=Q)
    with pytest.raises(ValueError, match="log-probs differ"):
        restrict(top_k(2), student_logp_NV=P, teacher_logp_NV=Q[:, :3])
