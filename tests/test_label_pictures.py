"""The pictures of labels, looked at through their pixels."""

import numpy as np
import pytest
from PIL import Image, ImageColor
from sealed_labels import label_row, seal_edition, seal_generation

from nst_data.cards.described import Described
from nst_data.cards.label_pictures import CLASSES, CONFIDENCE, write_pictures
from nst_data.store.store import Store

pytestmark = pytest.mark.usefixtures("drawn")
BLUE, ORANGE, GRAY = "#1f6fb4", "#d9731a", "#b8b8b8"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def rows(*confidences, label=0):
    return [label_row(index, index, label, confidence) for index, confidence in enumerate(confidences)]


def pixels_of(path, color, tolerance=6):
    """(row, column) of the pixels in a color, those of the legend below left out."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)[:-40]
    return np.argwhere(abs(pixels - ImageColor.getrgb(color)).max(axis=2) <= tolerance)


def described(version, per_class):
    """A version with other classes."""
    counts = version.manifest.counts.model_copy(update={"per_class": per_class})
    return Described(version.folder, version.folder, version.manifest.model_copy(update={"class_names": list(per_class), "counts": counts}))


def test_each_label_falls_into_the_bar_of_its_confidence(store):
    version = seal_generation(store, rows(0.05, 0.95, 0.95, 0.95))
    assert write_pictures(Described.from_version(version)) == [CONFIDENCE, CLASSES]
    places = pixels_of(version.folder / CONFIDENCE, BLUE)
    columns = np.unique(places[:, 1])
    gaps = np.flatnonzero(np.diff(columns) > 1)
    assert len(gaps) == 1  # two bars
    left, right = (places[np.isin(places[:, 1], part)] for part in np.split(columns, gaps + 1))
    heights = [np.ptp(part[:, 0]) + 1 for part in (left, right)]
    assert heights[1] / heights[0] == pytest.approx(3, rel=0.05)
    assert left[:, 1].mean() < 200 < 800 < right[:, 1].mean()


def test_an_edition_stands_beside_the_generation_it_was_drawn_from(store):
    generation = seal_generation(store, rows(0.15, 0.15, 0.85, 0.85))
    edition = seal_edition(store, generation, rows(0.85, 0.85))
    write_pictures(Described.from_version(edition))
    before, after = (pixels_of(edition.folder / CONFIDENCE, color) for color in (GRAY, BLUE))
    assert before[:, 1].min() < 300 < 700 < after[:, 1].min()
    assert len(pixels_of(edition.folder / CLASSES, ORANGE)) > len(pixels_of(edition.folder / CLASSES, BLUE)) > 100


def test_without_its_generation_an_edition_is_drawn_alone(store):
    generation = seal_generation(store, rows(0.15, 0.85))
    edition = seal_edition(store, generation, rows(0.85))
    (generation.folder / "nst.json").unlink()
    assert write_pictures(Described.from_version(edition)) == [CONFIDENCE, CLASSES]
    gray, blue = (len(pixels_of(edition.folder / CONFIDENCE, color)) for color in (GRAY, BLUE))
    assert 20 * gray < blue  # no more of it than the edges of letters have


@pytest.mark.parametrize("classes", [1, 2, 10, 1_000, 100_000])
def test_any_number_of_classes_fits_a_picture_of_the_same_width(store, classes):
    version = seal_generation(store, rows(0.5))
    counts = {f"class {index}": 10 * index for index in range(1, classes + 1)}
    write_pictures(described(version, counts))
    with Image.open(version.folder / CLASSES) as picture:
        width, height = picture.size
    assert width == 960
    assert 240 <= height <= 1000
    assert len(pixels_of(version.folder / CLASSES, BLUE)) > 500


def height_of_the_smaller(store, tmp_path, small, large):
    version = seal_generation(store, rows(0.5), name=f"x{large}")
    write_pictures(described(version, {"a": small, "b": large}))
    lengths = np.unique(pixels_of(version.folder / CLASSES, BLUE)[:, 0], return_counts=True)[1]
    return lengths.min() / lengths.max()


def test_classes_that_differ_much_are_drawn_on_a_logarithmic_scale(store, tmp_path):
    assert height_of_the_smaller(store, tmp_path, 10, 100) == pytest.approx(0.1, abs=0.03)
    assert height_of_the_smaller(store, tmp_path, 10, 1_000_000) > 0.04


def test_classes_that_differ_much_are_all_seen(store):
    version = seal_generation(store, rows(0.5))
    counts = {f"{index}": 10_000_000 // index**3 for index in range(1, 200)}
    write_pictures(described(version, counts))
    curve = pixels_of(version.folder / CLASSES, BLUE)
    assert len(np.unique(curve[:, 0])) > 200  # not a line at the bottom


@pytest.mark.parametrize("name", ["$x^2$", "$\\frac{", "<b>", "a\nb\x00\x1b[31m", "漢字 🙂", "x" * 1000, "", "_", "عربي", "\ud800"])
def test_no_name_breaks_a_picture(store, name):
    version = seal_generation(store, rows(0.5))
    assert write_pictures(described(version, {name: 3, "b": 1})) == [CONFIDENCE, CLASSES]


def test_a_teacher_and_an_empty_folder_have_no_pictures(store):
    version = seal_generation(store, rows(0.5))
    (version.folder / "pseudo_labels" / "train-00000-of-00001.parquet").unlink()
    assert write_pictures(Described.from_version(version)) == []
