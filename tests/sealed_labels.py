"""Generations and editions with the labels that a test gives them, sealed without any network."""

import pyarrow as pa

from nst_data.images import image_hash
from nst_data.store.inputs import Input
from nst_data.store.manifest import EditionRequest, GenerationRequest
from nst_data.tables.schema import balanced_schema, pseudo_labels_schema
from nst_data.tables.shards import ShardPlan, write_parquet

NAMES = ["ant", "bee", "cat"]
POOL = Input(ref="/pool", digest="pool")
COUNTS = {  # what a manifest of each kind must have
    "generation": {"pool": 1, "labeled": 1, "errors": 0, "teacher_parameters": 0},
    "edition": {"labeled": 1, "kept": 1, "unique": 1, "copies": 1, "teacher_parameters": 0},
    "teacher": {"parameters": 1, "steps": 1},
}


def label_row(row, image, label, confidence, copies=1, key=None, classes=3):
    """One row of either table; `image` is its bytes, or a text that stands for them."""
    encoded = image if isinstance(image, bytes) else str(image).encode()
    known = {"id": row, "key": key or f"{row:03d}.png", "image_hash": image_hash(encoded), "label": label, "confidence": confidence}
    return known | {"probs": [1 / classes] * classes, "phash": 0, "duplicates": 1, "copies": copies}


def seal_generation(store, rows, name="bugs", names=NAMES, settings=None, counts=None, pool=POOL, teacher=None, shards=1):
    """The next generation, of `label_row`s, in so many shards."""
    per_class = {one: sum(row["label"] == label for row in rows) for label, one in enumerate(names)}
    counts = COUNTS["generation"] | {"pool": len(rows), "labeled": len(rows), "per_class": per_class} | (counts or {})
    request = GenerationRequest(
        settings={"number": len(store.versions(name)), **(settings or {})},
        inputs={"pool": pool} | ({"teacher": teacher} if teacher else {}),
    )
    return _seal(store.find_or_stage(request, name), "pseudo_labels", rows, pseudo_labels_schema(names), names, counts, shards)


def seal_edition(store, parent, rows, names=NAMES, role="generation", pool=POOL):
    """The next edition of a generation or, with the role `like`, the first of the next generation."""
    name = parent.folder.parent.name
    inputs = {"pool": pool, role: Input(ref=parent.ref, digest=parent.manifest.digest)}
    unique = {one: sum(row["label"] == label for row in rows) for label, one in enumerate(names)}
    per_class = {one: {"labeled": 2 * images, "unique": images, "copies": 3 * images} for one, images in unique.items()}
    dropped = {"held_out": 0, "duplicate": 1, "low_confidence": 1234}
    counts = COUNTS["edition"] | {"labeled": 2 * len(rows), "dropped": dropped, "unique": len(rows), "copies": 3 * len(rows)}
    counts["per_class"] = per_class
    request = EditionRequest(settings={"number": len(store.versions(name))}, inputs=inputs)
    staging = store.find_or_stage(request, name, parent.number.generation if role == "generation" else None)
    return _seal(staging, "balanced", rows, balanced_schema(names), names, counts)


def _seal(staging, table, rows, schema, names, counts, shards=1):
    plan, files = ShardPlan(shards, 1, table), {}
    for shard in range(shards):
        part = rows[len(rows) * shard // shards : len(rows) * (shard + 1) // shards]
        files[plan.file(shard)] = write_parquet(staging.build / plan.file(shard), [pa.Table.from_pylist(part, schema=schema)], schema)
    return staging.seal(staging.build_manifest(files, list(names), counts))
