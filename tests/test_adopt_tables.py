"""Labels in the forms that people have them, as tables that name the images of a pool."""

import json
import unicodedata

import numpy as np
import pandas as pd
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from labels import table_rows, write_named_pool, write_teacher
from nst_cli.main import app
from pictures import png
from timm.data import create_transform, resolve_data_config
from typer.testing import CliRunner
from wording import mentions

from nst_data import adoption
from nst_data.adoption import adopt
from nst_data.errors import NstError, UsageError
from nst_data.images import image_hash
from nst_data.label_files import json_tables
from nst_data.label_files.choosing import ColumnOptions
from nst_data.label_files.opening import open_labels
from nst_data.progress import Progress
from nst_data.sources import open_source, text_tables
from nst_data.sources.imagenet_names import imagenet_wnids
from nst_data.store.store import Store
from nst_data.tables.key_column import KeyColumn
from nst_data.tables.label_reader import create_label_reader
from nst_train.labeling.label import label
from nst_train.settings import LabelRunSettings, LabelSettings

NAMES = ["ant", "bee", "cat", "dog"]
FILES = ["a/0.png", "a/1.png", "b/2.png", "b/3.png", "4.png"]
PROBS = np.array([[0.7, 0.2, 0.1, 0.0], [0.1, 0.2, 0.3, 0.4], [0.05, 0.9, 0.05, 0.0], [0.4, 0.3, 0.2, 0.1], [0.0, 0.0, 0.25, 0.75]])
LABELS = PROBS.argmax(axis=1)


def largest(k, probs=PROBS):
    """(classes, probabilities) of each image, the k most probable first."""
    order = np.argsort(-probs, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(probs, order, axis=1)


def read(table, names=None, smoothing=0.0, **requested):
    """{key: {class: probability}} of a file of labels, for every class."""
    adopted = open_labels(str(table), ColumnOptions(class_names=names, **requested))
    reader = create_label_reader(adopted.source, adopted.columns, names, None, smoothing, Progress())
    keys = [key for piece in KeyColumn(adopted.source, adopted.key).pieces() for key in piece.to_pylist()]
    probs = np.concatenate(list(reader.probabilities()))
    return {key: dict(zip(reader.class_names, row.tolist(), strict=True)) for key, row in zip(keys, probs, strict=True)}


def near(labels):
    return {key: pytest.approx(probs, abs=1e-6) for key, probs in labels.items()}


def expected(k=4, probs=PROBS):
    """The same by hand: what is left to 1 is even over the classes that are not named."""
    found = {}
    for key, row in zip(FILES, probs.tolist(), strict=True):
        top = sorted(range(len(row)), key=lambda one: -row[one])[:k]
        rest = (1 - sum(row[one] for one in top)) / max(1, len(row) - k)
        found[key] = {NAMES[one]: row[one] if one in top else rest for one in range(len(row))}
    return found


def write_lines(path, table):
    path.write_text("".join(json.dumps(row) + "\n" for row in table))
    return path


def write_json(path, content):
    path.write_text(json.dumps(content))
    return path


def timm_frame(classes, values, names=None, ids=False, column="prob", separate=False, fullname=True):
    """The table of timm's inference.py, with its --topk, --include-index, --label-type, --output-col, --results-separate-col."""
    frame = {"filename": FILES if fullname else [name.rpartition("/")[2] for name in FILES]}
    parts = [("index", classes)] if ids else []
    parts += [("label", np.array(names, object)[classes])] if names is not None else []
    for name, array in [*parts, (column, values.astype(np.float32))]:
        if separate and array.shape[1] > 1:
            frame |= {f"{name}_{place}": array[:, place] for place in range(array.shape[1])}
        else:
            frame[name] = list(array.squeeze(-1) if array.shape[1] == 1 else array)
    return pd.DataFrame(frame)


def write_timm(frame, path, form):
    """As its --results-format."""
    if form == "parquet":
        frame.set_index("filename").to_parquet(path)
    elif form == "json":
        frame.set_index("filename").to_json(path, indent=4, orient="index")
    elif form == "json-split":
        frame.to_json(path, indent=4, orient="split", index=False)
    elif form == "json-records":
        frame.to_json(path, lines=True, orient="records")
    else:
        frame.to_csv(path, index=False, sep="\t" if form == "tsv" else ",")
    return str(path)


FORMS = {"csv": "csv", "tsv": "tsv", "json": "json", "json-split": "json", "json-records": "json", "parquet": "parquet"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("k", [1, 3, 4])
def test_timms_output_is_taken_in_each_of_its_forms(tmp_path, form, separate, k):
    classes, values = largest(k)
    for number, options in enumerate(({"names": NAMES}, {"ids": True}, {"names": NAMES, "ids": True}, {"names": NAMES, "column": "score"})):
        file = write_timm(timm_frame(classes, values, separate=separate, **options), tmp_path / f"{number}.{FORMS[form]}", form)
        assert read(file, NAMES) == near(expected(k))
    logits = timm_frame(classes, np.log(values + 1e-30), names=NAMES, column="logit", separate=separate)
    file = write_timm(logits, tmp_path / f"logits.{FORMS[form]}", form)
    if k == 4:
        assert read(file, NAMES, logits=True) == near(expected())
    with pytest.raises(UsageError, match=r"logits\.\w+:.*`logit.*`.*add `logits`.*`probs`"):
        read(file, NAMES)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("separate", [False, True])
def test_all_probabilities_or_logits_in_order_are_those_of_the_class_names(tmp_path, form, separate):
    path = tmp_path / f"dense.{FORMS[form]}"
    write_timm(timm_frame(None, PROBS, separate=separate), path, form)
    assert read(path, NAMES) == near(expected())
    write_timm(timm_frame(None, np.log(PROBS + 1e-30) + 3, column="logit", separate=separate), path, form)
    assert read(path, NAMES, logits=True) == near(expected())


def test_long_lists_and_odd_names_in_a_cell_of_csv_are_read_as_numpy_writes_them(tmp_path):
    odd = [f'it\'s "{number}", a\\b' if number % 2 else f"thing, of kind {number}" for number in range(40)]
    probs = np.random.default_rng(0).dirichlet(np.ones(40), len(FILES))
    classes = np.argsort(-probs, axis=1)
    file = write_timm(timm_frame(classes, np.take_along_axis(probs, classes, axis=1), names=odd), tmp_path / "t.csv", "csv")
    assert "\n " in (tmp_path / "t.csv").read_text()
    found = read(file)
    np.testing.assert_allclose([[found[key][name] for name in odd] for key in FILES], probs, atol=1e-6)


def test_lists_of_labels_with_scores_are_taken_as_pipelines_give_them(tmp_path):
    classes, values = largest(3)
    lists = [
        [{"score": value, "label": NAMES[one]} for one, value in zip(*pair, strict=True)]
        for pair in zip(classes.tolist(), values.tolist(), strict=True)
    ]
    files = [
        write_json(tmp_path / "mapping.json", dict(zip(FILES, lists, strict=True))),
        write_json(tmp_path / "records.json", [{"image": key, "predictions": one} for key, one in zip(FILES, lists, strict=True)]),
        write_lines(tmp_path / "lines.jsonl", [{"file": key, "result": one, "width": 8} for key, one in zip(FILES, lists, strict=True)]),
    ]
    pq.write_table(pa.table({"path": FILES, "top": lists}), tmp_path / "table.parquet")
    for file in [*files, tmp_path / "table.parquet"]:
        assert read(file) == near(expected(3))
    with pytest.raises(NstError, match=r"bare\.json:.*without naming images.*object.*each image's key"):
        read(write_json(tmp_path / "bare.json", lists))


def test_a_number_for_each_class_name_and_a_column_for_each_class_are_taken(tmp_path):
    by_name = [dict(zip(NAMES, row, strict=True)) for row in PROBS.tolist()]
    assert read(write_json(tmp_path / "a.json", dict(zip(FILES, by_name, strict=True)))) == near(expected())
    lines = [{"key": key, "label": "ant", "confidence": 0.1, "probs": one} for key, one in zip(FILES, by_name, strict=True)]
    assert read(write_lines(tmp_path / "a.jsonl", lines)) == near(expected())
    wide = pd.DataFrame({"key": FILES, "label": "ant", "confidence": 0.1, **{name: PROBS[:, place] for place, name in enumerate(NAMES)}})
    wide.to_csv(tmp_path / "a.csv", index=False)
    assert read(tmp_path / "a.csv", NAMES) == near(expected())


def test_rows_may_name_different_numbers_of_classes(tmp_path):
    rows = [{"file": "x", "label": ["bee", "ant"], "prob": [0.5, 0.4]}, {"file": "y", "label": ["dog"], "prob": [0.7]}]
    found = read(write_lines(tmp_path / "a.jsonl", rows), NAMES)
    assert found["x"] == pytest.approx({"ant": 0.4, "bee": 0.5, "cat": 0.05, "dog": 0.05}, abs=1e-6)
    assert found["y"] == pytest.approx({"ant": 0.1, "bee": 0.1, "cat": 0.1, "dog": 0.7}, abs=1e-6)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["ant", "nan"], r"t\.csv: column `label` of row 't\.csv:1' has the label 'nan', which programs write .*; drop such rows"),
        (
            ["1", "0.5"],
            r"t\.csv: column `label` of row 't\.csv:1' has the label '0\.5', expected class names or whole numbers; .*`label_column`",
        ),
    ],
)
def test_words_that_name_no_class_are_refused_unless_the_classes_are_given(tmp_path, labels, said):
    (tmp_path / "t.csv").write_text("filename,label\n" + "".join(f"{label}.png,{label}\n" for label in labels))
    with pytest.raises(NstError, match=said):
        read(tmp_path / "t.csv", None)
    assert read(tmp_path / "t.csv", labels).keys() == {f"{label}.png" for label in labels}


def test_classes_of_a_table_that_may_be_slips_are_remarked(tmp_path):
    (tmp_path / "t.csv").write_text("filename,label\nx.png,ant\ny.png,Ant\n")
    table = open_labels(str(tmp_path / "t.csv"), ColumnOptions())
    reader = create_label_reader(table.source, table.columns, None, None, 0.0, Progress())
    assert "warning: classes that differ only in case: Ant and ant" in reader.remarks


def test_blanks_after_the_commas_of_csv_are_no_part_of_names_and_cells(tmp_path):
    (tmp_path / "t.csv").write_text("label, filename, prob\nant, x.png, 0.5\n")
    assert read(tmp_path / "t.csv", ["ant", "bee"]) == {"x.png": {"ant": 0.5, "bee": 0.5}}


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_a_label_with_its_confidence_or_alone_is_taken(tmp_path, suffix):
    frame = pd.DataFrame({"image": FILES, "label": [NAMES[one] for one in LABELS], "confidence": PROBS.max(axis=1)})
    for columns, smoothing in ((["image", "label", "confidence"], 0.0), (["image", "label"], 0.0), (["image", "label"], 0.2)):
        path = tmp_path / f"t.{suffix}"
        forms = {"csv": "csv", "tsv": "tsv", "jsonl": "json-records"}
        if suffix == "parquet":
            frame[columns].to_parquet(path)
        elif suffix == "json":
            frame[columns].to_json(path, orient="records")
        else:
            write_timm(frame[columns], path, forms[suffix])
        hard = np.eye(4)[LABELS] * (1 - smoothing) + smoothing / 4
        assert read(path, NAMES, smoothing) == near(expected(1) if "confidence" in columns else expected(4, hard))


@pytest.mark.parametrize("column", ["label", "index"])
def test_class_numbers_in_floats_are_their_integers(tmp_path, column):
    frame = pd.DataFrame({"filename": ["x.png", "y.png"], column: [2.0, 0.0], "prob": [0.7, 0.4]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_json(tmp_path / "t.jsonl", lines=True, orient="records")
    for name in ("t.csv", "t.parquet", "t.jsonl"):
        found = read(tmp_path / name, NAMES)
        assert [max(found[key], key=found[key].get) for key in ("x.png", "y.png")] == ["cat", "ant"], name


def test_a_negative_class_without_class_names_is_an_error(tmp_path):
    (tmp_path / "t.csv").write_text("filename,label\nx.png,ant\ny.png,bee\nz.png,-1\n")
    with pytest.raises(NstError, match=r"`label` has the label -1, expected a class name or number from 0; drop rows without a class"):
        read(tmp_path / "t.csv", None)


def test_a_simple_object_of_labels_is_taken(tmp_path):
    assert read(write_json(tmp_path / "a.json", {"x.png": "ant", "y.png": "bee"})) == {
        "x.png": {"ant": 1, "bee": 0},
        "y.png": {"ant": 0, "bee": 1},
    }


def test_imagenets_classes_are_known_by_words_and_by_wordnet_ids(tmp_path):
    (tmp_path / "t.csv").write_text('filename,label,prob\nx.png,"tench, Tinca tinca",0.5\ny.png,"goldfish, Carassius auratus",0.9\n')
    names = imagenet_wnids()
    found = read(tmp_path / "t.csv", names)
    assert [max(found[key], key=found[key].get) for key in ("x.png", "y.png")] == names[:2]


REFUSED = [
    ("x,ant,0.7\nx2,bee,1.2\n", r"`prob` of row 't.csv:1' adds up to 1.2, more than 1; expected probabilities; if these are logits, add"),
    ("x,ant,0.7\nx2,bee,-0.2\n", r"`prob` of row 't.csv:1' holds a negative number, expected probabilities"),
    ("x,ant,0.7\nx2,bee,nan\n", r"`prob` of row 't.csv:1' is not finite"),
    ("x,ant,0.7\nx2,bee,\n", r"`prob` of row 't.csv:1' lacks a number"),
    ("x,ant,0.7\nx2,,0.7\n", r"`label` of row 't.csv:1' lacks a class"),
    (
        "x,ant,0.7\nx2,bee,much\n",
        r"expected CSV with a header; reading it failed \(Failed to parse string: 'much' as a scalar of type double\)",
    ),
    ("x,ant,0.7\nx2,fly,0.7\n", r"`label`: expected 4 classes \(ant, bee, cat, dog\), found 2 \(ant, fly\); unknown: fly"),
    ("x,0,0.7\nx2,-1,0.7\n", r"`label` has the label -1, expected a class name or number from 0; drop rows without a class"),
    ("x,0,0.7\nx2,4,0.7\n", r"`label` has the class number 4, expected 0 to 3"),
    (
        "x,ant,0.7\nx2,bee,0.1\n",
        r"adds up to 0.1: leaves 0.9 to 3 other classes, more to each than to one that is named; expected the most",
    ),
    ("x,ant,0.7\n,bee,0.7\n", r"`file` of row 't.csv:1' is empty, expected the key of an image in the pool"),
    ("x,ant\n", r"expected CSV with a header; reading it failed \(CSV parse error: Row #2: Expected 3 columns, got 2: x,ant"),
    ("", r"expected a label for each image, found no row"),
    ("x,\"['ant' 'ant']\",[0.5 0.2]\n", r"`label` of row 't.csv:0' names a class twice"),
    ("x,\"['ant' 'bee']\",[0.5 0.2 0.1]\n", r"`prob` of row 't.csv:0' has not one number for each class that is named"),
]


@pytest.mark.parametrize(("lines", "line"), REFUSED)
def test_a_row_that_is_no_label_is_refused_in_one_line(tmp_path, lines, line):
    (tmp_path / "t.csv").write_text("file,label,prob\n" + lines)
    with pytest.raises(NstError, match=line) as caught:
        read(tmp_path / "t.csv", NAMES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ("file,path,label", r"t\.csv:.*paths, found file, path.*`key`"),
        ("where,label", r"`file_name` or `path`, found where, label.*`key`"),
        ("file,label,prediction", r"t\.csv:.*found label, prediction.*`label_column`"),
        ("file,label,prob,score", r"t\.csv:.*found prob, score.*`probs`"),
        ("file,width", r"`probs` or `label`, found width.*`probs` or `label_column`"),
        ("file,label,label", r"t\.csv:.*header.*'label' several times\)"),
    ],
)
def test_columns_that_are_not_certain_are_asked_for_by_name(tmp_path, header, line):
    (tmp_path / "t.csv").write_text(header + "\n" + ",".join("x" for _ in header.split(",")) + "\n")
    with pytest.raises(NstError, match=line):
        read(tmp_path / "t.csv", NAMES)


def test_a_column_of_classes_that_the_numbers_do_not_go_with_is_passed_over_unless_it_is_named(tmp_path):
    rows = [{"key": key, "label": "ant", "probs": values} for key, values in zip(FILES, PROBS.tolist(), strict=True)]
    assert read(write_lines(tmp_path / "t.jsonl", rows), NAMES) == near(expected())
    with pytest.raises(UsageError, match=r"`probs`.*`label`.*in order; remove `label_column`"):
        read(tmp_path / "t.jsonl", NAMES, label_column="label")


def test_named_columns_are_taken_among_others(tmp_path):
    (tmp_path / "t.csv").write_text("file,where,label,guess,score,sure\ny,x,ant,bee,0.1,0.8\n")
    found = read(tmp_path / "t.csv", NAMES, key="where", label_column="guess", probs="sure")
    assert found["x"]["bee"] == pytest.approx(0.8)
    with pytest.raises(UsageError, match=r"t\.jsonl:.*logits, found.*`probs`.*remove `logits`"):
        read(write_lines(tmp_path / "t.jsonl", [{"key": "x", "label": "ant"}]), NAMES, logits=True)
    with pytest.raises(UsageError, match=r"t\.csv:.*`other`, found where, label, guess, score, sure"):
        read(tmp_path / "t.csv", NAMES, key="file", label_column="other")


@pytest.mark.parametrize("name", ["soft.pt", "relabel.pth", "labels.pkl", "logits.npy"])
def test_files_that_may_hold_code_are_refused_with_the_page_that_says_how_to_convert_them(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04")
    with pytest.raises(UsageError, match=r"\.(pt|pth|pkl|npy):.*not read; docs/labels-from-elsewhere\.md"):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("t.json", "{", r"t\.json:.*JSON.*\(Expecting value: line 1"),
        ("t.json", "[1, 2]", r"t\.json:.*\(element 0.*no JSON object\)"),
        ("t.json", "[" * 10_000, "expected labels of images as JSON"),
        ("t.json", '{"a": "ant"} x', r"t\.json:.*'x' after the end"),
        ("t.json", "{}", r"t\.json:.*label for each image, found none"),
        (
            "t.jsonl",
            '{"file": "x", "label": "ant"}\n{"file": 1.5, "label": "bee"}\n',
            r"row 1: column `file` is 1\.5.*key",
        ),
        (
            "t.jsonl",
            '{"file": "x", "label": "ant"}\n{"file": "y", "label": 2.5}\n',
            r"t\.jsonl:.*class names.*first row, found \[2\.5\]",
        ),
        ("t.jsonl", '{"file": "x", "prob": [0.1, 0.9]}\n{"file": "y", "prob": ["a"]}\n', r"t\.jsonl:.*numbers.*first row, found \['a'\]"),
        ("t.jsonl", '{"file": "x", "label": 1}\n{"file": "y", "label": 7}\n', r"`label`.*'t\.jsonl:1' is 7, expected 0 to 3"),
        (
            "t.xml",
            "<a/>",
            r"t\.xml:.*\.csv.*\.parquet.*owner/name on the Hub",
        ),
    ],
)
def test_what_is_no_form_of_labels_is_one_line(tmp_path, name, text, line):
    (tmp_path / name).write_text(text)
    with pytest.raises(NstError, match=line) as caught:
        read(tmp_path / name, NAMES)
    assert "\n" not in str(caught.value)


def test_numbers_without_class_names_are_asked_for(tmp_path):
    (tmp_path / "t.csv").write_text("file,index,prob\nx,3,0.9\n")
    with pytest.raises(UsageError, match=r"t\.csv:.*`index` has class numbers.*`class_names` FILE"):
        read(tmp_path / "t.csv")


def test_a_document_of_any_size_is_read_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr("nst_data.sources.text_tables._BLOCK_BYTES", 64)
    many = {f"{number}.png": {"label": "ant" if number % 2 else "bee", "prob": 0.5 + number / 4000} for number in range(1000)}
    found = read(write_json(tmp_path / "t.json", many))
    assert len(found) == 1000
    assert found["999.png"]["ant"] == pytest.approx(0.5 + 999 / 4000)


@pytest.fixture
def pool(tmp_path):
    return write_named_pool(tmp_path / "pool", FILES)


@pytest.mark.parametrize(
    ("keys", "how"),
    [
        (FILES, ""),
        ([f"/home/ann/photos/{name}" for name in FILES], "path below the folder"),
        ([f"./{name}" for name in FILES], "path below the folder"),
        ([name.removesuffix(".png") for name in FILES], "path without suffix"),
        ([name.rpartition("/")[2] for name in FILES], "file name"),
        (["0", "1", "2", "3", "4"], "file name without suffix"),
    ],
)
def test_images_are_found_by_keys_and_by_paths_from_elsewhere(tmp_path, pool, keys, how):
    write_lines(tmp_path / "t.jsonl", [{"path": key, "label": "ant"} for key in keys[::-1]])
    column = KeyColumn(open_labels(str(tmp_path / "t.jsonl"), ColumnOptions()).source, "path")
    found = column.match_rows(pool)
    assert [FILES[len(FILES) - 1 - row] for row in found.in_table.tolist()] == [pool.key(row) for row in found.in_pool.tolist()]
    assert column.remarks == ([f"the images of column `path` are found by {how}"] if how else [])


@pytest.mark.parametrize("folder", ["", "/mnt/images/"])
def test_names_without_their_suffix_may_hold_dots(tmp_path, folder):
    """As those of FiftyOne's classification datasets: dates, versions, the row of a parquet file."""
    names = ["IMG 2020.01.01.JPG", "a/photo.v2.png", "a/pool.parquet_3.png"]
    pool = write_named_pool(tmp_path / "pool", names)
    write_lines(tmp_path / "t.jsonl", [{"path": folder + name.rpartition(".")[0], "label": "ant"} for name in names])
    found = KeyColumn(open_labels(str(tmp_path / "t.jsonl"), ColumnOptions()).source, "path").match_rows(pool)
    assert [pool.key(row) for row in found.in_pool] == [names[row] for row in found.in_table]


@pytest.mark.parametrize(("on_disk", "in_table"), [("NFD", "NFC"), ("NFC", "NFD")])
@pytest.mark.parametrize("folder", ["", "/mnt/Bilder/"])
def test_images_are_found_by_names_whose_accents_are_written_in_another_way(tmp_path, on_disk, in_table, folder):
    """As macOS writes them, and archives that were made there."""
    names = ["cafés/été.png", "cafés/한국어.png", "plain.png"]
    pool = write_named_pool(tmp_path / "pool", [unicodedata.normalize(on_disk, name) for name in names])
    keys = [folder + unicodedata.normalize(in_table, name) for name in names]
    write_lines(tmp_path / "t.jsonl", [{"path": key, "label": "ant"} for key in keys])
    found = KeyColumn(open_labels(str(tmp_path / "t.jsonl"), ColumnOptions()).source, "path").match_rows(pool)
    assert [unicodedata.normalize("NFC", pool.key(row)) for row in found.in_pool] == [names[row] for row in found.in_table]


def test_a_file_name_that_several_images_have_finds_none(tmp_path, pool):
    (tmp_path / "pool" / "b" / "0.png").write_bytes(png(0, 9))
    pool = open_source(tmp_path / "pool")
    write_lines(tmp_path / "t.jsonl", [{"path": "0.png", "label": "ant"}, {"path": "1.png", "label": "bee"}])
    with pytest.raises(
        NstError, match=r"`path` names images by file name, and '0\.png' may be 'a/0\.png' or 'b/0\.png' of .*pool; expected"
    ):
        KeyColumn(open_labels(str(tmp_path / "t.jsonl"), ColumnOptions()).source, "path").match_rows(pool)


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (
            ["0.png", "1.png", "x.png"],
            r"t\.jsonl: column `path`: 1 of its 3 images is not in .*pool, such as 'x\.png' in row 't\.jsonl:2'; the other 2 are found "
            r"by file name; expected paths in it or their file names, such as '4\.png'; drop such rows, or give another `pool`",
        ),
        (
            ["x.png", "y.png"],
            r"t\.jsonl: column `path`: 2 of its 2 images are not in .*pool, such as 'x\.png' in row 't\.jsonl:0'; expected paths in it",
        ),
        (
            ["a/0.png", "a/x.png"],
            r"`path`: 1 of its 2 images is not in .*such as 'a/x\.png' in row 't\.jsonl:1'; the other 1 is found by key;",
        ),
    ],
)
def test_keys_of_no_image_are_counted_among_those_that_are_found_with_an_example(tmp_path, pool, keys, line):
    write_lines(tmp_path / "t.jsonl", [{"path": key, "label": "ant"} for key in keys])
    with pytest.raises(NstError, match=line):
        KeyColumn(open_labels(str(tmp_path / "t.jsonl"), ColumnOptions()).source, "path").match_rows(pool)


def test_images_are_found_by_their_content_where_that_is_asked_for(tmp_path, pool):
    lines = [{"key": "?", "image_hash": image_hash((tmp_path / "pool" / name).read_bytes()), "label": "ant"} for name in FILES]
    write_lines(tmp_path / "t.jsonl", lines)
    opened = open_labels(str(tmp_path / "t.jsonl"), ColumnOptions(key="image_hash"))
    found = KeyColumn(opened.source, opened.key).match_rows(pool)
    assert [FILES[row] for row in found.in_table.tolist()] == [pool.key(row) for row in found.in_pool.tolist()]


class RecordingProgress(Progress):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def test_plain_labels_are_adopted_with_their_smoothing_said_and_kept(tmp_path, pool):
    store, said = Store(tmp_path / "store"), RecordingProgress()
    file = write_json(tmp_path / "t.json", {name: NAMES[label] for name, label in zip(FILES[:4], LABELS[:4], strict=True)})
    version = adopt(store, "bugs", str(file), pool=pool, smoothing=0.1, progress=said)
    assert any(mentions(line, f"{file}: … hard, smoothing 0.1") for line in said.lines)
    assert any(mentions(line, f"{file}: the 3 classes …; `class_names` FILE …") for line in said.lines)
    assert version.manifest.request.settings["smoothing"] == 0.1
    assert version.manifest.class_names == ["ant", "bee", "dog"]
    assert (version.manifest.counts.top_k, version.manifest.counts.unlabeled) == (1, 1)
    assert {row["key"]: (row["top_labels"], row["confidence"]) for row in table_rows(version)} == {
        name: ([["ant", "bee", "dog"].index(NAMES[label])], pytest.approx(0.9 + 0.1 / 3))
        for name, label in zip(FILES, LABELS[:4], strict=False)
    }
    with pytest.raises(NstError, match=r"t\.json:.*`label` names 1.*2.*`top_k`"):
        adopt(store, "bugs", str(file), pool=pool, top_k=2, progress=Progress())
    with pytest.raises(UsageError, match=r"t\.json:.*contains no images; pass them with `pool` SOURCE"):
        adopt(store, "bugs", str(file), progress=Progress())
    twice = write_lines(tmp_path / "t.jsonl", [{"path": FILES[0], "label": one} for one in ("ant", "bee")])
    with pytest.raises(NstError, match=r"'t\.jsonl:0'.*'t\.jsonl:1'.*'a/0\.png'.*one row"):
        adopt(store, "bugs", str(twice), pool=pool, progress=Progress())


def test_timms_output_for_a_network_is_what_label_writes_with_the_same_top_k(tmp_path, pool):
    teacher, store = write_teacher(tmp_path / "teacher", NAMES), Store(tmp_path / "store")
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    ours = label(store, "ours", teacher, pool, LabelSettings(top_k=2, exact_transform=True), run=LabelRunSettings(), progress=Progress())
    network = timm.create_model(teacher, pretrained=True).eval()
    transform = create_transform(**resolve_data_config({}, model=network))
    with torch.inference_mode():
        images = torch.stack([transform(PIL.Image.open(tmp_path / "pool" / name).convert("RGB")) for name in FILES])
        values, classes = network(images).softmax(-1).topk(2)
    frame = timm_frame(classes.numpy(), values.numpy(), names=NAMES, ids=True)
    words = ["adopt", write_timm(frame, tmp_path / "timm.csv", "csv"), "--corpus", "theirs", "--pool", str(tmp_path / "pool")]
    words += ["--class-names", str(tmp_path / "names.txt"), "--store", str(store.root)]
    shown = CliRunner().invoke(app, words, catch_exceptions=False)
    assert mentions(shown.stdout, "theirs@gen-1: … 5 images …, 0 could not be read")
    for mine, theirs in zip(table_rows(ours), table_rows(store.open("theirs@gen-1")), strict=True):
        assert theirs["confidence"] == pytest.approx(mine["confidence"], abs=1e-6)
        assert theirs["top_probs"] == pytest.approx(mine["top_probs"], rel=1e-3)
        exact = ("id", "key", "image_hash", "label", "top_labels", "phash")
        assert {name: theirs[name] for name in exact} == {name: mine[name] for name in exact}


class StoppedError(Exception):
    """Ends the work in its middle."""


@pytest.mark.slow
def test_a_table_of_text_goes_on_after_a_kill_to_the_same_bytes_and_may_be_cut(tmp_path, pool, monkeypatch):
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    file, store = write_timm(timm_frame(*largest(3), names=NAMES), tmp_path / "t.csv", "csv"), Store(tmp_path / "store")
    options = {"pool": pool, "class_names": str(tmp_path / "names.txt"), "rows_per_shard": 2, "progress": Progress()}
    whole = adopt(store, "whole", file, **options)
    looked, looked_at = [], adoption._inspect_image

    def stopping(row):
        looked.append(row.key)
        if len(looked) == 4:
            raise StoppedError
        return looked_at(row)

    monkeypatch.setattr(adoption, "_inspect_image", stopping)
    with pytest.raises(StoppedError):
        adopt(store, "cut", file, **options)
    assert store.unfinished() == ["cut@gen-1"]
    again = adopt(store, "cut", file, **options)
    assert again.manifest.files == whole.manifest.files
    one = adopt(store, "one", file, **options, top_k=1)
    assert [row["top_labels"] for row in table_rows(one)] == [row["top_labels"][:1] for row in table_rows(whole)]
    assert [row["confidence"] for row in table_rows(one)] == [row["confidence"] for row in table_rows(whole)]


def test_a_row_that_names_fewer_classes_than_others_keeps_its_probabilities(tmp_path):
    content = {"a.png": [{"label": name, "score": score} for name, score in (("x", 0.5), ("y", 0.3), ("z", 0.2))]}
    write_json(tmp_path / "mixed.json", content | {"b.png": [{"label": "y", "score": 0.6}]})
    found = near(read(tmp_path / "mixed.json"))
    assert found == {"a.png": {"x": 0.5, "y": 0.3, "z": 0.2}, "b.png": {"x": 0.2, "y": 0.6, "z": 0.2}}


@pytest.mark.parametrize("names", [["(other)", "dog"], ["dog", "(other)"], ["[unknown] thing", "hot dog"]])
def test_names_in_brackets_are_names(tmp_path, names):
    rows = "".join(f"{place}.png,{name}\n" for place, name in enumerate(names))
    (tmp_path / "labels.csv").write_text(f"filename,label\n{rows}")
    found = read(tmp_path / "labels.csv")
    assert {key: max(labels, key=labels.get) for key, labels in found.items()} == {f"{place}.png": name for place, name in enumerate(names)}


def test_coco_may_begin_with_what_it_says_of_itself(tmp_path):
    content = {"info": {"year": 2026}, "licenses": [{"id": 1}], "categories": [{"id": 7, "name": "ant"}, {"id": 9, "name": "bee"}]}
    content["annotations"] = [{"image_id": 0, "category_id": 9}, {"image_id": 1, "category_id": 7}]
    content["images"] = [{"id": 0, "file_name": "a.png"}, {"id": 1, "file_name": "b.png"}]
    write_json(tmp_path / "coco.json", content)
    assert read(tmp_path / "coco.json") == {"a.png": {"ant": 0, "bee": 1}, "b.png": {"ant": 1, "bee": 0}}


def test_a_class_in_brackets_is_the_same_in_all_of_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(text_tables, "_BLOCK_BYTES", 64)
    names = ["cat", "(background)", *["(background)"] * 20]
    (tmp_path / "labels.csv").write_text("filename,label\n" + "".join(f"{place}.png,{name}\n" for place, name in enumerate(names)))
    found = read(tmp_path / "labels.csv")
    assert [max(labels, key=labels.get) for labels in found.values()] == names


def test_names_that_all_stand_in_brackets_are_no_lists(tmp_path):
    (tmp_path / "labels.csv").write_text("filename,label\n0.png,(rose)\n1.png,(men's shoe)\n")
    assert read(tmp_path / "labels.csv") == {"0.png": {"(men's shoe)": 0, "(rose)": 1}, "1.png": {"(men's shoe)": 1, "(rose)": 0}}
    (tmp_path / "lists.csv").write_text("filename,label,score\n0.png,[rose tulip],[0.75 0.25]\n1.png,[tulip rose],[0.5 0.5]\n")
    assert read(tmp_path / "lists.csv") == {"0.png": {"rose": 0.75, "tulip": 0.25}, "1.png": {"rose": 0.5, "tulip": 0.5}}


def test_a_prediction_that_lacks_its_label_makes_no_classes_of_its_fields(tmp_path):
    lines = [{"filename": f"{place}.png", "pred": {"label": name, "score": 0.8}} for place, name in enumerate("xy")]
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, [*lines, {"filename": "2.png", "pred": {"score": 0.8}}])))
    with pytest.raises(NstError, match=r"`pred` of row 'labels\.jsonl:2' names no class"):
        read(tmp_path / "labels.jsonl")
    samples = [{"filepath": f"{place}.png", "gt": {"_cls": "Classification", **line["pred"]}} for place, line in enumerate(lines)]
    samples.append({"filepath": "2.png", "gt": {"_cls": "Classification", "label": None, "score": None}})
    write_json(tmp_path / "samples.json", {"samples": samples})
    assert near(read(tmp_path / "samples.json")) == {"0.png": {"x": 0.8, "y": 0.2}, "1.png": {"x": 0.2, "y": 0.8}}


def test_scores_that_only_later_rows_have_are_not_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(json_tables, "_LOOKED_AT", 2)
    rows = [{"filename": f"{place}.png", "pred": {"label": "xy"[place % 2]} | ({"score": 0.7} if place > 2 else {})} for place in range(5)]
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(NstError, match=r"row 3: has a score, the first 2 rows have none"):
        read(tmp_path / "labels.jsonl")


def test_labels_under_an_empty_first_line_have_no_row_more(tmp_path):
    (tmp_path / "labels.csv").write_text("\nfilename,label\n0.png,x\n1.png,y\n")
    assert read(tmp_path / "labels.csv") == {"0.png": {"x": 1, "y": 0}, "1.png": {"x": 0, "y": 1}}
