"""The lookup of near hashes, against brute force."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nst_data.selection import hash_index
from nst_data.selection.hash_index import MAX_DISTANCE, HashIndex


def distances(queries, hashes):
    """Of all pairs, by brute force; shape (queries, hashes)."""
    return np.bitwise_count(queries.view(np.uint64)[:, None] ^ hashes.view(np.uint64))


def spread(seed, count, favourites, bits):
    """Hashes a few bits away from a few favourites, which share most of their bands with one another."""
    rng = np.random.default_rng(seed)
    found = rng.integers(0, 2**64, max(1, favourites), dtype=np.uint64)[rng.integers(0, max(1, favourites), count)]
    for _ in range(bits):
        found = found ^ (np.uint64(1) << rng.integers(0, 64, count).astype(np.uint64))
    return found.view(np.int64)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 99), st.integers(0, 80), st.integers(0, 60), st.integers(1, 5), st.integers(0, 10), st.sampled_from([2, 2**20]))
@example(0, 40, 40, 1, 0, 1)  # one hash, many times
def test_the_lookup_finds_exactly_the_pairs_within_the_distance(seed, held, asked, favourites, bits, at_once):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hash_index, "_PAIRS_AT_ONCE", at_once)
        hashes, queries = (spread(seed, held, favourites, bits), spread(seed, asked, favourites, bits // 2))
        index, near = HashIndex(hashes), distances(queries, hashes) <= MAX_DISTANCE
        assert len(index) == held
        assert index.any_near(queries).tolist() == near.any(axis=1).tolist()
        assert [index.find_near(int(query)).tolist() for query in queries] == [np.flatnonzero(row).tolist() for row in near]


@pytest.mark.parametrize("flipped", [(0, 16, 32, 48), (0, 1, 2, 3, 4, 5, 6), (0, 1, 16, 17, 32, 33, 48), (63, 62, 47, 46, 31, 30, 15)])
def test_bits_that_differ_in_every_band_hide_no_near_hash(flipped):
    near = np.array([np.bitwise_xor.reduce(np.uint64(1) << np.array(flipped, np.uint64))]).view(np.int64)
    assert HashIndex(near).any_near(np.zeros(1, np.int64)).tolist() == [True]


def test_a_hash_that_is_popular_on_both_sides_is_not_compared_pair_by_pair():
    popular, other = np.full(200_000, 12345), np.arange(1, 2_000) << 20
    index = HashIndex(np.concatenate([popular, other]))
    assert index.any_near(popular).all()  # 40 billion pairs
    assert index.find_near(12345)[:200_000].tolist() == list(range(200_000))
