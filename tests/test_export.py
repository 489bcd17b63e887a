import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from conftest import picture, write_class_folders, write_pool
from datasets import Dataset, Image, load_dataset
from nst_cli.main import app
from pictures import png, write_table, write_tar
from sealed_labels import label_row, seal_generation
from torchvision.datasets import ImageFolder
from typer.testing import CliRunner
from wording import mentions

from nst_data import BalanceSettings, adopt, balance, freeze
from nst_data.errors import NstError, UsageError
from nst_data.formats.export import MARKER, export
from nst_data.formats.labeled_images import labeled_images as rows_with_images
from nst_data.images import image_hash
from nst_data.progress import Progress
from nst_data.review.answers import AnswerLog
from nst_data.safe_names import escape_formula, folder_names, safe_file_name, unescape_formula
from nst_data.sources import open_source
from nst_data.store.store import Store
from nst_data.tables.label_tables import scan_labels

KILLED_AT_ITS_THIRD_FILE = """
import os, signal, sys
import nst_data.formats.export as export
from nst_data.store.store import Store
opened = []
def atomic_write(*words, really=export.atomic_write):
    opened.append(words)
    return really(*words) if len(opened) < 3 else os.kill(os.getpid(), signal.SIGKILL)
export._ROWS_PER_TAR = 5
export.atomic_write = atomic_write
export.write_text = lambda path, text, really=export.write_text: opened.append(path) or really(path, text)
export.export(Store(sys.argv[1]), "tiny@gen-1", sys.argv[2], to=sys.argv[3])
os.kill(os.getpid(), signal.SIGKILL)
"""


def export_version(store, folder, to, ref="tiny@gen-1.1", **options):
    return export(store, ref, folder, to=to, progress=Progress(), **options)


def truth(store, ref="tiny@gen-1.1"):
    """{hash: (key, class, confidence)} of a version, by its table."""
    version = store.open(ref)
    rows = scan_labels(version).collect().to_dicts()
    return {row["image_hash"]: (row["key"], version.manifest.class_names[row["label"]], row["confidence"]) for row in rows}


def test_torchvision_reads_folders_with_the_labels_of_the_version(tiny_store, tmp_path):
    store, _, _ = tiny_store
    written, expected = export_version(store, tmp_path / "out", "folders"), truth(store)
    assert written.images == len(expected)
    for place, number in (dataset := ImageFolder(tmp_path / "out", allow_empty=True)).samples:
        with open(place, "rb") as file:
            assert expected[image_hash(file.read())][1] == dataset.classes[number]
    assert len(dataset) == len(expected)
    assert written.per_class == {name: sum(one[1] == name for one in expected.values()) for name in ("ant", "bee", "cat")}
    assert open_source(tmp_path / "out", labeled=True).labels.tolist() == sorted(dataset.targets)


def test_a_folder_that_finder_has_looked_at_is_empty(tiny_store, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".DS_Store").write_bytes(b"")
    assert export_version(tiny_store[0], tmp_path / "out", "csv").images
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".hidden").write_text("mine")
    with pytest.raises(NstError, match=r"mine: .*empty folder"):
        export_version(tiny_store[0], tmp_path / "mine", "csv")


def test_datasets_reads_an_imagefolder_with_its_columns(tiny_store, tmp_path):
    store, _, _ = tiny_store
    export_version(store, tmp_path / "out", "imagefolder", "tiny@gen-1", probs=True)
    expected = truth(store, "tiny@gen-1")
    rows = load_dataset("imagefolder", data_dir=str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert {row["image_hash"]: (row["key"], row["label"], row["confidence"]) for row in rows} == expected
    assert all(row["probs"][row["label"]] == pytest.approx(row["confidence"], abs=1e-3) for row in rows)
    assert open_source(tmp_path / "out", labeled=True).class_names == sorted({one[1] for one in expected.values()})


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its files open
def test_webdataset_reads_tar_files_and_so_does_nst(tiny_store, tmp_path):
    wds = pytest.importorskip("webdataset")
    store, _, _ = tiny_store
    export_version(store, tmp_path / "out", "webdataset", "tiny@gen-1")
    samples = list(wds.WebDataset(str(tmp_path / "out" / "tiny-gen-1-000000.tar"), shardshuffle=False))
    expected = truth(store, "tiny@gen-1")
    names = (tmp_path / "out" / "classes.txt").read_text().split()
    found = {image_hash(sample["png"]): (json.loads(sample["json"])["key"], names[int(sample["cls"])]) for sample in samples}
    assert found == {hashed: one[:2] for hashed, one in expected.items()}
    again = open_source(tmp_path / "out", labeled=True, class_names=str(tmp_path / "out" / "classes.txt"))
    assert [again.class_names[label] for label in again.labels] == [one[1] for one in expected.values()]


def of_tables(kind, tmp_path):
    """Labeled images inside a table or a tar file, under keys that do not end like an image's; half of them are JPEGs."""
    photo = io.BytesIO()
    picture(1, 9).save(photo, "JPEG")
    cells = [{"bytes": content, "path": None} for content in (png(0), photo.getvalue(), png(2))]
    columns = {"image": cells, "label": ["bee", "ant", "bee"]}
    if kind == "parquet":
        return write_table(tmp_path / "pool.parquet", **columns)
    if kind == "saved":
        Dataset.from_dict(columns).cast_column("image", Image()).save_to_disk(tmp_path / "saved")
        return str(tmp_path / "saved")
    members = [("again.png", png(0)), ("again.cls", b"bee"), ("photo.jpg", photo.getvalue()), ("photo.cls", b"ant")]
    return write_tar(tmp_path / "pool.tar", [*members, ("again.png", png(2)), ("again.cls", b"bee")])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its files open
@pytest.mark.parametrize("kind", ["parquet", "saved", "tar"])
def test_images_of_tables_get_names_by_which_tools_know_them(kind, tmp_path):
    wds = pytest.importorskip("webdataset")
    store = Store(tmp_path / "store")
    version = adopt(store, "inside", of_tables(kind, tmp_path), progress=Progress())
    expected = {hashed: one[1] for hashed, one in truth(store, version.ref).items()}
    suffixes = {hashed: [".png", ".jpg", ".png"][row] for row, hashed in enumerate(expected)}
    assert len(expected) == 3
    for to in ("folders", "imagefolder", "fiftyone", "label-studio", "webdataset"):
        export_version(store, tmp_path / to, to, version.ref)
    for to in ("folders", "imagefolder", "fiftyone", "label-studio"):
        images = [path for path in (tmp_path / to).rglob("0000000*") if path.is_file()]
        assert {image_hash(path.read_bytes()): path.suffix for path in images} == suffixes
    dataset = ImageFolder(tmp_path / "folders", allow_empty=True)
    assert {image_hash(Path(place).read_bytes()): dataset.classes[number] for place, number in dataset.samples} == expected
    rows = load_dataset("imagefolder", data_dir=str(tmp_path / "imagefolder"), split="train", cache_dir=str(tmp_path / "cache"))
    assert {row["image_hash"]: row["label"] for row in rows} == expected
    (shard,) = (tmp_path / "webdataset").glob("*.tar")
    samples = list(wds.WebDataset(str(shard), shardshuffle=False))
    assert {image_hash(sample.get("png") or sample["jpg"]): json.loads(sample["json"])["label"] for sample in samples} == expected
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "folders").rglob("*.*g")}
    marker = tmp_path / "folders" / MARKER
    marker.write_text(marker.read_text().replace("true", "false"))
    export_version(store, tmp_path / "folders", "folders", version.ref)  # goes on, and writes none again
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "folders").rglob("*.*g")} == before


def test_tables_have_a_row_for_each_image(tiny_store, tmp_path):
    store, _, pool = tiny_store
    export_version(store, tmp_path / "csv", "csv", "tiny@gen-1", probs=True)
    export_version(store, tmp_path / "jsonl", "jsonl", "tiny@gen-1")
    expected = truth(store, "tiny@gen-1")
    with (tmp_path / "csv" / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["key", "image_hash", "label", "confidence", "ant", "bee", "cat"]
    assert {row["image_hash"]: (row["key"], row["label"]) for row in rows} == {hashed: one[:2] for hashed, one in expected.items()}
    lines = [json.loads(line) for line in (tmp_path / "jsonl" / "labels.jsonl").read_text().splitlines()]
    assert {line["image_hash"]: (line["key"], line["label"], line["confidence"]) for line in lines} == expected
    labeled = open_source(tmp_path / "csv" / "labels.csv", labeled=True, image_column="key")
    assert labeled.class_names == sorted({one[1] for one in expected.values()})
    assert {row["key"] for row in rows} == {path.name for path in pool.iterdir()}


def test_tables_of_an_edition_say_how_many_copies_it_has_of_each_image(tiny_store, tmp_path):
    store, _, pool = tiny_store
    rows = dict(scan_labels(store.open("tiny@gen-1.1")).select("image_hash", "copies").collect().iter_rows())
    assert max(rows.values()) > 1
    export_version(store, tmp_path / "csv", "csv", "tiny@gen-1.1", probs=True)
    export_version(store, tmp_path / "jsonl", "jsonl", "tiny@gen-1.1")
    export_version(store, tmp_path / "images", "imagefolder", "tiny@gen-1.1", pool=open_source(pool))
    with (tmp_path / "csv" / "labels.csv").open(newline="") as file:
        assert {row["image_hash"]: int(row["copies"]) for row in csv.DictReader(file)} == rows
    for file in (tmp_path / "jsonl" / "labels.jsonl", tmp_path / "images" / "metadata.jsonl"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        assert {line["image_hash"]: line["copies"] for line in lines} == rows


def test_label_studio_finds_the_images_of_an_export_to_the_current_folder(tiny_store, tmp_path, monkeypatch):
    (tmp_path / "ls").mkdir()
    monkeypatch.chdir(tmp_path / "ls")
    export_version(tiny_store[0], ".", "label-studio")
    tasks = json.loads((tmp_path / "ls" / "tasks.json").read_text())
    assert all(task["data"]["image"].startswith("/data/local-files/?d=ls/images/") for task in tasks)


def test_fiftyone_and_label_studio_get_what_their_importers_read(tiny_store, tmp_path):
    store, _, _ = tiny_store
    expected = truth(store)
    export_version(store, tmp_path / "fo", "fiftyone")
    content = json.loads((tmp_path / "fo" / "labels.json").read_text())
    images = {path.stem: image_hash(path.read_bytes()) for path in (tmp_path / "fo" / "data").iterdir()}
    found = {images[name]: content["classes"][target["label"]] for name, target in content["labels"].items()}
    assert found == {hashed: one[1] for hashed, one in expected.items()}
    export_version(store, tmp_path / "ls", "label-studio")
    for task in json.loads((tmp_path / "ls" / "tasks.json").read_text()):
        place = tmp_path / task["data"]["image"].removeprefix("/data/local-files/?d=")
        (prediction,) = task["predictions"]
        assert prediction["result"][0]["value"]["choices"] == [expected[image_hash(place.read_bytes())][1]]
        assert prediction["model_version"] == "tiny@gen-1.1"
    assert '<Choice value="ant"/>' in (tmp_path / "ls" / "config.xml").read_text()


def test_links_lead_to_the_images_of_the_pool(tiny_store, tmp_path):
    store, _, pool = tiny_store
    export_version(store, tmp_path / "out", "folders", link=True)
    links = list((tmp_path / "out").rglob("*.png"))
    assert links
    assert all(path.is_symlink() and path.resolve().parent == pool.resolve() for path in links)
    for to in ("csv", "webdataset"):
        with pytest.raises(UsageError, match=f"`link`: {to}.*; remove `link`"):
            export_version(store, tmp_path / to, to, link=True)


def test_a_class_with_the_name_of_a_column_has_no_column_of_its_own(tmp_path):
    store = Store(tmp_path / "store")
    write_class_folders(tmp_path / "sorted", ["key", "label"], 1)
    version = adopt(store, "odd", str(tmp_path / "sorted"), progress=Progress())
    with pytest.raises(UsageError, match=r"`probs`:.*'key'.*; use jsonl.*remove `probs`"):
        export_version(store, tmp_path / "out", "csv", version.ref, probs=True)


def test_a_folder_with_other_files_or_of_another_export_is_left_alone(tiny_store, tmp_path):
    store, _, _ = tiny_store
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(NstError, match=r"mine:.*new or empty folder.*choose another"):
        export_version(store, tmp_path / "mine", "csv")
    with pytest.raises(NstError, match=r"thesis\.txt:.*new or empty folder.*choose another"):
        export_version(store, tmp_path / "mine" / "thesis.txt", "csv")
    with pytest.raises(NstError, match=r"thesis\.txt/out:.*is a file.*choose another"):
        export_version(store, tmp_path / "mine" / "thesis.txt" / "out", "csv")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    export_version(store, tmp_path / "out", "csv")
    with pytest.raises(NstError, match=r"out: holds an export of tiny@gen-1\.1 as csv; choose another folder, or remove"):
        export_version(store, tmp_path / "out", "csv", "tiny@gen-1")
    with pytest.raises(NstError, match=r"holds an export of tiny@gen-1\.1 as csv;"):
        export_version(store, tmp_path / "out", "jsonl")
    marker = json.loads((tmp_path / "out" / MARKER).read_text())
    (tmp_path / "out" / MARKER).write_text(json.dumps(marker | {"digest": "0" * 64, "probs": True}))
    with pytest.raises(NstError, match=r"holds an export of another tiny@gen-1\.1 as csv, with `probs`;"):
        export_version(store, tmp_path / "out", "csv")
    (tmp_path / "out" / MARKER).write_text("{")
    with pytest.raises(NstError, match=r"\.nst-export\.json:.*damaged; remove.*/out"):
        export_version(store, tmp_path / "out", "csv")


@pytest.mark.parametrize("name", ["out.csv", "out.JSONL", "out.tar"])
def test_labels_are_not_written_to_a_folder_that_is_named_like_a_file(tiny_store, tmp_path, name):
    store, _, _ = tiny_store
    with pytest.raises(UsageError, match=rf"{name}: named like a file; an export of labels is a folder, such as .*out$"):
        export_version(store, tmp_path / name, "csv")
    (tmp_path / name).mkdir()
    assert export_version(store, tmp_path / name, "csv").table == tmp_path / name / "labels.csv"


def test_an_image_that_is_another_now_is_refused_and_the_rest_goes_on_once_it_is_back(tiny_store, tmp_path):
    store, _, _ = tiny_store
    pool = write_pool(tmp_path / "pool", 3, 5)
    changed = pool / truth(store)[sorted(truth(store))[0]][0]
    before = changed.read_bytes()
    changed.write_bytes(next(path for path in pool.iterdir() if path != changed).read_bytes())
    with pytest.raises(NstError, match=f"{changed.name}' has different content.*`pool`"):
        export_version(store, tmp_path / "out", "folders", pool=str(pool))
    there = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")}
    changed.write_bytes(before)
    assert export_version(store, tmp_path / "out", "folders", pool=str(pool)).images == len(truth(store))
    assert all(path.stat().st_mtime_ns == time for path, time in there.items())


def test_images_of_a_pool_with_other_names_are_found_by_their_bytes(tiny_store, tmp_path):
    store, _, _ = tiny_store
    pool = write_pool(tmp_path / "pool", 3, 5)
    for number, path in enumerate(sorted(pool.iterdir(), reverse=True)):
        path.rename(pool / f"renamed-{number}.png")
    export_version(store, tmp_path / "out", "imagefolder", pool=str(pool))
    lines = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
    assert {line["image_hash"] for line in lines} == truth(store).keys()
    assert all(image_hash((tmp_path / "out" / line["file_name"]).read_bytes()) == line["image_hash"] for line in lines)
    export_version(store, tmp_path / "links", "folders", pool=str(pool), link=True)
    links = list((tmp_path / "links").rglob("*.png"))
    assert links
    assert all(path.resolve().parent == pool for path in links)


def reviewed(store, rows):
    """`tiny@review-1` of three images with a class and one without, as {hash: (key, class, confidence)}."""
    log = AnswerLog(store, "tiny", "ann")
    for number, (hashed, key) in enumerate(rows[:4]):
        log.append(hashed, key, **({"excluded": "unusable"} if number == 3 else {"class_name": "cat" if number else "bee"}))
    freeze(store, "tiny", progress=Progress())
    return {hashed: (key, "cat" if number else "bee", 1.0) for number, (hashed, key) in enumerate(rows[:3])}


def test_a_review_has_the_classes_that_people_gave_without_what_they_excluded(labeled_images, tmp_path):
    store, rows = labeled_images
    expected = reviewed(store, rows)
    assert export_version(store, tmp_path / "folders", "folders", "tiny@review-1").per_class == {"ant": 0, "bee": 1, "cat": 2}
    source = open_source(tmp_path / "folders", labeled=True)
    assert {image_hash(source.read(row)): source.class_names[source.labels[row]] for row in range(3)} == {
        hashed: one[1] for hashed, one in expected.items()
    }
    export_version(store, tmp_path / "jsonl", "jsonl", "tiny@review-1", probs=True)
    lines = [json.loads(line) for line in (tmp_path / "jsonl" / "labels.jsonl").read_text().splitlines()]
    assert {line["image_hash"]: (line["key"], line["label"], line["confidence"]) for line in lines} == expected
    assert all(line["probs"] == {name: float(name == line["label"]) for name in ("ant", "bee", "cat")} for line in lines)
    export_version(store, tmp_path / "ls", "label-studio", "tiny@review-1")
    tasks = json.loads((tmp_path / "ls" / "tasks.json").read_text())
    assert {task["data"]["image_hash"]: task["annotations"][0]["result"][0]["value"]["choices"][0] for task in tasks} == {
        hashed: one[1] for hashed, one in expected.items()
    }


@pytest.mark.parametrize("ref", ["tiny@gen-1", "tiny@review-1"])
def test_probabilities_of_all_classes_are_made_only_where_they_are_written(labeled_images, ref):
    """Of 100,000 classes those of each row take 0.4 MB."""
    store, rows = labeled_images
    reviewed(store, rows)
    labeled = rows_with_images(store, store.open(ref), None, with_images=False)
    assert {row.probs is None for row in labeled.rows()} == {True}
    assert {row.probs.shape for row in labeled.rows(with_probs=True)} == {(3,)}


def test_the_images_of_a_review_are_found_in_a_moved_pool_or_in_an_edition_that_holds_them(labeled_images, tmp_path):
    store, rows = labeled_images
    expected = reviewed(store, rows)
    moved = write_pool(tmp_path / "moved", 3, 5)
    for number, path in enumerate(sorted(moved.iterdir())):
        path.rename(moved / f"renamed-{number}.png")
    export_version(store, tmp_path / "link", "folders", "tiny@review-1", pool=str(moved), link=True)
    assert {image_hash(path.read_bytes()) for path in (tmp_path / "link").rglob("*.png")} == expected.keys()
    balance(store, "tiny@gen-1", BalanceSettings(min_confidence=0, per_class=20, embed_images=True), progress=Progress())
    for version in ("gen-1", "gen-1.1"):
        shutil.rmtree(store.open(f"tiny@{version}").folder)
    export_version(store, tmp_path / "embedded", "folders", "tiny@review-1")
    assert {image_hash(path.read_bytes()) for path in (tmp_path / "embedded").rglob("*.png")} == expected.keys()
    shutil.rmtree(store.open("tiny").folder)
    with pytest.raises(UsageError, match=r"tiny@review-1:.*where its images are.*`pool`"):
        export_version(store, tmp_path / "nowhere", "folders", "tiny@review-1")
    export_version(store, tmp_path / "pool", "folders", "tiny@review-1", pool=str(moved))
    assert {image_hash(path.read_bytes()) for path in (tmp_path / "pool").rglob("*.png")} == expected.keys()


@pytest.mark.slow
def test_killed_it_ends_with_the_same_files(tiny_store, tmp_path, monkeypatch):
    monkeypatch.setattr("nst_data.formats.export._ROWS_PER_TAR", 5)
    store, _, _ = tiny_store
    for to in ("imagefolder", "webdataset", "csv"):
        whole, cut = tmp_path / "whole" / to, tmp_path / "cut" / to
        export_version(store, whole, to, "tiny@gen-1")
        words = [sys.executable, "-c", KILLED_AT_ITS_THIRD_FILE, str(store.root), str(cut), to]
        assert subprocess.run(words, capture_output=True, check=False).returncode == -signal.SIGKILL
        export_version(store, cut, to, "tiny@gen-1")
        ended, resumed = (
            sorted((path.relative_to(top).as_posix(), path.read_bytes()) for path in top.rglob("*") if path.is_file())
            for top in (whole, cut)
        )
        assert ended == resumed


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("a/b/photo 1.jpg", "photo 1.jpg"),
        ("../../etc/passwd", "passwd"),
        ("..", "_"),
        ("", "_"),
        (".hidden", "hidden"),
        ("C:\\photos\\x.png", "x.png"),
        ("a\nb\x00c.jpg", "a_b_c.jpg"),
        ("<img src=x>.jpg", "_img src_x_.jpg"),
        ("con.jpg", "_con.jpg"),
        ("nul", "_nul"),
        ("\u202egnp.exe", "_gnp.exe"),
        (unicodedata.normalize("NFD", "blüte.jpg"), "blüte.jpg"),
        ("ä" * 200 + ".jpg", "ä" * 48 + ".jpg"),
    ],
)
def test_names_of_strangers_become_names_of_files_that_stay_where_they_are_put(name, safe):
    assert safe_file_name(name) == safe


def test_class_folders_keep_what_every_file_system_takes():
    kept = ["#pants", "hat & cap", "men's x", "a[1]", "100%", "Blüte (rot)", "x;y"]
    assert folder_names(kept) == kept
    others = ["what?", "a:b", "tab\there", "\u202egnp", "con", " x.", "$HOME"]
    assert folder_names(others) == ["what_", "a_b", "tab_here", "_gnp", "_con", "x", "_HOME"]


def test_classes_with_folders_of_another_name_are_listed_and_said(tmp_path):
    (tmp_path / "labels.csv").write_text("key,label\n0-100.png,yes/no\n0-101.png,men's\n")
    store, said = Store(tmp_path / "store"), []
    pool = write_pool(tmp_path / "pool", 1, 2)
    adopt(store, "a", str(tmp_path / "labels.csv"), key="key", pool=open_source(str(pool)), progress=Progress())
    progress = Progress()
    progress.say = said.append
    export(store, "a@gen-1", tmp_path / "out", progress=progress)
    assert {one.name for one in (tmp_path / "out").iterdir() if one.is_dir()} == {"yes_no", "men's"}
    assert json.loads((tmp_path / "out" / "folders.json").read_text()) == {"yes_no": "yes/no"}
    line = "1 class has a name that some file systems reject, so its folder has another; folders.json has both"
    assert said == [f"{tmp_path / 'out'}: {line}"]
    assert open_source(str(tmp_path / "out"), labeled=True).class_names == ["men's", "yes_no"]


def test_each_class_has_a_folder_of_its_own():
    assert folder_names(["a/b", "a_b", "A_B", "..", "cat"]) == ["a_b", "a_b-1", "A_B-2", "_", "cat"]


def test_a_class_may_have_the_name_of_the_file_of_class_names(tmp_path):
    pool, store, names = tmp_path / "pool", Store(tmp_path / "store"), ["Classes.txt", "classes.txt"]
    write_pool(pool, 2, 1)
    files = sorted(pool.iterdir())
    rows = [label_row(number, file.read_bytes(), number, 0.9, key=file.name, classes=2) for number, file in enumerate(files)]
    version = seal_generation(store, rows, names=names)
    export(store, version, tmp_path / "out", pool=str(pool), progress=Progress())
    assert (tmp_path / "out/classes.txt").read_text().split() == names
    assert [path.name for path in sorted(tmp_path.glob("out/*/"))] == ["Classes.txt-0", "classes.txt-1"]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1.jpg", "@x", "\t=1"])
def test_a_cell_that_a_spreadsheet_would_run_is_quoted(text):
    assert escape_formula(text) == f"'{text}"
    assert unescape_formula(escape_formula(text)) == text
    assert escape_formula(f"a{text}") == unescape_formula(f"a{text}") == f"a{text}"


def test_the_command_counts_by_class_and_says_what_formats_there_are(tiny_store, tmp_path):
    store, _, _ = tiny_store
    os.chdir(tmp_path)
    words = ["export", "tiny@gen-1", str(tmp_path / "out"), "--to", "csv", "--store", str(store.root)]
    shown = CliRunner().invoke(app, words, catch_exceptions=False).stdout
    assert shown.splitlines()[0] == f"tiny@gen-1: 15 images in {tmp_path / 'out' / 'labels.csv'}"
    assert [line.split()[0] for line in shown.splitlines()[1:]] == ["ant", "bee", "cat"]
    refused = CliRunner().invoke(app, [*words[:4], "xml", *words[5:]])
    assert refused.exit_code == 2
    assert mentions(refused.stderr, "xml: … folders, csv, jsonl, imagefolder, webdataset, fiftyone, label-studio")


def test_a_version_from_the_hub_opens_no_pool_that_it_names(tiny_store, tmp_path, monkeypatch):
    store, _, pool = tiny_store
    version = store.open("tiny@gen-1")
    monkeypatch.setattr("nst_data.store.version.may_be_pulled", lambda folder: True)
    with pytest.raises(NstError, match=r"tiny@gen-1 came from the Hub.*`pool`"):
        export_version(Store(store.root), tmp_path / "out", "folders", version.ref)
    assert export_version(Store(store.root), tmp_path / "out", "folders", version.ref, pool=str(pool)).images == 15
