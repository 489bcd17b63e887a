"""Labeling that was stopped and goes on: by itself, by other workers, on a pool that changed, with images that healed."""

import json
import shutil
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pytest
from conftest import picture, write_pool
from labels import RUN, SETTINGS, table_rows, write_teacher
from PIL import Image
from watched import InterruptAfter, RecordingProgress

from nst_data.errors import NstError
from nst_data.selection.editions import balance
from nst_data.settings import BalanceSettings
from nst_data.sources import open_source
from nst_data.store.store import Store
from nst_data.tables.pieces import ShardPieces
from nst_train.labeling import labeling
from nst_train.labeling.label import extend, label, label_like
from nst_train.settings import LabelRunSettings, LabelSettings

NAMES = ["ant", "bee", "cat"]
IMAGES = 22


class PowerCutError(Exception):
    """Stops a labeling in its middle."""


class CountingProgress(RecordingProgress):
    """Remembers what was said and counted."""

    def __init__(self):
        super().__init__()
        self.counted, self.done = 0, None

    @contextmanager
    def task(self, name, total, unit, done=0):
        self.done = done
        yield self

    def advance(self, amount, note=""):
        self.counted += amount


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def pool(tmp_path):
    folder = write_pool(tmp_path / "pool", 2, IMAGES // 2)
    (folder / "0-104.png").write_bytes(b"text")
    return folder


@pytest.fixture
def teacher(tmp_path):
    return write_teacher(tmp_path / "teacher", NAMES)


def label_until_stopped(store, teacher, pool, images=13, run=RUN, corpus="bugs"):
    """A labeling that was stopped after some shards."""
    with pytest.raises(PowerCutError):
        label(store, corpus, teacher, open_source(str(pool)), SETTINGS, run=run, progress=InterruptAfter(images, PowerCutError))
    (staging,) = store.stagings(corpus)
    return sorted((staging.work / "shards").iterdir())


def label_pool(store, teacher, pool, corpus="bugs", run=RUN, progress=None, **settings):
    wanted = LabelSettings(**SETTINGS.model_dump() | settings)
    return label(store, corpus, teacher, open_source(str(pool)), wanted, run=run, progress=progress)


def test_what_was_done_is_not_done_again_and_the_bytes_are_those_of_an_undisturbed_run(store, teacher, pool, monkeypatch):
    expected = label_pool(store, teacher, pool, "undisturbed")
    notes = label_until_stopped(store, teacher, pool)
    assert 1 <= len(notes) < 4
    before = {note.name: note.stat().st_mtime_ns for note in notes}
    seen = []
    write_note = labeling.Shards.write_note
    monkeypatch.setattr(labeling.Shards, "write_note", lambda self, shard, *rest: (seen.append(shard), write_note(self, shard, *rest)))
    told = CountingProgress()
    version = label_pool(store, teacher, pool, progress=told)
    assert version.manifest.files == expected.manifest.files
    assert sorted(seen) == [shard for shard in range(4) if f"{shard:05d}.json" not in before]
    assert (told.done, told.done + told.counted) == (6 * len(before), IMAGES)
    assert store.unfinished() == []


@pytest.fixture
def seen(monkeypatch):
    """The numbers of the images that the teacher sees."""
    ids, predict = [], labeling.predict

    def watched(teacher, computation, batches, *arguments, **options):
        def each():
            for batch in batches:
                ids.extend(row.id for row in batch.rows)
                yield batch

        return predict(teacher, computation, each(), *arguments, **options)

    monkeypatch.setattr(labeling, "predict", watched)
    return ids


WHOLE = {"rows_per_shard": 1_000, "batch_size": 4}


def stopped_in_a_shard(store, teacher, pool, corpus="bugs"):
    settings = LabelSettings(**SETTINGS.model_dump() | WHOLE)
    with pytest.raises(PowerCutError):
        label(store, corpus, teacher, open_source(str(pool)), settings, run=RUN, progress=InterruptAfter(10, PowerCutError))
    (staging,) = store.stagings(corpus)
    assert list((staging.work / "shards").iterdir()) == []
    return sorted((staging.work / "pieces/00000").iterdir())


@pytest.mark.parametrize("damage", ["", "cut short", "no file"])
def test_a_shard_that_was_begun_goes_on_after_its_last_batch(store, teacher, pool, seen, damage):
    expected = label_pool(store, teacher, pool, "undisturbed", **WHOLE)
    (piece,) = stopped_in_a_shard(store, teacher, pool)
    if damage:
        piece.write_bytes(b"" if damage == "no file" else piece.read_bytes()[:-700])
    seen.clear()
    told = CountingProgress()
    version = label_pool(store, teacher, pool, progress=told, **WHOLE)
    done = 0 if damage else int(piece.stem.partition("-")[2]) * WHOLE["batch_size"]
    assert damage or done >= 8
    assert seen == list(range(done, IMAGES))
    assert told.counted == IMAGES
    assert version.manifest.files == expected.manifest.files
    assert store.unfinished() == []


def test_pieces_of_several_processes_go_together_as_far_as_they_are_without_a_gap(tmp_path):
    rows = [pa.table({"id": np.arange(4) + 4 * batch}) for batch in range(6)]
    for first, stop in ((0, 2), (2, 3), (2, 5), (6, 7)):
        pieces = ShardPieces(tmp_path, 3)
        pieces._first = first
        for batch in range(first, stop):
            pieces.add(rows[batch % 6], [{"id": batch}])
        pieces.write()
    again = ShardPieces(tmp_path, 3)
    assert [(batch["id"].to_pylist(), errors) for batch, errors in again.load_batches()] == [
        (rows[batch]["id"].to_pylist(), [{"id": batch}]) for batch in range(5)
    ]
    again.add(rows[5], [])
    again.write()
    assert len(ShardPieces(tmp_path, 3).load_batches()) == 7
    again.discard()
    assert ShardPieces(tmp_path, 3).load_batches() == []


def test_a_pool_that_grew_goes_on_in_a_shard_too(store, teacher, pool, seen):
    label_pool(store, teacher, pool, **WHOLE)
    picture(1, 5).save(pool / "0-105b.png")
    for number in range(14):
        picture(number % 3, 40 + number).save(pool / f"2-{number}.png")
    shutil.copytree(store.root, store.root.with_name("other"))
    expected = extend(Store(store.root.with_name("other")), "bugs@gen-1", open_source(str(pool)), run=RUN)
    with pytest.raises(PowerCutError):
        extend(store, "bugs@gen-1", open_source(str(pool)), run=RUN, progress=InterruptAfter(9, PowerCutError))
    everything = list(seen)
    seen.clear()
    assert extend(store, "bugs@gen-1", open_source(str(pool)), run=RUN).manifest.files == expected.manifest.files
    assert 0 < len(seen) < len(set(everything))


def test_an_edition_that_is_labeled_again_goes_on_in_a_shard_too(store, teacher, pool, seen):
    edition = balance(store, label_pool(store, teacher, pool, **WHOLE), BalanceSettings(min_confidence=0, per_class="none"))
    shutil.copytree(store.root, store.root.with_name("other"))
    settings = LabelSettings(**SETTINGS.model_dump() | WHOLE)
    expected = label_like(Store(store.root.with_name("other")), edition.ref, teacher, open_source(str(pool)), settings, run=RUN)
    seen.clear()
    with pytest.raises(PowerCutError):
        label_like(store, edition.ref, teacher, open_source(str(pool)), settings, run=RUN, progress=InterruptAfter(9, PowerCutError))
    seen.clear()
    again = label_like(store, edition.ref, teacher, open_source(str(pool)), settings, run=RUN)
    assert again.manifest.files == expected.manifest.files
    assert 0 < len(seen) < IMAGES - 8


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("add", r"1 image more \('1-103b.png'\)"),
        ("remove", r"1 image gone \('1-104.png'\)"),
        ("resize", r"1 image of another size \('1-104.png': [\d,]+ bytes before, 4 now\)"),
    ],
)
def test_a_pool_that_changed_meanwhile_is_one_error_and_nothing_is_lost(store, teacher, pool, change, says):
    expected = label_pool(store, teacher, pool, "undisturbed")
    notes = label_until_stopped(store, teacher, pool)
    content = (pool / "1-104.png").read_bytes()
    if change == "add":
        picture(1, 5).save(pool / "1-103b.png")
    elif change == "remove":
        (pool / "1-104.png").unlink()
    else:
        (pool / "1-104.png").write_bytes(b"1234")
    with pytest.raises(NstError, match=f"pool:.*bugs@gen-1 was started: {says}; restore it.*`store\\.remove\\('bugs@gen-1'\\)`"):
        label_pool(store, teacher, pool)
    assert all(note.exists() for note in notes)
    (pool / "1-103b.png").unlink(missing_ok=True)
    (pool / "1-104.png").write_bytes(content)
    assert label_pool(store, teacher, pool).manifest.files == expected.manifest.files


def test_another_pool_elsewhere_does_not_hinder(store, teacher, pool, tmp_path):
    label_until_stopped(store, teacher, pool)
    version = label_pool(store, teacher, write_pool(tmp_path / "other", 2, 2, first=700))
    assert version.ref == "bugs@gen-2"
    assert label_pool(store, teacher, pool).ref == "bugs@gen-1"


def test_killed_before_its_pool_was_written_down_a_labeling_goes_on(store, teacher, pool):
    label_until_stopped(store, teacher, pool, images=0)
    (store.stagings("bugs")[0].work / "pool.arrow").unlink()
    picture(0, 0).save(pool / "more.png")
    version = label_pool(store, teacher, pool)
    assert version.manifest.counts.pool == IMAGES + 1


def test_images_that_can_be_read_by_the_end_are_labeled_when_asked_for(store, teacher, pool, tmp_path):
    mended = tmp_path / "mended"
    shutil.copytree(pool, mended)
    picture(0, 104).save(mended / "0-104.png")
    size = (mended / "0-104.png").stat().st_size
    (pool / "0-104.png").write_bytes(b"text".ljust(size))
    (pool / "1-110.png").write_bytes(b"never to be read")
    (mended / "1-110.png").write_bytes(b"never to be read")
    for folder in (pool, mended):
        Image.new("RGB", (1, 300)).save(folder / "1-111.png")  # can be decoded, but not be resized
    expected = label_pool(store, teacher, mended, "mended")

    class Mending(CountingProgress):
        def advance(self, amount, note=""):
            super().advance(amount)
            if self.counted == IMAGES + 1:
                (pool / "0-104.png").write_bytes((mended / "0-104.png").read_bytes())

    told = Mending()
    version = label_pool(store, teacher, pool, run=LabelRunSettings(decode_threads=2, retry_errors=True), progress=told)
    assert version.manifest.files == expected.manifest.files
    assert [row["key"] for row in table_rows(version, "errors")] == ["1-110.png", "1-111.png"]
    assert any("1 previously unreadable image is readable now" in line for line in told.lines)
    (pool / "0-104.png").write_bytes(b"text".ljust(size))
    without = label_pool(store, teacher, pool, "without", progress=Mending())
    assert [row["key"] for row in table_rows(without, "errors")] == ["0-104.png", "1-110.png", "1-111.png"]


def test_trying_errors_again_does_not_stumble_over_a_shard_that_another_process_makes_again(store, teacher, pool, monkeypatch):
    expected = label_pool(store, teacher, pool, "undisturbed")
    read_again = labeling.Labeling.read_again

    def meanwhile(self):
        self.shards.reopen(0)  # by another process, which also found images that can be read by now
        read_again(self)

    monkeypatch.setattr(labeling.Labeling, "read_again", meanwhile)
    version = label_pool(store, teacher, pool, run=LabelRunSettings(decode_threads=2, retry_errors=True))
    assert version.manifest.files == expected.manifest.files


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_no_byte(store, teacher, pool, threads):
    expected = label_pool(store, teacher, pool, "one")
    assert label_pool(store, teacher, pool, run=LabelRunSettings(decode_threads=threads)).manifest.files == expected.manifest.files


@pytest.mark.parametrize("workers", [("0/2", "1/2"), ("2/3", "0/3", "1/3")])
def test_workers_that_take_turns_end_with_the_bytes_of_one(store, teacher, pool, workers):
    expected = label_pool(store, teacher, pool, "one")
    for worker in workers[:-1]:
        notes = label_until_stopped(store, teacher, pool, images=7, run=LabelRunSettings(decode_threads=1, worker=worker))
    assert {note.name for note in notes} > {"00000.json"} - {"00000.json"}
    version = label_pool(store, teacher, pool, run=LabelRunSettings(decode_threads=2, worker=workers[-1]))
    assert version.manifest.files == expected.manifest.files


def test_a_worker_begins_in_its_own_part(store, teacher, pool):
    notes = label_until_stopped(store, teacher, pool, images=7, run=LabelRunSettings(decode_threads=1, worker="1/2"))
    assert notes[0].name == "00002.json"


def test_what_was_begun_on_a_gpu_is_one_error_here_and_nothing_is_lost(store, teacher, pool):
    notes = label_until_stopped(store, teacher, pool)
    chosen = store.stagings("bugs")[0].work / "computation.json"
    chosen.write_text(json.dumps(json.loads(chosen.read_text()) | {"device": "cuda", "precision": "bf16"}))
    with pytest.raises(NstError, match=r"bugs@gen-1.*on cuda.*resume it.*`store\.remove\('bugs@gen-1'\)`"):
        label_pool(store, teacher, pool)
    assert all(note.exists() for note in notes)


def test_a_batch_size_found_by_trial_is_kept(store, teacher, pool, monkeypatch):
    with pytest.raises(PowerCutError):
        label_pool(store, teacher, pool, progress=InterruptAfter(13, PowerCutError), batch_size=0)
    chosen = json.loads((store.stagings("bugs")[0].work / "computation.json").read_text())
    monkeypatch.setattr("nst_train.labeling.prepared.choose_computation", None)  # not asked again
    version = label_pool(store, teacher, pool, batch_size=0)
    assert version.manifest.machine["batch_size"] == chosen["batch_size"] >= 1


@pytest.mark.parametrize("limit", [1, 7, IMAGES, 1000])
def test_a_limit_labels_the_first_images(store, teacher, pool, limit):
    whole, limited = label_pool(store, teacher, pool, "whole"), label_pool(store, teacher, pool, limit=limit)
    assert table_rows(limited) == [row for row in table_rows(whole) if row["id"] < limit]
    assert limited.manifest.counts.pool == min(limit, IMAGES)


def test_extending_a_limited_generation_labels_the_rest(store, teacher, pool):
    extended = extend(store, label_pool(store, teacher, pool, limit=7), open_source(str(pool)), run=RUN)
    assert extended.manifest.request.settings["limit"] is None
    whole = table_rows(label_pool(store, teacher, pool, "whole"))
    assert [row["key"] for row in table_rows(extended)] == [row["key"] for row in whole]
    np.testing.assert_allclose([row["probs"] for row in table_rows(extended)], [row["probs"] for row in whole], atol=1e-3)


def test_a_teacher_whose_weights_changed_meanwhile_is_one_error(store, pool, tmp_path):
    teacher = write_teacher(tmp_path / "moving", NAMES)
    label_until_stopped(store, teacher, pool)
    shutil.rmtree(tmp_path / "moving")
    write_teacher(tmp_path / "moving", NAMES, seed=5)
    with pytest.raises(NstError, match=r"moving: the teacher.*bugs@gen-1.*weights.*restore it.*`store\.remove\('bugs@gen-1'\)`"):
        label_pool(store, teacher, pool)
    assert store.unfinished() == ["bugs@gen-1"]


def test_a_shard_made_again_while_another_process_seals_is_waited_for(store, teacher, pool, monkeypatch):
    check, asked = labeling.Shards.check_unchanged, []

    def reopened_once(self, files):
        asked.append(True)
        if len(asked) == 1:
            self.reopen(1)
        check(self, files)
        asked.append(False)

    monkeypatch.setattr(labeling.Shards, "check_unchanged", reopened_once)
    version = label_pool(store, teacher, pool)
    assert asked == [True, True, False]
    assert version.verify() == []
