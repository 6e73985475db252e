"""The laws of the objective layer over the generation methods, in float64, and resuming bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from redistill.build import prepare
from redistill.core.episode import flat
from redistill.core.signal import Signal
from redistill.core.specs import TeacherWeights
from redistill.core.state import checkpoints
from redistill.generation.terms import Anchor, FlowMatching, MixedFlow, StepAnchor
from redistill.reporting.terminal import reporter
from safetensors.torch import load_file

from generation_lab import SMALL, Lab, only, rewarded

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "crd": ("crd", {}), "crd weighted": ("crd", {"temperature": 0.1}), "crd pools": ("crd", {"temperature": 0}),
    "crd bce": ("crd", {"loss": "bce"}), "nft": ("nft", {}), "flow-grpo": ("flow-grpo", {}),
    "dancegrpo": ("flow-grpo", {"kernel": "constant", "noise": 0.3, "shared_noise": "true", "kl": 0, "std": "group"}),
}  # fmt: skip


def at_work(case: str, **given: Any) -> tuple[Lab, Signal]:
    """A method some steps into its run, off its copies, with the signal of the next step."""
    slug, options = CASES[case]
    lab = Lab(slug, **{**options, **given})
    lab.advance(2)
    groups = lab.collect()
    lab.nudge(0.01)
    return lab, lab.signal(groups)


@pytest.mark.parametrize("case", CASES)
def test_law_1_the_cut_into_micro_batches_and_the_order_change_nothing(case: str) -> None:
    lab, signal = at_work(case)
    loss, gradient = lab.gradient(signal)
    assert float(gradient.norm()) > 1e-4
    for size in (1, 3, 5):
        object.__setattr__(lab.config, "micro_batch", size)
        pieces = list(lab.domain.micro_batches(signal))
        assert len(pieces) > 1
        assert sorted(row for piece in pieces for row in piece) == list(range(len(signal.rows)))
        cut = lab.gradient(signal)
        assert cut[0] == pytest.approx(loss, abs=1e-9)
        torch.testing.assert_close(cut[1], gradient, rtol=1e-6, atol=1e-10)
    order = torch.randperm(len(signal.rows), generator=torch.Generator().manual_seed(1)).tolist()
    turned = lab.gradient(signal.subset(order))
    torch.testing.assert_close(turned[1], gradient, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("case", ["nft", "flow-grpo"])
def test_law_1_a_masked_neighbour_changes_nothing(case: str) -> None:
    lab, signal = at_work(case)
    keep = range(len(signal.rows) // 2)
    mask_N = torch.zeros(sum(signal.lengths), dtype=torch.bool)
    mask_N[signal.steps_of(keep)] = True
    terms = [replace(t, mask_N=mask_N if t.mask_N is None else t.mask_N & mask_N) for t in signal.terms]
    one, other = lab.gradient(Signal(signal.rows, terms)), lab.gradient(signal.subset(keep))
    assert one[0] == pytest.approx(other[0], abs=1e-12)
    torch.testing.assert_close(one[1], other[1])


def test_law_2_a_teacher_that_is_the_student_teaches_nothing() -> None:
    live = TeacherWeights("live")
    lab = Lab("crd")
    rows = lab.domain.noised(lab.collect(), 2, 1.0, True).rows
    chains = flat(Lab("flow-grpo").collect())
    for signal in (
        Signal(rows, [Anchor(teacher=lab.domain.teacher(live, rows))]),
        Signal(chains, [Anchor(teacher=lab.domain.teacher(live, chains))]),
        Signal(chains, [StepAnchor(teacher=lab.domain.teacher(live, chains))]),
    ):
        loss, gradient = lab.gradient(signal)
        assert abs(loss) < 1e-15
        assert float(gradient.abs().max()) < 1e-15
    guide = lab.gradient(Signal(rows, [Anchor(teacher=lab.domain.teacher(live, rows, 4.5))]))
    assert guide[0] > 1e-6


@pytest.mark.parametrize("case", CASES)
def test_law_3_other_rewards_change_the_gradient(case: str) -> None:
    slug, options = CASES[case]
    lab = Lab(slug, **options)
    lab.advance(1)
    groups = lab.collect()
    lab.nudge(0.01)
    rewards = torch.stack([group.rewards for group in groups])
    _, gradient = lab.gradient(lab.signal(groups))
    _, turned = lab.gradient(lab.signal(rewarded(groups, rewards.flip(1))))
    assert float((gradient - turned).norm()) > 1e-2 * float(gradient.norm())


@pytest.mark.parametrize(("case", "name"), [("crd", "centred_reward"), ("crd", "anchor"), ("nft", "negative")])
def test_law_3_another_row_s_teacher_changes_the_gradient(case: str, name: str) -> None:
    lab, signal = at_work(case)
    one = only(signal, name)
    (term,) = one.terms
    assert isinstance(term, (Anchor, MixedFlow)) or name == "centred_reward"
    teacher = term.teacher  # type: ignore[attr-defined]
    turned = replace(term, teacher=replace(teacher, contexts=(*teacher.contexts[8:], *teacher.contexts[:8])))  # type: ignore[call-arg]
    assert float((lab.gradient(one)[1] - lab.gradient(Signal(one.rows, [turned]))[1]).norm()) > 1e-8


def test_flow_matching_learns_what_it_is_shown() -> None:
    lab = Lab("crd", learning_rate=1e-2)
    rows = lab.domain.noised(lab.collect(), 2, 1.0, True).rows
    player, losses = lab.domain.players["student"], []
    for _ in range(30):
        losses.append(_descend(lab, Signal(rows, [FlowMatching()])))
        player.step()
    assert losses[-1] < 0.5 * losses[0]


def _descend(lab: Lab, signal: Signal) -> float:
    from redistill.core.update import Tally, accumulate

    return accumulate(signal, lab.domain, Tally())


def test_draws_are_keyed() -> None:
    """The same step again gives the same samples and rows; another step, seed or call others."""
    lab = Lab("crd")
    one, again = lab.collect(), lab.collect()
    assert [e.text for e in flat(one)] == [e.text for e in flat(again)]
    rows = [lab.domain.noised(one, 2, 1.0, True).rows for _ in range(2)]
    assert all(torch.equal(a.trajectory.eps, b.trajectory.eps) for a, b in zip(*rows))
    assert [a.trajectory.t for a in rows[0]] == [b.trajectory.t for b in rows[1]]
    lab.step = 1
    later = lab.collect()
    assert not {e.text for e in flat(later)} & {e.text for e in flat(one)}
    other = Lab("crd", seed=1)
    object.__setattr__(other.domain, "model", lab.domain.model)
    assert not {e.text for e in flat(other.collect())} & {e.text for e in flat(one)}
    # A prompt's samples do not depend on which others are in the batch.
    lab.domain.begin_step(0)
    alone = lab.domain.rollout([one[0].prompt])
    assert [e.text for e in alone[0]] == [e.text for e in one[0]]


@pytest.mark.parametrize("case", ["crd", "nft", "flow-grpo"])
def test_law_9_four_steps_are_two_and_two_more(case: str, tmp_path: Path) -> None:
    slug, options = CASES[case]
    given = {**SMALL, **options, "dtype": "float32", "save_every": 1, "keep_last": 10, "save_model": "false"}

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
    facts = [json.loads((end / "manifest.json").read_text())["parts"]["cursor"]["prompts"] for end in ends]
    assert facts[0] == facts[1]
