"""What lies beside the images of a source and is not read is counted; splits side by side are asked about."""

import os

import pytest
from conftest import TINY, write_class_folders, write_pool, write_tiny_recipe
from pictures import png, write_files, write_table, write_tar
from watched import RecordingProgress

from nst_data.errors import NstError, UsageError
from nst_data.sources import open_source
from nst_data.store.inputs import Input
from nst_data.store.store import Store
from nst_train.noisy_student import self_training
from nst_train.recipes.reading import load_recipe


def test_files_that_may_be_images_are_counted_and_others_are_not(tmp_path):
    write_files(tmp_path, "a.png", "deep/b.png", "noname", "deep/noname")
    before = open_source(str(tmp_path / "deep")).fingerprint
    for name in (
        "one.heic",
        "two.HEIC",
        "raw.CR2",
        "deep/new.jxl",
        "pool.tar",
        "notes.txt",
        "a.json",
        "Thumbs.db",
        ".hidden.heic",
        "LICENSE",
    ):
        (tmp_path / name).write_bytes(b"text")
    source = open_source(str(tmp_path))
    assert len(source) == 2
    assert source.skipped == {".heic": 2, "without a suffix": 2, ".cr2": 1, ".jxl": 1, ".tar": 1}
    (line,) = source.remarks()
    assert line.startswith(f"{tmp_path}: skipped 7 files: 2 .heic, 2 without a suffix, 1 .cr2, 1 .jxl, 1 .tar; convert them to")
    assert open_source(str(tmp_path / "deep")).fingerprint == before


def test_images_with_an_odd_suffix_are_counted_by_their_first_bytes(tmp_path):
    image = png(0)
    bmp = b"BM" + (70).to_bytes(4, "little") + bytes(10)
    odd = {"a.jpg?width=600": image, "frame.0000": image, "b.jpg~": image, "c.JPG~": image, "d.jpg.1": image, "e.bak": image, "f.dat": bmp}
    no_images = {"g.dat": b"BMI,age", "h.bin": bytes(16), "i.txt": image, "j.csv": b"x", "k.": b""}
    write_files(tmp_path, "a.png")
    for name, content in (odd | no_images).items():
        (tmp_path / name).write_bytes(content)
    source = open_source(str(tmp_path))
    assert source.skipped == {"with other suffixes": 3, ".jpg~": 2, ".bak": 1, ".dat": 1}
    assert "skipped 7 files: 3 with other suffixes, 2 .jpg~, 1 .bak, 1 .dat; rename images to end in .jpg or .png" in source.remarks()[0]
    for number in range(12):
        (tmp_path / f"l.x{number:02d}").write_bytes(image)
    assert sum(open_source(str(tmp_path)).skipped.values()) == 19
    assert len(open_source(str(tmp_path)).skipped) == 8
    packed = write_tar(tmp_path / "tar" / "pool.tar", [("a.png", image), *odd.items(), *no_images.items()])
    assert open_source(packed).skipped == source.skipped


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_what_lies_beside_tables_and_tar_files_is_counted(tmp_path, kind):
    if kind == "tar":
        write_tar(tmp_path / "0.tar", [("a.png", png(0)), ("b.heic", b"x")])
    else:
        write_table(tmp_path / "0.parquet", image=[png(0)])
    for name in ("c.heic", "d.cr2", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert open_source(str(tmp_path)).skipped == {".heic": 1 + (kind == "tar"), ".cr2": 1}


def test_members_of_tar_files_are_counted_also_when_the_index_was_kept(tmp_path):
    image = png(0)
    members = [("a.png", image), ("b.heic", b"x"), ("c", image), ("a.cls", b"0"), ("a.json", b"{}"), (".d.heic", b"x"), ("LICENSE", b"x")]
    pool = write_tar(tmp_path / "pool.tar", [*members, ("e.png", image)])
    for _ in range(2):
        source = open_source(pool, indexes=tmp_path / "indexes")
        assert source.skipped == {".heic": 1, "without a suffix": 1}
        assert [bytes(row.read()) for row in source.rows(range(2))] == [image, image]


def test_a_member_whose_name_is_not_in_utf_8_is_left_out_with_its_class(tmp_path):
    odd = os.fsdecode(b"caf\xe9")
    members = [("a.png", png(0)), ("a.cls", b"ant"), (f"{odd}.png", png(1)), (f"{odd}.cls", b"bee"), ("b.png", png(1)), ("b.cls", b"cat")]
    pool = write_tar(tmp_path / "pool.tar", members)
    source = open_source(pool, labeled=True)
    assert [source.key(row) for row in range(len(source))] == ["pool.tar:a.png", "pool.tar:b.png"]
    assert source.class_names == ["ant", "cat"]
    assert open_source(pool).remarks() == [f"{pool}: skipped 1 file: 1 not named in UTF-8; rename those that are not named in UTF-8"]


def test_nothing_but_skipped_files_says_what_they_are(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"x")
    with pytest.raises(NstError, match=r"this folder.*1 file: 1 \.heic.*\.jpg or \.png"):
        open_source(str(tmp_path))
    with pytest.raises(NstError, match=r"pool\.tar:.*none.*skipped 1 file: 1 \.heic.*\.jpg or \.png"):
        open_source(write_tar(tmp_path / "pool.tar", [("a.heic", b"x")]))


def test_a_manifest_has_what_was_skipped_and_one_without_it_is_as_before(tmp_path):
    pool = write_pool(tmp_path / "pool", 1, 1)
    assert "skipped" not in open_source(str(pool)).lineage.model_dump()
    (pool / "a.heic").write_bytes(b"x")
    entry = open_source(str(pool)).lineage
    assert Input.model_validate_json(entry.model_dump_json()).skipped == {".heic": 1}


@pytest.mark.parametrize(
    ("folders", "says"),
    [
        (("train", "val"), r"`labeled` .*/photos/train `validation` .*/photos/val;"),
        (("Training", "Test", "notes"), r"found Training, Test, .*`labeled` .*/photos/Training `validation` .*/photos/Test;"),
        (("test", "validation"), r"`labeled` .*/photos/test;"),
        (("train",), r"`labeled`.*/photos/train.*rename them, e\.g\. train_"),
        (("test_set", "training_set"), r"`labeled` .*/training_set `validation` .*/test_set;"),
        (("train2017", "val2017"), r"`labeled` .*/train2017 `validation` .*/val2017;"),
        (("extra", "train"), r"`labeled` .*/train `validation` .*/extra;"),
        (("labeled", "unlabeled", "test"), r"found labeled and unlabeled; .*`labeled` .*/photos/labeled; .*labeled_$"),
        (("train_1", "train_2", "val_1"), r"found train_1, train_2, val_1.*`labeled`.*/train_1 `validation`.*/val_1"),
    ],
)
def test_splits_side_by_side_are_no_classes(tmp_path, folders, says):
    photos = tmp_path / "photos"
    for folder in folders:
        write_class_folders(photos / folder, ["ant", "bee"], 1)
    with pytest.raises(UsageError, match=says):
        open_source(str(photos), labeled=True)
    assert len(open_source(str(photos))) == 2 * len(folders)  # as a pool it is one


@pytest.mark.parametrize(
    "names",
    [["bus", "train", "tram"], ["bullet_train", "bus", "test_tube"], ["extra", "normal"], ["trainer", "vale"], ["labeled", "other"]],
)
def test_a_class_that_is_called_as_a_split_is_a_class(tmp_path, names):
    write_class_folders(tmp_path, names, 1)
    assert open_source(str(tmp_path), labeled=True).class_names == names


@pytest.mark.parametrize("names", [("train-0.parquet", "test-0.parquet"), ("train/0.parquet", "val/0.parquet")])
def test_tables_of_two_splits_are_no_labeled_set(tmp_path, names):
    for name in names:
        write_table(tmp_path / name, image=[png(0), png(1)], label=["ant", "bee"])
    with pytest.raises(UsageError, match=r"two splits.*choose one.*\*\.parquet'.*rename"):
        open_source(str(tmp_path), labeled=True)
    assert len(open_source(str(tmp_path))) == 4
    pattern = tmp_path / ("train*.parquet" if "/" not in names[0] else "train/*.parquet")
    assert len(open_source(str(pattern), labeled=True)) == 2


def test_a_recipe_says_once_what_is_left_out_of_a_source_that_several_steps_read(tmp_path):
    for name in ("labeled", "test"):
        write_class_folders(tmp_path / name, ["ant", "bee"], 4)
    write_pool(tmp_path / "pool", 2, 3)
    (tmp_path / "labeled" / "ant" / "x.heic").write_bytes(b"x")
    (tmp_path / "labeled" / "ant" / "zero.png").write_bytes(b"")
    generations = [TINY, TINY | {"ratio": 1}]
    path = write_tiny_recipe(tmp_path, generations=generations, run={"workers": 0}, select={"min_confidence": 0, "per_class": 4})
    self_training(Store(tmp_path / "store"), load_recipe(path), progress=(said := RecordingProgress()))
    assert [sum(part in line for line in said.lines) for part in ("skipped 1 file: 1 .heic", "skipped, unreadable: ant/zero.png")] == [1, 1]
