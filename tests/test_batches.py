from collections import Counter

import numpy as np
import polars as pl
import pytest
import torch
from conftest import TINY, write_class_folders, write_pool
from torch.overrides import TorchFunctionMode

from nst_data.errors import NstError
from nst_data.images import decode
from nst_data.sources import open_source
from nst_train.batches.batches import readable_images, training_batches
from nst_train.batches.entries import open_edition
from nst_train.settings import TrainSettings
from nst_train.transforms.noise import training_transforms

CONFIG = {"input_size": (3, 16, 16), "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3}
CLASSES = ["ant", "bee", "cat"]


def batches(tiny_store, tmp_path, steps, workers=0, process=0, processes=1, classes=CLASSES, **changes):
    store, labeled, pool = tiny_store
    settings = TrainSettings(**TINY | {"ratio": 2} | changes)
    images = readable_images(open_source(str(labeled), labeled=True), {})
    pseudo = open_edition(store.open("tiny@gen-1.1"), open_source(str(pool)), classes, tmp_path)
    transform = training_transforms(settings, CONFIG)
    return list(training_batches(settings, images, pseudo, transform, steps, workers, process, processes))


def are_equal(left, right):
    def tensors(batch):
        return {"images": batch.images, "labels": batch.labels, **batch.pseudo}

    return all(torch.equal(one, tensors(right)[name]) for name, one in tensors(left).items())


def test_a_batch_holds_labeled_images_and_ratio_times_as_many_pseudo_labeled_ones(tiny_store, tmp_path):
    (batch,) = batches(tiny_store, tmp_path, range(1))
    assert batch.images.shape == (4 + 8, 3, 16, 16)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)  # as images are decoded, and as networks compute fastest
    assert batch.labels.shape == (4,)
    assert {name: column.shape for name, column in batch.pseudo.items()} == {"probs": (8, 3)}


@pytest.mark.parametrize(
    "changes",
    [
        {"noise": {"magnitude": 9}},
        {"noise": {"augmentation": "rand-m9-mstd0.5-inc1"}},
        {"noise": {"magnitude": 5, "cutout": 4}, "crop_padding": 2, "crop_scale_min": 0.08},
    ],
)
def test_batches_are_the_same_with_and_without_workers(tiny_store, tmp_path, changes):
    alone, with_workers = (batches(tiny_store, tmp_path, range(4), workers=workers, **changes) for workers in (0, 2))
    assert all(are_equal(left, right) for left, right in zip(alone, with_workers, strict=True))


def test_the_parts_of_a_batch_are_joined_on_the_device(tiny_store, tmp_path):
    """Not before: what is joined in memory does not lie in pinned memory, and is copied at once and not beside the step."""
    (batch,) = batches(tiny_store, tmp_path, range(1))
    parts = list(batch.split(2, torch.device("cpu")))
    assert torch.equal(parts[1].images, batch.images[[2, 3, 8, 9, 10, 11]])
    assert (parts[1].labels.tolist(), parts[1].pseudo["probs"].tolist()) == (batch.labels[2:].tolist(), batch.pseudo["probs"][4:].tolist())
    with DevicesOfJoined() as joined:
        there = list(batch.split(2, torch.device("meta")))
    assert {one.images.device.type for one in there} == joined.devices == {"meta"}


class DevicesOfJoined(TorchFunctionMode):
    """Notes on which devices `torch.cat` joins tensors."""

    def __init__(self):
        super().__init__()
        self.devices = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.cat:
            self.devices |= {one.device.type for one in args[0]}
        return function(*args, **(kwargs or {}))


def test_going_on_at_a_step_gives_the_batches_that_would_have_come(tiny_store, tmp_path):
    whole, rest = batches(tiny_store, tmp_path, range(5)), batches(tiny_store, tmp_path, range(3, 5))
    assert are_equal(whole[3], rest[0])
    assert are_equal(whole[4], rest[1])


def test_two_processes_share_the_batch_of_one(tiny_store, tmp_path):
    (one,) = batches(tiny_store, tmp_path, range(2, 3))
    halves = [batches(tiny_store, tmp_path, range(2, 3), process=process, processes=2)[0] for process in (0, 1)]
    assert torch.equal(torch.cat([half.labels for half in halves]), one.labels)
    assert torch.equal(torch.cat([half.pseudo["probs"] for half in halves]), one.pseudo["probs"])
    assert torch.equal(torch.cat([half.images[:2] for half in halves]), one.images[:4])
    assert torch.equal(torch.cat([half.images[2:] for half in halves]), one.images[4:])


def test_an_epoch_of_an_edition_shows_each_image_as_often_as_it_has_copies(tiny_store, tmp_path):
    store, _, pool = tiny_store
    rows = pl.read_parquet(store.open("tiny@gen-1.1").folder / "balanced" / "*.parquet").to_dicts()
    entries = sum(row["copies"] for row in rows)
    assert max(row["copies"] for row in rows) > 1
    still = {"noise": {"operations": 0}, "crop_scale_min": 1.0, "batch_size": 1, "ratio": entries}
    (epoch,) = batches(tiny_store, tmp_path, range(1), **still)
    shown = Counter(image.numpy().tobytes() for image in epoch.images[1:])
    pixels = {row["key"]: np.asarray(decode((pool / row["key"]).read_bytes())).transpose(2, 0, 1) for row in rows}
    assert shown == Counter({np.ascontiguousarray(pixels[row["key"]]).tobytes(): row["copies"] for row in rows})


def test_soft_labels_follow_the_order_of_the_labeled_sets_classes(tiny_store, tmp_path):
    (straight,) = batches(tiny_store, tmp_path / "a", range(1))
    (turned,) = batches(tiny_store, tmp_path / "b", range(1), classes=["cat", "ant", "bee"])
    assert torch.equal(turned.pseudo["probs"], straight.pseudo["probs"][:, [2, 0, 1]])


def test_another_copy_of_the_pool_is_found_by_key(tiny_store, tmp_path):
    store, _, _ = tiny_store
    copy = write_pool(tmp_path / "copy", 3, 5)
    (copy / "0-000.png").write_bytes((copy / "0-100.png").read_bytes())  # one image more, in front: row numbers moved
    pseudo = open_edition(store.open("tiny@gen-1.1"), open_source(str(copy)), CLASSES, tmp_path / "work")
    original = open_edition(store.open("tiny@gen-1.1"), open_source(str(tiny_store[2])), CLASSES, tmp_path / "other")
    assert (pseudo.rows == original.rows + 1).all()


def test_another_pool_is_refused_before_any_work(tiny_store, tmp_path):
    store, _, _ = tiny_store
    other = write_pool(tmp_path / "other", 3, 5)
    for path in other.iterdir():
        path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(NstError, match=r"other: lacks 15 of 15 images.*'0-100\.png'.*`pool`"):
        open_edition(store.open("tiny@gen-1.1"), open_source(str(other)), CLASSES, tmp_path)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_changed_stops_training_with_its_name(tiny_store, tmp_path, workers):
    store, labeled, _ = tiny_store
    pool = write_pool(tmp_path / "pool", 3, 5)
    settings = TrainSettings(**TINY | {"ratio": 8})
    images = readable_images(open_source(str(labeled), labeled=True), {})
    pseudo = open_edition(store.open("tiny@gen-1.1"), open_source(str(pool)), CLASSES, tmp_path / "work")
    changed = pool / pseudo.source.key(int(pseudo.rows[-1]))
    changed.write_bytes(changed.read_bytes()[::-1])
    with pytest.raises(NstError, match=rf"^[^\n]*{changed.name}' has different content [^\n]*`pool`[^\n]*$"):
        list(training_batches(settings, images, pseudo, training_transforms(settings, CONFIG), range(4), workers))


def test_classes_other_than_the_labeled_sets_are_refused(tiny_store, tmp_path):
    with pytest.raises(NstError, match=r"^tiny@gen-1\.1.*3 classes \(ant, bee, cat\), found 3 \(ant, bee, dog\).*`class_names` FILE"):
        batches(tiny_store, tmp_path, range(1), classes=["ant", "bee", "dog"])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_labeled_image_that_vanished_stops_training_with_its_name(tiny_store, tmp_path, workers):
    labeled = write_class_folders(tmp_path / "labeled", CLASSES, 1)
    images = readable_images(open_source(str(labeled), labeled=True), {})
    (labeled / "bee" / "000.png").unlink()
    settings = TrainSettings(**TINY)
    with pytest.raises(NstError, match=r"^[^\n]*'bee/000.png' can no longer be read [^\n]*$"):
        list(training_batches(settings, images, None, training_transforms(settings, CONFIG), range(2), workers))
