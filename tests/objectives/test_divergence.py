"""Divergences against 30-digit arithmetic, closed forms, finite differences and peers."""

import math

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from redistill.core.specs import DivergenceKind
from redistill.errors import UserError
from redistill.objectives.divergence import divergence, f_divergence, generator

KINDS = [
    DivergenceKind.parse(text)
    for text in (
        "forward_kl", "reverse_kl", "jsd(0.5)", "jsd(0.1)", "jsd(0.9)", "tvd", "skew_forward_kl(0.1)",
        "skew_forward_kl(0.7)", "skew_reverse_kl(0.1)", "skew_reverse_kl(0.7)",
    )
]  # fmt: skip
FORWARD, REVERSE, JSD = DivergenceKind("forward_kl"), DivergenceKind("reverse_kl"), DivergenceKind("jsd", 0.5)
over_kinds = pytest.mark.parametrize("kind", KINDS, ids=str)


def random_pair(
    seed: int, rows: int, outcomes: int, scale: float = 3.0, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of student and teacher."""
    source = torch.Generator().manual_seed(seed)
    student, teacher = scale * torch.randn(2, rows, outcomes, generator=source, dtype=torch.float64)
    return student.to(dtype), teacher.to(dtype)


def logit_gradient(
    kind: DivergenceKind, student: torch.Tensor, teacher: torch.Tensor, **options: float
) -> torch.Tensor:
    """The gradient of the summed divergence with respect to the student's logits."""
    student = student.clone().requires_grad_()
    divergence(kind, student=student.log_softmax(-1), teacher=teacher.log_softmax(-1), **options).sum().backward()
    assert student.grad is not None
    return student.grad


def exact(kind: DivergenceKind, log_p: list[float], log_q: list[float]) -> mpmath.mpf:
    """The definition, in 30 digits, on the masses that the log-probs stand for."""
    with mpmath.workdps(30):
        p, q = ([mpmath.exp(x) if x > -math.inf else mpmath.mpf(0) for x in side] for side in (log_p, log_q))

        def kl(a: list[mpmath.mpf], b: list[mpmath.mpf]) -> mpmath.mpf:
            return mpmath.fsum(x * mpmath.log(x / y) for x, y in zip(a, b) if x > 0)

        def mix(share: float) -> list[mpmath.mpf]:
            return [mpmath.mpf(share) * x + (1 - mpmath.mpf(share)) * y for x, y in zip(p, q)]

        b = kind.beta or 0.0
        if kind.name == "forward_kl":
            return kl(p, q)
        if kind.name == "reverse_kl":
            return kl(q, p)
        if kind.name == "jsd":
            return mpmath.mpf(b) * kl(p, mix(b)) + (1 - mpmath.mpf(b)) * kl(q, mix(b))
        if kind.name == "tvd":
            return mpmath.fsum(abs(x - y) for x, y in zip(p, q)) / 2
        return kl(p, mix(b)) if kind.name == "skew_forward_kl" else kl(q, mix(1 - b))


@over_kinds
def test_value_is_that_of_thirty_digits(kind: DivergenceKind) -> None:
    for seed, scale in enumerate((0.1, 1.0, 4.0, 15.0)):
        student, teacher = (x.log_softmax(-1) for x in random_pair(seed, 4, 7, scale))
        got = divergence(kind, student=student, teacher=teacher)
        want = [float(exact(kind, p, q)) for p, q in zip(teacher.tolist(), student.tolist())]
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-12, atol=2e-15)


@over_kinds
def test_value_with_empty_outcomes_is_that_of_thirty_digits(kind: DivergenceKind) -> None:
    student, teacher = random_pair(5, 6, 8)
    student[:, 0] = teacher[:, 0] = -math.inf
    if kind.name != "forward_kl":
        student[:, 1] = -math.inf
    if kind.name != "reverse_kl":
        teacher[:, 2] = -math.inf
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    want = [float(exact(kind, p, q)) for p, q in zip(log_p.tolist(), log_q.tolist())]
    np.testing.assert_allclose(divergence(kind, student=log_q, teacher=log_p).numpy(), want, rtol=1e-12)
    gradient = logit_gradient(kind, student, teacher)
    assert torch.isfinite(gradient).all()
    assert (gradient[:, 0] == 0).all()
    if kind.name != "forward_kl":
        assert (gradient[:, 1] == 0).all()


@over_kinds
def test_an_outcome_empty_on_both_sides_changes_nothing(kind: DivergenceKind) -> None:
    student, teacher = random_pair(6, 3, 5)
    empty = torch.full((3, 1), -math.inf, dtype=torch.float64)
    wide = logit_gradient(kind, torch.cat([student, empty], -1), torch.cat([teacher, empty], -1))
    torch.testing.assert_close(wide[:, :5], logit_gradient(kind, student, teacher), rtol=1e-13, atol=1e-15)
    assert (wide[:, 5] == 0).all()


def numpy_divergence(kind: DivergenceKind, z: np.ndarray, log_p: np.ndarray) -> float:
    """A second writing of the definitions, on logits, for finite differences."""
    q, p = np.exp(z - np.logaddexp.reduce(z)), np.exp(log_p)
    b = kind.beta or 0.0
    m = b * p + (1 - b) * q
    if kind.name == "forward_kl":
        return float(p @ np.log(p / q))
    if kind.name == "reverse_kl":
        return float(q @ np.log(q / p))
    if kind.name == "jsd":
        return float(b * p @ np.log(p / m) + (1 - b) * q @ np.log(q / m))
    if kind.name == "tvd":
        return float(np.abs(p - q).sum() / 2)
    if kind.name == "skew_forward_kl":
        return float(p @ np.log(p / m))
    return float(q @ np.log(q / ((1 - b) * p + b * q)))


@over_kinds
def test_gradient_is_that_of_finite_differences(kind: DivergenceKind) -> None:
    student, teacher = random_pair(7, 3, 6, 1.5)
    got = logit_gradient(kind, student, teacher).numpy()
    step = 1e-6
    for row in range(3):
        z, log_p = student[row].numpy(), teacher[row].log_softmax(-1).numpy()
        for i in range(6):
            shift = step * np.eye(6)[i]
            slope = (numpy_divergence(kind, z + shift, log_p) - numpy_divergence(kind, z - shift, log_p)) / (2 * step)
            assert got[row, i] == pytest.approx(slope, abs=2e-9)


@over_kinds
def test_derivative_in_free_log_probs_passes_gradcheck(kind: DivergenceKind) -> None:
    student, teacher = (x.log_softmax(-1) for x in random_pair(8, 2, 5, 1.0))
    for clip in (None, 0.02):
        assert torch.autograd.gradcheck(
            lambda x, c=clip: divergence(kind, student=x, teacher=teacher, clip=c), student.clone().requires_grad_()
        )


LOGITS = st.integers(2, 9).flatmap(
    lambda size: st.tuples(*[st.lists(st.floats(-12, 12), min_size=size, max_size=size)] * 2)
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(LOGITS)
def test_properties_on_random_simplices(pair: tuple[list[float], list[float]]) -> None:
    student, teacher = (torch.tensor([side], dtype=torch.float64) for side in pair)
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    for kind in KINDS:
        value = divergence(kind, student=log_q, teacher=log_p).item()
        assert value >= -1e-14
        if kind.name == "jsd":
            beta = kind.beta or 0.0
            assert value <= -beta * math.log(beta) - (1 - beta) * math.log(1 - beta) + 1e-12 <= math.log(2) + 2e-12
        if kind.name == "tvd":
            assert value <= 1 + 1e-12
        # The survey's rows: the direct formula E_Q[f(P/Q)], and dD/dz = Q (g - E_Q g) with g = f - u f'.
        f = generator(kind)
        direct = f_divergence(f, student=log_q, teacher=log_p).item()
        assert value == pytest.approx(direct, rel=1e-7, abs=1e-9)
        u = (log_p - log_q).exp().requires_grad_()
        (f_slope,) = torch.autograd.grad(f(u).sum(), u)
        g, q = (f(u) - u * f_slope).detach(), log_q.exp()
        if kind.name != "tvd" or bool(((u - 1).abs() > 1e-9).all()):  # tvd has a corner at u = 1
            rule = q * (g - (q * g).sum(-1, keepdim=True))
            torch.testing.assert_close(logit_gradient(kind, student, teacher), rule, rtol=0, atol=1e-6)
        # Law 2: the teacher is the student.
        assert divergence(kind, student=log_q, teacher=log_q).item() == 0.0
        assert logit_gradient(kind, student, student).abs().max() < 1e-14


def test_generators_are_convex_and_vanish_at_one() -> None:
    u = torch.linspace(0.01, 9.0, 900, dtype=torch.float64)
    for kind in KINDS:
        f = generator(kind)
        assert f(torch.ones(1, dtype=torch.float64)).item() == pytest.approx(0.0, abs=1e-15)
        assert (f(u)[:-2] - 2 * f(u)[1:-1] + f(u)[2:] > -1e-12).all()


def test_f_divergence_takes_any_f_and_its_gradient_agrees() -> None:
    student, teacher = random_pair(9, 4, 6, 1.0)
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    chi_squared = f_divergence(lambda u: (u - 1) ** 2, student=log_q, teacher=log_p)
    p, q = log_p.exp(), log_q.exp()
    torch.testing.assert_close(chi_squared, ((p - q) ** 2 / q).sum(-1))
    student.requires_grad_()
    for kind in KINDS:
        value = f_divergence(generator(kind), student=student.log_softmax(-1), teacher=log_p).sum()
        (direct,) = torch.autograd.grad(value, student)
        torch.testing.assert_close(direct, logit_gradient(kind, student.detach(), teacher), rtol=1e-9, atol=1e-12)


def test_f_divergence_without_student_mass_is_nan_and_empty_outcomes_are_free() -> None:
    inf = math.inf
    log_q = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]]).log()
    log_p = torch.tensor([[0.2, 0.8, 0.0], [0.2, 0.4, 0.4]]).log()
    value = f_divergence(generator(FORWARD), student=log_q, teacher=log_p)
    assert value[0].item() == pytest.approx(0.2 * math.log(0.4) + 0.8 * math.log(1.6), rel=1e-6)
    assert value[1].isnan()
    assert divergence(FORWARD, student=log_q, teacher=log_p)[1].item() == inf


def test_peers_agree() -> None:
    student, teacher = (x.log_softmax(-1) for x in random_pair(10, 5, 40))
    dist_q, dist_p = torch.distributions.Categorical(logits=student), torch.distributions.Categorical(logits=teacher)
    forward, reverse = (divergence(kind, student=student, teacher=teacher) for kind in (FORWARD, REVERSE))
    torch.testing.assert_close(forward, F.kl_div(student, teacher, log_target=True, reduction="none").sum(-1))
    torch.testing.assert_close(forward, torch.distributions.kl_divergence(dist_p, dist_q))
    torch.testing.assert_close(reverse, torch.distributions.kl_divergence(dist_q, dist_p))


def two(p: float) -> torch.Tensor:
    return torch.tensor([[p, 1 - p]], dtype=torch.float64).log()


def test_sdpo_check_1_reverse_kl_and_jsd() -> None:
    student, teacher = two(0.5), two(0.9)
    assert divergence(REVERSE, student=student, teacher=teacher).item() == pytest.approx(0.5108, abs=5e-5)
    gradient = logit_gradient(REVERSE, student, teacher)[0].tolist()
    assert gradient == pytest.approx([-0.5493, 0.5493], abs=5e-5)
    assert divergence(JSD, student=student, teacher=teacher).item() == pytest.approx(0.10175, abs=5e-6)


def test_opsd_check_1_gradients_in_closed_form() -> None:
    student, teacher = random_pair(11, 4, 9)
    p, q = teacher.softmax(-1), student.softmax(-1)
    torch.testing.assert_close(logit_gradient(FORWARD, student, teacher), q - p, rtol=1e-12, atol=1e-14)
    log_ratio = (q / p).log()
    reverse = q * (log_ratio - (q * log_ratio).sum(-1, keepdim=True))
    torch.testing.assert_close(logit_gradient(REVERSE, student, teacher), reverse, rtol=1e-10, atol=1e-13)


def test_opsd_check_2_element_clip() -> None:
    student, teacher = two(0.1).requires_grad_(), two(0.9)
    assert divergence(FORWARD, student=student, teacher=teacher).item() == pytest.approx(1.7578, abs=5e-5)
    unclipped = divergence(FORWARD, student=student, teacher=teacher, clip=math.inf)
    assert unclipped.item() == divergence(FORWARD, student=student, teacher=teacher).item()
    clipped = divergence(FORWARD, student=student, teacher=teacher, clip=0.05)
    assert clipped.item() == pytest.approx(0.05 - 0.2197, abs=5e-5)  # negative: intended
    (gradient,) = torch.autograd.grad(clipped.sum(), student)
    assert gradient[0].tolist() == pytest.approx([0.0, -0.1])


@over_kinds
def test_clip_against_a_clamped_sum(kind: DivergenceKind) -> None:
    student, teacher = (x.log_softmax(-1) for x in random_pair(12, 20, 6))
    got = divergence(kind, student=student, teacher=teacher, clip=0.03)
    for row in range(20):
        p, q = teacher[row].exp().numpy(), student[row].exp().numpy()
        b = kind.beta or 0.0
        m = b * p + (1 - b) * q
        entries = {
            "forward_kl": p * np.log(p / q),
            "reverse_kl": q * np.log(q / p),
            "jsd": b * p * np.log(p / m) + (1 - b) * q * np.log(q / m),
            "tvd": np.abs(p - q) / 2,
            "skew_forward_kl": p * np.log(p / m),
            "skew_reverse_kl": q * np.log(q / ((1 - b) * p + b * q)),
        }[kind.name]
        assert got[row].item() == pytest.approx(np.minimum(entries, 0.03).sum(), rel=1e-10, abs=1e-14)


def test_clip_tames_an_infinite_outcome() -> None:
    student = torch.tensor([[0.0, 0.0, 0.0]], dtype=torch.float64)
    teacher = torch.tensor([[0.0, 0.0, -math.inf]], dtype=torch.float64)
    assert divergence(REVERSE, student=student.log_softmax(-1), teacher=teacher.log_softmax(-1)).item() == math.inf
    gradient = logit_gradient(REVERSE, student, teacher, clip=0.05)
    assert torch.isfinite(gradient).all()


def test_jsd_symmetry_and_limits_of_both_papers() -> None:
    student, teacher = (x.log_softmax(-1) for x in random_pair(13, 6, 8, 1.0))
    forward, reverse = (divergence(kind, student=student, teacher=teacher) for kind in (FORWARD, REVERSE))
    jsd = divergence(JSD, student=student, teacher=teacher)
    torch.testing.assert_close(jsd, divergence(JSD, student=teacher, teacher=student))
    assert (jsd <= math.log(2)).all()
    small = 1e-7
    near_0 = divergence(DivergenceKind("jsd", small), student=student, teacher=teacher) / small
    near_1 = divergence(DivergenceKind("jsd", 1 - small), student=student, teacher=teacher) / small
    torch.testing.assert_close(near_0, forward, rtol=1e-4, atol=0)
    torch.testing.assert_close(near_1, reverse, rtol=1e-4, atol=0)
    skew = divergence(DivergenceKind("skew_forward_kl", small), student=student, teacher=teacher)
    torch.testing.assert_close(skew, forward, rtol=1e-4, atol=0)
    skew = divergence(DivergenceKind("skew_reverse_kl", small), student=student, teacher=teacher)
    torch.testing.assert_close(skew, reverse, rtol=1e-4, atol=0)


def test_survey_check_3_high_temperature() -> None:
    student, teacher = random_pair(14, 2, 5, 1.0)
    student, teacher = student - student.mean(-1, keepdim=True), teacher - teacher.mean(-1, keepdim=True)
    tau = 1e4
    z = student.clone().requires_grad_()
    value = divergence(FORWARD, student=(z / tau).log_softmax(-1), teacher=(teacher / tau).log_softmax(-1))
    (tau**2 * value).sum().backward()
    torch.testing.assert_close(z.grad, (student - teacher) / 5, rtol=1e-3, atol=1e-4)


def test_infinite_forward_kl_has_the_gradient_q_minus_p() -> None:
    student = torch.tensor([[1.0, 0.0, -math.inf]], dtype=torch.float64)
    teacher = torch.tensor([[0.0, 1.0, 0.5]], dtype=torch.float64)
    value = divergence(FORWARD, student=student.log_softmax(-1), teacher=teacher.log_softmax(-1))
    assert value.item() == math.inf
    torch.testing.assert_close(logit_gradient(FORWARD, student, teacher), student.softmax(-1) - teacher.softmax(-1))


def test_a_step_of_weight_zero_leaks_no_nan() -> None:
    student = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[0.0, 0.0, -math.inf], [0.0, 1.0, 0.0]], dtype=torch.float64)
    value = divergence(REVERSE, student=student.log_softmax(-1), teacher=teacher.log_softmax(-1))
    torch.autograd.backward(value, torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert student.grad is not None
    assert (student.grad[0] == 0).all()
    torch.testing.assert_close(student.grad[1], logit_gradient(REVERSE, student.detach()[1:], teacher[1:])[0])


@over_kinds
def test_float32_over_a_large_vocabulary(kind: DivergenceKind) -> None:
    single_q, single_p = (x.log_softmax(-1) for x in random_pair(15, 2, 50_000, 4.0, torch.float32))
    double_q, double_p = single_q.double(), single_p.double()  # the same numbers: only our own rounding is compared
    slopes = []
    for log_q, log_p in ((single_q, single_p), (double_q, double_p)):
        value = divergence(kind, student=log_q.requires_grad_(), teacher=log_p)
        slopes.append(torch.autograd.grad(value.sum(), log_q)[0].double())
        assert value.dtype == log_q.dtype
    single, double = (divergence(kind, student=q, teacher=p) for q, p in ((single_q, single_p), (double_q, double_p)))
    torch.testing.assert_close(single.double(), double, rtol=1e-6, atol=0)
    assert ((slopes[0] - slopes[1]).abs() / (double_q.exp() + double_p.exp())).max() < 1e-5


@over_kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_are_never_nan(kind: DivergenceKind, dtype: torch.dtype) -> None:
    student, teacher = random_pair(16, 8, 6, 3e3, dtype)
    value = divergence(kind, student=student.log_softmax(-1), teacher=teacher.log_softmax(-1))
    assert torch.isfinite(value).all()
    assert torch.isfinite(logit_gradient(kind, student, teacher)).all()


@over_kinds
def test_gradient_reaches_the_student_alone_and_depends_on_the_teacher(kind: DivergenceKind) -> None:
    student, teacher = random_pair(17, 4, 6)
    teacher.requires_grad_()
    z = student.clone().requires_grad_()
    divergence(kind, student=z.log_softmax(-1), teacher=teacher.log_softmax(-1)).sum().backward()
    assert teacher.grad is None
    shuffled = logit_gradient(kind, student, teacher.detach().roll(1, 0))
    assert z.grad is not None
    assert (shuffled - z.grad).abs().max() > 1e-3


@over_kinds
def test_rows_do_not_know_of_each_other(kind: DivergenceKind) -> None:
    student, teacher = (x.log_softmax(-1) for x in random_pair(18, 8, 6))
    whole = divergence(kind, student=student, teacher=teacher)
    parts = [divergence(kind, student=student[i : i + 1], teacher=teacher[i : i + 1]) for i in range(8)]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-14, atol=0)


@over_kinds
def test_one_tensor_of_the_vocabulary_waits_for_backward(kind: DivergenceKind) -> None:
    student, teacher = (x.log_softmax(-1) for x in random_pair(19, 4, 1000))
    kept: list[torch.Size] = []
    student.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        divergence(kind, student=student, teacher=teacher, clip=0.1)
    assert kept == [torch.Size([4, 1000])]


def test_mistakes_are_named() -> None:
    q = torch.zeros(2, 3)
    with pytest.raises(UserError, match="clip needs a number above 0, got -1"):
        divergence(FORWARD, student=q, teacher=q, clip=-1.0)
    with pytest.raises(ValueError, match=r"differ: student \(2, 3\)"):
        divergence(FORWARD, student=q, teacher=q[:1])
    with pytest.raises(ValueError, match="float32 or float64"):
        divergence(FORWARD, student=q.half(), teacher=q.half())
    twice = q.clone().requires_grad_()
    value = divergence(FORWARD, student=twice.log_softmax(-1), teacher=q.log_softmax(-1)).sum()
    with pytest.raises(NotImplementedError, match="without a second one"):
        torch.autograd.grad(value, twice, create_graph=True)
