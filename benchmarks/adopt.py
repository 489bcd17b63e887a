"""How long `nst adopt` takes over a table of the five most probable classes, and the memory it needs, until images are read and with them.

python benchmarks/adopt.py [--rows 1000000] [--classes 1000] [--forms columns lists jsonl parquet] [--images]

`columns` is CSV with a column for each of the five (timm's inference.py with --results-separate-col), `lists` CSV with NumPy's lists in a
cell, as it writes without. The pool is a parquet file with as many images of 8 x 8 pixels, found by key. Each form in a process of its own.
"""

import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from nst_data import Store, adopt, open_source
from nst_data.progress import Progress

PIECE, K = 50_000, 5
LIMIT_SECONDS, LIMIT_MB = 30, 1024


class ImagesBeginError(Exception):
    """Ends a run where it begins to read images."""


class UntilImages(Progress):
    """Notes when the first image is read, and the memory at its highest until then."""

    def __init__(self, with_images):
        self.with_images, self.begin = with_images, time.monotonic()
        self.seconds = self.cpu_seconds = self.megabytes = None

    def task(self, name, total, unit, done=0):
        if name.startswith("adopt"):
            self.seconds, self.cpu_seconds, self.megabytes = time.monotonic() - self.begin, time.process_time(), peak_mb()
            if not self.with_images:
                raise ImagesBeginError
        return super().task(name, total, unit, done)


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write_pool(path, rows):
    file = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).save(file, "PNG")
    with pq.ParquetWriter(path, pa.schema([("image", pa.binary())]), compression="none", use_dictionary=False) as writer:
        for start in range(0, rows, PIECE):
            writer.write_table(pa.table({"image": [file.getvalue()] * min(PIECE, rows - start)}))


def pieces(rows, classes):
    """(keys, class names, probabilities) of some rows at a time; the labels are the same in each piece."""
    rng, names = np.random.default_rng(0), np.array([f"n{number:08d}" for number in range(classes)])
    top_classes = (rng.integers(0, classes, PIECE)[:, None] + np.arange(K) * 7) % classes
    probs = -np.sort(-rng.dirichlet(np.full(K, 0.5), PIECE).astype(np.float32) * np.float32(0.98), axis=1)
    for start in range(0, rows, PIECE):
        count = min(PIECE, rows - start)
        yield [f"pool.parquet:{row}" for row in range(start, start + count)], names[top_classes[:count]], probs[:count]


def write_labels(path, form, rows, classes):
    if form == "lists":
        cells = [f'"{label}","{values}"' for _, names, probs in pieces(PIECE, classes) for label, values in zip(names, probs, strict=True)]
        with path.open("w") as out:
            out.write("filename,label,prob\n")
            for keys, _, _ in pieces(rows, classes):
                out.writelines(f"{key},{cell}\n" for key, cell in zip(keys, cells, strict=False))
        return
    if form == "jsonl":
        with path.open("w") as out:
            for keys, names, probs in pieces(rows, classes):
                cells = zip(keys, names.tolist(), probs.tolist(), strict=True)
                out.writelines(json.dumps({"filename": key, "label": label, "prob": values}) + "\n" for key, label, values in cells)
        return
    writer = None
    for keys, names, probs in pieces(rows, classes):
        if form == "parquet":
            table = pa.table({"filename": keys, "label": names.tolist(), "prob": probs.tolist()})
        else:
            labels = {f"label_{place}": names[:, place] for place in range(K)}
            table = pa.table({"filename": keys, **labels, **{f"prob_{place}": probs[:, place] for place in range(K)}})
        if writer is None:
            writer = pq.ParquetWriter(path, table.schema) if form == "parquet" else pa_csv.CSVWriter(path, table.schema)
        writer.write_table(table)
    writer.close()


def measure(folder, form, with_images):
    """In a process of its own: print what it took."""
    table = next(folder.glob(f"{form}.*"))
    progress = UntilImages(with_images)
    pool, names = open_source(folder / "pool.parquet"), str(folder / "names.txt")
    extra = {}
    try:
        adopt(Store(folder / f"store-{form}"), form, table, pool=pool, class_names=names, progress=progress)
        extra = {"seconds_with_images": time.monotonic() - progress.begin, "mb_with_images": peak_mb()}
    except ImagesBeginError:
        pass
    print(json.dumps({"seconds": progress.seconds, "cpu": progress.cpu_seconds, "mb": progress.megabytes, **extra}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--forms", nargs="+", default=["columns", "lists", "jsonl", "parquet"])
    parser.add_argument("--images", action="store_true", help="read the images too")
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "FORM"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(Path(arguments.measure[0]), arguments.measure[1], arguments.images)
        return
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top)
        write_pool(folder / "pool.parquet", arguments.rows)
        (folder / "names.txt").write_text("".join(f"n{number:08d}\n" for number in range(arguments.classes)))
        print(
            f"{arguments.rows:,} rows, top {K} of {arguments.classes:,} classes; the limit for CSV: {LIMIT_SECONDS} s and {LIMIT_MB:,} MB"
        )
        print(
            "| form | file, MB | until images are read, s | CPU, s | peak, MB | with images, s | peak, MB |\n|---|---|---|---|---|---|---|"
        )
        for form in arguments.forms:
            suffix = {"columns": "csv", "lists": "csv"}.get(form, form)
            path = folder / f"{form}.{suffix}"
            write_labels(path, form, arguments.rows, arguments.classes)
            command = [sys.executable, __file__, "--measure", top, form, *(["--images"] if arguments.images else [])]
            measured = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1])
            image_cells = (
                [f"{measured['seconds_with_images']:.0f}", f"{measured['mb_with_images']:.0f}"] if arguments.images else ["-", "-"]
            )
            cells = [
                form,
                f"{path.stat().st_size / 2**20:.0f}",
                f"{measured['seconds']:.1f}",
                f"{measured['cpu']:.1f}",
                f"{measured['mb']:.0f}",
                *image_cells,
            ]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
