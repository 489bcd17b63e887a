"""`nst label --noise`: the teacher noised, as Table 6 compares."""

import numpy as np
import polars as pl
import pytest
from conftest import TINY

from nst_data.errors import NstError, UsageError
from nst_data.sources import open_source
from nst_train.labeling.label import label
from nst_train.settings import LabelRunSettings, LabelSettings, RunSettings, TrainSettings
from nst_train.training.train import train

NOISE = {"magnitude": 9, "operations": 2, "dropout": 0.3, "stochastic_depth": 0.3}


@pytest.fixture(scope="module")
def teacher(tiny_store):
    store, labeled, _ = tiny_store
    settings = TrainSettings(**TINY | {"noise": NOISE, "epochs": 10})
    return train(store, "noised", open_source(str(labeled), labeled=True), settings, run=RunSettings(workers=0, decode_threads=1)).ref


def labeled(tiny_store, teacher, corpus, threads=1, batch_size=4, **settings):
    store, _, pool = tiny_store
    settings = LabelSettings(batch_size=batch_size, rows_per_shard=6, **settings)
    version = label(store, corpus, teacher, open_source(str(pool)), settings, run=LabelRunSettings(decode_threads=threads))
    table = pl.read_parquet(version.folder / "pseudo_labels" / "*.parquet")
    return version, np.stack(table["probs"].to_numpy()).astype(np.float32)


def test_a_noised_teacher_labels_otherwise_and_the_same_at_each_run(tiny_store, teacher):
    _, clean = labeled(tiny_store, teacher, "clean")
    version, noised = labeled(tiny_store, teacher, "noised-1", noise=True)
    again, same = labeled(tiny_store, teacher, "noised-2", noise=True, threads=3)
    assert np.abs(clean - noised).max(axis=1).min() > 0
    assert np.array_equal(noised, same)
    assert version.manifest.files == again.manifest.files
    _, other = labeled(tiny_store, teacher, "noised-3", noise=True, seed=1)
    assert np.abs(noised - other).max() > 0.01


def test_an_images_noise_depends_on_its_row_and_not_on_its_batch(tiny_store, teacher):
    _, small = labeled(tiny_store, teacher, "batch-4", noise=True)
    _, large = labeled(tiny_store, teacher, "batch-6", noise=True, batch_size=6)
    np.testing.assert_allclose(small, large, atol=2e-3)


def test_without_noise_the_seed_is_no_part_of_what_was_asked_for(tiny_store, teacher):
    first, _ = labeled(tiny_store, teacher, "seedless")
    second, _ = labeled(tiny_store, teacher, "seedless", seed=5)
    assert second.ref == first.ref


def test_a_calibrated_teacher_is_not_noised(tiny_store, teacher):
    store, folder, pool = tiny_store
    with pytest.raises(UsageError, match="`calibration` and `noise`: calibration needs an un-noised teacher"):
        label(store, "both", teacher, open_source(str(pool)), LabelSettings(noise=True), calibration=open_source(str(folder), labeled=True))


def test_a_teacher_that_has_no_blocks_to_skip_cannot_be_noised_by_the_papers_noise(tiny_store, tmp_path):
    from test_teachers import write_transformer

    store, _, pool = tiny_store
    with pytest.raises(
        NstError, match=r"`noise`: this teacher cannot be noised \(Logits: has no blocks that can be skipped\); label without"
    ):
        label(store, "vit", write_transformer(tmp_path), open_source(str(pool)), LabelSettings(noise=True, batch_size=2))
    assert not [one for one in store.unfinished() if str(one).startswith("vit")]
