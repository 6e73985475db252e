"""Weight copies hold what evolves without a gradient too, and a player's optimiser is what its name says."""

from __future__ import annotations

import pytest
import torch
from redistill.core.players import Player
from redistill.core.specs import TeacherWeights
from redistill.core.teachers import TeacherBank, swapped
from redistill.errors import UserError
from torch import nn


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    net.register_buffer("scratch", torch.zeros(1), persistent=False)
    return net


def player_of(net: nn.Module, **given: object) -> Player:
    return Player("student", net, dict(net.named_parameters()), 0.1, **given)  # type: ignore[arg-type]


def forwards(net: nn.Module, times: int) -> None:
    with torch.no_grad():
        for i in range(times):
            net(torch.randn(8, 3, generator=torch.Generator().manual_seed(i)) + 2.0)


def bank_with(*specs: str) -> tuple[Player, TeacherBank]:
    player = player_of(small_net())
    bank = TeacherBank(player, lambda path: path)
    bank.need([TeacherWeights.parse(spec) for spec in specs])
    return player, bank


def test_a_copy_holds_the_persistent_buffers_and_only_those():
    player, bank = bank_with("frozen")
    assert set(bank.copies["frozen"]) == set(player.module.state_dict())


def test_a_frozen_copy_keeps_its_own_batch_statistics():
    player, bank = bank_with("frozen")
    x = torch.randn(5, 3)
    expected = player.module.eval()(x)
    forwards(player.module.train(), 3)
    player.module.eval()
    assert not torch.equal(player.module(x), expected)
    with torch.no_grad(), swapped(player.tensors, bank.copies["frozen"]):
        assert torch.equal(player.module(x), expected)
    assert int(player.module[1].num_batches_tracked) == 3


def test_ema_follows_buffers_and_copies_counters():
    player, bank = bank_with("ema(0.25)", "sync(2)")
    start = player.module[1].running_mean.clone()
    forwards(player.module, 4)
    bank.after_step(1)
    ema, sync = bank.copies["ema-0.25"], bank.copies["sync-2.0"]
    torch.testing.assert_close(ema["1.running_mean"], 0.75 * start + 0.25 * player.module[1].running_mean)
    assert int(ema["1.num_batches_tracked"]) == 4
    assert torch.equal(sync["1.running_mean"], start)
    bank.after_step(2)
    assert torch.equal(sync["1.running_mean"], player.module[1].running_mean)


def test_copies_with_buffers_survive_a_checkpoint():
    player, bank = bank_with("sync(1)")
    forwards(player.module, 2)
    bank.after_step(1)
    piece = bank.state()
    kept = {name: value.clone() for name, value in piece.tensors.items()}
    _, other = bank_with("sync(1)")
    other.restore(type(piece)(kept, piece.facts))
    [copy] = other.copies.values()
    assert torch.equal(copy["1.running_var"], player.module[1].running_var)


def test_a_stored_teacher_has_no_weights():
    with pytest.raises(UserError, match="stored"):
        bank_with("stored")


def test_sgd_is_nesterov_as_written_down():
    """v = m v + g; w = w - lr (g + m v), Sutskever et al. 2013 in the form that torch documents."""
    weight = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    module = nn.Module()
    module.register_parameter("w", weight)
    player = Player("p", module, {"w": weight}, 0.1, grad_clip=1e9, algorithm="sgd", weight_decay=0.01)
    player.momentum = 0.9
    w, v = [1.0, -2.0], [0.0, 0.0]
    for _ in range(4):
        weight.grad = weight.detach() ** 2
        player.step()
        for i in range(2):
            g = w[i] ** 2 + 0.01 * w[i]
            v[i] = 0.9 * v[i] + g
            w[i] -= 0.1 * (g + 0.9 * v[i])
    torch.testing.assert_close(weight.detach(), torch.tensor(w, dtype=torch.float64))


@pytest.mark.parametrize("given", [{"algorithm": "sgd"}, {"algorithm": "sgd", "momentum": 0.0}, {}])
def test_an_optimiser_continues_from_its_state(given):
    def push(player: Player, steps: range) -> None:
        for i in steps:
            for p in player.parameters.values():
                p.grad = torch.full_like(p, 0.1 * (i + 1))
            player.step()

    given = {"schedule": lambda updates: 0.5**updates, **given}
    whole, first, second = (player_of(small_net(), **given) for _ in range(3))
    push(whole, range(4))
    push(first, range(2))
    piece = first.state()
    second.restore(type(piece)({k: v.clone() for k, v in piece.tensors.items()}, piece.facts))
    push(second, range(2, 4))
    for name, p in whole.parameters.items():
        assert torch.equal(p, second.parameters[name])


def test_the_schedule_is_a_factor_of_the_rate():
    player = player_of(small_net(), schedule=lambda updates: 1.0 if updates < 1 else 0.1)
    rates = []
    for _ in range(2):
        for p in player.parameters.values():
            p.grad = torch.ones_like(p)
        player.step()
        rates.append(player.optimiser.param_groups[0]["lr"])
    assert rates == pytest.approx([0.1, 0.01])


def test_an_unknown_algorithm_is_refused():
    with pytest.raises(ValueError, match="adamw or sgd"):
        player_of(small_net(), algorithm="lion")
