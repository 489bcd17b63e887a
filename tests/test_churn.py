import math

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sealed_labels import NAMES

from nst_data.errors import NstError
from nst_data.images import image_hash
from nst_data.inspection.churn import (
    Change,
    ClassChurn,
    ConfidenceChurn,
    count_changes,
    join_common_images,
    match_labels_by_name,
    measure_churn,
    one_row_per_image,
)

HASHES = [image_hash(bytes([number])) for number in range(9)]
COLUMNS = {"id": pl.Int64, "image_hash": pl.String, "label": pl.Int64, "confidence": pl.Float32, "copies": pl.Int32}


def table(rows):
    """From (image, label, confidence) or (image, label, confidence, copies) in pool order; an image is an index into HASHES."""
    filled = [(index, HASHES[image], *values) for index, (image, *values) in enumerate(rows)]
    width = max(map(len, filled), default=4)
    return pl.LazyFrame(filled, schema=dict(list(COLUMNS.items())[:width]), orient="row")


BEFORE = [(0, 0, 0.95), (1, 0, 0.5), (2, 1, 0.5), (3, 1, 0.25), (4, 2, 0.75)]
AFTER = [(8, 1, 0.5), (4, 2, 0.5), (3, 1, 0.5), (2, 0, 0.5), (1, 2, 0.75)]


def test_five_labels_are_compared_by_hand():
    churn = measure_churn(table(BEFORE), table(AFTER), NAMES)
    assert (churn.only_before, churn.only_after, churn.both, churn.changed) == (1, 1, 4, 2)
    assert churn.mean_confidence_change == (0.25 + 0 + 0.25 + 0.25) / 4
    assert churn.changes == [Change("ant", "cat", 1), Change("bee", "ant", 1)]
    assert churn.by_class == [ClassChurn("ant", 1, 1, 1.0), ClassChurn("bee", 2, 1, 0.5), ClassChurn("cat", 1, 0, 0.0)]
    assert [row for row in churn.by_confidence if row.images] == [
        ConfidenceChurn(0.2, 0.3, 1, 0, 0.0),
        ConfidenceChurn(0.4, 0.5, 2, 2, 1.0),
        ConfidenceChurn(0.7, 0.8, 1, 0, 0.0),
    ]
    assert churn.by_confidence[0] == ConfidenceChurn(0.0, 0.1, 0, 0, None)
    assert churn.copies_changed is None


def test_nothing_changes_from_a_table_to_itself():
    churn = measure_churn(table(BEFORE), table(BEFORE), NAMES)
    assert (churn.only_before, churn.only_after, churn.both, churn.changed, churn.mean_confidence_change) == (0, 0, 5, 0, 0.0)
    assert churn.changes == []


def test_the_first_of_equal_images_stands_for_all():
    churn = measure_churn(table([(0, 0, 0.5), (0, 1, 0.9), (0, 1, 0.9)]), table([(0, 0, 0.5), (0, 2, 0.5)]), NAMES)
    assert (churn.both, churn.changed, churn.mean_confidence_change) == (1, 0, 0.0)


def test_copies_are_compared_between_editions_alone():
    one, other = [(0, 0, 0.5, 3), (1, 0, 0.5, 2)], [(0, 0, 0.5, 1), (1, 0, 0.5, 2)]
    assert measure_churn(table(one), table(other), NAMES).copies_changed == 1
    assert measure_churn(table(one), table([row[:3] for row in other]), NAMES).copies_changed is None


def test_tables_without_a_common_image_have_no_churn():
    churn = measure_churn(table([(0, 0, 0.5)]), table([(1, 0, 0.5), (2, 0, 0.5)]), NAMES)
    assert (churn.only_before, churn.only_after, churn.both, churn.mean_confidence_change) == (1, 2, 0, None)
    assert churn.by_class == churn.changes == []


def test_a_confidence_that_is_no_number_is_left_out_of_the_mean():
    churn = measure_churn(table([(0, 0, float("nan")), (1, 0, 0.5)]), table([(0, 1, 0.5), (1, 0, 0.25)]), NAMES)
    assert (churn.both, churn.changed, churn.mean_confidence_change) == (2, 1, 0.25)


def test_only_so_many_changes_are_named_the_most_frequent_first():
    churn = measure_churn(table([(0, 0, 0.5), (1, 1, 0.5), (2, 1, 0.5)]), table([(0, 1, 0.5), (1, 2, 0.5), (2, 2, 0.5)]), NAMES, pairs=1)
    assert churn.changes == [Change("bee", "cat", 2)]


def plain_churn(before, after):
    """The definition in plain Python: (only before, only after, both, changed, mean move, copies changed, changes, classes, bins)."""
    first, second = ({row[0]: row for row in reversed(rows)} for rows in (before, after))
    both = sorted(first.keys() & second.keys())
    changed = [image for image in both if first[image][1] != second[image][1]]
    moves = [abs(first[image][2] - second[image][2]) for image in both]
    copies = sum(first[image][3] != second[image][3] for image in both)
    pairs = [(first[image][1], second[image][1]) for image in changed]
    bins = [max(0, math.ceil(first[image][2] * 10) - 1) for image in both]
    classes = {label: [first[image][1] for image in both].count(label) for label in range(3)}
    counts = (len(first.keys() - second.keys()), len(second.keys() - first.keys()), len(both), len(changed))
    mean = sum(moves) / len(moves) if moves else None
    return *counts, mean, copies, {pair: pairs.count(pair) for pair in set(pairs)}, classes, [bins.count(number) for number in range(10)]


some_rows = st.lists(
    st.tuples(st.integers(0, 8), st.integers(0, 2), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.integers(1, 3)), max_size=14
)


@settings(max_examples=60, deadline=None)
@given(some_rows, some_rows, st.sampled_from([1, 4, 1000]), st.randoms())
def test_the_comparison_equals_that_of_plain_python_in_any_order_of_rows_and_number_of_parts(before, after, rows_at_once, random):
    shuffled = []
    for rows in (before, after):
        frame = table(rows).collect() if rows else pl.DataFrame(schema=COLUMNS)
        shuffled.append(frame[random.sample(range(len(rows)), len(rows))].lazy())
    churn = measure_churn(*shuffled, NAMES, pairs=100, rows_at_once=rows_at_once)
    counts = (churn.only_before, churn.only_after, churn.both, churn.changed, churn.mean_confidence_change, churn.copies_changed)
    changes = {(NAMES.index(one.before), NAMES.index(one.after)): one.images for one in churn.changes}
    classes = dict.fromkeys(range(3), 0) | {NAMES.index(one.name): one.images for one in churn.by_class}
    assert (*counts, changes, classes, [one.images for one in churn.by_confidence]) == plain_churn(before, after)
    assert sum(one.changed for one in churn.by_class) == sum(one.changed for one in churn.by_confidence) == churn.changed


def test_the_steps_take_and_give_lazy_frames():
    first, second = one_row_per_image(table(BEFORE)), one_row_per_image(table(AFTER))
    assert isinstance(first, pl.LazyFrame)
    changes = count_changes(join_common_images(first, second)).sort("label", "label_after").collect()
    assert changes.select("label", "label_after", "bin", "images", "moved").rows() == [
        (0, 2, 4, 1, 0.25),
        (1, 0, 4, 1, 0.0),
        (1, 1, 2, 1, 0.25),
        (2, 2, 7, 1, 0.25),
    ]


def test_classes_in_another_order_are_matched_by_name():
    after = match_labels_by_name(table([(0, 2, 0.5), (1, 1, 0.5)]), ["cat", "bee", "ant"], NAMES, "a and b")
    assert measure_churn(table([(0, 0, 0.5), (1, 1, 0.5)]), after, NAMES).changed == 0


@pytest.mark.parametrize(("before", "after"), [(["a", "caf\u00e9"], ["cafe\u0301", "a"]), (["7", "12"], ["12", "07"])])
def test_classes_that_are_spelled_otherwise_are_the_same_as_everywhere(before, after):
    labels = match_labels_by_name(table([(0, 0, 0.5), (1, 1, 0.5)]), after, before, "a and b")
    assert labels.collect()["label"].to_list() == [1, 0]


def test_a_label_outside_the_classes_is_an_error_after_matching_too():
    after = match_labels_by_name(table([(0, 7, 0.5)]), NAMES, NAMES, "a and b")
    with pytest.raises(NstError, match=r"a and b:.*0 to 2.*label 7"):
        measure_churn(table([(0, 0, 0.5)]), after, NAMES, "a and b")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["ant", "bee", "dog"], r"a and b:.*1 only in the second \(dog\)"),
        (["ant", "bee"], r"a and b:.*1 only in the first \(cat\)"),
    ],
)
def test_other_classes_are_an_error_that_names_them(names, message):
    with pytest.raises(NstError, match=message):
        match_labels_by_name(table([(0, 0, 0.5)]), names, NAMES, "a and b")


class Looked(list):
    """Counts how often it is gone through."""

    times = 0

    def __iter__(self):
        self.times += 1
        return super().__iter__()


def test_of_many_classes_the_names_are_gone_through_a_few_times():
    names = [f"class {number}" for number in range(1000)]
    before, after = Looked(names), Looked(names[::-1])
    labels = match_labels_by_name(table([(0, 0, 0.5), (1, 998, 0.5)]), after, before, "a and b")
    assert labels.collect()["label"].to_list() == [999, 1]
    assert before.times + after.times < 100  # not once for each class


@pytest.mark.parametrize("wrong", ["before", "after"])
def test_a_label_outside_the_classes_is_an_error(wrong):
    frames = [table([(0, 3 if wrong == side else 0, 0.5)]) for side in ("before", "after")]
    with pytest.raises(NstError, match=r"a and b:.*0 to 2.*label 3"):
        measure_churn(*frames, NAMES, "a and b")


def test_a_hash_that_is_none_is_an_error():
    frame = table([(0, 0, 0.5)]).with_columns(image_hash=pl.lit("no hash"))
    with pytest.raises(NstError, match=r"a and b:.*\(strict integer parsing failed.*`verify\(\)`"):
        measure_churn(frame, table([(0, 0, 0.5)]), NAMES, "a and b")
