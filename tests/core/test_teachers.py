"""Teacher copies: closed forms of ema, sync, frozen and trust_region; the swap; LoRA's frozen teacher is the base."""

from __future__ import annotations

import pytest
import torch
from redistill.core.players import Player
from redistill.core.signal import TeacherLogProb
from redistill.core.specs import TeacherWeights
from redistill.core.state import Piece
from redistill.core.teachers import TeacherBank, swapped
from toy import ToyDomain, weights

RATES = (0.0, 0.05, 0.5, 1.0)


def walk(domain: ToyDomain, specs: list[TeacherWeights], steps: int) -> list[torch.Tensor]:
    """Move the student `steps` times at random; the student's weights before and after each step."""
    domain.bank.need(specs)
    seen = [weights(domain)]
    for step in range(1, steps + 1):
        with torch.no_grad():
            for p in domain.player.parameters.values():
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(step), dtype=p.dtype))
        domain.bank.after_step(step)
        seen.append(weights(domain))
    return seen


def copy_of(bank: TeacherBank, spec: TeacherWeights) -> torch.Tensor:
    (part,) = bank.parts(spec)
    assert part.copy is not None
    return torch.cat([part.copy[name].flatten() for name in bank.player.parameters])


@pytest.mark.parametrize("rate", RATES)
def test_ema_is_the_weighted_sum_of_all_students(rate: float) -> None:
    domain, spec = ToyDomain(), TeacherWeights("ema", rate)
    seen = walk(domain, [spec], 5)
    expected = (1 - rate) ** 5 * seen[0] + sum(rate * (1 - rate) ** (5 - t) * seen[t] for t in range(1, 6))
    torch.testing.assert_close(copy_of(domain.bank, spec), expected, rtol=1e-12, atol=1e-12)
    if rate in (0.0, 1.0):  # the ends are exactly frozen and live
        assert torch.equal(copy_of(domain.bank, spec), seen[0 if rate == 0 else -1])


def test_slowing_ema_takes_in_less_and_less() -> None:
    """Decay 1 - rate of CRD (arXiv 2603.14128): .25 + .005 t up to .999; and 0 for 75 updates, then .0075 a update."""
    old = TeacherWeights("slowing_ema", 0.75, slope=0.005, last=0.001)
    assert [1 - old.rate_at(t) for t in (0, 100, 150, 1000)] == pytest.approx([0.25, 0.75, 0.999, 0.999])
    sampler = TeacherWeights("slowing_ema", 1.0, slope=0.0075, last=0.001, delay=75)
    assert [1 - sampler.rate_at(t) for t in (0, 75, 77, 209)] == pytest.approx([0.0, 0.0, 0.015, 0.999])
    domain, spec = ToyDomain(), TeacherWeights("slowing_ema", 1.0, slope=0.25, last=0.5, delay=1)
    seen = walk(domain, [spec, TeacherWeights("slowing_ema", 1.0, slope=0.25, last=0.5, delay=2)], 5)
    assert len(domain.bank.copies) == 2
    expected = seen[2]  # rates 1, 1, .75, .5, .5
    for rate, student in zip((0.75, 0.5, 0.5), seen[3:]):
        expected = (1 - rate) * expected + rate * student
    torch.testing.assert_close(copy_of(domain.bank, spec), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("every", "copied_at"), [(1, 5), (2, 4), (3, 3), (7, 0)])
def test_sync_copies_every_so_many_steps(every: int, copied_at: int) -> None:
    domain, spec = ToyDomain(), TeacherWeights("sync", every)
    seen = walk(domain, [spec], 5)
    assert torch.equal(copy_of(domain.bank, spec), seen[copied_at])


def test_frozen_stays_and_refresh_starts_anew() -> None:
    domain, spec = ToyDomain(), TeacherWeights("frozen")
    seen = walk(domain, [spec], 3)
    assert torch.equal(copy_of(domain.bank, spec), seen[0])
    domain.bank.refresh()
    assert torch.equal(copy_of(domain.bank, spec), seen[3])
    assert domain.bank.drift() == {"frozen": 0.0}


def test_rates_that_differ_late_have_copies_of_their_own() -> None:
    domain = ToyDomain()
    specs = [TeacherWeights("ema", 0.05), TeacherWeights("ema", 0.0500001), TeacherWeights("sync", 1000001)]
    walk(domain, [*specs, *specs], 1)
    assert len(domain.bank.copies) == 3
    assert not torch.equal(copy_of(domain.bank, specs[0]), copy_of(domain.bank, specs[1]))


def test_parts_of_live_and_trust_region() -> None:
    domain, spec = ToyDomain(), TeacherWeights("trust_region", 0.3)
    domain.bank.need([spec])
    assert [(part.share, part.copy) for part in domain.bank.parts(TeacherWeights("live"))] == [(1.0, None)]
    first, live = domain.bank.parts(spec)
    assert (first.share, live.share) == (0.7, 0.3)
    assert first.copy is domain.bank.copies["frozen"]
    assert live.copy is None


def test_state_brings_copies_back_in_place() -> None:
    spec = TeacherWeights("ema", 0.2)
    one, other = ToyDomain(), ToyDomain()
    walk(one, [spec], 4)
    other.bank.need([spec])
    held = other.bank.copies
    other.bank.restore(Piece({name: t.clone() for name, t in one.bank.state().tensors.items()}))
    assert other.bank.copies is held
    assert torch.equal(copy_of(other.bank, spec), copy_of(one.bank, spec))


def test_swap_gives_the_weights_back_even_when_the_forward_fails() -> None:
    domain, spec = ToyDomain(), TeacherWeights("frozen")
    walk(domain, [spec], 2)
    own = weights(domain)
    pointers = [p.data_ptr() for p in domain.player.parameters.values()]

    def fail_in_the_midst() -> None:
        with swapped(domain.player.tensors, domain.bank.copies["frozen"]):
            assert torch.equal(weights(domain), copy_of(domain.bank, spec))
            raise RuntimeError("in the midst")

    with pytest.raises(RuntimeError, match="in the midst"):
        fail_in_the_midst()
    assert torch.equal(weights(domain), own)
    assert [p.data_ptr() for p in domain.player.parameters.values()] == pointers


def test_a_frozen_lora_teacher_is_the_base_model_at_every_step() -> None:
    from redistill.build import settings
    from redistill.core.signal import Signal
    from redistill.core.update import update
    from redistill.objectives.terms import Likelihood
    from redistill.tasks.sums import Sums
    from redistill.text.domain import TextDomain
    from redistill.text.models import load_model
    from redistill.text.views import Evidence

    _, config = settings("sft", {"lora_rank": 4, "learning_rate": 0.01})
    domain = TextDomain(load_model("pocket", lora_rank=4), Sums(), config)  # type: ignore[arg-type]
    spec, base = TeacherWeights("frozen"), load_model("pocket").module
    domain.bank.need([spec])
    prompt = Sums().train(0, 0)
    row = domain.written(prompt, prompt.solution or "")
    assert row is not None
    ids = torch.tensor([[*row.context, *row.trajectory.ids]])
    with torch.no_grad():
        logits = base(ids).logits[0, len(row.context) - 1 : -1]
    expected = logits.log_softmax(-1)[range(row.steps), list(row.trajectory.ids)]
    teacher = domain.teacher(spec, [row], "plain", [Evidence()])
    for _ in range(3):
        found = domain.score([row], [TeacherLogProb(teacher)])[TeacherLogProb(teacher)]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        before = domain.bank.drift()["frozen"]
        update(Signal([row], [Likelihood()]), domain)
        domain.bank.after_step(1)
        assert domain.bank.drift()["frozen"] > before
    assert all("lora" in name for name in domain.bank.copies["frozen"])


def test_drift_over_evenly_spaced_numbers_is_an_estimate_of_the_whole() -> None:
    torch.manual_seed(0)
    module = torch.nn.Linear(300, 200)
    player = Player("student", module, dict(module.named_parameters()), 0.1)
    bank = TeacherBank(player, lambda name: None)
    bank.need([TeacherWeights("frozen")])
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn_like(p))
    assert bank.drift(1000)["frozen"] == pytest.approx(bank.drift()["frozen"], rel=0.05)
    assert bank.drift(1000) != bank.drift()
