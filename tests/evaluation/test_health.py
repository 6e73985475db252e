"""Health alarms: each is raised by a run that is sick in its way, none by a healthy one, and they cost next to nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from redistill.build import prepare
from redistill.core.episode import Episode, Group
from redistill.core.loop import DRIFT_EVERY, DRIFT_SAMPLE, Run
from redistill.core.signal import Signal
from redistill.core.task import Prompt
from redistill.core.vitals import activity, describe_groups
from redistill.evaluation.health import AGAIN, ALARMS, EARLY, MOST, RECENT, Watch
from redistill.objectives.terms import Likelihood, PolicyGradient

HEALTHY: dict[str, float] = {
    "active_episodes": 0.6, "active_tokens": 0.6, "entropy": 0.4, "truncated": 0.02, "length": 9.0, "sampler_gap": 1e-3,
    "grad_norm": 0.5, "signal": 0.8, "reward": 0.3, "policy_gradient/ratio_variance": 0.01, "divergence/captured_mass": 0.99, "divergence/forward_kl": 0.1,
    "drift/ema-0.05": 0.01, "drift/frozen": 0.4,
}  # fmt: skip
BEFORE = {"metric": "accuracy", "accuracy": 0.3, "prompts": 200, "utility": 0.5, "ece": 0.05}
SICK: dict[str, dict[str, float]] = {
    "dead_signal": {"active_episodes": 0.05}, "entropy_collapse": {"entropy": 0.03}, "entropy_explosion": {"entropy": 0.9},
    "truncation": {"truncated": 0.3}, "length_drift": {"length": 20.0}, "ratio_spread": {"policy_gradient/ratio_variance": 0.5},
    "sampler_gap": {"sampler_gap": 0.1}, "captured_mass": {"divergence/captured_mass": 0.5}, "teacher_drift": {"drift/ema-0.05": 0.3},
    "teacher_gap": {"divergence/forward_kl": 0.5}, "gradient_lost": {"grad_norm": 1e-5}, "gradient_explosion": {"grad_norm": 20.0},
}  # fmt: skip
SICK_EVALUATIONS: dict[str, tuple[dict[str, float], dict[str, float]]] = {
    "teacher_utility": ({}, {"utility": -0.1}), "reward_without_gain": ({"reward": 0.7}, {}), "miscalibration": ({}, {"ece": 0.4}),
}  # fmt: skip


def watched(later: Mapping[str, float], evaluation: Mapping[str, float], steps: int = 12) -> list[dict[str, Any]]:
    """The alarms of a run that is healthy for its first steps, then as `later` says, and evaluated at both ends."""
    watch = Watch()
    told = watch.evaluated(0, BEFORE, True)
    watch.enter()
    for step in range(1, steps + 1):
        told += watch.step(step, HEALTHY | ({} if step <= EARLY else later))
    return told + watch.evaluated(steps, BEFORE | evaluation, True)


@pytest.mark.parametrize("name", [alarm.name for alarm in ALARMS])
def test_each_alarm_is_raised_by_its_own_sickness_alone(name: str) -> None:
    later, evaluation = SICK_EVALUATIONS.get(name) or (SICK[name], {})
    (alarm,) = watched(later, evaluation)
    assert alarm["name"] == name
    assert set(alarm) == {"step", "name", "value", "means", "try"}
    assert "{" not in alarm["means"]
    assert alarm["means"].endswith(".")
    assert alarm["step"] == (12 if name in SICK_EVALUATIONS else EARLY + (1 if name == "teacher_drift" else 2))


def test_a_healthy_run_raises_none() -> None:
    assert watched({}, {}) == []
    assert watched({"reward": 0.7, "entropy": 0.2, "length": 7.0}, {"accuracy": 0.65, "utility": 0.3}) == []


def test_one_odd_step_is_no_alarm() -> None:
    watch = Watch()
    told = [watch.step(step, HEALTHY | (SICK["truncation"] if step == 9 else {})) for step in range(1, 15)]
    assert not any(told)


def test_numbers_that_a_run_does_not_have_or_that_are_not_finite_raise_nothing() -> None:
    watch = Watch()
    for step in range(1, 12):
        assert (
            watch.step(step, {"loss": 1.0, "entropy": float("nan"), "grad_norm": float("inf"), "drift/frozen": 9.0})
            == []
        )
    assert watch.evaluated(12, {"metric": "size", "size": 3.0}, False) == []


def test_an_alarm_is_told_again_when_it_changes_and_not_without_end() -> None:
    watch, steps = Watch(), []
    shares = [0.0] * 5 + [0.3] * 6 + [0.3 * AGAIN + 0.1] * 6 + [0.0] * 6 + [0.3] * 6
    for step, share in enumerate(shares, start=1):
        steps += [(row["step"], row["value"]) for row in watch.step(step, HEALTHY | {"truncated": share})]
    assert steps == [(7, 0.3), (13, 0.7), (25, 0.3)]
    many = Watch()
    told = [many.step(step, HEALTHY | {"truncated": 0.3 * (step // 4 % 2)}) for step in range(1, 400)]
    assert sum(map(len, told)) == MOST


def test_a_stage_is_compared_with_its_own_beginning() -> None:
    watch = Watch()
    for step in range(1, 10):
        assert watch.step(step, HEALTHY) == []
    watch.enter()
    for step in range(10, 20):
        assert watch.step(step, HEALTHY | {"length": 30.0, "entropy": 2.0, "grad_norm": 50.0}) == []


def test_the_memory_is_small_and_is_restored() -> None:
    watch = Watch()
    for step in range(1, 500):
        watch.step(step, HEALTHY | SICK["truncation"])
        watch.evaluated(step, BEFORE, True)
    assert all(len(values) <= EARLY for values in watch.early.values())
    assert all(len(values) <= RECENT for values in watch.recent.values())
    assert len(watch.evaluations) == 2
    other = Watch()
    piece = watch.state()
    other.restore(replace(piece, facts=json.loads(json.dumps(dict(piece.facts)))))
    assert other == watch


# --- what is recorded -------------------------------------------------------------------------------------------------
def episode(steps: int, greedy: bool = False) -> Episode:
    class Spec:
        pass

    spec = Spec()
    spec.greedy = greedy  # type: ignore[attr-defined]
    logp = -torch.arange(1.0, steps + 1)
    return Episode(Prompt("a", "x"), None, None, steps, behaviour_logp_T=logp, sampling=spec)


def test_entropy_is_the_mean_surprisal_of_what_was_drawn() -> None:
    group = Group(Prompt("a", "x"), [episode(2), episode(0), episode(3)])
    assert describe_groups([group])["entropy"] == pytest.approx((1 + 2 + 1 + 2 + 3) / 5)
    assert "entropy" not in describe_groups([Group(Prompt("a", "x"), [episode(2, greedy=True)])])


def test_surprisal_estimates_the_entropy_of_the_policy() -> None:
    torch.manual_seed(0)
    logp = torch.randn(50).log_softmax(-1)
    drawn = logp[torch.multinomial(logp.exp(), 20000, replacement=True)]
    row = replace(episode(0), steps=len(drawn), behaviour_logp_T=drawn)
    exact = float(-(logp.exp() * logp).sum())
    assert describe_groups([Group(row.prompt, [row])])["entropy"] == pytest.approx(exact, abs=0.03)


def test_activity_counts_what_some_term_asks_for() -> None:
    rows = [episode(2), episode(3), episode(0), episode(5)]
    advantage = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    mask = torch.zeros(10, dtype=torch.bool)
    mask[5:7] = True
    group = [Group(rows[0].prompt, [*rows, episode(10)])]
    taught = Signal(rows, [PolicyGradient(advantage_N=advantage)])
    assert activity([taught], group) == {"active_episodes": 1 / 5, "active_tokens": 1 / 20}
    both = Signal(rows, [PolicyGradient(advantage_N=advantage), Likelihood(mask_N=mask, weight_N=2 * mask.float())])
    assert activity([both], group) == {"active_episodes": 2 / 5, "active_tokens": 3 / 20}
    nothing = Signal(rows, [Likelihood(coefficient=0.0), Likelihood(weight_N=torch.zeros(10))])
    assert activity([nothing], group) == {"active_episodes": 0.0, "active_tokens": 0.0}
    assert activity([replace(both, player="critic")], group) == {}


# --- real runs --------------------------------------------------------------------------------------------------------
SMALL = {
    "model": "pocket", "task": "sums", "steps": 4, "prompts_per_step": 4, "group_size": 4, "max_new_tokens": 16, "eval_prompts": 4,
    "utility": "false", "save_model": "false", "save_every": 1000, "learning_rate": 1e-4,
}  # fmt: skip


def ran(path: Path, slug: str, change: Callable[[Run], None] = lambda run: None, **given: Any) -> tuple[set[str], Run]:
    """The names of the alarms that a run left in its folder, and the run."""
    told: list[Any] = []
    run = prepare(slug, {**SMALL, **given}, out=path, report=lambda what, facts: told.append((what, facts)))
    try:
        change(run)
        run.go(False)
    finally:
        run.close()
    rows = [json.loads(line) for line in (path / "alarms.jsonl").read_text().splitlines()]
    assert rows == [facts for what, facts in told if what == "alarm"]
    return {row["name"] for row in rows}, run


@pytest.mark.parametrize(
    ("slug", "given"),
    [
        ("grpo", {"steps": 10, "learning_rate": 5e-5}),
        ("sdpo", {"steps": 10, "utility": "true", "learning_rate": 5e-5}),
        ("opd", {"steps": 6, "teacher": "checkpoint(pocket-adept)"}),
        ("sft", {"steps": 6}),
    ],
)
def test_a_healthy_run_is_silent(tmp_path: Path, slug: str, given: dict[str, Any]) -> None:
    assert ran(tmp_path / "run", slug, **given)[0] == set()


def off(run: Run) -> None:
    """The sampler's log-probs are those of another model."""
    rollout = run.domain.rollout

    def wrong(prompts: Any, *more: Any, **named: Any) -> Any:
        return [
            Group(g.prompt, [replace(e, behaviour_logp_T=e.behaviour_logp_T - 0.3) for e in g])  # type: ignore[operator]
            for g in rollout(prompts, *more, **named)
        ]

    run.domain.rollout = wrong  # type: ignore[method-assign]


def deaf(run: Run) -> None:
    """The gradient gets lost on its way to the weights."""
    for parameter in run.domain.players["student"].parameters.values():
        parameter.register_hook(lambda gradient: gradient * 1e-6)


def certain(run: Run) -> None:
    """After five steps the logits double with every step, as they do when a rate is too high for the last layers."""
    begin = run.domain.begin_step

    def surer(step: int) -> None:
        begin(step)
        if step >= EARLY:
            run.domain.lm.causal.base_model.norm.weight.data.mul_(2.0)  # type: ignore[attr-defined]

    run.domain.begin_step = surer  # type: ignore[method-assign]


def forget(run: Run) -> None:
    """The model has not learnt to read a solution (nor anything else)."""
    for parameter in run.domain.players["student"].parameters.values():
        parameter.data.mul_(0.1)


@pytest.mark.parametrize(
    ("name", "slug", "given", "change"),
    [
        ("dead_signal", "grpo", {"task": "sums:terms=8,digits=9", "max_new_tokens": 24}, None),
        ("truncation", "grpo", {"max_new_tokens": 3}, None),
        ("entropy_collapse", "grpo", {"steps": 9}, certain),
        ("entropy_explosion", "grpo", {"steps": 8, "learning_rate": 1e-3, "entropy": 5, "normaliser": "token"}, None),
        ("ratio_spread", "grpo", {"minibatches": 4, "epochs": 2, "learning_rate": 5e-3}, None),
        ("sampler_gap", "grpo", {}, off),
        ("captured_mass", "sdpo", {"support": "top_k(1)", "temperature": 1.5}, None),
        ("teacher_drift", "sdpo", {"teacher": "ema(0.001)", "learning_rate": 3e-2, "steps": 6}, None),
        ("gradient_lost", "grpo", {"normaliser": "token"}, deaf),
        ("teacher_utility", "sdpo", {"utility": "true", "eval_prompts": 10, "steps": 1}, forget),
    ],
)
def test_a_sick_run_says_so(
    tmp_path: Path, name: str, slug: str, given: dict[str, Any], change: Callable[[Run], None] | None
) -> None:
    told, _ = ran(tmp_path / "run", slug, change or (lambda run: None), **given)
    assert name in told


def test_it_costs_less_than_a_hundredth_of_a_step(tmp_path: Path) -> None:
    kept: list[Any] = []

    def keep(run: Run) -> None:
        method = run.method
        signal = method.signal
        object.__setattr__(
            method, "signal", lambda groups, ctx: kept.append((groups, made := signal(groups, ctx))) or made
        )

    given = {"steps": 6, "prompts_per_step": 8, "group_size": 8, "teacher": "ema(0.05)"}
    _, run = ran(tmp_path / "run", "sdpo", keep, **given)
    groups, signal = kept[-1]
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "stage" in record]
    took = min(sum(v for k, v in step.items() if k.startswith("seconds_")) for step in steps)

    def best(work: Callable[[], Any]) -> float:
        times = []
        for _ in range(20):
            began = time.perf_counter()
            work()
            times.append(time.perf_counter() - began)
        return min(times)

    watch = Watch()
    added = best(lambda: activity([signal], groups)) + best(lambda: watch.step(1, steps[-1]))
    added += best(lambda: run.domain.bank.drift(DRIFT_SAMPLE)) / DRIFT_EVERY
    assert added < 0.01 * took, f"{added * 1e3:.2f} ms of {took * 1e3:.0f} ms"
