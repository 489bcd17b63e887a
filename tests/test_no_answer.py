"""Teachers whose logits are no numbers, for some images or for all."""

import re

import numpy as np
import pytest
import torch
from conftest import write_class_folders
from labels import RUN, SETTINGS, table_rows
from nst_cli.main import app
from PIL import Image
from torch import nn
from typer.testing import CliRunner
from wording import mentions

from nst_data.errors import NstError
from nst_data.selection.editions import balance
from nst_data.settings import BalanceSettings
from nst_data.sources import open_source
from nst_data.store.store import Store
from nst_data.tables.shards import NO_PREDICTION
from nst_train.evaluation.evaluate import evaluate
from nst_train.labeling import labeling
from nst_train.labeling.label import extend, label, label_like
from nst_train.networks.models import create_network, save_teacher
from nst_train.networks.own_networks import register_network
from nst_train.settings import LabelRunSettings, LabelSettings, TrainSettings

NAMES = ["ant", "bee", "cat"]
ALL = BalanceSettings(min_confidence=0, per_class=20)


class Overflows(nn.Module):
    """A network whose logits are infinite where an image is brighter than `limit`, on average over its pixels in [-1, 1]."""

    def __init__(self, classes, limit):
        super().__init__()
        self.limit = limit
        self.layer = nn.Linear(3, classes)

    def forward(self, images):
        means = images.mean(dim=(2, 3))
        return self.layer(means) + torch.where(means.mean(dim=1, keepdim=True) > self.limit, torch.inf, 0.0)


register_network("overflows_on_white", lambda classes: Overflows(classes, 0.9), image_size=16)
register_network("overflows_on_color", lambda classes: Overflows(classes, 0.0), image_size=16)  # not on gray, which the probe shows
register_network("overflows", lambda classes: Overflows(classes, 0.1), image_size=16)


def teacher(folder, name):
    folder.mkdir()
    torch.manual_seed(0)
    settings = TrainSettings(model=name, image_size=16, noise={"stochastic_depth": 0})
    save_teacher(create_network(settings, 3), folder, NAMES, settings)
    return f"local-dir:{folder}"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def white(tmp_path):
    return teacher(tmp_path / "white", "overflows_on_white")


def write_images(folder, levels):
    folder.mkdir(exist_ok=True)
    for level in levels:
        Image.fromarray(np.full((16, 16, 3), level, np.uint8)).save(folder / f"{level:03}.png")
    return folder


@pytest.fixture
def pool(tmp_path):
    """Seven dark images, and the last one white."""
    return write_images(tmp_path / "pool", [*range(0, 70, 10), 255])


def label_pool(store, pool, name, corpus="bugs", **settings):
    return label(store, corpus, name, open_source(str(pool)), LabelSettings(**SETTINGS.model_dump() | settings), run=RUN)


@pytest.fixture
def as_before(monkeypatch):
    """Rows without a number are kept, as earlier versions did."""
    monkeypatch.setattr("nst_train.labeling.answers.has_valid_output", lambda log_probs: torch.ones(len(log_probs), dtype=torch.bool))
    yield
    monkeypatch.undo()


def test_an_image_without_a_finite_answer_goes_to_errors_and_the_others_keep_their_bytes(store, pool, white, tmp_path):
    version = label_pool(store, pool, white)
    assert table_rows(version, "errors") == [{"id": 7, "key": "255.png", "reason": NO_PREDICTION}]
    counts = version.manifest.counts
    assert (counts.labeled, counts.errors, counts.no_answer) == (7, 1, 1)
    assert "0 could not be read, 1 got a non-finite output from the teacher" in (version.folder / "README.md").read_text()
    (pool / "255.png").unlink()
    without = label_pool(store, pool, white, "dark")
    assert "no_answer" not in without.manifest.counts.model_dump()
    names = [name for name in version.manifest.files if name.startswith("pseudo_labels/")]
    assert [version.manifest.files[name] for name in names] == [without.manifest.files[name] for name in names]


def test_with_the_most_probable_classes_alone_it_is_the_same(store, pool, white):
    assert [row["reason"] for row in table_rows(label_pool(store, pool, white, top_k=2), "errors")] == [NO_PREDICTION]


def test_an_ensemble_has_no_answer_where_one_of_its_members_has_none(store, pool, white, tmp_path):
    version = label_pool(store, pool, [teacher(tmp_path / "dark", "overflows_on_color"), white])
    assert [row["key"] for row in table_rows(version, "errors")] == ["255.png"]


def test_retrying_unread_images_does_not_label_it_again(store, pool, white, monkeypatch):
    monkeypatch.setattr(labeling.Shards, "reopen", lambda *_: pytest.fail("made again"))
    run = LabelRunSettings(decode_threads=2, retry_errors=True)
    version = label(store, "bugs", white, open_source(str(pool)), SETTINGS, run=run)
    assert version.manifest.counts.no_answer == 1


@pytest.mark.parametrize(("images", "says"), [(5, "any of 5 images"), (90, "any of the first 64 images")])
def test_a_teacher_without_any_finite_answer_stops_early_and_leaves_nothing(store, tmp_path, images, says):
    name = teacher(tmp_path / "teacher", "overflows")
    pool = write_images(tmp_path / "pool", range(160, 160 + images))
    with pytest.raises(NstError, match=rf"bugs@gen-1:.*not finite for {says}:.*fp32; use another teacher"):
        label_pool(store, pool, name)
    assert store.unfinished() == []


def test_it_goes_on_where_the_first_images_alone_have_no_answer_and_a_shard_is_done(store, tmp_path, white):
    pool = write_images(tmp_path / "pool", [*range(12), *range(250, 256)])
    version = label_pool(store, pool, white, rows_per_shard=6)
    assert (version.manifest.counts.labeled, version.manifest.counts.no_answer) == (12, 6)


def test_balance_drops_rows_without_a_number_of_an_earlier_generation_and_counts_them(store, pool, white, as_before, monkeypatch):
    version = label_pool(store, pool, white)
    monkeypatch.undo()
    assert np.isnan(table_rows(version)[7]["confidence"])
    edition = balance(store, version, ALL)
    assert edition.manifest.counts.dropped["no_answer"] == 1
    assert edition.manifest.counts.unique == 7
    extended = extend(store, version, open_source(str(write_images(pool, [75]))), run=RUN)
    assert [row["key"] for row in table_rows(extended, "errors")] == ["255.png"]
    assert "no_answer" not in balance(store, extended, ALL).manifest.counts.dropped
    again = label_like(store, edition, white, open_source(str(pool)), SETTINGS, run=RUN)
    assert again.manifest.counts.unique == 7
    result = CliRunner().invoke(app, ["show", version.ref, "--store", str(store.root)])
    assert mentions(result.output, "1 of bugs@gen-1 … confidence … no number in [0, 1]")


def test_a_generation_without_any_number_says_what_to_do(store, tmp_path, as_before):
    pool = write_images(tmp_path / "pool", range(200, 205))
    version = label_pool(store, pool, teacher(tmp_path / "teacher", "overflows"))
    with pytest.raises(NstError, match=r"bugs@gen-1: 0 images.*5 \(5 no answer\).*another teacher.*`precision` fp32"):
        balance(store, version, ALL)


def test_images_to_calibrate_on_without_an_answer_are_left_out_and_counted(store, pool, white, tmp_path):
    images = write_class_folders(tmp_path / "calibration", NAMES, 2)
    Image.new("RGB", (16, 16), "white").save(images / "ant" / "white.png")
    source = open_source(str(images), labeled=True)
    fitted = label(store, "bugs", white, open_source(str(pool)), SETTINGS, run=RUN, calibration=source).manifest.counts.calibration
    assert (fitted.images, fitted.no_answer) == (6, 1)


def test_accuracy_is_not_told_over_the_other_images_alone(store, white, tmp_path):
    images = write_class_folders(tmp_path / "images", NAMES, 1)
    Image.new("RGB", (16, 16), "white").save(images / "ant" / "white.png")
    with pytest.raises(NstError, match=r"not finite for 1 of 4 images.*retrain"):
        evaluate(store, white, open_source(str(images), labeled=True))


def test_the_command_counts_them(store, pool, white):
    words = ["label", str(pool), "--teacher", white, "--corpus", "bugs", "--store", str(store.root), "--batch-size", "4"]
    output = CliRunner().invoke(app, words).output
    assert "7 of 8 images labeled, 0 could not be read, 1 got non-finite outputs from the teacher" in re.sub(r"\s+", " ", output)
