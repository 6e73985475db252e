"""The numbered checks of teacher-hacking, and what each of its options changes."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from redistill.build import prepare
from redistill.core.episode import Episode, flat
from redistill.core.specs import DivergenceKind, TeacherWeights
from redistill.errors import UserError
from redistill.objectives.divergence import divergence

TWO = {
    "teacher": "checkpoint(pocket-expert)",
    "oracle": "checkpoint(pocket-adept)",
    "prompts": 6,
    "prompts_per_step": 4,
    "eval_prompts": 8,
}
FORWARD = DivergenceKind("forward_kl")


def ran(path: Path, **given: Any) -> dict[str, Any]:
    settings = {
        "model": "pocket",
        "save_model": "false",
        "save_every": 1000,
        "learning_rate": 3e-4,
        "warmup_steps": 0,
        **TWO,
        **given,
    }
    run = prepare("teacher-hacking", settings, out=path, report=lambda event, facts: None)
    try:
        return dict(run.go(False)["evaluations"])
    finally:
        run.close()


def texts(groups: Any) -> list[tuple[str, str]]:
    return [(episode.prompt.uid, episode.text) for episode in flat(groups)]


# --- check 1 ----------------------------------------------------------------------------------------------------------
def test_check_1_where_the_teacher_is_the_oracle_proxy_is_golden(tmp_path: Path) -> None:
    same = {"oracle": TWO["teacher"], "steps": 6, "eval_every": 3}
    for facts in ran(tmp_path / "same", **same).values():
        assert facts["proxy"] == facts["golden"]
        assert facts["hacking"] == 0
    other = ran(tmp_path / "other", steps=2)["after"]
    assert abs(other["proxy"] - other["golden"]) > 0.01


# --- check 2 ----------------------------------------------------------------------------------------------------------
def test_check_2_chain_rule_over_all_sequences_of_two_steps() -> None:
    """KL over sequences is the sum over prefixes of p(prefix) KL(p(.|prefix) || q(.|prefix)), with the library's own divergence."""
    torch.manual_seed(0)
    size = 5
    p_first, q_first = (torch.randn(1, size, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    p_next, q_next = (torch.randn(size, size, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    whole = 0.0
    for i, j in itertools.product(range(size), repeat=2):
        p, q = float(p_first[0, i] + p_next[i, j]), float(q_first[0, i] + q_next[i, j])
        whole += math.exp(p) * (p - q)
    by_prefix = divergence(FORWARD, student=q_first, teacher=p_first).sum()
    by_prefix = by_prefix + (p_first[0].exp() * divergence(FORWARD, student=q_next, teacher=p_next)).sum()
    assert float(by_prefix) == pytest.approx(whole, rel=1e-12)


def test_the_distance_is_the_mean_over_tokens_of_the_forward_kl(bench: Any) -> None:
    b = bench("teacher-hacking", **TWO)
    found = b.method.measures(b)
    lm, (teacher, _) = b.domain.lm, b.domain.bank.others.values()
    total, tokens = 0.0, 0
    for row in b.method.cache["proxy"]:
        ids = torch.tensor([[*row.context, *row.trajectory.ids]])
        with torch.no_grad():
            p, q = (
                one.module(ids).logits[0, len(row.context) - 1 : -1].double().log_softmax(-1) for one in (teacher, lm)
            )
        total, tokens = total + float((p.exp() * (p - q)).sum()), tokens + row.steps
    assert found["proxy"] == pytest.approx(total / tokens, rel=1e-4)


# --- check 3 ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("start", ["oracle", "random"])
def test_check_3_a_tabular_student_reaches_its_teacher_and_the_golden_floor(start: str) -> None:
    """Forward KL on fresh teacher data: proxy -> 0, golden -> dist(oracle, teacher), from below or from above."""
    torch.manual_seed(1)
    contexts, size = 6, 4
    oracle = torch.randn(contexts, size, dtype=torch.float64).log_softmax(-1)
    teacher = (oracle + 0.5 * torch.randn(contexts, size, dtype=torch.float64)).log_softmax(-1)
    begin = oracle if start == "oracle" else 3 * torch.randn(contexts, size, dtype=torch.float64)
    student = torch.nn.Parameter(begin.clone())
    floor = float(divergence(FORWARD, student=teacher, teacher=oracle).mean())
    golden = [float(divergence(FORWARD, student=begin.log_softmax(-1), teacher=oracle).mean())]
    optimiser = torch.optim.SGD([student], lr=2.0)
    for _ in range(600):
        visited = torch.randint(contexts, (32,))
        optimiser.zero_grad()
        divergence(FORWARD, student=student[visited].log_softmax(-1), teacher=teacher[visited]).mean().backward()
        optimiser.step()
        golden.append(float(divergence(FORWARD, student=student.detach().log_softmax(-1), teacher=oracle).mean()))
    assert float(divergence(FORWARD, student=student.detach().log_softmax(-1), teacher=teacher).mean()) < 1e-6
    assert golden[-1] == pytest.approx(floor, rel=1e-3)
    assert (golden[0] < floor) == (start == "oracle")


# --- check 4 ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd(0.5)", "jsd(0.1)", "tvd"])
def test_check_4_nothing_between_equals_and_a_bounded_symmetric_jsd(kind: str) -> None:
    torch.manual_seed(2)
    p, q = (3 * torch.randn(50, 7, dtype=torch.float64) for _ in range(2))
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    assert float(divergence(DivergenceKind.parse(kind), student=p, teacher=p).abs().max()) < 1e-14
    one, other = (divergence(DivergenceKind.parse(kind), student=a, teacher=b) for a, b in ((p, q), (q, p)))
    assert bool((one > 0).all())
    if kind == "jsd(0.5)":
        torch.testing.assert_close(one, other)
        assert float(one.max()) <= math.log(2)


# --- checks 5 and 6 ---------------------------------------------------------------------------------------------------
def digest(rows: Sequence[Episode]) -> str:
    return hashlib.sha256(repr(sorted((row.prompt.uid, row.trajectory.ids) for row in rows)).encode()).hexdigest()


def epoch(b: Any, number: int) -> list[Episode]:
    """The rows of an epoch of twelve, three steps of four."""
    rows = []
    for step in range(3 * number, 3 * number + 3):
        b.step = b.stage_step = step
        b.domain.begin_step(step)
        rows += flat(b.method.collect(b))
    return rows


def test_check_5_stored_data_stay_and_fresh_ones_change(bench: Any) -> None:
    sizes = {}
    for prompts, answers in ((12, 1), (6, 2), (4, 3)):
        b = bench("teacher-hacking", **{**TWO, "prompts": prompts, "answers": answers})
        first, second = epoch(b, 0), epoch(b, 1)
        assert digest(first) == digest(second)
        assert [row.prompt.uid for row in first] != [row.prompt.uid for row in second], "every epoch has its own order"
        assert len({row.prompt.uid for row in first}) == prompts
        sizes[prompts] = len(first)
    assert set(sizes.values()) == {12}
    for writer in ("student", "teacher"):
        b = bench(
            "teacher-hacking",
            **{**TWO, "teacher": "checkpoint(pocket-adept)", "prompts": 12, "fresh": 1.0, "fresh_by": writer},
        )
        first, second = epoch(b, 0), epoch(b, 1)
        assert digest(first) != digest(second)
        assert sorted(row.prompt.uid for row in first) == sorted(row.prompt.uid for row in second)


def test_check_6_shares_of_0_and_1_are_the_pure_sources(bench: Any) -> None:
    stored = bench("teacher-hacking", **TWO)
    assert set(texts(stored.method.collect(stored))) <= {(e.prompt.uid, e.text) for e in stored.method.stored(stored)}
    fresh = bench("teacher-hacking", **TWO, fresh=1.0)
    groups = fresh.method.collect(fresh)
    assert fresh.method.cache == {}, "nothing is stored where nothing stored is used"
    again = bench("teacher-hacking", **TWO, fresh=1.0)
    assert texts(groups) == texts(again.domain.rollout([group.prompt for group in groups], size=1))
    half = bench("teacher-hacking", **TWO, fresh=0.5)
    kinds = [
        row.key[1] == -1
        for step in range(3)
        for row in (setattr(half, "step", step), flat(half.method.collect(half)))[1]
    ]
    assert 0 < sum(kinds) < len(kinds)


# --- options ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "changed",
    [
        {"teacher": "checkpoint(pocket-pairs)"}, {"prompts": 3}, {"answers": 3}, {"stored_by": "oracle"}, {"fresh": 1.0},
        {"divergence": "jsd(0.5)"}, {"normaliser": "sequence"},
    ],
)  # fmt: skip
def test_every_option_of_the_training_changes_the_gradient(bench: Any, changed: dict[str, Any]) -> None:
    one, other = (bench("teacher-hacking", **{**TWO, **more}) for more in ({}, changed))
    left, right = (b.gradient(b.method.collect(b)) for b in (one, other))
    assert float((left - right).abs().max()) > 1e-4 * float(left.abs().max())


def test_the_writer_of_fresh_answers_and_the_oracle_change_what_they_should(bench: Any) -> None:
    by_student, by_teacher = (
        bench("teacher-hacking", **TWO, fresh=1.0, fresh_by=who) for who in ("student", "teacher")
    )
    assert texts(by_student.method.collect(by_student)) != texts(by_teacher.method.collect(by_teacher))
    one, other = (bench("teacher-hacking", **{**TWO, **more}) for more in ({}, {"oracle": "checkpoint(pocket)"}))
    left, right = one.method.measures(one), other.method.measures(other)
    assert left["proxy"] == right["proxy"]
    assert left["golden"] > 0.01 and right["golden"] == pytest.approx(0.0, abs=1e-6)  # noqa: PT018


def test_held_out_answers_are_the_same_for_every_seed_and_step(bench: Any) -> None:
    one, other = bench("teacher-hacking", **TWO), bench("teacher-hacking", **TWO, seed=5)
    other.step = 7
    other.domain.begin_step(7)
    for b in (one, other):
        b.method.measures(b)
    assert digest(one.method.cache["golden"]) == digest(other.method.cache["golden"])
    assert digest(one.method.stored(one)) != digest(other.method.stored(other))


@pytest.mark.parametrize("name", ["teacher", "oracle"])
def test_a_teacher_without_a_distribution_is_refused(bench: Any, name: str) -> None:
    with pytest.raises(UserError, match=f"{name}=live has no distribution of its own"):
        bench("teacher-hacking", **{**TWO, name: "live"})


def test_the_history_is_saved(tmp_path: Path) -> None:
    from redistill.methods.teacher_hacking import TeacherHacking

    method = TeacherHacking(teacher=TeacherWeights("frozen"))
    method.history.add(3, 0.5, 0.6)
    assert method.state()["history"].state().facts["points"] == [[3, 0.5, 0.6]]
