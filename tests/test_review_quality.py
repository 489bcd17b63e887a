import csv

import polars as pl
import pytest
from nst_cli.look.opening import open_contents
from sealed_labels import label_row, seal_generation

from nst_data.errors import NstError, UsageError
from nst_data.inspection.quality import quality
from nst_data.inspection.review_quality import Share
from nst_data.review.answer_files import import_answers
from nst_data.review.answers import AnswerLog
from nst_data.review.freeze import freeze
from nst_data.review.picks import write_pick_list
from nst_data.settings import PickSettings
from nst_data.store.inputs import Input
from nst_data.store.store import Store
from nst_data.tables.label_tables import scan_labels
from nst_train.features.picking import pick


@pytest.fixture
def labeled(tiny_store, tmp_path):
    """A store with the same labels and no answers: (store, the generation's hash, key and label of each image)."""
    import shutil

    store = Store(shutil.copytree(tiny_store[0].root, tmp_path / "store"))
    return store, scan_labels(store.open("tiny@gen-1")).select("image_hash", "key", "label").collect().rows()


def test_the_interval_is_that_of_wilson():
    share = Share.from_counts(8, 10)  # 0.4902 to 0.9433 in the tables of Brown, Cai and DasGupta (2001)
    assert (share.low, share.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    whole = Share.from_counts(8, 10, population=10)
    assert (whole.low, whole.high) == (0.8, 0.8)
    part = Share.from_counts(8, 10, population=12)
    assert share.low < part.low < 0.8 < part.high < share.high
    nearly_endless = Share.from_counts(8, 10, population=10**9)
    assert (nearly_endless.low, nearly_endless.high) == pytest.approx((share.low, share.high), abs=1e-6)
    assert Share.from_counts(0, 0) is None
    assert Share.from_counts(3, 3).high == 1.0


def test_only_a_random_pick_gives_an_estimate(labeled):
    store, rows = labeled
    names, log = ["ant", "bee", "cat"], AnswerLog(store, "tiny", "ann")
    for image_hash, key, label in rows[:4]:
        log.append(image_hash, key, class_name=names[label], picked_by="random", seen_in="tiny@gen-1")
    image_hash, key, label = rows[4]
    log.append(image_hash, key, class_name=names[(label + 1) % 3], picked_by="random", seen_in="tiny@gen-1")
    log.append(*rows[5][:2], excluded="none of these", picked_by="random", seen_in="tiny@gen-1")
    for image_hash, key, label in rows[6:9]:
        log.append(image_hash, key, class_name=names[(label + 1) % 3], picked_by="suspicion", seen_in="tiny@gen-1")
    log.append(*rows[4][:2], class_name=names[(rows[4][2] + 1) % 3], picked_by="suspicion", seen_in="tiny@gen-1")  # stays a random one
    review = freeze(store, "tiny")
    measured = quality(store, "tiny@gen-1", review.ref)
    assert (measured.truth, measured.joined, measured.accuracy) == ("tiny@review-1", 8, 0.5)
    found = measured.review
    assert (found.images, found.answered) == (len(rows), 9)
    assert {how: (share.correct, share.images) for how, share in found.by_pick.items()} == {"random": (4, 5), "suspicion": (0, 3)}
    assert found.estimate == Share.from_counts(4, 5, len(rows) - len(rows) // 6)
    assert found.excluded_at_random == {"none of these": 1, "unusable": 0}


def test_a_pick_from_another_selection_is_no_estimate(labeled):
    store, rows = labeled
    kept = set(pl.read_parquet(store.open("tiny@gen-1.1").folder / "balanced/*.parquet")["image_hash"])
    image_hash, key, _ = next(row for row in rows if row[0] in kept)
    log = AnswerLog(store, "tiny", "ann")
    log.append(image_hash, key, class_name="ant", picked_by="random", seen_in="tiny@gen-1.1")
    freeze(store, "tiny")
    assert quality(store, "tiny@gen-1", "tiny@review-1").review.estimate is None
    assert quality(store, "tiny@gen-1.1", "tiny@review-1").review.estimate.images == 1


def test_a_pick_from_a_pool_that_has_grown_since_is_an_estimate_of_what_was_there(tmp_path):
    store, log = Store(tmp_path), AnswerLog(Store(tmp_path), "bugs", "ann")
    rows = [label_row(number, f"image {number}", number // 6, 0.9) for number in range(10)]
    hashes = [row["image_hash"] for row in rows]
    seal_generation(store, rows[:6])
    seal_generation(store, rows, pool=Input(ref="/pool", digest="grown"))
    for number in range(4):
        log.append(hashes[number], "x", class_name="ant", picked_by="random", seen_in="bugs@gen-1")
    old = quality(store, "bugs@gen-2", freeze(store, "bugs").ref).review
    assert (old.images, old.estimated, old.estimate) == (10, 6, Share.from_counts(4, 4, 6))
    for number in (3, 6, 7):
        log.append(hashes[number], "x", class_name="ant", picked_by="random", seen_in="bugs@gen-2")
    log.append(hashes[3], "x", class_name="ant", picked_by="random", seen_in="bugs@gen-1")  # stays one of the newer draw
    both = {ref: quality(store, ref, freeze(store, "bugs").ref).review for ref in ("bugs@gen-1", "bugs@gen-2")}
    assert (both["bugs@gen-2"].estimated, both["bugs@gen-2"].estimate) == (10, Share.from_counts(1, 3, 10))
    assert (both["bugs@gen-1"].estimated, both["bugs@gen-1"].estimate) == (6, Share.from_counts(4, 4, 6))


def test_an_image_drawn_from_the_pool_and_from_an_edition_stays_in_the_sample_of_the_pool(labeled):
    store, rows = labeled
    kept = set(pl.read_parquet(store.open("tiny@gen-1.1").folder / "balanced/*.parquet")["image_hash"])
    image_hash, key, _ = next(row for row in rows if row[0] in kept)
    log = AnswerLog(store, "tiny", "ann")
    for version in ("tiny@gen-1", "tiny@gen-1.1"):
        log.append(image_hash, key, class_name="ant", picked_by="random", seen_in=version)
    freeze(store, "tiny")
    for version in ("tiny@gen-1", "tiny@gen-1.1"):
        assert quality(store, version, "tiny@review-1").review.estimate.images == 1


@pytest.mark.parametrize("by_page", [False, True])
def test_answers_to_a_random_pick_from_an_edition_are_no_estimate_of_the_pool(labeled, tmp_path, by_page):
    store, labeled_as = labeled[0], "ant"
    picks = pick(store, "tiny@gen-1.1", PickSettings(by="random", number=3))
    if by_page:
        contents = open_contents(store, "tiny@gen-1")
        for image_hash, key in picks.rows.select("image_hash", "key").iter_rows():
            contents.reviewing.append(image_hash, key, labeled_as, None, False)
    else:
        write_pick_list(picks, tmp_path / "picks.csv")
        with (tmp_path / "picks.csv").open() as file:
            found = list(csv.DictReader(file))
        with (tmp_path / "filled.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, found[0].keys())
            writer.writeheader()
            writer.writerows(row | {"class": labeled_as} for row in found)
        import_answers(store, "tiny", tmp_path / "filled.csv")
    freeze(store, "tiny")
    assert quality(store, "tiny@gen-1", "tiny@review-1").review.estimate is None
    assert quality(store, "tiny@gen-1.1", "tiny@review-1").review.estimate.images == 3


def test_a_review_of_other_classes_or_images_is_one_line(labeled):
    store, rows = labeled
    AnswerLog(store, "other", "ann").append(*rows[0][:2], class_name="dog")
    freeze(store, "other")
    with pytest.raises(NstError, match=r"^other@review-1:.*3 classes \(ant, bee, cat\), found 1 \(dog\).*: dog"):
        quality(store, "tiny@gen-1", "other@review-1")
    AnswerLog(store, "tiny", "ann").append("f" * 32, "elsewhere.png", class_name="ant")
    freeze(store, "tiny")
    with pytest.raises(NstError, match=r"^tiny@gen-1: none of its images.*joined by image_hash; "):
        quality(store, "tiny@gen-1", "tiny@review-1")
    with pytest.raises(UsageError, match=r"^tiny@review-9: expected a review in the store"):
        quality(store, "tiny@gen-1", "tiny@review-9")
