"""Images that hold other bytes at the same names and sizes are found when what was made of them is found again."""

import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pytest
from conftest import TINY, write_class_folders, write_pool
from datasets import Dataset
from labels import RUN, SETTINGS, write_teacher
from pictures import png, write_table, write_tar
from sealed_labels import label_row, seal_generation
from test_label_resumed import CountingProgress, label_until_stopped
from wording import mentions

from nst_data.errors import NstError
from nst_data.progress import Progress
from nst_data.selection.editions import balance
from nst_data.settings import BalanceSettings
from nst_data.sources import open_source
from nst_data.sources.changes import HASH, ReadRecord, Times, _select_known, newer_files
from nst_data.sources.hashing import image_hashes
from nst_data.store.store import Store
from nst_train.evaluation.evaluate import measure_and_record
from nst_train.labeling.label import label
from nst_train.settings import ReadSettings, RunSettings, TrainSettings
from nst_train.training.train import train

NAMES = ["ant", "bee", "cat"]
TRAINED = TrainSettings(**TINY | {"epochs": 0.5})


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def teacher(tmp_path):
    return write_teacher(tmp_path / "teacher", NAMES)


def change(path, byte=-1):
    """One byte of a file, the last; its times of writing are put back, as a copying program does."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def label_pool(store, teacher, pool, **more):
    told = CountingProgress()
    return label(store, "bugs", teacher, open_source(str(pool)), SETTINGS, run=RUN, progress=told, **more), told.lines


def test_an_image_that_changed_at_its_size_is_named_and_one_that_was_touched_is_not(store, teacher, tmp_path):
    pool = write_pool(tmp_path / "pool", 2, 3)
    first, _ = label_pool(store, teacher, pool)
    (pool / "1-100.png").touch()
    again, lines = label_pool(store, teacher, pool)
    assert again.ref == first.ref
    assert any(mentions(line, "1 file changed … bugs@gen-1 was made; comparing 1 image ") for line in lines)
    assert not any("changed" in line for line in label_pool(store, teacher, pool)[1])  # it was looked at, and is noted
    kept = (pool / "0-101.png").read_bytes()
    change(pool / "0-101.png")
    says = (
        r"pool: 1 image has different content than when bugs@gen-1 was made \('0-101.png'\); restore it, or `store\.remove\('bugs@gen-1'\)`"
    )
    with pytest.raises(NstError, match=says):
        label_pool(store, teacher, pool)
    assert label_pool(store, teacher, pool, generation=2)[0].ref == "bugs@gen-2"
    (pool / "0-101.png").write_bytes(kept)
    assert label_pool(store, teacher, pool, generation=1)[0].ref == "bugs@gen-1"


@pytest.mark.parametrize(("what", "those"), [("bugs@gen-1 was made", "bugs@gen-1"), ("these features were computed", "these features")])
def test_the_work_of_comparing_is_named_after_what_was_made(tmp_path, what, those):
    pool = write_pool(tmp_path / "pool", 1, 2)
    (tmp_path / "made").mkdir()
    source, reading, named = open_source(str(pool)), ReadRecord(tmp_path / "made", "source"), []
    reading.record_stamps(source)
    reading.store_hashes(np.array([bytes.fromhex(hashed) for _, hashed in image_hashes(source.rows(np.arange(2)))], HASH))
    (pool / "0-100.png").touch()

    class Named(Progress):
        def task(self, name, total, unit, done=0):
            named.append(name)
            return super().task(name, total, unit, done)

    reading.check_unchanged(open_source(str(pool)), reading.stored_hashes(), what, "go on", Named())
    assert named == [f"compare images with those of {those}"]


def test_files_that_change_places_are_found(store, teacher, tmp_path):
    pool = tmp_path / "pool"
    pool.mkdir()
    for name, byte in (("a", 1), ("b", 2)):
        shutil.copy(write_pool(tmp_path / "one", 1, 1) / "0-100.png", pool / f"{name}.png")
        with (pool / f"{name}.png").open("ab") as file:
            file.write(bytes([byte]))
    label_pool(store, teacher, pool)
    for old, new in (("a", "c"), ("b", "a"), ("c", "b")):
        (pool / f"{old}.png").rename(pool / f"{new}.png")
    with pytest.raises(NstError, match=r"pool: 2 images.*bugs@gen-1 was made \(.*'a\.png'\); restore.*`store\.remove\('bugs@gen-1'\)`"):
        label_pool(store, teacher, pool)


def test_a_labeling_under_way_does_not_mix_old_and_new_images(store, teacher, tmp_path):
    pool = write_pool(tmp_path / "pool", 2, 11)
    label_until_stopped(store, teacher, pool)
    done = store.stagings("bugs")[0]
    assert (done.work / "shards" / "00000.json").exists()
    change(pool / "1-110.png")  # not labeled yet
    change(pool / "0-100.png")
    with pytest.raises(NstError, match=r"pool: 1 image.*bugs@gen-1 was begun \('0-100\.png'\); restore.*`store\.remove\('bugs@gen-1'\)`"):
        label_pool(store, teacher, pool)
    assert (done.work / "shards" / "00000.json").exists()
    change(pool / "0-100.png")
    assert label_pool(store, teacher, pool)[0].manifest.counts.labeled == 22


def test_a_version_of_an_earlier_nst_is_compared_with_when_it_was_made(store, teacher, tmp_path):
    pool = write_pool(tmp_path / "pool", 1, 3)
    version, _ = label_pool(store, teacher, pool)
    shutil.rmtree(version.folder / "read")
    assert version.verify() == []
    change(pool / "0-101.png")
    path = version.folder / "nst.json"
    path.write_text(path.read_text().replace(version.manifest.created[:4], "2020", 1))
    with pytest.raises(NstError, match=r"1 image has different content"):
        label_pool(store, teacher, pool)


@pytest.mark.parametrize("kind", ["tar", "parquet", "beside"])
def test_images_in_tables_and_tar_files_are_compared_too(store, teacher, tmp_path, kind):
    files = sorted(write_pool(tmp_path / "files", 1, 3).iterdir())
    images = [file.read_bytes() for file in files]
    changed = [*images[:2], images[2][:-1] + b"\0"]
    named = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

    def write(images):
        if kind == "tar":
            return write_tar(tmp_path / "pool.tar", [(file.name, image) for file, image in zip(files, images, strict=True)])
        if kind == "parquet":
            return write_table(tmp_path / "pool.parquet", image=pa.array(images, pa.binary()))
        for file, image in zip(files, images, strict=True):
            file.write_bytes(image)
        rows = [{"bytes": None, "path": f"files/{file.name}"} for file in files]
        return write_table(tmp_path / "pool.parquet", image=pa.array(rows, named))

    size = os.path.getsize(pool := write(images))
    label_pool(store, teacher, pool)
    write(changed)
    assert os.path.getsize(pool) == size
    with pytest.raises(NstError, match=r"(pool\.\w+): 1 image.*bugs@gen-1 was made \('\1:(2|0-102\.png)'\); restore"):
        label_pool(store, teacher, pool)
    write(images)
    assert label_pool(store, teacher, pool)[0].ref == "bugs@gen-1"


@pytest.mark.parametrize("role", ["labeled", "validation"])
def test_labeled_and_validation_images_are_compared_when_a_training_is_found_again(store, tmp_path, role):
    folders = {one: write_class_folders(tmp_path / one, NAMES, 4) for one in ("labeled", "validation")}

    def trained(**more):
        sources = [open_source(str(folder), labeled=True) for folder in folders.values()]
        return train(store, "t", sources[0], TRAINED, validation=sources[1], run=RunSettings(workers=0, decode_threads=1), **more)

    first = trained()
    (folders[role] / "ant" / "000.png").touch()
    assert trained().ref == first.ref
    change(folders[role] / "bee" / "001.png")
    with pytest.raises(NstError, match=rf"{role}: 1 image.*t@gen-0 was made \('bee/001\.png'\); restore.*`store\.remove\('t@gen-0'\)`"):
        trained()


def test_images_that_a_temperature_was_fitted_on_are_compared_too(store, teacher, tmp_path):
    pool, fitted = write_pool(tmp_path / "pool", 1, 3), write_class_folders(tmp_path / "fitted", NAMES, 2)

    def calibrated():
        return label_pool(store, teacher, pool, calibration=open_source(str(fitted), labeled=True))[0].ref

    (fitted / "cat" / "001.png").write_bytes(b"text")
    assert calibrated() == "bugs@gen-1"
    (fitted / "ant" / "001.png").touch()
    assert calibrated() == "bugs@gen-1"
    change(fitted / "bee" / "000.png")
    with pytest.raises(
        NstError, match=r"fitted: 1 image.*bugs@gen-1 was made \('bee/000\.png'\); restore.*`store\.remove\('bugs@gen-1'\)`"
    ):
        calibrated()


def test_images_that_changed_are_measured_again_and_what_an_earlier_nst_measured_is_not(store, tmp_path):
    data = write_class_folders(tmp_path / "data", NAMES, 4)
    teacher = train(store, "t", open_source(str(data), labeled=True), TRAINED, run=RunSettings(workers=0, decode_threads=1))

    def measured(name="data"):
        return measure_and_record(store, teacher, open_source(str(data), labeled=True), name, ReadSettings(decode_threads=1))

    first = measured()
    notes = teacher.folder / "metrics.json"
    earlier = {"data": {**first, "modified": open_source(str(data)).modified, "nll": 0.5}}
    del earlier["data"]["stamp"]
    notes.write_text(json.dumps(earlier))
    assert measured()["nll"] == 0.5
    change(data / "bee" / "001.png", 0)  # no PNG by now
    assert measured("again")["errors"] == 1
    (data / "bee" / "001.png").touch()
    assert measured()["errors"] == 1


def test_image_files_that_a_saved_dataset_names_are_looked_at(store, teacher, tmp_path):
    saved = tmp_path / "saved"
    cells = [{"bytes": None, "path": f"images/0-10{row}.png"} for row in range(3)] + [{"bytes": png(0, 9), "path": "gone.png"}]
    Dataset.from_dict({"image": cells}).save_to_disk(saved)
    write_pool(saved / "images", 1, 3)
    label_pool(store, teacher, saved)
    (saved / "images" / "0-100.png").touch()
    assert any("comparing" in line for line in label_pool(store, teacher, saved)[1])
    assert not any("comparing" in line for line in label_pool(store, teacher, saved)[1])
    change(saved / "images" / "0-101.png")
    with pytest.raises(NstError, match=r"saved: 1 image.*bugs@gen-1 was made \('1'\); restore.*`store\.remove\('bugs@gen-1'\)`"):
        label_pool(store, teacher, saved)


def test_only_files_that_are_newer_are_newer(tmp_path):
    pool = write_pool(tmp_path / "pool", 1, 3)
    source = open_source(str(pool))
    stats = [path.stat() for path in pool.iterdir()]
    before = Times(max(stat.st_mtime_ns for stat in stats), max(stat.st_ctime_ns for stat in stats))
    change(pool / "0-101.png")
    assert newer_files(source, before).tolist() == [1]
    reading = ReadRecord(tmp_path, "pool")
    reading.check_unchanged(source, (), "it was made", "label anew", CountingProgress())  # nothing is noted: nothing is said


@pytest.mark.parametrize("note", ["{}", "[]", "no JSON", '{"location": "x", "written": "y"}', '{"location": "x", "written": 1}'])
def test_a_note_of_a_reading_that_no_nst_wrote_counts_as_none(store, teacher, tmp_path, note):
    pool = write_pool(tmp_path / "pool", 1, 3)
    version, _ = label_pool(store, teacher, pool)
    (version.folder / "read" / "pool.stamps.npy").unlink()
    (version.folder / "read" / "pool.json").write_text(note)
    again, _ = label_pool(store, teacher, pool)
    assert again.ref == version.ref


def test_held_out_images_are_compared_when_an_edition_is_found_again(store, tmp_path):
    generation = seal_generation(store, [label_row(0, png(0, 1), 0, 0.9)], counts={"teacher_parameters": 0, "top_k": None})
    test = write_pool(tmp_path / "test", 1, 3, first=500)

    def balanced():
        return balance(store, generation, BalanceSettings(min_confidence=0, per_class=2), exclude=[open_source(str(test))])

    first = balanced()
    (test / "0-500.png").touch()
    assert balanced().ref == first.ref
    change(test / "0-501.png")
    with pytest.raises(
        NstError, match=r"test: 1 image.*bugs@gen-1\.1 was made \('0-501\.png'\); restore.*`store\.remove\('bugs@gen-1\.1'\)`"
    ):
        balanced()


def test_another_pool_of_the_same_names_and_sizes_is_not_taken_for_the_first(store, teacher, tmp_path):
    copy, other = (write_pool(tmp_path / name, 1, 3) for name in ("copy", "other"))
    for path in other.iterdir():
        change(path)
    pool = write_pool(tmp_path / "pool", 1, 3)  # the newest of all
    assert label_pool(store, teacher, pool)[0].ref == label_pool(store, teacher, copy)[0].ref
    with pytest.raises(
        NstError, match=r"other: 3 images.*bugs@gen-1 was made \(.*'0-100\.png'\); restore.*`store\.remove\('bugs@gen-1'\)`"
    ):
        label_pool(store, teacher, other)


@pytest.mark.parametrize("swapped", ["link", "folder"])
def test_an_older_copy_in_the_same_place_is_not_taken_for_what_was_read(store, teacher, tmp_path, swapped):
    older, newer, pool = (tmp_path / name for name in ("older", "newer", "pool"))
    for path in write_pool(older, 1, 3).iterdir():
        change(path)
    write_pool(newer, 1, 3)
    for path in sorted(newer.iterdir()):
        shutil.copystat(older / path.name, path)

    def show(folder):
        if swapped == "link":
            pool.unlink(missing_ok=True)
            return pool.symlink_to(folder)
        if pool.exists():
            pool.rename(newer)
        return folder.rename(pool)

    show(newer)
    label_pool(store, teacher, pool)
    kept = ReadRecord(store.open("bugs").folder, "pool")
    show(older)
    with pytest.raises(NstError, match=r"pool: 3 images.*bugs@gen-1 was made \(.*'0-100\.png'\); restore.*`store\.remove\('bugs@gen-1'\)`"):
        label_pool(store, teacher, pool)
    about, stamps = (kept._about, kept._stamps)
    stamps.unlink()  # as an earlier nst noted it: by the newest times alone
    newest = max(max(path.stat().st_mtime_ns, path.stat().st_ctime_ns) for path in pool.iterdir())
    about.write_text(json.dumps({"written": newest, "changed": newest, "location": str(pool)}))
    assert label_pool(store, teacher, pool)[0].ref == "bugs@gen-1"


def test_only_images_that_were_read_are_counted_as_compared(store, teacher, tmp_path):
    pool = write_pool(tmp_path / "pool", 1, 3)
    (pool / "0-101.png").write_bytes(b"text")
    label_pool(store, teacher, pool)
    for path in pool.iterdir():
        path.touch()
    _, lines = label_pool(store, teacher, pool)
    assert any(mentions(line, "3 files changed … bugs@gen-1 was made; comparing 2 images") for line in lines)


def test_the_wanted_rows_are_found_in_pieces_with_gaps_and_none_twice():
    generator = np.random.default_rng(0)
    rows = np.flatnonzero(generator.random(3000) < 0.7)
    hashes = np.array([generator.bytes(16) for _ in rows], HASH)
    pieces = [(rows[at : at + 100], hashes[at : at + 100]) for at in range(0, len(rows), 100)]
    wanted = np.flatnonzero(generator.random(3000) < 0.3)
    found = _select_known(wanted, iter([*pieces, (rows[:0], hashes[:0])]))
    is_wanted = np.isin(rows, wanted)
    assert np.concatenate([numbers for numbers, _ in found]).tolist() == rows[is_wanted].tolist()
    assert np.concatenate([hashed for _, hashed in found]).tolist() == hashes[is_wanted].tolist()
