"""How fast `nst look` answers over many rows, and in how much memory.

    python benchmarks/look.py --rows 10_000_000 --data FOLDER         # two generations of ten classes; 300_000_000 opens on a sample

The store is made once in `--data`: soft labels of ten classes, keys and hashes as of real images, in shards of 50,000 rows as labeling
writes them. The server runs in a process of its own with two threads (Polars); every request is timed from outside, as a browser
waits for it, each filter three times, of which the first and the median are shown, and the CPU time that the server took for one (on a
machine with other work wall clocks stretch, this does not). The first start makes the index, the second finds it.
Memory is the operating system's peak, with what is mapped from files.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from http.cookiejar import CookieJar
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa

from nst_data.store.inputs import Input
from nst_data.store.manifest import GenerationRequest
from nst_data.store.store import Store
from nst_data.tables.schema import pseudo_labels_schema
from nst_data.tables.shards import ShardPlan, write_parquet

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SHARD_ROWS, MADE_ROWS = 50_000, 10_000_000  # more rows are the same shards again under other names
FILTERS = {
    "least confident": "sort=confidence",
    "most confident": "sort=-confidence",
    "one class": "class=cat&sort=confidence",
    "confidence 0.5 to 0.6": "min=0.5&max=0.6&sort=confidence",
    "class and confidence": "class=dog&min=0.9&sort=-confidence",
    "margin": "sort=margin",
    "entropy, one class": "class=cat&sort=entropy",
    "changed from gen-1": "disagree=1&sort=confidence",
    "cat to dog": "from=cat&to=dog&sort=confidence",
    "near-duplicates": "near=5",
    "reviewed": "reviewed=yes",
    "not reviewed": "reviewed=no&sort=confidence",
    "page 1,000": "sort=confidence&offset=60000",
}


def shard(generation: int, number: int) -> pa.Table:
    """Rows that are the same images in each generation, with other answers."""
    images, answers = np.random.default_rng([7, number]), np.random.default_rng([generation, number])
    ids = np.arange(number * SHARD_ROWS, (number + 1) * SHARD_ROWS)
    logits = images.normal(0, 3, (SHARD_ROWS, len(NAMES))) + answers.normal(0, 1, (SHARD_ROWS, len(NAMES)))
    probs = np.exp(logits - logits.max(axis=1, keepdims=True))
    probs = (probs / probs.sum(axis=1, keepdims=True)).astype(np.float32)
    digits = images.bytes(16 * SHARD_ROWS).hex()
    soft = pa.FixedSizeListArray.from_arrays(pa.array(probs.astype(np.float16).ravel()), len(NAMES))
    columns = {
        "id": ids,
        "key": [f"{row // 1000:06d}/{row:09d}.jpg" for row in ids.tolist()],
        "image_hash": [digits[place : place + 32] for place in range(0, len(digits), 32)],
        "label": probs.argmax(axis=1),
        "confidence": probs.max(axis=1),
        "probs": soft,
        "phash": images.integers(-(2**63), 2**63 - 1, SHARD_ROWS),
    }
    return pa.table(columns).cast(pseudo_labels_schema(NAMES))


def make_generation(store: Store, rows: int, pool: Path) -> None:
    """The next generation of the corpus `many`."""
    number = len(store.versions("many")) + 1
    request = GenerationRequest(settings={"number": number}, inputs={"pool": Input(ref=str(pool), digest="pool")})
    staging = store.find_or_stage(request, "many")
    schema, plan, files = pseudo_labels_schema(NAMES), ShardPlan(rows, SHARD_ROWS), {}
    for place in range(len(plan)):
        file = staging.build / plan.file(place)
        if place < MADE_ROWS // SHARD_ROWS:
            files[plan.file(place)] = write_parquet(file, [shard(number, place)], schema)
        else:
            first = plan.file(place % (MADE_ROWS // SHARD_ROWS))
            os.link(staging.build / first, file)
            files[plan.file(place)] = files[first]
    counts = {"pool": rows, "labeled": rows, "errors": 0, "teacher_parameters": 0, "per_class": {}}
    staging.seal(staging.build_manifest(files, NAMES, counts))


class Server:
    """`nst look` in a process of its own."""

    def __init__(self, store: Store, *arguments: str) -> None:
        environment = os.environ | {"POLARS_MAX_THREADS": "2", "OMP_NUM_THREADS": "1"}
        command = [Path(sys.executable).with_name("nst"), "look", *arguments, "--store", store.root, "--no-browser", "--port", "0"]
        since = time.perf_counter()
        self.process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, env=environment, text=True)
        address = self.process.stdout.readline().strip()
        self.seconds_to_address = time.perf_counter() - since
        self.root = address.partition("?")[0]
        self.opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
        self.opener.open(address).read()

    def get(self, path: str) -> tuple[float, dict]:
        since = time.perf_counter()
        content = self.opener.open(self.root + path).read()
        return time.perf_counter() - since, json.loads(content)

    def answer(self, row: int) -> float:
        body = json.dumps({"id": row, "class": "cat"}).encode()
        headers = {"Origin": self.root.rstrip("/"), "Content-Type": "application/json"}
        since = time.perf_counter()
        self.opener.open(urllib.request.Request(f"{self.root}api/answers", body, headers)).read()
        return time.perf_counter() - since

    @property
    def cpu_seconds(self) -> float:
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    @property
    def peak_gb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 2**20

    def end(self) -> None:
        self.process.terminate()
        self.process.wait()


def measure(store: Store, title: str) -> None:
    server = Server(store, "many@gen-2")
    start = server.cpu_seconds
    overview, response = server.get("api/overview")
    grid, _ = server.get("api/grid?sort=confidence&limit=60")
    sampled = response["sampled"]
    rows_text = f"a sample of {sampled['rows']:,} of {sampled['of']:,}" if sampled else f"{response['rows']:,}"
    print(
        f"\n{title}: {rows_text} rows; address after {server.seconds_to_address:.2f} s ({start:.1f} s of CPU), "
        f"overview {overview:.2f} s, first page {grid:.2f} s"
    )
    since = time.perf_counter()
    while response["pending"]:
        time.sleep(0.5)
        response = server.get("api/overview")[1]
    print(f"labels of gen-1 beside them after {time.perf_counter() - since:.1f} s more")
    print(f"answer to one image: {server.answer(123):.3f} s")
    print("| filter | first, s | median of three, s | CPU, s | rows |\n|---|---|---|---|---|")
    for name, query in FILTERS.items():
        times, total, since = [], 0, server.cpu_seconds
        for _ in range(3):
            seconds, content = server.get(f"api/grid?{query}&limit=60")
            times.append(seconds)
            total = content["total"]
        print(
            f"| {name} | {times[0]:.2f} | {statistics.median(times):.2f} | {(server.cpu_seconds - since) / 3:.2f} | {total:,} |", flush=True
        )
    seconds, _ = server.get("api/image/123")
    print(f"| one image | {seconds:.2f} | {statistics.median(server.get(f'api/image/{row}')[0] for row in (5, 77, 9_999)):.2f} | | |")
    print(f"peak memory {server.peak_gb:.2f} GB")
    server.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    store, pool = Store(options.data / f"store-{options.rows}"), options.data / "pool"
    pool.mkdir(parents=True, exist_ok=True)
    while len(store.versions("many")) < 2:
        make_generation(store, options.rows, pool)
    for folder in ("runs/look", "reviews"):
        shutil.rmtree(store.root / folder, ignore_errors=True)
    measure(store, "first start")
    measure(store, "second start")


if __name__ == "__main__":
    main()
