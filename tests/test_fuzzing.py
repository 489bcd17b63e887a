"""Each reader of what strangers made gives its content or one error for any damage; `tests/fuzzing.py` tries many more."""

import subprocess
import sys
from contextlib import suppress

import pyarrow as pa
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
    @settings(max_examples=1 if reader in SLOW else 4, derandomize=True, database=None, deadline=None)
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


READ_FLIPPED = """
import io, sys
import pyarrow as pa
import pyarrow.parquet as pq
from nst_data.errors import NstError
from nst_data.parquet_footer import DAMAGE, column_chunks
from nst_data.sources.plain_pages import plain_groups
from nst_data.tables.schema import check_columns

column, sound, refused = sys.argv[1], open(sys.argv[2], "rb").read(), 0
length = int.from_bytes(sound[-8:-4], "little")
for bit in range(8 * (len(sound) - 8 - length), 8 * (len(sound) - 8)):
    content = bytearray(sound)
    content[bit // 8] ^= 1 << bit % 8
    try:
        with pq.ParquetFile(io.BytesIO(content)) as parquet:
            for chunk in sum(column_chunks(parquet.metadata, [column]), []):
                chunk.compression, chunk.encodings, chunk.physical_type == "BYTE_ARRAY" and chunk.statistics
            check_columns(parquet.metadata, parquet.schema_arrow, "a.parquet")
            plain_groups(parquet, column.split("."))
    except (*DAMAGE, NstError, KeyError):  # the last where a column has another name
        refused += 1
print(refused)
"""


@pytest.mark.parametrize("column", ["image.bytes", "label"])
def test_a_flipped_bit_of_a_footer_is_read_or_an_error_and_never_ends_the_process(tmp_path, column):
    whole = pa.table({"label": [0, 1], "image": [{"bytes": b"a"}, {"bytes": b"b"}]})
    pq.write_table(whole.select([column.split(".")[0]]), tmp_path / "a.parquet", compression="none", store_schema=False)
    read = subprocess.run([sys.executable, "-c", READ_FLIPPED, column, tmp_path / "a.parquet"], check=True, capture_output=True, text=True)
    assert int(read.stdout) > 500


def test_what_a_footer_says_of_columns_is_what_arrow_gives(tmp_path):
    (tmp_path / "a.parquet").write_bytes(READERS["parquet"][0]()[0])
    footer = pq.read_metadata(tmp_path / "a.parquet")
    found = [[chunk.path_in_schema for chunk in chunks] for chunks in column_chunks(footer, ["image", "key"])]
    assert found == [["image.bytes", "image.path", "key"]] * 2
    (chunks,) = column_chunks(footer, ["label"], [1])
    assert chunks[0].total_uncompressed_size == footer.row_group(1).column(2).total_uncompressed_size
