"""Laws 2 and 3: a teacher that is the student teaches nothing, and what teaches cannot be shuffled unnoticed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lab import CASES, DIVERGENCES, SUPPORTS, Lab
from redistill.core.episode import flat
from redistill.core.signal import Signal
from redistill.core.specs import DivergenceKind, Support, TeacherWeights
from redistill.core.task import Verdict
from redistill.objectives.terms import Divergence
from redistill.text.views import Evidence

WEIGHTS = ("live", "frozen", "ema(0.05)", "sync(2)", "trust_region(0.4)")


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("support", SUPPORTS)
def test_law_2_teacher_is_student(weights: str, support: str) -> None:
    lab = Lab("opsd")
    spec = TeacherWeights.parse(weights)
    lab.domain.bank.need([spec])
    rows = flat(lab.groups())
    for temperature in (1.0, 1.7):
        for kind in DIVERGENCES:
            if kind == "tvd" and spec.name == "trust_region":
                continue  # a mixture of equals is equal up to rounding, and tvd's slope is the sign of the difference
            teacher = lab.domain.teacher(spec, rows, "plain", [Evidence()] * len(rows))
            term = Divergence(
                teacher=teacher,
                kind=DivergenceKind.parse(kind),
                support=Support.parse(support),
                temperature=temperature,
            )
            loss, gradient = lab.gradient(Signal(rows, [term]))
            assert abs(loss) < 1e-12
            assert float(gradient.norm()) < 1e-10, kind


@pytest.mark.parametrize("estimator", ["policy_gradient", "k2", "k3"])
def test_law_2_teacher_is_student_sampled(estimator: str) -> None:
    lab = Lab("opd", teacher="frozen", support="sampled", estimator=estimator)
    loss, gradient = lab.gradient(lab.signal(lab.groups()))
    assert abs(loss) < 1e-12
    assert float(gradient.norm()) < 1e-10


@pytest.mark.parametrize("clip", [{"clip": 0.05}, {"advantage_clip": 0.5}])
def test_law_2_clips_do_not_move_a_teacher_that_is_the_student(clip: dict[str, float]) -> None:
    lab = Lab("opsd")
    rows = flat(lab.groups())
    teacher = lab.domain.teacher(TeacherWeights("live"), rows, "plain", [Evidence()] * len(rows))
    loss, gradient = lab.gradient(Signal(rows, [Divergence(teacher=teacher, **clip)]))
    assert abs(loss) < 1e-12
    assert float(gradient.norm()) < 1e-10


def test_law_2_fails_when_the_teacher_is_one_step_off() -> None:
    """Check 6 of OPSD: the same weights and view, but a teacher read one position later, is not the student."""
    lab = Lab("opsd")
    rows = flat(lab.groups())
    plain = lab.domain.teacher(TeacherWeights("live"), rows, "plain", [Evidence()] * len(rows))
    off = replace(plain, contexts=tuple(context[:-1] for context in plain.contexts))
    _, gradient = lab.gradient(Signal(rows, [Divergence(teacher=off)]))
    assert float(gradient.norm()) > 1e-2


TAUGHT = [case for case in CASES if case.split("-")[0] in ("opsd", "sdpo") or "checkpoint" in case]
IN_ADVANTAGES = {"g-opd"}
"""Methods whose teacher acts through advantages made beforehand: tests/laws/test_reference_teachers.py has their law 3."""
PRIVILEGED = [
    case
    for case in CASES
    if (
        CASES[case][1].get("teacher_view") == "with_solution"
        or CASES[case][0] in ("opsd", "sdpo", "srpo", "ssb", "sd-zero", "caopd")
        or case in ("pi-distill-pathwise", "pi-distill-opsd")
    )
    and "mix" not in case
    and "successes" not in case
    and "srt" not in case  # no divergence; two successes that read the same text
    and CASES[case][0] not in IN_ADVANTAGES
]


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()))


@pytest.mark.parametrize("case", PRIVILEGED)
def test_law_3_shuffled_contexts_change_the_gradient(case: str) -> None:
    slug, options = CASES[case]
    lab = Lab(slug, **options)
    lab.shake_teachers()
    signal = lab.signal(lab.collected())
    terms = []
    for term in signal.terms:
        if isinstance(term, Divergence):
            contexts = list(term.teacher.contexts)
            there = [i for i, context in enumerate(contexts) if context is not None]
            for i, j in zip(there, [*there[1:], there[0]]):
                contexts[i] = term.teacher.contexts[j]
            term = replace(term, teacher=replace(term.teacher, contexts=tuple(contexts)))
        terms.append(term)
    own, shuffled = lab.gradient(signal)[1], lab.gradient(Signal(signal.rows, terms))[1]
    if "k1" in case:  # its gradient is the score function's, whatever the teacher says: the option exists to show that
        assert cosine(own, shuffled) == pytest.approx(1.0, abs=1e-9)
        return
    assert float((own - shuffled).norm()) > 1e-3 * float(own.norm())


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.split("-")[0] in ("grpo", "rft", "sdpo", "srpo", "rltf")]
)
def test_law_3_shuffled_rewards_change_the_gradient(case: str) -> None:
    slug, options = CASES[case]
    lab = Lab(slug, **options)
    lab.shake_teachers()
    groups = lab.collected()
    rolled = []
    for group in groups:
        verdicts = [episode.verdict for episode in group]
        verdicts = [verdicts[-1], *verdicts[:-1]]
        if slug == "sdpo" and all(v.reward == 0 for v in verdicts):
            verdicts = [Verdict(1.0), *verdicts[1:]]
        episodes = [replace(e, verdict=v) for e, v in zip(group, verdicts)]
        rolled.append(replace(group, episodes=episodes))
    own, shuffled = lab.gradient(lab.signal(groups))[1], lab.gradient(lab.signal(rolled))[1]
    assert float((own - shuffled).norm()) > 1e-2 * float(own.norm())
