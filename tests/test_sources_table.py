import json
import unicodedata

import pytest
from conftest import png, write_class_folders
from pictures import write_files
from wording import is_line

from nst_data.errors import NstError, UsageError
from nst_data.sources import open_source


@pytest.fixture
def photos(tmp_path):
    """A folder with images in `red` and `blue`, and the paths of the images relative to it."""
    write_class_folders(tmp_path / "photos", ["blue", "red"], 2)
    return tmp_path / "photos", sorted(path.relative_to(tmp_path / "photos").as_posix() for path in (tmp_path / "photos").rglob("*.*"))


def write_rows(path, header, rows, separator=","):
    path.write_text("\n".join(separator.join(map(str, row)) for row in [header, *rows]) + "\n")
    return path


def classes_of(source):
    return [source.class_names[label] for label in source.labels]


def test_a_csv_file_of_paths_and_classes_is_the_same_images_and_labels_as_class_folders(photos, tmp_path):
    folder, names = photos
    folders = open_source(folder, labeled=True)
    table = write_rows(folder / "labels.csv", ["path", "label"], [(name, name.split("/")[0]) for name in names])
    source = open_source(table, labeled=True)
    assert [source.key(row) for row in range(len(source))] == names
    assert (classes_of(source), source.class_names) == (classes_of(folders), folders.class_names)
    assert source.fingerprint == folders.fingerprint
    assert [row.read() for row in source.rows(range(4))] == [(folder / name).read_bytes() for name in names]
    elsewhere = write_rows(tmp_path / "all.tsv", ["image", "label"], [(folder / name, 3) for name in names], "\t")
    assert open_source(elsewhere).read(1) == (folder / names[1]).read_bytes()


def test_integer_classes_are_numbers_whose_names_a_file_gives(photos, tmp_path):
    folder, names = photos
    (tmp_path / "names.txt").write_text("zero\none\ntwo\n")
    lines = [{"file_name": name, "label": 2 * (index % 2), "objects": {"bbox": [[1, 2]]}} for index, name in enumerate(names)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    source = open_source(folder / "rows.jsonl", labeled=True)
    assert (source.labels.tolist(), source.class_names) == ([0, 2, 0, 2], ["0", "1", "2"])
    named = open_source(folder / "rows.jsonl", labeled=True, class_names=str(tmp_path / "names.txt"))
    assert classes_of(named) == ["zero", "two", "zero", "two"]


def test_the_only_column_of_classes_need_not_be_called_label(photos):
    folder, names = photos
    table = write_rows(folder / "labels.csv", ["path", "Class"], [(name, name.split("/")[0]) for name in names])
    assert classes_of(open_source(table, labeled=True)) == [name.split("/")[0] for name in names]
    table = write_rows(folder / "two.csv", ["path", "label", "category"], [(name, 1, "warm") for name in names])
    with pytest.raises(UsageError, match=r"two\.csv:.*found label, category.*`label_column`"):
        open_source(table, labeled=True)
    assert classes_of(open_source(table, labeled=True, label_column="category")) == ["warm"] * 4


def test_spaces_around_a_class_are_no_part_of_it_and_a_number_has_one_spelling(photos):
    folder, names = photos
    table = write_rows(folder / "labels.csv", ["path", "label"], list(zip(names, ["x ", "x", " y", "y"], strict=True)))
    assert classes_of(open_source(table, labeled=True)) == ["x", "x", "y", "y"]
    table = write_rows(folder / "numbers.csv", ["path", "label"], list(zip(names, ["7", "007", "1", "1"], strict=True)))
    with pytest.raises(NstError, match=r"numbers\.csv: column `label`.*one class: '007', '7'; "):
        open_source(table, labeled=True)


@pytest.mark.parametrize("row", [("a.png", "x"), ("a, b.png", "0,5")])
def test_a_table_with_another_separator_is_told_so(photos, row):
    table = write_rows(photos[0] / "labels.csv", ["path", "label"], [row], ";")
    with pytest.raises(NstError, match=r"'path;label'.*';'; expected commas"):
        open_source(table, labeled=True)


def test_a_table_in_utf_16_is_told_so(photos):
    (photos[0] / "labels.csv").write_text("path,label\na.png,x\n", encoding="utf-16")
    with pytest.raises(NstError, match=r"labels\.csv: .*UTF-16; save it in UTF-8"):
        open_source(photos[0] / "labels.csv", labeled=True)


def test_other_columns_are_taken_by_name(photos):
    folder, names = photos
    rows = [(name, "thumb.png", "warm", "a") for name in names]
    table = write_rows(folder / "labels.csv", ["where", "image", "mood", "kind"], rows)
    source = open_source(table, labeled=True, image_column="where", label_column="mood")
    assert (source.image_column, source.label_column, classes_of(source)) == ("where", "mood", ["warm"] * 4)
    assert source.read(0) == (folder / names[0]).read_bytes()
    with pytest.raises(NstError, match=r"labels\.csv:.*`label`, found where, mood, kind.*`label_column`"):
        open_source(table, labeled=True)
    with pytest.raises(UsageError, match=r"`image_column` here:.*labels\.csv; columns: where, image, mood, kind"):
        open_source(table, image_column="here")


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_a_folder_with_metadata_has_its_classes_unless_it_has_class_folders(photos, tmp_path, name):
    folder, names = photos
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in names:
        (flat / path.replace("/", "-")).write_bytes((folder / path).read_bytes())
    for top, rows in ((flat, [path.replace("/", "-") for path in names]), (folder, names)):
        if name.endswith("csv"):
            write_rows(top / name, ["file_name", "label"], [(row, f"c{index % 2}") for index, row in enumerate(rows)])
        else:
            (top / name).write_text(
                "".join(json.dumps({"file_name": row, "label": f"c{index % 2}"}) + "\n" for index, row in enumerate(rows))
            )
    assert classes_of(open_source(flat, labeled=True)) == ["c0", "c1", "c0", "c1"]
    assert open_source(folder, labeled=True).class_names == ["blue", "red"]


@pytest.mark.parametrize("outside", ["../secret.png", "a/../../secret.png", "/etc/secret.png"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_metadata_that_came_with_a_folder_does_not_lead_out_of_it_and_a_table_that_is_named_may(tmp_path, suffix, outside):
    folder = tmp_path / "strange"
    folder.mkdir()
    for path in (folder / "a.png", folder / "b..c.png", tmp_path / "secret.png"):
        path.write_bytes(png(0, 0))
    rows = [("a.png", "red"), ("b..c.png", "red"), (outside, "red")]
    metadata = folder / f"metadata.{suffix}"
    if suffix == "csv":
        write_rows(metadata, ["file_name", "label"], rows)
    else:
        metadata.write_text("".join(json.dumps({"file_name": path, "label": word}) + "\n" for path, word in rows))
    with pytest.raises(NstError, match=rf"metadata\.{suffix}: column `file_name` has '{outside}' in row 2 \(counted from 0\).*its folder"):
        open_source(folder, labeled=True)
    assert len(open_source(metadata, labeled=True)) == 3


def coco(names, categories):
    """COCO's JSON of images with the categories of each one's annotations."""
    kinds = sorted({kind for one in categories for kind in one})
    pairs = [(image, kind) for image, one in enumerate(categories) for kind in one]
    return json.dumps(
        {
            "images": [{"id": 10 + image, "file_name": name, "width": 8} for image, name in enumerate(names)],
            "categories": [{"id": kinds.index(kind) + 5, "name": kind} for kind in kinds],
            "annotations": [
                {"id": row, "image_id": 10 + image, "category_id": kinds.index(kind) + 5} for row, (image, kind) in enumerate(pairs)
            ],
        }
    )


def test_blanks_after_the_commas_of_a_table_are_no_part_of_its_names_and_cells(photos):
    folder, names = photos
    rows = [(name.split("/")[0], name) for name in names]
    spaced = write_rows(folder / "spaced.csv", ["label", "path"], rows, ", ")
    plain = write_rows(folder / "plain.csv", ["label", "path"], rows)
    source, expected = open_source(spaced, labeled=True), open_source(plain, labeled=True)
    assert (source.fingerprint, source.class_names) == (expected.fingerprint, ["blue", "red"])
    assert source.read(1) == (folder / names[1]).read_bytes()
    assert open_source(spaced, labeled=True, label_column="label").label_column == "label"


def test_names_of_columns_that_differ_in_blanks_alone_stay_and_are_shown_in_quotes(photos):
    folder, names = photos
    table = write_rows(folder / "two.csv", ["path", "grade", " grade"], [(name, 1, name.split("/")[0]) for name in names])
    assert classes_of(open_source(table, labeled=True, label_column=" grade")) == [name.split("/")[0] for name in names]
    with pytest.raises(NstError, match=r"expected a column `label`, found grade, ' grade'; choose .*, e\.g\. grade, ' grade'$"):
        open_source(table, labeled=True)


def test_the_class_of_an_image_of_coco_is_the_category_of_its_annotations(photos):
    folder, names = photos
    (folder / "all.json").write_text(coco(names, [["cup"], ["cup", "cup"], ["pan"], ["pan"]]))
    assert classes_of(open_source(folder / "all.json", labeled=True)) == ["cup", "cup", "pan", "pan"]
    (folder / "mixed.json").write_text(coco(names, [["cup"], ["cup", "pan"], ["pan"], ["pan"]]))
    with pytest.raises(NstError, match=r"mixed\.json: 'blue/.*'.*several categories \(cup, pan\).*one class"):
        open_source(folder / "mixed.json", labeled=True)
    (folder / "lacking.json").write_text(coco(names, [["cup"], ["cup"], ["pan"], []]))
    assert len(open_source(folder / "lacking.json")) == 4
    with pytest.raises(NstError, match=r"lacking\.json: column `label`.*no label in row 3.*every image"):
        open_source(folder / "lacking.json", labeled=True)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "", "expected CSV with a header"),
        ("a.csv", "path,label\n", "a row for each image, found none"),
        (
            "a.csv",
            "url,label\nx,y\n",
            "`file_name` or `path`, found url, label; … `image_column`",
        ),
        ("a.csv", "path,file,label\nx,y,z\n", "found path, file; … `image_column`"),
        ("a.csv", "path,label\nx,a\n,b\n", "column `path` has 1 row …; drop them"),
        ("a.csv", "path,label\nx,a\ny,\n", "column `label` has no label in row 1"),
        (
            "a.csv",
            "path,label\nx,a\ny,nan\nz,nan\n",
            "column `label` has the label 'nan' in 2 rows, the first is row 1 …; drop such rows, or",
        ),
        ("a.csv", "path,label\nx,0\ny,NaN\n", "column `label` has the label 'NaN' in row 1"),
        ("a.csv", "path,label\nx,2\ny,0.5\n", "column `label` has the label '0.5' in row 1 …, expected … whole numbers; … `label_column`"),
        ("a.tsv", "path\tlabel\nx\t1e-3\n", "column `label` has the label '1e-3' in row 0"),
        ("a.jsonl", '{"path": "x", "label": 1.5}', "column `label` has the label '1.5' in row 0"),
        ("a.jsonl", '{"path": "x", "label": NaN}', "column `label` has the label 'NaN' in row 0"),
        ("a.jsonl", "[1]\n", "expected JSON lines, … (line 1: … JSON object, found list)"),
        ("a.jsonl", "{path: 1}\n", "expected JSON lines, … failed"),
        ("a.json", "{}", "COCO's JSON, … (no `images`"),
        ("a.json", "[" * 10_000, "expected COCO's JSON"),
    ],
)
def test_what_is_no_such_table_is_one_line(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(NstError) as caught:
        open_source(tmp_path / name, labeled=True)
    assert is_line(str(caught.value), f"{tmp_path / name}: …{said}…")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "path,label\nx,Dress\ny,dress\nz,3\n"),
        ("a.jsonl", '{"path":"x","label":"Dress"}\n{"path":"y","label":"dress"}\n{"path":"z","label":3}'),
    ],
)
def test_classes_that_may_be_slips_are_remarked(tmp_path, name, text):
    write_files(tmp_path, "x", "y", "z")
    (tmp_path / name).write_text(text)
    assert open_source(tmp_path / name, labeled=True).remarks() == [
        f"{tmp_path / name}: warning: classes that differ only in case: Dress and dress",
        f"{tmp_path / name}: warning: numbers and names are classes side by side: 3 beside Dress, dress",
    ]
    assert open_source(tmp_path / name).remarks() == []


def test_words_that_may_be_classes_are_classes(tmp_path):
    write_files(tmp_path, "x", "y")
    (tmp_path / "a.csv").write_text("path, region,dose\nx,EU,0.5\ny,NA,1.5\n")
    regions = open_source(tmp_path / "a.csv", labeled=True, label_column=" region")  # as the header has it
    assert regions.class_names == open_source(tmp_path / "a.csv", labeled=True, label_column="region").class_names == ["EU", "NA"]
    assert regions.remarks() == [f"{tmp_path / 'a.csv'}: warning: classes that may be missing labels: NA"]
    assert open_source(tmp_path / "a.csv", labeled=True, label_column="dose").class_names == ["0.5", "1.5"]  # asked for


def test_text_that_is_not_utf8_is_one_line(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"path,label\n\xff\xfe\x00,a\n")
    with pytest.raises(NstError, match="expected CSV with a header"):
        open_source(tmp_path / "a.csv", labeled=True)


def test_images_and_categories_of_coco_have_an_id_each(photos):
    folder, names = photos
    content = json.loads(coco(names, [["cup"], ["cup"], ["pan"], ["pan"]]))
    for kind, what in (("images", "two images"), ("categories", "two categories")):
        changed = json.loads(json.dumps(content))
        changed[kind][1]["id"] = changed[kind][0]["id"]
        (folder / "twice.json").write_text(json.dumps(changed))
        with pytest.raises(NstError, match=rf"twice\.json: {what} have the `id` .*give each its own"):
            open_source(folder / "twice.json", labeled=True)


@pytest.mark.parametrize("start", ["\n", "\r\n", "\n\n", "\ufeff\n"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_empty_lines_before_the_header_are_no_rows(photos, start, end):
    folder, names = photos
    rows = ["path,label", *(f"{name},{place % 2}" for place, name in enumerate(names)), ""]
    (folder / "labels.csv").write_text(start + end.join(rows), newline="")
    source = open_source(folder / "labels.csv", labeled=True)
    assert [source.key(row) for row in range(len(source))] == names
    assert source.labels.tolist() == [0, 1, 0, 1]


def test_a_class_that_is_spelled_with_one_character_and_with_two_is_one(photos):
    folder, names = photos
    spelled = [unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD")]
    table = write_rows(folder / "labels.csv", ["path", "label"], zip(names, [*spelled, "tea", "tea"], strict=True))
    assert classes_of(open_source(table, labeled=True)) == [spelled[0], spelled[0], "tea", "tea"]
    table = write_rows(folder / "one.csv", ["path", "label"], zip(names, [spelled[1], "tea"] * 2, strict=True))
    assert classes_of(open_source(table, labeled=True)) == [spelled[1], "tea"] * 2  # as it is written
