import numpy as np
import pytest

from nst_train.batches.order import permute, shuffled_rows


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 16, 17, 1000])
def test_a_permutation_holds_every_row_once(rows):
    assert sorted(permute(np.arange(rows), rows, key=7)) == list(range(rows))


def test_another_key_gives_another_order():
    assert permute(np.arange(50), 50, key=1).tolist() != permute(np.arange(50), 50, key=2).tolist()


def test_first_and_last_places_are_uniform_over_keys():
    firsts = [int(permute(np.array([0]), 4, key)[0]) for key in range(2000)]
    assert np.bincount(firsts, minlength=4).min() > 400


def test_each_epoch_of_the_stream_holds_every_row_once_in_an_order_of_its_own():
    drawn = shuffled_rows(np.arange(30), 10, seed=0, part="labeled").reshape(3, 10)
    assert [sorted(epoch) for epoch in drawn] == [list(range(10))] * 3
    assert drawn[0].tolist() != drawn[1].tolist()


def test_a_position_gives_the_same_row_however_it_is_asked_for():
    whole = shuffled_rows(np.arange(30), 10, seed=3, part="pseudo")
    assert shuffled_rows(np.arange(12, 19), 10, seed=3, part="pseudo").tolist() == whole[12:19].tolist()
