"""Each reader of what strangers made gives its content or one error for any damage; `tests/fuzzing.py` tries many more."""

from contextlib import suppress

import pyarrow.parquet as pq
import pytest
from fuzzing import READERS, read_damaged
from hypothesis import given, settings
from hypothesis import strategies as st

from nst_data.errors import NstError
from nst_data.parquet_footer import column_chunks

SLOW = ("adopt-csv", "adopt-tsv", "adopt-json", "manifest")  # what is sound enough is taken whole


@pytest.mark.parametrize("reader", READERS)
def test_damage_is_an_error_of_ours_and_no_crash(reader):
    @settings(max_examples=2 if reader in SLOW else 6, derandomize=True, database=None, deadline=None)
    @given(st.integers(0, 2**32))
    def read(number):
        read_damaged(reader, number)

    read()


@pytest.mark.parametrize(
    "content",
    [
        b"path,prob\0_cat\n0.png,1\n",  # Polars panicked
        b"path,label\n0\0.png,a\n",  # no system call takes such a path
    ],
)
def test_text_tables_that_once_crashed_are_read_or_an_error_of_ours(tmp_path, content):
    with suppress(NstError):
        READERS["csv"][1](content, tmp_path)


def test_a_footer_at_which_arrow_ended_the_process_is_an_error_of_ours():
    read_damaged("parquet", 7933)  # with pyarrow 25: a histogram of another length than its column has levels


def test_what_a_footer_says_of_columns_is_what_arrow_gives(tmp_path):
    (tmp_path / "a.parquet").write_bytes(READERS["parquet"][0]()[0])
    footer = pq.read_metadata(tmp_path / "a.parquet")
    found = [[chunk.path_in_schema for chunk in chunks] for chunks in column_chunks(footer, ["image", "key"])]
    assert found == [["image.bytes", "image.path", "key"]] * 2
    (chunks,) = column_chunks(footer, ["label"], [1])
    assert chunks[0].total_uncompressed_size == footer.row_group(1).column(2).total_uncompressed_size
