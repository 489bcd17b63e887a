"""What each filter drops, and in which order reasons count."""

import narwhals as nw
import polars as pl
from selections import HASHES, f32, judge_rows, label_frame, many_labels, reasons

from nst_data.selection import filters
from nst_data.selection.balance import add_copies, balance_as_released, most_confident


def test_the_first_of_equal_images_stands_for_all_even_where_a_later_one_is_surer():
    assert judge_rows([(0, 0, 0.5), (0, 1, 0.9), (1, 0, 0.5)]) == [(None, 2), ("duplicate", 2), (None, 1)]


def test_images_whose_hashes_only_begin_alike_are_no_duplicates():
    assert judge_rows([(2, 0, 0.5), (0, 0, 0.5), (3, 0, 0.5), (4, 0, 0.5)]) == [(None, 1)] * 4


def test_a_duplicate_of_an_image_that_is_not_kept_is_not_kept_either():
    assert reasons([(0, 0, 0.1), (0, 0, 0.9)]) == ["low_confidence", "duplicate"]


def test_held_out_images_go_first_with_all_their_duplicates():
    assert reasons([(0, 0, 0.9), (0, 0, 0.1), (1, 0, 0.9)], held_out={0}) == ["held_out", "held_out", None]


def test_near_duplicates_of_held_out_images_go_with_all_their_duplicates_under_a_reason_of_their_own():
    rows = [(0, 0, 0.9), (1, 0, 0.9), (1, 1, 0.1), (2, 0, 0.9)]
    assert reasons(rows, {0}, {0, 1}) == ["held_out", "near_held_out", "near_held_out", None]


def test_dropped_images_take_no_place_of_the_quota():
    rows = [(0, 0, 0.99), (1, 0, 0.9), (1, 0, 0.9), (2, 0, 0.5), (3, 0, 0.1)]
    assert reasons(rows, {0}, per_class=2) == ["held_out", None, "duplicate", None, "low_confidence"]


def test_confidence_is_compared_in_float64():
    assert reasons([(0, 0, f32(0.3)), (1, 0, f32(0.3, -1))]) == [None, "low_confidence"]  # the float32 next to 0.3 lies above it


def test_confidence_must_lie_above_the_threshold_and_not_on_it():
    assert reasons([(0, 0, 0.5), (1, 0, f32(0.5, 1))], min_confidence=0.5) == ["low_confidence", None]


def test_the_released_codes_method_keeps_what_lies_on_the_threshold():
    """As `min_threshold` in filter_unlabel.py; an own threshold of a class alike."""
    rows = [(0, 0, f32(0.5, -1)), (1, 0, 0.5), (2, 1, 0.25), (3, 1, f32(0.25, -1))]
    chosen = {"min_confidence": 0.5, "class_min_confidence": {"bee": 0.25}}
    assert reasons(rows, method="official", **chosen) == ["low_confidence", None, None, "low_confidence"]
    assert reasons(rows, method="official", at_threshold="drop", **chosen) == ["low_confidence"] * 4
    assert reasons(rows, at_threshold="keep", **chosen) == ["low_confidence", None, None, "low_confidence"]


def test_a_class_may_have_a_threshold_of_its_own():
    rows = [(0, 0, 0.4), (1, 1, 0.4), (2, 1, 0.2), (3, 2, 0.2)]
    assert reasons(rows, class_min_confidence={"bee": 0.1, "ant": 0.5}) == ["low_confidence", None, None, "low_confidence"]


def test_a_range_of_confidence_has_its_upper_end_and_not_its_lower():
    rows = [(0, 0, 0.0), (1, 0, 0.25), (2, 0, f32(0.25, 1)), (3, 0, 0.5), (4, 0, f32(0.5, 1))]
    assert reasons(rows, confidence_range=(0.25, 0.5)) == ["outside_range", "outside_range", None, None, "outside_range"]
    assert reasons(rows, confidence_range=(0.0, 0.25)) == [None, None, "outside_range", "outside_range", "outside_range"]


def test_a_smaller_share_of_the_images_is_part_of_a_larger_and_keeps_duplicates_together():
    labels = many_labels(3000, classes=3)
    kept = {}
    for fraction in (0.2, 0.5):
        table = filters.reject_unsampled(labels.lazy(), fraction, seed=1).filter(pl.col("reason").is_null()).collect()
        kept[fraction] = set(table["image_hash"])
        assert table.height == labels["image_hash"].is_in(table["image_hash"].implode()).sum()
        assert abs(len(kept[fraction]) / labels["image_hash"].n_unique() - fraction) < 0.03
    assert kept[0.2] < kept[0.5]
    other = filters.reject_unsampled(labels.lazy(), 0.5, seed=2).filter(pl.col("reason").is_null()).collect()
    assert 0.4 < len(kept[0.5] & set(other["image_hash"])) / len(kept[0.5]) < 0.6


def test_a_filter_of_ones_own_keeps_the_reasons_that_are_there_and_the_rows_it_cannot_judge():
    labels = label_frame([(0, 0, 0.1), (1, 0, 0.9), (2, 0, 0.8)]).with_columns(brightness=pl.Series([5, 5, None]))
    table = filters.reject(filters.reject_unsure(labels, 0.3), "too_dark", nw.col("brightness") < 20).collect()
    assert table["reason"].to_list() == ["low_confidence", "too_dark", None]


def test_a_column_of_the_users_own_comes_through():
    labels = label_frame([(0, 0, 0.9), (1, 0, 0.8)]).with_columns(hair_cut=pl.Series(["bob", "crop"]))
    table = add_copies(most_confident(labels, 1).filter(pl.col("reason").is_null()), 3, seed=0).collect()
    assert table.rows() == [(0, HASHES[0], 0, f32(0.9), "bob", None, 3)]


def test_a_confidence_that_is_no_number_is_not_kept_by_any_method():
    labels = filters.reject_unsure(label_frame([(0, 0, float("nan")), (1, 0, 0.9), (2, 0, None)]), 0.3)
    for chosen in (most_confident(labels, 1), balance_as_released(labels, 1, seed=0)):
        assert chosen.sort("id").collect()["reason"].to_list() == ["low_confidence", None, "low_confidence"]
