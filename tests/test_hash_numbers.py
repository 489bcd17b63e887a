"""Hashes are read once: equal ones are found however many partitions they are spread over, and any row's first digits are at hand."""

import tempfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selections import HASHES

from nst_data.selection.filters import repeated_images
from nst_data.tables import hash_numbers, partitions, row_files
from nst_data.tables.hash_numbers import HashNumbers

HALVES = ["0" * 16, "0" * 15 + "1", "8" + "0" * 15, "f" * 16]
SOME = [*HASHES, *(first + second for first in HALVES for second in HALVES)]  # hashes that share one half too
IDS = st.one_of(st.integers(0, 40), st.sampled_from([-1, -(2**62), 2**33, 2**62]))


def labels(hashes):
    return pl.LazyFrame({"id": list(hashes), "image_hash": list(hashes.values())}, schema={"id": pl.Int64, "image_hash": pl.String})


def alike(hashes):
    found = {one: [row for row in hashes if hashes[row] == one] for one in hashes.values()}
    return [(row, min(found[one]), len(found[one])) for row, one in hashes.items() if len(found[one]) > 1]


def in_pieces(patch, partition_rows, batch_rows):
    patch.setattr(partitions, "_PARTITION_ROWS", partition_rows)
    for module in (hash_numbers, row_files):
        patch.setattr(module, "BATCH_ROWS", batch_rows)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(IDS, st.sampled_from(SOME), max_size=30), st.sampled_from([1, 3, 2**19]), st.sampled_from([2, 5, 2**20]))
def test_rows_with_equal_hashes_are_found_and_first_digits_read_whatever_their_ids(hashes, partition_rows, batch_rows):
    with tempfile.TemporaryDirectory() as work, pytest.MonkeyPatch.context() as patch:
        in_pieces(patch, partition_rows, batch_rows)
        numbers = HashNumbers.write(labels(hashes), Path(work, "hashes"))
        found = numbers.find_repeated()
        assert sorted(found.rows()) == sorted(alike(hashes))
        assert found.schema == {"id": pl.Int64, "first_id": pl.Int64, "duplicates": pl.Int32}
        rows, ids = list(hashes.values()), list(hashes)
        assert numbers.ids.read(0, len(ids)).tolist() == ids
        assert numbers.ids.are_increasing == (ids == sorted(ids) and min(ids, default=0) >= 0)
        assert numbers.first_digits(0, len(rows), 7).tolist() == [int(one[:7], 16) for one in rows]


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(IDS, st.sampled_from([*SOME, "00", "no digits of any kind"]), max_size=30))
def test_rows_with_equal_hashes_are_found_whatever_their_hashes(hashes):
    assert sorted(repeated_images(labels(hashes)).collect().rows()) == sorted(alike(hashes))


def test_ids_that_are_the_numbers_of_their_rows_are_not_written(tmp_path):
    HashNumbers.write(labels(dict(enumerate(SOME))), tmp_path / "hashes")
    assert (tmp_path / "hashes" / "ids").stat().st_size == 0


@pytest.mark.parametrize(
    ("ids", "hashed"), [([0, None], SOME[0]), ([0, 1], "0123456789abcde"), ([0, 1], "0123456789abcdeg"), ([0, 1], None)]
)
def test_rows_without_an_id_or_16_digits_do_not_fit(tmp_path, ids, hashed):
    rows = pl.LazyFrame({"id": ids, "image_hash": [SOME[0], hashed]}, schema={"id": pl.Int64, "image_hash": pl.String})
    assert HashNumbers.write(rows, tmp_path / "hashes") is None


def test_nothing_is_left_of_what_was_on_its_way(tmp_path):
    found = repeated_images(labels({3: SOME[0], 5: SOME[0]}), tmp_path / "work").collect()
    assert sorted(found.rows()) == [(3, 3, 2), (5, 3, 2)]
    assert not list((tmp_path / "work").iterdir())
