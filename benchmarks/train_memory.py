"""What `nst train` costs beside the network.

    python benchmarks/train_memory.py memory --data /tmp/editions     # memory of each process with 50,000 and with 5,000,000 entries
    python benchmarks/train_memory.py reads --data /tmp/editions      # one image from a parquet pool, by the way its images are stored

`memory` makes editions once in `--data`, with labels that no teacher gave. Their images are scikit-learn's digits, 1,797 real scans under
as many names as the edition has images; every fourth has two copies. One edition finds them in a list of files, in the order that was
labeled or (`moved`) in another one; one holds them itself. Each training is a command of its own, 40 steps of 16 labeled and 112
pseudo-labeled images with two workers. Peaks are of private and anonymous memory (`RssAnon`), looked at every 20 ms: pages of memory-mapped
files are the system's to drop and do not count.

`reads` takes the images of a parquet file (`--pool`), writes them as older and as newer versions of `datasets` do, and reads them in random
order: the first image, with all that is done once, then the others, beside decoding a row group for each.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nst_data.digits import write_digits
from nst_data.images import image_hash
from nst_data.sources import open_source
from nst_data.store.counts import EditionCounts
from nst_data.store.files import atomic_write
from nst_data.store.inputs import EditionInputs, Input
from nst_data.store.manifest import EditionRequest
from nst_data.store.store import Store
from nst_data.tables.schema import balanced_schema
from nst_data.tables.shards import ROW_GROUP_ROWS, ShardPlan, parquet_writer

CLASSES, SHARD_ROWS = [str(digit) for digit in range(10)], 200_000
SIZES = (50_000, 5_000_000)
NETWORK = ["--model", "test_resnet", "--image-size", "16", "--compute-threads", "1"]
STEPS = ["--batch-size", "16", "--ratio", "7", "--epochs", "6.5", "--workers", "2"]


def write_list(data: Path, rows: int) -> Path:
    """A list of `rows` different names of the digits: links to their folder, one below the other."""
    digits = sorted(path for path in (data / "digits").rglob("*.png"))
    flat = data / "flat"
    if not flat.is_dir():
        flat.mkdir()
        for index, path in enumerate(digits):
            shutil.copy(path, flat / f"{index:04d}.png")
    for link in range(-(-rows // len(digits))):
        if not (data / f"{link:05d}").is_symlink():
            (data / f"{link:05d}").symlink_to("flat")
    names = data / f"{rows}.txt"
    if not names.exists():
        lines = [f"{row // len(digits):05d}/{row % len(digits):04d}.png" for row in range(rows)]
        (data / f"{rows}-moved.txt").write_text("\n".join(reversed(lines)))
        names.write_text("\n".join(lines))
    return names


def tables(names: Path, rows: int, with_images: bool) -> Iterator[pa.Table]:
    """The rows of an edition, a row group at a time; with images in another order than the list's."""
    images = [path.read_bytes() for path in sorted((names.parent / "flat").iterdir())]
    hashes = pa.array([image_hash(image) for image in images])
    encoded, keys = pa.array(images, pa.binary()), pa.array(names.read_text().splitlines())
    order = np.random.default_rng(0).permutation(rows) if with_images else np.arange(rows)
    schema, size = balanced_schema(CLASSES, with_images=with_images), 100 if with_images else ROW_GROUP_ROWS
    generator = np.random.default_rng(0)
    for start in range(0, rows, size):
        ids = order[start : start + size]
        probs = generator.dirichlet(np.full(10, 0.2), len(ids)).astype(np.float16)
        key, digit = keys.take(ids), pa.array(ids % len(images))
        columns = {
            "id": ids,
            "key": key,
            "image_hash": hashes.take(digit),
            "label": probs.argmax(axis=1),
            "confidence": probs.max(axis=1).astype(np.float32),
            "probs": pa.FixedSizeListArray.from_arrays(pa.array(probs.ravel()), 10),
            "duplicates": np.ones(len(ids), np.int32),
            "copies": 1 + (ids % 4 == 0).astype(np.int32),
        }
        if with_images:
            columns["image"] = pa.StructArray.from_arrays([encoded.take(digit), key], fields=list(schema.field("image").type))
        yield pa.table({name: columns[name] for name in schema.names}).cast(schema)


def make_edition(store: Store, names: Path, entries: int, with_images: bool) -> str:
    """The reference of an edition with so many entries, made where it is not there."""
    rows, name = entries * 4 // 5, f"digits-{entries}-{'with-images' if with_images else 'by-reference'}"
    if versions := store.versions(name):
        return versions[0].ref
    pool = open_source(str(names))
    inputs = EditionInputs(generation=Input(ref="none@gen-1", digest="none"), pool=pool.lineage)
    staging = store.find_or_stage(EditionRequest(settings={"entries": entries, "with_images": with_images}, inputs=inputs), name)
    schema, plan = balanced_schema(CLASSES, with_images=with_images), ShardPlan(rows, SHARD_ROWS, "balanced")
    (staging.build / plan.table).mkdir()
    files, groups = {}, tables(names, rows, with_images)
    for shard in range(len(plan)):
        with atomic_write(staging.build / plan.file(shard), staging.work) as file, parquet_writer(file, schema) as writer:
            n_written = 0
            while n_written < plan.size(shard):
                group = next(groups)
                writer.write_table(group)
                n_written += group.num_rows
        files[plan.file(shard)] = file.sealed
    counts = EditionCounts(labeled=rows, kept=rows, unique=rows, copies=entries, teacher_parameters=0)
    return staging.seal(staging.build_manifest(files, CLASSES, counts)).ref


def anonymous_mb(process: int) -> float:
    """Private and anonymous memory of a process, 0 where it is gone."""
    try:
        match = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    except OSError:
        return 0.0
    return int(match[1]) / 1024 if match else 0.0


def children(process: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []


def train(data: Path, ref: str, pool: Path | None) -> None:
    """Train in a command of its own and print the peak of each of its processes."""
    name = f"student-{os.getpid()}-{time.monotonic_ns()}"
    options = ["train", "--labeled", str(data / "digits" / "labeled"), "--pseudo", ref, "--name", name, "--store", str(data / "store")]
    options += [*NETWORK, *STEPS, *(["--pool", str(pool)] if pool else [])]
    since, prepared, peaks = time.monotonic(), 0.0, [0.0, 0.0]
    with subprocess.Popen([Path(sys.executable).with_name("nst"), *options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as command:
        while command.poll() is None:
            workers = children(command.pid)
            if len(workers) >= 2 and not prepared:
                prepared = time.monotonic() - since
            usage = anonymous_mb(command.pid), max(map(anonymous_mb, workers), default=0.0)
            peaks = [max(pair) for pair in zip(peaks, usage, strict=True)]
            time.sleep(0.02)
        errors = command.stderr.read().decode() if command.stderr else ""
    if command.returncode:
        raise SystemExit(errors)
    print(
        f"  {ref:40} {'moved' if pool else '':6} training {peaks[0]:5,.0f} MB   worker {peaks[1]:5,.0f} MB   begins after {prepared:.1f} s"
    )


def memory(data: Path) -> None:
    write_digits(data / "digits", 0)
    store = Store(data / "store")
    for entries in SIZES:
        names = write_list(data, entries * 4 // 5)
        by_reference, with_images = (make_edition(store, names, entries, with_images) for with_images in (False, True))
        for ref, pool in ((by_reference, None), (by_reference, data / f"{entries * 4 // 5}-moved.txt"), (with_images, None)):
            train(data, ref, pool)


def reads(data: Path, pool: str, count: int = 5_000) -> None:
    images = [bytes(row.read()) for row in open_source(pool).rows(range(len(open_source(pool))))]
    table = pa.table({"image": pa.StructArray.from_arrays([pa.array(images), pa.nulls(len(images), pa.string())], names=["bytes", "path"])})
    order = np.random.default_rng(0).permutation(len(images))[:count].tolist()
    print(f"{len(images):,} images, {sum(map(len, images)) / 1e6:,.0f} MB")
    for name, options in (
        ("snappy", {}),
        ("plain", {"compression": "none", "use_dictionary": False, "use_content_defined_chunking": True}),
    ):
        for rows in (100, 1_000):
            pq.write_table(table, data / "reads.parquet", row_group_size=rows, write_page_index=True, **options)
            source = open_source(str(data / "reads.parquet"))
            with tempfile.TemporaryDirectory(dir=data) as copies:
                datasets.config.HF_DATASETS_CACHE = Path(copies)
                since = time.perf_counter()
                source.read(order[0])
                first = time.perf_counter() - since
                copied = sum(path.stat().st_size for path in Path(copies).rglob("*.arrow"))
                since = time.perf_counter()
                assert all(source.read(row) == images[row] for row in order)
                seconds_per_image = (time.perf_counter() - since) / count
            since = time.perf_counter()
            for row in order[:100]:
                source._read_from_group(row)
            group = (time.perf_counter() - since) / 100
            print(
                f"  {name:8} row groups of {rows:5,}: the first {1e3 * first:7.1f} ms, {copied / 1e6:5.0f} MB copied; "
                f"then {1e6 * seconds_per_image:6.1f} us an image; a row group for each: {1e6 * group:7.1f} us"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["memory", "reads"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pool", default="../shared/data/cifar10/unlabeled.parquet")
    arguments = parser.parse_args()
    arguments.data.mkdir(parents=True, exist_ok=True)
    if arguments.what == "memory":
        memory(arguments.data)
    else:
        reads(arguments.data, arguments.pool)


if __name__ == "__main__":
    main()
