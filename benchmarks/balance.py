"""How fast `nst balance` selects from hundreds of millions of labels, and in how much memory.

    python benchmarks/balance.py top-k --rows 300_000_000 --data /tmp/labels     # filter and top-k alone, beside Polars' and DuckDB's own
    python benchmarks/balance.py whole --rows 300_000_000 --data /tmp/labels     # the whole selection, with duplicates and copies
    python benchmarks/balance.py query --rows 30_000_000 --data /tmp/labels      # the same beside DuckDB's plain query for the same rows
    python benchmarks/balance.py edition --rows 30_000_000 --data /tmp/labels    # `nst balance`, soft labels carried, beside bare carrying
    python benchmarks/balance.py growth --data /tmp/labels                       # cost per row from 3 to 300 million; pandas at 30
    python benchmarks/balance.py spark --rows 3_000_000 --data /tmp/labels       # the whole selection on Spark in local mode
    python benchmarks/balance.py spark --rows 3_000_000 --data /tmp/labels --master spark://HOST:PORT    # and on a cluster

The labels are made once in `--data`: 1,000 classes whose sizes are log-normal, confidences as a classifier gives them (logistic, most of
them near 1, classes differ in how sure they are), 5% of the rows the same image as an earlier row; written as nst writes its labels. All
contenders read and write parquet, each run in a process of its own, in turn, and the peak of memory is the operating system's. Seconds
are the clock's, and the processor's, which other work on the machine stretches less.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa

from nst_data.progress import Progress
from nst_data.selection import editions, selection
from nst_data.selection.balance import COPIES, most_confident
from nst_data.selection.seeded_order import ORDER_SIZE, order_coefficients
from nst_data.settings import BalanceSettings
from nst_data.store.inputs import Input
from nst_data.store.manifest import GenerationRequest
from nst_data.store.store import Store, Version
from nst_data.tables.engines import scan
from nst_data.tables.schema import SELECTION_COLUMNS, balanced_schema, pseudo_labels_schema
from nst_data.tables.shards import ROW_GROUP_ROWS, ShardPlan, TableReader, parquet_writer, write_parquet

TOP_K, SHARD_ROWS = 5, 1_000_000
CLASSES, FILE_ROWS, CHUNK_ROWS = 1_000, 10_000_000, 1_000_000
QUOTAS = {300_000_000: 130_000}  # the paper's; for fewer rows in proportion


def quota(rows: int) -> int:
    return QUOTAS.get(rows, max(1, rows * 130_000 // 300_000_000))


def mixed(numbers: np.ndarray, stream: int) -> np.ndarray:
    """64 random-looking bits for each number: splitmix64."""
    with np.errstate(over="ignore"):
        x = numbers.astype(np.uint64) * np.uint64(2) + np.uint64(1) + np.uint64(stream) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def uniform(numbers: np.ndarray, stream: int) -> np.ndarray:
    return ((mixed(numbers, stream) >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53


def chunk(start: int, stop: int, borders: np.ndarray, sureness: np.ndarray) -> pa.Table:
    rows = np.arange(start, stop)
    image = np.where(uniform(rows, 1) < 0.05, (uniform(rows, 2) * rows).astype(np.int64), rows)
    label = np.searchsorted(borders, uniform(image, 3))
    odds = uniform(image, 4)
    confidence = (1 / (1 + np.exp(-(sureness[label] + 1.6 * np.log(odds / (1 - odds)))))).astype(np.float32)
    digits = np.stack([mixed(image, 5), mixed(image, 6)], 1).tobytes().hex().encode()
    ends = np.arange(len(rows) + 1, dtype=np.int32) * 32
    hashes = pa.StringArray.from_buffers(len(rows), pa.py_buffer(ends), pa.py_buffer(digits))
    return pa.table({"id": rows, "image_hash": hashes, "label": label, "confidence": confidence})


def labels(data: Path, rows: int) -> Path:
    """The folder with so many labels, made where it is not there."""
    folder = data / f"labels-{rows}"
    if folder.is_dir():
        return folder
    fresh = Path(tempfile.mkdtemp(dir=data))
    generator = np.random.default_rng(0)
    sizes = np.exp(generator.normal(0, 1.2, CLASSES))
    borders, sureness = np.cumsum(sizes / sizes.sum()), generator.normal(1, 1, CLASSES)
    borders[-1] = 1
    for first in range(0, rows, FILE_ROWS):
        path, schema = fresh / f"train-{first // FILE_ROWS:05d}.parquet", chunk(0, 1, borders, sureness).schema
        with parquet_writer(path, schema) as file:
            for start in range(first, min(rows, first + FILE_ROWS), CHUNK_ROWS):
                file.write_table(chunk(start, min(rows, start + CHUNK_ROWS), borders, sureness), row_group_size=100_000)
    fresh.rename(folder)
    return folder


def generation(data: Path, rows: int) -> Version:
    """A sealed generation with so many labels, TOP_K classes in each soft label, made where it is not there."""
    store = Store(data / f"store-{rows}")
    if versions := store.versions("bench"):
        return versions[0]
    source, names = labels(data, rows), [str(index) for index in range(CLASSES)]
    request = GenerationRequest(settings={}, inputs={"pool": Input(ref="/pool", digest="pool")})
    staging, schema, per_class = store.find_or_stage(request, "bench"), pseudo_labels_schema(names, TOP_K), np.zeros(CLASSES, np.int64)
    plan, files, reader = ShardPlan(rows, SHARD_ROWS), {}, TableReader(source.parent, source.name)
    for shard in range(len(plan)):
        table = with_soft_labels(reader.take(np.arange(*plan.bounds(shard)), list(SELECTION_COLUMNS)))
        per_class += np.bincount(table["label"].to_numpy(), minlength=CLASSES)
        table = table.select(schema.names).cast(schema)
        files[plan.file(shard)] = write_parquet(staging.build / plan.file(shard), [table], schema)
    counts = {"pool": rows, "labeled": rows, "errors": 0, "per_class": dict(zip(names, per_class.tolist(), strict=True))}
    return staging.seal(staging.build_manifest(files, names, counts | {"top_k": TOP_K, "teacher_parameters": 0}))


def with_soft_labels(rows: pa.Table) -> pa.Table:
    """The rows with keys as of a tar file, a perceptual hash, and soft labels whose first class is the label."""
    ids, label, confidence = (rows[name].to_numpy() for name in ("id", "label", "confidence"))
    keys = [f"part-{row // 10_000:05d}.tar:{row % 10_000:04d}.jpg" for row in ids.tolist()]
    other_classes = (label[:, None] + 1 + mixed(ids[:, None] * TOP_K + np.arange(TOP_K - 1), 7) % np.uint64(CLASSES - 1)) % CLASSES
    shares = (1 - confidence)[:, None] * np.float32(0.6) ** np.arange(1, TOP_K)
    classes = np.concatenate([label[:, None], other_classes], 1).astype(np.int32)
    values = np.concatenate([confidence[:, None], shares], 1).astype(np.float16)
    soft = {"top_labels": classes, "top_probs": values}
    for name, column in soft.items():
        rows = rows.append_column(name, pa.FixedSizeListArray.from_arrays(pa.array(column.ravel()), TOP_K))
    return rows.append_column("key", pa.array(keys)).append_column("phash", pa.array(mixed(ids, 8).view(np.int64)))


def read_columns(source: str, rows: int, out: Path) -> None:
    total = pl.scan_parquet(source).select(pl.col("id", "label", "confidence").sum()).collect(engine="streaming")
    total.write_parquet(out)


def polars_rank(source: str, rows: int, out: Path) -> None:
    table = pl.scan_parquet(source).select("id", "label", "confidence").filter(pl.col("confidence") > 0.3)
    table.filter(pl.col("confidence").rank("ordinal", descending=True).over("label") <= quota(rows)).sink_parquet(out)


def duckdb_qualify(source: str, rows: int, out: Path) -> None:
    duckdb.sql(
        f"copy (select id, label, confidence from read_parquet('{source}') where confidence > 0.3 "
        f"qualify row_number() over (partition by label order by confidence desc, id) <= {quota(rows)}) to '{out}' (format parquet)"
    )


def pandas_rank(source: str, rows: int, out: Path) -> None:
    import pandas as pd

    table = pd.read_parquet(Path(source).parent, columns=["id", "label", "confidence"])
    table = table[table["confidence"] > 0.3].sort_values(["confidence", "id"], ascending=[False, True])
    table[table.groupby("label").cumcount() < quota(rows)].to_parquet(out)


def nst_top_k(source: str, rows: int, out: Path) -> None:
    table = pl.scan_parquet(source).select("id", "label", "confidence").filter(pl.col("confidence") > 0.3)
    selected = most_confident(table, quota(rows), ties=("id",)).filter(pl.col("reason").is_null())
    selected.drop("reason").sink_parquet(out, compression="snappy")  # as DuckDB's


def nst_whole(source: str, rows: int, out: Path, engine: str = "polars", master: str | None = None) -> None:
    settings = BalanceSettings(per_class=quota(rows))
    table = scan(sorted(Path(source).parent.glob("*.parquet")), SELECTION_COLUMNS, engine, master)
    out.mkdir()
    result = selection.select(table, settings, [str(index) for index in range(CLASSES)], {}, out, "labels")
    print(f"    {result.selected_counts['images'].sum():,} images, {result.selected_counts['copies'].sum():,} entries")


def duckdb_whole(source: str, rows: int, out: Path) -> None:
    """The rows of `nst_whole`, and their copies."""
    limit, (a, b) = quota(rows), order_coefficients(0, COPIES)
    out.mkdir()
    (out / "selected").mkdir()
    duckdb.sql(f"""
        copy (
            with images as (
                select *, count(*) over (partition by image_hash) duplicates, row_number() over (partition by image_hash order by id) place
                from read_parquet('{source}')),
            surest as (
                select * from images where place = 1 and confidence::double > 0.3
                qualify row_number() over (partition by label order by confidence desc, image_hash, id) <= {limit}),
            dealt as (
                select *, count(*) over (partition by label) images, row_number() over (
                    partition by label order by (('0x' || image_hash[1:7])::bigint * {a} + {b}) % {ORDER_SIZE}, image_hash, id) turn
                from surest)
            select id, label, duplicates, {limit} // images + (turn <= {limit} % images)::int copies from dealt order by id
        ) to '{out / "selected" / "part-0.parquet"}' (format parquet)
    """)


def nst_edition(source: str, rows: int, out: Path) -> None:
    """All of `nst balance`: the labels' table read, the edition written, hashed and sealed, its card too."""
    version = editions.balance(store_of(source), "bench@gen-1", BalanceSettings(per_class=quota(rows)), progress=Progress())
    print(f"    {version.manifest.counts.unique:,} rows of {sum(file.bytes for file in version.manifest.files.values()) / 1e9:.2f} GB")


def carry_rows(source: str, rows: int, out: Path) -> None:
    """The edition's rows copied by who knows them: all columns read once, the same rows written as the same table."""
    edition = store_of(source).open("bench@gen-1.1", "edition")
    reader, schema = TableReader(edition.folder, "balanced"), balanced_schema(edition.manifest.class_names, TOP_K)
    added = pa.Table.from_batches(reader.batches(["id", "duplicates", "copies"])).combine_chunks()
    ids, names, place = added["id"].to_numpy(), [name for name in schema.names if name not in ("duplicates", "copies")], 0
    with parquet_writer(out, schema) as writer:
        for batch in TableReader(Path(source).parent.parent, "pseudo_labels").batches(names):
            stop = int(np.searchsorted(ids, batch["id"][-1].as_py(), side="right"))
            table = pa.Table.from_batches([batch]).take(ids[place:stop] - batch["id"][0].as_py())
            for name in ("duplicates", "copies"):
                table = table.append_column(name, added[name].slice(place, stop - place))
            writer.write_table(table.select(schema.names).cast(schema), row_group_size=ROW_GROUP_ROWS)
            place = stop


def store_of(source: str) -> Store:
    return Store(Path(source).parents[4])


def nst_whole_on_spark(source: str, rows: int, out: Path) -> None:
    nst_whole(source, rows, out, "spark", "local[2]")


def nst_whole_on_cluster(source: str, rows: int, out: Path) -> None:
    nst_whole(source, rows, out, "spark", os.environ["NST_BENCHMARK_MASTER"])


CONTENDERS = {
    one.__name__: one
    for one in (
        *(read_columns, polars_rank, duckdb_qualify, pandas_rank, nst_top_k),
        *(duckdb_whole, nst_whole, nst_whole_on_spark, nst_whole_on_cluster, nst_edition, carry_rows),
    )
}


class Cost(NamedTuple):
    """Seconds by the clock and of the processor, peak memory in GB; imports and start-up apart."""

    seconds: float
    processor: float
    gigabytes: float


def measured(name: str, folder: Path, rows: int, keep: Path | None = None) -> Cost:
    """One contender in a process of its own."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        out = Path(scratch, "out.parquet")
        command = [sys.executable, __file__, "run", name, "--data", str(folder), "--rows", str(rows), "--out", str(out)]
        result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        for line in result.stdout.splitlines()[:-1]:
            print(line)
        if keep is not None:
            shutil.move(out, keep)
    return Cost(*map(float, result.stdout.splitlines()[-1].split()))


def run(name: str, folder: Path, rows: int, out: Path) -> None:
    since, before = time.perf_counter(), time.process_time()
    CONTENDERS[name](f"{folder}/*.parquet", rows, out)
    seconds, processor = time.perf_counter() - since, time.process_time() - before
    peak = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(seconds, processor, peak * 1024 / 1e9)


def compare(names: list[str], folder: Path, rows: int, rounds: int) -> dict[str, Cost]:
    """Median seconds and largest peak of each contender, run in turn."""
    runs: dict[str, list[Cost]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            runs[name].append(measured(name, folder, rows))
    summary = {}
    for name, costs in runs.items():
        seconds, processor, gigabytes = zip(*costs, strict=True)
        summary[name] = Cost(statistics.median(seconds), statistics.median(processor), max(gigabytes))
        print(
            "  {:18} {:8.1f} s, of the processor {:8.1f} s, {:6.2f} GB".format(name, *summary[name]),
            *(f" {cpu_seconds:.1f}" for cpu_seconds in processor),
        )
    return summary


def print_ratio(name: str, found: dict[str, Cost], *others: str) -> None:
    clock, processor = (found[name][column] / min(found[peer][column] for peer in others) for column in (0, 1))
    print(f"  {name} takes {clock:.2f} of the faster one's time by the clock, {processor:.2f} of the processor's")


def same_rows(folder: Path, rows: int) -> bool:
    """Whether DuckDB and nst choose the same rows, ties included."""
    checks = []
    for name in ("duckdb_qualify", "nst_top_k"):
        output = folder.parent / f".{name}.parquet"
        measured(name, folder, rows, output)
        checks.append(duckdb.sql(f"select count(*), sum(id), bit_xor(hash(id)), sum(label) from '{output}'").fetchall())
        os.unlink(output)
    return checks[0] == checks[1]


def top_k(data: Path, rows: int, rounds: int) -> None:
    folder = labels(data, rows)
    print(f"filter and the {quota(rows):,} most confident of each class, {rows:,} rows, {len(os.sched_getaffinity(0))} cores")
    summary = compare(["read_columns", "polars_rank", "duckdb_qualify", "nst_top_k"], folder, rows, rounds)
    print_ratio("nst_top_k", summary, "polars_rank", "duckdb_qualify")
    print(f"  the same rows as DuckDB: {same_rows(folder, rows)}")


def whole(data: Path, rows: int, rounds: int) -> None:
    print(f"duplicates, threshold, quota and copies, {rows:,} rows")
    compare(["nst_whole"], labels(data, rows), rows, rounds)


def query(data: Path, rows: int, rounds: int) -> None:
    folder = labels(data, rows)
    print(f"duplicates, threshold, quota and copies, {rows:,} rows")
    print_ratio("nst_whole", compare(["nst_whole", "duckdb_whole"], folder, rows, rounds), "duckdb_whole")
    sums = []
    for name in ("duckdb_whole", "nst_whole"):
        measured(name, folder, rows, output := folder.parent / f".{name}")
        sums.append(duckdb.sql(f"select count(*), bit_xor(hash(id, duplicates, copies)) from '{output}/selected/*.parquet'").fetchall())
        shutil.rmtree(output)
    print(f"  the same rows and copies: {sums[0] == sums[1]}")


def edition(data: Path, rows: int, rounds: int) -> None:
    version = generation(data, rows)
    print(f"`nst balance`, {rows:,} rows, soft labels of {TOP_K} classes")
    runs = []
    for _ in range(rounds):
        for old in [stored for stored in Store(data / f"store-{rows}").versions("bench") if stored.number.edition]:
            shutil.rmtree(old.folder)
        runs.append(compare(["nst_edition", "carry_rows"], version.folder / "pseudo_labels", rows, 1))
        print_ratio("nst_edition", runs[-1], "carry_rows")


def on_spark(data: Path, rows: int, rounds: int) -> None:
    print(f"duplicates, threshold, quota and copies, {rows:,} rows; Spark's start is in its time, its Java process not in its memory")
    clusters = ["nst_whole_on_cluster"] if "NST_BENCHMARK_MASTER" in os.environ else []
    compare(["nst_whole", "nst_whole_on_spark", *clusters], labels(data, rows), rows, rounds)


def growth(data: Path, rows: int, rounds: int) -> None:
    per_row = {}
    for size in (rows // 100, rows // 10, rows):
        print(f"{size:,} rows")
        names = ["nst_top_k", "nst_whole"] + (["pandas_rank"] if size == rows // 10 else [])
        per_row[size] = compare(names, labels(data, size), size, rounds)
    for name in ("nst_top_k", "nst_whole"):
        for column, clock in enumerate(("clock", "processor")):
            costs = [summary[name][column] / size * 1e9 for size, summary in per_row.items()]
            shown = ", ".join(f"{cost:.0f}" for cost in costs)
            print(f"  {name}: {shown} ns a row by the {clock}; the last is {costs[-1] / costs[-2]:.2f} of the one before")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["top-k", "whole", "query", "edition", "growth", "spark", "run"])
    parser.add_argument("contender", nargs="?", choices=list(CONTENDERS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=300_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--master", help="a Spark cluster to run on as well as in local mode")
    arguments = parser.parse_args()
    if arguments.master:
        os.environ["NST_BENCHMARK_MASTER"] = arguments.master  # which each contender's process gets
    if arguments.what == "run":
        run(arguments.contender, arguments.data, arguments.rows, arguments.out)
        return
    arguments.data.mkdir(parents=True, exist_ok=True)
    commands = {"top-k": top_k, "whole": whole, "query": query, "edition": edition, "growth": growth, "spark": on_spark}
    commands[arguments.what](arguments.data, arguments.rows, arguments.rounds)


if __name__ == "__main__":
    main()
