import csv
import json
import shutil
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from conftest import TINY, write_class_folders, write_tiny_images, write_tiny_recipe
from datasets import Features
from watched import Said

from nst_data.cards.cards import dataset_card
from nst_data.errors import NstError, UsageError
from nst_data.images import image_hash
from nst_data.review.answer_files import export_answers, import_answers
from nst_data.review.answers import AnswerLog, settled
from nst_data.review.freeze import freeze
from nst_data.selection.editions import balance
from nst_data.settings import BalanceSettings
from nst_data.sharing.lineage import lineage
from nst_data.sources import open_source
from nst_data.store.store import Store
from nst_data.tables.label_tables import scan_labels
from nst_data.tables.review_table import hashes_by_reason, read_review
from nst_data.tables.schema import review_schema
from nst_train.batches.batches import without
from nst_train.noisy_student import self_training
from nst_train.recipe import load_recipe
from nst_train.settings import RunSettings, TrainSettings
from nst_train.starting.dry_run import dry_run
from nst_train.training.train import train

RUN = RunSettings(workers=0, decode_threads=1)
TWO_STEPS = TrainSettings(**{name: value for name, value in TINY.items() if name != "epochs"}, steps=2)


@pytest.fixture
def images(tiny_store, tmp_path):
    """A copy of the store, and (hash, key) of the images of its generation in order."""
    store = Store(shutil.copytree(tiny_store[0].root, tmp_path / "store"))
    return store, scan_labels(store.open("tiny@gen-1")).select("image_hash", "key").collect().rows()


def test_a_frozen_review_has_each_settled_answer_and_is_known_by_them(images):
    store, rows = images
    ann, bob = AnswerLog(store, "tiny", "ann"), AnswerLog(store, "tiny", "bob")
    ann.append(*rows[0], class_name="bee", picked_by="random", seen_in="tiny@gen-1")
    ann.append(*rows[1], excluded="none of these")
    bob.append(*rows[2], excluded="unusable")
    bob.append(*rows[0], class_name="bee", picked_by="margin")
    review = freeze(store, "tiny")
    assert review.ref == "tiny@review-1"
    assert review.verify() == []
    (file,) = review.folder.glob("review/*.parquet")
    table = pq.read_table(file)
    assert Features.from_arrow_schema(table.schema) == Features.from_arrow_schema(review_schema(["ant", "bee", "cat"]))
    by_hash = {row["image_hash"]: row for row in table.to_pylist()}
    first = by_hash[rows[0][0]]
    assert (first["key"], first["label"], first["excluded"]) == (rows[0][1], 1, None)
    assert (first["picked_by"], first["seen_in"], first["reviewers"]) == ("random", "tiny@gen-1", ["ann", "bob"])
    assert by_hash[rows[1][0]]["label"] is None
    reasons = {"answered": {rows[0][0]}, "none_of_these": {rows[1][0]}, "unusable": {rows[2][0]}}
    assert hashes_by_reason(review) == reasons
    counts = review.manifest.counts
    assert counts.reviewers == {"ann": 2, "bob": 2}
    assert counts.per_class == {"ant": 0, "bee": 1, "cat": 0}
    assert freeze(store, "tiny").ref == "tiny@review-1"
    bob.append(*rows[3], class_name="cat")
    assert freeze(store, "tiny").ref == "tiny@review-2"
    assert [version.ref for version in store.versions("tiny")] == ["tiny@review-1", "tiny@review-2", "tiny@gen-1", "tiny@gen-1.1"]
    assert store.open("tiny").ref == "tiny@gen-1.1"
    assert store.open("tiny", "review").ref == "tiny@review-2"


def test_an_anonymous_review_names_no_reviewer(images):
    store, rows = images
    AnswerLog(store, "tiny", "Zoe-Q").append(*rows[0], class_name="bee")
    review = freeze(store, "tiny", anonymous=True)
    (file,) = review.folder.glob("review/*.parquet")
    assert "reviewers" not in pq.read_schema(file).names
    texts = [path.read_text() for path in review.folder.iterdir() if path.suffix in (".json", ".md")]
    assert len(texts) == 2
    assert not any("Zoe-Q" in text for text in texts)
    assert review.manifest.request.inputs.answers.ref == "answers of 1 reviewer"
    assert freeze(store, "tiny").ref == "tiny@review-2"


def test_disputed_images_are_named_until_they_are_settled(images):
    store, rows = images
    AnswerLog(store, "tiny", "ann").append(*rows[0], class_name="bee")
    bob = AnswerLog(store, "tiny", "bob")
    bob.append(*rows[0], excluded="none of these")
    with pytest.raises(NstError, match=rf"^tiny: 1 image is disputed: '{rows[0][1]}' \(ann: bee, bob: none of these\); one of the"):
        freeze(store, "tiny")
    bob.append(*rows[0], undo=True)
    assert freeze(store, "tiny").manifest.counts.answered == 1


def test_what_cannot_be_frozen_is_one_line(images):
    store, rows = images
    with pytest.raises(NstError, match=r"reviews/tiny: there is no answer about tiny yet; `nst look` takes them$"):
        freeze(store, "tiny")
    AnswerLog(store, "tiny", "ann").append(*rows[0], class_name="dog")
    with pytest.raises(
        NstError, match=rf"ann's answer about '{rows[0][1]}': the corpus has no class 'dog'; expected one of ant, bee, cat; "
    ):
        freeze(store, "tiny")
    assert store.unfinished() == []


def test_answers_about_a_labeled_set_have_its_classes_without_a_corpus(images):
    store, rows = images
    AnswerLog(store, "photos", "ann").append(*rows[0], class_name="wasp")
    assert freeze(store, "photos").manifest.class_names == ["wasp"]
    AnswerLog(store, "photos", "ann").append(*rows[1], class_name="ant")
    assert freeze(store, "photos", class_names=["wasp", "ant"]).manifest.class_names == ["wasp", "ant"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_what_was_exported_is_imported_elsewhere(images, tmp_path, suffix):
    store, rows = images
    odd_key = 'a "b", c\n'
    log = AnswerLog(store, "tiny", "ann")
    log.append(*rows[0], class_name="bee", picked_by="random", seen_in="tiny@gen-1")
    log.append("f" * 32, odd_key, excluded="none of these")
    file = tmp_path / f"answers{suffix}"
    assert export_answers(store, "tiny", file) == 2
    assert import_answers(store, "other", file, reviewer="bob") == (2, 0)
    assert import_answers(store, "other", file, reviewer="bob") == (0, 2)
    here, there = settled(store, "tiny").answers, settled(store, "other").answers
    assert [(one.key, one.says, one.picked_by, one.seen_in) for one in here.values()] == [
        (one.key, one.says, one.picked_by, one.seen_in) for one in there.values()
    ]
    freeze(store, "tiny")
    assert export_answers(store, "tiny@review-1", file) == 2


def test_rows_may_name_images_by_key_alone(images, tmp_path):
    store, rows = images
    file = tmp_path / "by hand.csv"
    with file.open("w", newline="") as out:
        csv.writer(out).writerows([("key", "class", "excluded"), (rows[0][1], "cat", ""), (rows[1][1], "", "unusable")])
    assert import_answers(store, "tiny", file) == (2, 0)
    assert {image: one.words for image, one in settled(store, "tiny").answers.items()} == {rows[0][0]: "cat", rows[1][0]: "unusable"}


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"key": "no.png", "class": "ant"}, r"line 1: tiny@gen-1 has no image 'no\.png'; name its `image_hash`$"),
        ({"image_hash": "aa", "class": "dog"}, r"line 1: the corpus has no class 'dog'; expected one of ant, bee, cat$"),
        ({"class": "ant"}, r"line 1: names no image; expected its `image_hash` or `key`$"),
        ({"key": "a"}, r"line 1: expected either a `class` or why it is `excluded`$"),
        ({"key": "a", "class": 3}, r"line 1: `class` is 3, expected text$"),
        ({"key": "a", "excluded": "dull"}, r"line 1: `excluded` is 'dull', expected 'none of these' or 'unusable'$"),
        (["a"], r"line 1: expected a JSON object, found list$"),
    ],
)
def test_a_row_that_cannot_be_taken_is_named_and_nothing_is_added(images, tmp_path, row, complaint):
    store, _ = images
    file = tmp_path / "answers.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(NstError, match=complaint):
        import_answers(store, "tiny", file)
    assert not settled(store, "tiny").answers


def test_files_of_another_kind_are_refused(images, tmp_path):
    store, _ = images
    with pytest.raises(UsageError, match=r"answers\.xlsx: expected a file that ends in \.csv or \.jsonl$"):
        import_answers(store, "tiny", tmp_path / "answers.xlsx")
    (tmp_path / "a.csv").write_text("name,label\nx,y\n")
    with pytest.raises(
        NstError, match=r"a\.csv: expected a header with `image_hash` or `key`, and `class` or `excluded`; found name, label$"
    ):
        import_answers(store, "tiny", tmp_path / "a.csv")
    with pytest.raises(UsageError, match=r"b\.csv: No such file or directory; expected a CSV or JSONL file$"):
        import_answers(store, "tiny", tmp_path / "b.csv")
    with pytest.raises(NstError, match=r"^tiny: there is no answer to export yet$"):
        export_answers(store, "tiny", tmp_path / "c.csv")


def test_a_table_that_was_changed_is_refused(images):
    store, rows = images
    AnswerLog(store, "tiny", "ann").append(*rows[0], class_name="bee")
    review = freeze(store, "tiny")
    (file,) = review.folder.glob("review/*.parquet")
    table = pq.read_table(file)
    pq.write_table(table.set_column(2, table.schema.field("label"), [[7]]), file)
    with pytest.raises(NstError, match=r"tiny@review-1"):
        read_review(review)


def answers_of(store, rows):
    """Two images of the pool with a class, one excluded, one unusable: as `tiny@review-1`."""
    log = AnswerLog(store, "tiny", "ann")
    log.append(*rows[0], class_name="bee")
    log.append(*rows[1], class_name="cat")
    log.append(*rows[2], excluded="none of these")
    log.append(*rows[3], excluded="unusable")
    return freeze(store, "tiny")


EASY = BalanceSettings(min_confidence=0, per_class="none")


def test_an_edition_leaves_out_what_people_answered_with_the_reason(images):
    store, rows = images
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
    with pytest.raises(NstError, match=r"^tiny@review-1: tiny@gen-1\.2 was made from it; remove that first$"):
        store.remove("tiny@review-1")


def test_what_is_held_out_is_not_trained_on_because_somebody_answered(images, tmp_path):
    store, rows = images
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
def test_a_student_takes_answered_images_as_labeled_ones(images, tiny_store, is_embedded):
    store, rows = images
    labeled = open_source(str(tiny_store[1]), labeled=True)
    log = AnswerLog(store, "tiny", "ann")  # about the labeled set too: one is of another class, one is left out
    log.append(image_hash(labeled.read(0)), "labeled one", class_name="cat")
    log.append(image_hash(labeled.read(1)), "another", excluded="unusable")
    review = answers_of(store, rows)
    settings = EASY.model_copy(update={"embed_images": is_embedded})
    edition = balance(store, "tiny@gen-1", settings, reviews=review)
    seen = {}

    def look(source, faults):
        seen["images"] = without(source, faults)
        return seen["images"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nst_train.training.loop.without", look)
        teacher = train(store, "student", labeled, TWO_STEPS, edition=edition, reviews=review, run=RUN)
    trained = seen["images"]
    labels = {image_hash(trained.source.read(int(row))): int(label) for row, label in zip(trained.rows, trained.labels, strict=True)}
    expected = {image_hash(labeled.read(row)): int(labeled.labels[row]) for row in range(len(labeled)) if row != 1}
    assert labels == expected | {image_hash(labeled.read(0)): 2, rows[0][0]: 1, rows[1][0]: 2}
    counts = teacher.manifest.counts
    assert (counts.labeled, counts.reviewed) == (len(labeled) - 1 + 2, 3)
    assert teacher.manifest.request.inputs.reviews.ref == "tiny@review-1"
    assert train(store, "student", labeled, TWO_STEPS, edition=edition, reviews=review, run=RUN).ref == teacher.ref


def test_an_edition_of_another_review_or_of_none_is_refused(images, tiny_store):
    store, rows = images
    labeled, first = open_source(str(tiny_store[1]), labeled=True), answers_of(store, rows)
    edition = balance(store, "tiny@gen-1", EASY, reviews=first)
    AnswerLog(store, "tiny", "ann").append(*rows[4], class_name="ant")
    second, settings = freeze(store, "tiny"), TWO_STEPS
    with pytest.raises(UsageError, match=r"^tiny@gen-1\.2 was drawn with tiny@review-1, so images that tiny@review-2 answers about may be"):
        train(store, "student", labeled, settings, edition=edition, reviews=second, run=RUN)
    with pytest.raises(UsageError, match=r"^tiny@gen-1\.1 was drawn without any review, so images that tiny@review-2 answers"):
        train(store, "student", labeled, settings, edition="tiny@gen-1.1", reviews=second, run=RUN)
    assert store.unfinished() == []
    said = Said()
    train(store, "student", labeled, settings, edition=edition, run=RUN, progress=said)
    assert "tiny@gen-1.2 was drawn with tiny@review-1, and labels that people gave there are not trained on; add `reviews`" in said.lines


@pytest.mark.slow
def test_without_an_edition_the_images_are_found_in_the_pool_wherever_it_is_now(images, tiny_store, tmp_path):
    store, rows = images
    review, labeled = answers_of(store, rows), open_source(str(tiny_store[1]), labeled=True)
    settings = TWO_STEPS
    assert train(store, "a", labeled, settings, reviews=review, run=RUN).manifest.counts.reviewed == 2
    moved = tmp_path / "moved"
    moved.mkdir()
    for number, (_, key) in enumerate(rows):
        shutil.copy(tmp_path_of(store, key), moved / f"renamed {number}.png")
    assert train(store, "b", labeled, settings, reviews=review, pool=open_source(str(moved)), run=RUN).manifest.counts.reviewed == 2
    (moved / "renamed 1.png").unlink()
    with pytest.raises(NstError, match=rf"moved: lacks 1 of 2 images, the first is '{rows[1][1]}'; pass the labeled pool with `pool`$"):
        train(store, "c", labeled, settings, reviews=review, pool=open_source(str(moved)), run=RUN)
    validation = open_source(str(write_class_folders(tmp_path / "validation", ["ant", "bee", "cat"], 1)), labeled=True)
    shutil.copy(tmp_path_of(store, rows[0][1]), tmp_path / "validation/ant/again.png")
    validation = open_source(str(tmp_path / "validation"), labeled=True)
    assert train(store, "d", labeled, settings, reviews=review, validation=validation, run=RUN).manifest.counts.reviewed == 1


def test_cards_say_how_many_labels_people_have_seen(images, tiny_store):
    store, rows = images
    review = answers_of(store, rows)
    edition = balance(store, "tiny@gen-1", EASY, reviews=review)
    card = (edition.folder / "README.md").read_text()
    assert "- People have seen 4 images of the pool, none of which is among these labels: 2 they gave a class, 2 they left out.\n" in card
    assert "nst balance tiny@gen-1 --reviews tiny@review-1 " in card
    assert "- config_name: answered\n" in card
    labeled = open_source(str(tiny_store[1]), labeled=True)
    teacher = train(store, "student", labeled, TWO_STEPS, edition=edition, reviews=review, run=RUN)
    card = (teacher.folder / "README.md").read_text()
    assert f"- people gave 2 of its {len(labeled) + 2} labels when they looked at single images" in card
    assert " --reviews tiny@review-1 " in card
    card = dataset_card(store.open("tiny@gen-1"))
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


@pytest.mark.parametrize(
    ("reviews", "complaint"),
    [
        ("bugs", r"reviews: expected a review of the store with its number, such as flowers@review-1, one is 'bugs'"),
        ({1: "bugs@gen-1"}, r"expected a review of the store with its number, such as flowers@review-1, one is 'bugs@gen-1'"),
        (["bugs@review-1"], r"expected NAME@review-N, or from which generation on: `{2: NAME@review-N}`"),
        ({2: "bugs@review-1"}, r"`reviews`: there is no generation 2; expected 0 to 1"),
    ],
)
def test_reviews_of_a_recipe_that_cannot_be_are_one_line(tmp_path, reviews, complaint):
    path = write_tiny_recipe(tmp_path, generations=[TINY, TINY], reviews=reviews)
    with pytest.raises(UsageError, match=complaint):
        load_recipe(path)


def test_a_review_of_a_recipe_is_one_number_or_begins_with_a_generation(tmp_path):
    of_all = load_recipe(write_tiny_recipe(tmp_path, generations=[TINY, TINY], reviews="bugs@review-1"))
    assert [of_all.reviews_of(generation) for generation in (0, 1)] == ["bugs@review-1", "bugs@review-1"]
    several = {1: "bugs@review-1", 2: "bugs@review-2"}
    later = load_recipe(write_tiny_recipe(tmp_path, generations=[TINY, TINY, TINY, TINY], reviews=several))
    assert [later.reviews_of(generation) for generation in range(4)] == [None, "bugs@review-1", "bugs@review-2", "bugs@review-2"]
