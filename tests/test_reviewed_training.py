import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from conftest import TINY, write_class_folders, write_tiny_images, write_tiny_recipe
from PIL import Image
from watched import InterruptAfter, RecordingProgress
from wording import mentions

from nst_data.cards.cards import dataset_card
from nst_data.errors import NstError, UsageError
from nst_data.formats.export import export
from nst_data.images import image_hash
from nst_data.review.answers import AnswerLog
from nst_data.review.freeze import freeze
from nst_data.review.labeled_part import LabeledPart
from nst_data.selection import answered_rows
from nst_data.selection.answered_rows import AnsweredRows
from nst_data.selection.editions import balance
from nst_data.settings import BalanceSettings
from nst_data.sharing.lineage import lineage
from nst_data.sources import open_source
from nst_data.store.store import Store
from nst_data.tables.label_tables import scan_labels
from nst_train.batches.batches import readable_images
from nst_train.noisy_student import self_training
from nst_train.recipes.reading import load_recipe
from nst_train.settings import RunSettings, TrainSettings
from nst_train.starting.dry_run import dry_run
from nst_train.training.train import train

RUN = RunSettings(workers=0, decode_threads=1)
TWO_STEPS = TrainSettings(**{name: value for name, value in TINY.items() if name != "epochs"}, steps=2)


def answers_of(store, rows):
    """Two images of the pool with a class, one excluded, one unusable: as `tiny@review-1`."""
    log = AnswerLog(store, "tiny", "ann")
    log.append(*rows[0], class_name="bee")
    log.append(*rows[1], class_name="cat")
    log.append(*rows[2], excluded="none of these")
    log.append(*rows[3], excluded="unusable")
    return freeze(store, "tiny")


EASY = BalanceSettings(min_confidence=0, per_class="none")


def test_an_edition_leaves_out_what_people_answered_with_the_reason(labeled_images):
    store, rows = labeled_images
    review = answers_of(store, rows)
    edition = balance(store, "tiny@gen-1", EASY, reviews=review.ref)
    assert edition.ref == "tiny@gen-1.2"
    counts = edition.manifest.counts
    assert {reason: images for reason, images in counts.dropped.items() if images} == {"answered": 2, "none_of_these": 1, "unusable": 1}
    assert (counts.answered, counts.unique) == (2, len(rows) - 4)
    assert edition.manifest.request.inputs.reviews.ref == "tiny@review-1"
    left = set(pl.read_parquet(edition.folder / "balanced/*.parquet")["image_hash"])
    assert left == {image_hash for image_hash, _ in rows[4:]}
    answered = pl.read_parquet(edition.folder / "answered/*.parquet")
    assert answered.select("image_hash", "key", "label").rows() == [(*rows[0], 1), (*rows[1], 2)]
    assert edition.verify() == []
    assert balance(store, "tiny@gen-1", EASY, reviews=review).ref == edition.ref
    assert "answered" not in balance(store, "tiny@gen-1", EASY).manifest.counts.dropped
    with pytest.raises(NstError, match=r"^tiny@review-1 is the parent of tiny@gen-1\.2; remove.*first$"):
        store.remove("tiny@review-1")


def test_answered_images_are_written_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(answered_rows, "_IMAGES_AT_ONCE", 2)
    folder, size = tmp_path / "pool", 200_000
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:02d}.png").write_bytes(np.random.default_rng(number).bytes(size))
    pool, in_memory = open_source(folder), []
    read, before = pool.read, pa.total_allocated_bytes()
    monkeypatch.setattr(pool, "read", lambda row: in_memory.append(pa.total_allocated_bytes() - before) or read(row))
    rows = {"id": range(30), "key": [pool.key(row) for row in range(30)], "label": [0] * 30}
    rows |= {"image_hash": [image_hash((folder / key).read_bytes()) for key in rows["key"]]}
    AnsweredRows(pl.DataFrame(rows), ["ant", "bee"]).write(SimpleNamespace(build=tmp_path, work=tmp_path), pool, True)
    assert len(in_memory) == 30
    assert max(in_memory) < 10 * size


def test_what_is_held_out_is_not_trained_on_because_somebody_answered(labeled_images, tmp_path):
    store, rows = labeled_images
    review, held_out = answers_of(store, rows), tmp_path / "test"
    held_out.mkdir()
    shutil.copy(tmp_path_of(store, rows[0][1]), held_out)
    edition = balance(
        store,
        "tiny@gen-1",
        BalanceSettings(min_confidence=0, per_class="none", exact_overlap_only=True),
        reviews=review,
        exclude=[open_source(str(held_out))],
    )
    assert (edition.manifest.counts.dropped["held_out"], edition.manifest.counts.dropped["answered"]) == (1, 1)
    assert pl.read_parquet(edition.folder / "answered/*.parquet")["image_hash"].to_list() == [rows[1][0]]


def tmp_path_of(store, key):
    return Path(store.open("tiny@gen-1").manifest.request.inputs.pool.ref) / key


@pytest.mark.parametrize("is_embedded", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_student_takes_answered_images_as_labeled_ones(labeled_images, tiny_store, is_embedded):
    store, rows = labeled_images
    labeled = open_source(str(tiny_store[1]), labeled=True)
    log = AnswerLog(store, "tiny", "ann")  # about the labeled set too: one is of another class, one is left out
    log.append(image_hash(labeled.read(0)), "labeled one", class_name="cat")
    log.append(image_hash(labeled.read(1)), "another", excluded="unusable")
    review = answers_of(store, rows)
    settings = EASY.model_copy(update={"embed_images": is_embedded})
    edition = balance(store, "tiny@gen-1", settings, reviews=review)
    seen = {}

    def look(source, faults):
        seen["images"] = readable_images(source, faults)
        return seen["images"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nst_train.training.loop.readable_images", look)
        teacher = train(store, "student", labeled, TWO_STEPS, pseudo=edition, reviews=review, run=RUN)
    trained = seen["images"]
    labels = {image_hash(trained.source.read(int(row))): int(label) for row, label in zip(trained.rows, trained.labels, strict=True)}
    expected = {image_hash(labeled.read(row)): int(labeled.labels[row]) for row in range(len(labeled)) if row != 1}
    assert labels == expected | {image_hash(labeled.read(0)): 2, rows[0][0]: 1, rows[1][0]: 2}
    counts = teacher.manifest.counts
    assert (counts.labeled, counts.reviewed) == (len(labeled) - 1 + 2, 3)
    assert teacher.manifest.request.inputs.reviews.ref == "tiny@review-1"
    assert train(store, "student", labeled, TWO_STEPS, pseudo=edition, reviews=review, run=RUN).ref == teacher.ref


def test_an_edition_of_another_review_or_of_none_is_refused(labeled_images, tiny_store):
    store, rows = labeled_images
    labeled, first = open_source(str(tiny_store[1]), labeled=True), answers_of(store, rows)
    edition = balance(store, "tiny@gen-1", EASY, reviews=first)
    AnswerLog(store, "tiny", "ann").append(*rows[4], class_name="ant")
    second, settings = freeze(store, "tiny"), TWO_STEPS
    with pytest.raises(
        UsageError, match=r"^tiny@gen-1\.2.*with tiny@review-1.*tiny@review-2.*`balance\(store, 'tiny@gen-1', reviews='tiny@review-2'\)`"
    ):
        train(store, "student", labeled, settings, pseudo=edition, reviews=second, run=RUN)
    with pytest.raises(
        UsageError, match=r"^tiny@gen-1\.1.*without any review.*tiny@review-2.*`balance\(store, 'tiny@gen-1', reviews='tiny@review-2'\)`"
    ):
        train(store, "student", labeled, settings, pseudo="tiny@gen-1.1", reviews=second, run=RUN)
    assert store.unfinished() == []


@pytest.mark.slow
def test_an_edition_of_a_review_that_is_not_trained_on_says_so(labeled_images, tiny_store):
    store, rows = labeled_images
    labeled, settings, said = open_source(str(tiny_store[1]), labeled=True), TWO_STEPS, RecordingProgress()
    edition = balance(store, "tiny@gen-1", EASY, reviews=answers_of(store, rows))
    train(store, "student", labeled, settings, pseudo=edition, run=RUN, progress=said)
    assert any(mentions(line, "tiny@gen-1.2 … tiny@review-1, … not trained on; add `reviews`") for line in said.lines)


def test_an_export_of_an_edition_names_the_review_that_has_the_other_images(labeled_images, tiny_store, tmp_path):
    store, rows = labeled_images
    edition, said = balance(store, "tiny@gen-1", EASY, reviews=answers_of(store, rows)), RecordingProgress()
    export(store, edition, tmp_path / "labels", to="csv", progress=said)
    assert f"{edition.ref} was drawn with tiny@review-1, which has the images that people gave a class: export that too" in said.lines


@pytest.mark.slow
def test_without_an_edition_the_images_are_found_in_the_pool_wherever_it_is_now(labeled_images, tiny_store, tmp_path):
    store, rows = labeled_images
    review, labeled = answers_of(store, rows), open_source(str(tiny_store[1]), labeled=True)
    settings = TWO_STEPS
    assert train(store, "a", labeled, settings, reviews=review, run=RUN).manifest.counts.reviewed == 2
    moved = tmp_path / "moved"
    moved.mkdir()
    for number, (_, key) in enumerate(rows):
        shutil.copy(tmp_path_of(store, key), moved / f"renamed {number}.png")
    assert train(store, "b", labeled, settings, reviews=review, pool=open_source(str(moved)), run=RUN).manifest.counts.reviewed == 2
    (moved / "renamed 1.png").unlink()
    with pytest.raises(NstError, match=rf"moved: lacks 1 of 2 images.*'{rows[1][1]}'.*`pool`$"):
        train(store, "c", labeled, settings, reviews=review, pool=open_source(str(moved)), run=RUN)
    for name in ("ant", "bee", "cat"):
        (tmp_path / "validation" / name).mkdir(parents=True)
        Image.radial_gradient("L").save(tmp_path / "validation" / name / "other.png")
    shutil.copy(tmp_path_of(store, rows[0][1]), tmp_path / "validation/ant/again.png")
    validation = open_source(str(tmp_path / "validation"), labeled=True)
    assert train(store, "d", labeled, settings, reviews=review, validation=validation, run=RUN).manifest.counts.reviewed == 1
    with_test = train(store, "e", labeled, settings, reviews=review, exclude=[validation], run=RUN)
    assert (with_test.manifest.counts.reviewed, with_test.manifest.request.inputs.excluded["exclude_1"].ref) == (1, validation.location)


def test_near_duplicates_of_images_to_measure_on_are_not_trained_on_because_somebody_answered(labeled_images, tiny_store, tmp_path):
    store, _ = labeled_images
    pool, log, said = tmp_path / "answered", AnswerLog(store, "tiny", "ann"), RecordingProgress()
    for folder in (pool, tmp_path / "test", tmp_path / "work"):
        folder.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (6, 6, 3), dtype=np.uint8)
        shown = Image.fromarray(pixels).resize((48, 48), Image.Resampling.BICUBIC)
        shown.save(pool / f"{number}.png")
        log.append(image_hash((pool / f"{number}.png").read_bytes()), f"{number}.png", class_name="bee")
        if number:
            shown.save(tmp_path / "test" / f"{number}.jpg", quality=95)
    shutil.copy(pool / "2.png", tmp_path / "test")
    review, labeled = freeze(store, "tiny"), open_source(str(tiny_store[1]), labeled=True)
    test, here = open_source(str(tmp_path / "test")), open_source(str(pool))
    part = LabeledPart.from_review(labeled, review, None, store, lambda: here, tmp_path / "work", [test], said)
    assert [part.source.key(row) for row in range(len(labeled), len(part.source))] == ["0.png"]
    assert part.reviewed == 1
    assert any(mentions(line, "tiny@review-1: 2 images … left out: … near-duplicates") for line in said.lines)


@pytest.mark.slow
def test_cards_say_how_many_labels_people_have_seen(labeled_images, tiny_store):
    store, rows = labeled_images
    review = answers_of(store, rows)
    edition = balance(store, "tiny@gen-1", EASY, reviews=review)
    card = (edition.folder / "README.md").read_text()
    assert "- People have seen 4 images of the pool, none of which is among these labels: 2 they gave a class, 2 they left out.\n" in card
    assert "nst balance tiny@gen-1 --reviews tiny@review-1 " in card
    assert "- config_name: answered\n" in card
    labeled = open_source(str(tiny_store[1]), labeled=True)
    teacher = train(store, "student", labeled, TWO_STEPS, pseudo=edition, reviews=review, run=RUN)
    card = (teacher.folder / "README.md").read_text()
    assert f"- people gave 2 of its {len(labeled) + 2} labels when they looked at single images" in card
    assert " --reviews tiny@review-1 " in card
    card = dataset_card(store.open("tiny@gen-1"))
    assert "- The labels are machine-made: they carry the teacher's mistakes" in card
    assert "- People have seen 4 images of this corpus: `review-1` has what they say.\n" in card
    tree = lineage(store, teacher)
    assert [(node.role, node.ref, node.kind) for node in tree.inputs if node.role == "reviews"] == [("reviews", "tiny@review-1", "review")]


@pytest.mark.slow
def test_a_recipe_takes_what_people_answered_from_a_generation_on(tmp_path):
    store, student = Store(tmp_path / "store"), TINY | {"ratio": 1}
    parts = {"label": {"batch_size": 4}, "select": {"min_confidence": 0, "per_class": 10}, "run": {"workers": 0}}
    write_tiny_images(tmp_path)
    first = self_training(store, load_recipe(write_tiny_recipe(tmp_path, generations=[TINY, student], **parts)))
    rows = scan_labels(store.open("bugs@gen-1")).select("image_hash", "key").collect().rows()
    log = AnswerLog(store, "bugs", "ann")
    log.append(*rows[0], class_name="bee")
    log.append(*rows[1], excluded="unusable")
    freeze(store, "bugs")
    path = write_tiny_recipe(tmp_path, generations=[TINY, student, student], reviews={2: "bugs@review-1"}, **parts)
    made = self_training(store, load_recipe(path))
    assert [one.teacher.ref for one in made[:2]] == [one.teacher.ref for one in first]
    assert made[1].edition.ref == first[1].edition.ref
    assert made[2].edition.manifest.request.inputs.reviews.ref == "bugs@review-1"
    counts = made[2].teacher.manifest.counts
    assert (counts.reviewed, counts.labeled) == (1, 13)
    assert {one.state for one in dry_run(store, load_recipe(path)).stages} == {"done"}
    other = write_tiny_recipe(tmp_path, generations=[TINY, student, student], **parts)
    assert [one.state for one in dry_run(store, load_recipe(other)).stages][-2:] == ["differs", "differs"]


def test_a_teacher_with_answers_that_other_images_were_left_out_of_is_refused_in_the_line_of_the_run(tmp_path):
    store, parts = Store(tmp_path / "store"), {"label": {"batch_size": 4}, "select": {"min_confidence": 0}, "run": {"workers": 0}}
    write_tiny_images(tmp_path)
    write_class_folders(tmp_path / "more", ["ant", "bee", "cat"], 2, first=80)
    self_training(store, load_recipe(write_tiny_recipe(tmp_path, generations=[TINY, TINY | {"ratio": 1}], **parts)))
    AnswerLog(store, "bugs", "ann").append(
        *scan_labels(store.open("bugs@gen-1")).select("image_hash", "key").collect().row(0), class_name="bee"
    )
    freeze(store, "bugs")
    asked = parts | {"name": "answered", "generations": [TINY, TINY | {"ratio": 1}], "reviews": "bugs@review-1"}
    with pytest.raises(KeyboardInterrupt):
        self_training(store, load_recipe(write_tiny_recipe(tmp_path, **asked)), progress=InterruptAfter(4))
    assert dry_run(store, load_recipe(write_tiny_recipe(tmp_path, **asked))).stages[0].state == "begun"
    path = write_tiny_recipe(tmp_path, **asked, evaluate={"suite": "fgsm", "name": "more", "data": {"source": "more"}})
    stage = dry_run(store, load_recipe(path)).stages[0]
    with pytest.raises(NstError, match=r"answered-teacher@gen-0 is unfinished and was started with other settings \(exclude_\d: ") as error:
        self_training(store, load_recipe(path))
    assert (stage.state, stage.refusal) == ("differs", str(error.value))


@pytest.mark.parametrize(
    ("reviews", "complaint"),
    [
        ("bugs", r"line \d+: reviews:.*flowers@review-1, found 'bugs'$"),
        ({1: "bugs@gen-1"}, r"line \d+: reviews:.*flowers@review-1, found 'bugs@gen-1'$"),
        (["bugs@review-1"], r"line \d+: reviews:.*`{2: NAME@review-N}`, found \['bugs@review-1'\]"),
        ({2: "bugs@review-1"}, r"`reviews`:.*no generation 2; expected 0 to 1"),
    ],
)
def test_reviews_of_a_recipe_that_cannot_be_are_one_line(tmp_path, reviews, complaint):
    path = write_tiny_recipe(tmp_path, generations=[TINY, TINY], reviews=reviews)
    with pytest.raises(UsageError, match=complaint):
        load_recipe(path)


def test_a_review_of_a_recipe_is_one_number_or_begins_with_a_generation(tmp_path):
    of_all = load_recipe(write_tiny_recipe(tmp_path, generations=[TINY, TINY], reviews="bugs@review-1"))
    assert [of_all.review_for(generation) for generation in (0, 1)] == ["bugs@review-1", "bugs@review-1"]
    several = {1: "bugs@review-1", 2: "bugs@review-2"}
    later = load_recipe(write_tiny_recipe(tmp_path, generations=[TINY, TINY, TINY, TINY], reviews=several))
    assert [later.review_for(generation) for generation in range(4)] == [None, "bugs@review-1", "bugs@review-2", "bugs@review-2"]
