"""The entries of both forms of an edition: each image as often as it has copies, and the same ones."""

import shutil
from collections import Counter

import numpy as np
import polars as pl
import pytest
import torch
from conftest import TINY, write_pool

from nst_data.errors import NstError
from nst_data.selection.editions import balance
from nst_data.self_contained.images import needs_pool
from nst_data.self_contained.shard_folders import ShardFolders
from nst_data.settings import BalanceSettings
from nst_data.sources import open_source
from nst_data.store.store import Store
from nst_train.batches.batches import readable_images, training_batches
from nst_train.batches.entries import PseudoLabeledImages, open_edition
from nst_train.batches.shard_order import ShardOrder
from nst_train.settings import TrainSettings
from nst_train.transforms.noise import training_transforms

CONFIG = {"input_size": (3, 16, 16), "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3}
CLASSES = ["ant", "bee", "cat"]
STILL = {"noise": {"operations": 0}, "crop_scale_min": 1.0}


@pytest.fixture(scope="module")
def forms(tiny_store, tmp_path_factory):
    """An edition by reference and the same one with its images, whose pool is gone: (by reference, with images, labeled, pool)."""
    store, labeled, pool = tiny_store
    top = tmp_path_factory.mktemp("forms")
    shutil.copytree(store.root, top / "store")
    shutil.copytree(pool, top / "pool")
    copy = Store(top / "store")
    settings = BalanceSettings(min_confidence=0, per_class=20, embed_images=True)
    edition = balance(copy, copy.open("tiny@gen-1"), settings, pool=open_source(str(top / "pool")))
    shutil.rmtree(top / "pool")
    return store.open("tiny@gen-1.1"), edition, labeled, pool


def batches(edition, labeled, work, steps, pool=None, workers=0, process=0, processes=1, **changes):
    settings = TrainSettings(**TINY | {"ratio": 2} | changes)
    images = readable_images(open_source(str(labeled), labeled=True), {})
    pseudo = open_edition(edition, pool, CLASSES, work)
    return list(training_batches(settings, images, pseudo, training_transforms(settings, CONFIG), steps, workers, process, processes))


def entries(batch):
    """How often each pseudo-labeled image came with its soft label."""
    images = batch.images[len(batch.labels) :]
    return Counter((image.numpy().tobytes(), soft.numpy().tobytes()) for image, soft in zip(images, batch.pseudo["probs"], strict=True))


def are_equal(left, right):
    return torch.equal(left.images, right.images) and torch.equal(left.pseudo["probs"], right.pseudo["probs"])


def test_both_forms_give_the_same_images_with_the_same_soft_labels_in_each_epoch(forms, tmp_path):
    by_reference, with_images, labeled, pool = forms
    assert (needs_pool(by_reference), needs_pool(with_images)) == (True, False)
    count = by_reference.manifest.counts.copies
    settings = STILL | {"batch_size": 1, "ratio": count}
    pooled = batches(by_reference, labeled, tmp_path / "a", range(2), open_source(str(pool)), **settings)
    alone = batches(with_images, labeled, tmp_path / "b", range(2), **settings)
    assert max(entries(pooled[0]).values()) > 1
    assert entries(pooled[0]) == entries(pooled[1]) == entries(alone[0]) == entries(alone[1])
    assert not are_equal(alone[0], alone[1])  # in another order


def test_batches_of_a_self_contained_edition_are_the_same_with_workers_and_from_any_step_on(forms, tmp_path):
    _, edition, labeled, _ = forms
    whole = batches(edition, labeled, tmp_path, range(12))
    assert len(whole) * 8 > edition.manifest.counts.copies
    rest = batches(edition, labeled, tmp_path, range(7, 12), workers=2)
    assert all(are_equal(left, right) for left, right in zip(whole[7:], rest, strict=True))


def test_two_processes_share_the_batch_of_a_self_contained_edition(forms, tmp_path):
    _, edition, labeled, _ = forms
    (one,) = batches(edition, labeled, tmp_path, range(2, 3))
    halves = [batches(edition, labeled, tmp_path, range(2, 3), process=process, processes=2)[0] for process in (0, 1)]
    assert torch.equal(torch.cat([half.images[2:] for half in halves]), one.images[4:])
    assert torch.equal(torch.cat([half.pseudo["probs"] for half in halves]), one.pseudo["probs"])


def edition_of(copies, folder, shards=1, seed=0):
    """An edition of images with so many copies each, in so many shards, of which only the order matters."""

    def prepare(place, shard):
        np.save(place / "ends.npy", np.cumsum(parts[shard]))

    parts = np.array_split(copies, shards)
    folders = ShardFolders(folder, prepare, np.cumsum([0, *map(len, parts)]))
    for shard in range(shards):
        folders.add(shard)
    return PseudoLabeledImages(None, range(len(copies)), ShardOrder(np.array([part.sum() for part in parts]), seed), folders, ())


@pytest.mark.parametrize("shards", [1, 6])
@pytest.mark.parametrize("copies", [[1] * 6, [3] + [1] * 9, [1] * 200, [1, 5, 2, 40] * 30])
def test_each_epoch_holds_each_image_as_often_as_it_has_copies(tmp_path, copies, shards):
    pseudo = edition_of(copies, tmp_path, shards)
    assert len(pseudo) == sum(copies)
    drawn = pseudo.images_at(np.arange(3 * len(pseudo))).reshape(3, -1)
    assert [np.bincount(epoch, minlength=len(copies)).tolist() for epoch in drawn] == [copies] * 3


@pytest.mark.parametrize("shards", [1, 6])
def test_a_position_has_the_same_image_whatever_else_is_asked_for(tmp_path, shards):
    pseudo = edition_of([1, 2, 3, 30] * 40, tmp_path, shards, seed=1)
    whole = pseudo.images_at(np.arange(3000))
    parts = [pseudo.images_at(np.arange(start, start + 7)) for start in range(0, 2996, 7)]
    assert np.concatenate(parts).tolist() == whole[:2996].tolist()


def test_copies_of_an_image_are_as_far_apart_as_chance_has_it(tmp_path):
    drawn = edition_of([4] * 2000, tmp_path).images_at(np.arange(8000))
    places = np.argsort(drawn, kind="stable").reshape(2000, 4)
    assert np.diff(np.sort(places)).mean() == pytest.approx(8000 / 5, rel=0.05)  # of four places drawn in a line
    near = (np.diff(np.sort(places)) < 8).mean()
    assert near < 3 * 8 * 4 / 8000


def test_an_image_of_a_self_contained_edition_that_was_changed_is_named(forms, tmp_path):
    _, edition, _, _ = forms
    copy = Store(tmp_path / "store")
    shutil.copytree(edition.folder.parents[2], copy.root)
    changed = copy.open(edition.ref)
    pseudo = open_edition(changed, None, CLASSES, tmp_path / "work")
    (file,) = (changed.folder / "balanced").iterdir()
    table = pl.read_parquet(file)
    encoded = table["image"].struct.field("bytes")[3]
    content = bytearray(file.read_bytes())
    content[content.index(encoded) + 20] ^= 1
    with file.open("r+b") as opened:  # the same file, as workers have it in memory
        opened.write(content)
    verify = rf"`store\.open\('{edition.ref}'\)\.verify\(\)` shows"
    with pytest.raises(NstError, match=rf"{edition.ref}: '{table['key'][3]}' differs [^\n]*; {verify}"):
        pseudo.read(3)


def test_a_pool_that_lacks_images_is_refused_with_their_number(forms, tmp_path, monkeypatch):
    by_reference, *_ = forms
    monkeypatch.setattr("nst_train.batches.columns.BATCH_ROWS", 4)
    other = write_pool(tmp_path / "other", 3, 5)
    keys = pl.read_parquet(by_reference.folder / "balanced" / "*.parquet")["key"].to_list()
    for key in keys[1:8:2]:
        (other / key).unlink()
    with pytest.raises(NstError, match=rf"^[^\n]*lacks 4 of {len(keys)} images.*'{keys[1]}'.*`pool`"):
        open_edition(by_reference, open_source(str(other)), CLASSES, tmp_path / "work")
    assert not list((tmp_path / "work").glob("edition*/*"))


def test_a_pool_with_other_images_under_some_names_is_refused_before_any_work(forms, tmp_path):
    by_reference, *_ = forms
    other = write_pool(tmp_path / "other", 3, 5)
    last = pl.read_parquet(by_reference.folder / "balanced" / "*.parquet")["key"][-1]
    (other / last).write_bytes((other / last).read_bytes() + b"more")
    with pytest.raises(NstError, match=rf"^[^\n]*lacks 1 of 15 images.*'{last}'.*`pool`"):
        open_edition(by_reference, open_source(str(other)), CLASSES, tmp_path / "work")


@pytest.mark.parametrize("rename", [lambda name: f"moved/{name}", lambda name: name.translate(str.maketrans("012", "120"))])
def test_another_copy_of_the_pool_is_read_by_the_hashes_of_its_images(forms, tmp_path, rename):
    """Under other names, or under names that other images of the pool had."""
    by_reference, _, _, pool = forms
    copy = tmp_path / "copy"
    (copy / "moved").mkdir(parents=True)
    for file in pool.iterdir():
        shutil.copy(file, copy / rename(file.name))
    (copy / "3-000.png").write_bytes(b"no image")
    there = open_edition(by_reference, open_source(str(pool)), CLASSES, tmp_path / "a")
    found = open_edition(by_reference, open_source(str(copy)), CLASSES, tmp_path / "b")
    assert [found.read(index) for index in range(15)] == [there.read(index) for index in range(15)]
