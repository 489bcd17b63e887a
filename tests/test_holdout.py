"""`holdout`: a share of the labeled images to test on, for recipes without test images."""

import io
import json
import re
import shlex
import shutil

import numpy as np
import polars as pl
import pytest
import yaml
from conftest import TINY, write_pool
from labels import SETTINGS
from nst_cli.main import app
from pictures import images_and_labels, keys, write_tar
from PIL import Image
from typer.testing import CliRunner
from wording import mentions

from nst_data.cards.described import Described
from nst_data.cards.reproduction import reproduction_command
from nst_data.errors import NstError, UsageError
from nst_data.images import image_hash
from nst_data.progress import Progress
from nst_data.review.answers import AnswerLog
from nst_data.review.freeze import freeze
from nst_data.selection.editions import balance
from nst_data.selection.holdout import hold_out, select_holdout_rows
from nst_data.settings import BalanceSettings
from nst_data.sources import open_source
from nst_data.store.metrics import Metrics
from nst_data.store.store import Store
from nst_data.tables.label_tables import scan_labels
from nst_train import holdout
from nst_train.evaluation.suites import open_suite
from nst_train.holdout import warn_if_not_excluded, warn_if_trained_on, warn_of_leaks
from nst_train.labeling.label import label as label_pool
from nst_train.labeling.label import label_like
from nst_train.noisy_student import self_training
from nst_train.recipes.reading import load_recipe, parse_recipe
from nst_train.recipes.run_data import RecipeData
from nst_train.settings import RunSettings, TrainSettings
from nst_train.training.train import train

CLASSES = ["ant", "bee", "cat"]


class RecordingProgress(Progress):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def distinct(label, index):
    """Pictures that differ in more than noise, so that none is a near-duplicate of another."""
    pixels = np.random.default_rng([7, label, index]).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((48, 48), Image.Resampling.BICUBIC)


def write_distinct(folder, classes, first=0):
    """`folder`/CLASS/NUMBER.png, so many of each class."""
    for label, (name, images) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(first, first + images):
            distinct(label, index).save(folder / name / f"{index:03d}.png")
    return folder


def held_images(folder, share=0.2, seed=0, **options):
    """The bytes' hashes of what is held out of a folder."""
    source = open_source(str(folder), labeled=True)
    kept, held = hold_out(source, share=share, seed=seed, **options)
    assert len(kept) + len(held) == len(source)
    assert not set(keys(kept)) & set(keys(held))
    return {image_hash(row.read()) for row in held.rows(range(len(held)))}


def test_the_share_of_each_class_is_held_out_and_a_class_with_one_image_stays_labeled_which_is_said(tmp_path):
    source = open_source(str(write_distinct(tmp_path / "a", {"ant": 20, "bee": 9, "cat": 2, "dog": 1})), labeled=True)
    said = RecordingProgress()
    kept, held = hold_out(source, share=0.2, progress=said)
    assert np.bincount(held.labels, minlength=4).tolist() == [4, 2, 1, 0]
    assert np.bincount(kept.labels, minlength=4).tolist() == [16, 7, 1, 1]
    assert kept.class_names == held.class_names == ["ant", "bee", "cat", "dog"]
    assert said.lines[0].endswith("a: 7 of 32 labeled images are held out as test images")
    assert said.lines[1].endswith("1 class is not tested, with fewer than two distinct images: dog")


def test_names_and_order_of_files_decide_nothing_and_the_seed_does(tmp_path):
    folder = write_distinct(tmp_path / "a", {"ant": 12, "bee": 12})
    before = held_images(folder)
    for number, file in enumerate(sorted(folder.glob("ant/*.png"), reverse=True)):
        file.rename(file.with_name(f"x{number:02d}.png"))
    assert held_images(folder) == before
    (folder / "ant").rename(folder / "wasp")
    assert held_images(folder) == before
    assert held_images(folder, seed=1) != before


def test_copies_and_near_duplicates_lie_on_one_side(tmp_path):
    folder = write_distinct(tmp_path / "a", {"ant": 6, "bee": 6})
    for number in range(6):
        shutil.copy(folder / "ant" / f"{number:03d}.png", folder / "ant" / f"copy-{number}.png")
        distinct(1, number).resize((72, 72), Image.Resampling.BICUBIC).save(folder / "bee" / f"larger-{number}.jpg", quality=80)
    for seed in range(4):
        kept, held = hold_out(open_source(str(folder), labeled=True), share=0.3, seed=seed)
        assert np.bincount(held.labels).tolist() == [4, 4]
        shown = [{(label, key[-5]) for label, key in zip(one.labels.tolist(), keys(one), strict=True)} for one in (kept, held)]
        assert len(shown[1]) == 4  # of each an image and its copy
        assert not shown[0] & shown[1]


def test_an_image_that_stands_in_two_classes_stays_labeled(tmp_path):
    folder = write_distinct(tmp_path / "a", {"ant": 3, "bee": 3})
    shutil.copy(folder / "ant" / "000.png", folder / "bee" / "also.png")
    doubtful = image_hash((folder / "ant" / "000.png").read_bytes())
    assert all(doubtful not in held_images(folder, 0.4, seed) for seed in range(8))


@pytest.mark.parametrize(
    ("sizes", "held"), [([1, 1, 1, 1, 1], 1), ([3, 1, 1], 1), ([2, 2], 2), ([5, 2], 2), ([4], 0), ([1], 0), ([1, 1], 1), ([10] * 10, 20)]
)
def test_groups_of_near_duplicates_are_held_out_whole_and_never_all(sizes, held):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    rows = select_holdout_rows([f"{number:032x}" for number in range(len(groups))], groups, np.zeros(len(groups), np.int64), 0.2, 0)
    assert len(rows) == held


def test_an_image_that_cannot_be_decoded_is_not_tested_on():
    rows = select_holdout_rows(["", "b", "", ""], np.arange(4), np.zeros(4, np.int64), 0.9, 0)
    assert rows.tolist() == []


def test_where_nothing_can_be_held_out_one_line_says_what_to_do(tmp_path):
    source = open_source(str(write_distinct(tmp_path / "a", {"ant": 1, "bee": 1})), labeled=True)
    with pytest.raises(NstError, match=r"a: `holdout` 0\.2.*images to test on.*remove `holdout`"):
        hold_out(source, share=0.2)


def test_the_answer_is_kept_until_an_image_changes(tmp_path):
    folder, kept = write_distinct(tmp_path / "a", {"ant": 8, "bee": 8}), tmp_path / "kept"
    before = held_images(folder, kept=kept)
    (file,) = kept.iterdir()
    assert held_images(folder, kept=kept) == before == held_images(folder)
    np.save(file, np.array([0]))
    assert len(held_images(folder, kept=kept)) == 1  # it is read
    distinct(0, 99).save(folder / "ant" / "000.png")
    assert len(held_images(folder, kept=kept)) == 4


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_images_in_tables_and_tar_files_are_held_out_too(tmp_path, kind):
    if kind == "parquet":
        location = str(tmp_path / "a.parquet")
        images_and_labels([0, 1] * 6).to_parquet(location)
    else:
        members = [(f"{key}.{kind}", kind, key % 2, key) for key in range(12) for kind in ("png", "cls")]
        contents = [(name, _png(label, key) if kind == "png" else b"%d" % label) for name, kind, label, key in members]
        location = write_tar(tmp_path / "a.tar", contents)
    source = open_source(location, labeled=True)
    kept, held = hold_out(source, share=0.34)
    assert np.bincount(held.labels).tolist() == [2, 2]
    assert sorted([*keys(kept), *keys(held)]) == sorted(keys(source))
    assert [row.key for row in held.rows(range(1, 3))] == keys(held)[1:3]
    assert [bytes(row.read()) for row in held.rows(range(len(held)))] == [held.read(row) for row in range(len(held))]
    assert len({source.fingerprint, kept.fingerprint, held.fingerprint}) == 3
    assert len(held.stamps()) == 1
    assert held.rows_of_files(np.array([0])).tolist() == list(range(len(held)))


def _png(label, index):
    file = io.BytesIO()
    distinct(label, index).save(file, "PNG")
    return file.getvalue()


STUDENT = TINY | {"ratio": 2}
PARTS = {
    "name": "bugs",
    "labeled": {"source": "labeled"},
    "pool": {"source": "pool"},
    "label": SETTINGS.model_dump(),
    "select": {"min_confidence": 0.0, "per_class": "none"},
    "run": {"workers": 0, "decode_threads": 1},
    "generations": [TINY, STUDENT],
}


def write_recipe(folder, **parts):
    path = folder / "bugs.yaml"
    path.write_text(yaml.safe_dump(PARTS | parts))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A recipe with `holdout` whose pool has all labeled images too: (folder, store, generations)."""
    folder = tmp_path_factory.mktemp("holdout")
    write_distinct(folder / "labeled", dict.fromkeys(CLASSES, 5))
    write_pool(folder / "pool", 3, 4)
    shutil.copytree(folder / "labeled", folder / "pool" / "all")
    store = Store(folder / "store")
    return folder, store, self_training(store, load_recipe(write_recipe(folder, holdout=0.2)), progress=Progress())


def test_held_out_images_are_tested_on_and_in_no_training_and_no_edition(finished):
    folder, store, generations = finished
    held = held_images(folder / "labeled")
    assert len(held) == 3
    teacher = store.open("bugs-teacher@gen-0").manifest
    assert teacher.counts.labeled == 12
    result = Metrics.read(generations[1].teacher.folder).root["test"]
    assert (result.images, result.source) == (3, f"{folder / 'labeled'} (holdout 0.2, seed 0)")
    edition = generations[1].edition
    assert edition.manifest.counts.dropped["held_out"] == 15
    chosen = pl.read_parquet(edition.folder / "balanced" / "*.parquet")["image_hash"].to_list()
    assert len(chosen) == 12
    assert not held & set(chosen)


def test_the_same_recipe_finds_what_it_made_and_another_holdout_is_another_training(finished):
    folder, store, _ = finished
    again = self_training(store, load_recipe(write_recipe(folder, holdout=0.2)), progress=Progress())
    assert [one.teacher.ref for one in again] == ["bugs-teacher@gen-0", "bugs-teacher@gen-1"]
    with pytest.raises(NstError, match=r"bugs-teacher@gen-0 exists .*\(labeled: \S+labeled, part: .* instead of .*\)"):
        self_training(store, load_recipe(write_recipe(folder, holdout=0.4)), progress=Progress())


def test_the_manifest_and_the_card_say_which_images_were_trained_on(finished):
    _, store, _ = finished
    version = store.open("bugs-teacher@gen-0")
    assert version.manifest.request.inputs.labeled.part == "all but holdout 0.2, seed 0"
    assert "--holdout 0.2 --holdout-seed 0" in " ".join(reproduction_command(Described.from_version(version)).replace("\\\n", " ").split())
    assert r"labeled (all but holdout 0\.2, seed 0)" in (version.folder / "README.md").read_text()


def test_commands_hold_out_what_a_recipe_does(finished):
    _, store, _ = finished
    version = store.open("bugs-teacher@gen-0")
    words = shlex.split(reproduction_command(Described.from_version(version)).replace("\\\n", " "))[1:]
    in_store = ["--store", str(store.root), "--json"]
    made = CliRunner().invoke(app, [*words, "--generation", "0", "--workers", "0", *in_store])
    assert json.loads(made.stdout)["digest"] == version.manifest.digest
    data = ["--data", version.manifest.request.inputs.labeled.ref, "--holdout", "0.2"]
    measured = CliRunner().invoke(app, ["evaluate", version.ref, *data, *in_store])
    recorded = Metrics.read(version.folder).root["test"]
    result = json.loads(measured.stdout)[version.ref]
    assert (result["images"], result["top1"]) == (3, recorded.top1)
    assert "warning" not in measured.stderr
    data[data.index("0.2")] = "0.4"
    measured = CliRunner().invoke(app, ["evaluate", version.ref, *data, *in_store])
    assert mentions(measured.stderr, f"warning: {version.ref} … not held out; … score is then too high")


def test_held_out_images_that_were_reviewed_in_the_pool_are_not_trained_on(finished, tmp_path):
    """The pool has all labeled images; people answered about each of its images."""
    folder, finished_store, _ = finished
    store = Store(shutil.copytree(finished_store.root, tmp_path / "store"))
    log = AnswerLog(store, "bugs", "ann")
    answered = scan_labels(store.open("bugs@gen-1")).select("image_hash", "key").collect()
    for hashed, key in answered.iter_rows():
        log.append(hashed, key, class_name="ant")
    freeze(store, "bugs")
    options = [
        "--model",
        "test_resnet",
        "--image-size",
        "16",
        "--crop-pct",
        "1",
        "--epochs",
        "1",
        "--warmup-epochs",
        "0",
        "--batch-size",
        "4",
    ]
    words = ["train", "--labeled", folder / "labeled", "--holdout", "0.2", "--reviews", "bugs@review-1", "--name", "reviewed", *options]
    made = CliRunner().invoke(app, [*map(str, words), "--workers", "0", "--store", str(store.root), "--json"])
    outside = set(answered["image_hash"]) - {image_hash(path.read_bytes()) for path in (folder / "labeled").rglob("*.png")}
    assert json.loads(made.stdout)["counts"]["labeled"] == 12 + len(outside)
    typed = reproduction_command(Described.from_version(store.open("reviewed@gen-0")))
    assert ("--holdout 0.2" in typed, "--exclude" in typed) == (True, False)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "--model", "m", "--labeled", "x", "--holdout", "1"], r"--holdout: .*above 0 and below 1, such as 0.2, found 1$"),
        (["train", "--model", "m", "--labeled", "x", "--holdout-seed", "1"], r"--holdout-seed .* add --holdout SHARE"),
        (["train", "--model", "m", "--pseudo", "a@gen-1.1", "--holdout", "0.2"], r"--holdout .* add them with --labeled SOURCE"),
        (
            ["evaluate", "bugs-teacher@gen-0", "--data", "x", "--suite", "imagenet-a", "--holdout", "0.2"],
            r"--holdout does not apply to imagenet-a",
        ),
        (["evaluate", "bugs-teacher@gen-0", "--data", "x", "--holdout", "20"], r"--holdout: .* found 20$"),
    ],
)
def test_a_holdout_that_holds_nothing_out_is_refused(finished, words, says):
    _, store, _ = finished
    refused = CliRunner().invoke(app, [*words, "--store", str(store.root)])
    assert refused.exit_code == 2
    assert re.search(says, refused.stderr.strip())


def test_what_is_no_share_is_refused(tmp_path):
    source = open_source(str(write_distinct(tmp_path / "a", {"ant": 4, "bee": 4})), labeled=True)
    for share in (0, 1, 20):
        with pytest.raises(UsageError, match=f"`share`: .* such as 0.2, found {share!r}$"):
            hold_out(source, share=share)
    with pytest.raises(UsageError, match=r"`share`: expected a number, found '0.2'$"):
        hold_out(source, share="0.2")
    with pytest.raises(UsageError, match=r"`seed`: .*found -1"):
        hold_out(source, share=0.2, seed=-1)


def test_a_model_that_may_know_held_out_images_is_said(finished):
    folder, store, _ = finished
    settings = TrainSettings(**TINY | {"epochs": 0.1})
    train(store, "old", open_source(str(folder / "labeled"), labeled=True), settings, run=RunSettings(workers=0))
    students = {"holdout": 0.2, "name": "later", "generations": [STUDENT]}
    for model, says in (("old@gen-0", 1), ("bugs-teacher@gen-0", 0)):
        said = RecordingProgress()
        recipe = parse_recipe(yaml.safe_dump(PARTS | students | {"teacher": model}), folder / "later.yaml")
        RecipeData.open(recipe, store, said)
        assert (
            len(
                [
                    line
                    for line in said.lines
                    if mentions(line, f"warning: {model} … not trained on … not held out; … score is then too high")
                ]
            )
            == says
        )


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"holdout": 0.2, "test": {"source": "x"}}, r"bugs\.yaml: `holdout`.*`test` images; remove one"),
        ({"holdout": 20}, r"line \d+: holdout:.*below 1, found 20"),
        ({"evaluate": {"suite": "corruptions"}}, r"`evaluate`.*`test: \{source: ...\}` or `holdout: 0\.2`.*`data`"),
    ],
)
def test_what_does_not_go_with_holdout_is_one_line(tmp_path, parts, says):
    with pytest.raises(UsageError, match=says):
        parse_recipe(yaml.safe_dump(PARTS | parts), tmp_path / "bugs.yaml")


def test_suites_are_measured_on_the_held_out_images(finished):
    folder, store, _ = finished
    recipe = load_recipe(write_recipe(folder, holdout=0.2, evaluate={"suite": "fgsm"}))
    measured = Metrics.read(self_training(store, recipe, progress=Progress())[1].teacher.folder).root
    _, held = hold_out(open_source(str(folder / "labeled"), labeled=True), share=0.2)
    assert measured["test-fgsm"].images == 3
    assert measured["test-fgsm"].fingerprint == open_suite("fgsm", held, recipe.evaluate[0]).identity


def test_a_kept_answer_is_read_without_being_written(tmp_path):
    folder, kept = write_distinct(tmp_path / "a", {"ant": 8, "bee": 8}), tmp_path / "kept"
    held_images(folder, kept=kept, writes=False)
    assert not kept.exists()
    held_images(folder, kept=kept)
    (file,) = kept.iterdir()
    np.save(file, np.array([0]))
    assert len(held_images(folder, kept=kept, writes=False)) == 1


def test_a_wrong_name_is_found_before_all_images_are_read(tmp_path, monkeypatch):
    write_distinct(tmp_path / "labeled", {"ant": 2, "bee": 2})
    write_pool(tmp_path / "pool", 1, 2)
    monkeypatch.setattr(holdout, "hold_out", lambda *_, **__: pytest.fail("read all images"))
    recipe = load_recipe(write_recipe(tmp_path, holdout=0.2, generations=[TINY | {"model": "resnet55"}, STUDENT]))
    with pytest.raises(NstError, match="resnet55: no network of timm"):
        self_training(Store(tmp_path / "store"), recipe, progress=Progress())


def test_settings_are_shown_without_steps_where_nothing_can_be_held_out(tmp_path):
    write_distinct(tmp_path / "labeled", {"ant": 1, "bee": 1})
    words = ["run", str(write_recipe(tmp_path, holdout=0.2)), "--show-settings", "--json", "--store", str(tmp_path / "store")]
    shown = CliRunner().invoke(app, words)
    assert "no steps: " in shown.stderr
    assert json.loads(shown.stdout)[0]["derived"]["labeled_images"] is None


def test_the_next_line_of_a_training_measures_on_what_it_held_out(finished):
    folder, store, _ = finished
    labeled, where = str(folder / "labeled"), ["--store", str(store.root)]
    network = [
        word for key, value in (TINY | {"epochs": 0.1}).items() if key != "noise" for word in (f"--{key.replace('_', '-')}", str(value))
    ]
    words = ["--labeled", labeled, "--holdout", "0.4", "--holdout-seed", "3", "--name", "line", "--workers", "0", *network]
    trained = CliRunner().invoke(app, ["train", *words, *where])
    line = re.search("next: nst (evaluate .*), or", trained.stdout)[1]
    assert line == f"evaluate line@gen-0 --data {labeled} --holdout 0.4 --holdout-seed 3"
    measured = CliRunner().invoke(app, [*shlex.split(line), *where])
    assert (measured.exit_code, "warning" in measured.stderr) == (0, False)


def test_a_student_whose_teachers_teacher_may_know_held_out_images_is_said(finished, tmp_path):
    folder, before, _ = finished
    store = Store(shutil.copytree(before.root, tmp_path / "store"))
    every = open_source(str(folder / "labeled"), labeled=True)
    kept, held = hold_out(every, share=0.2)
    settings, run = TrainSettings(**TINY | {"epochs": 0.1, "seed": 7}), RunSettings(workers=0, decode_threads=1)

    def said_of(ref):
        said = RecordingProgress()
        warn_of_leaks([ref], store, kept, said)
        return said.lines

    def student(name, teacher):
        corpus = label_pool(store, f"{name}-labels", teacher, open_source(str(folder / "pool")), SETTINGS)
        edition = balance(store, corpus, BalanceSettings(min_confidence=0), exclude=[held])
        return train(store, name, kept, settings, pseudo=edition, run=run).ref

    first = train(store, "all", every, settings, run=run).ref
    second = student("second", first)
    third = student("third", second)
    said = RecordingProgress()
    corpus = label_pool(store, "drawn", first, open_source(str(folder / "pool")), SETTINGS)
    for excluded, is_said in (([], True), ([held], False), ([every], False)):
        edition = balance(store, corpus, BalanceSettings(min_confidence=0), exclude=excluded)
        said.lines.clear()
        warn_if_not_excluded(edition, store, every, held, said)
        assert [mentions(line, f"warning: {edition.ref} … without excluding {every.location} …") for line in said.lines] == [True] * is_said
        again = label_like(store, edition, first, open_source(str(folder / "pool")), SETTINGS)
        said.lines.clear()
        warn_if_not_excluded(again, store, every, held, said)
        assert len(said.lines) == is_said
    said = RecordingProgress()
    warn_if_trained_on([first, second], store, every, said)
    assert mentions(said.lines[0], f"warning: {first} was trained on these images; …")
    assert mentions(said.lines[1], f"warning: {second} was trained on these images (through {first}); …")
    warn_if_trained_on([first, second], store, held, said)
    assert mentions(said.lines[2], f"warning: {first} was trained on these images; its score …")
    assert mentions(said.lines[3], f"warning: {second} was trained on these images (through {first}); …")
    shutil.copytree(folder / "labeled", folder / "mixed")
    write_distinct(folder / "mixed", {"ant": 3}, first=900)
    mixed = open_source(str(folder / "mixed"), labeled=True)
    warn_if_trained_on([first], store, mixed, said)
    assert mentions(said.lines[4], f"warning: {first} was trained on {len(every)} of the {len(mixed)} images; …")
    clean = write_distinct(folder / "clean", {"ant": 2, "bee": 2}, first=900)
    warn_if_trained_on([first, second], store, open_source(str(clean), labeled=True), said)
    assert len(said.lines) == 5
    for ref in (second, third):
        (line,) = said_of(ref)
        assert mentions(line, f"warning: {ref} … {first} … not trained on … not held out; … {ref}'s score is then too high")
    assert said_of(student("clean", train(store, "kept", kept, settings, run=run).ref)) == []
