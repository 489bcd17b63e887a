import json

import datasets
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_class_folders, write_pool
from datasets import ClassLabel, List, Value, load_dataset

from nst_data.cards import cards
from nst_data.errors import NstError
from nst_data.images import decode, image_hash, phash, phash_thumbnail
from nst_data.selection.editions import balance
from nst_data.settings import BalanceSettings
from nst_data.sources import open_source
from nst_data.store.inputs import Input
from nst_data.store.manifest import GenerationRequest
from nst_data.store.store import Store
from nst_data.tables.schema import pseudo_labels_schema
from nst_data.tables.shards import ShardPlan, Shards, ShardWriter

NAMES = ["ant", "bee", "cat"]
PROBS = np.array(
    [[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.25, 0.35, 0.4], [0.1, 0.8, 0.1], [0.34, 0.33, 0.33]], dtype=np.float32
)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def pool(tmp_path):
    """Five images and one that cannot be read, which is row 3."""
    folder = write_pool(tmp_path / "pool", 3, 2)
    sorted(folder.iterdir())[3].write_bytes(b"no image")
    return open_source(str(folder))


def write_generation(store, pool, probs=PROBS, names=NAMES, rows_per_shard=2):
    inputs = {"teacher": Input(ref="net@gen-0", digest="weights"), "pool": Input(ref=pool.location, digest=pool.fingerprint)}
    staging = store.find_or_stage(GenerationRequest(settings={"batch_size": 2}, inputs=inputs), "flowers")
    shards = Shards(staging.build, staging.work, ShardPlan(len(pool), rows_per_shard))
    for shard in shards.take():
        write_shard(shards, shard, pool, probs, pseudo_labels_schema(names))
    files, counts = shards.finish(names)
    manifest = staging.build_manifest(files, names, counts.model_dump() | {"teacher_parameters": 7})
    cards.write_dataset_card(staging, manifest)
    return staging.seal(manifest)


def write_shard(shards, shard, pool, probs, schema):
    writer = ShardWriter(shards, shard, schema)
    for row in pool.rows(range(*shards.plan.bounds(shard))):
        encoded = row.read()
        if encoded == b"no image":
            writer.add(schema.empty_table(), [{"id": row.id, "key": row.key, "reason": "not an image in a known format"}])
            continue
        known = {
            "id": row.id,
            "key": row.key,
            "image_hash": image_hash(encoded),
            "phash": int(phash(phash_thumbnail(decode(encoded))[None])[0]),
        }
        label = int(probs[row.id].argmax())
        soft = {"label": label, "confidence": probs[row.id][label], "probs": probs[row.id].astype(np.float16)}
        writer.add(pa.Table.from_pylist([known | soft], schema=schema))
    writer.finish()


def read(version, table, tmp_path):
    return load_dataset(str(version.folder), table, split="train", cache_dir=str(tmp_path / "cache"))


def test_a_generation_holds_every_image_in_its_labels_or_its_errors(store, pool, tmp_path):
    version = write_generation(store, pool)
    labels, errors = read(version, "pseudo_labels", tmp_path), read(version, "errors", tmp_path)
    assert labels["id"][:] == [0, 1, 2, 4, 5]
    assert errors[:] == {"id": [3], "key": [pool.key(3)], "reason": ["not an image in a known format"]}
    assert version.manifest.counts.model_dump() == {
        "pool": 6,
        "labeled": 5,
        "errors": 1,
        "per_class": {"ant": 3, "bee": 2, "cat": 0},
        "teacher_parameters": 7,
    }
    assert version.verify() == []


SOFT_LABEL_COLUMNS = {
    "id": Value("int64"),
    "key": Value("string"),
    "image_hash": Value("string"),
    "label": ClassLabel(names=NAMES),
    "confidence": Value("float32"),
    "probs": List(Value("float16"), length=3),
}


def test_a_generation_loads_with_the_types_of_the_design(store, pool, tmp_path):
    version = write_generation(store, pool)
    assert read(version, "pseudo_labels", tmp_path).features == {
        **SOFT_LABEL_COLUMNS,
        "phash": Value("int64"),
    }
    assert read(version, "errors", tmp_path).features == {"id": Value("int64"), "key": Value("string"), "reason": Value("string")}


def test_the_first_table_loads_without_a_name(store, pool, tmp_path):
    version = write_generation(store, pool)
    assert datasets.get_dataset_config_names(str(version.folder)) == ["pseudo_labels", "errors"]
    assert datasets.get_dataset_default_config_name(str(version.folder)) == "pseudo_labels"


def test_a_shard_without_readable_images_is_an_empty_table(store, pool):
    version = write_generation(store, pool, rows_per_shard=1)
    files = sorted((version.folder / "pseudo_labels").iterdir())
    assert [pq.read_metadata(file).num_rows for file in files] == [1, 1, 1, 0, 1, 1]
    edition = balance(store, version, BalanceSettings(per_class=2))
    assert edition.manifest.counts.labeled == 5


def test_an_edition_carries_the_soft_labels_unchanged_in_pool_order(store, pool, tmp_path):
    version = write_generation(store, pool)
    edition = balance(store, version, BalanceSettings(min_confidence=0.5, per_class=5))
    table = read(edition, "balanced", tmp_path).with_format("numpy")[:]
    assert table["id"].tolist() == [0, 1, 2, 4]
    assert table["key"].tolist() == [pool.key(row) for row in (0, 1, 2, 4)]
    assert table["image_hash"].tolist() == [image_hash(pool.read(row)) for row in (0, 1, 2, 4)]
    assert table["label"].tolist() == [0, 1, 0, 1]
    np.testing.assert_array_equal(table["confidence"], PROBS[[0, 1, 2, 4]].max(axis=1))
    np.testing.assert_array_equal(np.stack(table["probs"]).astype(np.float16), PROBS[[0, 1, 2, 4]].astype(np.float16))
    assert table["duplicates"].tolist() == [1, 1, 1, 1]
    assert sorted(table["copies"][[0, 2]].tolist()) == sorted(table["copies"][[1, 3]].tolist()) == [2, 3]


def test_an_edition_loads_with_the_types_of_the_design(store, pool, tmp_path):
    edition = balance(store, write_generation(store, pool), BalanceSettings(per_class=5))
    assert edition.ref == "flowers@gen-1.1"
    assert read(edition, "balanced", tmp_path).features == {
        **SOFT_LABEL_COLUMNS,
        "duplicates": Value("int32"),
        "copies": Value("int32"),
    }


def test_polars_reads_an_edition_with_arrays_of_float16(store, pool):
    edition = balance(store, write_generation(store, pool), BalanceSettings(per_class=5))
    table = pl.scan_parquet(edition.folder / "balanced" / "*.parquet").collect()
    assert table.schema["probs"] == pl.Array(pl.Float16, 3)
    assert (table["copies"].dtype, table["copies"].sum()) == (pl.Int32, 10)


def test_an_edition_counts_what_happened_to_every_image(store, pool, tmp_path):
    (tmp_path / "pool" / "3-copy.png").write_bytes(pool.read(0))
    pool = open_source(pool.location)
    version = write_generation(store, pool, np.vstack([PROBS, [[0.1, 0.1, 0.8]]]).astype(np.float32))
    edition = balance(store, version, BalanceSettings(min_confidence=0.5, per_class=1))
    assert edition.manifest.counts.model_dump() == {
        "labeled": 6,
        "dropped": {
            "held_out": 0,
            "near_held_out": 0,
            "duplicate": 1,
            "excluded_class": 0,
            "not_sampled": 0,
            "low_confidence": 1,
            "outside_range": 0,
            "over_quota": 2,
        },
        "kept": 4,
        "unique": 2,
        "copies": 2,
        "quota": 1,
        "classes_without_images": ["cat"],
        "per_class": {
            "ant": {"labeled": 3, "unique": 1, "copies": 1},
            "bee": {"labeled": 2, "unique": 1, "copies": 1},
            "cat": {"labeled": 1, "unique": 0, "copies": 0},
        },
        "teacher_parameters": 7,
        "top_k": None,
        "near_duplicates": {"compared": 0, "unreadable": 0},
    }
    assert pl.read_parquet(edition.folder / "balanced" / "*.parquet")["duplicates"].to_list() == [2, 1]


def test_a_class_without_images_is_named_on_the_card(store, pool):
    edition = balance(store, write_generation(store, pool), BalanceSettings(per_class=2))
    assert "**classes without any image:** cat" in (edition.folder / "README.md").read_text()


def test_images_of_an_excluded_source_are_held_out(store, pool, tmp_path):
    test = tmp_path / "test"
    test.mkdir()
    (test / "same.png").write_bytes(pool.read(0))
    (test / "broken.png").write_bytes(b"")
    version = write_generation(store, pool)
    edition = balance(store, version, BalanceSettings(per_class=2), exclude=[open_source(str(test))])
    assert 0 not in pl.read_parquet(edition.folder / "balanced" / "*.parquet")["id"]
    assert edition.manifest.counts.dropped["held_out"] == 1
    assert balance(store, version, BalanceSettings(per_class=2)).ref == "flowers@gen-1.2"


def test_the_order_of_excluded_sources_does_not_matter(store, pool, tmp_path):
    version = write_generation(store, pool)
    held_out = [open_source(str(write_pool(tmp_path / name, 1, 1, first))) for name, first in (("one", 0), ("two", 1))]
    assert balance(store, version, BalanceSettings(), exclude=held_out) == balance(
        store, version, BalanceSettings(), exclude=held_out[::-1]
    )


def test_an_excluded_source_is_the_same_with_and_without_its_labels(store, pool, tmp_path):
    version, folder = write_generation(store, pool), str(write_class_folders(tmp_path / "test", NAMES, 1))
    first = balance(store, version, BalanceSettings(), exclude=[open_source(folder)])
    assert balance(store, version, BalanceSettings(), exclude=[open_source(folder, labeled=True)]) == first


def test_a_pool_that_is_excluded_whole_is_an_error_that_fits_recipes_too(store, pool):
    version = write_generation(store, pool)
    with pytest.raises(NstError, match=r"\(5 excluded\); choose a pool with images that are not excluded, or exclude fewer$"):
        balance(store, version, BalanceSettings(), exclude=[pool])


def test_nothing_left_is_an_error_that_counts_the_reasons(store, pool):
    version = write_generation(store, pool)
    message = r"^flowers@gen-1: 0 images are left of 5 \(5 low confidence\); lower `min_confidence`, or train a better teacher"
    with pytest.raises(NstError, match=rf"{message}; the highest confidence is 0\.9$"):
        balance(store, version, BalanceSettings(min_confidence=0.95))
    assert ([version.ref for version in store.versions()], store.unfinished()) == (["flowers@gen-1"], [])


def test_balancing_twice_gives_the_same_version_with_the_same_bytes(store, pool, tmp_path):
    version = write_generation(store, pool)
    first = balance(store, version, BalanceSettings(per_class=4))
    before = {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()}
    assert balance(store, version, BalanceSettings(per_class=4)) == first
    assert before == {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()}
    elsewhere = Store(tmp_path / "elsewhere")
    again = balance(elsewhere, write_generation(elsewhere, pool), BalanceSettings(per_class=4))
    assert again.manifest.digest == first.manifest.digest
    assert again.manifest.files == first.manifest.files


def test_how_the_labels_fall_into_shards_changes_nothing(tmp_path, pool):
    tables = []
    for rows_per_shard in (1, 2, 6):
        store = Store(tmp_path / str(rows_per_shard))
        edition = balance(store, write_generation(store, pool, rows_per_shard=rows_per_shard), BalanceSettings(per_class=5))
        tables.append(pl.read_parquet(edition.folder / "balanced" / "*.parquet"))
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])


def test_a_large_edition_falls_into_shards_in_pool_order(store, pool, monkeypatch):
    monkeypatch.setattr("nst_data.selection.editions.SHARD_BYTES", 2 * 3 * 2)  # two rows of three classes
    edition = balance(store, write_generation(store, pool), BalanceSettings(per_class=5))
    files = sorted((edition.folder / "balanced").iterdir())
    assert [file.name for file in files] == [f"train-0000{shard}-of-00003.parquet" for shard in range(3)]
    assert [pl.read_parquet(file)["id"].to_list() for file in files] == [[0, 1], [2, 4], [5]]


def test_other_settings_make_the_next_edition_and_a_taken_number_is_an_error(store, pool):
    version = write_generation(store, pool)
    assert [balance(store, version, BalanceSettings(seed=seed)).ref for seed in (0, 1)] == ["flowers@gen-1.1", "flowers@gen-1.2"]
    with pytest.raises(NstError, match=r"flowers@gen-1\.1.*\(seed: 0 instead of 2\).*`store\.remove\('flowers@gen-1\.1'\)`"):
        balance(store, version, BalanceSettings(seed=2), edition=1)


def test_an_edition_names_its_parent_and_pool_by_digest(store, pool):
    version = write_generation(store, pool)
    inputs = balance(store, version, BalanceSettings()).manifest.request.inputs
    assert (inputs.generation.ref, inputs.generation.digest) == ("flowers@gen-1", version.manifest.digest)
    assert (inputs.pool.ref, inputs.pool.digest) == (pool.location, pool.fingerprint)


def test_a_shard_whose_note_is_missing_is_written_again_with_the_same_bytes(tmp_path, pool):
    for name in ("build", "work"):
        (tmp_path / name).mkdir()
    shards, schema = Shards(tmp_path / "build", tmp_path / "work", ShardPlan(len(pool), 2)), pseudo_labels_schema(NAMES)
    write_shard(shards, 0, pool, PROBS, schema)
    assert shards.missing() == [1, 2]
    (note,) = (tmp_path / "work" / "shards").iterdir()
    before = json.loads(note.read_text())
    note.unlink()
    assert shards.missing() == [0, 1, 2]
    write_shard(shards, 0, pool, PROBS, schema)
    assert json.loads(note.read_text()) == before
