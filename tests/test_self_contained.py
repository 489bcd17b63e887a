"""Images beside their soft labels: shuffled as a whole, the same bytes however they were made."""

import shutil
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_pool
from datasets import ClassLabel, Features, Image, load_dataset
from sealed_labels import COUNTS, NAMES, POOL, label_row
from watched import RecordingProgress

from nst_data.errors import NstError
from nst_data.images import decode
from nst_data.progress import Progress
from nst_data.self_contained import writing as self_contained
from nst_data.self_contained.writing import write_self_contained
from nst_data.sources import open_source
from nst_data.sources.folder import ImageFolder
from nst_data.store.files import hash_file
from nst_data.store.manifest import EditionRequest
from nst_data.store.store import Store
from nst_data.tables.schema import balanced_schema

WITH_IMAGES = balanced_schema(NAMES, with_images=True)


class Folder(ImageFolder):
    """A folder that knows which of its images were asked for."""

    def __init__(self, location):
        super().__init__(str(location), labeled=False)
        self.asked = []

    def rows(self, wanted):
        for row in super().rows(wanted):
            self.asked.append(row.id)
            yield row


class Killed(Progress):
    """Ends a task, like a kill, at its n-th step."""

    def __init__(self, task, n):
        self._task, self._left = task, n

    @contextmanager
    def task(self, name, total, unit, done=0):
        self._counts = self._task in name
        yield self

    def advance(self, amount, note=""):
        self._left -= self._counts
        if not self._left:
            raise KeyboardInterrupt("killed")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def pool(tmp_path):
    """120 images of 20 kB each that nobody can decode."""
    return Folder(write_noise(tmp_path / "noise", 120, 20_000))


def write_noise(folder, count, size):
    folder.mkdir()
    for index in range(count):
        (folder / f"{index:04d}.jpg").write_bytes(np.random.default_rng(index).bytes(size))
    return folder


def labels(pool, without=(), at_once=50):
    """Tables with a row for each image of the pool, told apart by its confidence and copies."""
    numbers = [row for row in range(len(pool)) if row not in without]
    rows = [label_row(row, pool.read(row), row % 3, row / 1000, copies=row + 1, key=pool.key(row)) for row in numbers]
    for start in range(0, len(rows), at_once):
        yield pa.Table.from_pylist(rows[start : start + at_once], schema=balanced_schema(NAMES))


def begin(store, **settings):
    return store.find_or_stage(EditionRequest(settings=settings, inputs={"pool": POOL}), "bugs", 1)


def write(staging, pool, rows=None, is_same_pool=True, shard_mb=1, seed=0, progress=None, threads=None):
    tables = list(labels(pool) if rows is None else rows)
    count = sum(table.num_rows for table in tables)
    return write_self_contained(staging, iter(tables), count, pool, is_same_pool, WITH_IMAGES, shard_mb, seed, progress, threads)


def table_of(staging, files):
    return pa.concat_tables([pq.read_table(staging.build / file) for file in files])


def test_each_row_has_its_image_beside_its_soft_label(store, pool):
    staging = begin(store)
    rows = table_of(staging, write(staging, pool, labels(pool, without=[3, 70]))).sort_by("id").to_pylist()
    expected = [row for table in labels(pool, without=[3, 70]) for row in table.to_pylist()]
    assert rows == [row | {"image": {"bytes": pool.read(row["id"]), "path": row["key"]}} for row in expected]


def test_shards_are_about_as_large_as_was_asked_for(store, pool):
    staging = begin(store)
    files = write(staging, pool)
    assert list(files) == [f"balanced/train-{shard:05d}-of-00003.parquet" for shard in range(3)]
    assert all(0.5e6 < sealed.bytes < 1.1e6 for sealed in files.values())
    assert files == {file: hash_file(staging.build / file) for file in files}


def test_images_of_every_part_of_the_pool_are_in_every_shard(store, pool, monkeypatch):
    monkeypatch.setattr(self_contained, "CHUNK_BYTES", 300_000)
    staging = begin(store)
    for file in write(staging, pool):
        ids = pq.read_table(staging.build / file)["id"].to_numpy()
        assert set(ids // 30) == {0, 1, 2, 3}
        assert abs(np.corrcoef(ids, np.arange(len(ids)))[0, 1]) < 0.5


def test_the_order_depends_on_the_seed_and_the_images(store, pool):
    orders = []
    for seed, without in ((0, []), (1, []), (0, [5, 6])):
        staging = begin(store, seed=seed, without=without)
        orders.append(table_of(staging, write(staging, pool, labels(pool, without), seed=seed))["id"].to_pylist())
    assert orders[0] != orders[1]
    assert [row for row in orders[0] if row not in (5, 6)] == orders[2]


def test_threads_chunks_and_tables_change_no_byte(store, pool, monkeypatch):
    once = write(begin(store, run=0), pool, threads=1)
    monkeypatch.setattr(self_contained, "CHUNK_BYTES", 170_000)
    assert write(begin(store, run=1), pool, labels(pool, at_once=7), threads=5) == once


def test_a_copy_of_the_pool_in_another_order_gives_the_same_bytes_and_can_go_on(store, pool, tmp_path, monkeypatch):
    monkeypatch.setattr(self_contained, "CHUNK_BYTES", 15 * 20_000)
    copy = shutil.copytree(pool.location, tmp_path / "copy") / "list.txt"
    copy.write_text("".join(f"{pool.key(row)}\n" for row in [*range(60, 120), *reversed(range(60))]))
    once = write(begin(store, run=0), pool)
    assert write(begin(store, run=1), open_source(str(copy)), labels(pool), is_same_pool=False) == once
    with pytest.raises(KeyboardInterrupt, match="killed"):
        write(begin(store, run=2), pool, progress=Killed("read images", 47))
    assert write(begin(store, run=2), open_source(str(copy)), labels(pool, at_once=33), is_same_pool=False) == once


@pytest.mark.parametrize(("task", "step", "asked"), [("read images", 47, range(45, 120)), ("shuffle", 2, [])])
def test_a_killed_run_goes_on_to_the_same_bytes(store, pool, monkeypatch, task, step, asked):
    monkeypatch.setattr(self_contained, "CHUNK_BYTES", 15 * 20_000)
    once = write(begin(store, run=0), pool)
    with pytest.raises(KeyboardInterrupt, match="killed"):
        write(begin(store, run=1), pool, progress=Killed(task, step))
    staging, pool.asked = begin(store, run=1), []
    made = {path: path.stat().st_mtime_ns for path in staging.folder.rglob("*") if path.suffix in (".arrow", ".parquet")}
    assert write(staging, pool) == once
    assert pool.asked == list(asked)
    assert len(made) > 2
    assert made == {path: path.stat().st_mtime_ns for path in made}


def test_after_a_few_samples_the_pool_is_read_once_and_in_order(store, pool):
    write(begin(store), pool, labels(pool, without=[3, 70]))
    assert pool.asked[-118:] == [row for row in range(120) if row not in (3, 70)]


def test_nothing_but_the_version_is_left(store, pool):
    staging = begin(store)
    version = staging.seal(staging.build_manifest(write(staging, pool), NAMES, COUNTS["edition"]))
    assert version.verify() == []
    assert sorted(path.name for path in store.root.rglob("*") if path.is_file() and path.suffix != ".json") == [
        f"train-{shard:05d}-of-00003.parquet" for shard in range(3)
    ]


def test_the_size_is_said_once_when_the_work_begins(store, pool):
    first, second = RecordingProgress(), RecordingProgress()
    write(begin(store), pool, progress=first)
    write(begin(store), pool, progress=second)
    assert first.lines == ["bugs@gen-1.1: 120 images, about 2 MB, twice that on disk while they are shuffled"]
    assert second.lines == []


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[::-1]), r"has different content.*pass the pool that was labeled, with `pool`"),
        (lambda path: path.unlink(), r"can no longer be read \(.*No such file.*\); restore it"),
        (lambda path: path.write_bytes(b"short"), r"can no longer be read \(.*\); restore it"),
    ],
)
def test_an_image_that_changed_is_named_and_healed_the_work_goes_on(store, pool, tmp_path, damage, reason):
    tables, path = list(labels(pool)), tmp_path / "noise" / "0100.jpg"
    shutil.copy(path, tmp_path / "kept")
    damage(path)
    with pytest.raises(NstError, match=rf"^{pool.location}: '0100.jpg' {reason}[^\n]*$"):
        write(begin(store), pool, tables)
    shutil.copy(tmp_path / "kept", path)
    assert len(write(begin(store), pool, tables)) == 3


def test_row_groups_have_100_rows_a_page_index_and_images_as_they_are(store, tmp_path):
    staging, pool = begin(store), Folder(write_noise(tmp_path / "noise", 230, 50))
    (file,) = write(staging, pool)
    parquet = pq.ParquetFile(staging.build / file).metadata
    groups = [parquet.row_group(index) for index in range(parquet.num_row_groups)]
    assert [group.num_rows for group in groups] == [100, 100, 30]
    columns = {group.column(index).path_in_schema: group.column(index) for group in groups for index in range(group.num_columns)}
    assert all(column.has_offset_index and column.has_column_index for column in columns.values())
    packed = {name: (column.compression, "RLE_DICTIONARY" in column.encodings) for name, column in columns.items()}
    assert packed.pop("image.bytes") == ("UNCOMPRESSED", False)
    assert {compression for compression, _ in packed.values()} == {"ZSTD"}
    assert {name for name, (_, in_dictionary) in packed.items() if in_dictionary} == {"label", "duplicates", "copies"}
    assert "DELTA_BINARY_PACKED" in columns["id"].encodings


def test_row_groups_of_large_images_have_fewer_rows(store, pool, monkeypatch):
    monkeypatch.setattr(self_contained, "ROW_GROUP_BYTES", 200_000)
    staging = begin(store)
    files = write(staging, pool)
    sizes = [pq.read_metadata(staging.build / file).row_group(0).num_rows for file in files]
    assert sizes == [10, 10, 10]


def test_datasets_gives_images_and_class_names(store, tmp_path):
    staging, pool = begin(store), Folder(write_pool(tmp_path / "pool", 3, 4))
    write(staging, pool)
    (staging.build / "README.md").write_text("---\nconfigs:\n- config_name: balanced\n  data_files: balanced/train-*.parquet\n---\n")
    loaded = load_dataset(str(staging.build), "balanced", split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.features["image"] == Image()
    assert loaded.features["label"] == ClassLabel(names=NAMES)
    assert {name: loaded.features[name] for name in balanced_schema(NAMES).names} == Features.from_arrow_schema(balanced_schema(NAMES))
    assert sorted(loaded["id"]) == list(range(12))
    for row in loaded:
        np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(decode(pool.read(row["id"]))))
