"""Rows with equal hashes are found exactly, however many partitions they are spread over and whatever their ids."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selections import HASHES

from nst_data.tables import equal_hashes
from nst_data.tables.equal_hashes import repeated_hashes

HALVES = ["0" * 16, "0" * 15 + "1", "8" + "0" * 15, "f" * 16]
SOME = [*HASHES, *(first + second for first in HALVES for second in HALVES)]  # hashes that share one half too
IDS = st.one_of(st.integers(0, 40), st.sampled_from([-1, -(2**62), 2**33, 2**62]))


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(IDS, st.sampled_from(SOME), max_size=30), st.sampled_from([1, 3, 2**19]), st.sampled_from([2, 5, 2**20]))
def test_rows_with_equal_hashes_are_found_however_they_are_spread(hashes, partition_rows, batch_rows):
    rows = pl.LazyFrame({"id": list(hashes), "image_hash": list(hashes.values())}, schema={"id": pl.Int64, "image_hash": pl.String})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(equal_hashes, "_PARTITION_ROWS", partition_rows)
        patch.setattr(equal_hashes, "BATCH_ROWS", batch_rows)
        found = repeated_hashes(rows)
    alike = {one: [row for row in hashes if hashes[row] == one] for one in hashes.values()}
    expected = [(row, min(alike[one]), len(alike[one])) for row, one in hashes.items() if len(alike[one]) > 1]
    assert sorted(found.rows()) == sorted(expected)
    assert found.schema == {"id": pl.Int64, "first_id": pl.Int64, "duplicates": pl.Int32}


def test_nothing_is_left_of_what_was_on_its_way(tmp_path):
    found = repeated_hashes(pl.LazyFrame({"id": [3, 5], "image_hash": [SOME[0]] * 2}), tmp_path / "work")
    assert sorted(found.rows()) == [(3, 3, 2), (5, 3, 2)]
    assert not list((tmp_path / "work").iterdir())
