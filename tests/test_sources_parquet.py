import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Image, Value, config
from pictures import keys, png, read_contents, write_table
from wording import is_line, mentions

from nst_data.errors import NstError, UsageError
from nst_data.sources import open_source
from nst_data.sources.cells import Cells, refuse_path

IMAGES = [png(0, index) for index in range(6)]


def damage(path, at, length=36):
    content = bytearray(path.read_bytes())
    content[at : at + length] = bytes(length)
    path.write_bytes(content)


def of_group(path, group):
    """Where the data of a row group start in the file."""
    return pq.read_metadata(path).row_group(group).column(0).data_page_offset


def test_rows_of_parquet_files_start_and_stop_inside_row_groups(tmp_path):
    for name in ("a", "b"):
        write_table(tmp_path / f"{name}.parquet", row_group_size=2, image=IMAGES[:5])
    source = open_source(str(tmp_path))
    for start in range(10):
        for stop in range(start, 11):
            expected = list(zip(range(start, stop), (IMAGES[:5] * 2)[start:stop], strict=True))
            assert [(row.id, bytes(row.read())) for row in source.rows(range(start, stop))] == expected


@pytest.mark.parametrize("batch_bytes", [1, 2000, 2**23])
def test_wanted_rows_are_found_in_any_batches(tmp_path, monkeypatch, batch_bytes):
    monkeypatch.setattr("nst_data.sources.parquet._BATCH_BYTES", batch_bytes)
    for name in ("a", "b"):
        write_table(tmp_path / f"{name}.parquet", row_group_size=4, image=IMAGES)
    source = open_source(str(tmp_path))
    for seed in range(20):
        wanted = np.flatnonzero(np.random.default_rng(seed).random(12) < 0.4)
        assert read_contents(source, wanted) == [(IMAGES * 2)[row] for row in wanted]


def test_images_are_views_of_the_column_and_no_copies(tmp_path):
    source = open_source(write_table(tmp_path / "x.parquet", image=IMAGES))
    views = [row.read() for row in source.rows(range(6))]
    assert all(isinstance(view, memoryview) for view in views)
    assert len({id(view.obj) for view in views}) == 1


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.struct({"bytes": pa.binary(), "path": pa.string()})])
def test_every_type_of_image_column_is_read(tmp_path, kind):
    cells = [{"bytes": image, "path": None} for image in IMAGES] if pa.types.is_struct(kind) else IMAGES
    column = pa.concat_arrays([pa.array([None], kind), pa.array(cells, kind)])
    source = open_source(write_table(tmp_path / "x.parquet", image=column.slice(1)))
    assert read_contents(source) == [source.read(row) for row in range(6)] == IMAGES


def test_one_large_image_that_many_rows_share_in_a_dictionary_is_not_copied_for_each(tmp_path):
    image = png(0) + bytes(3_000_000)
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array([image]))  # decoded more than Arrow can hold
    source = open_source(write_table(tmp_path / "x.parquet", image=column))
    rows = [row.read() for row in source.rows(range(1000))]
    assert all(len(row) == len(image) for row in rows)
    assert bytes(rows[0]) == bytes(rows[999]) == image
    assert len({np.frombuffer(row, np.uint8).ctypes.data for row in rows}) == 1


@pytest.mark.parametrize("kind", [pa.binary(), pa.struct({"bytes": pa.binary(), "path": pa.string()})])
def test_rows_that_share_a_large_image_come_a_few_at_a_time(tmp_path, kind):
    image = png(0) + bytes(200_000)
    cell = {"bytes": image, "path": "x.png"} if pa.types.is_struct(kind) else image
    source = open_source(write_table(tmp_path / "x.parquet", image=pa.array([cell] * 300, kind)))
    before, largest = pa.total_allocated_bytes(), 0
    for row in source.rows(range(300)):
        assert bytes(row.read()) == image
        largest = max(largest, pa.total_allocated_bytes() - before)
    assert largest < 2**25  # all of them have 60 MB


@pytest.mark.parametrize("kind", [pa.binary(), pa.binary_view(), pa.struct({"bytes": pa.binary(), "path": pa.string()})])
def test_cells_of_a_dictionary_are_looked_up_one_by_one(kind):
    images = [{"bytes": image, "path": None} if pa.types.is_struct(kind) else image for image in [IMAGES[2], None, IMAGES[0]]]
    column = pa.DictionaryArray.from_arrays(pa.array([1, 2, None, 0, 2], pa.uint8()), pa.array(images, kind))
    cells = Cells(column.slice(1), refuse_path)
    assert [bytes(cells[cell]) for cell in (0, 2, 3)] == [IMAGES[0], IMAGES[2], IMAGES[0]]
    assert str(cells[1]) == str(Cells(column, refuse_path)[0]) == "no image in this row"


def test_an_empty_cell_is_a_row_with_its_error(tmp_path):
    structs = [None, {"bytes": None, "path": None}, {"bytes": png(1), "path": "x.png"}]
    for column in (pa.array([None, None, png(1)]), pa.array(structs, pa.struct({"bytes": pa.binary(), "path": pa.string()}))):
        source = open_source(write_table(tmp_path / "x.parquet", image=column))
        assert read_contents(source) == ["NstError: no image in this row"] * 2 + [png(1)]
        with pytest.raises(NstError, match="no image in this row"):
            source.read(1)


def test_named_files_that_are_missing_are_counted_and_it_is_said_where_the_first_was_looked_for(tmp_path):
    named = [{"bytes": None, "path": path} for path in ("a.png", "gone.png", "sub/gone.png", "../outside.png")]
    with_bytes = [{"bytes": png(1), "path": "not there.png"}, {"bytes": None, "path": "gone too.png"}]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png(0))
    structs = pa.array(named * 2 + with_bytes, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    source = open_source(write_table(tmp_path / "in" / "x.parquet", row_group_size=4, image=structs))
    assert [source.empty_files(rows) for rows in (1, 2, 10)] == [(0, ""), (1, "x.parquet:1"), (4, "x.parquet:1")]
    (line,) = source.remarks()
    assert mentions(line, f"x.parquet: 4 of its image files … the first: {tmp_path}/in/gone.png; relative paths … or correct the paths")


def test_a_cell_may_name_a_file_below_the_folder_of_its_parquet_file_and_no_other(tmp_path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "a.png").write_bytes(png(1))
    paths = [
        "sub/a.png",
        "sub/gone.png",
        "../secret.png",
        "sub/../../secret.png",
        str(tmp_path / "secret.png"),
        str(tmp_path / "in/sub/a.png"),
    ]
    column = pa.array([{"bytes": None, "path": path} for path in paths], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    source = open_source(write_table(tmp_path / "in" / "x.parquet", image=column))
    image, gone, *refused = read_contents(source)
    assert image == source.read(0) == png(1)
    assert gone.startswith("FileNotFoundError: ")
    below = "which is not below the folder of its table"
    assert refused == [f"NstError: names the file {path!r}, {below}" for path in paths[2:]]
    with pytest.raises(NstError, match="which is not below"):
        source.read(2)


def test_a_file_that_has_gone_is_a_reason_without_its_path(tmp_path):
    """It is kept in the table `errors`, which others see."""
    for name in ("a", "b"):
        write_table(tmp_path / "alice" / f"{name}.parquet", image=IMAGES[:2])
    source = open_source(tmp_path / "alice")
    (tmp_path / "alice" / "a.parquet").unlink()
    assert read_contents(source) == ["NstError: a.parquet: No such file or directory"] * 2 + IMAGES[:2]


def test_rows_of_a_damaged_row_group_say_so_and_the_others_are_read(tmp_path):
    path = tmp_path / "x.parquet"
    write_table(path, row_group_size=2, image=IMAGES)
    damage(path, of_group(path, 1))
    source = open_source(str(path))
    found = read_contents(source)
    assert (found[:2], found[4:]) == (IMAGES[:2], IMAGES[4:])
    assert all(reason.startswith("NstError: row group 1 of x.parquet is damaged (") for reason in found[2:4])
    assert read_contents(source, np.array([3, 4])) == found[3:5]


def test_training_reads_the_whole_row_groups_of_a_damaged_file(tmp_path):
    path = tmp_path / "x.parquet"
    write_table(path, row_group_size=2, image=IMAGES)
    damage(path, of_group(path, 1))
    source = open_source(str(path))
    assert [source.read(row) for row in (0, 5, 4, 1)] == [IMAGES[row] for row in (0, 5, 4, 1)]
    with pytest.raises(NstError, match=r"row group 1 of x\.parquet is damaged"):
        source.read(2)


def test_a_page_whose_checksum_is_wrong_is_damage(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(
        pa.table({"image": IMAGES}), path, compression="none", use_dictionary=False, write_page_checksum=True, write_statistics=False
    )
    damage(path, path.read_bytes().index(IMAGES[3]) + 100)
    found = read_contents(open_source(str(path)))
    assert "row group 0 of x.parquet is damaged" in found[3]


def test_wherever_a_parquet_file_is_damaged_every_row_comes_with_bytes_or_a_reason(tmp_path):
    path = tmp_path / "x.parquet"
    write_table(path, row_group_size=2, image=IMAGES)
    whole = path.read_bytes()
    for at in range(4, len(whole) - 8, 97):
        path.write_bytes(whole)
        damage(path, at, 8)
        try:
            source = open_source(str(path))
        except NstError:  # of the footer
            continue
        assert [row.id for row in source.rows(range(len(source)))] == list(range(len(source)))
        assert all(isinstance(content, bytes) or content.startswith("NstError: ") for content in read_contents(source))


def test_a_parquet_file_that_has_changed_is_not_read(tmp_path):
    for name in ("a", "b"):
        write_table(tmp_path / f"{name}.parquet", image=IMAGES[:2])
    source = open_source(str(tmp_path))
    size = (tmp_path / "a.parquet").stat().st_size
    write_table(tmp_path / "a.parquet", image=IMAGES)
    now = (tmp_path / "a.parquet").stat().st_size
    assert read_contents(source) == [f"NstError: a.parquet: has {now:,} bytes, {size:,} when the pool was listed"] * 2 + IMAGES[:2]
    (tmp_path / "a.parquet").unlink()
    assert "No such file" in read_contents(source)[0]


@pytest.mark.parametrize("end", [-9, 3, 0])
def test_a_truncated_parquet_file_is_an_error_that_names_it(tmp_path, end):
    path = write_table(tmp_path / "x.parquet", image=[png(0)])
    (tmp_path / "x.parquet").write_bytes((tmp_path / "x.parquet").read_bytes()[:end])
    with pytest.raises(NstError, match=r"x\.parquet: corrupt parquet file \(.*\); recreate it"):
        open_source(path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("clothes.yaml", b"name: clothes", "; if it is a recipe, run it"),
        ("a.zip", b"PK\x03\x04" * 9, ""),
        ("a.py", b"", ""),
    ],
)
def test_a_file_of_another_kind_is_no_source_and_no_damaged_parquet(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(NstError) as caught:
        open_source(tmp_path / name)
    assert is_line(str(caught.value), f"{tmp_path / name}: not a source of images; expected a folder of images, … on the Hub{said}")


def test_parquet_is_known_by_its_first_bytes_where_its_name_does_not_say_it(tmp_path):
    write_table(tmp_path / "x.parquet", image=[png(0)])
    there = (tmp_path / "x.parquet").rename(tmp_path / "part-0")
    assert len(open_source(there)) == 1
    there.write_bytes(there.read_bytes()[:-9])
    with pytest.raises(NstError, match=r"part-0: corrupt parquet file"):
        open_source(there)


@pytest.mark.parametrize(("compression", "is_copied"), [("none", False), ("snappy", True)])
def test_single_images_are_read_out_of_files_that_hold_them_as_they_are_and_of_others_from_a_copy(tmp_path, compression, is_copied):
    images = [png(0, index) for index in range(20)]
    pq.write_table(pa.table({"image": images}), tmp_path / "x.parquet", compression=compression, use_dictionary=False, row_group_size=7)
    source = open_source(str(tmp_path / "x.parquet"))
    before = set(Path(config.HF_DATASETS_CACHE).rglob("*.arrow"))
    assert [source.read(row) for row in (19, 3, 0)] == [images[19], images[3], images[0]]
    assert (set(Path(config.HF_DATASETS_CACHE).rglob("*.arrow")) != before) == is_copied


@pytest.mark.parametrize("compression", ["none", "snappy"])
def test_a_file_without_rows_changes_no_way_of_reading_the_others(tmp_path, compression, capfd):
    table = pa.table({"image": IMAGES})
    parts = table.slice(0, 0), table.slice(0, 4), pa.table({"other": pa.nulls(0)}), table.slice(4)
    for name, part in zip("abcd", parts, strict=True):
        pq.write_table(part, tmp_path / f"{name}.parquet", compression=compression, use_dictionary=False)
    source = open_source(str(tmp_path))
    before = set(Path(config.HF_DATASETS_CACHE).rglob("*.arrow"))
    assert [source.read(row) for row in (5, 0, 4, 3)] == [IMAGES[row] for row in (5, 0, 4, 3)]
    assert (set(Path(config.HF_DATASETS_CACHE).rglob("*.arrow")) != before) == (compression == "snappy")
    assert (source.describe_slow_reads(), capfd.readouterr()) == ("", ("", ""))


def test_a_column_that_datasets_does_not_know_keeps_no_images_from_being_copied(tmp_path):
    odd = pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1] * 6, pa.int8()))
    source = open_source(write_table(tmp_path / "x.parquet", image=IMAGES, odd=odd))
    assert [source.read(row) for row in (5, 0)] == [IMAGES[5], IMAGES[0]]
    assert source.describe_slow_reads() == ""


def test_a_folder_that_datasets_takes_for_an_address_is_read_without_its_copy(tmp_path):
    path = write_table(tmp_path / "a::b/x.parquet", image=IMAGES)
    source = open_source(path)
    assert [source.read(row) for row in (4, 0)] == [IMAGES[4], IMAGES[0]]
    assert source.describe_slow_reads().startswith("each read decodes a whole row group, because `datasets` could not make a copy (")


def test_where_no_copy_can_be_made_that_is_said_in_one_line(tmp_path, capfd):
    path = tmp_path / "x.parquet"
    write_table(path, row_group_size=2, image=IMAGES)
    damage(path, of_group(path, 1))
    source = open_source(str(path))
    assert source.describe_slow_reads() == ""
    assert source.read(0) == IMAGES[0]
    assert source.describe_slow_reads().startswith("each read decodes a whole row group, because `datasets` could not make a copy (")
    assert "\n" not in source.describe_slow_reads()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_a_file_that_may_not_be_read_is_an_error_that_says_so(kind):
    """Seen by a user without rights: root may read all."""
    top = Path(tempfile.mkdtemp())  # tmp_path lies in a folder that only its owner may enter
    try:
        data = Dataset.from_dict({"image": IMAGES}, features=Features({"image": Value("binary")}))
        data.to_parquet(top / "x.parquet") if kind == "parquet" else data.save_to_disk(top / "x")
        place = top / ("x.parquet" if kind == "parquet" else "x")
        (place if kind == "parquet" else next(place.glob("*.arrow"))).chmod(0)
        top.chmod(0o755)
        assert as_nobody(lambda: open_source(str(place))) == f"NstError: {place}: cannot be read: Permission denied"
    finally:
        shutil.rmtree(top)


def as_nobody(work):
    """What the error of some work says in a child process without root's rights."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        with suppress(PermissionError):
            os.setuid(65_534)
        try:
            work()
        except Exception as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as said:
        os.waitpid(child, 0)
        return said.read()


@pytest.mark.parametrize(("compression", "said"), [("none", ""), ("snappy", "a copy of its 0 MB in ")])
def test_what_is_copied_before_single_images_can_be_read_is_said(tmp_path, compression, said):
    pq.write_table(pa.table({"image": [png(0)]}), tmp_path / "x.parquet", compression=compression, use_dictionary=False)
    assert open_source(str(tmp_path / "x.parquet")).describe_copy().startswith(said)
    assert bool(open_source(str(tmp_path / "x.parquet")).describe_copy()) == bool(said)


def test_parquet_files_without_rows_are_an_error(tmp_path):
    with pytest.raises(NstError, match="expected rows, found parquet files without any"):
        open_source(write_table(tmp_path / "x.parquet", image=pa.array([], pa.binary())))


def test_the_one_column_with_images_is_found_whatever_its_name(tmp_path):
    source = open_source(write_table(tmp_path / "x.parquet", text=["a"], photo=[png(0)], image=["b"]))
    assert read_contents(source) == [png(0)]


def test_of_several_columns_with_images_one_must_be_named(tmp_path):
    path = write_table(tmp_path / "x.parquet", image=[png(0)], thumbnail=[png(1)])
    with pytest.raises(UsageError, match=r"x\.parquet:.*found image, thumbnail.*`image_column`"):
        open_source(path)
    sources = {column: open_source(path, image_column=column) for column in ("image", "thumbnail")}
    assert {column: [*read_contents(source), source.read(0)] for column, source in sources.items()} == {
        "image": [png(0)] * 2,
        "thumbnail": [png(1)] * 2,
    }
    assert len({source.fingerprint for source in sources.values()}) == 2


def test_naming_the_only_column_changes_no_fingerprint(tmp_path):
    path = write_table(tmp_path / "x.parquet", image=[png(0)])
    assert open_source(path, image_column="image").fingerprint == open_source(path).fingerprint


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (None, r"image column.*bytes\), found `text` \(string\), `n` \(int64\)"),
        ("photo", r"`image_column` photo: found `text` \(string\), `n` \(int64\)"),
        ("text", r"`image_column` text: `text` is string.*column of images"),
    ],
)
def test_a_column_without_images_is_an_error(tmp_path, asked, message):
    with pytest.raises(NstError, match=message):
        open_source(write_table(tmp_path / "x.parquet", text=["a"], n=[1]), image_column=asked)


def test_a_file_that_lacks_the_column_is_an_error_that_names_it(tmp_path):
    write_table(tmp_path / "a.parquet", image=[png(0)])
    write_table(tmp_path / "b.parquet", photo=[png(0)])
    with pytest.raises(NstError, match=r"b\.parquet: column `image`.*no images.*a\.parquet"):
        open_source(str(tmp_path))


def test_a_saved_dataset_is_read_in_slices_and_by_any_rows(tmp_path):
    features = Features({"image": Image(), "thumbnail": Image()})
    images = [png(0, index % 4) for index in range(600)]
    rows = {"image": [{"bytes": image, "path": None} for image in images], "thumbnail": [{"bytes": png(1), "path": None}] * 600}
    Dataset.from_dict(rows, features=features).select(range(599, -1, -1)).save_to_disk(tmp_path / "saved")
    with pytest.raises(UsageError, match="found image, thumbnail; name one with `image_column`"):
        open_source(str(tmp_path / "saved"))
    source = open_source(str(tmp_path / "saved"), image_column="image")
    assert read_contents(source) == images[::-1]
    wanted = np.array([0, 1, 300, 599])
    assert read_contents(source, wanted) == [images[599 - row] for row in wanted] == [source.read(int(row)) for row in wanted]
    assert [row.key for row in source.rows(wanted)] == ["0", "1", "300", "599"]
    assert keys(source)[:2] == ["0", "1"]


def test_a_damaged_saved_dataset_is_an_error_that_says_so(tmp_path):
    Dataset.from_dict({"image": [png(0)]}, features=Features({"image": Value("binary")})).save_to_disk(tmp_path / "saved")
    file = next((tmp_path / "saved").glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(NstError, match=r"saved:.*datasets, found damage \(.*save it again"):
        open_source(str(tmp_path / "saved"))


def test_a_column_named_like_the_field_of_a_struct_is_read_for_itself(tmp_path):
    thumbs = pa.array([{"thumb": b"other"}] * 3)
    path = write_table(tmp_path / "x.parquet", image=thumbs, **{"image.thumb": IMAGES[:3]})
    source = open_source(path, image_column="image.thumb")
    assert read_contents(source) == IMAGES[:3] == [source.read(row) for row in range(3)]


def test_a_struct_whose_bytes_are_a_struct_holds_no_images(tmp_path):
    nested = pa.array([{"bytes": {"bytes": IMAGES[0]}}])
    with pytest.raises(NstError, match=r"x\.parquet:.*image column.*found `image` \(struct<bytes: struct"):
        open_source(write_table(tmp_path / "x.parquet", image=nested))


def test_pipes_and_devices_that_cells_name_are_rows_with_their_error_and_nobody_waits(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    cell = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    cells = pa.array([{"bytes": None, "path": name} for name in ("pipe.png", "zero.png")], cell)
    source = open_source(write_table(tmp_path / "x.parquet", image=cells))
    assert read_contents(source) == ["NstError: not a file"] * 2
