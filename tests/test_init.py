"""`nst init`: from the folders that users have to a recipe that loads and runs, or to one line."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
import yaml
from conftest import picture, write_class_folders, write_pool
from nst_cli.main import app
from pictures import images_and_labels, write_tar
from typer.testing import CliRunner
from wording import mentions

from nst_data.errors import NstError, UsageError
from nst_data.prefetch import cpus_of_this_process
from nst_data.progress import Progress
from nst_data.sources import open_source
from nst_data.store.store import Store
from nst_train import device
from nst_train.noisy_student import self_training
from nst_train.recipes.checks import check_recipe
from nst_train.recipes.reading import load_recipe
from nst_train.recipes.recipe import Recipe
from nst_train.recipes.schema import MODELINE, SCHEMA_FILE
from nst_train.settings import RunSettings, TrainSettings, default_workers
from nst_train.starting import writing
from nst_train.starting.choosing import (
    CPU_NETWORK,
    NetworkFacts,
    check_weights_available,
    choose_numbers,
    choose_selection,
    fit_to_memory,
    fit_to_network,
    network_facts,
    student_settings,
    why_unavailable,
)
from nst_train.starting.looking import FOLDERS, inspect_sources, likely_problems
from nst_train.starting.writing import _reasons, write_new_recipe, yaml_scalar

CLASSES = ["ant", "bee", "cat"]
LITE = NetworkFacts(224, None, False, False)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A tiny network with weights, in timm's format: its name as a model."""
    import timm
    from timm.models import save_for_hf

    folder = tmp_path_factory.mktemp("network")
    save_for_hf(timm.create_model("test_efficientnet"), str(folder), safe_serialization=True)
    return f"local-dir:{folder}"


def photos(folder, per_class=4, test=True, pool=6):
    """A folder as `nst init` expects it."""
    write_class_folders(folder / "labeled", CLASSES, per_class)
    write_pool(folder / "unlabeled", 3, pool)
    if test:
        write_class_folders(folder / "test", CLASSES, 2, first=50)
    return folder


def recipe_of(folder, network, photos="photos", **options):
    """The recipe that is written for `folder`/photos, loaded: (recipe, warnings)."""
    begun = write_new_recipe(folder / photos if photos else None, folder / "a.yaml", model=network, **options)
    return load_recipe(folder / "a.yaml"), begun.warnings


def runs(folder, steps=1):
    """Run `folder`/a.yaml with fewer steps and smaller images: its networks."""
    content = yaml.safe_load((folder / "a.yaml").read_text())
    content["generations"].pop()
    for one in content["generations"]:
        one |= {"image_size": 32} | ({} if one.get("probe") else {"steps": steps, "warmup_steps": 0, "test_size": 32})
    content["run"] = {"workers": 0, "decode_threads": 1, "tracker": ["none"]}
    (folder / "short.yaml").write_text(yaml.safe_dump(content))
    made = self_training(Store(folder / "store"), load_recipe(folder / "short.yaml"), progress=Progress())
    return [one.teacher.ref for one in made]


@pytest.mark.slow
def test_the_recipe_of_a_plain_folder_names_its_sources_beside_itself_and_runs_to_the_end(tmp_path, network):
    photos(tmp_path / "photos")
    recipe, _ = recipe_of(tmp_path, network)
    content = yaml.safe_load((tmp_path / "a.yaml").read_text())
    assert [content[role]["source"] for role in ("labeled", "test", "pool")] == ["photos/labeled", "photos/test", "photos/unlabeled"]
    assert "holdout" not in content
    assert [one.settings.probe for one in recipe.networks] == [True, False, False]
    student = recipe.generations[1]
    assert (student.preset, student.start, student.batch_size) == ("pretrained", "teacher", 12)  # of 12 labeled images
    assert runs(tmp_path) == ["a-teacher@gen-0", "a-teacher@gen-1"]


@pytest.mark.slow
def test_without_test_images_a_share_is_held_out_and_it_runs(tmp_path, network):
    photos(tmp_path / "photos", test=False)
    recipe, said = recipe_of(tmp_path, network)
    assert recipe.holdout == 0.2
    assert "there are no test images: 3 of the labeled ones are held out" in said
    assert recipe.generations[1].batch_size == 9
    assert len(runs(tmp_path)) == 2


@pytest.mark.slow
def test_one_image_a_class_stays_labeled_is_said_and_runs(tmp_path, network):
    photos(tmp_path / "photos", per_class=1, test=False)
    recipe, said = recipe_of(tmp_path, network)
    assert recipe.holdout is None
    assert said[0] == "3 of 3 classes have one or two labeled images (ant, bee, cat): label some more of these first"
    assert any("no class has two images of which one could be held out: nothing will be measured" in line for line in said)
    assert len(runs(tmp_path)) == 2


def test_classes_with_one_image_keep_it_where_others_are_held_out(tmp_path, network):
    photos(tmp_path / "photos", test=False)
    write_class_folders(tmp_path / "photos" / "labeled", ["dog"], 1)
    recipe, said = recipe_of(tmp_path, network)
    assert recipe.holdout == 0.2
    assert any(line.endswith("held out; 1 class with one image keeps it and is not tested") for line in said)


def test_a_thousand_classes(tmp_path, network):
    small = io.BytesIO()
    picture(0, 0).save(small, "PNG")
    for number in range(1000):
        (tmp_path / "photos" / "labeled" / f"n{number:04d}").mkdir(parents=True)
        (tmp_path / "photos" / "labeled" / f"n{number:04d}" / "0.png").write_bytes(small.getvalue())
    write_pool(tmp_path / "photos" / "pool", 1, 3)
    recipe, said = recipe_of(tmp_path, network)
    assert said[0].startswith("1,000 of 1,000 classes have one or two labeled images (n0000, n0001, n0002, n0003, n0004, ...)")
    assert any(line.startswith("the pool has 3 images, fewer than the 1,000 labeled ones") for line in said)
    assert recipe.generations[1].batch_size == 16
    assert [one.steps for one in recipe.generations[1:]] == [290, 290]  # 130 * sqrt(5)


def test_uppercase_suffixes_and_nested_folders(tmp_path, network):
    top = photos(tmp_path / "photos")
    for file in top.rglob("*.png"):
        (file.parent / "day 1" / "more").mkdir(parents=True, exist_ok=True)
        picture(0, 1).save(file.parent / "day 1" / "more" / f"{file.stem}.JPG", "JPEG")
        file.unlink()
    recipe, _ = recipe_of(tmp_path, network)
    assert len(open_source(recipe.labeled.source, labeled=True)) == 12
    assert len(open_source(recipe.pool.source)) == 18


@pytest.mark.slow
def test_tables_and_tar_files(tmp_path, network):
    images_and_labels([0, 1] * 4).to_parquet(str(tmp_path / "labeled.parquet"))
    members = [(f"{index}.png", _png(index)) for index in range(12)]
    write_tar(tmp_path / "pool-000.tar", members[:6])
    write_tar(tmp_path / "pool-001.tar", members[6:])
    recipe, _ = recipe_of(tmp_path, network, None, labeled=str(tmp_path / "labeled.parquet"), pool=str(tmp_path / "pool-{000..001}.tar"))
    content = yaml.safe_load((tmp_path / "a.yaml").read_text())
    assert (content["labeled"]["source"], content["pool"]["source"]) == ("labeled.parquet", "pool-{000..001}.tar")
    assert len(open_source(recipe.pool.source)) == 12
    assert recipe.holdout == 0.2
    assert len(runs(tmp_path)) == 2


def _png(index):
    file = io.BytesIO()
    picture(index % 2, index).save(file, "PNG")
    return file.getvalue()


def test_columns_of_the_labeled_table_are_used_and_written(tmp_path, network):
    photos(tmp_path / "photos", pool=6)
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\n")
    for role in ("labeled", "test"):
        rows = [
            f"{one.relative_to(tmp_path)},{CLASSES.index(one.parent.name)}" for one in sorted((tmp_path / "photos" / role).rglob("*.png"))
        ]
        (tmp_path / f"{role}.csv").write_text("\n".join(["bild,art", *rows]) + "\n")
    named = {"labeled": str(tmp_path / "labeled.csv"), "pool": str(tmp_path / "photos/unlabeled"), "test": str(tmp_path / "test.csv")}
    columns = {"label_column": "art", "image_column": "bild", "class_names": str(tmp_path / "names.txt")}
    recipe, _ = recipe_of(tmp_path, network, None, **named, **columns)
    written = yaml.safe_load((tmp_path / "a.yaml").read_text())
    for role in ("labeled", "test"):
        expected = {"source": f"{role}.csv", "label_column": "art", "image_column": "bild", "class_names": "names.txt"}
        assert written[role] == expected
    assert written["pool"] == {"source": "photos/unlabeled"}
    assert recipe.labeled.class_names == columns["class_names"]
    (tmp_path / "a.yaml").unlink()
    folders = named | {"test": str(tmp_path / "photos/test")}
    recipe_of(tmp_path, network, None, **folders, **columns)
    assert yaml.safe_load((tmp_path / "a.yaml").read_text())["test"] == {"source": "photos/test"}
    wrong = ["--image-column", "bild", "--label-column", "kind", "--output", str(tmp_path / "b.yaml")]
    result = CliRunner().invoke(app, ["init", "--labeled", named["labeled"], "--pool", named["pool"], *wrong])
    assert (result.exit_code, "kind" in result.stderr) == (2, True), result.output


def test_files_in_the_folder_may_be_the_sources(tmp_path, network):
    (tmp_path / "photos").mkdir()
    images_and_labels([0, 1] * 4).to_parquet(str(tmp_path / "photos" / "Train.parquet"))
    write_tar(tmp_path / "photos" / "unlabeled.tar", [(f"{index}.png", _png(index)) for index in range(12)])
    recipe, _ = recipe_of(tmp_path, network)
    assert recipe.labeled.source == str(tmp_path / "photos" / "Train.parquet")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([], r"photos:.*labeled/ in it, found nothing.*`labeled`"),
        (["roses", "tulips"], r"photos:.*labeled/ in it, found roses, tulips.*`labeled`"),
        (["labeled"], r"photos:.*unlabeled/ in it, found labeled.*`pool`.*a single training"),
        (["labeled", "train", "pool"], r"photos: labeled and train.*name one with `labeled`"),
        (["labeled", "unlabeled"], r"^pool:.*unlabeled: expected images.*none below this folder"),
    ],
)
def test_what_makes_no_recipe_is_one_line(tmp_path, network, names, says):
    (tmp_path / "photos").mkdir()
    for name in names:
        (tmp_path / "photos" / name).mkdir()
    if "labeled" in names:
        write_class_folders(tmp_path / "photos" / "labeled", CLASSES, 1)
    with pytest.raises(NstError, match=says):
        recipe_of(tmp_path, network)
    assert not (tmp_path / "a.yaml").exists()


def spoil(folder, keep=0):
    """Cut the images of a folder short, all but the last `keep`."""
    files = sorted(folder.iterdir())
    for file in files[: len(files) - keep]:
        file.write_bytes(file.read_bytes()[:60])


def test_a_class_of_which_no_image_can_be_read_is_one_line(tmp_path, network):
    top = photos(tmp_path / "photos")
    spoil(top / "labeled" / "bee", keep=1)
    recipe_of(tmp_path, network)
    (tmp_path / "a.yaml").unlink()
    spoil(top / "labeled" / "bee")
    spoil(top / "test" / "cat")
    with pytest.raises(NstError, match=r"labeled: none of the 4 images of class 'bee' can be read; the first is bee/000\.png: .*; restore"):
        recipe_of(tmp_path, network)
    assert not (tmp_path / "a.yaml").exists()
    shutil.rmtree(top / "labeled" / "bee")
    shutil.rmtree(top / "test" / "bee")
    _, said = recipe_of(tmp_path, network)
    assert f"{top / 'test'}: none of the 2 images of class 'cat' can be read" in said


def test_a_pool_of_which_no_image_can_be_read_is_one_line(tmp_path, network):
    top = photos(tmp_path / "photos")
    for file in (top / "unlabeled").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(
        NstError, match=r"^pool: .*unlabeled: none of its 18 images that were looked at can be read; the first is 0-100\.png: "
    ):
        recipe_of(tmp_path, network)


@pytest.mark.slow
def test_a_pool_inside_the_labeled_folder_is_one_line_and_the_other_way_round_a_warning_that_runs(tmp_path, network):
    top = photos(tmp_path / "photos")
    shutil.move(top / "unlabeled", top / "labeled" / "unlabeled")
    with pytest.raises(NstError, match=r"unlabeled:.*inside the labeled folder.*move it out"):
        recipe_of(tmp_path, network, pool=str(top / "labeled" / "unlabeled"))
    shutil.move(top / "labeled" / "unlabeled", top / "more")
    _, said = recipe_of(tmp_path, network, pool=str(top))
    assert any(line.startswith("the pool contains the labeled images: students are not trained on them") for line in said)
    assert len(runs(tmp_path)) == 2


def test_copies_of_labeled_images_among_test_images_are_said(tmp_path, network):
    top = photos(tmp_path / "photos")
    assert not any("labeled images too" in line for line in recipe_of(tmp_path, network)[1])
    (tmp_path / "a.yaml").unlink()
    for path in sorted((top / "labeled").rglob("*.png"))[:2]:
        shutil.copy(path, top / "test" / path.parent.name / f"again-{path.name}")
    (line,) = (line for line in recipe_of(tmp_path, network)[1] if "labeled images too" in line)
    assert line.startswith(f"{top / 'test'}: 2 of its 8 images are labeled images too, on which a score tells nothing")


@pytest.mark.parametrize(
    ("more", "says"), [(1, "6 of its 7 images are labeled images too"), (0, "all of its images are labeled images too")]
)
def test_labeled_images_in_a_listed_pool_are_said(tmp_path, network, more, says):
    top = photos(tmp_path / "photos")
    images = sorted((top / "labeled").rglob("*.png"))[:6] + sorted((top / "unlabeled").iterdir())[:more]
    (top / "pool.txt").write_text("".join(f"{path}\n" for path in images))
    (line,) = (line for line in recipe_of(tmp_path, network, pool=str(top / "pool.txt"))[1] if "labeled images too" in line)
    assert line.startswith(f"{top / 'pool.txt'}: {says}")


def test_labeled_images_that_stand_in_two_classes_are_said(tmp_path, network):
    top = photos(tmp_path / "photos")
    path = sorted((top / "labeled" / "ant").iterdir())[0]
    shutil.copy(path, top / "labeled" / "bee" / "again.png")
    (line,) = (line for line in recipe_of(tmp_path, network)[1] if "two or more classes" in line)
    assert mentions(
        line, f"{top / 'labeled'}: 1 image stands in two or more classes …ant/{path.name}…bee/again.png…; remove the wrong ones"
    )


def test_one_source_in_two_roles_and_missing_sources_are_one_line(tmp_path, network):
    top = photos(tmp_path / "photos")
    with pytest.raises(UsageError, match=r"labeled:.*`labeled` and as `test`.*two sources"):
        recipe_of(tmp_path, network, test=str(top / "labeled"))
    write_class_folders(tmp_path / "other", ["ant", "bee", "cat"], 2, first=700)
    with pytest.raises(UsageError, match=r"other: given as `test` and as `validation`; expected two sources"):
        recipe_of(tmp_path, network, test=str(tmp_path / "other"), validation=str(tmp_path / "other"))
    with pytest.raises(UsageError, match=r"other: given as `pool` and as `test`; expected two sources"):
        recipe_of(tmp_path, network, pool=str(tmp_path / "other"), test=str(tmp_path / "other"))
    with pytest.raises(UsageError, match=r"`labeled` and `pool`: missing.*labeled/ and unlabeled/"):
        recipe_of(tmp_path, network, None)
    with pytest.raises(NstError, match=r"nowhere:.*labeled/ and unlabeled/.*`labeled` and `pool`"):
        recipe_of(tmp_path, network, "nowhere")


def test_a_folder_that_is_missing_is_said_before_a_recipe_that_is_there(tmp_path, network):
    (tmp_path / "a.yaml").write_text("mine")
    with pytest.raises(NstError, match=r"nowhere: no such folder; expected one with labeled/"):
        recipe_of(tmp_path, network, "nowhere")
    with pytest.raises(NstError, match=r"a\.yaml: not a folder; expected one with labeled/"):
        recipe_of(tmp_path, network, "a.yaml")


def test_the_exit_status_is_1_for_what_is_not_there_and_2_for_a_column_to_choose(tmp_path):
    write_pool(tmp_path / "pool", 1, 2)
    (tmp_path / "no_label.csv").write_text("path,kind\npool/0-100.png,a\n")
    (tmp_path / "no_path.csv").write_text("what,label\npool/0-100.png,a\n")
    named = ["--pool", str(tmp_path / "pool"), "--output", str(tmp_path / "a.yaml")]
    statuses = {}
    for name in ("nothing", "nothing.csv", "no_label.csv", "no_path.csv"):
        where = str(tmp_path / name)
        given = ["--labeled", where, *named] if name != "nothing" else [where, *named]
        statuses[name] = CliRunner().invoke(app, ["init", *given]).exit_code
    assert statuses == {"nothing": 1, "nothing.csv": 1, "no_label.csv": 2, "no_path.csv": 2}


def test_one_of_each_is_said_in_the_singular(tmp_path, network):
    top = photos(tmp_path / "photos")
    for file in [*(top / "test" / "bee").iterdir(), *sorted((top / "unlabeled").iterdir())[1:]]:
        file.unlink()
    shutil.rmtree(top / "test" / "cat")
    next((top / "test" / "ant").iterdir()).unlink()
    (top / "labeled" / "dog").mkdir()
    done = CliRunner().invoke(app, ["init", str(top), "--output", str(tmp_path / "b.yaml"), "--model", network])
    assert done.exit_code == 0, done.output
    assert "pool:     1 image\ntest:     1 image\n" in done.stdout
    for line in (
        "1 folder without images is not a class: dog",
        "1 test image tells networks apart only where they differ by 89 points or more",
        "the pool has 1 image, fewer than the 12 labeled ones: it can teach little",
    ):
        assert f"warning:  {line}\n" in done.stdout
    comments = [line.partition("  # ")[2] for line in (tmp_path / "b.yaml").read_text().splitlines()]
    assert {"1 image; used for evaluation only", "1 image without labels"} <= {*comments}


def test_a_test_set_of_other_classes_is_one_line(tmp_path, network):
    photos(tmp_path / "photos")
    write_class_folders(tmp_path / "photos" / "test", ["dog"], 1)
    with pytest.raises(NstError, match=r"test:.*3 classes.*: dog\..*`class_names` FILE"):
        recipe_of(tmp_path, network)


def test_a_recipe_is_never_overwritten(tmp_path, network):
    photos(tmp_path / "photos")
    (tmp_path / "a.yaml").write_text("mine")
    with pytest.raises(UsageError, match=r"a\.yaml: already exists.*`output`, or remove"):
        recipe_of(tmp_path, network)
    assert (tmp_path / "a.yaml").read_text() == "mine"


@pytest.mark.parametrize("name", ["a: b # c", "two\nlines", "- 'x' \"y\"", "~", "no", "{a}", "é %", " blank ", "[1]*", "line\u2028end"])
def test_names_of_folders_come_out_right_and_stand_in_no_comment(tmp_path, network, name):
    photos(tmp_path / name / "photos")
    recipe, _ = recipe_of(
        tmp_path,
        network,
        labeled=str(tmp_path / name / "photos" / "labeled"),
        pool=str(tmp_path / name / "photos" / "unlabeled"),
        photos=None,
    )
    assert recipe.labeled.source == str(tmp_path / name / "photos" / "labeled")
    assert len(open_source(recipe.pool.source)) == 18
    comments = [line.partition(" # ")[2] for line in (tmp_path / "a.yaml").read_text().splitlines()]
    assert len(name) < 3 or not any(name in comment for comment in comments)


@pytest.mark.parametrize(
    "value", ["a", "a: b # c", "x\ny", "1", "1.5", "2026-01-01", "yes", "null", "", "#", "a #b", "a:", ":a", "-", "*a"]
)
def test_a_text_is_the_same_after_yaml(value):
    assert yaml.safe_load(f"{{key: {yaml_scalar(value)}}}") == {"key": value}
    assert "\n" not in yaml_scalar(value)


def test_a_source_far_away_is_named_by_its_whole_path(tmp_path, network):
    top = photos(tmp_path / "photos")
    (tmp_path / "b" / "c" / "d").mkdir(parents=True)
    write_new_recipe(top, tmp_path / "b" / "c" / "d" / "a.yaml", model=network)
    assert load_recipe(tmp_path / "b" / "c" / "d" / "a.yaml").labeled.source == str(top / "labeled")


def make_inventory(counts, pool=1000, side=200):
    """What there is, of so many labeled images a class."""
    labels = np.repeat(np.arange(len(counts)), counts)

    class Labeled:
        class_names, empty_classes, location = [f"c{index}" for index in range(len(counts))], [], "labeled"

        def __len__(self):
            return len(labels)

    from nst_train.starting.looking import Inventory

    return Inventory({}, Labeled(), range(pool), None, None, np.array(counts), np.array([side]), 0)


def test_unbalanced_labels_tiny_images_and_a_small_test_are_said():
    said = likely_problems(make_inventory([400, 30], side=32))
    assert said[0] == "labels are unbalanced: 400 of c0, 30 of c1: `class_weights: balanced` in the generations makes classes count alike"
    assert said[2] == "86 test images tell networks apart only where they differ by 10 points or more"
    assert said[3] == "the images are tiny (32 px): they are enlarged for a network that was trained on photographs"
    assert likely_problems(make_inventory([400, 300])) == [
        "there are no test images: 140 of the labeled ones are held out",
        "140 test images tell networks apart only where they differ by 8 points or more",
    ]
    assert not any("apart" in line for line in likely_problems(make_inventory([4000, 3000])))


def test_classes_without_labeled_images_are_said_apart_and_are_not_the_rarest():
    said = likely_problems(make_inventory([400, 0, 30, 2]))
    assert said[0] == "1 of 4 classes has no labeled images (c1): label some more of it first"
    assert said[1] == "1 of 4 classes has one or two labeled images (c3): label some more of it first"
    assert said[2].startswith("labels are unbalanced: 400 of c0, 2 of c3: ")


def test_sources_beside_a_recipe_in_a_linked_folder_are_found(tmp_path, network):
    top = photos(tmp_path / "photos")
    (tmp_path / "real" / "deep" / "folder").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "deep" / "folder")
    write_new_recipe(top, tmp_path / "link" / "a.yaml", model=network)
    labeled = load_recipe(tmp_path / "link" / "a.yaml").labeled.source
    assert len(open_source(labeled, labeled=True)) == 12


def test_comments_on_size_and_rate_name_the_numbers_that_they_are_about():
    chosen = choose_numbers(200, 32, NetworkFacts(96, None, False, False), on_gpu=True)
    why = _reasons(chosen, make_inventory([100, 100], side=100), NetworkFacts(96, None, False, False), on_gpu=True)
    assert why["learning_rate"] == "per 256 labeled images; the preset's is for steps of 16 and at most 210 steps"
    assert why["image_size"] == "the network's own"
    assert _reasons(chosen, make_inventory([100, 100]), LITE, on_gpu=True)["image_size"].startswith("smaller than the network's own 224")


@pytest.mark.parametrize(
    ("labeled", "on_gpu", "expected"),
    [
        (200, False, (160, 192, 130, 16)),
        (500, False, (160, 192, 210, 16)),
        (5_000, False, (160, 192, 650, 16)),
        (50, False, (160, 192, 130, 16)),
        (7, False, (160, 192, 130, 7)),
        (10**7, False, (160, 192, 2600, 16)),
        (200, True, (None, None, 520, 32)),
        (10, True, (None, None, 520, 10)),
    ],
)
def test_steps_follow_the_labels_and_a_batch_is_never_more_than_they_are(labeled, on_gpu, expected):
    chosen = choose_numbers(labeled, 500, LITE, on_gpu)
    assert (chosen.image_size, chosen.test_size, chosen.steps, chosen.batch_size) == expected
    assert chosen.ratio == 3


def test_sides_suit_the_network_and_the_images():
    def sides(side_px, facts, on_gpu=False):
        chosen = choose_numbers(200, side_px, facts, on_gpu)
        return chosen.image_size, chosen.test_size

    assert sides(500, LITE) == (160, 192)
    assert sides(32, LITE) == sides(32, LITE, on_gpu=True) == (96, 128)
    assert sides(500, NetworkFacts(300, 384, False, False), on_gpu=True) == (None, 384)
    assert sides(500, NetworkFacts(224, None, True, True)) == (None, None)
    assert sides(500, NetworkFacts(32, None, False, False)) == (32, 32)
    assert sides(0, LITE) == (160, 192)


def test_the_example_for_photographs_has_the_settings_that_are_written_for_two_hundred_of_them():
    first, *students = load_recipe(Path(__file__).parent.parent / "examples" / "image_folder.yaml").generations
    written = student_settings(choose_numbers(200, 224, network_facts(first.model), on_gpu=False), LITE)
    expected = TrainSettings(model=first.model, start="teacher", **written).for_request() | {"finetune": None}
    assert [one.for_request() for one in students] == [expected, expected]


@pytest.mark.parametrize(
    ("labeled", "on_gpu", "rate"),
    [
        (200, False, None),
        (500, False, None),  # 210 steps
        (4000, False, 0.032 * 210 / 580),
        (50_000, False, 0.032 / 4),
        (200, True, 0.032 / 2**0.5 * 210 / 520),  # of a batch twice as large, whose rate grows with its root
    ],
)
def test_a_larger_batch_or_more_steps_have_a_rate_of_their_own(labeled, on_gpu, rate):
    found = student_settings(choose_numbers(labeled, 500, LITE, on_gpu=on_gpu), LITE).get("learning_rate")
    assert found == (rate and pytest.approx(rate, rel=0.05))


def test_the_low_rate_of_vision_transformers_stays_however_many_the_steps():
    assert "learning_rate" not in student_settings(choose_numbers(4000, 500, LITE, on_gpu=False), replace(LITE, suits_vit_preset=True))


def test_what_is_known_of_networks(network):
    assert network_facts(CPU_NETWORK) == LITE
    assert network_facts("vit_tiny_patch16_224") == NetworkFacts(224, None, True, True)
    assert network_facts(network).side_px == 160
    assert network_facts("owner/name") == NetworkFacts(None, None, True, None)
    assert choose_selection(3000, 10, True) == {"min_confidence": 0, "per_class": "none"}
    assert choose_selection(3000, 10, False) == {"min_confidence": 0.3, "per_class": 300}
    assert (default_workers(16, True), default_workers(2, False), default_workers(1, True)) == (15, 2, 1)
    assert [RunSettings(workers=asked).workers_on("cuda") for asked in (0, 5)] == [0, 5]
    assert RunSettings().workers_on("cpu") == default_workers(cpus_of_this_process(), False)


@pytest.mark.parametrize(
    ("model", "preset"),
    [
        ("test_vit", "pretrained-vit"),
        ("swin_tiny_patch4_window7_224", "pretrained-vit"),
        ("xcit_tiny_12_p16_224", "pretrained-vit"),  # with batch-norm in its stem
        ("pit_ti_224", "pretrained-vit"),  # whose patches overlap
        ("flexivit_small", "pretrained-vit"),
        ("convnext_atto", "pretrained-vit"),  # without batch-norm
        ("resnet18", "pretrained"),
        ("test_efficientnet", "pretrained"),
    ],
)
def test_the_preset_is_that_of_the_networks_kind_not_of_its_name(model, preset):
    assert student_settings(choose_numbers(200, 500, LITE, on_gpu=False), network_facts(model))["preset"] == preset


def cached(home, monkeypatch, repo, config):
    """A cache of the Hub that holds a repository's config.json alone."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home))
    folder = home / f"models--{repo.replace('/', '--')}"
    (folder / "snapshots" / "c0ffee").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("c0ffee")
    (folder / "snapshots" / "c0ffee" / "config.json").write_text(json.dumps(config))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "preset", "changes"),
    [
        ({"architecture": "test_vit"}, "pretrained-vit", {}),
        ({"architecture": "test_efficientnet"}, "pretrained", {}),
        ({"model_type": "vit"}, "pretrained-vit", {"noise": {"stochastic_depth": 0}, "layer_decay": None}),
        ({"model_type": "dinov2"}, "pretrained-vit", {"layer_decay": None}),
        ({"model_type": "resnet"}, "pretrained", {"noise": {"stochastic_depth": 0}, "layer_decay": None}),
        (None, "pretrained-vit", {"noise": {"stochastic_depth": 0}}),
    ],
)
def test_the_kind_of_a_network_of_the_hub_is_that_of_its_config_in_the_cache(tmp_path, monkeypatch, config, preset, changes):
    if config is not None:
        cached(tmp_path, monkeypatch, "owner/name", config)
    student = student_settings(choose_numbers(200, 500, LITE, on_gpu=False), network_facts("owner/name"))
    assert student["preset"] == preset
    assert fit_to_network({"model": "owner/name", "start": "teacher"} | student, 3) == changes


def test_a_cached_config_is_no_proof_of_cached_weights(tmp_path, monkeypatch):
    cached(tmp_path, monkeypatch, "owner/name", {"model_type": "vit"})
    assert why_unavailable("owner/name") == "they are not in the cache, and HF_HUB_OFFLINE is set"
    (tmp_path / "models--owner--name" / "snapshots" / "c0ffee" / "model.safetensors").touch()
    assert why_unavailable("owner/name") == ""


@pytest.mark.parametrize(
    ("error", "says"),
    [
        ("RepositoryNotFoundError", r"^me/typo: no such model.*`hf auth login`$"),
        ("RevisionNotFoundError", r"^me/typo:.*no such revision.*branch, tag or commit"),
        ("GatedRepoError", r"^me/typo:.*gated: request access.*`hf auth login`$"),
        ("ConnectTimeout", None),
    ],
)
def test_what_the_hub_answers_is_an_error_and_only_that_it_does_not_answer_a_warning(monkeypatch, error, says):
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx

    response = httpx.Response(404, request=httpx.Request("GET", "http://hub"))
    raised = getattr(errors, error)("no", response=response) if says else getattr(httpx, error)("no")

    def answer(*_, **__):
        raise raised

    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", answer)
    if says is None:
        assert "the Hub does not answer (ConnectTimeout)" in check_weights_available("me/typo", is_default=False)
        return
    with pytest.raises(NstError, match=says):
        check_weights_available("me/typo", is_default=False)


@pytest.mark.parametrize(
    ("gigabytes", "labeled", "parts"),
    [
        (80, 200, 1),
        (24, 200, 1),
        (22, 200, 2),
        (16, 200, 2),
        (12, 200, 2),
        (11, 200, 4),
        (8, 200, 4),
        (4, 200, 8),
        (16, 25, 5),
        (16, 23, 23),
    ],
)
def test_a_step_is_split_where_a_gpu_lacks_the_memory_for_all_of_it(gigabytes, labeled, parts):
    facts = NetworkFacts(300, 384, False, False)
    chosen = choose_numbers(labeled, 500, facts, on_gpu=True)
    assert fit_to_memory(chosen, facts, gigabytes * 10**9).get("accumulate", 1) == parts
    assert fit_to_memory(choose_numbers(labeled, 32, facts, on_gpu=True), facts, 8 * 10**9) == {}  # tiny images


def test_a_recipe_for_a_small_gpu_splits_the_steps_of_its_students(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "this_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(device, "total_gpu_memory", lambda _: 5 * 10**8)  # its images are tiny
    monkeypatch.setattr(writing, "check_weights_available", lambda *_, **__: "")
    monkeypatch.setattr(writing, "fit_to_machine", lambda *_: {})
    photos(tmp_path / "photos")
    recipe, _ = recipe_of(tmp_path, None)
    assert [one.accumulate for one in recipe.generations] == [1, 2, 2]
    assert "accumulate: 2 " in (tmp_path / "a.yaml").read_text()


def test_a_network_in_a_folder_is_named_relative_to_the_recipe_and_found_there(tmp_path, network, monkeypatch):
    shutil.copytree(network.removeprefix("local-dir:"), tmp_path / "nets" / "my net")
    photos(tmp_path / "photos")
    (tmp_path / "recipes").mkdir()
    monkeypatch.chdir(tmp_path / "nets")
    begun = write_new_recipe(str(tmp_path / "photos"), tmp_path / "recipes/a.yaml", model="local-dir:my net")
    assert "local-dir:../nets/my net" in begun.path.read_text()
    monkeypatch.chdir(tmp_path)
    assert load_recipe(begun.path).generations[0].model == f"local-dir:{tmp_path / 'nets/my net'}"


def test_of_a_network_of_which_nothing_is_known_that_is_said(tmp_path):
    photos(tmp_path / "photos")
    recipe, said = recipe_of(tmp_path, "owner/name")
    assert any(line.startswith("owner/name: its config.json is not in the cache, so its kind is not known") for line in said)
    assert recipe.generations[1].noise.stochastic_depth == 0


def test_the_students_of_a_network_without_blocks_to_skip_have_no_stochastic_depth(tmp_path, monkeypatch):
    monkeypatch.setattr("nst_train.starting.writing.fit_to_machine", lambda *_: {})
    photos(tmp_path / "photos")
    recipe, _ = recipe_of(tmp_path, "ghostnet_050")
    assert recipe.generations[1].noise.stochastic_depth == 0
    text = (tmp_path / "a.yaml").read_text()
    assert "noise: {stochastic_depth: 0}" in text
    assert "# this network is not known to have blocks that can be skipped" in text


@pytest.mark.slow
def test_the_teacher_of_a_network_that_takes_no_probe_is_finetuned_and_it_runs(tmp_path, monkeypatch):
    """Its last layer is a convolution."""
    import timm
    from timm.models import save_for_hf

    monkeypatch.setattr("nst_train.starting.writing.fit_to_machine", lambda *_: {})
    photos(tmp_path / "photos")
    made = timm.create_model("resnetv2_18", num_classes=3)
    save_for_hf(made, str(tmp_path / "net"), safe_serialization=True)
    recipe, _ = recipe_of(tmp_path, f"local-dir:{tmp_path / 'net'}")
    first, student = recipe.generations[:2]
    assert (first.probe, first.pretrained, first.start, first.ratio) == (False, True, None, 3)  # the preset's, which changes nothing
    assert (first.preset, first.steps, first.batch_size) == (student.preset, student.steps, student.batch_size)
    assert "# finetuned, as its students are: it does not end in the one linear layer" in (tmp_path / "a.yaml").read_text()
    assert runs(tmp_path) == ["a-teacher@gen-0", "a-teacher@gen-1"]


def test_a_probe_that_a_network_does_not_take_stops_a_recipe_before_its_first_generation(tmp_path):
    photos(tmp_path / "photos")
    still = {"noise": {"stochastic_depth": 0}}
    recipe = {
        "name": "a",
        **{role: {"source": str(tmp_path / "photos" / where)} for role, where in (("labeled", "labeled"), ("pool", "unlabeled"))},
        "generations": [{"model": "test_vit", **still}, {"model": "resnetv2_18", "finetune": {"probe": True}, **still}],
    }
    with pytest.raises(NstError, match=r"^resnetv2_18: expected one linear layer .*found Conv2d; choose another model"):
        check_recipe(Recipe.model_validate(recipe), open_source(tmp_path / "photos" / "labeled", labeled=True), ["ant", "bee"])


def test_a_network_without_blocks_to_skip_stops_a_recipe_before_its_first_generation(tmp_path):
    photos(tmp_path / "photos")
    recipe = {
        "name": "a",
        **{role: {"source": str(tmp_path / "photos" / where)} for role, where in (("labeled", "labeled"), ("pool", "unlabeled"))},
        "generations": [{"model": "test_vit", "noise": {"stochastic_depth": 0}}, {"model": "ghostnet_050"}],
    }
    with pytest.raises(NstError, match=r"^ghostnet_050: does not support drop_path_rate; set noise.stochastic_depth"):
        check_recipe(Recipe.model_validate(recipe), open_source(tmp_path / "photos" / "labeled", labeled=True), ["ant", "bee"])


def test_a_vision_transformer_is_finetuned_as_they_are(tmp_path):
    photos(tmp_path / "photos")
    recipe, said = recipe_of(tmp_path, "vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    student = recipe.generations[1]
    assert (student.preset, student.layer_decay, student.freeze_batch_norm, student.image_size) == ("pretrained-vit", 0.75, False, None)
    assert any(line.startswith("vit_tiny_patch16_224.augreg_in21k_ft_in1k: its weights are not available now") for line in said)


def test_offline_without_weights_the_default_network_is_refused_with_a_way_out(tmp_path, monkeypatch):
    photos(tmp_path / "photos")
    with pytest.raises(NstError, match=r"tf_efficientnet_lite0\.in1k:.*are not available:.*`model`.*local-dir:FOLDER"):
        recipe_of(tmp_path, None)
    assert not (tmp_path / "a.yaml").exists()
    assert check_weights_available("local-dir:/x", is_default=False) == ""


def test_the_command_shows_what_it_found_and_what_comes_next(tmp_path, network):
    top = photos(tmp_path / "photos", test=False)
    words = ["init", str(top), "--output", str(tmp_path / "flowers.yaml"), "--model", network]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "labeled:  12 images of 3 classes, 4 each\npool:     18 images\ntest:     none: 20% of the labeled images" in done.stdout
    assert f"next:     nst run {tmp_path / 'flowers.yaml'} --dry-run" in done.stdout
    assert load_recipe(tmp_path / "flowers.yaml").name == "flowers"
    assert (tmp_path / "flowers.yaml").read_text().splitlines()[0] == MODELINE
    content, schema = yaml.safe_load((tmp_path / "flowers.yaml").read_text()), json.loads((tmp_path / SCHEMA_FILE).read_text())
    jsonschema.validate(content, schema)
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 2
    assert mentions(again.stderr, "not overwritten; … --output, or remove")


def test_sources_are_found_in_one_order(tmp_path):
    photos(tmp_path)
    write_class_folders(tmp_path / "validation", CLASSES, 1, first=80)
    assert list(inspect_sources(tmp_path).locations) == list(FOLDERS)
