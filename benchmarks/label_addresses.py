"""What `nst label` loses when the pool is on an S3 server in place of this disk: image files, tar and parquet files.

    python benchmarks/label_addresses.py                       # 4,000 JPEGs of 224 px, a small network, SeaweedFS on loopback
    python benchmarks/label_addresses.py --count 20000 --rounds 5

Local and remote take turns in one run; the first tenth of each labeling is left out. The server shares the cores with nst, as no server
elsewhere would, so the CPU time of nst's own process for each image stands beside the rate, and what the server took.
"""

import argparse
import io
import os
import statistics
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from label import CORES, make_teacher
from PIL import Image

from nst_data.progress import Progress, Task
from nst_data.sources import open_source
from nst_data.store.file_tree import FileTree
from nst_data.store.store import Store
from nst_train.labeling.label import label
from nst_train.settings import LabelSettings

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from object_store import serving, settings

KINDS = ("images", "tar", "parquet")


class Clock(Progress):
    """Seconds and CPU seconds of this process for each image, and CPU seconds of all others below it, without a task's first tenth."""

    seconds = cpu = others = 0.0

    @staticmethod
    def say(line: str) -> None:
        """Nothing."""

    def task(self, name: str, total: int, unit: str, done: int = 0) -> Any:
        """Times what is advanced."""
        clock = self

        class Timed:
            def __enter__(self) -> Task:
                self.count, self.since, self.counted = 0, _now(), 0
                return self

            def advance(self, amount: int, note: str = "") -> None:
                self.count += amount
                if not self.counted and self.count >= total / 10:
                    self.since, self.counted = _now(), self.count

            def __exit__(self, *_: object) -> None:
                took = [(now - then) / max(1, self.count - self.counted) for now, then in zip(_now(), self.since, strict=True)]
                clock.seconds, clock.cpu, clock.others = took

        return Timed()


def _now() -> tuple[float, float, float]:
    children = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return time.perf_counter(), time.process_time(), sum(child.user + child.system for child in children)


def write(top: Path, count: int, size: int) -> None:
    """The same images as files, in tar files of 1,000 and in parquet files of 1,000."""
    rng = np.random.default_rng(0)
    (top / "images").mkdir(parents=True)
    (top / "tar").mkdir()
    (top / "parquet").mkdir()
    for start in range(0, count, 1_000):
        images = [_jpeg(rng, size) for _ in range(min(1_000, count - start))]
        with tarfile.open(top / f"tar/{start:06d}.tar", "w") as tar:
            for number, encoded in enumerate(images, start):
                (top / f"images/{number:06d}.jpg").write_bytes(encoded)
                info = tarfile.TarInfo(f"{number:06d}.jpg")
                info.size = len(encoded)
                tar.addfile(info, io.BytesIO(encoded))
        rows = [{"bytes": encoded, "path": None} for encoded in images]
        pq.write_table(pa.table({"image": rows}), top / f"parquet/{start:06d}.parquet", row_group_size=100, compression="none")


def _jpeg(rng: np.random.Generator, size: int) -> bytes:
    layers = [rng.integers(0, 255, (size // step + 1, size // step + 1, 3), dtype=np.uint8) for step in (56, 14, 4)]
    parts = [np.asarray(Image.fromarray(layer).resize((size, size), Image.Resampling.BICUBIC), np.float32) for layer in layers]
    file = io.BytesIO()
    Image.fromarray((0.55 * parts[0] + 0.3 * parts[1] + 0.15 * parts[2]).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=4_000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        write(top / "pool", args.count, args.size)
        make_teacher("test_resnet", 64, top / "teacher")
        (top / "server").mkdir()
        with serving(top / "server") as url:
            os.environ.update(settings(url))
            tree = FileTree("s3://nst/pool")
            for path in sorted((top / "pool").rglob("*.*")):
                tree.upload(path, path.relative_to(top / "pool").as_posix())
            print(f"{args.count:,} JPEGs of {args.size} px, {CORES} cores")
            for kind in args.kinds:
                _compare(top, kind, args.rounds, str(top / "pool" / kind), tree.address_of(kind))


def _compare(top: Path, kind: str, rounds: int, here: str, there: str) -> None:
    clocks: dict[str, list[Clock]] = {here: [], there: []}
    for number in range(rounds + 1):
        for place in (here, there):
            clock, store = Clock(), Store(top / f"store-{kind}-{number}-{place == here}")
            pool = open_source(place, indexes=top / "indexes")
            label(store, "pool", f"local-dir:{top / 'teacher'}", pool, LabelSettings(), progress=clock)
            if number:  # the first warms up
                clocks[place].append(clock)
    rate = statistics.median(one.seconds / two.seconds for one, two in zip(clocks[here], clocks[there], strict=True))
    cpu = statistics.median(one.cpu / two.cpu for one, two in zip(clocks[here], clocks[there], strict=True))
    local, remote = (statistics.median(1 / one.seconds for one in clocks[place]) for place in (here, there))
    milliseconds = [1000 * statistics.median(one.cpu for one in clocks[place]) for place in (here, there)]
    server = 1000 * statistics.median(one.others for one in clocks[there])
    print(
        f"{kind:8} {local:6,.0f} images/s here, {remote:6,.0f} there: rate {rate:.2f}; nst's own CPU {milliseconds[0]:.2f} and "
        f"{milliseconds[1]:.2f} ms an image: {cpu:.2f}; the server {server:.2f} ms",
        flush=True,
    )


if __name__ == "__main__":
    main()
