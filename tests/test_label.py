import pyarrow.parquet as pq
import pytest
import torch
from conftest import picture, write_pool
from labels import write_teacher
from test_adopt_tables import RecordingProgress
from wording import mentions

from nst_data.images import image_hash
from nst_data.sources import open_source
from nst_data.store.store import Store
from nst_train.classifiers.teachers import load_classifier
from nst_train.labeling.label import label
from nst_train.settings import LabelRunSettings, LabelSettings
from nst_train.transforms.preprocessing import decode_pixels

RUN = LabelRunSettings(decode_threads=2)
SETTINGS = LabelSettings(batch_size=4, rows_per_shard=6)


def rows(version, table="pseudo_labels"):
    return [row for file in sorted((version.folder / table).glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def test_labels_are_the_softmax_of_the_un_noised_teacher_on_the_clean_image(tiny_store):
    store, _, pool = tiny_store
    classifier, _ = load_classifier("tiny-teacher@gen-0", store)
    found = rows(store.open("tiny@gen-1"))
    for row in found:
        encoded = (pool / row["key"]).read_bytes()
        with torch.no_grad():
            pixels = classifier.preprocessing.prepare(decode_pixels(encoded))
            probs = classifier.network(classifier.preprocessing.finish(pixels[None])).softmax(dim=1)[0]
        assert row["image_hash"] == image_hash(encoded)
        assert row["label"] == int(probs.argmax())
        assert row["confidence"] == pytest.approx(float(probs.max()), abs=1e-5)
        assert row["probs"] == pytest.approx(probs.tolist(), abs=1e-3)
    assert [row["id"] for row in found] == list(range(15))
    assert [row["key"] for row in found] == sorted(path.name for path in pool.iterdir())


def test_a_teacher_of_other_classes_than_the_corpus_is_warned_of_once_for_each_run(tiny_store, tmp_path):
    store, pool = Store(tmp_path / "store"), open_source(str(tiny_store[2]))
    one, two = write_teacher(tmp_path / "one", ["ant", "bee"]), write_teacher(tmp_path / "two", ["ant", "shoe"])
    said = RecordingProgress()
    for teacher in (one, one):
        label(store, "bugs", teacher, pool, SETTINGS, run=RUN, progress=said)
    assert not any("warning" in line for line in said.lines)
    assert label(store, "bugs", two, pool, SETTINGS, run=RUN, progress=said).ref == "bugs@gen-2"
    (line,) = [line for line in said.lines if "warning" in line]
    assert mentions(line, "two: expected 2 classes (ant, bee), found 2 (ant, shoe); … bugs@gen-1; choose another `corpus` name")


def test_labeling_twice_gives_equal_bytes(tiny_store):
    store, _, pool = tiny_store
    first = store.open("tiny@gen-1")
    second = label(store, "again", "tiny-teacher@gen-0", open_source(str(pool)), SETTINGS, run=LabelRunSettings(decode_threads=1))
    assert second.manifest.files == first.manifest.files
    assert second.ref == "again@gen-1"


def test_the_same_labeling_is_there_already(tiny_store):
    store, _, pool = tiny_store
    before = (store.open("tiny@gen-1").folder / "nst.json").read_bytes()
    version = label(store, "tiny", "tiny-teacher", open_source(str(pool)), SETTINGS, run=RUN)
    assert version.ref == "tiny@gen-1"
    assert (version.folder / "nst.json").read_bytes() == before


def test_every_image_is_in_pseudo_labels_or_with_its_reason_in_errors(tiny_store, tmp_path):
    store, _, _ = tiny_store
    pool = write_pool(tmp_path / "pool", 3, 2)
    (pool / "empty.jpg").touch()
    (pool / "text.jpg").write_text("not an image")
    whole = (pool / "0-100.png").read_bytes()
    (pool / "short.png").write_bytes(whole[: len(whole) // 2])
    version = label(store, "with-errors", "tiny-teacher", open_source(str(pool)), SETTINGS, run=RUN)
    labeled, errors = rows(version), {row["key"]: row["reason"] for row in rows(version, "errors")}
    assert errors.keys() == {"empty.jpg", "text.jpg", "short.png"}
    assert errors["empty.jpg"] == "empty file"
    assert errors["text.jpg"] == "not an image in a known format"
    assert {row["key"] for row in labeled} | errors.keys() == {path.name for path in pool.iterdir()}
    assert len(labeled) == 6
    assert (version.manifest.counts.pool, version.manifest.counts.labeled, version.manifest.counts.errors) == (9, 6, 3)
    assert version.verify() == []


def test_an_unreadable_neighbor_changes_nothing_in_the_other_rows(tiny_store, tmp_path):
    store, _, _ = tiny_store
    for name, second in (("good", None), ("bad", b"no image")):
        folder = tmp_path / name
        folder.mkdir()
        for index in range(3):
            picture(index, 0).save(folder / f"{index}.png")
        if second:
            (folder / "1.png").write_bytes(second)
    good, bad = (
        {row["key"]: row for row in rows(label(store, f"neighbors-{name}", "tiny-teacher", open_source(str(tmp_path / name)), run=RUN))}
        for name in ("good", "bad")
    )
    assert bad.keys() == {"0.png", "2.png"}
    assert all(bad[key] == good[key] for key in bad)


def test_the_lineage_names_teacher_and_pool(tiny_store):
    store, _, pool = tiny_store
    inputs = store.open("tiny@gen-1").manifest.request.inputs
    teacher = store.open("tiny-teacher@gen-0").manifest
    assert inputs.teacher.ref == "tiny-teacher@gen-0"
    assert inputs.teacher.digest == teacher.digest
    assert inputs.teacher.weights_sha256 == teacher.files["model.safetensors"].sha256
    assert inputs.pool.ref == str(pool)
    assert inputs.pool.digest == open_source(str(pool)).fingerprint
