import csv
import json
import shutil

import numpy as np
import polars as pl
import pytest
from conftest import write_class_folders
from nst_cli.main import app
from typer.testing import CliRunner

from nst_data import NstError, Store, UsageError, open_source
from nst_data.progress import Progress
from nst_data.sources import match_classes
from nst_data.sources.imagenet_names import imagenet_wnids, read_timm_list
from nst_data.store.manifest import TeacherManifest


def open_joined(*locations, **options):
    return open_source(list(map(str, locations)), labeled=True, **options)


@pytest.fixture
def two(tmp_path):
    """A folder of ants and bees, and a CSV table of bees and cats."""
    folder = write_class_folders(tmp_path / "mine", ["ant", "bee"], 3)
    photos = write_class_folders(tmp_path / "theirs", ["bee", "cat"], 2)
    with (photos / "labels.csv").open("w", newline="") as file:
        rows = [[path.relative_to(photos).as_posix(), path.parent.name] for path in sorted(photos.rglob("*.png"))]
        csv.writer(file).writerows([["path", "kind"], *rows])
    return folder, photos / "labels.csv"


def test_rows_follow_one_another_with_the_classes_of_all(two):
    source = open_joined(*two, label_column="kind")
    assert source.class_names == ["ant", "bee", "cat"]
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 2, 2]
    alone = [open_source(two[0], labeled=True), open_source(two[1], labeled=True, label_column="kind")]
    assert [source.read(row) for row in range(10)] == [one.read(row) for one in alone for row in range(len(one))]
    wanted = np.array([1, 5, 6, 9])
    assert [(row.id, row.key, row.read()) for row in source.rows(wanted)] == [(row, source.key(row), source.read(row)) for row in wanted]
    assert source.key(0) == f"mine/{alone[0].key(0)}"
    assert source.key(9) == f"labels.csv/{alone[1].key(3)}"
    assert len({source.key(row) for row in range(10)}) == 10
    assert source.rows_of([source.key(7)]).tolist() == [7]
    assert source.rows_per_file == 1
    assert source.rows_of_files(np.array([0, 5, 6, 9])).tolist() == [0, 5, 6, 9]
    assert source.remarks() == [f"{two[0]}: has no cat", f"{two[1]}: has no ant"]
    assert source.lineage.sources == tuple(map(str, two))


def test_a_class_whose_accents_are_written_in_two_ways_is_one_class(tmp_path):
    composed, apart = "caf\u00e9", "cafe\u0301"
    one = write_class_folders(tmp_path / "one", ["ant", composed], 1)
    other = write_class_folders(tmp_path / "other", [apart, "bee"], 1)
    source = open_joined(one, other)
    assert source.class_names == ["ant", "bee", composed]
    assert sorted(source.labels.tolist()) == [0, 1, 2, 2]


def test_it_has_a_fingerprint_of_its_own_that_changes_with_its_images(two):
    before = open_joined(*two, label_column="kind").fingerprint
    assert open_joined(*two, label_column="kind").fingerprint == before
    assert open_joined(*reversed(two), label_column="kind").fingerprint != before
    path = next(iter(sorted(two[0].rglob("*.png"))))
    path.write_bytes(path.read_bytes() + b"\0")
    assert open_joined(*two, label_column="kind").fingerprint != before


def test_one_that_has_the_classes_of_all_gives_their_order(tmp_path):
    first, second = write_class_folders(tmp_path / "a", ["bee"], 2), tmp_path / "b.parquet"
    images = [path.read_bytes() for path in sorted(first.rglob("*.png"))]
    pl.DataFrame({"image": images, "label": [1, 0]}).write_parquet(second)
    (tmp_path / "names.txt").write_text("cat\nbee\nant\n")
    source = open_joined(first, second, class_names=str(tmp_path / "names.txt"))
    assert source.class_names == ["cat", "bee", "ant"]
    assert source.labels.tolist() == [1, 1, 1, 0]


def test_numbers_stay_numbers_and_do_not_go_with_names(tmp_path):
    folder = write_class_folders(tmp_path / "a", ["0", "2"], 1)
    other = write_class_folders(tmp_path / "b" / "a", ["10"], 1)
    source = open_joined(folder, other)
    assert source.class_names == [str(number) for number in range(11)]
    assert source.labels.tolist() == [0, 2, 10]
    assert [source.key(row).partition("/")[0] for row in range(3)] == ["a-1", "a-1", "a-2"]
    third = write_class_folders(tmp_path / "c" / "a-1", ["10"], 1)
    names = [key.partition("/")[0] for key in map(open_joined(folder, other, third).key, range(4))]
    assert names == ["a-2", "a-2", "a-3", "a-1"]
    named = write_class_folders(tmp_path / "d", ["ant"], 1)
    with pytest.raises(NstError, match=r"a:.*numbers.*d are names.*`class_names`"):
        open_joined(folder, named)


def test_what_cannot_be_joined_is_said_in_a_line(two, tmp_path):
    for again in (two[0], f"{two[0]}/../mine"):
        with pytest.raises(UsageError, match=r"mine:.*named twice.*once"):
            open_joined(two[0], again)
    with pytest.raises(UsageError, match=r"mine.*one source.*`labeled`"):
        open_source([str(one) for one in two])
    with pytest.raises(UsageError, match="found an empty list"):
        open_joined()
    with pytest.raises(UsageError, match=r"`label_column` kind:.*mine.*other.*image files.*remove `label_column`"):
        open_joined(two[0], write_class_folders(tmp_path / "other", ["ant"], 1), label_column="kind")
    with pytest.raises(NstError, match="no such file"):
        open_joined(two[0], tmp_path / "nothing")


@pytest.mark.slow
def test_a_teacher_is_trained_on_several_sources_and_says_which(two, tmp_path):
    words = ["--model", "test_resnet", "--name", "bugs", "--steps", "1", "--batch-size", "2", "--image-size", "32", "--workers", "0"]
    words += ["--store", str(tmp_path / "store"), "--label-column", "kind", "--labeled", str(two[0]), "--labeled", str(two[1])]
    result = CliRunner().invoke(app, ["train", *words, "--json"], catch_exceptions=False)
    manifest = Store(tmp_path / "store").open("bugs").manifest
    assert manifest.class_names == ["ant", "bee", "cat"]
    assert json.loads(result.stdout)["digest"] == manifest.digest
    assert TeacherManifest.from_manifest(manifest).request.inputs.labeled.sources == tuple(map(str, two))
    card = (Store(tmp_path / "store").open("bugs").folder / "README.md").read_text()
    assert f"--labeled {two[0]} --labeled {two[1]}" in " ".join(card.replace("\\\n", " ").split())


def test_a_recipe_takes_several_labeled_sources_beside_it_and_one_pool(two, tmp_path):
    from nst_train import load_recipe
    from nst_train.recipes.run_data import RecipeData

    shutil.copytree(two[0], tmp_path / "pool")
    recipe = tmp_path / "bugs.yaml"
    text = "name: bugs\nlabeled: {source: [mine, theirs/labels.csv], label_column: kind}\npool: {source: pool}\n"
    text += "generations: [{model: test_resnet}, {model: test_resnet}]\n"
    recipe.write_text(text)
    data = RecipeData.open(load_recipe(recipe), Store(tmp_path / "store"), progress=Progress())
    assert data.labeled.class_names == ["ant", "bee", "cat"]
    recipe.write_text(text.replace("pool: {source: pool}", "pool: {source: [pool, mine]}"))
    with pytest.raises(UsageError, match=r"`pool`.*one source, found 2.*one folder.*\.txt list"):
        load_recipe(recipe)
    recipe.write_text(text.replace("pool: {source: pool}", "pool: {source: 3}"))
    with pytest.raises(UsageError, match=r"bugs\.yaml, line 3: pool\.source:.*texts, found 3"):
        load_recipe(recipe)


def test_integers_are_the_classes_of_imagenet_where_nearly_all_are_there():
    words = dict(line.split("\t") for line in read_timm_list("imagenet_synset_to_lemma.txt"))
    names = [words[wnid] for wnid in imagenet_wnids()]
    numbers = [str(number) for number in range(997)]
    for expected in (imagenet_wnids(), names):
        assert match_classes(numbers, expected, "photos", subset=True).tolist() == list(range(997))
        assert match_classes(expected, [str(number) for number in range(1000)], "labels").tolist() == list(range(1000))
    assert match_classes(numbers, imagenet_wnids()[::-1], "photos", subset=True).tolist() == list(range(999, 2, -1))
    with pytest.raises(NstError, match=r"photos:.*1000 classes.*found 10 \(0, 1.*`class_names` FILE"):
        match_classes([str(number) for number in range(10)], imagenet_wnids(), "photos", subset=True)


def test_large_numbers_of_classes_are_names_and_no_classes_are_made_up_between_them(tmp_path):
    folder = write_class_folders(tmp_path / "a", ["4006381333931", "4006381333948"], 1)
    other = write_class_folders(tmp_path / "b", ["5000159407236", "4006381333948"], 1)
    source = open_joined(folder, other)
    assert source.class_names == ["4006381333931", "4006381333948", "5000159407236"]
    assert source.labels.tolist() == [0, 1, 1, 2]
