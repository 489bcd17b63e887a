"""Soft labels of the K most probable classes: labeled, and read back."""

import numpy as np
import polars as pl
import pytest
from conftest import write_pool
from datasets import load_dataset
from labels import RUN, SETTINGS, table_rows, write_teacher

from nst_data.errors import NstError
from nst_data.settings import DEFAULT_TOP_K
from nst_data.sources import open_source
from nst_data.store.store import Store
from nst_train.labeling.label import label
from nst_train.settings import LabelSettings

NAMES = ["ant", "bee", "cat", "dog", "eel"]
SOFT = {"probs", "top_labels", "top_probs"}


def label_pool(top, teacher, corpus, **settings):
    pool = open_source(str(write_pool(top / "pool", 3, 3)))
    return label(Store(top / "store"), corpus, teacher, pool, LabelSettings(**SETTINGS.model_dump() | settings), run=RUN)


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """(whole, of two classes, of all five) soft labels of one pool."""
    top = tmp_path_factory.mktemp("top-k")
    teacher = write_teacher(top / "teacher", NAMES)
    return [label_pool(top, teacher, f"top-{k}", top_k=k) for k in (None, 2, 5)]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Labels of 1,001 and of 1,000 classes, whose soft labels nobody asked to be shorter."""
    top = tmp_path_factory.mktemp("many")
    teachers = {count: write_teacher(top / f"teacher-{count}", [str(index) for index in range(count)]) for count in (1001, 1000)}
    return [label_pool(top, teacher, f"of-{count}") for count, teacher in teachers.items()]


def test_whole_and_shortened_labels_agree_where_they_overlap(versions):
    whole = table_rows(versions[0])
    for version, k in zip(versions[1:], (2, 5), strict=True):
        for one, shortened in zip(whole, table_rows(version), strict=True):
            probs = np.array(one["probs"])
            assert {name: one[name] for name in ("id", "key", "image_hash", "label", "confidence", "phash")} == {
                name: shortened[name] for name in ("id", "key", "image_hash", "label", "confidence", "phash")
            }
            assert shortened["top_labels"][0] == one["label"]
            assert shortened["top_probs"] == sorted(probs.tolist(), reverse=True)[:k]
            assert probs[shortened["top_labels"]].tolist() == shortened["top_probs"]


def test_above_1000_classes_the_default_is_a_hundred(many):
    above, below = many
    assert above.manifest.counts.top_k == DEFAULT_TOP_K
    assert below.manifest.counts.top_k is None
    for row in table_rows(above):
        assert len(row["top_labels"]) == len(set(row["top_labels"])) == DEFAULT_TOP_K
        assert row["top_probs"] == sorted(row["top_probs"], reverse=True)
    assert {len(row["probs"]) for row in table_rows(below)} == {1000}


def test_datasets_and_polars_read_distributions(versions, many, tmp_path):
    for version in (*versions, *many):
        dataset = load_dataset(str(version.folder), "pseudo_labels", split="train", cache_dir=str(tmp_path))
        frame = pl.read_parquet(version.folder / "pseudo_labels" / "*.parquet")
        name = "probs" if version.manifest.counts.top_k is None else "top_probs"
        kept = np.stack(dataset.with_format("numpy")[name]).astype(np.float64)
        np.testing.assert_array_equal(kept, frame[name].to_numpy())
        left = 1 - kept.sum(axis=1)
        rest = len(version.manifest.class_names) - kept.shape[1]
        assert (np.abs(left) < 2e-3).all() if rest == 0 else (left > -2e-3).all()
        assert dataset.features["label"].names == version.manifest.class_names


def test_the_card_names_the_columns_that_are_there(versions, many):
    for version in (*versions, *many):
        columns = (version.folder / "README.md").read_text().partition("Columns: ")[2].partition("## Make")[0]
        there = set(pl.read_parquet_schema(next((version.folder / "pseudo_labels").iterdir())))
        assert {name for name in SOFT if f"`{name}`" in columns} == there & SOFT


def test_generations_of_one_number_are_not_mixed_up_in_the_cache_of_datasets(versions, tmp_path):
    found = [load_dataset(str(version.folder), "pseudo_labels", split="train", cache_dir=str(tmp_path)) for version in versions]
    assert len({dataset.cache_files[0]["filename"] for dataset in found}) == 3
    assert [len(dataset[0].get("top_labels", ())) for dataset in found] == [0, 2, 5]


def test_more_than_there_are_classes_is_refused_and_leaves_nothing(tmp_path):
    teacher = write_teacher(tmp_path / "teacher", NAMES)
    with pytest.raises(NstError, match=r"top-k 6:.*1 to 5.*`top_k`"):
        label_pool(tmp_path, teacher, "bugs", top_k=6)
    assert Store(tmp_path / "store").unfinished() == []
