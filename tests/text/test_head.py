"""The head: quantities against whole log_softmaxes, chunking, and law 7 (no [N, V] tensor outlives a chunk)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from redistill.core.signal import (
    CapturedMass,
    DivergenceOf,
    EntropyOf,
    LogProb,
    Quantity,
    Teacher,
    TeacherEntropy,
    TeacherLogProb,
)  # fmt: skip
from redistill.core.specs import DivergenceKind, Support, TeacherWeights
from redistill.text import head as heads
from redistill.text.head import TeacherPart, TeacherStates, at_least_float32, measure
from redistill.text.models import Head
from torch.profiler import ProfilerActivity, profile

TEACHER = Teacher(TeacherWeights("live"), ())
OTHER = Teacher(TeacherWeights("frozen"), ())


def quantities(kind: str = "reverse_kl", support: str = "full", temperature: float = 1.0) -> list[Quantity]:
    spec = Support.parse(support)
    divergence = DivergenceOf(TEACHER, DivergenceKind.parse(kind), spec, temperature=temperature)
    own = [LogProb(), EntropyOf(), TeacherLogProb(TEACHER), divergence, CapturedMass(TEACHER, spec, temperature)]
    return [*own, TeacherEntropy(TEACHER)]


def setting(n: int, v: int, d: int = 6, dtype: torch.dtype = torch.float64, mixture: bool = False) -> tuple[Any, ...]:
    torch.manual_seed(0)
    weight = torch.randn(v, d, dtype=dtype, requires_grad=True)
    hidden = torch.randn(n, d, dtype=dtype, requires_grad=True)
    own = Head(weight, torch.randn(v, dtype=dtype), scale=0.5, softcap=3.0)
    shares = (0.25, 0.75) if mixture else (1.0,)
    parts = [TeacherPart(s, torch.randn(n, d, dtype=dtype), Head(torch.randn(v, d, dtype=dtype))) for s in shares]
    states = {TEACHER: TeacherStates(parts, torch.arange(n) % 5 != 3)}
    target = torch.randint(v, (n,))
    temperature = torch.where(torch.arange(n) % 2 == 0, 0.7, 1.3).to(dtype)
    return hidden, own, target, temperature, states


def slow(hidden: Any, own: Any, target: Any, temperature: Any, states: Any, warm: float) -> list[torch.Tensor]:
    """The same by whole tensors: logits, log_softmax, sums."""
    raw = (hidden @ own.weight_VD.T + own.bias_V) * own.scale
    logits = own.softcap * torch.tanh(raw / own.softcap)
    q = (logits / temperature[:, None]).log_softmax(-1)
    valid = states[TEACHER].valid_n
    mixed = sum(part.share * (part.hidden_nD @ part.head.weight_VD.T).log_softmax(-1) for part in states[TEACHER].parts)
    rows = torch.arange(len(target))
    p_taken = (mixed / temperature[:, None]).log_softmax(-1)[rows, target]
    q_warm, p_warm = (logits / warm).log_softmax(-1), (mixed / warm).log_softmax(-1)
    kl = (q_warm.exp() * (q_warm - p_warm)).sum(-1)
    p = (mixed / temperature[:, None]).log_softmax(-1)
    values = [q[rows, target], -(q.exp() * q).sum(-1), p_taken * valid, kl * valid, torch.ones(len(target))]
    return [*values, -(p.exp() * p).sum(-1) * valid]


@pytest.mark.parametrize("mixture", [False, True])
@pytest.mark.parametrize("budget", [1, 4 * 11 * 3, 2**26])
def test_values_and_gradients_are_those_of_whole_tensors(
    budget: int, mixture: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "CHUNK_BYTES", budget)
    hidden, own, target, temperature, states = setting(10, 11, mixture=mixture)
    wanted = quantities(temperature=1.7)
    found = measure(hidden, own, target, temperature, states, wanted)
    expected = slow(hidden, own, target, temperature, states, 1.7)
    mix = torch.randn(6, 10, dtype=torch.float64)
    for quantity, value in zip(wanted, expected):
        torch.testing.assert_close(found[quantity], value.to(found[quantity]), rtol=1e-10, atol=1e-12)
    inputs = (hidden, own.weight_VD)
    one = torch.autograd.grad(sum((mix[i] * found[q]).sum() for i, q in enumerate(wanted)), inputs)
    two = torch.autograd.grad(sum((mix[i] * value).sum() for i, value in enumerate(expected)), inputs)
    for a, b in zip(one, two):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("support", ["full", "top_k(3)", "top_k(3, of=teacher, tail=false)"])
@pytest.mark.parametrize("kind", ["forward_kl", "jsd(0.5)", "tvd"])
def test_chunks_do_not_change_values(kind: str, support: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, own, target, temperature, states = setting(10, 11)
    results = []
    for budget in (2**26, 1):
        monkeypatch.setattr(heads, "CHUNK_BYTES", budget)
        found = measure(hidden, own, target, temperature, states, quantities(kind, support))
        found_list = list(found.values())
        grad = torch.autograd.grad(sum(value.sum() for value in found_list), (hidden, own.weight_VD))
        results.append([*found_list, *grad])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def test_a_row_without_a_teacher_has_value_0_and_no_gradient() -> None:
    hidden, own, target, temperature, states = setting(10, 11)
    wanted = quantities()
    found = measure(hidden, own, target, temperature, states, wanted)
    missing = ~states[TEACHER].valid_n
    assert float(found[wanted[3]].detach()[missing].abs().max()) == 0.0
    (grad,) = torch.autograd.grad(found[wanted[3]].sum(), hidden)
    assert float(grad[missing].abs().max()) == 0.0
    assert float(grad[~missing].abs().min(-1).values.max()) > 0.0


def test_two_teachers_do_not_mix() -> None:
    hidden, own, target, temperature, states = setting(10, 11)
    *_, others = setting(10, 11, mixture=True)
    both = {TEACHER: states[TEACHER], OTHER: others[TEACHER]}
    found = measure(hidden, own, target, temperature, both, [TeacherLogProb(OTHER), TeacherLogProb(TEACHER)])
    alone = measure(hidden, own, target, temperature, states, [TeacherLogProb(TEACHER)])
    assert torch.equal(found[TeacherLogProb(TEACHER)], alone[TeacherLogProb(TEACHER)])
    assert not torch.allclose(found[TeacherLogProb(TEACHER)], found[TeacherLogProb(OTHER)])


def test_no_steps_is_legal() -> None:
    hidden, own, target, temperature, states = setting(0, 11)
    assert all(len(value) == 0 for value in measure(hidden, own, target, temperature, states, quantities()).values())


def test_half_precision_is_widened_and_float64_kept() -> None:
    kinds = {torch.bfloat16: torch.float32, torch.float32: torch.float32, torch.float64: torch.float64}
    assert {kind: at_least_float32(torch.ones(1, dtype=kind)).dtype for kind in kinds} == kinds


def peak_bytes(n: int, v: int, support: str) -> int:
    """Highest sum of what the CPU allocator has handed out during measure and backward, beyond what was there."""
    hidden, own, target, temperature, states = setting(n, v, d=8, dtype=torch.float32)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        found = measure(hidden, own, target, temperature, states, quantities("jsd(0.5)", support))
        sum(value.sum() for value in found.values()).backward()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize("support", ["full", "top_k(20)"])
def test_law_7_peak_memory_does_not_grow_with_the_steps(support: str, monkeypatch: pytest.MonkeyPatch) -> None:
    v, chunk = 32768, 8
    monkeypatch.setattr(heads, "CHUNK_BYTES", chunk * v * 4)
    one_chunk = chunk * v * 4
    few, many = peak_bytes(32, v, support), peak_bytes(128, v, support)
    weight = 3 * v * 8 * 4  # the head's gradient, and the two that are added up to it
    assert few < weight + 20 * one_chunk, "a chunk holds a handful of tensors of its size"
    assert many - few < one_chunk, "more steps, and no more tensors of a chunk's size"


def test_law_7_would_see_whole_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The yardstick itself: with one chunk for all steps, memory grows with them."""
    v = 32768
    monkeypatch.setattr(heads, "CHUNK_BYTES", 2**40)
    assert peak_bytes(64, v, "full") - peak_bytes(32, v, "full") > 32 * v * 4


def test_law_7_also_when_only_the_head_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "CHUNK_BYTES", 4 * 11)
    hidden, own, target, temperature, states = setting(10, 11)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        measure(hidden.detach(), own, target, temperature, states, quantities())
    assert max(saved, default=0) <= own.weight_VD.numel()
    assert sum(size >= 10 * 11 for size in saved) == 0
