"""Each reader of what strangers made gives its content or one error for any damage; `tests/fuzzing.py` tries many more."""

import base64
import struct
import subprocess
import sys
import zlib
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from fuzzing import NAMES, READERS, encoded, read_damaged, table

from nst_data.adoption import adopt
from nst_data.errors import NstError
from nst_data.label_files.json_cells import parse_cell
from nst_data.parquet_footer import column_chunks
from nst_data.sources import open_source
from nst_data.store.store import Store

# what is sound enough is taken whole
SLOW = ("adopt-csv", "adopt-tsv", "adopt-json", "adopt-jsonl", "adopt-parquet", "adopt-tar", "manifest")


@pytest.mark.parametrize(("reader", "seed"), [(reader, seed) for reader in READERS for seed in range(1 if reader in SLOW else 4)])
def test_damage_is_an_error_of_ours_and_no_crash(reader, seed):
    read_damaged(reader, seed)


ODD_YAML = ["2024-99-99", "!!timestamp x", "!!int ''", "!!float ''", "!!bool x", "9" * 5000, "!!omap [? [a] : b]"]
MANY = b"a: &a [x, x]\n" + b"".join(b"%c: &%c [%s]\n" % (one + 1, one + 1, b", ".join([b"*%c" % one] * 9)) for one in b"abcdefghij")
TASK = b'[{"data": {"image": "/0.png"}, "annotations": [{"result": %s}]}]'
ODD = [
    *(("recipe", f"name: {one}\n".encode()) for one in ODD_YAML),
    *(("card", f"---\nlicense: {one}\n---\n".encode()) for one in ODD_YAML),
    ("recipe", MANY + b"name: *k\n"),  # ten levels of nine: whoever writes all of it never ends
    ("class-names", MANY + b"ant: *k\n"),
    *(("adopt-json", TASK % one) for one in (b"5", b"true", b"[5]")),
    ("adopt-json", b'{"columns": ["key", "label"], "data": [5]}'),
    ("adopt-json", b'{"columns": [null, ["label"]], "data": [["0.png", "ant"]]}'),
    ("adopt-json", b'[{"key": "0.png", "label": %s}]' % (b"9" * 25)),
    ("adopt-json", b'[{"key": "0.png", "label": "\\ud800"}]'),
]


@pytest.mark.parametrize(("reader", "content"), ODD, ids=[f"{reader} {content[-30:]!r}" for reader, content in ODD])
def test_what_reading_the_readers_found_is_read_or_an_error_of_ours(tmp_path, reader, content):
    with suppress(NstError):
        READERS[reader][1](content, tmp_path)


def numpys(header):
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header


@pytest.mark.parametrize(
    "array",
    [
        b"PK\3\4",
        numpys(b"{'descr': '''"),
        numpys(b"(" * 5000),
        *(numpys(b"{'descr': '<f8', 'fortran_order': False, 'shape': (%d,)}" % size) for size in (10**15, 10**40)),
    ],
)
def test_logits_that_are_no_array_are_a_value_error(array):
    with pytest.raises(ValueError, match="expected logits as a list"):
        parse_cell([{"label": "ant", "logits": base64.b64encode(zlib.compress(array)).decode()}], logits=True)


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
from pathlib import Path
import pyarrow as pa
import pyarrow.parquet as pq
from nst_data.errors import NstError
from nst_data.parquet_footer import PARQUET_ERRORS, column_chunks
from nst_data.sources.plain_pages import plain_groups
from nst_data.tables.schema import check_columns

column, sound, refused = sys.argv[1], Path(sys.argv[2]).read_bytes(), 0
flipped = Path(sys.argv[2] + ".flipped")
length = int.from_bytes(sound[-8:-4], "little")
for bit in range(8 * (len(sound) - 8 - length), 8 * (len(sound) - 8)):
    content = bytearray(sound)
    content[bit // 8] ^= 1 << bit % 8
    try:
        with pq.ParquetFile(io.BytesIO(content)) as parquet:
            for chunk in sum(column_chunks(parquet.metadata, [column]), []):
                chunk.compression, chunk.encodings, chunk.physical_type == "BYTE_ARRAY" and chunk.statistics
            flipped.write_bytes(content)
            check_columns(flipped, parquet.schema_arrow, "a.parquet")
            plain_groups(parquet, column.split("."))
    except (*PARQUET_ERRORS, NstError, KeyError):  # the last where a column has another name
        refused += 1
print(refused)
"""


@pytest.mark.parametrize("column", ["image.bytes", "label"])
def test_a_flipped_bit_of_a_footer_is_read_or_an_error_and_never_ends_the_process(tmp_path, column):
    whole = pa.table({"label": [0, 1], "image": [{"bytes": b"a"}, {"bytes": b"b"}]})
    pq.write_table(whole.select([column.split(".")[0]]), tmp_path / "a.parquet", compression="none", store_schema=False)
    read = subprocess.run([sys.executable, "-c", READ_FLIPPED, column, tmp_path / "a.parquet"], check=True, capture_output=True, text=True)
    assert int(read.stdout) > 500


READ_SHORTENED = """
import sys
from pathlib import Path
import pyarrow.parquet as pq
from nst_data.errors import NstError
from nst_data.sources import open_source
from nst_data.tables.schema import check_columns

for file in map(Path, sys.argv[1:]):
    check_columns(file, pq.read_schema(file), file.name)
    try:
        print(file.name, len(open_source(str(file), labeled=True).class_names))
    except NstError as error:
        print(error)
"""


def shortened(content, value):
    """A parquet file whose footer holds a least and a greatest value, in its old and its new fields, without their last byte."""
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    footer = content[start:-8].replace(bytes([len(value)]) + value, bytes([len(value) - 1]) + value[:-1])
    assert len(footer) == len(content) - 8 - start - 4
    return content[:start] + footer + struct.pack("<I", len(footer)) + content[-4:]


def test_a_least_value_that_is_too_short_is_passed_over_and_never_ends_the_process(tmp_path):
    types = {"image": pa.struct([("bytes", pa.binary())]), "label": pa.int64(), "confidence": pa.float32(), "probs": pa.float16()}
    table = pa.table({"image": [{"bytes": b"a"}], "label": [77], "confidence": [0.7], "probs": [0.6]}, pa.schema(types))
    values = {"label": struct.pack("<q", 77), "confidence": struct.pack("<f", 0.7), "probs": struct.pack("<e", 0.6)}
    pq.write_table(table, tmp_path / "sound.parquet", compression="none", store_schema=False)
    for column, value in values.items():
        (tmp_path / f"{column}.parquet").write_bytes(shortened((tmp_path / "sound.parquet").read_bytes(), value))
    files = [tmp_path / f"{column}.parquet" for column in values]
    read = subprocess.run([sys.executable, "-c", READ_SHORTENED, *files], check=True, capture_output=True, text=True)
    said = read.stdout.splitlines()
    assert len(said) == 3
    assert said[0].startswith(str(files[0]))  # its labels cannot be read
    assert said[1:] == ["confidence.parquet 78", "probs.parquet 78"]


def test_what_a_footer_says_of_columns_is_what_arrow_gives(tmp_path):
    (tmp_path / "a.parquet").write_bytes(READERS["parquet"][0]()[0])
    footer = pq.read_metadata(tmp_path / "a.parquet")
    found = [[chunk.path_in_schema for chunk in chunks] for chunks in column_chunks(footer, ["image", "key"])]
    assert found == [["image.bytes", "image.path", "key"]] * 2
    (chunks,) = column_chunks(footer, ["label"], [1])
    assert chunks[0].total_uncompressed_size == footer.row_group(1).column(2).total_uncompressed_size


def no_text(*arguments):
    """Texts as Arrow takes them from a file, unchecked."""
    offsets = pa.array([0, *np.cumsum([len(word) for word in arguments])], pa.int32())
    return pa.Array.from_buffers(pa.string(), len(arguments), [None, offsets.buffers()[1], pa.py_buffer(b"".join(arguments))])


@pytest.mark.parametrize(
    "labels", [no_text(b"ant", b"b\xf4", b"cat"), pa.ListArray.from_arrays([0, 1, 2, 3], no_text(b"ant", b"b\xf4", b"cat"))]
)
def test_class_names_in_parquet_that_are_no_text_are_one_error(tmp_path, labels):
    images = [{"bytes": encoded(label=label), "path": None} for label in range(3)]
    pq.write_table(pa.table({"image": images, "label": labels, "score": [[0.5]] * 3}), tmp_path / "a.parquet")
    with pytest.raises(NstError, match=r"a.parquet: corrupt parquet file \(.*UTF"):
        adopt(Store(tmp_path / "store"), "bugs", open_source(str(tmp_path / "a.parquet")))
    if pa.types.is_string(labels.type):
        with pytest.raises(NstError, match=r"a.parquet: corrupt parquet file \(.*UTF"):
            open_source(str(tmp_path / "a.parquet"), labeled=True)


def test_columns_of_a_saved_dataset_that_are_no_text_are_one_error(tmp_path):
    words = no_text(b"ant", b"b\xf4", b"cat")
    images = pa.array([encoded(label=label) for label in range(3)])
    Dataset(pa.table({"image": images, "name": words})).save_to_disk(tmp_path / "saved")
    with pytest.raises(NstError, match=r"saved: corrupt dataset \(.*UTF"):
        list(open_source(str(tmp_path / "saved")).columns(["name"]))


def test_a_column_of_parquet_that_ends_early_is_one_error(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(table([NAMES] * 3))
    source, whole = open_source(str(tmp_path / "a.parquet")), pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *asked, **how: (batch[:1] for batch in whole(*asked, **how)))
    with pytest.raises(NstError, match="pages of row group 0 end early"):
        list(source.columns(["label"]))
