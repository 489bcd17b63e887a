"""`nst pick`: lists, copies and queues of images that a person should look at."""

import csv
import json
import shutil

import polars as pl
import pytest
from conftest import write_class_folders, write_pool
from labels import table_rows, write_teacher
from nst_cli.main import app
from sealed_labels import label_row, seal_generation
from typer.testing import CliRunner
from wording import mentions

from nst_data.errors import NstError, UsageError
from nst_data.images import image_hash
from nst_data.review import queues as queues_module
from nst_data.review.answers import AnswerLog, resolve_answers
from nst_data.review.queues import PICK_COLUMNS, list_queues, load_suspicion, read_queue, save_queue
from nst_data.settings import PickSettings
from nst_data.sources import open_source
from nst_data.store.store import Store
from nst_train.features.picking import pick
from nst_train.settings import EmbedSettings, ReadSettings

RUN = {"run": ReadSettings(decode_threads=1), "embedding": EmbedSettings(batch_size=4)}
BY_CLASSES = {"spread": "classes", "number": 4}


def nst(status, *arguments):
    result = CliRunner().invoke(app, ["pick", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result.stdout if status == 0 else result.stderr.strip().splitlines()[-1]


def bugs(store, *, generations=1):
    """Ten images whose labels are the surer the later they come; in a second generation the first three have another label."""
    for number in range(generations):
        labels = [(row + number * (row < 3)) % 3 for row in range(10)]
        kept = [label_row(row, f"image {row}", label, 0.4 + 0.05 * row) for row, label in enumerate(labels)]
        for row, label in zip(kept, labels, strict=True):
            row["probs"] = [row["confidence"] if one == label else (1 - row["confidence"]) / 2 for one in range(3)]
        version = seal_generation(store, kept)
    return version


def test_the_least_sure_are_picked_and_kept_in_a_queue(tmp_path):
    store = Store(tmp_path)
    picks = pick(store, bugs(store), PickSettings(by="confidence", **BY_CLASSES))
    assert picks.rows["key"].to_list() == ["000.png", "001.png", "002.png", "003.png"]
    assert picks.rows["label"].to_list() == ["ant", "bee", "cat", "ant"]
    assert (picks.images, picks.answered, picks.queue) == (10, 0, "confidence")
    kept = read_queue(store, "bugs", "confidence")
    assert kept.rows().equals(picks.rows)
    assert (len(kept), kept.rows().schema) == (4, PICK_COLUMNS)


def test_a_queue_is_never_replaced_by_other_picks(tmp_path):
    store = Store(tmp_path)
    version = bugs(store)
    assert [pick(store, version, PickSettings(by="margin", **BY_CLASSES)).queue for _ in range(2)] == ["margin", "margin"]
    assert pick(store, version, PickSettings(by="margin", spread="classes", number=2)).queue == "margin-2"
    with pytest.raises(UsageError, match=r"queue 'margin': bugs.*other images.*`queue`"):
        pick(store, version, PickSettings(by="entropy", **BY_CLASSES), queue="margin")
    assert [(queue.name, len(queue)) for queue in list_queues(store, "bugs")] == [("margin", 4), ("margin-2", 2)]
    with pytest.raises(UsageError, match=r"queue 'mine':.*bugs's queues.*margin, margin-2"):
        read_queue(store, "bugs", "mine")


def test_what_people_have_answered_is_not_asked_again_but_by_a_random_draw(tmp_path):
    store = Store(tmp_path)
    version, log = bugs(store), AnswerLog(store, "bugs")
    for row in (0, 1):
        log.append(image_hash(f"image {row}".encode()), f"{row:03d}.png", class_name="ant")
    picks = pick(store, version, PickSettings(by="margin", **BY_CLASSES))
    assert picks.rows["key"].to_list() == ["002.png", "003.png", "004.png", "005.png"]
    assert picks.answered == 2
    everything = pick(store, version, PickSettings(by="random", number=100))
    assert sorted(everything.rows["key"]) == [f"{row:03d}.png" for row in range(10)]
    assert everything.rows["score"].null_count() == 10
    for row in range(2, 10):
        log.append(image_hash(f"image {row}".encode()), f"{row:03d}.png", excluded="unusable")
    with pytest.raises(NstError, match=r"no image.*left to pick by margin"):
        pick(store, version, PickSettings(by="margin", **BY_CLASSES))


@pytest.mark.parametrize("by", ["random", "margin"])
def test_of_no_labels_none_is_picked(tmp_path, by):
    store = Store(tmp_path)
    with pytest.raises(NstError, match=r"^bugs@gen-1: expected labels.*found none.*errors"):
        pick(store, seal_generation(store, []), PickSettings(by=by, **BY_CLASSES))


def test_an_answer_about_what_is_no_hash_is_about_no_image(tmp_path):
    store = Store(tmp_path)
    AnswerLog(store, "bugs").append("sha1:ab", "of another tool", class_name="ant")
    assert pick(store, bugs(store), PickSettings(by="margin", **BY_CLASSES)).answered == 0


def test_generations_that_disagree_make_an_image_suspicious(tmp_path):
    store = Store(tmp_path)
    version = bugs(store, generations=2)
    for by in ("churn", "suspicion"):
        picks = pick(store, version, PickSettings(by=by, spread="classes", number=3))
        assert sorted(picks.rows["key"]) == ["000.png", "001.png", "002.png"], by
    suspicion = load_suspicion(store, "bugs", "gen-2").collect()
    expected = {row["image_hash"]: 1 - (row["confidence"] + (1 - row["confidence"]) / 2) / 2 for row in table_rows(version)[:3]}
    found = dict(suspicion.iter_rows())
    assert len(found) == 10
    assert {one: found[one] for one in expected} == pytest.approx(expected, abs=1e-3)
    assert load_suspicion(store, "bugs", "gen-1") is None


@pytest.mark.parametrize("name", ["picks.csv", "picks.jsonl", "picks.parquet"])
def test_a_list_that_is_filled_in_is_never_overwritten(tmp_path, name):
    version = bugs(Store(tmp_path / "store"))
    words = [
        version.ref,
        "--by",
        "margin",
        "--number",
        2,
        "--spread",
        "classes",
        "--output",
        tmp_path / name,
        "--store",
        tmp_path / "store",
    ]
    for _ in range(2):  # the same again is no harm
        nst(0, *words)
    words[4] = 3
    nst(0, *words)  # nor is another list that nobody has filled in
    read, write = {"csv": (pl.read_csv, "write_csv"), "jsonl": (pl.read_ndjson, "write_ndjson")}.get(
        name.partition(".")[2], (pl.read_parquet, "write_parquet")
    )
    rows = read(tmp_path / name)
    assert len(rows) == 3
    getattr(rows.with_columns(pl.Series("class", ["ant", None, None], pl.String)), write)(tmp_path / name)
    for content in ((tmp_path / name).read_bytes(), b"hand work"):
        (tmp_path / name).write_bytes(content)
        assert mentions(nst(2, *words), f"{name}: already exists with other content … remove it")
        assert (tmp_path / name).read_bytes() == content


def test_more_than_there_are_is_said(tmp_path):
    version = bugs(Store(tmp_path))
    said = nst(0, version.ref, "--by", "margin", "--spread", "classes", "--number", 1200, "--store", tmp_path)
    assert said.startswith("bugs@gen-1: 10 of 10 images by margin, of 3 classes\n  1,200 were asked for; these are all that are left\n")


@pytest.mark.parametrize("name", ["picks.csv", "picks.jsonl", "picks.parquet"])
def test_the_list_has_a_column_for_the_answer(tmp_path, name):
    version = bugs(Store(tmp_path / "store"))
    said = nst(
        0, version.ref, "--by", "margin", "--spread", "classes", "--number", 2, "--output", tmp_path / name, "--store", tmp_path / "store"
    )
    assert said.startswith("bugs@gen-1: 2 of 10 images by margin, of 2 classes\n")
    if name.endswith("csv"):
        with (tmp_path / name).open() as file:
            found = list(csv.DictReader(file))
    else:
        found = (pl.read_ndjson if name.endswith("jsonl") else pl.read_parquet)(tmp_path / name).to_dicts()
    assert [row["key"] for row in found] == ["000.png", "001.png"]
    assert {row["class"] for row in found} <= {"", None}
    assert found[0]["image_hash"] == image_hash(b"image 0")
    assert {row["seen_in"] for row in found} == {"bugs@gen-1"}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--by", "churn"], "bugs@gen-1: --by churn … earlier generation …"),
        (["--by", "outlier"], "bugs@gen-1: … teacher … not known; … --model"),
        (["--by", "sharpness"], "--by: expected 'margin',"),
        (["--number", "0"], "--number: … at least 1, found 0"),
        (["--output", "picks.txt"], "picks.txt: … .csv, .jsonl or .parquet"),
        (["--output", "nowhere/picks.csv"], "there is no folder"),
        (["--copy-to", "."], "empty folder, …; choose another --copy-to"),
        (["--corpus", "ants"], "--corpus … bugs@gen-1 …; remove it"),
    ],
)
def test_wrong_use_is_one_line(tmp_path, monkeypatch, words, line):
    monkeypatch.chdir(tmp_path)
    version = bugs(Store(tmp_path / "store"))
    assert mentions(nst(2, version.ref, *words, "--store", tmp_path / "store"), line)


@pytest.mark.slow
def test_picks_are_spread_over_features_of_the_teacher_and_copied(tiny_store, tmp_path):
    store, _, pool = tiny_store
    words = ["tiny@gen-1", "--by", "margin", "--number", 4, "--store", store.root, "--decode-threads", 1, "--batch-size", 4]
    found = json.loads(nst(0, *words, "--copy-to", tmp_path / "copies", "--json"))
    assert [one["rank"] for one in found["picks"]] == [1, 2, 3, 4]
    assert len({one["key"] for one in found["picks"]}) == 4
    copies = sorted((tmp_path / "copies").iterdir())
    assert [copy.name for copy in copies] == [f"{one['rank']}-{one['key']}" for one in found["picks"]]
    assert [image_hash(copy.read_bytes()) for copy in copies] == [one["image_hash"] for one in found["picks"]]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for path in pool.iterdir():
        shutil.copy(path, elsewhere / f"copy of {path.name}")
    again = json.loads(nst(0, *words, "--pool", elsewhere, "--copy-to", tmp_path / "more", "--json"))
    assert again == found
    assert [image_hash(copy.read_bytes()) for copy in sorted((tmp_path / "more").iterdir())] == [
        one["image_hash"] for one in found["picks"]
    ]


@pytest.mark.parametrize("by", ["suspicion", "outlier", "mixed"])
def test_features_of_pool_and_labeled_images_are_compared(tiny_store, by):
    store, _, _ = tiny_store
    picks = pick(store, "tiny@gen-1.1", PickSettings(by=by, number=3), **RUN)
    assert (len(picks.rows), picks.not_found) == (3, 0)
    assert picks.rows["score"].is_between(0, 1).all()


def test_a_pool_of_other_images_is_one_line(tiny_store, tmp_path):
    store, _, _ = tiny_store
    with pytest.raises(NstError, match=r"other: contains none.*tiny@gen-1.*`pool`"):
        pick(store, "tiny@gen-1", PickSettings(by="margin"), pool=open_source(write_pool(tmp_path / "other", 1, 1, first=900)), **RUN)


def test_images_that_a_pool_lacks_are_left_out_and_counted(tiny_store, tmp_path):
    store, _, pool = tiny_store
    part = shutil.copytree(pool, tmp_path / "part")
    for path in sorted(part.iterdir())[:5]:
        path.unlink()
    picks = pick(store, "tiny@gen-1", PickSettings(by="margin", number=50), pool=open_source(part), **RUN)
    assert (len(picks.rows), picks.images, picks.not_found) == (10, 15, 5)


@pytest.mark.parametrize("by", ["random", "suspicion"])
def test_a_store_that_cannot_be_written_to_is_picked_from_all_the_same(tiny_store, tmp_path, monkeypatch, by):
    store = Store(shutil.copytree(tiny_store[0].root, tmp_path / "store", ignore=shutil.ignore_patterns("features", "reviews")))
    there, words = sorted(store.root.rglob("*")), ["tiny@gen-1", "--by", by, "--number", 3, "--store", store.root, "--json"]
    with monkeypatch.context() as sealed:
        sealed.setattr("nst_data.store.files.os.access", lambda *_: False)
        read_only = CliRunner().invoke(app, ["pick", *map(str, words)], catch_exceptions=False)
        assert read_only.stderr.count("store cannot be written to: these picks are not kept as a queue") == 1
        assert mentions(nst(1, *words, "--queue", "mine"), "cannot be written to; remove --queue")
        assert mentions(nst(1, *words, "--look"), "--look: … cannot be written to")
    assert sorted(store.root.rglob("*")) == there
    found, kept = json.loads(read_only.stdout), json.loads(nst(0, *words))
    assert kept == found | {"queue": by}


@pytest.mark.slow
def test_a_wrong_label_among_labeled_images_is_suspected(tmp_path):
    store = Store(tmp_path / "store")
    folder = write_class_folders(tmp_path / "labeled", ["ant", "bee", "cat"], 6)
    shutil.move(folder / "ant" / "002.png", folder / "cat" / "wrong.png")
    model, labeled = write_teacher(tmp_path / "network", ["a", "b"], image_size=16), open_source(folder, labeled=True)
    picks = pick(store, labeled, PickSettings(number=3), model=model, corpus="bugs", **RUN)
    assert "cat/wrong.png" in picks.rows["key"].to_list()
    assert picks.queue == "suspicion"
    suspicion = load_suspicion(store, "bugs", "labeled").collect()
    assert len(suspicion) == 18
    # the most suspicious come first, whatever they look like, but for the share of a class
    ranked = suspicion.join(pick(store, labeled, PickSettings(number=18), model=model, **RUN).rows, on="image_hash")
    ranked = ranked.sort("score", "key", descending=[True, False])
    expected = ranked.filter(pl.int_range(pl.len()).over("label") < 4).head(6)
    six = pick(store, labeled, PickSettings(number=6), model=model, **RUN).rows
    assert six["score"].to_list() == expected["score"].to_list()
    said = nst(0, folder, "--model", model, "--number", 3, "--store", store.root, "--batch-size", 4)
    assert (
        said.splitlines()[1]
        == f"  at most about {picks.estimated_errors:,.0f} labels are wrong: confident learning counts mistakes of its probe too"
    )
    for by in ("margin", "outlier", "mixed", "random"):
        assert len(pick(store, labeled, PickSettings(by=by, number=3), model=model, **RUN).rows) == 3


def test_labels_of_one_image_a_class_say_nothing_of_each_other(tmp_path):
    model = write_teacher(tmp_path / "network", ["a", "b"], image_size=16)
    labeled = open_source(write_class_folders(tmp_path / "labeled", ["ant", "bee", "cat"], 1), labeled=True)
    with pytest.raises(NstError, match=r"labeled: expected a class with two images.*`by` outlier or random$"):
        pick(Store(tmp_path / "store"), labeled, model=model, **RUN)


@pytest.mark.parametrize(
    ("settings", "others", "line"),
    [
        ({"by": "churn"}, {}, "`by` churn.*generations.*labeled images"),
        ({}, {}, "picking from labeled images requires `model`"),
        ({}, {"model": "x", "queue": "q"}, "`queue` of labeled images requires `corpus`"),
    ],
)
def test_labeled_images_need_a_model(labeled_folder, tmp_path, settings, others, line):
    with pytest.raises(UsageError, match=line):
        pick(Store(tmp_path / "store"), open_source(labeled_folder, labeled=True), PickSettings(**settings), **others)


def test_the_queue_opens_in_the_page(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("nst_cli.looking.show_page", lambda contents, *_, **options: seen.append((contents, options["fragment"])))
    images = write_pool(tmp_path / "pool", 3, 2)
    store = Store(tmp_path / "store")
    kept = [label_row(row, path.read_bytes(), row % 3, 0.5, key=path.name) for row, path in enumerate(sorted(images.iterdir()))]
    version = seal_generation(store, kept, pool=open_source(images).lineage)
    nst(0, version.ref, "--by", "margin", "--spread", "classes", "--number", 2, "--look", "--store", store.root)
    ((contents, fragment),) = seen
    assert fragment == "#queue=margin"
    assert [queue["name"] for queue in contents.overview()["queues"]] == ["margin"]


def test_two_picks_at_once_are_two_queues_whatever_either_saw_before(tmp_path, monkeypatch):
    store, write = Store(tmp_path / "store"), queues_module._write_new
    picks = [
        pl.DataFrame({"image_hash": [one], "key": one, "label": "ant", "confidence": 0.5, "by": "margin", "score": 1.0}) for one in "abc"
    ]

    def write_after_another(*arguments):
        monkeypatch.undo()
        assert save_queue(store, "bugs", picks[1]) == "margin"
        return write(*arguments)

    monkeypatch.setattr(queues_module, "_write_new", write_after_another)
    assert save_queue(store, "bugs", picks[0]) == "margin-2"
    assert {queue.name: queue.rows()["key"].to_list() for queue in list_queues(store, "bugs")} == {"margin": ["b"], "margin-2": ["a"]}
    (store.root / "reviews/bugs/queues/mine.parquet").touch()  # of one that is at it
    with pytest.raises(UsageError, match=r"queue 'mine': another process is writing it; run this again, or delete .*mine\.parquet$"):
        save_queue(store, "bugs", picks[2], "mine")
    assert len(list_queues(store, "bugs")) == 2


def test_files_that_macos_puts_beside_queues_and_answers_are_none_of_these(tmp_path):
    store = Store(tmp_path / "store")
    picks = pl.DataFrame({"image_hash": ["a"], "key": "a", "label": "ant", "confidence": 0.5, "by": "margin", "score": 1.0})
    save_queue(store, "bugs", picks)
    AnswerLog(store, "bugs", "ann").append("a", "a.png", class_name="ant")
    for name in ("queues/._margin.parquet", "._ann.jsonl"):
        (store.root / "reviews/bugs" / name).write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        \n")
    assert [queue.name for queue in list_queues(store, "bugs")] == ["margin"]
    assert list(resolve_answers(store, "bugs").answers) == ["a"]
    AnswerLog(store, "bugs", "ann").append("b", "b.png", class_name="ant")
