"""Single values out of parquet pages, against the table that was written."""

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nst_data.errors import NstError
from nst_data.sources.plain_pages import PlainPages, plain_groups

VALUES = [np.random.default_rng(row).bytes(int(size)) for row, size in enumerate(np.random.default_rng(0).integers(0, 3000, 500))]
BINARY = pa.array(VALUES, pa.binary())
STRUCT = pa.StructArray.from_arrays([BINARY, pa.array([str(row) for row in range(500)])], names=["bytes", "path"])
PLAIN = {
    "compression": "none",
    "use_dictionary": False,
    "write_page_index": True,
    "data_page_size": 20_000,
    "write_batch_size": 10,
    "row_group_size": 150,
}


def write(path, image=BINARY, is_optional=True, **how):
    schema = pa.schema([pa.field("n", pa.int64()), pa.field("image", image.type, nullable=is_optional), pa.field("note", pa.string())])
    table = pa.table({"n": range(len(image)), "image": image, "note": ["é"] * len(image)}, schema=schema)
    pq.write_table(table, path, **PLAIN | how)
    return str(path)


def find(*files, column="image"):
    groups = [plain_groups(pq.ParquetFile(file), column.split(".")) for file in files]
    return None if None in groups else PlainPages.from_files(files, [os.stat(file).st_size for file in files], groups)


@pytest.mark.parametrize(
    ("image", "column", "how"),
    [
        (BINARY, "image", {}),
        (BINARY.cast(pa.large_binary()), "image", {}),
        (BINARY, "image", {"is_optional": False}),
        (BINARY, "image", {"data_page_version": "2.0"}),
        (BINARY, "image", {"is_optional": False, "data_page_version": "2.0"}),
        (BINARY, "image", {"write_page_checksum": True}),
        (BINARY, "image", {"use_content_defined_chunking": True}),
        (BINARY, "image", {"row_group_size": 7}),
        (BINARY, "image", {"write_page_index": False}),
        (STRUCT, "image.bytes", {}),
        (STRUCT, "image.bytes", {"use_dictionary": ["n", "note", "image.path"]}),
    ],
)
def test_each_value_is_read_alone_as_it_was_written(tmp_path, image, column, how):
    files = [write(tmp_path / "a.parquet", image, **how), write(tmp_path / "b.parquet", image[::-1], **how)]
    pages = find(*files, column=column)
    assert [pages.read(row) for row in range(1000)] == VALUES + VALUES[::-1]


def test_a_value_needs_nothing_of_its_row_group_but_lengths_and_headers_and_nothing_of_the_others(tmp_path):
    path = tmp_path / "x.parquet"
    pages = find(write(path))
    content, start, stop = path.read_bytes(), *map(int, pages.offsets[2:4])
    for other in set(range(300, 450)) - {440}:
        content = content.replace(VALUES[other], bytes(len(VALUES[other])))
    path.write_bytes(bytes(start) + content[start:stop] + bytes(len(content) - stop))
    assert pages.read(440) == VALUES[440]
    assert pages.read(441) == bytes(len(VALUES[441])) != VALUES[441]


@pytest.mark.parametrize(
    ("image", "column", "how"),
    [
        (BINARY, "image", {"compression": "snappy"}),
        (BINARY, "image", {"use_dictionary": True}),
        (BINARY, "image", {"use_dictionary": False, "column_encoding": {"image": "DELTA_LENGTH_BYTE_ARRAY"}}),
        (pa.array([None, *VALUES]), "image", {}),
        (pa.StructArray.from_arrays([pa.array([None, b"x"])], names=["bytes"]), "image.bytes", {}),
        (pa.array([None, {"bytes": b"x"}]), "image.bytes", {}),
    ],
)
def test_values_that_cannot_be_read_alone_are_told_at_once(tmp_path, image, column, how):
    assert find(write(tmp_path / "x.parquet", image, **how), column=column) is None


def test_a_damaged_page_is_an_error_that_names_the_file(tmp_path):
    path = tmp_path / "x.parquet"
    pages = find(write(path))
    with path.open("r+b") as file:
        file.seek(int(pages.offsets[1]))
        file.write(b"\xff" * 64)
    with pytest.raises(NstError, match=r"x\.parquet:.*row group 1.*damaged; restore"):
        pages.read(int(pages.first_rows[1]))
    assert pages.read(0) == VALUES[0]


def test_a_file_that_has_changed_is_not_read(tmp_path):
    pages = find(write(tmp_path / "x.parquet"))
    (tmp_path / "x.parquet").write_bytes(b"x")
    with pytest.raises(NstError, match=rf"has 1 bytes, {pages.sizes[0]:,} when.*listed"):
        pages.read(0)


def test_a_file_that_is_cut_while_it_is_read_is_an_error_and_ends_no_process(tmp_path):
    path = tmp_path / "x.parquet"
    pages = find(write(path))
    assert pages.read(0) == VALUES[0]
    os.truncate(path, 8192)
    with pytest.raises(NstError, match=r"x\.parquet: the pages of its row group 2 are damaged; restore the file$"):
        pages.read(400)
    with pytest.raises(NstError, match=r"damaged|cut short"):
        pages.read(20)
    assert pages.read(1) == VALUES[1]


def test_a_value_that_claims_too_much_leaves_those_before_it(tmp_path):
    path = tmp_path / "x.parquet"
    pages = find(write(path, write_batch_size=1000))
    at = path.read_bytes().index(VALUES[100]) - 4
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\xff\xff\xff\x7f")
    assert [pages.read(row) for row in range(100)] == VALUES[:100]
    with pytest.raises(NstError, match=r"row group 0 are damaged"):
        pages.read(100)


def test_wherever_pages_are_damaged_a_value_comes_as_bytes_or_with_a_reason(tmp_path):
    path = tmp_path / "x.parquet"
    write(path, pa.array(VALUES[:12]), row_group_size=6)
    whole, generator = path.read_bytes(), np.random.default_rng(0)
    starts = plain_groups(pq.ParquetFile(path), ["image"]).offsets
    places = [*generator.integers(4, len(whole) - 2_000, 100), *(start + near for start in starts for near in range(60))]
    for number, at in enumerate(places):
        changed = tmp_path / f"{number}.parquet"
        changed.write_bytes(whole[:at] + generator.bytes(8) + whole[at + 8 :])
        pages = PlainPages.from_files([str(changed)], [len(whole)], [plain_groups(pq.ParquetFile(path), ["image"])])
        for row in range(12):
            try:
                assert isinstance(pages.read(row), bytes)
            except NstError as error:
                assert "damaged" in str(error)  # noqa: PT017 - most rows are whole
