"""The most confident rows of each class, exactly; copies that are spread evenly; the quota that classes agree on."""

from collections import Counter

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from selections import HASHES, f32, label_frame, reasons, select_rows

from nst_data.errors import NstError, UsageError
from nst_data.selection import cutoffs
from nst_data.selection.balance import add_copies, most_confident, quota_from_quantile
from nst_data.settings import BalanceSettings
from nst_data.tables.schema import SELECTION_COLUMNS


def copies(rows, **chosen):
    """Copies by id of the rows that are selected."""
    return dict(select_rows(label_frame(rows), BalanceSettings(**chosen))[0].select("id", "copies").iter_rows())


narrowing = st.sampled_from([0, 1, 2, cutoffs._MAX_SORTED_ROWS])


@st.composite
def many_ties(draw):
    """Rows whose confidences are equal or the nearest float32 to each other."""
    least = draw(st.sampled_from([2.0**-30, 1 / 512, 0.25, 0.3, 0.5, 511 / 512]))
    values = [0.0, least, f32(least, 1), f32(least, 2), f32(1, -1), 1.0]
    return draw(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 1), st.sampled_from(values)), min_size=4, max_size=20))


ORDERS = {
    ("image_hash", "id"): lambda index, image: (HASHES[image], index),
    ("id",): lambda index, image: index,
    ("id", "image_hash"): lambda index, image: index,
}


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(many_ties(), st.integers(0, 5), narrowing, st.sampled_from(sorted(ORDERS)))
@example([(0, 0, 0.0), (3, 0, 2.0**-30)], 1, 0, ("image_hash", "id"))
@example([(0, 0, 0.5), (1, 0, 0.5), (3, 0, 0.5)], 2, 0, ("image_hash", "id"))
@example([(3, 0, 0.5), (0, 0, 0.5)], 1, 0, ("id", "image_hash"))
def test_the_surest_rows_are_exact_whatever_is_narrowed_and_whatever_decides_ties(rows, per_class, ranked_rows, ties):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutoffs, "_MAX_SORTED_ROWS", ranked_rows)
        table = most_confident(label_frame(rows), per_class, ties).sort("id").collect()
    expected, taken = [None] * len(rows), Counter()
    for index in sorted(range(len(rows)), key=lambda index: (-rows[index][2], ORDERS[ties](index, rows[index][0]))):
        taken[rows[index][1]] += 1
        expected[index] = "over_quota" if taken[rows[index][1]] > per_class else None
    assert table["reason"].to_list() == expected


@settings(max_examples=60, deadline=None)
@given(many_ties(), st.integers(0, 9), st.integers(0, 2**31 - 1), st.one_of(st.none(), st.integers(1, 3)), narrowing)
def test_copies_of_a_class_sum_to_the_quota_and_differ_by_at_most_one(rows, more, seed, max_copies, ranked_rows):
    largest = Counter(row[1] for row in rows).most_common(1)[0][1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutoffs, "_MAX_SORTED_ROWS", ranked_rows)
        table = add_copies(label_frame(rows), largest + more, seed, max_copies).collect()
    assert table.columns == [*SELECTION_COLUMNS, "copies"]
    assert sorted(table["id"]) == list(range(len(rows)))
    for (label,), of_class in table.group_by("label"):
        numbers = of_class["copies"].to_list()
        assert sum(numbers) == min(largest + more, len(numbers) * (max_copies or 100)), label
        assert max(numbers) - min(numbers) <= 1 <= min(numbers)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.integers(0, 200), st.integers(0, 6), min_size=1), st.integers(1, 100))
def test_the_automatic_quota_is_the_nearest_rank_among_classes_that_have_images(counts, percent):
    counted = [count for count in counts.values() if count]
    enough = (n for n in counted if 100 * sum(other <= n for other in counted) >= percent * len(counted))
    assert quota_from_quantile(counts, percent / 100) == min(enough, default=1)


def test_fifty_five_percent_of_a_hundred_classes_are_fifty_five():
    assert quota_from_quantile({label: label + 1 for label in range(100)}, 0.55) == 55  # and 0.55 * 100 is a little more


def test_the_most_confident_images_of_each_class_are_kept():
    assert reasons([(0, 0, 0.5), (1, 0, 0.9), (2, 0, 0.7), (3, 1, 0.4)], per_class=2) == ["over_quota", None, None, None]


def test_ties_in_confidence_are_decided_by_the_hash_of_the_image():
    rows = [(image, 0, 0.5) for image in (3, 1, 2, 0)]
    kept = [HASHES[image] for (image, _, _), reason in zip(rows, reasons(rows, per_class=2), strict=True) if reason is None]
    assert sorted(kept) == sorted(HASHES[:4])[:2]


def test_a_rare_class_is_repeated_up_to_the_quota():
    assert copies([(0, 0, 0.9), (1, 1, 0.9), (2, 1, 0.8)], per_class=4) == {0: 4, 1: 2, 2: 2}


def test_a_class_with_enough_images_has_one_copy_of_each():
    assert copies([(0, 0, 0.9), (1, 0, 0.8), (2, 0, 0.7)], per_class=2) == {0: 1, 1: 1}


def test_no_image_is_repeated_more_often_than_allowed():
    rows = [(0, 0, 0.9), (1, 1, 0.9), (2, 1, 0.8), (3, 1, 0.8)]
    found = copies(rows, per_class=5, max_copies=2)
    assert found[0] == 2
    assert sorted(found[row] for row in (1, 2, 3)) == [1, 2, 2]


def test_without_a_quota_each_image_stands_once():
    assert copies([(0, 0, 0.9), (1, 1, 0.9), (2, 1, 0.8), (0, 0, 0.9)], per_class="none") == {0: 1, 1: 1, 2: 1}


def test_the_automatic_quota_copies_and_cuts():
    rows = [(0, 0, 0.9), (1, 1, 0.9), (2, 1, 0.8), (3, 2, 0.9), (4, 2, 0.8), (5, 2, 0.7)]
    assert copies(rows, per_class="auto") == {0: 2, 1: 1, 2: 1, 3: 1, 4: 1}
    assert sorted(copies(rows, per_class="auto", auto_quantile=1.0).values()) == [1, 1, 1, 1, 2, 3]


def test_another_seed_gives_the_odd_copy_to_another_image():
    rows = label_frame([(image, 0, 0.9) for image in (0, 3, 6)])
    odd = [add_copies(rows, 4, seed).collect().sort("copies")["id"][-1] for seed in range(12)]
    assert set(odd) == {0, 1, 2}
    assert odd == [add_copies(rows, 4, seed).collect().sort("copies")["id"][-1] for seed in range(12)]


def test_the_odd_copy_goes_with_the_image_and_not_with_its_place():
    rows = [(image, 0, 0.9) for image in range(5)]
    forward, backward = copies(rows, per_class=7), copies(rows[::-1], per_class=7)
    assert forward == {4 - row: number for row, number in backward.items()}
    assert sorted(forward.values()) == [1, 1, 1, 2, 2]


@pytest.mark.parametrize("kind", [pl.Int8, pl.Int32, pl.UInt16])
def test_labels_may_be_integers_of_any_width(kind):
    rows = label_frame([(0, 0, 0.5), (1, 0, 0.9), (2, 0, 0.7), (3, 1, 0.4)])
    chosen = most_confident(rows.cast({"label": kind}), 2).collect()
    assert chosen.equals(most_confident(rows, 2).collect())
    left = rows.filter(pl.col("id") > 0)
    assert add_copies(left.cast({"label": kind}), 4, seed=0).collect().equals(add_copies(left, 4, seed=0).collect())


def test_numbers_below_what_they_can_be_are_refused():
    with pytest.raises(UsageError, match="`per_class`: expected a whole number of at least 0, found -1"):
        most_confident(label_frame([(0, 0, 0.5)]), -1)
    with pytest.raises(UsageError, match="`max_copies`: expected a whole number of at least 1, found 0"):
        add_copies(label_frame([(0, 0, 0.5)]), 2, seed=0, max_copies=0)


def test_more_rows_than_the_quota_cannot_have_copies():
    with pytest.raises(NstError, match=r"at most 2.*found 3.*most_confident"):
        add_copies(label_frame([(0, 0, 0.9), (1, 0, 0.8), (2, 0, 0.7)]), 2, seed=0)
