"""Soft labels of others: what is taken, what is refused, and how they are rounded."""

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from pictures import write_table

from nst_data.errors import NstError
from nst_data.progress import Progress
from nst_data.sources import open_table
from nst_data.tables.label_columns import LabelColumns
from nst_data.tables.soft_label_column import SoftLabelColumn
from nst_data.tables.soft_labels import as_columns, soft_labels

PROBS = LabelColumns(numbers=("probs",))
GOOD = [[0.25, 0.75, 0.0], [1.0, 0.0, 0.0], [0.5, 0.25, 0.25]]


def column_of(tmp_path, *pieces, **options):
    """One parquet file for each piece."""
    for number, values in enumerate(pieces):
        write_table(tmp_path / f"{number}.parquet", probs=values, **options)
    return SoftLabelColumn(open_table(str(tmp_path)), PROBS)


def read(column):
    return np.concatenate(list(column.probabilities()))


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
@pytest.mark.parametrize("listed", [pa.list_, pa.large_list, lambda value: pa.list_(value, 3)], ids=["list", "large_list", "fixed_size"])
def test_lists_of_any_float_are_taken(tmp_path, kind, listed):
    values = [np.array(row, kind.to_pandas_dtype()) for row in GOOD]
    found = column_of(tmp_path, pa.array([row.tolist() for row in values], listed(kind)))
    assert found.n_classes == 3
    np.testing.assert_array_equal(read(found), np.array(GOOD, np.float32))


def test_integers_are_taken_and_files_may_differ_in_type(tmp_path):
    found = column_of(tmp_path, pa.array([[0, 1], [1, 0]], pa.list_(pa.int8())), pa.array([[0.5, 0.5]], pa.list_(pa.float32(), 2)))
    np.testing.assert_array_equal(read(found), np.array([[0, 1], [1, 0], [0.5, 0.5]], np.float32))


def test_what_is_off_by_rounding_is_normalized(tmp_path):
    rough = np.random.default_rng(0).dirichlet(np.ones(50), 20) * np.linspace(0.991, 1.009, 20)[:, None]
    np.testing.assert_allclose(read(column_of(tmp_path, pa.array(rough.tolist()))), rough / rough.sum(axis=1, keepdims=True), rtol=1e-6)


def test_a_negative_zero_is_the_least_and_no_negative_number(tmp_path):
    found = read(column_of(tmp_path, pa.array([[-0.0, 0.75, 0.25]])))
    assert not np.signbit(found).any()
    assert soft_labels(found, 2)["top_labels"].tolist() == [[1, 2]]


def test_all_rows_of_a_saved_dataset_are_read_in_order(tmp_path):
    values = np.random.default_rng(0).dirichlet(np.ones(3), 600).astype(np.float32)
    Dataset.from_dict({"probs": values.tolist()}).save_to_disk(str(tmp_path / "saved"))
    np.testing.assert_allclose(read(SoftLabelColumn(open_table(str(tmp_path / "saved")), PROBS)), values, rtol=1e-6)


def test_the_digest_does_not_depend_on_how_the_rows_are_stored(tmp_path):
    (tmp_path / "one").mkdir()
    whole = column_of(tmp_path / "one", pa.array(GOOD, pa.list_(pa.float64())))
    parts = column_of(tmp_path / "two", pa.array(GOOD[:1], pa.list_(pa.float32())), pa.array(GOOD[1:], pa.list_(pa.float16(), 3)))
    other = column_of(tmp_path / "three", pa.array(GOOD[::-1], pa.list_(pa.float64())))
    assert whole.digest(Progress()) == parts.digest(Progress()) != other.digest(Progress())


NO_DISTRIBUTION = r"expected probabilities that add up to 1 \(within 0.01\); if these are logits, add `logits`"


@pytest.mark.parametrize(
    ("last", "line"),
    [
        ([4.0, 1.5, 0.5], f"`probs` of row '0.parquet:3' adds up to 6, {NO_DISTRIBUTION}"),
        ([0.4, 0.5, 0.0], f"row '0.parquet:3' adds up to 0.9, {NO_DISTRIBUTION}"),
        ([-1.5, 2.0, 0.5], f"row '0.parquet:3' holds -1.5, {NO_DISTRIBUTION}"),
        ([0.5, 0.5, float("nan")], f"row '0.parquet:3' holds nan, {NO_DISTRIBUTION}"),
        ([float("inf"), float("-inf"), 0.5], f"row '0.parquet:3' holds inf, {NO_DISTRIBUTION}"),
        ([0.0, 0.0, 0.0], f"row '0.parquet:3' adds up to 0, {NO_DISTRIBUTION}"),
        ([0.5, 0.5], r"row '0\.parquet:3' has 2 numbers.*3; expected one"),
        ([], r"row '0\.parquet:3' has 0 numbers.*3; expected one"),
        ([0.5, None, 0.5], r"row '0\.parquet:3' lacks a number; expected one"),
        (None, r"row '0\.parquet:3' is empty; expected one"),
    ],
)
def test_a_row_that_is_no_distribution_is_named(tmp_path, last, line):
    found = column_of(tmp_path, pa.array([*GOOD, last, [9.0, 9.0, 9.0]], pa.list_(pa.float64())), row_group_size=2)
    with pytest.raises(NstError, match=line):
        read(found)


def test_a_missing_soft_label_in_lists_of_one_length_is_named(tmp_path):
    with pytest.raises(NstError, match=r"row '0.parquet:1' is empty"):
        read(column_of(tmp_path, pa.array([GOOD[0], None, GOOD[1]], pa.list_(pa.float32(), 3))))


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (["a", "b"], r"`probs` is list<item: string>, expected lists of numbers"),
        ([["a"], ["b"]], r"`probs` is list<element: string>, expected lists of numbers"),
        ([[1.0], [1.0]], r"`probs`.*'0\.parquet:0' has 1 number, expected one"),
        (pa.array([None, [0.5, 0.5]]), r"`probs`.*'0\.parquet:0' has 0 numbers, expected one"),
    ],
)
def test_a_column_of_other_things_is_refused(tmp_path, values, line):
    with pytest.raises(NstError, match=line):
        column_of(tmp_path, values)


def test_the_column_must_be_there(tmp_path):
    with pytest.raises(NstError, match=r"0\.parquet:.*`probs`, found `logits` \(double\), `label` \(int64\)"):
        SoftLabelColumn(open_table(write_table(tmp_path / "0.parquet", logits=[1.0], label=[1])), PROBS)


def test_label_and_confidence_are_those_before_rounding_to_float16():
    probs = np.array([[0.33333, 0.33334, 0.33333]], np.float32)
    made = soft_labels(probs, None)
    assert np.float16(0.33333) == np.float16(0.33334)
    assert (made["label"].tolist(), made["confidence"].tolist()) == ([1], [probs[0, 1]])
    assert made["probs"].dtype == np.float16


@given(st.data())
def test_the_largest_are_those_of_a_stable_sort(data):
    classes = data.draw(st.integers(2, 12))
    top_k = data.draw(st.integers(1, classes))
    values = data.draw(st.lists(st.lists(st.sampled_from([0.0, 1e-9, 0.1, 0.25, 0.9]), min_size=classes, max_size=classes), min_size=1))
    probs = np.array(values, np.float32)
    made = soft_labels(probs, top_k)
    order = np.argsort(-probs, axis=1, kind="stable")[:, :top_k]
    np.testing.assert_array_equal(made["top_labels"], order)
    np.testing.assert_array_equal(made["top_probs"], np.take_along_axis(probs, order, axis=1).astype(np.float16))
    np.testing.assert_array_equal(made["label"], order[:, 0])
    columns = as_columns(made)
    assert (columns["top_labels"].type, columns["top_probs"].type) == (pa.list_(pa.int32(), top_k), pa.list_(pa.float16(), top_k))
