"""`nst label --noise`: the teacher noised, as Table 6 compares."""

import numpy as np
import polars as pl
import pytest
import torch
from conftest import TINY

from nst_data.errors import NstError, UsageError
from nst_data.sources import open_source
from nst_train.classifiers.noised_teacher import TeacherNoise
from nst_train.classifiers.teachers import load_classifier
from nst_train.labeling.label import label
from nst_train.networks.models import training_data_config
from nst_train.noise_settings import Noise
from nst_train.seeds import derive_seed
from nst_train.settings import LabelRunSettings, LabelSettings, RunSettings, TrainSettings
from nst_train.training.train import train
from nst_train.transforms.noise import Normalize, training_transform
from nst_train.transforms.preprocessing import decode_pixels

NOISE = {"magnitude": 9, "operations": 2, "dropout": 0.3, "stochastic_depth": 0.3}


@pytest.fixture(scope="module")
def teacher(tiny_store):
    store, labeled, _ = tiny_store
    settings = TrainSettings(**TINY | {"noise": NOISE, "epochs": 10})
    return train(store, "noised", open_source(str(labeled), labeled=True), settings, run=RunSettings(workers=0, decode_threads=1)).ref


def label_pool(tiny_store, teacher, corpus, threads=1, batch_size=4, **settings):
    store, _, pool = tiny_store
    settings = LabelSettings(batch_size=batch_size, rows_per_shard=6, **settings)
    version = label(store, corpus, teacher, open_source(str(pool)), settings, run=LabelRunSettings(decode_threads=threads))
    table = pl.read_parquet(version.folder / "pseudo_labels" / "*.parquet")
    return version, np.stack(table["probs"].to_numpy()).astype(np.float32)


def test_a_noised_teacher_labels_otherwise_and_the_same_at_each_run(tiny_store, teacher):
    _, clean = label_pool(tiny_store, teacher, "clean")
    version, noised = label_pool(tiny_store, teacher, "noised-1", noise=True)
    again, same = label_pool(tiny_store, teacher, "noised-2", noise=True, threads=3)
    assert np.abs(clean - noised).max(axis=1).min() > 0
    assert np.array_equal(noised, same)
    assert version.manifest.files == again.manifest.files
    _, other = label_pool(tiny_store, teacher, "noised-3", noise=True, seed=1)
    assert np.abs(noised - other).max() > 0.01


def test_an_images_noise_depends_on_its_row_and_not_on_its_batch(tiny_store, teacher):
    _, small = label_pool(tiny_store, teacher, "batch-4", noise=True)
    _, large = label_pool(tiny_store, teacher, "batch-6", noise=True, batch_size=6)
    np.testing.assert_allclose(small, large, atol=2e-3)


@pytest.mark.parametrize("crop", [{}, {"crop_padding": 2, "noise": {"operations": 2, "cutout": 4}}, {"transform": "evaluation"}])
def test_the_noised_teacher_sees_what_it_saw_in_training(tiny_store, crop):
    """Crop, flip and RandAugment of training, in its order, at its size: labels are those of the network on such images, by hand."""
    store, folder, pool = tiny_store
    only_images = {"noise": {"dropout": 0, "stochastic_depth": 0} | crop.get("noise", {"magnitude": 9})}
    settings, name = (
        TrainSettings(**TINY | {"epochs": 1, "flip": 0.5, "crop_scale_min": 0.08} | crop | only_images),
        f"seen-{'-'.join(crop)}".rstrip("-"),
    )
    run = RunSettings(workers=0, decode_threads=1)
    teacher = train(store, name, open_source(str(folder), labeled=True), settings, run=run).ref
    _, noised = label_pool(tiny_store, teacher, f"of-{name}", noise=True, seed=3)
    network = load_classifier(teacher, store)[0].network
    transform, normalize = (made(network, settings) for made in (transform_of, normalize_of))
    images = [transform(row.read(), derive_seed(3, "label noise", row.id)) for row in open_source(str(pool)).rows(range(len(noised)))]
    with torch.inference_mode():
        expected = network(normalize(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))).softmax(1)
    np.testing.assert_allclose(noised, expected.numpy(), atol=2e-3)


def transform_of(network, settings):
    return training_transform(settings, training_data_config(network, settings))


def normalize_of(network, settings):
    return Normalize(training_data_config(network, settings), torch.device("cpu"))


def test_labels_of_an_earlier_nst_are_noised_as_they_were(tiny_store, teacher):
    """By RandAugment on the whole image, before the resize and crop of evaluation."""
    store, _, _ = tiny_store
    before = {"noise": True, "seed": 4, "noise_transform": "evaluation"}
    _, noised = label_pool(tiny_store, teacher, "as-before", **before)
    _, today = label_pool(tiny_store, teacher, "as-today", noise=True, seed=4)
    assert np.abs(noised - today).max() > 0.001
    assert "noise_transform" not in LabelSettings(**before).for_request()
    (request,) = (one.manifest.request for one in store.versions("as-before"))
    assert request.full_settings["noise_transform"] == "evaluation"


def test_a_transformers_teacher_is_noised_at_its_own_size(tmp_path, labeled_folder, tiny_store):
    from test_teachers import write_transformer

    store, _, pool = tiny_store
    classifier = load_classifier(write_transformer(tmp_path), store)[0]
    noise = TeacherNoise(TrainSettings(model="x", flip=1, crop_scale_min=1, noise=Noise.none()), 0, "training")
    row = next(iter(open_source(str(pool)).rows(range(1))))
    pixels = decode_pixels(row.read())
    seen = noise.prepare(classifier.preprocessing, row.read(), pixels, 0)
    assert seen.shape == classifier.preprocessing.prepare(pixels).shape
    np.testing.assert_allclose(seen.flip(-1), classifier.preprocessing.prepare(pixels), atol=0.1)


def test_without_noise_the_seed_is_no_part_of_what_was_asked_for(tiny_store, teacher):
    first, _ = label_pool(tiny_store, teacher, "seedless")
    second, _ = label_pool(tiny_store, teacher, "seedless", seed=5)
    assert second.ref == first.ref


def test_a_calibrated_teacher_is_not_noised(tiny_store, teacher):
    store, folder, pool = tiny_store
    with pytest.raises(UsageError, match="`calibration` requires a teacher without `noise`"):
        label(store, "both", teacher, open_source(str(pool)), LabelSettings(noise=True), calibration=open_source(str(folder), labeled=True))


def test_a_teacher_that_has_no_blocks_to_skip_cannot_be_noised_by_the_papers_noise(tiny_store, tmp_path):
    from test_teachers import write_transformer

    store, _, pool = tiny_store
    with pytest.raises(NstError, match=r"`noise`:.*\(ViTForImageClassification:.*skipped\); label without"):
        label(store, "vit", write_transformer(tmp_path), open_source(str(pool)), LabelSettings(noise=True, batch_size=2))
    assert not [one for one in store.unfinished() if str(one).startswith("vit")]
