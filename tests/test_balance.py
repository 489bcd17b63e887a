from collections import Counter
from fractions import Fraction

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nst_data.balance import REASONS, add_copies, judge
from nst_data.errors import NstError
from nst_data.images import image_hash
from nst_data.schema import SELECTION_COLUMNS, check_labels
from nst_data.settings import BalanceSettings

HASHES = [image_hash(bytes([letter])) for letter in range(8)]


def frame(rows):
    """From (image, label, confidence) in pool order; an image is an index into HASHES."""
    columns = [(index, HASHES[image], label, confidence) for index, (image, label, confidence) in enumerate(rows)]
    return pl.LazyFrame(columns, schema=SELECTION_COLUMNS, orient="row")


def judged(rows, held_out=(), near=(), **chosen):
    """(reason, duplicates) by id, in pool order."""
    table = judge(frame(rows), BalanceSettings(**chosen), held_out, near).sort("id").collect()
    return list(zip(table["reason"], table["duplicates"], strict=True))


def reasons(rows, held_out=(), near=(), **chosen):
    return [reason for reason, _ in judged(rows, held_out, near, **chosen)]


def copies(rows, **chosen):
    """Copies by id of the rows that are selected."""
    chosen = BalanceSettings(**chosen)
    selected = judge(frame(rows), chosen).filter(pl.col("reason").is_null())
    return dict(add_copies(selected, chosen).select("id", "copies").collect().iter_rows())


def plain_reasons(rows, held_out, near, min_confidence, per_class):
    """Section 3.1 in ten plain lines."""
    seen, found, taken = set(), [], Counter()
    for image, _, confidence in rows:
        reason = "duplicate" if image in seen else None if Fraction(confidence) > Fraction(min_confidence) else "low_confidence"
        found.append("held_out" if HASHES[image] in held_out else "near_held_out" if HASHES[image] in near else reason)
        seen.add(image)
    for index in sorted(range(len(rows)), key=lambda index: (-rows[index][2], HASHES[rows[index][0]], index)):
        label = rows[index][1]
        taken[label] += found[index] is None
        if found[index] is None and taken[label] > per_class:
            found[index] = "over_quota"
    return found


a_confidence = st.sampled_from([float(np.float32(value)) for value in (0.2, 0.3, 0.5, 0.9, 1.0)])
some_images = st.sets(st.sampled_from(HASHES), max_size=2)
some_rows = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 2), a_confidence), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(some_rows, some_images, some_images, st.sampled_from([0.0, 0.3, 0.5]), st.integers(1, 4), st.randoms())
def test_the_selection_equals_that_of_plain_python_in_any_order_of_rows(rows, held_out, near, min_confidence, per_class, random):
    chosen = BalanceSettings(min_confidence=min_confidence, per_class=per_class)
    table = judge(frame(rows), chosen, held_out, near).sort("id").collect()
    assert table["reason"].to_list() == plain_reasons(rows, held_out, near, min_confidence, per_class)
    assert table["duplicates"].to_list() == [sum(other[0] == row[0] for other in rows) for row in rows]
    order = random.sample(range(len(rows)), len(rows))
    shuffled = frame(rows).collect()[order].lazy()
    assert judge(shuffled, chosen, held_out, near).sort("id").collect().equals(table)


@settings(max_examples=60, deadline=None)
@given(some_rows, st.integers(1, 9), st.integers(0, 2**31 - 1), st.randoms())
def test_copies_of_a_class_sum_to_the_quota_and_differ_by_at_most_one_in_any_order_of_rows(rows, per_class, seed, random):
    chosen = BalanceSettings(min_confidence=0, per_class=per_class, seed=seed)
    selected = judge(frame(rows), chosen).filter(pl.col("reason").is_null()).collect()
    table = add_copies(selected.lazy(), chosen).sort("id").collect()
    for (label,), of_class in table.group_by("label"):
        numbers = of_class["copies"].to_list()
        assert sum(numbers) == per_class, label
        assert max(numbers) - min(numbers) <= 1 <= min(numbers)
    shuffled = selected[random.sample(range(len(selected)), len(selected))].lazy()
    assert add_copies(shuffled, chosen).sort("id").collect().equals(table)


def test_the_most_confident_images_of_each_class_are_kept():
    assert reasons([(0, 0, 0.5), (1, 0, 0.9), (2, 0, 0.7), (3, 1, 0.4)], per_class=2) == ["over_quota", None, None, None]


def test_ties_in_confidence_are_decided_by_the_hash_of_the_image():
    rows = [(image, 0, 0.5) for image in range(4)]
    kept = [HASHES[image] for image, reason in enumerate(reasons(rows, per_class=2)) if reason is None]
    assert sorted(kept) == sorted(HASHES[:4])[:2]


def test_the_first_of_equal_images_stands_for_all_even_where_a_later_one_is_surer():
    assert judged([(0, 0, 0.5), (0, 1, 0.9), (1, 0, 0.5)]) == [(None, 2), ("duplicate", 2), (None, 1)]


def test_a_duplicate_of_an_image_that_is_not_kept_is_not_kept_either():
    assert reasons([(0, 0, 0.1), (0, 0, 0.9)]) == ["low_confidence", "duplicate"]


def test_held_out_images_go_first_with_all_their_duplicates():
    assert reasons([(0, 0, 0.9), (0, 0, 0.1), (1, 0, 0.9)], held_out={HASHES[0]}) == ["held_out", "held_out", None]


def test_near_duplicates_of_held_out_images_go_with_all_their_duplicates_under_a_reason_of_their_own():
    rows = [(0, 0, 0.9), (1, 0, 0.9), (1, 1, 0.1), (2, 0, 0.9)]
    assert reasons(rows, {HASHES[0]}, {HASHES[0], HASHES[1]}) == ["held_out", "near_held_out", "near_held_out", None]


def test_dropped_images_take_no_place_of_the_quota():
    rows = [(0, 0, 0.99), (1, 0, 0.9), (1, 0, 0.9), (2, 0, 0.5), (3, 0, 0.1)]
    assert reasons(rows, {HASHES[0]}, per_class=2) == ["held_out", None, "duplicate", None, "low_confidence"]


def test_confidence_is_compared_in_float64():
    nearest = np.float32(0.3)  # 0.300000012, above the float64 0.3
    assert reasons([(0, 0, nearest), (1, 0, np.nextafter(nearest, np.float32(0)))]) == [None, "low_confidence"]


def test_confidence_must_lie_above_the_threshold_and_not_on_it():
    assert reasons([(0, 0, 0.5), (1, 0, np.nextafter(np.float32(0.5), np.float32(1)))], min_confidence=0.5) == ["low_confidence", None]


def test_a_confidence_that_is_no_number_is_not_kept():
    assert reasons([(0, 0, float("nan")), (1, 0, 0.9)], per_class=1) == ["low_confidence", None]


def test_a_rare_class_is_repeated_up_to_the_quota():
    assert copies([(0, 0, 0.9), (1, 1, 0.9), (2, 1, 0.8)], per_class=4) == {0: 4, 1: 2, 2: 2}


def test_a_class_with_enough_images_has_one_copy_of_each():
    assert copies([(0, 0, 0.9), (1, 0, 0.8), (2, 0, 0.7)], per_class=2) == {0: 1, 1: 1}


def test_another_seed_gives_the_odd_copy_to_another_image():
    rows = [(image, 0, 0.9) for image in range(3)]
    odd = [next(row for row, number in copies(rows, per_class=4, seed=seed).items() if number == 2) for seed in range(30)]
    assert set(odd) == {0, 1, 2}
    assert copies(rows, per_class=4, seed=7) == copies(rows, per_class=4, seed=7)


def test_the_odd_copy_goes_with_the_image_and_not_with_its_place():
    rows = [(image, 0, 0.9) for image in range(5)]
    forward, backward = copies(rows, per_class=7), copies(rows[::-1], per_class=7)
    assert forward == {4 - row: number for row, number in backward.items()}
    assert sorted(forward.values()) == [1, 1, 1, 2, 2]


def test_each_dropped_row_has_one_of_the_known_reasons():
    rows = [(0, 0, 0.9), (1, 0, 0.9), (1, 0, 0.9), (2, 0, 0.1), (3, 0, 0.8), (4, 0, 0.8)]
    assert Counter(reasons(rows, {HASHES[0]}, {HASHES[4]}, per_class=1)) == Counter([None, *REASONS])


def test_a_missing_column_is_an_error_that_names_it():
    with pytest.raises(NstError, match="pseudo_labels: column `confidence` is missing; expected Float32; found id, image_hash, label"):
        check_labels(frame([(0, 0, 0.5)]).drop("confidence"))


@pytest.mark.parametrize(("column", "wrong", "expected"), [("confidence", pl.String, "Float32"), ("label", pl.Int32, "Int64")])
def test_a_column_of_another_type_is_an_error_that_names_both(column, wrong, expected):
    with pytest.raises(NstError, match=rf"mine: column `{column}` is {wrong}, expected {expected}"):
        check_labels(frame([(0, 0, 0.5)]).cast({column: wrong}), "mine")


def test_a_table_with_more_columns_passes():
    table = frame([(0, 0, 0.5)]).with_columns(extra=1)
    assert check_labels(table) is table
