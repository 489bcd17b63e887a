"""Writing self-contained editions: images next to their soft labels, shuffled globally.

An image's place in the shuffle is a seeded hash of its `image_hash`, and each shard holds a range of places. There are two stages: the
pool is read once, in order, into chunks with one part per shard; then each shard is gathered from all chunks and sorted. Memory is
bounded by a chunk or a shard, whatever the size of the edition; on disk the images exist twice until the version is sealed. Chunks and
shards completed before a run was killed are reused.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from nst_data.errors import NstError
from nst_data.prefetch import cpus_of_this_process, map_in_threads
from nst_data.progress import Progress, Task
from nst_data.sources import Row, Source
from nst_data.store.counts import ShardCounts
from nst_data.store.files import atomic_write, clear_abandoned, format_size, space_warning, write_text
from nst_data.store.manifest import SealedFile
from nst_data.store.staging import Staging
from nst_data.tables.schema import soft_label_bytes
from nst_data.tables.shards import ShardPlan, parquet_writer

CHUNK_BYTES = 2**28
ROW_GROUP_ROWS, ROW_GROUP_BYTES = 100, 2**27  # the Hub's viewer reads whole row groups
_WORK_FOLDER = "self_contained"
_ROW_BYTES = 200  # key, hash and numbers of a row
_SAMPLES, _SAMPLE_ROWS = 16, 16


def write_self_contained(
    staging: Staging,
    rows: Iterable[pa.Table],
    count: int,
    pool: Source,
    ids_are_pool_rows: bool,
    schema: pa.Schema,
    shard_mb: int,
    seed: int,
    progress: Progress | None = None,
    threads: int | None = None,
) -> dict[str, SealedFile]:
    """Write `count` rows with images in shards of about `shard_mb` (10^6 bytes); return each file's digest by path within the version.

    `rows` must come in pool order and have all columns of `schema` except `image`. If `ids_are_pool_rows`, an `id` is a row of `pool`;
    otherwise rows are found by `key`. The order depends only on the images and the seed. Raises NstError if an image cannot be read or
    differs from the one that was labeled.
    """
    progress = progress or Progress()
    images = _Images(pool, ids_are_pool_rows, soft_label_bytes(schema) + _ROW_BYTES, threads or cpus_of_this_process())
    work = staging.work / _WORK_FOLDER
    work.mkdir(exist_ok=True)
    clear_abandoned(work)
    shuffle = _Shuffle(work, _shard_count(staging, count, images, shard_mb, progress), seed, _completed_chunks(work))
    with progress.task(f"read images of {staging.ref}", count, "images", shuffle.rows_done) as task:
        if shuffle.rows_done < count:
            for table, encoded in images.chunks(rows, shuffle.rows_done, task):
                shuffle.write_chunk(table, encoded)
    assert shuffle.rows_done == count, "every row has its image"
    plan = ShardPlan(shuffle.shards, 1, "balanced")
    (staging.build / plan.table).mkdir(exist_ok=True)
    files = {}
    with progress.task(f"shuffle {staging.ref}", len(plan), "shards") as task:
        for shard in range(len(plan)):
            files[plan.file(shard)] = shuffle.write_shard(staging.build / plan.file(shard), shard, schema)
            task.advance(1)
    return files


def shard_counts(files: Sequence[Path]) -> ShardCounts:
    """Images and entries (images including copies) of each shard, so that streaming one by one needs no other look at them first."""
    copies = [pq.read_table(file, columns=["copies"])["copies"] for file in files]
    return ShardCounts(images=[len(column) for column in copies], entries=[int(pc.sum(column, min_count=0).as_py()) for column in copies])


def has_chunks(staging: Staging) -> bool:
    """Whether an earlier run left chunks to resume from."""
    return bool(_completed_chunks(staging.work / _WORK_FOLDER))


def _completed_chunks(work: Path) -> list[Path]:
    """The completed chunks, in order."""
    return sorted(work.glob("[!.]*.arrow"))


def _shard_count(staging: Staging, count: int, images: "_Images", shard_mb: int, progress: Progress) -> int:
    """The number of shards, estimated and reported once, when the work starts."""
    plan = staging.work / "self_contained.json"
    if not plan.exists():
        size = count * images.mean_row_bytes()
        warning = space_warning(staging.work, 2 * size)
        progress.say(f"{staging.ref}: {count:,} images, {format_size(size)}, twice that on disk while they are shuffled{warning}")
        staging.get_or_store(plan.stem, {"shards": int(np.clip(-(-size // (shard_mb * 10**6)), 1, count))})
    return int(staging.get_or_store(plan.stem, {})["shards"])


@dataclass(frozen=True)
class _Images:
    """Source of an edition's images. `row_bytes` is the uncompressed size of a row without its image."""

    pool: Source
    is_same_pool: bool
    row_bytes: int
    threads: int

    def mean_row_bytes(self) -> float:
        """The mean size of a row with its image, estimated from short runs of neighboring images across the pool."""
        sizes = []
        for start in np.linspace(0, len(self.pool), _SAMPLES, endpoint=False, dtype=np.int64).tolist():
            for row in self.pool.rows(range(start, min(start + _SAMPLE_ROWS, len(self.pool)))):
                with suppress(OSError, NstError):  # the edition does not contain those
                    sizes.append(len(row.read()))
        return float(np.mean(sizes or [0])) + self.row_bytes

    def chunks(self, rows: Iterable[pa.Table], n_done: int, task: Task) -> Iterator[tuple[pa.Table, list[bytes]]]:
        """Yield the rows after the first `n_done` with their images, one chunk at a time; the image list is cleared for the next chunk.

        Rows keep their order, so that work can be resumed with any copy of the pool.
        """
        tables: list[pa.Table] = []
        images: list[bytes] = []
        size = 0
        for table in _skip_rows(n_done, rows):
            start = 0
            for stop, encoded in enumerate(self._read(table), start=1):
                task.advance(1)
                images.append(encoded)
                size += len(encoded) + self.row_bytes
                if size >= CHUNK_BYTES:
                    yield pa.concat_tables([*tables, table.slice(start, stop - start)]), images
                    tables.clear()
                    images.clear()
                    size, start = 0, stop
            tables.append(table.slice(start))
        if images:
            yield pa.concat_tables(tables), images

    def _read(self, table: pa.Table) -> Iterator[bytes]:
        """Yield the images of some rows, while threads read a few megabytes ahead."""
        images, size = 1, 2**20  # images read and their total size, starting as if one image of 1 MiB had been read

        def batch_size() -> int:
            return int(np.clip(2**20 * images // size, 1, 64))

        pairs = zip(self._find_rows(table), table["image_hash"].to_pylist(), strict=True)
        for encoded in map_in_threads(lambda pair: self._read_checked(*pair), pairs, self.threads, batch_size):
            images, size = images + 1, size + len(encoded)
            yield encoded

    def _find_rows(self, table: pa.Table) -> Iterator[Row]:
        numbers = table["id"].to_numpy() if self.is_same_pool else self.pool.rows_of(table["key"].to_pylist())
        for run in np.split(numbers, np.flatnonzero(np.diff(numbers) <= 0) + 1):  # another copy of the pool may have another order
            yield from self.pool.rows(run)

    def _read_checked(self, row: Row, expected_hash: str) -> bytes:
        try:
            encoded = bytes(row.read())  # copy views, which would keep neighboring images in memory
        except (OSError, NstError) as error:
            raise self.pool.unreadable_error(row.id, error) from None
        self.pool.check_content(row.id, encoded, expected_hash)
        return encoded


def _skip_rows(n_rows: int, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Skip the first `n_rows` rows."""
    for table in tables:
        if n_rows < table.num_rows:
            yield table.slice(n_rows)
        n_rows = max(0, n_rows - table.num_rows)


@dataclass(frozen=True)
class _Shuffle:
    """The chunks, as files below `work` with one record batch per shard; each is named by the number of rows up to its end."""

    work: Path
    shards: int
    seed: int
    chunks: list[Path]  # completed chunks; their boundaries do not depend on who writes them, so that several processes can

    @property
    def rows_done(self) -> int:
        """The number of rows in completed chunks."""
        return int(self.chunks[-1].stem) if self.chunks else 0

    def write_chunk(self, table: pa.Table, images: Sequence[bytes]) -> None:
        """Stage 1: write the next rows, grouped by shard."""
        shards = np.array([place * self.shards >> 64 for place in self._shuffle_positions(table)])
        order = np.argsort(shards, kind="stable")
        ends = np.searchsorted(shards[order], np.arange(self.shards), side="right")
        (rows,) = table.replace_schema_metadata(None).take(pa.array(order)).combine_chunks().to_batches()
        schema = rows.schema.append(pa.field("image", pa.binary()))
        chunk = self.work / f"{self.rows_done + len(images):012d}.arrow"
        with atomic_write(chunk) as file, pa.ipc.new_file(file, schema) as writer:
            for start, stop in zip([0, *ends[:-1]], ends, strict=True):
                encoded = pa.array([images[index] for index in order[start:stop]], pa.binary())
                writer.write_batch(pa.record_batch([*rows.slice(start, stop - start).columns, encoded], schema=schema))
        self.chunks.append(chunk)

    def write_shard(self, path: Path, shard: int, schema: pa.Schema) -> SealedFile:
        """Stage 2: write one shard; the note that marks it as complete is written last."""
        note = self.work / f"{path.name}.json"
        if not note.exists():
            with atomic_write(path, self.work) as file, parquet_writer(file, schema) as writer:
                for group in self._row_groups([_record_batch(chunk, shard) for chunk in self.chunks], schema):
                    writer.write_table(group)
            write_text(note, file.sealed.model_dump_json())
        return SealedFile.model_validate_json(note.read_text("utf-8"))

    def _row_groups(self, batches: Sequence[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
        """Yield the rows of a shard by place, 100 at a time, fewer if images are large. Images are copied one row group at a time."""
        columns = [batch["image"] for batch in batches]
        images = [(column, row) for column in columns for row in range(len(column))]
        size = pc.sum(pc.binary_length(pa.chunked_array(columns)), min_count=0).as_py()
        table = pa.Table.from_batches(batches).drop_columns("image")
        order = np.lexsort((table["image_hash"].to_numpy(), np.array(self._shuffle_positions(table), np.uint64)))
        table = table.take(pa.array(order)).combine_chunks()
        rows = int(np.clip(ROW_GROUP_BYTES * len(images) // max(1, size), 1, ROW_GROUP_ROWS))
        fields = list(schema.field("image").type)
        for start in range(0, len(images), rows):
            group = table.slice(start, rows)
            encoded = [column[row].as_py() for column, row in map(images.__getitem__, order[start : start + rows])]
            image = pa.StructArray.from_arrays([pa.array(encoded, pa.binary()), group["key"].combine_chunks()], fields=fields)
            yield group.append_column("image", image).select(schema.names).cast(schema)

    def _shuffle_positions(self, table: pa.Table) -> list[int]:
        """The place of each row in the shuffle, out of 2^64."""
        return [xxhash.xxh3_64_intdigest(hashed.encode(), self.seed) for hashed in table["image_hash"].to_pylist()]


def _record_batch(chunk: Path, number: int) -> pa.RecordBatch:
    """One record batch of a file, memory-mapped so that only what is used is read."""
    with pa.memory_map(str(chunk)) as file:
        return pa.ipc.open_file(file).get_batch(number)
