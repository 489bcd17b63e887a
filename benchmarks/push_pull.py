"""Memory and disk of `nst push` and `nst pull`, beside huggingface_hub's own client doing the same.

    python benchmarks/push_pull.py --data /tmp/shards [--shards 100] [--mb 50]

An edition of that many shards is made once in `--data`: soft labels of 1,000 classes that no teacher gave, which do not compress. It is
pushed to the tests' Hub, which runs in a process of its own, and pulled into an empty store; then huggingface_hub alone uploads the same
folder (`upload_folder`) and downloads it (`snapshot_download`). Each is a process of its own, whose peak of resident memory (VmHWM) the
system keeps. What a pull has put on the disk is counted over the store and the client's cache, hard links once.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from nst_data.cards import cards
from nst_data.store.counts import ClassCounts, EditionCounts
from nst_data.store.inputs import EditionInputs, Input
from nst_data.store.manifest import EditionRequest
from nst_data.store.staging import Staging
from nst_data.store.store import Store
from nst_data.tables.schema import balanced_schema
from nst_data.tables.shards import ShardPlan, write_parquet

ROOT = Path(__file__).parent.parent
CLASSES = [f"class {index:04d}" for index in range(1000)]
ROW_BYTES = 2 * len(CLASSES) + 60
PEAK = "\nwith open('/proc/self/status') as status: print(next(line for line in status if line.startswith('VmHWM')).split()[1])"
NST = "import sys\nfrom nst_cli.main import app\napp(sys.argv[1:], standalone_mode=False)" + PEAK
CLIENT = {
    "push": "import sys\nfrom huggingface_hub import HfApi\napi = HfApi()\n"
    "api.create_repo('alice/plain', repo_type='dataset')\n"
    "api.upload_folder(repo_id='alice/plain', folder_path=sys.argv[1], repo_type='dataset')" + PEAK,
    "pull": "import sys\nfrom huggingface_hub import snapshot_download\n"
    "snapshot_download('alice/plain', repo_type='dataset', local_dir=sys.argv[1])" + PEAK,
}


def make_edition(store, shards, mb):
    """One version with `shards` files of about `mb` megabytes."""
    if store.versions("shards"):
        return store.open("shards")
    rows = mb * 10**6 // ROW_BYTES
    schema, rng = balanced_schema(CLASSES), np.random.default_rng(0)
    pool = Input(ref="a pool that nobody has", digest="0" * 64)
    staging = store.begin(EditionRequest(settings={"embed_images": False}, inputs=EditionInputs(pool=pool)), "shards", 1)
    assert isinstance(staging, Staging)
    plan, files = ShardPlan(shards * rows, rows, "balanced"), {}
    for shard in range(shards):
        start, stop = plan.bounds(shard)
        ids = np.arange(start, stop)
        probs = rng.integers(1, 15_000, (rows, len(CLASSES)), dtype=np.uint16).view(np.float16)
        table = pa.table(
            {
                "id": ids,
                "key": [f"{row}.png" for row in ids],
                "image_hash": [f"{row:032x}" for row in ids],
                "label": ids % len(CLASSES),
                "confidence": np.full(rows, 0.5, np.float32),
                "probs": pa.FixedSizeListArray.from_arrays(pa.array(probs.ravel()), len(CLASSES)),
                "duplicates": np.ones(rows, np.int32),
                "copies": np.ones(rows, np.int32),
            }
        )
        files[plan.file(shard)] = write_parquet(staging.build / plan.file(shard), [table.cast(schema)], schema)
    rows_per_class = plan.rows // len(CLASSES)
    per_class = dict.fromkeys(CLASSES, ClassCounts(labeled=rows_per_class, unique=rows_per_class, copies=rows_per_class))
    counts = EditionCounts(labeled=plan.rows, kept=plan.rows, unique=plan.rows, copies=plan.rows, per_class=per_class, teacher_parameters=0)
    manifest = staging.build_manifest(files, CLASSES, counts)
    cards.write_dataset_card(staging, manifest)
    return staging.seal(manifest)


def run(code, arguments, env):
    """(seconds, peak of resident memory in MB) of a Python program."""
    began = time.monotonic()
    completed = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], env=env, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr[-2000:]
    return time.monotonic() - began, int(completed.stdout.split()[-1]) / 1024


def on_disk(*folders):
    """Bytes of all files below some folders, each once."""
    sizes = {(s.st_dev, s.st_ino): s.st_blocks * 512 for top in folders for path in top.rglob("*") if path.is_file() for s in [path.stat()]}
    return sum(sizes.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--mb", type=int, default=50)
    arguments = parser.parse_args()
    store = Store(arguments.data / "store")
    version = make_edition(store, arguments.shards, arguments.mb)
    sealed = sum(file.bytes for file in version.manifest.files.values())
    for folder in ("hub", "far", "plain", "hf", "far-hf"):
        shutil.rmtree(arguments.data / folder, ignore_errors=True)
    sys.path.insert(0, str(ROOT / "tests"))
    from hub import ALICE, environment

    hub = subprocess.Popen([sys.executable, ROOT / "tests" / "hub.py", arguments.data / "hub"], stdout=subprocess.PIPE, text=True)
    try:
        url = hub.stdout.readline().split()[0]
        local_environment = environment(url, arguments.data / "hf", ALICE) | {"NST_STORE": str(store.root)}
        remote_environment = environment(url, arguments.data / "far-hf", ALICE) | {"NST_STORE": str(arguments.data / "far")}
        measured = {
            ("push", "nst"): run(NST, ["push", version.ref, "alice/shards"], local_environment),
            ("push", "client"): run(CLIENT["push"], [version.folder], local_environment),
            ("pull", "nst"): run(NST, ["pull", "alice/shards"], remote_environment),
        }
        pulled = on_disk(arguments.data / "far", arguments.data / "far-hf")
        measured["pull", "client"] = run(CLIENT["pull"], [arguments.data / "plain"], remote_environment)
    finally:
        hub.kill()
    print(f"{arguments.shards} shards, {sealed / 1e6:,.0f} MB")
    for action in ("push", "pull"):
        (seconds, memory), (plain_seconds, plain) = measured[action, "nst"], measured[action, "client"]
        print(
            f"{action}: nst {memory:,.0f} MB in {seconds:,.1f} s, the client alone {plain:,.0f} MB in {plain_seconds:,.1f} s: "
            f"{memory - plain:+,.0f} MB, time {seconds / plain_seconds:.2f}"
        )
    print(f"on disk after the pull: {pulled / 1e6:,.0f} MB, {pulled / sealed:.3f} of the version")
    print(json.dumps({"cpus": os.cpu_count()}))


if __name__ == "__main__":
    main()
