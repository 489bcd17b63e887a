import json

import numpy as np
import pytest
from PIL import Image, ImageColor

from nst_data.cards.curves import CURVES, METRICS_LOG, write_curves

pytestmark = pytest.mark.usefixtures("drawn")
BLUE, ORANGE, GREEN = "#1f6fb4", "#d9731a", "#2c8f3c"


def write_log(folder, pseudo=True, validation=True):
    rows = []
    for step in range(20, 401, 20):
        loss = {"loss_labeled": 100 / step, "loss_pseudo": 150 / step if pseudo else None}
        rows.append({"step": step, "epoch": step / 10, "learning_rate": 0.1, **loss, "images_per_second": 9.0})
        if validation:
            rows.append({"step": step, "epoch": step / 10, "validation_top1": step / 500, "validation_nll": 1.0})
    (folder / METRICS_LOG).write_text("".join(json.dumps(row) + "\n" for row in rows))


def pixels_of(picture, color, tolerance=12):
    """(row, column) of the pixels in a color."""
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    return np.argwhere(abs(pixels - ImageColor.getrgb(color)).max(axis=2) <= tolerance)


def drawn(folder, **changes):
    write_log(folder, **changes)
    assert write_curves(folder, "net@gen-0", 35.0 if changes.get("validation", True) else None)
    picture = Image.open(folder / CURVES)
    assert picture.format == "PNG"
    return picture


def test_each_curve_has_a_color_and_falls_or_rises_as_its_numbers_do(tmp_path):
    picture = drawn(tmp_path)
    width, height = picture.size
    for color, falls in ((BLUE, True), (ORANGE, True), (GREEN, False)):
        rows, columns = pixels_of(picture, color).T
        curve = rows > 0.15 * height  # below the names of the losses
        left, right = (rows[curve & (abs(columns / width - place) < 0.04)] for place in (0.4, 0.7))
        assert (np.median(left) < np.median(right)) == falls, color  # rows count from the top


@pytest.mark.parametrize(("changes", "color"), [({"pseudo": False}, ORANGE), ({"validation": False}, GREEN)])
def test_what_a_training_has_not_is_not_drawn(tmp_path, changes, color):
    assert len(pixels_of(drawn(tmp_path), color)) > 500
    assert len(pixels_of(drawn(tmp_path, **changes), color)) == 0


def test_the_best_weights_are_marked_at_their_epoch(tmp_path):
    picture = drawn(tmp_path)
    columns, counts = np.unique(pixels_of(picture, GREEN)[:, 1], return_counts=True)
    marked = columns[counts.argmax()]  # a line from top to bottom
    left, right = pixels_of(picture, BLUE)[:, 1].min(), columns.max()
    assert 0.75 < (marked - left) / (right - left) < 0.95  # epoch 34 of 2 to 40


def test_one_row_is_enough_and_none_draws_nothing(tmp_path):
    assert not write_curves(tmp_path, "net@gen-0")
    (tmp_path / METRICS_LOG).write_text('{"step": 1, "epoch": 0.5, "learning_rate": 0.0, "loss_labeled": 0.0, "loss_pseudo": null}\n')
    assert write_curves(tmp_path, "net@gen-0")
    assert len(pixels_of(Image.open(tmp_path / CURVES), BLUE)) > 100
