"""Soft labels with a value for each class, and those of the k most probable ones: from a generation to a trained student."""

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import TINY, write_class_folders, write_pool
from datasets import List, Value, load_dataset
from safetensors.torch import load_file

from nst_data.cards import cards
from nst_data.errors import NstError
from nst_data.images import image_hash
from nst_data.selection.editions import balance
from nst_data.settings import BalanceSettings
from nst_data.sources import open_source
from nst_data.store.files import hash_file
from nst_data.store.inputs import Input
from nst_data.store.manifest import GenerationRequest
from nst_data.store.store import Store
from nst_data.tables.schema import balanced_schema, pseudo_labels_schema, soft_label_columns, top_k_of
from nst_train.batches.entries import open_edition
from nst_train.settings import RunSettings, TrainSettings
from nst_train.training.train import train

NAMES = ["cat", "ant", "eel", "bee", "dog"]  # the labeled folders have them sorted
PROBS = np.array(
    [
        [0.9, 0.04, 0.03, 0.02, 0.01],
        [0.1, 0.7, 0.1, 0.05, 0.05],
        [0.0, 0.15, 0.65, 0.1, 0.1],
        [0.1, 0.1, 0.05, 0.35, 0.4],
        [0.25, 0.3, 0.2, 0.15, 0.1],
    ],
    dtype=np.float16,
)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def pool(tmp_path):
    return open_source(str(write_pool(tmp_path / "pool", 5, 1)))


def top(probs, k):
    """The k most probable classes of each row and their probabilities, the most probable first."""
    order = np.argsort(-probs, axis=1, kind="stable")[:, :k].astype(np.int32)
    return {"top_labels": order, "top_probs": np.take_along_axis(probs, order, axis=1)}


def densified(k):
    """What `PROBS` are after all but the k most probable classes of each row were forgotten."""
    columns = top(PROBS.astype(np.float64), k)
    rest = 1 - columns["top_probs"].sum(axis=1, keepdims=True)
    probs = np.repeat(rest / (len(NAMES) - k), len(NAMES), axis=1)
    np.put_along_axis(probs, columns["top_labels"], columns["top_probs"], axis=1)
    return probs.astype(np.float16)


def write_generation(store, corpus, pool, soft, top_k=None, rows_per_shard=2):
    """A sealed generation with these soft-label columns, shape (rows, classes) or (rows, k)."""
    inputs = {"teacher": Input(ref="net@gen-0", digest="weights"), "pool": Input(ref=pool.location, digest=pool.fingerprint)}
    staging = store.find_or_stage(GenerationRequest(settings={"top_k": top_k}, inputs=inputs), corpus)
    hashes = [image_hash(pool.read(row)) for row in range(len(pool))]
    columns = {
        "id": np.arange(len(pool)),
        "key": pa.array([pool.key(row) for row in range(len(pool))]),
        "image_hash": pa.array(hashes),
        "label": PROBS.argmax(axis=1),
        "confidence": PROBS.max(axis=1).astype(np.float32),
        "phash": np.zeros(len(pool), np.int64),
    } | {name: pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1]) for name, rows in soft.items()}
    schema = pseudo_labels_schema(NAMES, top_k)
    table = pa.table([columns[name] for name in schema.names], schema=schema)
    files = {}
    (staging.build / "pseudo_labels").mkdir(parents=True)
    for shard, start in enumerate(range(0, len(pool), rows_per_shard)):
        name = f"pseudo_labels/train-{shard:05d}-of-00003.parquet"
        pq.write_table(table.slice(start, rows_per_shard), staging.build / name)
        files[name] = hash_file(staging.build / name)
    counts = {"pool": 5, "labeled": 5, "errors": 0, "per_class": dict.fromkeys(NAMES, 1), "teacher_parameters": 7, "top_k": top_k}
    manifest = staging.build_manifest(files, NAMES, counts)
    cards.write_dataset_card(staging, manifest)
    return staging.seal(manifest)


def edition_of(store, pool, k=None, probs=PROBS, corpus="bugs", per_class=2):
    """An edition of all five images, with a value for each class or the k most probable ones."""
    generation = write_generation(store, corpus, pool, {"probs": probs} if k is None else top(probs, k), k)
    return balance(store, generation, BalanceSettings(min_confidence=0, per_class=per_class))


def read(version, table, tmp_path):
    return load_dataset(str(version.folder), table, split="train", cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("schema", [pseudo_labels_schema, balanced_schema])
def test_a_schema_says_which_soft_labels_its_table_has(schema):
    whole, shortened = schema(NAMES), schema(NAMES, 2)
    assert (top_k_of(whole), soft_label_columns(whole)) == (None, ("probs",))
    assert (top_k_of(shortened), soft_label_columns(shortened)) == (2, ("top_labels", "top_probs"))
    assert set(whole.names) ^ set(shortened.names) == {"probs", "top_labels", "top_probs"}


@pytest.mark.parametrize("top_k", [0, 6])
def test_more_classes_than_there_are_cannot_be_asked_for(top_k):
    with pytest.raises(NstError, match=rf"^top-k {top_k}:.*1 to 5.*`top_k`$"):
        pseudo_labels_schema(NAMES, top_k)


@pytest.mark.parametrize("k", [None, 2])
def test_datasets_and_polars_read_what_a_generation_and_its_edition_hold(store, pool, tmp_path, k):
    edition = edition_of(store, pool, k)
    generation = store.open("bugs@gen-1")
    features, types = {"probs": List(Value("float16"), length=5)}, {"probs": pl.Array(pl.Float16, 5)}
    if k:
        features = {"top_labels": List(Value("int32"), length=2), "top_probs": List(Value("float16"), length=2)}
        types = {"top_labels": pl.Array(pl.Int32, 2), "top_probs": pl.Array(pl.Float16, 2)}
    for version, table in ((generation, "pseudo_labels"), (edition, "balanced")):
        dataset = read(version, table, tmp_path)
        frame = pl.scan_parquet(version.folder / table / "*.parquet").collect()
        assert {name: feature for name, feature in dataset.features.items() if "probs" in name or "top" in name} == features
        assert {name: dtype for name, dtype in frame.schema.items() if "probs" in name or "top" in name} == types
        for name, rows in (top(PROBS, k) if k else {"probs": PROBS}).items():
            np.testing.assert_array_equal(np.stack(dataset.with_format("numpy")[name]), rows)
            np.testing.assert_array_equal(frame[name].to_numpy(), rows)


def test_an_edition_counts_the_classes_of_its_soft_labels(store, pool):
    assert edition_of(store, pool, 2).manifest.counts.top_k == 2
    assert edition_of(store, pool, corpus="whole").manifest.counts.top_k is None


def test_the_selection_is_the_same_whatever_the_soft_labels(store, pool):
    whole, shortened = (pl.read_parquet(edition_of(store, pool, k, corpus=f"k{k}").folder / "balanced" / "*.parquet") for k in (None, 2))
    assert whole.drop("probs").equals(shortened.drop("top_labels", "top_probs"))


@pytest.mark.parametrize(("k", "row_bytes"), [(None, 2 * 5), (2, (4 + 2) * 2)])
def test_shards_are_as_large_as_their_soft_labels_ask_for(store, pool, monkeypatch, k, row_bytes):
    monkeypatch.setattr("nst_data.selection.editions.SHARD_BYTES", 2 * row_bytes)
    files = sorted((edition_of(store, pool, k).folder / "balanced").iterdir())
    assert [pl.read_parquet(file)["id"].to_list() for file in files] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize(
    ("k", "there", "missing"),
    [
        (None, "`probs` (float16 soft label, one value per class; renormalize when you read it)", "top_"),
        (2, "`top_labels` (soft label: the most probable classes, 2 of 5, the most probable first),\n`top_probs` (their", "`probs`"),
    ],
)
def test_cards_describe_the_soft_labels_that_are_there(store, pool, k, there, missing):
    edition = edition_of(store, pool, k)
    for version in (store.open("bugs@gen-1"), edition):
        columns = (version.folder / "README.md").read_text().partition("## Made from")[0]
        assert there in columns
        assert missing not in columns


def open_with_pool(edition, pool, tmp_path, names=NAMES, hard=False):
    return open_edition(edition, pool, names, tmp_path, hard)


ALL = np.arange(5)


@pytest.mark.parametrize("k", [2, 5])
def test_soft_labels_of_k_classes_agree_with_whole_ones_on_those(store, pool, tmp_path, k):
    whole = open_with_pool(edition_of(store, pool, corpus="whole"), pool, tmp_path / "whole").targets_of(ALL)
    shortened = open_with_pool(edition_of(store, pool, k), pool, tmp_path / "shortened").targets_of(ALL)
    assert torch.equal(whole["probs"], torch.from_numpy(PROBS))
    assert torch.equal(shortened["top_probs"], whole["probs"].gather(1, shortened["top_labels"].long()))
    assert torch.equal(shortened["top_labels"], torch.from_numpy(top(PROBS, k)["top_labels"]))


TURNED = ["ant", "dog", "bee", "eel", "cat"]


def test_soft_labels_follow_the_labeled_sets_classes(store, pool, tmp_path):
    edition = edition_of(store, pool)
    moved = open_with_pool(edition, pool, tmp_path, TURNED).targets_of(ALL)
    assert torch.equal(moved["probs"], torch.from_numpy(PROBS)[:, [NAMES.index(name) for name in TURNED]])


@pytest.mark.parametrize("k", [1, 2, 4])
def test_soft_labels_of_k_classes_follow_the_labeled_sets_classes(store, pool, tmp_path, k):
    moved = open_with_pool(edition_of(store, pool, k), pool, tmp_path, TURNED).targets_of(ALL)
    expected = top(PROBS, k)
    assert [[TURNED[label] for label in row] for row in moved["top_labels"]] == [
        [NAMES[label] for label in row] for row in expected["top_labels"]
    ]
    assert torch.equal(moved["top_probs"], torch.from_numpy(expected["top_probs"]))


@pytest.mark.parametrize("k", [None, 2])
def test_hard_targets_are_the_stored_labels_and_not_the_largest_of_the_rounded_probabilities(store, pool, tmp_path, k):
    edition = edition_of(store, pool, k, PROBS[::-1])  # rounding that turned every order around
    moved = open_with_pool(edition, pool, tmp_path, TURNED, hard=True).targets_of(ALL)
    assert list(moved) == ["label"]
    assert [TURNED[label] for label in moved["label"]] == [NAMES[label] for label in PROBS.argmax(axis=1)]
    assert sorted(path.stem for path in tmp_path.glob("edition*/00000/*")) == ["ends", "hashes", "label", "rows"]


def test_what_lies_in_memory_grows_with_k_and_not_with_the_classes(store, pool, tmp_path):
    pseudo = open_with_pool(edition_of(store, pool, 2), pool, tmp_path)
    columns = {name: pseudo.shards.column(0, name) for name in pseudo.targets}
    assert {name: (column.shape, column.dtype.name) for name, column in columns.items()} == {
        "top_labels": ((5, 2), "int32"),
        "top_probs": ((5, 2), "float16"),
    }
    assert {name: column.shape for name, column in pseudo.targets_of(ALL[:3]).items()} == {"top_labels": (3, 2), "top_probs": (3, 2)}
    there = sorted(path.stem for path in tmp_path.glob("edition*/00000/*"))
    assert there == ["ends", "hashes", "rows", "top_labels", "top_probs"]


TRAINING = TINY | {"optimizer": "sgd", "epochs": 1, "ratio": 2}


def student(store, name, labeled, edition, pool, **changes):
    run = RunSettings(workers=0, decode_threads=1)
    version = train(store, name, labeled, TrainSettings(**TRAINING | changes), pseudo=edition, pool=pool, run=run)
    return load_file(version.folder / "model.safetensors")


def furthest(left, right):
    return max(float((left[name].double() - right[name].double()).abs().max()) for name in left)


def test_a_student_learns_from_k_classes_what_it_learns_from_their_densified_twin(store, pool, tmp_path):
    labeled = open_source(str(write_class_folders(tmp_path / "labeled", NAMES, 2)), labeled=True)
    shortened = student(store, "shortened", labeled, edition_of(store, pool, 2, corpus="shortened-labels"), pool)
    twin = student(store, "twin", labeled, edition_of(store, pool, None, densified(2), "twin-labels"), pool)
    other = student(store, "other", labeled, edition_of(store, pool, None, PROBS, "other-labels"), pool)
    assert 100 * furthest(shortened, twin) < furthest(shortened, other)


@pytest.mark.parametrize("k", [None, 2])
def test_a_student_on_hard_targets_is_one_on_soft_labels_of_a_small_temperature(store, pool, tmp_path, k):
    labeled, edition = open_source(str(write_class_folders(tmp_path / "labeled", NAMES, 2)), labeled=True), edition_of(store, pool, k)
    hard = student(store, "hard", labeled, edition, pool, hard=True, label_smoothing=0)
    cold = student(store, "cold", labeled, edition, pool, pseudo_temperature=1e-3, label_smoothing=0)
    soft = student(store, "soft", labeled, edition, pool, label_smoothing=0)
    assert 100 * furthest(hard, cold) < furthest(hard, soft)
