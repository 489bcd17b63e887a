"""Pseudo-labels that others made become a generation like any other."""

import io
import json
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_class_folders
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from hub import commit, environment, resolve_commit, serving
from hub_looks import parquet
from labels import table_rows
from nst_cli.main import app
from pictures import png, tar_bytes, write_table, write_tar
from typer.testing import CliRunner
from wording import mentions

from nst_data import adoption, labeled_version
from nst_data.adoption import adopt
from nst_data.errors import NstError, UsageError
from nst_data.images import decode, image_hash, phash, phash_thumbnail
from nst_data.progress import Progress
from nst_data.selection.editions import balance
from nst_data.settings import DEFAULT_TOP_K, BalanceSettings
from nst_data.sources import open_source, open_table
from nst_data.store.files import hash_file
from nst_data.store.store import Store

NAMES = ["ant", "bee", "cat"]
LABELS = [2, 0, 1, 1, 0, 2, 2]
IMAGES = [png(label, row) for row, label in enumerate(LABELS)]
SETTINGS = {"probs": "probs", "rows_per_shard": 3}


def png_of(width, height):
    file = io.BytesIO()
    PIL.Image.new("L", (width, height)).save(file, "PNG")
    return file.getvalue()


def soft(labels=LABELS, classes=3, seed=0):
    """Random soft labels whose largest value stands at the label."""
    probs = np.random.default_rng(seed).dirichlet(np.full(classes, 0.3), len(labels))
    for row, label in enumerate(labels):
        largest = probs[row].argmax()
        probs[row, [label, largest]] = probs[row, [largest, label]]
    return probs


def table_of(images=IMAGES, labels=LABELS, names=NAMES, **columns):
    """Images, soft labels and a ClassLabel column, as `datasets` has them."""
    features = Features({"image": Image(), "probs": List(Value("float32")), "guess": ClassLabel(names=names)})
    content = {"image": [{"bytes": one, "path": None} for one in images], "probs": soft(labels).tolist(), "guess": labels}
    return Dataset.from_dict(content, features=features)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def names_file(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("\n".join(NAMES))
    return str(file)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "theirs.parquet"
    path.write_bytes(parquet(table_of()))
    return str(path)


def expected(keys, images=IMAGES, labels=LABELS, probs=None):
    """What the rows must be, by NumPy and the functions that labeling uses."""
    probs = (soft(labels) if probs is None else probs).astype(np.float32).astype(np.float64)
    probs = (probs / probs.sum(axis=1, keepdims=True)).astype(np.float32)
    hashes = phash(np.stack([phash_thumbnail(decode(one)) for one in images])).tolist()
    return [
        {
            "id": row,
            "key": key,
            "image_hash": image_hash(one),
            "label": int(values.argmax()),
            "confidence": float(values.max()),
            "probs": values.astype(np.float16).tolist(),
            "phash": perceptual,
        }
        for row, (key, one, values, perceptual) in enumerate(zip(keys, images, probs, hashes, strict=True))
    ]


def in_parquet(top):
    data = table_of()
    for number, part in enumerate((data.select(range(2)), data.select(range(2, 7)))):
        (top / f"{number}.parquet").write_bytes(parquet(part))
    return [f"{file}.parquet:{row}" for file, count in ((0, 2), (1, 5)) for row in range(count)]


def saved(top):
    table_of().save_to_disk(str(top))
    return [str(row) for row in range(7)]


@pytest.mark.parametrize("write", [in_parquet, saved])
def test_each_kind_of_table_with_images_becomes_a_generation(tmp_path, store, write):
    (tmp_path / "theirs").mkdir()
    keys = write(tmp_path / "theirs")
    pool = open_source(str(tmp_path / "theirs"))
    version = adopt(store, "bugs", pool, **SETTINGS, teacher="hf-hub:google/vit-base-patch16-224")
    manifest = version.manifest
    assert (version.ref, manifest.kind, manifest.class_names, version.verify()) == ("bugs@gen-1", "generation", NAMES, [])
    assert table_rows(version) == expected(keys)
    assert manifest.counts.model_dump() == {
        "pool": 7,
        "labeled": 7,
        "errors": 0,
        "per_class": {"ant": 2, "bee": 2, "cat": 3},
        "unlabeled": 0,
        "top_k": None,
        "teacher_parameters": 0,
    }
    assert set(manifest.files) == {f"pseudo_labels/train-0000{n}-of-00003.parquet" for n in range(3)} | {
        "errors/train-00000-of-00001.parquet"
    }
    assert manifest.request.inputs.pool == pool.lineage
    assert manifest.request.inputs.teacher.ref == "hf-hub:google/vit-base-patch16-224"
    assert manifest.request.inputs.adopted.ref == pool.location


def test_a_pattern_of_tables_without_names_takes_them_from_a_file(tmp_path, store, names_file):
    for number in range(2):
        write_table(
            tmp_path / f"part-{number}.parquet", photo=IMAGES[number::2], thumbnail=IMAGES[number::2], p=soft(LABELS[number::2]).tolist()
        )
    pool = open_source(str(tmp_path / "part-*.parquet"), image_column="photo")
    version = adopt(store, "bugs", pool, probs="p", class_names=names_file)
    assert [row["image_hash"] for row in table_rows(version)] == [image_hash(one) for number in range(2) for one in IMAGES[number::2]]
    assert [row["label"] for row in table_rows(version)] == LABELS[0::2] + LABELS[1::2]
    assert version.manifest.class_names == NAMES
    assert version.manifest.request.inputs.class_names.ref == names_file
    listed = adopt(store, "listed", pool, probs="p", class_names=NAMES)
    assert listed.manifest.request.inputs.class_names.digest == version.manifest.request.inputs.class_names.digest
    assert [row["label"] for row in table_rows(listed)] == [row["label"] for row in table_rows(version)]


def keyed(path, keys, which, **columns):
    return open_table(write_table(path, file=[keys[row] for row in which], probs=soft()[which].tolist(), **columns))


@pytest.fixture
def tar_pool(tmp_path):
    return open_source(write_tar(tmp_path / "pool.tar", [(f"{row}.png", one) for row, one in enumerate(IMAGES)]))


BY_KEY = {"probs": "probs", "key": "file", "rows_per_shard": 2}


def test_labels_in_another_order_than_the_pool_are_joined_by_key(tmp_path, store, names_file, tar_pool):
    keys = [tar_pool.key(row) for row in range(7)]
    version = adopt(store, "bugs", keyed(tmp_path / "t.parquet", keys, [6, 0, 3, 2, 5]), **BY_KEY, pool=tar_pool, class_names=names_file)
    every = expected(keys)
    assert table_rows(version) == [every[row] for row in (0, 2, 3, 5, 6)]
    counts = version.manifest.counts
    assert (counts.pool, counts.labeled, counts.unlabeled, counts.errors) == (7, 5, 2, 0)
    assert version.manifest.request.inputs.pool == tar_pool.lineage
    moved = adopt(
        store, "bugs", keyed(tmp_path / "t.parquet", keys[::-1], [6, 0, 3, 2, 5]), **BY_KEY, pool=tar_pool, class_names=names_file
    )
    assert (moved.ref, [row["id"] for row in table_rows(moved)]) == ("bugs@gen-2", [0, 1, 3, 4, 6])
    edition = balance(store, version, BalanceSettings(min_confidence=0, per_class="none"))
    assert [row["id"] for row in table_rows(edition, "balanced")] == [0, 2, 3, 5, 6]


def test_row_numbers_are_keys_of_a_saved_dataset(tmp_path, store, names_file):
    table_of().save_to_disk(str(tmp_path / "saved"))
    labels = open_table(write_table(tmp_path / "t.parquet", file=[4, 1], probs=soft()[[4, 1]].tolist()))
    version = adopt(store, "bugs", labels, **BY_KEY, pool=open_source(str(tmp_path / "saved")), class_names=names_file)
    assert [(row["id"], row["key"], row["label"]) for row in table_rows(version)] == [(1, "1", 0), (4, "4", 0)]


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (["0.png", "x.png", "y.png"], r"`file`: 2 of its 3 images are not in .*images, such as 'x\.png' in row .*`pool`"),
        (["3.png", "1.png", "3.png"], r"'t\.parquet:0'.*'t\.parquet:2'.*'3\.png'.*one row"),
        (["3.png", None, "1.png"], r"`file`.*'t\.parquet:1' is empty.*key.*pool"),
        ([0.5, 1.5, 2.5], r"`file` is double, expected texts.*pool"),
    ],
)
def test_keys_that_name_no_image_or_one_twice_are_refused(tmp_path, store, names_file, keys, line):
    (tmp_path / "images").mkdir()
    for row, one in enumerate(IMAGES):
        (tmp_path / "images" / f"{row}.png").write_bytes(one)
    labels = open_table(write_table(tmp_path / "t.parquet", file=keys, probs=soft()[:3].tolist()))
    with pytest.raises(NstError, match=line):
        adopt(store, "bugs", labels, **BY_KEY, pool=open_source(str(tmp_path / "images")), class_names=names_file)
    assert not store.root.exists()


def test_images_that_cannot_be_read_stand_in_errors_with_the_reason(tmp_path, store):
    path = tmp_path / "theirs.parquet"
    images = [IMAGES[0], b"", b"no image", IMAGES[3], png_of(3, 4000), IMAGES[5], IMAGES[6]]
    path.write_bytes(parquet(table_of(images)))
    version = adopt(store, "bugs", open_source(str(path)), **SETTINGS)
    whole = expected([f"theirs.parquet:{row}" for row in range(7)])
    assert table_rows(version) == [whole[row] for row in (0, 3, 5, 6)]
    errors = table_rows(version, "errors")
    assert [(one["id"], one["key"]) for one in errors] == [(row, f"theirs.parquet:{row}") for row in (1, 2, 4)]
    too_long = "3x4000 pixels: one side is more than 250 times the other"
    assert [one["reason"] for one in errors] == ["empty file", "not an image in a known format", too_long]
    assert version.manifest.counts.errors == 3


@pytest.mark.parametrize("bad", [[9.0, 1.0, 2.0], [0.5, 0.5]])
def test_a_bad_row_refuses_the_whole_before_anything_is_written(tmp_path, store, names_file, bad):
    write_table(tmp_path / "t.parquet", image=IMAGES, probs=[*soft()[:6].tolist(), bad])
    with pytest.raises(NstError, match=r"t\.parquet:.*`probs`.*'t\.parquet:6' (adds up to 12.*`logits`|has 2 numbers.*each class)"):
        adopt(store, "bugs", open_source(str(tmp_path / "t.parquet")), **SETTINGS, class_names=names_file)
    assert not store.root.exists()


def test_image_files_have_no_columns(tmp_path, store):
    pool = open_source(str(write_class_folders(tmp_path / "images", NAMES, 1)))
    with pytest.raises(NstError, match=r"images:.*image files.*'probs'"):
        adopt(store, "bugs", pool, **SETTINGS)


CONTROL = ["ant", "bee\x1b[2J", "cat"]


def test_class_names_with_control_characters_are_refused(tmp_path, store):
    (tmp_path / "t.parquet").write_bytes(parquet(table_of(names=CONTROL)))
    with pytest.raises(NstError, match=r"t\.parquet:.*'bee\\x1b\[2J'.*control characters.*`class_names` FILE"):
        adopt(store, "bugs", open_source(str(tmp_path / "t.parquet")), **SETTINGS)


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        ("ant\nbee\ncat\ndog", r"`class_names`.*: expected 3.*`probs`, found 4"),
        ("ant\nbee\nbee", r"`class_names`.*: expected 3.*`probs`, found 2"),
        ("ant\nb\x07e\ncat", r"`class_names`.*: line 2 is 'b\\x07e'.*control characters"),
    ],
)
def test_a_file_must_name_each_class_once(tmp_path, store, table, lines, line):
    (tmp_path / "names.txt").write_text(lines)
    with pytest.raises(NstError, match=line):
        adopt(store, "bugs", open_source(table), **SETTINGS, class_names=str(tmp_path / "names.txt"))


def test_names_that_nobody_gives_are_asked_for(tmp_path, store):
    path = write_table(tmp_path / "t.parquet", image=IMAGES, probs=soft().tolist())
    with pytest.raises(UsageError, match=r"column `probs` has 3 classes.*no column.*`class_names` FILE"):
        adopt(store, "bugs", open_source(path), **SETTINGS)


GUESS = {"guess": {"_type": "ClassLabel", "names": NAMES}}


@pytest.mark.parametrize(
    ("metadata", "is_named"),
    [
        ({"info": {"features": GUESS}}, True),
        ({"info": {"features": {"guess": {"_type": "ClassLabel", "names": [1, None, "cat"]}}}}, False),
        ({"info": {"features": {"guess": {"_type": "ClassLabel", "names": "ant"}}}}, False),
        ({"info": {"features": {"guess": ["ClassLabel"]}}}, False),
        ({"info": {"features": list(GUESS)}}, False),
        ([GUESS], False),
        (None, False),
    ],
)
def test_what_others_wrote_into_a_schema_is_used_or_passed_over(tmp_path, store, metadata, is_named):
    described = {"huggingface": json.dumps(metadata) if metadata else "no JSON"}
    table = pa.table({"image": IMAGES, "probs": soft().tolist(), "guess": LABELS}).replace_schema_metadata(described)
    pq.write_table(table, tmp_path / "t.parquet")
    pool = open_source(str(tmp_path / "t.parquet"))
    if is_named:
        assert adopt(store, "bugs", pool, **SETTINGS).manifest.class_names == NAMES
    else:
        with pytest.raises(UsageError, match="no column has as many class names"):
            adopt(store, "bugs", pool, **SETTINGS)


def test_two_columns_with_different_class_names_are_not_guessed_between(tmp_path, store):
    data = table_of().add_column("other", LABELS).cast_column("other", ClassLabel(names=["x", "y", "z"]))
    (tmp_path / "t.parquet").write_bytes(parquet(data))
    with pytest.raises(UsageError, match=r"`probs` has 3 classes.*several columns.*`class_names` FILE"):
        adopt(store, "bugs", open_source(str(tmp_path / "t.parquet")), **SETTINGS)


@pytest.mark.parametrize("teacher", ["", "  ", "vit\nbase", "vit\x1b[2J"])
def test_the_teacher_is_named_in_one_line(table, store, teacher):
    with pytest.raises(UsageError, match=r"`teacher` '.*one line.*hf-hub:OWNER/NAME"):
        adopt(store, "bugs", open_source(table), **SETTINGS, teacher=teacher)


def test_only_the_largest_are_kept_where_asked_for_or_above_1000_classes(tmp_path, store, table):
    two = adopt(store, "two", open_source(table), probs="probs", top_k=2)
    for row, one in zip(table_rows(two), expected([""] * 7), strict=True):
        order = sorted(range(3), key=lambda label: -one["probs"][label])[:2]
        assert (row["top_labels"], row["top_probs"]) == (order, [one["probs"][label] for label in order])
    many = soft([1000, 0], 1001)
    names = tmp_path / "names.txt"
    names.write_text("\n".join(map(str, range(1001))))
    path = write_table(tmp_path / "many.parquet", image=IMAGES[:2], probs=many.tolist())
    version = adopt(store, "many", open_source(path), **SETTINGS, class_names=str(names))
    assert version.manifest.counts.top_k == DEFAULT_TOP_K
    assert [row["label"] for row in table_rows(version)] == [1000, 0]
    with pytest.raises(NstError, match=r"top-k 4:.*1 to 3.*`top_k`"):
        adopt(store, "four", open_source(table), probs="probs", top_k=4)


class KilledError(Exception):
    """Stops the work in its middle."""


class Counting(Progress):
    """Stops a task after so many of its images, and remembers how many it did."""

    def __init__(self, images=None):
        self.left, self.lines, self.done = images, [], {}

    def say(self, line):
        self.lines.append(line)

    @contextmanager
    def task(self, name, total, unit, done=0):
        self._name = name.partition(" ")[0]
        self.done[self._name] = 0
        yield self

    def advance(self, amount, note=""):
        self.done[self._name] += amount
        if self._name == "adopt" and self.left is not None and self.done[self._name] > self.left:
            raise KilledError


def sealed(version):
    return {name: hash_file(version.folder / name) for name in version.manifest.files}


def test_what_was_killed_goes_on_and_has_the_same_bytes(store, table):
    undisturbed = adopt(store, "undisturbed", open_source(table), **SETTINGS)
    with pytest.raises(KilledError):
        adopt(store, "bugs", open_source(table), **SETTINGS, progress=Counting(5))
    assert store.unfinished() == ["bugs@gen-1"]
    again = Counting()
    version = adopt(store, "bugs", open_source(table), **SETTINGS, progress=again)
    assert again.done == {"check": 7, "adopt": 4}  # the first shard of three stays, and so does what was read of the soft labels
    assert sealed(version) == sealed(undisturbed)
    assert store.unfinished() == []


def test_the_same_again_is_there_already_and_other_labels_are_not(tmp_path, store, table):
    first, said = adopt(store, "bugs", open_source(table), **SETTINGS), Counting()
    again = adopt(store, "bugs", open_source(table), **SETTINGS, progress=said)
    assert (again.ref, said.lines) == (first.ref, ["bugs@gen-1 already exists: same labels, images and settings"])
    columns = {"image": IMAGES, "theirs": soft().tolist(), "probs": soft(seed=1).tolist()}
    names = tmp_path / "names.txt"
    names.write_text("\n".join(NAMES))
    path = tmp_path / "same-size.parquet"
    refs = []
    for swapped in (False, True):  # of equal size: only what is in the column tells them apart
        values = columns | ({"theirs": columns["probs"], "probs": columns["theirs"]} if swapped else {})
        write_table(path, **values)
        refs.append(adopt(store, "size", open_source(str(path)), **SETTINGS, class_names=str(names)).ref)
    assert refs == ["size@gen-1", "size@gen-2"]
    with pytest.raises(NstError, match=r"bugs@gen-1.*\(top_k: None instead of 2\).*`store\.remove\('bugs@gen-1'\)`"):
        adopt(store, "bugs", open_source(table), **SETTINGS | {"top_k": 2}, generation=1)


def run(*arguments, status=0):
    result = CliRunner().invoke(app, [str(word) for word in arguments], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result


@pytest.mark.slow
def test_every_command_takes_an_adopted_generation(tmp_path, store, table):
    where = ["--store", store.root]
    done = run("adopt", table, "--corpus", "bugs", "--probs", "probs", "--teacher", "theirs", *where)
    assert mentions(done.stdout, "bugs@gen-1: … 7 images …, 0 could not be read")
    assert "next: nst balance bugs@gen-1 --per-class auto" in done.stdout
    other = json.loads(run("adopt", table, "--corpus", "bugs", "--probs", "probs", "--top-k", 2, "--json", *where).stdout)
    assert (other["ref"], other["counts"]["top_k"]) == ("bugs@gen-2", 2)
    run("balance", "bugs@gen-1", "--min-confidence", 0, "--per-class", 3, *where)
    run("balance", "bugs@gen-1", "--min-confidence", 0, "--per-class", 3, "--embed-images", *where)
    labeled = write_class_folders(tmp_path / "labeled", NAMES, 4)
    network = ["--model", "test_resnet", "--image-size", 16, "--epochs", 1, "--batch-size", 4, "--workers", 0]
    for edition in ("bugs@gen-1.1", "bugs@gen-1.2"):
        trained = run("train", "--labeled", labeled, "--pseudo", edition, "--name", "student", *network, *where)
        assert "warning: the student" not in trained.stderr
    for words in (["show", "bugs@gen-1"], ["lineage", "student@gen-1"], ["verify", "bugs@gen-1"], ["diff", "bugs@gen-1", "bugs@gen-2"]):
        assert "bugs@gen-1" in run(*words, *where).stdout
    with pytest.raises(UsageError, match=r"bugs@gen-1 was adopted.*without `extend`"):
        extend_adopted(store, table)


def extend_adopted(store, table):
    from nst_train.labeling.label import extend

    return extend(store, store.open("bugs@gen-1"), open_source(table))


def test_wrong_use_is_one_line(tmp_path, store, table):
    where = ["--corpus", "bugs", "--store", store.root]
    without = write_table(tmp_path / "without.parquet", file=["x"], probs=[[0.5, 0.5]])
    several = write_table(tmp_path / "several.parquet", one=IMAGES, two=IMAGES, probs=soft().tolist())
    for status, words, line in (
        (2, [table, "--probs", "probs", "--smoothing", "0.1"], "--smoothing applies to labels without a confidence, and"),
        (2, [table, "--probs", "probs", "--key", "file"], "--key refers to images; add --pool SOURCE, or remove it"),
        (
            2,
            [table, "--probs", "probs", "--pool", table],
            "expected a column of paths, such as `file_name` or `path`, found no column; name it with --key",
        ),
        (2, [table, "--probs", "guess2"], "expected one column `guess2`, found image, probs, guess"),
        (1, [without, "--probs", "probs"], "or name where the images are: --pool SOURCE"),
        (2, [several, "--probs", "probs"], "expected one image column, found one, two; name one with --image-column"),
        (2, [table, "--probs", "probs", "--corpus", "../bugs"], "name '../bugs': expected ASCII letters, digits"),
    ):
        stderr = run("adopt", *where, *words, status=status).stderr
        assert line in stderr.strip().splitlines()[-1]
        assert "Traceback" not in stderr
    assert not store.root.exists()


CARD = b"""---
dataset_info:
  features:
  - {name: image, dtype: image}
  - {name: probs, list: float32}
  - {name: guess, dtype: {class_label: {names: {'0': ant, '1': bee, '2': cat}}}}
---
"""


@pytest.mark.slow
def test_datasets_of_the_hub_are_adopted_at_their_commit(tmp_path):
    top, home = tmp_path / "hub", tmp_path / "home"
    home.mkdir()
    plain = pa.table({"image": IMAGES, "probs": soft().tolist(), "guess": LABELS})
    commit(top, "me/theirs", {"README.md": CARD, "data/train-00000-of-00001.parquet": parquet(plain)})
    keys = pa.table({"file": ["x.tar:3.png", "x.tar:1.png"], "probs": soft()[[3, 1]].tolist(), "guess": [1, 0]})
    commit(
        top,
        "me/keyed",
        {"README.md": CARD.replace(b"name: image, dtype: image", b"name: file, dtype: string"), "x.parquet": parquet(keys)},
    )
    commit(top, "me/pool", {"x.tar": tar_bytes([(f"{row}.png", one) for row, one in enumerate(IMAGES)])})
    runs = [["me/theirs", "--corpus", "theirs"], ["me/keyed", "--corpus", "keyed", "--key", "file", "--pool", "me/pool"]]
    code = "import sys\nfrom nst_cli.main import run\nrun()"
    with serving(top) as (url, _):
        for words in runs:
            command = [sys.executable, "-c", code, "adopt", *words, "--probs", "probs", "--store", str(tmp_path / "store")]
            done = subprocess.run(command, env=environment(url, home), capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    store = Store(tmp_path / "store")
    theirs, keyed = store.open("theirs"), store.open("keyed")
    keys = [f"data/train-00000-of-00001.parquet:{row}" for row in range(7)]
    assert table_rows(theirs) == expected(keys)
    assert [(row["id"], row["key"], row["label"]) for row in table_rows(keyed)] == [(1, "x.tar:1.png", 0), (3, "x.tar:3.png", 1)]
    assert theirs.manifest.class_names == keyed.manifest.class_names == NAMES
    inputs = keyed.manifest.request.inputs
    assert (inputs.adopted.revision, inputs.pool.revision) == (resolve_commit(top, "me/keyed"), resolve_commit(top, "me/pool"))


def test_who_is_second_to_seal_the_same_labels_ends_with_the_version_of_the_first(store, table, monkeypatch):
    whole = labeled_version.cards.write_dataset_card

    def second(*_):
        monkeypatch.setattr(labeled_version.cards, "write_dataset_card", whole)
        adopt(store, "theirs", open_source(str(table)), **SETTINGS)
        raise NstError("expected parquet files in pseudo_labels/, found none")  # what they lay in was moved to its place

    monkeypatch.setattr(labeled_version.cards, "write_dataset_card", second)
    assert adopt(store, "theirs", open_source(str(table)), **SETTINGS) == store.open("theirs@gen-1")
    assert store.unfinished() == []


def test_who_is_overtaken_before_it_begins_ends_with_the_version_of_the_first(store, table, monkeypatch):
    check_unchanged = adoption.check_unchanged

    def second(*about):
        monkeypatch.setattr(adoption, "check_unchanged", check_unchanged)
        adopt(store, "theirs", open_source(str(table)), **SETTINGS)
        check_unchanged(*about)  # in a folder that is gone

    monkeypatch.setattr(adoption, "check_unchanged", second)
    assert adopt(store, "theirs", open_source(str(table)), **SETTINGS) == store.open("theirs@gen-1")
    assert store.unfinished() == []


def test_files_that_name_other_classes_than_the_first_are_refused(tmp_path, store):
    for number, names in enumerate((NAMES, NAMES[::-1])):
        table_of(names=names).to_parquet(tmp_path / f"{number}.parquet")
    with pytest.raises(NstError, match=r"1\.parquet: its class names differ from those of .*0\.parquet"):
        adopt(store, "bugs", open_source(tmp_path), **SETTINGS)
