"""Temperatures: given, and fitted on labeled images."""

import math

import numpy as np
import pytest
import torch
from conftest import picture, write_class_folders, write_pool
from labels import RUN, SETTINGS, table_rows, write_teacher
from PIL import Image
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from nst_data.errors import NstError, UsageError
from nst_data.sources import open_source
from nst_data.store.store import Store
from nst_train.classifiers.teachers import load_classifier
from nst_train.labeling.label import extend, label
from nst_train.settings import LabelSettings

NAMES = ["ant", "bee", "cat"]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def teacher(tmp_path):
    return write_teacher(tmp_path / "teacher", ["cat", "ant", "bee"])


@pytest.fixture
def labeled(tmp_path, teacher):
    """Labeled images, two of three in the class that the teacher finds most probable, the others in the next."""
    files = sorted(write_class_folders(tmp_path / "drawn", NAMES, 12, first=300).glob("*/*"))
    for number, (file, order) in enumerate(zip(files, (-logits(teacher, files)).argsort(axis=1), strict=True)):
        folder = tmp_path / "labeled" / ["cat", "ant", "bee"][order[int(number % 3 == 0)]]
        folder.mkdir(parents=True, exist_ok=True)
        file.rename(folder / f"{number}.png")
    return tmp_path / "labeled"


@pytest.fixture
def pool(tmp_path):
    return open_source(str(write_pool(tmp_path / "pool", 3, 3)))


def logits(teacher, files):
    """By hand: the whole image, scaled to [-1, 1] as timm's test networks want it, through the network."""
    classifier, _ = load_classifier(teacher, Store("nowhere"))
    pixels = torch.from_numpy(np.stack([np.asarray(Image.open(file)) for file in files])).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (classifier.preprocessing.mean, classifier.preprocessing.std))
    with torch.no_grad():
        return classifier.network((pixels - mean) / std).double().numpy()


def reference(teacher, files, names=("cat", "ant", "bee")):
    """(logits, label indices, scipy's temperature) of labeled files."""
    found = logits(teacher, files)
    labels = np.array([names.index(file.parent.name) for file in files])

    def cost(log_temperature):
        return -log_softmax(found / math.exp(log_temperature), axis=1)[np.arange(len(labels)), labels].mean()

    fitted = minimize_scalar(cost, bounds=(math.log(1 / 64), math.log(64)), method="bounded", options={"xatol": 1e-9})
    return found, labels, math.exp(fitted.x)


def probs(version):
    return np.array([row["probs"] for row in table_rows(version)])


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_labels_are_the_softmax_of_the_logits_over_the_temperature(store, teacher, pool, temperature):
    settings = LabelSettings(**SETTINGS.model_dump() | {"temperature": temperature})
    version = label(store, "bugs", teacher, pool, settings, run=RUN)
    expected = softmax(logits(teacher, sorted(store.root.parent.glob("pool/*"))) / temperature, axis=1)
    np.testing.assert_allclose(probs(version), expected, atol=1e-3)
    np.testing.assert_allclose([row["confidence"] for row in table_rows(version)], expected.max(axis=1), atol=1e-5)
    assert version.manifest.request.settings["temperature"] == temperature
    assert version.manifest.counts.calibration is None


def test_the_fitted_temperature_is_scipys_and_the_labels_have_it(store, teacher, pool, labeled):
    found, labels, temperature = reference(teacher, sorted(labeled.glob("*/*")))
    assert 1 / 32 < temperature < 32
    version = label(store, "bugs", teacher, pool, SETTINGS, run=RUN, calibration=open_source(str(labeled), labeled=True))
    calibration = version.manifest.counts.calibration
    assert calibration.temperature == pytest.approx(temperature, rel=1e-4)
    assert calibration.images == 36
    for when, divisor in (("before", 1), ("after", temperature)):
        confidences = softmax(found / divisor, axis=1)
        right = confidences.argmax(axis=1) == labels
        bins = np.ceil(confidences.max(axis=1) * 15).astype(int)
        error = sum(abs((confidences.max(axis=1) - right)[bins == one].sum()) for one in set(bins)) / len(labels)
        assert getattr(calibration, f"ece_{when}") == pytest.approx(error, abs=1e-4)
        cost = -log_softmax(found / divisor, axis=1)[np.arange(36), labels].mean()
        assert getattr(calibration, f"nll_{when}") == pytest.approx(cost, abs=1e-4)
    expected = softmax(logits(teacher, sorted(store.root.parent.glob("pool/*"))) / temperature, axis=1)
    np.testing.assert_allclose(probs(version), expected, atol=1e-3)
    card = (version.folder / "README.md").read_text()
    assert f"{calibration.temperature:.4g}" in card
    assert f"{100 * calibration.ece_before:.2f}% before, {100 * calibration.ece_after:.2f}% after" in card
    assert version.manifest.request.inputs.calibration.digest == open_source(str(labeled), labeled=True).fingerprint


def test_an_ensembles_temperature_is_fitted_on_the_log_of_its_mean(store, teacher, pool, labeled, tmp_path):
    second = write_teacher(tmp_path / "second", ["cat", "ant", "bee"], seed=5)
    files = sorted(labeled.glob("*/*"))
    mean = np.log(np.mean([softmax(logits(one, files), axis=1) for one in (teacher, second)], axis=0))
    labels = [["cat", "ant", "bee"].index(file.parent.name) for file in files]

    def cost(log_temperature):
        return -log_softmax(mean / math.exp(log_temperature), axis=1)[np.arange(36), labels].mean()

    fitted = minimize_scalar(cost, bounds=(-4, 4), method="bounded")
    version = label(store, "bugs", [teacher, second], pool, SETTINGS, run=RUN, calibration=open_source(str(labeled), labeled=True))
    assert version.manifest.counts.calibration.temperature == pytest.approx(math.exp(fitted.x), rel=1e-3)


def test_an_unreadable_image_is_left_out_of_the_fit(store, teacher, pool, labeled):
    next(labeled.glob("*/1.png")).with_name("aaa.png").write_bytes(b"text")
    version = label(store, "bugs", teacher, pool, SETTINGS, run=RUN, calibration=open_source(str(labeled), labeled=True))
    next(labeled.glob("*/aaa.png")).unlink()
    _, _, temperature = reference(teacher, sorted(labeled.glob("*/*")))
    assert version.manifest.counts.calibration.temperature == pytest.approx(temperature, rel=1e-4)
    assert version.manifest.counts.calibration.images == 36


def test_calibrating_on_nothing_readable_is_one_error_and_leaves_nothing(store, teacher, pool, tmp_path):
    for name in NAMES:
        (tmp_path / "broken" / name).mkdir(parents=True)
        (tmp_path / "broken" / name / "0.png").write_bytes(b"text")
    with pytest.raises(NstError, match=r"broken: none of its 3 images.*`calibration`"):
        label(store, "bugs", teacher, pool, SETTINGS, run=RUN, calibration=open_source(str(tmp_path / "broken"), labeled=True))
    assert store.unfinished() == []


def test_images_of_some_of_the_classes_calibrate_and_of_others_are_refused(store, teacher, pool, tmp_path):
    some = write_class_folders(tmp_path / "some", ["ant", "cat"], 6, first=300)
    others = write_class_folders(tmp_path / "others", ["ant", "dog"], 6, first=300)
    version = label(store, "bugs", teacher, pool, SETTINGS, run=RUN, calibration=open_source(str(some), labeled=True))
    assert version.manifest.counts.calibration.temperature == pytest.approx(reference(teacher, sorted(some.glob("*/*")))[2], rel=1e-4)
    with pytest.raises(NstError, match=r"others:.*found 2 \(ant, dog\).*: dog\..*`class_names` FILE"):
        label(store, "others", teacher, pool, SETTINGS, run=RUN, calibration=open_source(str(others), labeled=True))
    assert store.unfinished() == []


@pytest.mark.parametrize("place", ["there", "copied"])
def test_images_that_the_teacher_was_trained_on_are_refused(tiny_store, tmp_path, place):
    store, trained_on, pool = tiny_store
    source = write_class_folders(tmp_path / "copied", NAMES, 4) if place == "copied" else trained_on
    calibration = open_source(str(source), labeled=True)
    with pytest.raises(UsageError, match=r"`calibration`.*: tiny-teacher@gen-0.*trained on these images"):
        label(store, "refused", "tiny-teacher", open_source(str(pool)), SETTINGS, run=RUN, calibration=calibration)
    assert not any("refused" in ref for ref in store.unfinished())


def test_a_temperature_beside_calibration_is_refused(store, teacher, pool, labeled):
    settings = LabelSettings(**SETTINGS.model_dump() | {"temperature": 2.0})
    with pytest.raises(UsageError, match="`calibration` fits the temperature; remove `temperature`"):
        label(store, "bugs", teacher, pool, settings, run=RUN, calibration=open_source(str(labeled), labeled=True))


def test_other_calibration_images_make_another_generation_and_the_same_ones_none(store, teacher, pool, labeled, tmp_path):
    other = write_class_folders(tmp_path / "other", NAMES, 5, first=400)
    sources = [open_source(str(folder), labeled=True) for folder in (labeled, other, labeled)]
    found = [label(store, "bugs", teacher, pool, SETTINGS, run=RUN, calibration=source).ref for source in sources]
    assert found == ["bugs@gen-1", "bugs@gen-2", "bugs@gen-1"]


def test_a_grown_pool_is_labeled_at_the_temperature_that_was_fitted(store, teacher, pool, labeled, tmp_path):
    version = label(store, "bugs", teacher, pool, SETTINGS, run=RUN, calibration=open_source(str(labeled), labeled=True))
    picture(1, 900).save(tmp_path / "pool" / "1-900.png")
    grown = extend(store, version, open_source(pool.location), run=RUN)
    assert grown.manifest.counts.calibration == version.manifest.counts.calibration
    temperature = version.manifest.counts.calibration.temperature
    expected = softmax(logits(teacher, sorted(tmp_path.glob("pool/*"))) / temperature, axis=1)
    np.testing.assert_allclose(probs(grown), expected, atol=1e-3)
