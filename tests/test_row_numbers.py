"""Numbers that are kept by row equal those computed again; where they cannot be kept, rows are ordered all the same."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from narwhals import from_native
from selections import HASHES

from nst_data.selection.seeded_order import HASH_DIGITS, with_seeded_order
from nst_data.tables import equal_hashes
from nst_data.tables.engines import hash_number
from nst_data.tables.equal_hashes import repeated_hashes
from nst_data.tables.row_numbers import RowNumbers

IDS = st.one_of(st.integers(0, 40), st.sampled_from([-1, 2**33]))


def _order(rows, numbers=None):
    return with_seeded_order(from_native(rows), 5, "copies", "order", numbers).to_native().collect()


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(IDS, st.sampled_from(HASHES), min_size=1, max_size=30), st.sampled_from([2, 2**20]))
def test_the_order_by_numbers_that_were_kept_is_the_order_by_hashes(tmp_path_factory, hashes, batch_rows):
    numbers = RowNumbers(tmp_path_factory.mktemp("numbers") / "numbers", hash_number(HASH_DIGITS))
    rows = pl.LazyFrame({"id": list(hashes), "image_hash": list(hashes.values())})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(equal_hashes, "BATCH_ROWS", batch_rows)
        repeated_hashes(rows, numbers=numbers)
    assert numbers.are_there == (min(hashes) >= 0 and max(hashes) < 64 * len(hashes))
    assert _order(rows, numbers).equals(_order(rows))
    if numbers.are_there:  # the hashes themselves are not read again
        assert _order(rows.drop("image_hash"), numbers)["order"].equals(_order(rows)["order"])


def test_hashes_that_are_no_numbers_keep_none(tmp_path):
    numbers = RowNumbers(tmp_path / "numbers", hash_number(HASH_DIGITS, strict=False))
    rows = pl.LazyFrame({"id": [0, 1, 2], "image_hash": [HASHES[0], "x" * 32, None]})
    repeated_hashes(rows, numbers=numbers)
    assert not numbers.are_there
