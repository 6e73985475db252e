"""Counter-based randomness: SplitMix64's own numbers, uniform and independent draws, and order that does not matter."""

import hashlib
import itertools

import numpy as np
import pytest
from redistill.core.rng import bits, generator, permutation, uniform
from scipy import stats

MASK = (1 << 64) - 1


def splitmix(*words: int) -> int:
    """The fold written with Python's whole numbers."""

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    state = 0
    for word in words:
        state = mix(((state ^ (word & MASK)) + 0x9E3779B97F4A7C15) & MASK)
    return mix((state + 0x9E3779B97F4A7C15) & MASK)


def test_bits_are_splitmix64() -> None:
    assert int(bits()) == 0xE220A8397B1DCDAF  # the first output of SplitMix64 seeded with 0, as published
    for key in ((0,), (1,), (0, 0), (7, 3, 2), (-1, 2**40), (2**63 - 1, -(2**63))):
        assert int(bits(*key)) == splitmix(*key)
    assert int(bits("rollout", 3)) == splitmix(int.from_bytes(hashlib.blake2b(b"rollout", digest_size=8).digest()), 3)


def test_uniform_is_the_top_53_bits() -> None:
    for key in ((1, 2), (5, "x")):
        assert float(uniform(*key)) == (int(bits(*key)) >> 11) / 2**53
    draws = uniform(11, np.arange(100_000))
    assert draws.dtype == np.float64
    assert draws.min() >= 0.0
    assert draws.max() < 1.0


@pytest.mark.parametrize("position", range(4))
def test_uniform_along_every_part_of_the_key(position: int) -> None:
    key: list[object] = [3, 1, 4, 1]
    key[position] = np.arange(50_000)
    draws = uniform(*key)
    assert stats.kstest(draws, "uniform").pvalue > 1e-3
    lagged = [stats.pearsonr(draws[:-lag], draws[lag:]).pvalue for lag in (1, 2, 3, 8, 256)]
    assert min(lagged) > 1e-4


def test_neighbouring_keys_are_independent() -> None:
    """Chi-square on a 16 by 16 grid of (draw, draw under a neighbouring key)."""
    index = np.arange(60_000)
    base = uniform(0, 5, index, 2)
    for other in (
        uniform(1, 5, index, 2),
        uniform(0, 6, index, 2),
        uniform(0, 5, index + 1, 2),
        uniform(0, 5, 2, index),
    ):
        counts, _, _ = np.histogram2d(base, other, bins=16, range=[[0, 1], [0, 1]])
        assert stats.chisquare(counts.ravel()).pvalue > 1e-3


def test_every_bit_is_fair() -> None:
    words = bits(9, np.arange(40_000))
    for bit in range(64):
        ones = int(((words >> np.uint64(bit)) & np.uint64(1)).sum())
        assert abs(ones - 20_000) < 5 * 100  # five standard deviations of a fair coin


def test_a_draw_does_not_depend_on_order_or_batching() -> None:
    prompts, samples = np.arange(40), np.arange(8)
    whole = uniform(7, 3, prompts[:, None], samples[None, :])
    assert whole.shape == (40, 8)
    assert np.array_equal(uniform(7, 3, prompts[::-1, None], samples[None, :]), whole[::-1])
    assert np.array_equal(np.concatenate([uniform(7, 3, prompts[i::4, None], samples) for i in range(4)]),
                          np.concatenate([whole[i::4] for i in range(4)]))  # fmt: skip
    one_by_one = [[float(uniform(7, 3, int(p), int(s))) for s in samples] for p in prompts]
    assert np.array_equal(np.array(one_by_one), whole)
    assert np.array_equal(uniform(7, 3, prompts[:, None], samples[None, :]), whole)  # nothing was used up


def test_different_keys_differ() -> None:
    grid = np.meshgrid(np.arange(50), np.arange(50), np.arange(20), indexing="ij")
    assert np.unique(bits(*grid)).size == 50_000
    close = [(), (0,), (0, 0), (1, 0), (0, 1), ("0",), ("a", "b"), ("b", "a"), ("ab",), (-1,), (2**63 - 1,)]
    assert len({int(bits(*key)) for key in close}) == len(close)


def test_integer_widths_do_not_matter() -> None:
    for dtype in (np.int8, np.int32, np.int64, np.uint8, np.uint64):
        assert np.array_equal(bits(1, np.arange(100, dtype=dtype)), bits(1, np.arange(100)))


def test_permutation_is_valid_keyed_and_uniform() -> None:
    for size in (0, 1, 2, 97):
        assert sorted(permutation(size, 1, "shuffle").tolist()) == list(range(size))
    assert np.array_equal(permutation(50, 1, 2), permutation(50, 1, 2))
    assert not np.array_equal(permutation(50, 1, 2), permutation(50, 1, 3))
    counts = dict.fromkeys(itertools.permutations(range(4)), 0)
    for seed in range(4800):
        counts[tuple(permutation(4, seed, "p").tolist())] += 1
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_generator_is_a_function_of_its_key() -> None:
    first, again, other = (generator(*key).normal(size=2000) for key in ((4, 2), (4, 2), (4, 3)))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert stats.kstest(first, "norm").pvalue > 1e-3
