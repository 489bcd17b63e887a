"""The released code's method (google-research/noisystudent, filter_unlabel.py)."""

from fractions import Fraction

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st
from selections import HASHES, f32, label_frame, many_labels, place_in_order

from nst_data.images import image_hash
from nst_data.selection.balance import balance_as_released
from nst_data.tables.schema import SELECTION_COLUMNS


def plain_bins(rows, quota):
    """{label: rows taken} as get_threshold in filter_unlabel.py finds them: from the top, down to the first i/100 with enough rows."""
    taken = {}
    for label in {row[1] for row in rows}:
        for bin in range(100, -1, -1):
            taken[label] = [index for index, row in enumerate(rows) if row[1] == label and row[2] >= bin / 100]
            if len(taken[label]) >= quota:
                break
    return taken


at_bins = st.builds(f32, st.sampled_from([0.0, 0.25, 0.29, 0.57, 0.58, 0.99, 1.0]), st.integers(-1, 1)).filter(
    lambda value: 0 <= value <= 1
)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 2), at_bins), max_size=20),
    st.integers(1, 9),
    st.integers(0, 2**31 - 1),
    st.sampled_from([None, 1, 2]),
)
def test_the_released_method_takes_whole_bins_and_rounds_copies_up_or_down(rows, quota, seed, max_copies):
    table = balance_as_released(label_frame(rows), quota, seed, max_copies).sort("id").collect()
    found = dict(table.select("id", "copies").iter_rows())
    for taken in plain_bins(rows, quota).values():
        mean = min(Fraction(quota, len(taken)), Fraction(max_copies or quota))
        for index in taken:
            is_lucky = place_in_order(HASHES[rows[index][0]], seed, "released") < mean - int(mean)
            assert found.pop(index) == int(mean) + is_lucky
    assert set(found.values()) <= {0}
    assert table["reason"].to_list() == [None if number else "over_quota" for number in table["copies"]]


def test_the_released_method_on_a_table_worked_by_hand():
    rows = [
        *((0, 0, f32(0.95)), (1, 0, f32(0.915)), (2, 0, f32(0.91)), (3, 0, f32(0.905)), (4, 0, f32(0.89))),  # 1, 2 and 1 in bins 95, 91, 90
        *((5, 1, 0.0), (6, 1, 0.25)),  # too few: all, twice each
    ]
    table = balance_as_released(label_frame(rows), 4, seed=0).sort("id").collect()
    assert table["copies"].to_list() == [1, 1, 1, 1, 0, 2, 2]
    assert table["reason"].to_list() == [None, None, None, None, "over_quota", None, None]
    of_three = (
        balance_as_released(label_frame(rows[:5]), 2, seed=0).sort("id").collect()["copies"].to_list()
    )  # 2/3 each, of the first three
    assert of_three[3:] == [0, 0]
    assert set(of_three[:3]) <= {0, 1}


def test_a_bin_of_the_released_method_begins_at_the_first_float32_that_reaches_its_threshold():
    at = [next(value for value in (f32(bin / 100), f32(bin / 100, 1)) if value >= bin / 100) for bin in range(1, 101)]
    rows = [row for label, value in enumerate(at) for row in ((0, label, value), (3, label, f32(value, -1)))]
    table = balance_as_released(label_frame(rows), 1, seed=0).sort("id").collect()
    assert table["copies"].to_list() == [1, 0] * 100


def test_the_released_method_meets_the_quota_on_average():
    quota, classes, images, seeds = 30, 20, 40, 40
    rows = [(label * images + image, label) for label in range(classes) for image in range(images)]
    labels = pl.LazyFrame(
        [(index, image_hash(str(index).encode()), label, 0.9) for index, label in rows], schema=SELECTION_COLUMNS, orient="row"
    )
    drawn = [balance_as_released(labels, quota, seed).sort("id").collect()["copies"].to_numpy() for seed in range(seeds)]
    per_class = np.stack(drawn).reshape(seeds, classes, images).sum(axis=2)
    deviation = np.sqrt(images * 0.75 * 0.25)  # of the sum over a class, whose rows are taken independently with 30/40
    assert abs(per_class.mean() - quota) < 4 * deviation / np.sqrt(seeds * classes)
    assert 0.8 * deviation < per_class.std() < 1.2 * deviation
    assert np.abs(np.mean(drawn, axis=0) - 0.75).max() < 5 * np.sqrt(0.75 * 0.25 / seeds)
    assert len({one.tobytes() for one in drawn}) == seeds


def test_the_released_method_gives_the_same_rows_for_the_same_seed_in_any_order():
    labels = many_labels(2000, classes=5)
    once = balance_as_released(labels.lazy(), 150, seed=3).sort("id").collect()
    again = balance_as_released(labels.sample(fraction=1, shuffle=True, seed=1).lazy(), 150, seed=3).sort("id").collect()
    assert once.equals(again)
    assert not once.equals(balance_as_released(labels.lazy(), 150, seed=4).sort("id").collect())
