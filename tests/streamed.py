"""An edition with images in many small shards, in a store and on the test Hub, and processes that stream it."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
from conftest import TINY, picture, write_class_folders
from hub import commit, environment, set_ref
from sealed_labels import NAMES, POOL, label_row

from nst_data.store.inputs import Input
from nst_data.store.manifest import EditionRequest
from nst_data.store.store import Store
from nst_data.tables.schema import balanced_schema
from nst_data.tables.shards import ShardPlan, write_parquet

REPO = "alice/bugs-pseudo"
REF = f"{REPO}@gen-1.1"
SHARDS, ROWS = 10, 6
STILL = {"noise": {"operations": 0}, "crop_scale_min": 1.0}
SETTINGS = TINY | {"batch_size": 4, "ratio": 2, "epochs": 8}  # 24 steps over 120 entries: an epoch is 15 steps

START = """
import json, os, sys, time
from collections import Counter
from pathlib import Path
import numpy as np, torch
from nst_data.errors import NstError
from nst_data.store.files import hash_file
from nst_data.images import image_hash
from nst_data.progress import Progress
from nst_data.sources import open_source
from nst_data.store.store import Store
from nst_data.self_contained.remote import StreamedEdition
from nst_train.batches.batches import readable_images, training_batches
from nst_train.batches.entries import open_edition
from nst_train.transforms.noise import training_transforms
from nst_train.settings import RunSettings, TrainSettings
from nst_train.training.train import train

CONFIG = {"input_size": (3, 16, 16), "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3}
given = json.loads(sys.argv[1])
settings = TrainSettings(**given["settings"])

def shards(work):
    return sorted(path.name for path in Path(work).glob("stream-*/[0-9]*"))

def digest(*tensors):
    return image_hash(b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors))
"""


def png(label, index):
    """An image of 12 kB: shards are larger than what is read of them for their footer."""
    file = io.BytesIO()
    picture(label, index, 72).save(file, "PNG")
    return file.getvalue()


def seal(top, shards=SHARDS, rows=ROWS, with_images=True, counts=None):
    """A sealed edition of `shards` files with images of one to three copies, and the folder of labeled images."""
    labeled = write_class_folders(Path(top, "labeled"), NAMES, 4)
    store = Store(Path(top, "made"))
    request = EditionRequest(settings={"seed": 0}, inputs={"pool": POOL, "generation": Input(ref="bugs@gen-1", digest="gen-1")})
    staging, schema = store.find_or_stage(request, "bugs", 1), balanced_schema(NAMES, with_images=with_images)
    (staging.build / "balanced").mkdir()
    files, entries = {}, 0
    for shard in range(shards):
        table = []
        for row in range(shard * rows, (shard + 1) * rows):
            image = png(row % 3, row)
            one = label_row(row, image, row % 3, 0.5, copies=1 + row % 3) | {"image": {"bytes": image, "path": f"{row:03d}.png"}}
            table.append(one | {"probs": [row / 128, 0.25, 0.75 - row / 128]})
            entries += 1 + row % 3
        path = ShardPlan(shards, 1, "balanced").file(shard)
        rows_of_shard = pa.Table.from_pylist([{key: one[key] for key in schema.names} for one in table], schema=schema)
        files[path] = write_parquet(staging.build / path, [rows_of_shard], schema)
    known = {"labeled": shards * rows, "kept": shards * rows, "unique": shards * rows, "copies": entries}
    known |= {"teacher_parameters": 1, "top_k": None}
    return staging.seal(staging.build_manifest(files, NAMES, known | (counts or {}))), labeled


def publish(top, edition, repo=REPO, tag="gen-1.1"):
    """Put a version on the test Hub below `top`, as `nst push` does."""
    files = {path.relative_to(edition.folder).as_posix(): path.read_bytes() for path in edition.folder.rglob("*") if path.is_file()}
    set_ref(top, repo, tag, commit(top, repo, files))


def process(url, home, *command, check=True, **extra):
    """A process that takes the server for the Hub; its output."""
    Path(home).mkdir(exist_ok=True)
    alone = {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, command)], env=environment(url, home) | alone | extra, capture_output=True, text=True, timeout=300)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


def script(url, home, code, settings=SETTINGS, check=True, **given):
    """What some code after `START` prints last, as JSON."""
    given = {"settings": settings, "ref": REF} | {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
    done = process(url, home, sys.executable, "-c", START + code, json.dumps(given), check=check)
    return json.loads(done.stdout.splitlines()[-1])


def nst(url, home, *arguments, **extra):
    """The command, whatever its status."""
    return process(url, home, sys.executable, "-c", "from nst_cli.main import run; run()", *arguments, check=False, **extra)
