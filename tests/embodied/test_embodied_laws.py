"""The laws of the objective layer over the embodied methods, in float64, and resuming bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from redistill.build import prepare
from redistill.core.episode import behaviour, flat
from redistill.core.signal import DivergenceOf, LogProb, Signal, TeacherLogProb
from redistill.core.specs import DivergenceKind, Support, TeacherWeights
from redistill.core.state import checkpoints
from redistill.embodied.terms import Imitation, ProximalDistillation
from redistill.objectives.gaussian import kl, log_prob
from redistill.objectives.terms import Divergence
from redistill.reporting.terminal import reporter
from safetensors.torch import load_file

from embodied_lab import SMALL, Lab, saved_policy

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ppo": ("ppo", {}), "ppo entropy": ("ppo", {"entropy": 0.1, "value_clip": 0.05, "finite_horizon": "false"}),
    "ppo not standardised": ("ppo", {"standardise": "false"}), "rpd": ("rpd", {}), "rpd l1": ("rpd", {"loss": "l1"}),
    "rpd bc": ("rpd", {"loss": "bc", "samples": 2}), "rpd ppd": ("rpd", {"loss": "ppd", "samples": 4}),
    "rpd annealed": ("rpd", {"anneal_steps": 400}),
}  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_policy(tmp_path_factory.mktemp("teacher")) + ",noise=0.3"


def at_work(case: str, teacher: str, **given: Any) -> tuple[Lab, Signal]:
    """A method some steps into its run, off what played, with the signal of the next step."""
    slug, options = CASES[case]
    lab = Lab(slug, **{"teacher": teacher, **options, **given})
    lab.advance(2)
    groups = lab.collect()
    signal = lab.signal(groups)
    lab.nudge(0.02)
    return lab, signal


@pytest.mark.parametrize("case", CASES)
def test_law_1_the_cut_into_micro_batches_and_the_order_change_nothing(case: str, teacher: str) -> None:
    lab, signal = at_work(case, teacher)
    loss, gradient = lab.gradient(signal)
    assert float(gradient.norm()) > 1e-4
    for size in (1, 3, 8):
        object.__setattr__(lab.config, "micro_batch", size)
        assert len(list(lab.domain.micro_batches(signal))) == -(-len(signal.rows) // size)
        cut = lab.gradient(signal)
        assert cut[0] == pytest.approx(loss, abs=1e-9)
        torch.testing.assert_close(cut[1], gradient, rtol=1e-6, atol=1e-10)
    order = torch.randperm(len(signal.rows), generator=torch.Generator().manual_seed(1)).tolist()
    turned = lab.gradient(signal.subset(order))
    torch.testing.assert_close(turned[1], gradient, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_law_1_a_masked_neighbour_changes_nothing(case: str, teacher: str) -> None:
    lab, signal = at_work(case, teacher)
    keep = range(len(signal.rows) // 2)
    mask_N = torch.zeros(sum(signal.lengths), dtype=torch.bool)
    mask_N[signal.steps_of(keep)] = True
    masked = Signal(signal.rows, [replace(t, mask_N=mask_N) for t in signal.terms])
    one, other = lab.gradient(masked), lab.gradient(signal.subset(keep))
    assert one[0] == pytest.approx(other[0], abs=1e-12)
    torch.testing.assert_close(one[1], other[1])


def test_law_2_a_teacher_that_is_the_student_teaches_nothing() -> None:
    lab = Lab("ppo")
    rows = lab.domain.transitions(lab.collect())
    live = lab.domain.teacher(TeacherWeights("live"), rows)
    full = Support("full")
    for term in (
        Divergence(teacher=live, kind=DivergenceKind("reverse_kl"), support=full),
        Divergence(teacher=live, kind=DivergenceKind("forward_kl"), support=full),
        Imitation(teacher=live), Imitation(teacher=live, kind="l1"),
        ProximalDistillation(teacher=live, behaviour_N=behaviour(rows)),
    ):  # fmt: skip
        loss, gradient = lab.gradient(Signal(rows, [term]))
        assert abs(loss) < 1e-15
        assert float(gradient.abs().max()) < 1e-15


@pytest.mark.parametrize("case", CASES)
def test_law_3_other_rewards_change_the_gradient(case: str, teacher: str) -> None:
    slug, options = CASES[case]
    lab = Lab(slug, **{"teacher": teacher, **options})
    groups = lab.collect()
    lab.nudge(0.02)
    _, gradient = lab.gradient(lab.signal(groups))
    for episode in flat(groups):
        object.__setattr__(episode.trajectory, "rewards", episode.trajectory.rewards.flip(0))
    _, turned = lab.gradient(lab.signal(groups))
    assert float((gradient - turned).norm()) > 1e-3 * float(gradient.norm())


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("rpd")])
def test_law_3_another_row_s_teacher_changes_the_gradient(case: str, teacher: str) -> None:
    lab, signal = at_work(case, teacher)
    (term,) = [term for term in signal.terms if term.name == "imitation"]
    contexts = term.teacher.contexts  # type: ignore[attr-defined]
    turned = replace(term, teacher=replace(term.teacher, contexts=(*contexts[7:], *contexts[:7])))  # type: ignore[attr-defined,call-arg]
    one, other = (lab.gradient(Signal(signal.rows, [each]))[1] for each in (term, turned))
    assert float((one - other).norm()) > 1e-2 * float(one.norm())


@pytest.mark.parametrize("case", CASES)
def test_law_4_gradients_are_finite_differences(case: str, teacher: str) -> None:
    lab, signal = at_work(case, teacher)
    _, gradient = lab.gradient(signal)
    parameters = list(lab.domain.players["student"].parameters.values())
    sizes = np.cumsum([0, *[p.numel() for p in parameters]])
    for number in np.linspace(0, sizes[-1] - 1, 12).astype(int):
        which = int(np.searchsorted(sizes, number, side="right")) - 1
        flat_view, at = parameters[which].data.view(-1), number - sizes[which]
        losses = []
        for step in (1e-6, -1e-6):
            flat_view[at] += step
            losses.append(lab.gradient(signal)[0])
            flat_view[at] -= step
        assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(float(gradient[number]), rel=1e-4, abs=1e-7)


def test_law_4_quantities_are_those_of_the_networks() -> None:
    lab = Lab("ppo")
    lab.domain.bank.need([TeacherWeights("frozen"), TeacherWeights("trust_region", 0.3)])
    rows = lab.domain.transitions(lab.collect())
    module = lab.domain.model.module
    seen, action = torch.stack([r.context for r in rows]), torch.stack([r.trajectory for r in rows])
    before = (module.mean(seen).detach(), module.log_std.detach().clone())
    lab.nudge(0.1)
    now = (module.mean(seen).detach(), module.log_std.detach().clone())
    frozen = lab.domain.teacher(TeacherWeights("frozen"), rows)
    kinds = [DivergenceOf(frozen, DivergenceKind(name), Support("full")) for name in ("reverse_kl", "forward_kl")]
    asked = [LogProb(), TeacherLogProb(frozen), *kinds]
    values = lab.domain.measure(Signal(rows, []), range(len(rows)), asked).values
    torch.testing.assert_close(values[asked[0]], log_prob(action, *now))
    torch.testing.assert_close(values[asked[1]], log_prob(action, *before))
    torch.testing.assert_close(values[asked[2]], kl(first=now, second=before))
    torch.testing.assert_close(values[asked[3]], kl(first=before, second=now))
    # A mixture in log space: log q is 0.7 log frozen + 0.3 log live up to a constant of the state.
    mixed = lab.domain.teacher(TeacherWeights("trust_region", 0.3), rows)
    other = [replace(row, trajectory=row.trajectory + 0.3) for row in rows]
    gaps = []
    for quantity in (TeacherLogProb(mixed), TeacherLogProb(frozen), LogProb()):
        one, two = (
            lab.domain.measure(Signal(r, []), range(len(r)), [quantity]).values[quantity] for r in (rows, other)
        )
        gaps.append(two - one)
    torch.testing.assert_close(gaps[0], 0.7 * gaps[1] + 0.3 * gaps[2])


def test_law_5_a_row_without_a_teacher_is_masked_and_harmless() -> None:
    lab = Lab("ppo")
    rows = lab.domain.transitions(lab.collect())
    whole = lab.domain.teacher(TeacherWeights("frozen"), rows)
    lab.domain.bank.need([TeacherWeights("frozen")])
    lab.nudge()
    some = replace(whole, contexts=(None, *whole.contexts[1:-1], None))  # type: ignore[call-arg]
    mask_N = torch.tensor([False, *[True] * (len(rows) - 2), False])
    one = lab.gradient(Signal(rows, [Imitation(teacher=some, mask_N=mask_N)]))
    other = lab.gradient(Signal(rows, [Imitation(teacher=whole, mask_N=mask_N)]))
    assert one[0] == other[0]
    assert torch.equal(one[1], other[1])


def test_law_6_rows_are_the_actions_that_were_taken() -> None:
    lab = Lab("ppo")
    groups = lab.collect()
    rows = lab.domain.transitions(groups)
    episodes = flat(groups)
    assert len(rows) == sum(episode.steps for episode in episodes)
    assert len({episode.steps for episode in episodes}) > 1, "some were ended by the world"
    assert len({row.key for row in rows}) == len(rows)
    n = 0
    for episode in episodes:
        played = episode.trajectory
        assert played.seen.shape == (episode.steps + 1, 4)
        for t in range(episode.steps):
            assert torch.equal(rows[n].context, played.seen[t])
            assert torch.equal(rows[n].trajectory, played.actions[t])
            # the world moved by a tenth of the action, of which [-1, 1] is [-2, 2]
            moved = played.seen[t, :2] + 0.2 * played.actions[t].clamp(-1, 1)
            torch.testing.assert_close(played.seen[t + 1, :2], moved, rtol=1e-6, atol=1e-6)
            n += 1
    logp = lab.domain.measure(Signal(rows, []), range(len(rows)), [LogProb()]).values[LogProb()]
    torch.testing.assert_close(behaviour(rows), logp.detach())


def test_law_10_draws_are_keyed(teacher: str) -> None:
    lab = Lab("rpd", teacher=teacher, group_size=2)

    def played(one: Lab) -> list[torch.Tensor]:
        return [episode.trajectory.actions for episode in flat(one.collect())]

    first = played(lab)
    assert all(torch.equal(a, b) for a, b in zip(first, played(lab)))
    side_by_side = played(Lab("rpd", teacher=teacher, group_size=2, simulators=1))
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(first, side_by_side))
    groups = lab.collect()
    assert all(torch.equal(g.episodes[0].trajectory.seen[0], g.episodes[1].trajectory.seen[0]) for g in groups)
    assert not any(
        torch.equal(g.episodes[0].trajectory.actions[0], g.episodes[1].trajectory.actions[0]) for g in groups
    )
    for other in (Lab("rpd", teacher=teacher, group_size=2, seed=1), lab):
        other.step = 1
        assert not any(torch.equal(a[0], b[0]) for a, b in zip(first, played(other)))
    rows = lab.domain.transitions(groups)
    one, again, half = (lab.domain.proposals(r, 3).contexts for r in (rows, rows, rows[5:]))
    assert all(torch.equal(a, b) for a, b in zip(one, again))
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(one[5:], half))
    assert not torch.equal(one[0][0], one[0][1])
    assert not torch.equal(one[0], one[1])


@pytest.mark.parametrize("case", ["ppo", "rpd annealed", "rpd ppd"])
def test_law_9_four_steps_are_two_and_two_more(case: str, teacher: str, tmp_path: Path) -> None:
    slug, options = CASES[case]
    given = {
        **SMALL, "teacher": teacher, **options, "dtype": "float32", "save_every": 1, "keep_last": 10, "save_model": "false",
        "epochs": 2, "minibatches": 3, "eval_every": 1,
    }  # fmt: skip

    def run(folder: Path, steps: int, resume: bool = False) -> dict[str, Any]:
        going = prepare(
            slug, {**given, "steps": steps}, out=folder, resume=resume, report=reporter(quiet=True, silent=True)
        )
        try:
            return going.go(resume)
        finally:
            going.close()

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "cut", 2)
    resumed = run(tmp_path / "cut", 4, resume=True)
    assert resumed["evaluations"]["after"] == whole["evaluations"]["after"]
    ends = [checkpoints(tmp_path / name / "checkpoints")[-1] for name in ("whole", "cut")]
    files = sorted(path.name for path in ends[0].glob("*.safetensors"))
    assert files == sorted(path.name for path in ends[1].glob("*.safetensors"))
    for name in files:
        one, other = (load_file(end / name) for end in ends)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name
    facts = [json.loads((end / "manifest.json").read_text())["parts"]["progress"] for end in ends]
    assert facts[0] == facts[1]
    assert facts[0]["env_steps"] > 0
