"""Labels for tests of the selection, and what a selection of them gives."""

import hashlib
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import polars as pl

from nst_data.images import image_hash
from nst_data.selection import selection
from nst_data.selection.balance import most_confident
from nst_data.selection.seeded_order import ORDER_SIZE
from nst_data.settings import BalanceSettings
from nst_data.tables.schema import SELECTION_COLUMNS

NAMES = ["ant", "bee", "cat", "dog"]
# pairs of them share as many of their first digits as code looks at on its way: 7 and 15
HASHES = [
    f"{start:{last}<32}" for start, last in zip(["0", "0000000", "0" * 15, "8", "8" * 15, "f" * 31, "f", "3a"], "01287ef5", strict=True)
]


def f32(value, steps=0):
    """The nearest float32 of a number, or one that lies some steps above or below it."""
    return float(np.int32(int(np.float32(value).view(np.int32)) + steps).view(np.float32))


def label_frame(rows):
    """From (image, label, confidence) in pool order; an image is an index into HASHES."""
    columns = [(index, HASHES[image], label, confidence) for index, (image, label, confidence) in enumerate(rows)]
    return pl.LazyFrame(columns, schema=SELECTION_COLUMNS, orient="row")


def held_out_hashes(held_out, near=()):
    return {"held_out": {HASHES[image] for image in held_out}, "near_held_out": {HASHES[image] for image in near}}


def judge_rows(rows, held_out=(), near=(), **settings):
    """(reason, duplicates) by id, in pool order."""
    settings = BalanceSettings(**settings)
    with tempfile.TemporaryDirectory() as work:
        table = selection.with_reasons(label_frame(rows), settings, NAMES, held_out_hashes(held_out, near), Path(work)).to_native()
        if isinstance(settings.per_class, int):
            table = most_confident(table, settings.per_class)
        table = table.sort("id").collect()
    return list(zip(table["reason"], table["duplicates"], strict=True))


def reasons(rows, held_out=(), near=(), **settings):
    return [reason for reason, _ in judge_rows(rows, held_out, near, **settings)]


def select_rows(labels, settings, held_out=(), near=(), names=NAMES):
    """The files of a selection as one table, and its counts: {(label, reason): rows}, {label: (images, copies)}."""
    with tempfile.TemporaryDirectory() as work:
        found = selection.select(labels, settings, names, held_out_hashes(held_out, near), Path(work), "bugs@gen-0")
        table = pl.concat([pl.read_parquet(file) for file in found.files]).select("id", "label", "duplicates", "copies")
    dropped = {(label, reason): rows for label, reason, rows in found.dropped_counts.select("label", "reason", "rows").iter_rows() if rows}
    return table, dropped, {label: counts for label, *counts in found.selected_counts.select("label", "images", "copies").iter_rows()}


def place_in_order(image_hash, seed, purpose):
    """The place of an image in a seeded order, as a share."""
    digest = hashlib.sha256(f"{purpose} {seed}".encode()).digest()
    a, b = (1 + int.from_bytes(digest[at : at + 8], "big") % (ORDER_SIZE - 1) for at in (0, 8))
    return Fraction((int(image_hash[:7], 16) * a + b) % ORDER_SIZE, ORDER_SIZE)


def many_labels(rows, classes, seed=0):
    """Random labels in which one image in ten occurs twice, and many rows are as sure as others; classes are of very different sizes."""
    rng = np.random.default_rng(seed)
    images = np.where(rng.random(rows) < 0.1, rng.integers(0, rows, rows), np.arange(rows))
    label = np.minimum(rng.exponential(classes / 4, rows).astype(np.int64), classes - 1)
    confidence = np.where(rng.random(rows) < 0.5, np.ceil(rng.random(rows) * 10) / 10, rng.random(rows)).astype(np.float32)
    confidence[label == 1] = 0.75
    table = {"id": np.arange(rows), "image_hash": [image_hash(str(image).encode()) for image in images]}
    return pl.DataFrame(table | {"label": label, "confidence": confidence}, schema=SELECTION_COLUMNS)
