"""Where no image can be read, or too few, nothing is sealed; with the images back the same command goes on."""

import os
import re
import shutil

import numpy as np
import pyarrow as pa
import pytest
from conftest import TINY, picture, write_class_folders, write_pool
from labels import RUN, SETTINGS, table_rows, write_teacher
from nst_cli.main import app
from pictures import png, write_table
from PIL import Image
from sealed_labels import label_row, seal_generation
from test_adopt import Counting
from test_label_resumed import CountingProgress
from typer.testing import CliRunner
from wording import mentions

from nst_data.adoption import adopt
from nst_data.errors import NstError
from nst_data.selection.editions import balance
from nst_data.settings import BalanceSettings
from nst_data.sources import open_source
from nst_data.sources.corrected import AddedImages, CorrectedSource
from nst_data.sources.unreadable import check_readable, describe_lost_classes, lost_classes
from nst_data.store.store import Store
from nst_train.evaluation.evaluate import measure_and_record
from nst_train.labeling.label import extend, label, label_like
from nst_train.settings import ReadSettings, RunSettings, TrainSettings
from nst_train.training import readable
from nst_train.training.train import train

NAMES = ["ant", "bee", "cat"]
TRAINED = TrainSettings(**TINY | {"epochs": 0.5})
TRAIN_RUN = RunSettings(workers=0, decode_threads=1)
NAMED = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def teacher(tmp_path):
    return write_teacher(tmp_path / "teacher", NAMES)


def table_over(folder, **columns):
    """A parquet file beside `folder` whose rows name its images."""
    cells = [{"bytes": None, "path": f"{folder.name}/{path.name}"} for path in sorted(folder.iterdir())]
    return write_table(folder.parent / "pool.parquet", image=pa.array(cells, NAMED), **columns)


@pytest.mark.parametrize(("unreadable", "allowed", "stops"), [(0, 0, False), (3, 0.3, False), (4, 0.3, True), (10, 1, True), (1, 0, True)])
def test_up_to_the_allowed_share_may_be_unreadable_but_never_all(unreadable, allowed, stops):
    if not stops:
        check_readable("pool", 10, unreadable, allowed, "a.png")
        return
    says = "none of its 10 images" if unreadable == 10 else f"{unreadable} of its 10 images .* `max_unreadable` 0.{unreadable}"
    with pytest.raises(NstError, match=f"pool: {says}"):
        check_readable("pool", 10, unreadable, allowed, "a.png")


@pytest.mark.parametrize(
    ("images", "unreadable", "allowed", "found", "allow"),
    [
        (100_000, 30, 0, "(0.03%) could not be read (limit 0.00%)", "0.0003"),
        (1_000, 101, 0.1, "(10.1%) could not be read (limit 10.0%)", "0.11"),
        (3, 2, 0.5, "(67%) could not be read (limit 50%)", "0.67"),
        (10_000, 9_999, 0.99, "(100%) could not be read (limit 99%)", "1"),
        (2**27, 1, 0, "(0.000001%) could not be read (limit 0.000000%)", "0.0000000075"),
    ],
)
def test_a_small_share_is_told_from_what_is_allowed_and_what_is_proposed_is_enough(images, unreadable, allowed, found, allow):
    with pytest.raises(NstError, match=f"{re.escape(found)}.* `max_unreadable` {re.escape(allow)}$"):
        check_readable("pool", images, unreadable, allowed, "a.png")
    check_readable("pool", images, unreadable, float(allow), "a.png")


@pytest.mark.slow
def test_a_pool_that_is_not_there_is_labeled_once_it_is_back(store, teacher, tmp_path):
    folder = write_pool(tmp_path / "images", 2, 5)
    pool = table_over(folder)
    command = ["label", pool, "--teacher", teacher, "--corpus", "bugs", "--store", store.root, "--rows-per-shard", "4"]
    folder.rename(tmp_path / "away")
    for _ in range(2):
        done = nst(command)
        assert done.exit_code == 1
        assert mentions(done.stderr, "10 of its image files are missing or empty, the first: …images/0-100.png")
        assert mentions(
            done.stderr, "none of its 10 images could be read; the first is 'pool.parquet:0', which is empty or missing; restore"
        )
    assert store.versions() == []
    (tmp_path / "away").rename(folder)
    assert nst(command).exit_code == 0
    assert [row["id"] for row in table_rows(store.open("bugs"))] == list(range(10))
    assert table_rows(store.open("bugs"), "errors") == []


def nst(words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception and not isinstance(result.exception, SystemExit | NstError):
        raise result.exception
    return _CommandResult(result.exit_code, result.output + str(result.exception or ""))


class _CommandResult:
    def __init__(self, exit_code, stderr):
        self.exit_code, self.stderr = exit_code, stderr


@pytest.mark.slow
def test_what_an_earlier_run_could_not_read_is_read_again_and_the_share_is_no_setting_of_the_labels(store, teacher, tmp_path):
    pool = write_pool(tmp_path / "pool", 2, 5)
    whole = label(store, "whole", teacher, open_source(str(pool)), SETTINGS, run=RUN)
    kept = {path: path.read_bytes() for path in sorted(pool.iterdir())[:6]}
    for path, content in kept.items():
        path.write_bytes(bytes(len(content)))
    with pytest.raises(NstError, match=r"bugs@gen-1:.*pool: 6 of its 10.*\(60%\).*\(limit 50%\).*'0-100\.png'.*`max_unreadable`"):
        label(store, "bugs", teacher, open_source(str(pool)), SETTINGS, run=RUN)
    for path, content in kept.items():
        path.write_bytes(content)
    said = CountingProgress()
    version = label(store, "bugs", teacher, open_source(str(pool)), SETTINGS, run=RUN, progress=said)
    assert any("6 previously unreadable images are readable now" in line for line in said.lines)
    assert version.manifest.files == whole.manifest.files
    lenient = RUN.model_copy(update={"max_unreadable": 1.0})
    assert label(store, "bugs", teacher, open_source(str(pool)), SETTINGS, run=lenient).ref == version.ref


def test_the_user_may_take_them_as_they_are(store, teacher, tmp_path):
    pool = write_pool(tmp_path / "pool", 1, 3)
    for path in sorted(pool.iterdir())[:2]:
        path.write_bytes(b"text")
    run = RUN.model_copy(update={"max_unreadable": 0.7})
    version = label(store, "bugs", teacher, open_source(str(pool)), SETTINGS, run=run)
    assert (version.manifest.counts.labeled, version.manifest.counts.errors) == (1, 2)
    said, again = CountingProgress(), run.model_copy(update={"retry_errors": True})
    label(store, "bugs", teacher, open_source(str(pool)), SETTINGS, run=again, progress=said)
    says = "2 unreadable images are missing from it: `retry_errors` does nothing to a sealed version; once they can be read, `store.remove("
    assert any(says in line for line in said.lines)
    balance(store, version, BalanceSettings(min_confidence=0.0, per_class=2))
    label(store, "bugs", teacher, open_source(str(pool)), SETTINGS, run=run, progress=said)
    with pytest.raises(NstError, match=r"bugs@gen-1 is the parent of bugs@gen-1\.1"):
        store.remove("bugs@gen-1")
    advice = "once they can be read, label the pool under another name to have them, since bugs@gen-1.1 was made from bugs@gen-1"
    assert said.lines[-1].endswith(f"2 unreadable images are missing from it: {advice}")
    (pool / "0-102.png").write_bytes(b"text")
    with pytest.raises(NstError, match=r"none@gen-1:.*pool: none of its 3 images.*'0-100\.png'.*restore"):
        label(store, "none", teacher, open_source(str(pool)), SETTINGS, run=run.model_copy(update={"max_unreadable": 1.0}))


def test_one_unreadable_image_is_said_in_the_singular(store, teacher, tmp_path):
    pool = write_pool(tmp_path / "pool", 1, 3)
    min(pool.iterdir()).write_bytes(b"text")
    run, said = RUN.model_copy(update={"max_unreadable": 0.7}), CountingProgress()
    for _ in range(2):
        label(store, "one", teacher, open_source(str(pool)), SETTINGS, run=run, progress=said)
    advice = "1 unreadable image is missing from it: once it can be read, `store.remove('one@gen-1')` and rerun to label it"
    assert said.lines[-1].endswith(advice)


@pytest.mark.parametrize("kind", ["list", "links"])
def test_a_pool_whose_files_are_not_there_is_refused_before_it_is_begun(store, teacher, tmp_path, kind):
    away = write_pool(tmp_path / "away", 2, 2)
    names = sorted(path.name for path in away.iterdir())
    if kind == "list":
        pool = tmp_path / "pool.txt"
        pool.write_text("".join(f"images/{name}\n" for name in names))
    else:
        pool = tmp_path / "links"
        pool.mkdir()
        for name in names:
            (pool / name).symlink_to(tmp_path / "images" / name)
    with pytest.raises(NstError, match=r":.*none.*4 images.*0-100\.png'.*missing; restore"):
        label(store, "bugs", teacher, open_source(str(pool)), SETTINGS, run=RUN)
    assert store.unfinished() == []
    away.rename(tmp_path / "images")
    assert label(store, "bugs", teacher, open_source(str(pool)), SETTINGS, run=RUN).manifest.counts.labeled == 4


@pytest.mark.slow
def test_extending_and_labeling_again_stop_too(store, teacher, tmp_path):
    folder = write_pool(tmp_path / "images", 2, 4)
    pool = table_over(folder)
    first = label(store, "bugs", teacher, open_source(pool), SETTINGS, run=RUN)
    edition = balance(store, first, BalanceSettings(min_confidence=0, per_class=4))
    folder.rename(tmp_path / "away")
    with pytest.raises(NstError, match=r"pool\.parquet: none of its 8 images.*'pool\.parquet:0'.*missing; restore"):
        extend(store, first, open_source(pool), run=RUN)
    other = write_teacher(tmp_path / "other", NAMES, seed=3)
    images = edition.manifest.counts.unique
    with pytest.raises(NstError, match="none of its 8 images could be read"):
        label_like(store, edition, other, open_source(pool), SETTINGS, run=RUN)
    (tmp_path / "away").rename(folder)
    assert extend(store, first, open_source(pool), run=RUN).manifest.counts.labeled == 8
    assert label_like(store, edition, other, open_source(pool), SETTINGS, run=RUN).manifest.counts.unique == images


def test_a_generation_without_labels_that_an_earlier_version_sealed_says_so_when_it_is_found(store, teacher, tmp_path, monkeypatch):
    pool = tmp_path / "pool"
    pool.mkdir()
    (pool / "0.png").write_bytes(b"text")
    with monkeypatch.context() as earlier:
        earlier.setattr("nst_data.labeled_version.check_readable", lambda *_: None)
        label(store, "bugs", teacher, open_source(str(pool)), SETTINGS, run=RUN)
    with pytest.raises(NstError, match=r"bugs@gen-1.*no labels.*none of its 1 images.*`store\.remove\('bugs@gen-1'\)`"):
        label(store, "bugs", teacher, open_source(str(pool)), SETTINGS, run=RUN)


def test_adopting_stops_and_goes_on(store, tmp_path):
    folder = write_pool(tmp_path / "images", 1, 4)
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee\n")
    pool = table_over(folder, soft=[[0.2, 0.8]] * 4)
    folder.rename(tmp_path / "away")

    def adopted():
        return adopt(store, "bugs", open_source(pool), probs="soft", class_names=str(names))

    with pytest.raises(NstError, match=r"bugs@gen-1:.*none of its 4 images.*'pool\.parquet:0'.*restore"):
        adopted()
    assert store.versions() == []
    (tmp_path / "away").rename(folder)
    assert adopted().manifest.counts.labeled == 4


def test_held_out_images_that_cannot_be_read_are_counted_and_stop_a_balance(store, tmp_path):
    kept = [png(0, index) for index in range(3)]
    generation = seal_generation(
        store, [label_row(row, image, 0, 0.9) for row, image in enumerate(kept)], counts={"teacher_parameters": 0, "top_k": None}
    )
    test = write_pool(tmp_path / "test", 1, 4, first=500)
    (test / "0-500.png").write_bytes(b"text")
    settings = BalanceSettings(min_confidence=0, per_class=3, exact_overlap_only=True)
    near = settings.model_copy(update={"exact_overlap_only": False})
    assert balance(store, generation, near, exclude=[open_source(str(test))]).manifest.counts.held_out_unreadable == 1
    source = open_source(str(test))
    for path in test.iterdir():
        path.rename(tmp_path / path.name)
    with pytest.raises(NstError, match=r"test:.*4 excluded images.*'0-500\.png'; restore"):
        balance(store, generation, settings, exclude=[source])
    assert store.unfinished() == []


def test_a_training_names_the_class_of_which_no_image_can_be_read(store, tmp_path):
    labeled = write_class_folders(tmp_path / "labeled", NAMES, 2)
    for path in (labeled / "bee").iterdir():
        path.write_bytes(b"text")
    with pytest.raises(NstError, match=r"labeled:.*2 images.*'bee'.*bee/000\.png: not an image.*restore.*remove the class"):
        train(store, "t", open_source(str(labeled), labeled=True), TRAINED, run=TRAIN_RUN)
    assert store.unfinished() == []


def test_classes_without_images_are_said_and_counted(store, tmp_path):
    labeled = write_class_folders(tmp_path / "labeled", NAMES, 2)
    (labeled / "dog").mkdir()
    (labeled / "dog" / "0.heic").write_bytes(b"")
    said = CountingProgress()
    version = train(store, "t", open_source(str(labeled), labeled=True), TRAINED, run=TRAIN_RUN, progress=said)
    assert any(mentions(line, f"{labeled}: 1 folder without images …: dog") for line in said.lines)
    assert any(mentions(line, f"{labeled}: skipped 1 file: 1 .heic; … .jpg or .png") for line in said.lines)
    assert version.manifest.counts.classes_without_images == ["dog"]
    assert version.manifest.request.inputs.labeled.skipped == {".heic": 1}


@pytest.mark.parametrize("role", ["labeled", "validation"])
def test_unreadable_images_are_found_before_any_step_of_a_training(store, tmp_path, role):
    folders = {one: write_class_folders(tmp_path / one, NAMES, 4) for one in ("labeled", "validation")}
    files = sorted(folders[role].rglob("*.png"))
    for path in files[1:]:
        path.write_bytes(b"text")

    def trained(**more):
        sources = [open_source(str(folder), labeled=True) for folder in folders.values()]
        return train(store, "t", sources[0], TRAINED, validation=sources[1], run=TRAIN_RUN.model_copy(update=more))

    with pytest.raises(NstError, match=rf"{role}: 11 of its 12.*\(92%\).*\(limit 50%\).*ant/001\.png"):
        trained()
    assert store.unfinished() == []
    for path in files[3:]:
        picture(0, int(path.stem)).save(path)
    version = trained()
    assert getattr(version.manifest.counts, "unreadable" if role == "labeled" else "unreadable_validation") == 2


@pytest.mark.parametrize(("many", "done"), [(12, 12), (13, None)])
def test_the_check_of_many_labeled_images_shows_how_far_it_is(store, tmp_path, monkeypatch, many, done):
    monkeypatch.setattr(readable, "_MIN_IMAGES_FOR_PROGRESS", many)
    labeled, shown = write_class_folders(tmp_path / "labeled", NAMES, 4), Counting()
    train(store, "t", open_source(str(labeled), labeled=True), TRAINED, run=TRAIN_RUN, progress=shown)
    assert shown.done.get("check") == done


def test_labeled_images_that_could_all_be_decoded_are_not_decoded_again_before_the_next_training(store, tmp_path, monkeypatch):
    monkeypatch.setattr(readable, "_MIN_IMAGES_FOR_PROGRESS", 1)
    labeled = write_class_folders(tmp_path / "labeled", NAMES, 4)
    shutil.copy(labeled / "ant" / "000.png", labeled / "bee" / "same.png")

    def checked(name, seed=0):
        shown = Counting()
        settings = TRAINED.model_copy(update={"seed": seed})
        version = train(store, name, open_source(str(labeled), labeled=True), settings, run=TRAIN_RUN, progress=shown)
        assert any("in two or more classes" in line for line in shown.lines)
        return shown.done.get("check"), np.load(version.folder / "read" / "labeled.npy").tobytes()

    done, hashes = checked("first")
    assert (done, len(hashes)) == (13, 13 * 16)
    assert checked("again", seed=1) == (None, hashes)
    (kept,) = store.indexes.folder.glob("*.hashes")
    kept.write_bytes(kept.read_bytes()[:-1])
    assert checked("damaged") == (13, hashes)
    os.utime(labeled / "cat" / "000.png")
    assert checked("touched") == (13, hashes)
    whole = (labeled / "cat" / "000.png").read_bytes()
    (labeled / "cat" / "000.png").write_bytes(whole[:40] + bytes(len(whole) - 40))  # of the same size
    for name in ("broken", "still"):
        assert checked(name)[0] == 13
    (labeled / "cat" / "000.png").write_bytes(whole)
    assert [checked(name) for name in ("whole", "last")] == [(13, hashes), (None, hashes)]


def decoded_name(source, store):
    return readable._CachedHashes.for_source(store.indexes, source).name


def test_that_images_could_be_decoded_is_known_of_these_files_and_packages_alone(store, tmp_path, monkeypatch):
    folders = [write_class_folders(tmp_path / name, NAMES, 1, first) for name, first in (("one", 0), ("two", 7))]
    pinned = [open_source(str(folder), labeled=True) for folder in (*folders, folders[0])]
    for source, commit in zip(pinned, ("a", "b", "b"), strict=True):
        source.location = f"me/data@{commit * 40}"
        source.pin(commit * 40)
    sources = [*pinned, *(open_source(str(folder), labeled=True) for folder in folders)]
    names = [decoded_name(source, store) for source in sources]
    assert None not in names
    assert (len(set(names)), names[1]) == (4, names[2])
    monkeypatch.setattr(readable, "installed_packages", lambda: {"pillow": "0"})
    assert {decoded_name(source, store) for source in sources}.isdisjoint(names)
    sources[3].read(0)
    next(folders[0].rglob("*.png")).unlink()
    assert decoded_name(open_source(str(folders[0]), labeled=True), store) not in (None, names[3])
    assert decoded_name(sources[3], store) is None  # one that it lists is not there


def test_images_of_a_local_pool_beside_those_of_a_commit_have_stamps(store, tmp_path):
    labeled = open_source(str(write_class_folders(tmp_path / "labeled", NAMES, 1)), labeled=True)
    labeled.pin("a" * 40)
    pool = write_pool(tmp_path / "pool", 1, 2)
    found = AddedImages(open_source(str(pool)), np.array([0, 1]), np.array([0, 1]), ["0" * 32, "1" * 32])
    both, alone = (CorrectedSource(labeled, labeled.labels, [], more) for more in (found, None))
    assert (len(both.stamps()), len(list(both.files())), len(alone.stamps())) == (2, 2, 0)
    before = decoded_name(both, store)
    next(pool.iterdir()).unlink()
    assert None not in (before, decoded_name(alone, store))
    assert decoded_name(both, store) is None


def test_an_evaluation_on_few_readable_images_is_refused(store, teacher, tmp_path):
    test = write_class_folders(tmp_path / "test", NAMES, 2)
    for path in sorted(test.rglob("*.png"))[:4]:
        os.truncate(path, 10)
    command = ["evaluate", teacher, "--data", test, "--store", store.root]
    done = nst(command)
    assert done.exit_code == 1
    assert mentions(done.stderr, "test: 4 of its 6 images (67%) …")
    assert nst([*command, "--max-unreadable", "0.7"]).exit_code == 0


def test_a_wrong_pool_is_refused_by_a_sample(tmp_path):
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    for index in range(400):
        (wrong / f"{index:03d}.png").write_bytes(b"other %d" % index)
    source, read = open_source(str(wrong)), []
    source.rows = lambda wanted, rows=source.rows: (read.append(row.id) or row for row in rows(wanted))
    hashes = [pa.array([f"{index:032x}" for index in range(300)])]
    with pytest.raises(NstError, match=r"wrong:.*none of 64 sampled images.*300.*`pool`"):
        source.check_shares_images(lambda: hashes, 300)
    assert len(np.unique(read)) == 64
    from nst_data.images import image_hash

    hashes.append(pa.array([image_hash(b"other %d" % read[-1])]))
    source.check_shares_images(lambda: hashes, 300)


def test_a_class_of_which_no_image_can_be_read_is_named_in_validation_and_evaluation(store, tmp_path):
    folders = [write_class_folders(tmp_path / name, NAMES, images) for name, images in (("labeled", 4), ("scored", 2))]
    for path in (folders[1] / "bee").iterdir():
        path.write_bytes(b"text")
    labeled, scored = (open_source(str(folder), labeled=True) for folder in folders)
    for act in ("validation", "evaluation"):
        said = CountingProgress()
        if act == "validation":
            teacher = train(store, "t", labeled, TRAINED, validation=scored, run=TRAIN_RUN, progress=said)
        else:
            result = measure_and_record(store, teacher, scored, "scored", ReadSettings(decode_threads=1), said)
            assert (result["classes_not_read"], result["errors"]) == ({"bee": 2}, 2)
        assert any(mentions(line, f"{scored.location}: none of the 2 images of class 'bee' …") for line in said.lines)


def test_a_class_is_lost_where_no_image_of_it_is_left():
    labels = np.array([0, 0, 1, 1, 2])
    assert lost_classes(labels, ["ant", "bee", "cat", "none"], np.array([0, 2, 3])) == {"bee": 2}
    assert lost_classes(labels, NAMES, np.array([], np.int64)) == {}
    assert describe_lost_classes({"bee": 1}) == "no image of class 'bee' can be read"
    assert describe_lost_classes({"bee": 1, "cat": 2}) == "no image of 2 classes can be read: 'bee', 'cat'"


def test_an_image_too_elongated_to_be_labeled_is_trained_on_only_where_random_crops_are_taken(store, tmp_path):
    """Resized to its short side, as in evaluation, it would be tens of thousands of pixels long."""
    labeled = write_class_folders(tmp_path / "labeled", NAMES, 4)
    Image.new("RGB", (3, 1200)).save(labeled / "cat" / "line.png")
    trained, told = {}, Counting()
    for transform in ("training", "evaluation"):
        settings = TRAINED.model_copy(update={"transform": transform})
        source = open_source(str(labeled), labeled=True)
        trained[transform] = train(store, transform, source, settings, run=TRAIN_RUN, progress=told).manifest.counts
    assert {name: (counts.labeled, counts.unreadable) for name, counts in trained.items()} == {"training": (13, 0), "evaluation": (12, 1)}
    assert any("skipped, unreadable: cat/line.png: 3x1200 pixels: one side is more than 250 times the other" in line for line in told.lines)
