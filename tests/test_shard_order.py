from collections import Counter

import numpy as np
import pytest

from nst_train.batches.order import shuffled_rows
from nst_train.batches.shard_order import ShardOrder


def order_of(sizes, seed=0, at_once=4):
    return ShardOrder(np.array(sizes), seed, at_once)


def drawn(order, start, stop):
    return list(zip(*(column.tolist() for column in order.entries_at(np.arange(start, stop))), strict=True))


@pytest.mark.parametrize("sizes", [[5], [1, 1], [3, 4, 5, 6, 7, 8, 9, 10, 11], [2, 0, 3, 0, 0, 0, 7], [100] * 4])
@pytest.mark.parametrize("at_once", [1, 3, 4])
def test_each_epoch_holds_every_entry_of_every_shard_once(sizes, at_once):
    order = order_of(sizes, at_once=at_once)
    everything = Counter((shard, entry) for shard, size in enumerate(sizes) for entry in range(size))
    assert len(order) == sum(sizes)
    for epoch in range(3):
        assert Counter(drawn(order, epoch * len(order), (epoch + 1) * len(order))) == everything


def test_epochs_and_seeds_have_orders_of_their_own():
    order = order_of([10] * 9)
    first, second = drawn(order, 0, 90), drawn(order, 90, 180)
    assert first != second
    assert list(dict.fromkeys(shard for shard, _ in first)) != list(dict.fromkeys(shard for shard, _ in second))
    assert first != drawn(order_of([10] * 9, seed=1), 0, 90)


def test_a_position_has_the_same_entry_however_it_is_asked_for():
    order = order_of([7, 8, 9, 1, 2, 30, 4])
    whole = drawn(order, 0, 150)
    assert [one for start in range(0, 150, 10) for one in drawn(order, start, start + 10)] == whole


def test_few_shards_are_wanted_at_once_and_those_are_the_ones_that_come():
    order = order_of([10] * 10)
    for start in range(0, 250, 7):
        wanted = order.window(start, start + 7)
        assert {shard for shard, _ in drawn(order, start, start + 7)} <= set(wanted)
        assert len(order.window(start, start + 1)) <= 4
        assert len(order.window(start, start + 1, groups=2)) <= 8


def test_the_next_group_is_wanted_after_the_one_that_comes_unless_nothing_comes_after_it():
    order = order_of([10] * 10)
    now, following = order.window(0, 1), order.window(40, 41)
    assert order.window(5, 10, groups=2) == now + following
    assert order.window(5, 10, groups=2, end=41) == now + following
    assert order.window(5, 10, groups=2, end=40) == now
    assert order.window(35, 45) == now + following


def test_what_is_wanted_at_the_end_of_an_epoch_and_at_the_begin_of_the_next_is_wanted_once():
    order = order_of([10] * 3)
    assert sorted(order.window(25, 35, groups=2)) == [0, 1, 2]


def test_an_empty_shard_is_never_wanted():
    assert 1 not in order_of([5, 0, 5]).window(0, 10)


def test_entries_of_a_group_are_mixed():
    order = order_of([1000] * 8)
    shards, entries = order.entries_at(np.arange(4000))
    assert (np.diff(shards) != 0).mean() == pytest.approx(0.75, abs=0.05)  # one of four shards, by chance
    places = np.argsort(entries[shards == shards[0]], kind="stable")  # neighbors, such as copies of an image, lie anywhere
    assert np.abs(np.diff(places)).mean() == pytest.approx(1000 / 3, rel=0.1)


def test_a_single_shard_comes_in_the_order_that_editions_with_a_pool_have_always_had():
    order = ShardOrder(np.array([10]), seed=3, seed_tag="order")
    shards, entries = order.entries_at(np.arange(30))
    assert entries.tolist() == shuffled_rows(np.arange(30), 10, seed=3, part="pseudo").tolist()
    assert set(shards) == {0}
    assert order.window(5, 25) == [0]
