import numpy as np
import pytest

from nst_train.batches.order import draw, draw_along, permute


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 16, 17, 1000])
def test_a_permutation_holds_every_row_once(rows):
    assert sorted(permute(np.arange(rows), rows, key=7)) == list(range(rows))


def test_another_key_gives_another_order():
    assert permute(np.arange(50), 50, key=1).tolist() != permute(np.arange(50), 50, key=2).tolist()


def test_first_and_last_places_are_uniform_over_keys():
    firsts = [int(permute(np.array([0]), 4, key)[0]) for key in range(2000)]
    assert np.bincount(firsts, minlength=4).min() > 400


def test_each_epoch_of_the_stream_holds_every_row_once_in_an_order_of_its_own():
    drawn = draw(np.arange(30), 10, seed=0, part="labeled").reshape(3, 10)
    assert [sorted(epoch) for epoch in drawn] == [list(range(10))] * 3
    assert drawn[0].tolist() != drawn[1].tolist()


def test_a_position_gives_the_same_row_however_it_is_asked_for():
    whole = draw(np.arange(30), 10, seed=3, part="pseudo")
    assert draw(np.arange(12, 19), 10, seed=3, part="pseudo").tolist() == whole[12:19].tolist()


@pytest.mark.parametrize(("rows", "extra"), [(1, 0), (1, 5), (63, 2), (64, 0), (200, 77), (9000, 1234), (2000, 7000)])
def test_along_the_files_each_epoch_holds_every_row_and_every_copy_once_in_an_order_of_its_own(rows, extra):
    drawn, is_copy = (column.reshape(2, -1) for column in draw_along(np.arange(2 * (rows + extra)), rows, extra, seed=0, part="pseudo"))
    for epoch in range(2):
        assert sorted(drawn[epoch][~is_copy[epoch]]) == list(range(rows))
        assert sorted(drawn[epoch][is_copy[epoch]]) == list(range(extra))
    assert rows < 3 or drawn[0].tolist() != drawn[1].tolist()


def test_along_the_files_any_stretch_of_an_epoch_reads_few_stretches_of_the_files():
    rows, stretch = 100_000, 8192
    drawn, is_copy = draw_along(np.arange(125_000), rows, 25_000, seed=0, part="pseudo")
    touched = np.unique(drawn[~is_copy][stretch : 2 * stretch] // 64)
    assert len(touched) <= 2 * stretch // 64 + 2  # each block of 64 lies over two, as blocks begin anywhere
    anywhere = np.unique(draw(np.arange(stretch), rows, seed=0, part="pseudo") // 64)
    assert len(anywhere) > 5 * len(touched)
    assert (np.abs(np.diff(touched)) > 1).sum() > 50  # which lie all over the files


def test_along_the_files_neighbors_are_mixed_and_copies_come_evenly():
    drawn, is_copy = draw_along(np.arange(125_000), 100_000, 25_000, seed=0, part="pseudo")
    assert (np.abs(np.diff(drawn[~is_copy])) < 64).mean() < 0.02  # 64 of 8,192 would be neighbors by chance
    assert set(np.diff(np.flatnonzero(is_copy))) == {5}
