"""A grown pool: what was labeled before is taken over, joined by its bytes."""

import threading
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import picture, write_pool
from labels import SETTINGS, table_rows, write_teacher
from test_adopt_tables import RecordingProgress
from wording import is_line

from nst_data.errors import NstError
from nst_data.sources import open_source
from nst_data.store.store import Store
from nst_data.tables import partitions
from nst_train.classifiers import loading
from nst_train.labeling.earlier_labels import EarlierLabels, ReuseCounts
from nst_train.labeling.label import extend, label
from nst_train.settings import LabelRunSettings, LabelSettings

RUN = LabelRunSettings(decode_threads=2)
NAMES = ["ant", "bee", "cat", "dog", "eel"]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def teacher(tmp_path):
    return write_teacher(tmp_path / "teacher", NAMES)


@pytest.fixture
def pool(tmp_path):
    """Fifteen images; one cannot be read."""
    folder = write_pool(tmp_path / "pool", 3, 5)
    (folder / "1-broken.png").write_bytes(b"text")
    return folder


def grow(pool):
    """New images between and after the others, one gone, one copied, one newly broken, and the broken one mended."""
    for name, index in (("0-100a", 1), ("1-000", 2), ("1-103b", 3), ("zz", 4)):
        picture(1, 700 + index).save(pool / f"{name}.png")
    (pool / "0-102.png").unlink()
    (pool / "0-999.png").write_bytes((pool / "2-101.png").read_bytes())
    (pool / "2-000.png").write_bytes(b"")
    picture(2, 800).save(pool / "1-broken.png")
    return open_source(str(pool))


def assert_same_labels(actual, expected):
    """Rows that are equal but for the last bits of the probabilities."""
    names = [name for name in expected[0] if name not in ("confidence", "probs", "top_probs")]
    assert [{name: row[name] for name in names} for row in actual] == [{name: row[name] for name in names} for row in expected]
    for name in expected[0].keys() & {"probs", "top_probs"}:
        np.testing.assert_allclose([row[name] for row in actual], [row[name] for row in expected], atol=1e-3)  # float16
    np.testing.assert_allclose([row["confidence"] for row in actual], [row["confidence"] for row in expected], atol=1e-6)


_ALSO = [pytest.param(rows, top_k, marks=pytest.mark.slow) for rows, top_k in ((1, None), (1, 2), (4, 2), (6, None), (100, None), (100, 2))]


@pytest.mark.parametrize(("rows_per_shard", "top_k"), [(4, None), (6, 2), *_ALSO])
def test_extending_a_generation_is_labeling_the_grown_pool_afresh(store, teacher, pool, rows_per_shard, top_k):
    settings = LabelSettings(batch_size=4, rows_per_shard=rows_per_shard, top_k=top_k)
    before = label(store, "bugs", teacher, open_source(str(pool)), settings, run=RUN)
    grown = grow(pool)
    extended = extend(store, before, grown, run=RUN)
    afresh = label(store, "afresh", teacher, grown, settings, run=RUN)
    assert extended.ref == "bugs@gen-2"
    assert_same_labels(table_rows(extended), table_rows(afresh))
    assert table_rows(extended, "errors") == table_rows(afresh, "errors") != []
    for name in ("pool", "labeled", "errors", "per_class", "top_k", "teacher_parameters"):
        assert getattr(extended.manifest.counts, name) == getattr(afresh.manifest.counts, name)
    assert list(extended.manifest.files) == list(afresh.manifest.files)
    assert extended.verify() == []


def test_an_image_that_was_labeled_is_not_decoded_again(store, teacher, pool, monkeypatch):
    before = label(store, "bugs", teacher, open_source(str(pool)), SETTINGS, run=RUN)
    grown = grow(pool)
    decoded, lock, decode = [], threading.Lock(), loading.decode_pixels

    def counted(encoded, *options):
        with lock:
            decoded.append(bytes(encoded))
        return decode(encoded, *options)

    monkeypatch.setattr(loading, "decode_pixels", counted)
    extend(store, before, grown, run=RUN)
    new = ("0-100a", "1-000", "1-103b", "zz", "2-000", "1-broken")
    assert sorted(decoded) == sorted((pool / f"{name}.png").read_bytes() for name in new)


def test_a_pool_that_has_only_shrunk_needs_no_labeling(store, teacher, pool, monkeypatch):
    before = label(store, "bugs", teacher, open_source(str(pool)), SETTINGS, run=RUN)
    for name in ("0-102.png", "1-broken.png"):
        (pool / name).unlink()
    smaller = open_source(str(pool))
    monkeypatch.setattr(loading, "decode_pixels", None)
    extended = extend(store, before, smaller, run=RUN)
    kept = [row for row in table_rows(before) if row["key"] != "0-102.png"]
    assert table_rows(extended) == [row | {"id": number} for number, row in enumerate(kept)]


def test_a_pool_of_other_images_is_labeled_whole(store, teacher, pool, tmp_path):
    before = label(store, "bugs", teacher, open_source(str(pool)), SETTINGS, run=RUN)
    other = open_source(str(write_pool(tmp_path / "other", 2, 4, first=500)))
    extended, afresh = extend(store, before, other, run=RUN), label(store, "afresh", teacher, other, SETTINGS, run=RUN)
    assert table_rows(extended) == table_rows(afresh)


def test_what_was_taken_over_is_said_when_it_is_labeled(store, teacher, pool):
    before = label(store, "bugs", teacher, open_source(str(pool)), SETTINGS, run=RUN)
    grown, said = grow(pool), RecordingProgress()
    extended = extend(store, before, grown, run=RUN, progress=said)
    assert (before.manifest.counts.labeled, extended.manifest.counts.labeled) == (15, 20)
    line = "bugs@gen-2: labels taken over from bugs@gen-1: 15, newly made: 5; images of bugs@gen-1 that are not in this pool: 1"
    assert said.lines[-1] == line
    again = RecordingProgress()
    extend(store, before, grown, run=RUN, progress=again)
    assert not any("taken over" in text for text in again.lines)


def test_a_warning_says_that_nothing_was_taken_over(store, teacher, pool, tmp_path):
    before = label(store, "bugs", teacher, open_source(str(pool)), SETTINGS, run=RUN)
    said, other = RecordingProgress(), open_source(str(write_pool(tmp_path / "other", 2, 4, first=500)))
    extend(store, before, other, run=RUN, progress=said)
    assert is_line(said.lines[-1], "warning: bugs@gen-2: no labels were taken over, … none of the 15 images of bugs@gen-1; …")


def test_the_same_pool_elsewhere_and_under_other_names_is_taken_over_whole(store, teacher, pool, tmp_path, monkeypatch):
    before = label(store, "bugs", teacher, open_source(str(pool)), SETTINGS, run=RUN)
    (pool / "1-broken.png").unlink()
    for number, path in enumerate(sorted(pool.iterdir())):
        (tmp_path / "moved").mkdir(exist_ok=True)
        path.rename(tmp_path / "moved" / f"{99 - number}.png")
    monkeypatch.setattr(loading, "decode_pixels", None)
    extended = extend(store, before, open_source(str(tmp_path / "moved")), run=RUN)
    values = [{name: row[name] for name in ("image_hash", "label", "confidence", "probs", "phash")} for row in table_rows(before)]
    assert [{name: row[name] for name in values[0]} for row in table_rows(extended)] == values[::-1]


def test_the_lineage_names_the_generation_and_the_same_request_is_done_once(store, teacher, pool):
    before = label(store, "bugs", teacher, open_source(str(pool)), SETTINGS, run=RUN)
    grown = grow(pool)
    extended = extend(store, before, grown, run=RUN)
    inputs = extended.manifest.request.inputs
    assert (inputs.extended.ref, inputs.extended.digest) == (before.ref, before.manifest.digest)
    assert inputs.teacher == before.manifest.request.inputs.teacher
    assert inputs.pool.digest == grown.fingerprint
    assert extended.manifest.request.settings == before.manifest.request.settings
    assert extend(store, before, grown, run=RUN).ref == extended.ref
    assert store.unfinished() == []


def test_an_extended_generation_can_be_extended(store, teacher, pool):
    first = label(store, "bugs", teacher, open_source(str(pool)), SETTINGS, run=RUN)
    second = extend(store, first, grow(pool), run=RUN)
    picture(0, 950).save(pool / "0-000.png")
    third = extend(store, second, open_source(str(pool)), run=RUN)
    assert_same_labels(table_rows(third), table_rows(label(store, "afresh", teacher, open_source(str(pool)), SETTINGS, run=RUN)))


def test_a_generation_without_a_label_can_be_extended(store, teacher, tmp_path, monkeypatch):
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "0.png").write_bytes(b"text")
    with monkeypatch.context() as earlier:  # versions that sealed it
        earlier.setattr("nst_data.labeled_version.check_readable", lambda *_: None)
        before = label(store, "bugs", teacher, open_source(str(tmp_path / "pool")), SETTINGS, run=RUN)
    assert before.manifest.counts.labeled == 0
    picture(0, 0).save(tmp_path / "pool" / "0.png")
    assert [row["key"] for row in table_rows(extend(store, before, open_source(str(tmp_path / "pool")), run=RUN))] == ["0.png"]


def test_a_shard_is_hashed_piece_by_piece(store, teacher, pool, monkeypatch):
    settings = LabelSettings(batch_size=4, rows_per_shard=100)
    before = label(store, "bugs", teacher, open_source(str(pool)), settings, run=RUN)
    grown = grow(pool)
    monkeypatch.setattr("nst_data.prefetch._BATCH_SIZE", 3)
    assert_same_labels(
        table_rows(extend(store, before, grown, run=RUN)), table_rows(label(store, "afresh", teacher, grown, settings, run=RUN))
    )


def test_an_ensemble_extends_what_it_labeled(store, teacher, pool, tmp_path):
    names = [teacher, write_teacher(tmp_path / "second", NAMES, seed=4)]
    before = label(store, "bugs", names, open_source(str(pool)), SETTINGS, run=RUN)
    grown = grow(pool)
    assert_same_labels(
        table_rows(extend(store, before, grown, run=RUN)), table_rows(label(store, "afresh", names, grown, SETTINGS, run=RUN))
    )


def test_other_weights_under_the_teachers_name_are_refused(store, teacher, pool, tmp_path):
    before = label(store, "bugs", teacher, open_source(str(pool)), SETTINGS, run=RUN)
    other = write_teacher(tmp_path / "other", NAMES, seed=9)
    (tmp_path / "teacher").rename(tmp_path / "aside")
    (tmp_path / "other").rename(tmp_path / "teacher")
    assert other != teacher
    with pytest.raises(NstError, match=r"teacher:.*weights.*bugs@gen-1; label the whole pool"):
        extend(store, before, grow(pool), run=RUN)
    assert store.unfinished() == []


def test_the_first_row_with_a_hash_is_found_however_many_parts_the_index_is_made_of(tmp_path, monkeypatch):
    monkeypatch.setattr(partitions, "_PARTITION_ROWS", 40)
    rng = np.random.default_rng(0)
    some = ["0" * 32, "f" * 32, "0" * 16 + "f" * 16, *(rng.bytes(16).hex() for _ in range(300))]
    generations = {"earlier": [some[row] for row in rng.integers(0, 200, 900)], "later": [some[row] for row in rng.integers(100, 303, 500)]}
    for name, hashes in generations.items():
        (tmp_path / name / "pseudo_labels").mkdir(parents=True)
        confidences = pa.array(np.where(np.arange(len(hashes)) % 7, 0.5, np.nan), pa.float32())
        table = pa.table({"image_hash": hashes, "confidence": confidences, "probs": [[0.5, 0.5]] * len(hashes)})
        pq.write_table(table, tmp_path / name / "pseudo_labels" / "train-00000-of-00001.parquet", row_group_size=128)
    earlier, later = (SimpleNamespace(folder=tmp_path / name) for name in generations)
    first = {hashed: row for row, hashed in reversed([*enumerate(generations["earlier"])]) if row % 7}
    (tmp_path / "work").mkdir()
    found = EarlierLabels(earlier, tmp_path / "work").find(some)
    assert found.tolist() == [first.get(hashed, -1) for hashed in some]
    reused = ReuseCounts.count_between(earlier, later, tmp_path)
    before, after = {hashed[:16] for hashed in first}, [hashed[:16] for hashed in generations["later"]]
    taken_over, gone = sum(hashed in before for hashed in after), len(before - {*after})
    assert (reused.taken_over, reused.new, reused.gone) == (taken_over, 500 - taken_over, gone)
    assert 0 < gone < len(before)
    assert 0 < taken_over < 500
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "earlier_hashes.npy",
        "earlier_positions.npy",
        *["train-00000-of-00001.parquet"] * 2,
    ]
