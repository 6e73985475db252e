"""Sampled estimators: which value and which gradient each has in expectation, by enumeration and by Monte Carlo."""

import itertools
import math

import pytest
import torch
from redistill.core.specs import DivergenceKind
from redistill.errors import UserError
from redistill.objectives.divergence import divergence
from redistill.objectives.estimators import MAX_LOG_RATIO, estimate
from redistill.objectives.policy_gradient import policy_gradient

REVERSE, FORWARD = DivergenceKind("reverse_kl"), DivergenceKind("forward_kl")


def random_logits(seed: int, outcomes: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    student, teacher = 1.5 * torch.randn(2, outcomes, generator=source, dtype=torch.float64)
    return student.requires_grad_(), teacher.log_softmax(-1)


def exact_gradient(kind: DivergenceKind, student: torch.Tensor, teacher_logp: torch.Tensor) -> torch.Tensor:
    value = divergence(kind, student=student.log_softmax(-1)[None], teacher=teacher_logp[None]).sum()
    return torch.autograd.grad(value, student)[0]


def mean_gradient(name: str, student: torch.Tensor, teacher_logp: torch.Tensor) -> torch.Tensor:
    """The expectation over v ~ student, by summing over every v."""
    logp = student.log_softmax(-1)
    expected = (logp.detach().exp() * estimate(name, logp, teacher_logp)).sum()
    return torch.autograd.grad(expected, student)[0]


@pytest.mark.parametrize("seed", range(4))
def test_mean_gradients_are_zero_reverse_forward_reverse(seed: int) -> None:
    student, teacher = random_logits(seed)
    reverse, forward = (exact_gradient(kind, student, teacher) for kind in (REVERSE, FORWARD))
    wants = {"k1": torch.zeros_like(reverse), "k2": reverse, "k3": forward, "policy_gradient": reverse}
    for name, want in wants.items():
        torch.testing.assert_close(mean_gradient(name, student, teacher), want, rtol=1e-10, atol=1e-14)


def test_mean_values_of_k1_and_k3_are_the_reverse_kl() -> None:
    student, teacher = random_logits(10)
    logp = student.detach().log_softmax(-1)
    want = divergence(REVERSE, student=logp[None], teacher=teacher[None]).item()
    for name in ("k1", "k3"):
        assert (logp.exp() * estimate(name, logp, teacher)).sum().item() == pytest.approx(want, rel=1e-12)
    assert (estimate("k3", logp, teacher) >= 0).all()
    torch.testing.assert_close(estimate("k2", logp, teacher), (logp - teacher) ** 2 / 2)


def test_sampled_gradient_by_monte_carlo() -> None:
    """200,000 draws; the tolerance is 5 standard errors, measured on the draws themselves."""
    student, teacher = random_logits(11, outcomes=4)
    logp = student.log_softmax(-1)
    taken = torch.multinomial(
        logp.detach().exp(), 200_000, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    q = logp.detach().exp()
    score = torch.eye(4, dtype=torch.float64)[taken] - q
    log_ratio = (logp.detach() - teacher)[taken]
    error = (score * log_ratio[:, None]).std(0) / math.sqrt(taken.numel())
    got = torch.autograd.grad(estimate("policy_gradient", logp[taken], teacher[taken]).mean(), student)[0]
    assert ((got - exact_gradient(REVERSE, student, teacher)).abs() < 5 * error).all()
    assert (error < 5e-3).all()


def test_sdpo_check_4_the_sampled_token_gives_check_1() -> None:
    student = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([0.9, 0.1], dtype=torch.float64).log()
    assert mean_gradient("policy_gradient", student, teacher).tolist() == pytest.approx([-0.5493, 0.5493], abs=5e-5)


def test_skill_sd_check_2_a_ratio_before_k3_keeps_its_gradient() -> None:
    student = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log().requires_grad_()
    teacher = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64).log()
    logp = student.log_softmax(-1)
    q = logp.detach().exp()
    ratio = (logp - logp.detach()).exp()
    with_ratio = torch.autograd.grad((q * ratio * estimate("k3", logp, teacher)).sum(), student)[0]
    assert with_ratio.tolist() == pytest.approx([0.2781, 0.0136, -0.2917], abs=5e-5)
    assert mean_gradient("k3", student, teacher).tolist() == pytest.approx([0.3, 0.1, -0.4])


def test_teacher_equal_to_student_has_no_gradient_and_gets_none() -> None:
    student, teacher = random_logits(12)
    logp = student.log_softmax(-1)
    for name in ("k2", "k3", "policy_gradient"):
        assert (torch.autograd.grad(estimate(name, logp, logp).sum(), student, retain_graph=True)[0] == 0).all()
    teacher.requires_grad_()
    for name in ("k1", "k2", "k3", "policy_gradient"):
        value = estimate(name, logp, teacher).sum()
        assert torch.autograd.grad(value, teacher, retain_graph=True, allow_unused=True)[0] is None


def test_k3_is_bounded_above_and_only_there() -> None:
    student = torch.tensor([-19.9, -20.0, -20.1, -500.0, -1.0], requires_grad=True)
    teacher = torch.tensor([0.0, 0.0, 0.0, 0.0, -300.0])
    value = estimate("k3", student, teacher)
    assert torch.isfinite(value).all()
    assert value[2].item() == value[3].item() == pytest.approx(math.exp(MAX_LOG_RATIO) - 1 - MAX_LOG_RATIO, rel=1e-6)
    assert value[4].item() == pytest.approx(298.0)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert gradient[0].item() == pytest.approx(1 - math.exp(19.9), rel=1e-5)
    assert gradient[2:].tolist() == [0.0, 0.0, 1.0]


def test_a_step_that_the_teacher_excludes() -> None:
    student = torch.tensor([-1.0], requires_grad=True)
    for name, want in (("k1", 1.0), ("k3", 1.0)):
        value = estimate(name, student, torch.tensor([-math.inf]))
        assert value.item() == math.inf
        assert torch.autograd.grad(value.sum(), student)[0].item() == want


def test_an_unknown_estimator_is_named() -> None:
    with pytest.raises(UserError, match=r"estimator 'k4' is unknown; did you mean 'k[123]'\?"):
        estimate("k4", torch.zeros(1), torch.zeros(1))


# The sequence level: three outcomes, three steps, every one of the 27 sequences (opd-survey check 5).

OUTCOMES, STEPS = 3, 3
SEQUENCES = list(itertools.product(range(OUTCOMES), repeat=STEPS))
PREFIXES = {
    prefix: i for i, prefix in enumerate(p for n in range(STEPS) for p in itertools.product(range(3), repeat=n))
}
ROWS = torch.tensor([[PREFIXES[sequence[:t]] for t in range(STEPS)] for sequence in SEQUENCES])
TAKEN = torch.tensor(SEQUENCES)


def tables(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the student and log-probs of the teacher after each prefix [13, 3]."""
    source = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, len(PREFIXES), OUTCOMES, generator=source, dtype=torch.float64)
    return student.requires_grad_(), teacher.log_softmax(-1)


def sequence_kl_gradient(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    logp, logt = student.log_softmax(-1)[ROWS, TAKEN].sum(-1), teacher[ROWS, TAKEN].sum(-1)
    return torch.autograd.grad((logp.exp() * (logp - logt)).sum(), student)[0]


def test_sequence_reverse_kl_is_the_policy_gradient_of_the_log_ratio_to_go() -> None:
    student, teacher = tables(0)
    logp = student.log_softmax(-1)[ROWS, TAKEN]  # [27, 3]
    log_ratio = (logp - teacher[ROWS, TAKEN]).detach()
    to_go = log_ratio.flip(-1).cumsum(-1).flip(-1)
    loss, _ = policy_gradient(logp, logp.detach(), -to_go, clip_low=0.2, clip_high=0.2)
    probability = logp.detach().sum(-1).exp()
    got = torch.autograd.grad((probability * loss.sum(-1)).sum(), student)[0]
    torch.testing.assert_close(got, sequence_kl_gradient(student, teacher), rtol=1e-10, atol=1e-13)


def test_without_the_future_it_is_the_sum_of_stepwise_reverse_kls() -> None:
    student, teacher = tables(1)
    logp_all = student.log_softmax(-1)
    logp = logp_all[ROWS, TAKEN]
    probability = logp.detach().sum(-1).exp()
    sampled = estimate("policy_gradient", logp, teacher[ROWS, TAKEN])
    got = torch.autograd.grad((probability * sampled.sum(-1)).sum(), student, retain_graph=True)[0]
    stepwise = divergence(REVERSE, student=logp_all[ROWS.flatten()], teacher=teacher[ROWS.flatten()]).view(ROWS.shape)
    want = torch.autograd.grad((probability * stepwise.sum(-1)).sum(), student, retain_graph=True)[0]
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-13)
    assert (want - sequence_kl_gradient(student, teacher)).abs().max() > 1e-2  # they are two objectives


def test_a_state_cost_as_a_reward_has_no_gradient() -> None:
    """A whole-distribution KL used as each step's own reward does not depend on the step taken (pitfall 11)."""
    student, teacher = tables(2)
    logp_all = student.log_softmax(-1)
    stepwise = divergence(REVERSE, student=logp_all.detach(), teacher=teacher)[ROWS]
    logp = logp_all[ROWS, TAKEN]
    loss, _ = policy_gradient(logp, logp.detach(), -stepwise, clip_low=None, clip_high=None)
    gradient = torch.autograd.grad((logp.detach().sum(-1).exp() * loss.sum(-1)).sum(), student)[0]
    assert gradient.abs().max() < 1e-14
