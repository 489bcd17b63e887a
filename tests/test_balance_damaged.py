"""`nst balance` on what it cannot work with: one line that says what was expected, what came and what to do, and nothing half-written."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_pool
from nst_cli.main import app
from test_balance_command import LABELS, probs
from test_editions import write_generation
from typer.testing import CliRunner
from wording import is_line, mentions

from nst_data.self_contained import writing as self_contained
from nst_data.sources import open_source
from nst_data.store.store import Store


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def pool(tmp_path):
    return open_source(str(write_pool(tmp_path / "pool", 3, 2)))


@pytest.fixture
def generation(store, pool):
    """Three shards of two rows."""
    return write_generation(store, pool, probs(LABELS))


def error_line(store, status, *arguments):
    """The last line on standard error, after which the store has the files that it had."""
    before = files_in(store)
    result = CliRunner().invoke(app, ["balance", "flowers@gen-1", *map(str, arguments), "--store", str(store.root)], catch_exceptions=False)
    line = result.stderr.splitlines()[-1]
    assert (result.exit_code, result.stdout) == (status, "")
    assert result.stderr.count("nst: ") == 1
    assert line.startswith("nst: ")
    assert files_in(store) == before
    assert store.unfinished() == []
    return line.removeprefix("nst: ")


def files_in(store):
    return {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()}


def shard(generation, number=0):
    return sorted((generation.folder / "pseudo_labels").iterdir())[number]


def replace(generation, column, values, number=0):
    """Write a shard anew with other values in a column."""
    table = pq.read_table(shard(generation, number))
    pq.write_table(table.set_column(table.schema.get_field_index(column), column, values), shard(generation, number))


@pytest.mark.parametrize(
    ("column", "kind"),
    [("id", "int64"), ("image_hash", "string"), ("label", "int64"), ("confidence", "float"), ("probs", "fixed_size_list<")],
)
def test_a_column_that_is_missing_is_named(store, generation, column, kind):
    path = shard(generation, 2)
    pq.write_table(pq.read_table(path).drop([column]), path)
    assert f"flowers@gen-1: pseudo_labels/{path.name}: column `{column}` is missing, expected {kind}" in error_line(store, 1)


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("confidence", pa.array(["0.9", "0.8"]), "column `confidence` is string, expected float"),
        ("confidence", pa.array([0.9, 0.8], pa.float64()), "column `confidence` is double, expected float"),
        ("label", pa.array(["ant", "bee"]), "column `label` is string, expected int64"),
        ("probs", pa.array([[0.5], [0.5]], pa.list_(pa.float32())), "column `probs` is list<"),
        ("key", pa.array([1, 2]), "column `key` is int64, expected string"),
    ],
)
def test_a_column_of_a_wrong_type_is_named(store, generation, column, values, says):
    replace(generation, column, values, number=1)
    assert mentions(error_line(store, 1), f"flowers@gen-1: pseudo_labels/train-00001-of-00003.parquet: {says}")


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("confidence", pa.array([0.5, None], pa.float32()), "0 to 2 … 0 to 1, found 1 row …, such as row 3: label 0, confidence None"),
        ("label", pa.array([None, None], pa.int64()), "0 to 2 … 0 to 1, found 2 rows …, such as row 2: label None, confidence 0.625"),
        ("image_hash", pa.array([None, "00"]), "column `image_hash` lacks 1 value in rows 2 to 3"),
        ("image_hash", pa.array([None, None], pa.string()), "column `image_hash` lacks 2 values in rows 2 to 3"),
        ("key", pa.array(["a.png", None]), "column `key` lacks 1 value in rows 2 to 3"),
        ("id", pa.array([None, 3], pa.int64()), "column `id` lacks 1 value in rows 2 to 3"),
        ("id", pa.array([None, None], pa.int64()), "column `id` lacks 2 values in rows 2 to 3"),
        ("probs", pa.array([[0.5, 0.25, None], [0, 0, 0]], pa.list_(pa.float16(), 3)), "column `probs` lacks 1 value in rows 2 to 3"),
        ("probs", pa.array([None, [0, 0, 0]], pa.list_(pa.float16(), 3)), "column `probs` lacks 1 value in rows 2 to 3"),
    ],
)
@pytest.mark.parametrize("words", [[], ["--per-class", "none"], ["--embed-images"], ["--exclude-class", "bee", "--exclude-class", "cat"]])
def test_a_value_that_is_missing_is_named(store, generation, tmp_path, monkeypatch, column, values, says, words):
    monkeypatch.chdir(tmp_path)
    replace(generation, column, values, number=1)
    assert is_line(error_line(store, 1, *words), f"flowers@gen-1: … {says} …; the table was made or changed elsewhere")


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("phash", pa.array([None, 3], pa.int64())),
        ("image_hash", pa.array([None, "00"])),
        ("key", pa.array(["a.png", None])),
        ("id", pa.array([None, 3], pa.int64())),
    ],
)
def test_a_value_that_is_missing_is_named_before_held_out_images_are_looked_for(store, generation, pool, column, values):
    replace(generation, column, values, number=1)
    line = error_line(store, 1, "--exclude", pool.location)
    assert is_line(line, f"flowers@gen-1: column `{column}` lacks 1 value in rows 2 to 3; the table was made or changed elsewhere")


def test_a_value_that_is_missing_after_the_last_selected_row_is_named(store, generation):
    replace(generation, "key", pa.array(["a.png", None]), number=2)
    assert "column `key` lacks 1 value in rows 4 to 5" in error_line(store, 1, "--per-class", 1, "--exclude-class", "bee")


@pytest.mark.parametrize(
    ("column", "value", "row", "words"),
    [
        ("confidence", 1.5, "label 0, confidence 1.5", ["--confidence-range", 0, 1]),
        ("confidence", -0.25, "label 0, confidence -0.25", ["--per-class", "none"]),
        ("label", 3, "label 3, confidence 0.625", ["--class-min-confidence", "ant.yaml"]),
        ("label", -1, "label -1, confidence 0.625", ["--class-min-confidence", "ant.yaml"]),
        ("label", 2**40, "label 1099511627776, confidence 0.625", ["--per-class", "auto"]),
    ],
)
def test_a_label_that_no_teacher_gives_is_shown_with_its_row(store, generation, tmp_path, monkeypatch, column, value, row, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ant.yaml").write_text("ant: 0.5")
    kind = pa.float32() if column == "confidence" else pa.int64()
    replace(generation, column, pa.array([value, 0], kind), number=1)
    assert is_line(
        error_line(store, 1, *words), f"flowers@gen-1: … 0 to 2 … 0 to 1, found 1 row …, such as row 2: {row}; … changed elsewhere"
    )


@pytest.mark.parametrize(("ids", "words"), [([1, 0], []), ([0, 0], []), ([-1, 0], ["--embed-images"]), ([0, 2**50], ["--embed-images"])])
def test_rows_in_another_order_than_the_pools_are_refused(store, generation, ids, words):
    replace(generation, "id", pa.array(ids))
    assert is_line(error_line(store, 1, *words), "flowers@gen-1: … `id` from 0 to 5, found another order; … changed elsewhere")


@pytest.mark.parametrize(("number", "exclude"), [(0, False), (1, True)])
def test_a_file_that_was_cut_short_is_named(store, generation, pool, number, exclude):
    path = shard(generation, number)
    path.write_bytes(path.read_bytes()[:-10])
    line = error_line(store, 1, *(["--exclude", pool.location] if exclude else []))
    assert is_line(line, f"flowers@gen-1: pseudo_labels/{path.name}: … cannot be read (…); `nst verify` …")


@pytest.mark.parametrize(
    ("column", "words"),
    [("confidence", []), ("key", ["--exclude", "pool"]), ("probs.list.element", []), ("probs.list.element", ["--embed-images"])],
)
def test_a_damaged_page_is_one_line(store, generation, tmp_path, monkeypatch, column, words):
    monkeypatch.chdir(tmp_path)
    footer = pq.read_metadata(shard(generation)).row_group(0)
    (chunk,) = (footer.column(index) for index in range(footer.num_columns) if footer.column(index).path_in_schema == column)
    content = bytearray(shard(generation).read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    shard(generation).write_bytes(content)
    line = error_line(store, 1, *words)
    assert line.startswith("flowers@gen-1: the labels cannot be read (")


def test_a_shard_that_is_gone_or_was_added_is_named(store, generation):
    path = shard(generation, 1)
    content = path.read_bytes()
    path.unlink()
    line = "flowers@gen-1: pseudo_labels/train-00001-of-00003.parquet is missing; `nst verify flowers@gen-1` shows all that changed"
    assert error_line(store, 1) == line
    path.write_bytes(content)
    (path.parent / "more.parquet").write_bytes(content)
    assert mentions(error_line(store, 1), "flowers@gen-1: pseudo_labels/more.parquet … not there … sealed")
    shutil.rmtree(path.parent)
    assert "expected parquet files in pseudo_labels/, found none" in error_line(store, 1)


@pytest.mark.parametrize("words", [[], ["--per-class", "auto"], ["--method", "official", "--embed-images"]])
def test_a_corpus_in_which_nothing_was_labeled_is_one_line(store, tmp_path, words):
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(b"no image")
    write_generation(store, open_source(str(tmp_path)), np.zeros((2, 3), np.float32))
    assert is_line(error_line(store, 1, *words), "flowers@gen-1: expected labels, found none: … its table errors …")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--min-confidence", 0.9], "(6 low confidence); lower --min-confidence, …"),
        (["--confidence-range", 0.9, 1], "(6 outside range); widen --confidence-range"),
        (["--fraction", 1e-9], "(6 not sampled); raise --fraction"),
        (["--exclude-class", "ant", "--exclude-class", "bee"], "(6 excluded class); … fewer … --exclude-class"),
        (["--exclude", "pool", "--exact-overlap-only"], "(6 excluded); choose a pool with images that are not excluded, or exclude fewer"),
        (
            ["--exclude-class", "ant", "--min-confidence", 0.75],
            "(4 excluded class, 2 low confidence); exclude fewer classes with --exclude-class; "
            "lower --min-confidence, or train a better teacher",
        ),
    ],
)
@pytest.mark.usefixtures("generation")
def test_nothing_left_says_why_and_what_to_do(store, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    assert is_line(error_line(store, 1, *words), f"flowers@gen-1: 0 images … of 6 {says}")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--per-class", "0"], "--per-class: … from 1, 'auto' or 'none', found 0"),
        (["--per-class", "-1"], "--per-class: … from 1, 'auto' or 'none', found -1"),
        (["--per-class", "2.5"], "--per-class: … from 1, 'auto' or 'none', found 2.5"),
        (["--per-class", "many"], "--per-class: … from 1, 'auto' or 'none', found many"),
        (["--per-class", "9" * 12], "--per-class: … at most 2,147,483,647 …, found 999999999999"),
        (["--exclude-class", "ent"], "--exclude-class: … 'ent'; did you mean 'ant'?"),
        (["--exclude-class", "xyz"], "--exclude-class: … 'xyz'; … ant, bee, cat"),
        (
            ["--confidence-range", "0.5"],  # --store comes next
            "--confidence-range: expected a number; see `nst balance --help`",
        ),
        (["--confidence-range", "0.5", "0.2"], "--confidence-range: … 0 to 1, … found 0.5 0.2"),
        (["--confidence-range", "0.5", "nan"], "--confidence-range: … 0 to 1, … found 0.5 nan"),
        (
            ["--confidence-range", "0.2", "0.5", "--min-confidence", "0.4"],
            "--confidence-range replaces --min-confidence and --class-min-confidence; remove those",
        ),
        (
            ["--confidence-range", "0.2", "0.5", "--class-min-confidence", "ant.yaml"],
            "--confidence-range replaces --min-confidence and --class-min-confidence; remove those",
        ),
        (
            ["--confidence-range", "0.2", "0.5", "--at-threshold", "keep"],
            "--at-threshold … not … --confidence-range; remove one …",
        ),
        (["--max-copies", "0"], "--max-copies: … at least 1, found 0"),
        (["--max-copies", "x"], "--max-copies: … whole number, found x"),
        (
            ["--max-copies", "2", "--per-class", "none"],
            "--max-copies … --per-class none …; remove one …",
        ),
        (
            ["--method", "official", "--per-class", "none"],
            "--method official … --per-class none …; remove one …",
        ),
        (["--method", "oficial"], "--method: … 'exact' or 'official', found oficial"),
        (["--auto-quantile", "0.3"], "--auto-quantile … --per-class auto; add … remove …"),
        (["--shard-mb", "100"], "--shard-mb … add --embed-images, or remove …"),
        (["--fraction", "0"], "--fraction: … above 0, found 0"),
        (["--min-confidence", "nan"], "--min-confidence: … finite number, found nan"),
        (["--master", "local[2]"], "--master requires --engine spark"),
        (["--engine", "sparc"], "--engine sparc: expected polars or spark"),
        (["--pool", "pool"], "--pool … --exclude SOURCE and --embed-images; add one …, or remove --pool"),
    ],
)
@pytest.mark.usefixtures("generation")
def test_a_wrong_setting_is_named(store, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ant.yaml").write_text("ant: 0.5")
    assert is_line(error_line(store, 2, *words), says)


EXPECTED = "expected a YAML file with lines such as `rose: 0.5`"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"- ant\n- bee\n", f": {EXPECTED}, found a list"),
        (b"0.5", f": {EXPECTED}, found text"),
        (b"", f": {EXPECTED}, found nothing"),
        (b"ant: [", f", line 1: {EXPECTED}; a bracket is not closed, …at 'ant: ['"),
        (b"\xff\xfe\x00", f": {EXPECTED}; it is not in UTF-8; save it as UTF-8"),
        (b"ant: 1.5", ": ant: … at most 1, found 1.5"),
        (b"bee: 0.5\nant: -0.1", ": ant: … at least 0, found -0.1"),
        (b"ant: high", ": ant: … number, … found high"),
        (b"ant: yes", ": ant: … number, … found yes"),
        (b"ant: .nan", ": ant: … number, … found .nan"),
        (b"ant: {bee: 1}", ": ant: … number, found "),
    ],
)
@pytest.mark.usefixtures("generation")
def test_a_wrong_file_of_thresholds_is_named_with_what_is_wrong(store, tmp_path, content, says):
    (tmp_path / "wrong.yaml").write_bytes(content)
    line = error_line(store, 2, "--class-min-confidence", tmp_path / "wrong.yaml")
    assert mentions(line, f"--class-min-confidence {tmp_path}/wrong.yaml{says}")


@pytest.mark.usefixtures("generation")
def test_a_file_of_thresholds_that_is_not_there_or_names_no_class(store, tmp_path):
    line = error_line(store, 2, "--class-min-confidence", tmp_path / "none.yaml")
    assert line == f"--class-min-confidence {tmp_path}/none.yaml: No such file or directory; {EXPECTED}"
    assert f"{tmp_path}: Is a directory; {EXPECTED}" in error_line(store, 2, "--class-min-confidence", tmp_path)
    (tmp_path / "names.yaml").write_text("ant: 0.5\nbbee: 0.5\n")
    line = error_line(store, 2, "--class-min-confidence", tmp_path / "names.yaml")
    assert is_line(line, "--class-min-confidence: … 'bbee'; did you mean 'bee'?")


@pytest.mark.usefixtures("generation")
def test_images_of_a_pool_that_is_gone_cannot_be_written(store, pool, tmp_path):
    shutil.rmtree(pool.location)
    line = error_line(store, 1, "--embed-images")
    assert is_line(
        line, f"{pool.location}: no such file … flowers@gen-1 was made from it, … --embed-images …; pass its current location with --pool"
    )
    assert f"{tmp_path}/nowhere: no such file or folder" in error_line(store, 1, "--embed-images", "--pool", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[::-1]), "'1-101.png' has different content … --pool"),
        (lambda path: path.write_bytes(b""), "'1-101.png' has different content … --pool"),
        (lambda path: path.unlink(), "lacks 1 of 2 images, … '1-101.png'; … --pool"),
    ],
)
@pytest.mark.usefixtures("generation")
def test_an_image_that_is_not_what_was_labeled_is_named(store, pool, tmp_path, damage, says):
    damage(tmp_path / "pool" / "1-101.png")
    assert is_line(error_line(store, 1, "--embed-images"), f"{pool.location}: {says}…")


@pytest.mark.usefixtures("generation")
def test_images_that_were_read_before_one_that_changed_are_kept(store, pool, tmp_path, monkeypatch):
    monkeypatch.setattr(self_contained, "CHUNK_BYTES", 1000)  # of an image or two
    path, words = tmp_path / "pool" / "2-100.png", ["balance", "flowers@gen-1", "--embed-images", "--store", str(store.root)]
    content = path.read_bytes()
    path.write_bytes(content[::-1])
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert "'2-100.png' has different content" in result.stderr
    assert store.unfinished() == ["flowers@gen-1.1"]
    path.write_bytes(content)
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0
    assert store.unfinished() == []
    assert store.open("flowers@gen-1.1").verify() == []
