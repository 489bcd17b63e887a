"""The rows of an edition, labeled again by another teacher."""

import json
import shutil

import polars as pl
import pytest
import torch
from conftest import TINY, picture, write_class_folders, write_pool, write_tiny_recipe
from labels import RUN, SETTINGS, table_rows, write_teacher
from nst_cli.main import app
from typer.testing import CliRunner

from nst_data.errors import NstError
from nst_data.selection.editions import balance
from nst_data.settings import BalanceSettings
from nst_data.sources import open_source
from nst_data.store.store import Store
from nst_train.labeling.label import label, label_like
from nst_train.settings import LabelSettings, RunSettings, TrainSettings
from nst_train.training.train import train

NAMES = ["ant", "bee", "cat"]
KEPT = ("id", "key", "image_hash", "duplicates", "copies")


@pytest.fixture
def edition(tmp_path):
    """An edition of a pool in which an image stands twice; `new` is another teacher of the same classes."""
    pool = write_pool(tmp_path / "pool", 3, 5)
    shutil.copyfile(pool / "1-102.png", pool / "9.png")
    write_teacher(tmp_path / "new", NAMES, seed=8)
    store = Store(tmp_path / "store")
    corpus = label(store, "bugs", write_teacher(tmp_path / "old", NAMES), open_source(str(pool)), SETTINGS, run=RUN)
    return balance(store, corpus, BalanceSettings(min_confidence=0, per_class=9))


@pytest.fixture
def store(edition):
    return Store(edition.folder.parents[2])


@pytest.fixture
def pool(store):
    return store.root.parent / "pool"


def again(store, edition, pool, generation=None, **settings):
    teacher = f"local-dir:{store.root.parent / 'new'}"
    wanted = LabelSettings(**SETTINGS.model_dump() | settings)
    return label_like(store, edition, teacher, open_source(str(pool)), wanted, generation=generation, run=RUN)


@pytest.mark.parametrize("rows_per_shard", [1, 4, 100])
def test_the_rows_stay_and_the_labels_are_the_new_teachers(store, edition, pool, rows_per_shard):
    version = again(store, edition, pool, rows_per_shard=rows_per_shard)
    before, after = table_rows(edition, "balanced"), table_rows(version, "balanced")
    assert [{name: row[name] for name in KEPT} for row in after] == [{name: row[name] for name in KEPT} for row in before]
    whole = table_rows(label(store, "whole", f"local-dir:{store.root.parent / 'new'}", open_source(str(pool)), SETTINGS, run=RUN))
    by_key = {row["key"]: row for row in whole}
    for row in after:
        expected = by_key[row["key"]]
        assert row["label"] == expected["label"]
        assert row["confidence"] == pytest.approx(expected["confidence"], abs=1e-6)
        assert row["probs"] == pytest.approx(expected["probs"], abs=1e-3)
    assert [row["label"] for row in after] != [row["label"] for row in before]


def test_it_is_the_first_edition_of_a_generation_of_its_own(store, edition, pool):
    version = again(store, edition, pool)
    assert (version.ref, version.manifest.kind) == ("bugs@gen-2.1", "edition")
    inputs = version.manifest.request.inputs
    assert (inputs.like.ref, inputs.like.digest) == (edition.ref, edition.manifest.digest)
    assert inputs.pool.digest == open_source(str(pool)).fingerprint
    assert again(store, edition, pool).ref == "bugs@gen-2.1"
    third = label(store, "bugs", f"local-dir:{store.root.parent / 'new'}", open_source(str(pool)), SETTINGS, run=RUN)
    assert third.ref == "bugs@gen-3"
    assert again(store, edition, pool, temperature=2.0).ref == "bugs@gen-4.1"
    assert version.verify() == []


def test_a_generation_of_the_whole_pool_is_not_mixed_with_it(store, edition, pool):
    with pytest.raises(NstError, match=r"bugs@gen-1.*whole pool; omit the generation"):
        again(store, edition, pool, generation=1)
    assert again(store, edition, pool, generation=5).ref == "bugs@gen-5.1"
    with pytest.raises(NstError, match=r"bugs@gen-5\.1.*without its pool; omit the generation"):
        label(store, "bugs", f"local-dir:{store.root.parent / 'new'}", open_source(str(pool)), SETTINGS, generation=5, run=RUN)


def test_the_counts_are_an_editions(store, edition, pool):
    version = again(store, edition, pool)
    before, counts, found = edition.manifest.counts, version.manifest.counts, table_rows(version, "balanced")
    for name in ("labeled", "dropped", "kept", "unique", "copies", "top_k"):
        assert getattr(counts, name) == getattr(before, name)
    for index, name in enumerate(NAMES):
        copies = [row["copies"] for row in found if row["label"] == index]
        assert counts.per_class[name].model_dump() == {"labeled": len(copies), "unique": len(copies), "copies": sum(copies)}
    assert counts.classes_without_images == [name for name in NAMES if not counts.per_class[name].unique]
    assert "bugs@gen\\-2.1".replace(".", "\\.") in (version.folder / "README.md").read_text()


def test_a_student_trains_on_it(store, edition, pool, tmp_path):
    labeled = open_source(str(write_class_folders(tmp_path / "labeled", NAMES, 4)), labeled=True)
    version, settings = again(store, edition, pool), TrainSettings(**TINY | {"ratio": 2, "epochs": 1})
    student = train(store, "student", labeled, settings, pseudo=version, pool=open_source(str(pool)), run=RunSettings(workers=0))
    assert student.manifest.request.inputs.edition.digest == version.manifest.digest


def test_an_image_that_changed_or_vanished_goes_to_the_errors(store, edition, pool):
    source = open_source(str(pool))
    chosen = [row["key"] for row in table_rows(edition, "balanced")]
    picture(0, 1).save(pool / "other.png")
    (pool / chosen[3]).unlink()
    (pool / chosen[1]).write_bytes(b"text".ljust((pool / chosen[1]).stat().st_size))
    size, content = (pool / chosen[0]).stat().st_size, (pool / "other.png").read_bytes()
    (pool / chosen[0]).write_bytes(content.ljust(size, b"\0")[:size] if len(content) <= size else content)
    version = label_like(store, edition, f"local-dir:{store.root.parent / 'new'}", source, SETTINGS, run=RUN)
    errors = {row["key"]: row["reason"] for row in table_rows(version, "errors")}
    assert errors.keys() == {chosen[0], chosen[1], chosen[3]}
    assert errors[chosen[1]] == "not an image in a known format"
    assert errors[chosen[3]] == "No such file or directory"
    assert [row["key"] for row in table_rows(version, "balanced")] == [key for key in chosen if key not in errors]
    counts = version.manifest.counts
    assert counts.unique == len(chosen) - 3
    assert counts.copies == sum(row["copies"] for row in table_rows(version, "balanced"))
    assert counts.dropped == edition.manifest.counts.dropped | {"unreadable": 3}


def test_errors_are_in_the_order_of_the_pool_and_are_tried_again(store, edition, pool):
    chosen = [row["key"] for row in table_rows(edition, "balanced")]
    source = open_source(str(pool))
    (pool / chosen[2]).write_bytes(b"text".ljust((pool / chosen[2]).stat().st_size))
    changed = (pool / chosen[0]).read_bytes()
    (pool / chosen[0]).write_bytes(changed[:-1] + bytes([changed[-1] ^ 1]))  # another checksum at the end: it still decodes
    run = RUN.model_copy(update={"retry_errors": True})
    version = label_like(store, edition, f"local-dir:{store.root.parent / 'new'}", source, SETTINGS, run=run)
    assert [(row["key"], row["reason"]) for row in table_rows(version, "errors")] == [
        (chosen[0], "differs from the image that was selected"),
        (chosen[2], "not an image in a known format"),
    ]
    assert [row["key"] for row in table_rows(version, "balanced")] == [chosen[1], *chosen[3:]]


def test_another_copy_of_the_pool_is_read_by_key(store, edition, pool, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(pool, copy)
    for name in ("00.png", "1-100a.png"):
        picture(2, 77).save(copy / name)
    expected, found = again(store, edition, pool), again(store, edition, copy)
    numbers = {path.name: number for number, path in enumerate(sorted(copy.iterdir()))}
    values = [row | {"id": numbers[row["key"]]} for row in table_rows(expected, "balanced")]
    assert table_rows(found, "balanced") == values


def test_a_teacher_of_other_classes_is_refused_before_an_image_is_read(store, edition, pool, tmp_path):
    other = write_teacher(tmp_path / "other", ["top", "shoe"])
    source = open_source(str(pool))
    shutil.rmtree(pool)
    said = r"^local-dir:\S*other: expected 3 classes \(ant, bee, cat\), found 2 \(top, shoe\); unknown: .*classes of bugs@gen-1\.1, or"
    with pytest.raises(NstError, match=said):
        label_like(store, edition, other, source, SETTINGS, run=RUN)
    assert store.unfinished() == []


def test_a_pool_that_lacks_an_image_is_refused_before_any_work(store, edition, pool, tmp_path):
    shutil.copytree(pool, tmp_path / "copy")
    (tmp_path / "copy" / table_rows(edition, "balanced")[0]["key"]).unlink()
    with pytest.raises(NstError, match=r"copy: lacks 1 of"):
        again(store, edition, tmp_path / "copy")


def nst(*arguments):
    result = CliRunner().invoke(app, [str(word) for word in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.slow
def test_a_recipe_that_selects_once_labels_the_selection_again(tmp_path):
    write_class_folders(tmp_path / "labeled", NAMES, 4)
    write_class_folders(tmp_path / "test", NAMES, 2, first=50)
    write_pool(tmp_path / "pool", 3, 5)
    torch.manual_seed(0)
    recipe = write_tiny_recipe(
        tmp_path,
        label=SETTINGS.model_dump(),
        select={"min_confidence": 0.0, "per_class": 8, "when": "once"},
        generations=[TINY, *([TINY | {"ratio": 2}] * 3)],
        run={"workers": 0, "decode_threads": 1},
    )
    store, command = Store(tmp_path / "store"), ["run", recipe, "--store", tmp_path / "store", "--json"]
    first = nst(*command)
    versions = {version.ref: version.manifest for version in store.versions("bugs")}
    assert list(versions) == ["bugs@gen-1", "bugs@gen-1.1", "bugs@gen-2.1", "bugs@gen-3.1"]
    assert versions["bugs@gen-2.1"].request.inputs.like.ref == "bugs@gen-1.1"
    assert versions["bugs@gen-2.1"].request.inputs.teacher.ref == "bugs-teacher@gen-1"
    assert versions["bugs@gen-3.1"].request.inputs.teacher.ref == "bugs-teacher@gen-2"
    frames = [pl.read_parquet(store.root / "corpora" / "bugs" / number / "balanced") for number in ("gen-1.1", "gen-2.1", "gen-3.1")]
    assert all(frame.select(KEPT).equals(frames[0].select(KEPT)) for frame in frames)
    times = {path: path.stat().st_mtime_ns for path in store.root.rglob("*.parquet")}
    assert json.loads(nst(*command).stdout) == json.loads(first.stdout)
    assert {path: path.stat().st_mtime_ns for path in store.root.rglob("*.parquet")} == times
