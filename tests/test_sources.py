import io
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import picture, write_class_folders
from datasets import ClassLabel, Dataset, Features, Image, Value

from nst_data.errors import NstError, UsageError
from nst_data.sources import check_trainable, match_classes, open_source


@pytest.fixture(autouse=True)
def _arrow_cache_here(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("arrow"))


def png(label, index=0):
    file = io.BytesIO()
    picture(label, index).save(file, "PNG")
    return file.getvalue()


def write_files(folder, *names):
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(0, index))
    return str(folder)


def keys(source):
    return [source.key(row) for row in range(len(source))]


def images_and_labels(labels=(1, 0, 1)):
    features = Features({"image": Image(), "label": ClassLabel(names=["zebra", "ant"])})
    images = [{"bytes": png(label, index), "path": None} for index, label in enumerate(labels)]
    return Dataset.from_dict({"image": images, "label": list(labels)}, features=features)


def write_table(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_a_folder_is_read_in_bytewise_order_of_relative_paths(tmp_path):
    names = ["a.png", "B.png", "b/z.png", "b.png", "b/a/c.png", "é.png"]
    source = open_source(write_files(tmp_path, *names))
    assert keys(source) == sorted(names, key=str.encode) == ["B.png", "a.png", "b.png", "b/a/c.png", "b/z.png", "é.png"]
    assert [source.read(row) for row in range(6)] == [(tmp_path / key).read_bytes() for key in keys(source)]


def test_hidden_files_and_files_that_are_no_images_are_left_out(tmp_path):
    write_files(tmp_path, "a.png", "b.JPG", ".c.png", ".cache/d.png", "notes.txt", "png")
    assert keys(open_source(str(tmp_path))) == ["a.png", "b.JPG"]


def test_a_folder_that_links_to_itself_is_read_once(tmp_path):
    write_files(tmp_path, "a.png", "b/c.png")
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    assert keys(open_source(str(tmp_path))) == ["a.png", "b/c.png"]


def test_the_first_folder_level_names_the_class(tmp_path):
    source = open_source(write_files(tmp_path, "bee/1.png", "ant/wild/2.png", "ant/1.png"), labeled=True)
    assert source.class_names == ["ant", "bee"]
    assert dict(zip(keys(source), source.labels.tolist(), strict=True)) == {"ant/1.png": 0, "ant/wild/2.png": 0, "bee/1.png": 1}


def test_an_image_outside_of_a_class_folder_is_an_error(tmp_path):
    with pytest.raises(NstError, match=r"one folder per class, found the image 'lost.png' outside"):
        open_source(write_files(tmp_path, "ant/1.png", "bee/1.png", "lost.png"), labeled=True)


def test_a_folder_in_brackets_is_a_folder_and_no_pattern(tmp_path):
    assert keys(open_source(write_files(tmp_path / "photos [2024]", "a.png"))) == ["a.png"]


def test_an_image_that_cannot_be_read_is_a_row_with_its_error(tmp_path):
    source = open_source(write_files(tmp_path, "a.png", "b.png"))
    (tmp_path / "a.png").unlink()
    first, second = source.rows(0, 2)
    assert isinstance(first.encoded, FileNotFoundError)
    assert (first.id, first.key, second.id, second.encoded) == (0, "a.png", 1, png(0, 1))


def test_every_kind_of_source_gives_the_same_bytes_and_labels(tmp_path):
    data = images_and_labels()
    for row, label in enumerate(data["label"]):
        path = tmp_path / "folder" / ("zebra", "ant")[label] / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(label, row))
    (tmp_path / "parts").mkdir()
    data.to_parquet(tmp_path / "one.parquet")
    data.select([0, 1]).to_parquet(tmp_path / "parts" / "a.parquet")
    data.select([2]).to_parquet(tmp_path / "parts" / "b.parquet")
    data.save_to_disk(tmp_path / "saved")
    places = ["folder", "one.parquet", "parts/*.parquet", "parts", "saved"]
    found = [open_source(str(tmp_path / place), labeled=True) for place in places]
    assert [type(source).__name__ for source in found] == ["ImageFolder", *["ParquetFiles"] * 3, "SavedDataset"]
    for source in found:
        named = [source.class_names[label] for label in source.labels]
        in_sequence = [row.encoded for row in source.rows(0, 3)]
        assert in_sequence == [source.read(row) for row in range(3)]
        assert dict(zip(in_sequence, named, strict=True)) == {png(1, 0): "ant", png(0, 1): "zebra", png(1, 2): "ant"}
        assert [(row.id, row.key) for row in source.rows(1, 3)] == [(1, source.key(1)), (2, source.key(2))]


def test_keys_of_parquet_files_name_the_file_and_its_row(tmp_path):
    images = [png(0), png(1)]
    write_table(tmp_path / "b.parquet", image=images)
    write_table(tmp_path / "a" / "x.parquet", image=images)
    assert keys(open_source(str(tmp_path / "**" / "*.parquet"))) == ["a/x.parquet:0", "a/x.parquet:1", "b.parquet:0", "b.parquet:1"]


def test_rows_of_parquet_files_start_and_stop_inside_row_groups(tmp_path):
    images = [png(0, index) for index in range(5)]
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet", row_group_size=2)
    pq.write_table(pa.table({"image": images}), tmp_path / "b.parquet", row_group_size=2)
    source = open_source(str(tmp_path))
    for start in range(10):
        for stop in range(start, 11):
            expected = list(zip(range(start, stop), (images * 2)[start:stop], strict=True))
            assert [(row.id, row.encoded) for row in source.rows(start, stop)] == expected


def test_class_names_are_read_from_parquet_metadata_in_their_order(tmp_path):
    images_and_labels([0, 1]).to_parquet(tmp_path / "x.parquet")
    source = open_source(str(tmp_path / "x.parquet"), labeled=True)
    assert (source.class_names, source.labels.tolist()) == (["zebra", "ant"], [0, 1])


def test_integer_labels_without_names_are_their_own_names(tmp_path):
    source = open_source(write_table(tmp_path / "x.parquet", image=[png(0), png(1)], label=[2, 0]), labeled=True)
    assert (source.class_names, source.labels.tolist()) == (["0", "1", "2"], [2, 0])
    assert source.labels.dtype == np.int64


def test_string_labels_are_classes_in_sorted_order(tmp_path):
    source = open_source(write_table(tmp_path / "x.parquet", image=[png(0), png(1), png(2)], label=["b", "a", "b"]), labeled=True)
    assert (source.class_names, source.labels.tolist()) == (["a", "b"], [1, 0, 1])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, None], "1 rows without a label"),
        ([0.0, 1.0], "is double, expected integers or strings"),
        ([-1, 1], "holds -1 to 1, expected 0 to 1"),
    ],
)
def test_labels_that_name_no_class_are_an_error(tmp_path, labels, message):
    with pytest.raises(NstError, match=message):
        open_source(write_table(tmp_path / "x.parquet", image=[png(0), png(1)], label=labels), labeled=True)


def test_a_labeled_source_without_a_label_column_is_an_error(tmp_path):
    with pytest.raises(NstError, match="expected a column `label`, found image, kind"):
        open_source(write_table(tmp_path / "x.parquet", image=[png(0)], kind=["a"]), labeled=True)


@pytest.mark.parametrize(("columns", "found"), [({"text": ["a"]}, "none"), ({"left": [b"a"], "right": [b"b"]}, "several: left, right")])
def test_a_table_needs_one_image_column(tmp_path, columns, found):
    with pytest.raises(NstError, match=f"expected one image column .* found {found}"):
        open_source(write_table(tmp_path / "x.parquet", **columns))


def test_an_empty_cell_is_a_row_with_its_error(tmp_path):
    source = open_source(write_table(tmp_path / "x.parquet", image=pa.array([None, png(0)], pa.binary())))
    first, second = source.rows(0, 2)
    assert isinstance(first.encoded, NstError)
    assert second.encoded == png(0)


def test_one_class_is_an_error(tmp_path):
    with pytest.raises(NstError, match="two classes or more, found only 'ant'"):
        check_trainable(open_source(write_files(tmp_path, "ant/1.png", "ant/2.png"), labeled=True))


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(NstError, match="nowhere: no such file or folder; expected a folder of images"):
        open_source(str(tmp_path / "nowhere"))


def test_a_pattern_without_files_is_an_error(tmp_path):
    with pytest.raises(NstError, match="expected parquet files, no file matches"):
        open_source(str(tmp_path / "*.parquet"))


def test_a_folder_without_images_is_an_error(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(NstError, match=r"expected images .*\.png.*, found none"):
        open_source(str(tmp_path))


def test_parquet_files_without_rows_are_an_error(tmp_path):
    with pytest.raises(NstError, match="expected rows, found parquet files without any"):
        open_source(write_table(tmp_path / "x.parquet", image=pa.array([], pa.binary())))


def test_a_truncated_parquet_file_is_an_error_that_names_it(tmp_path):
    path = write_table(tmp_path / "x.parquet", image=[png(0)])
    (tmp_path / "x.parquet").write_bytes((tmp_path / "x.parquet").read_bytes()[:-9])
    with pytest.raises(NstError, match=r"x\.parquet: expected a parquet file"):
        open_source(path)


def test_a_parquet_file_with_damaged_pages_is_an_error_that_names_it(tmp_path):
    path = write_table(tmp_path / "x.parquet", image=[png(0, index) for index in range(6)])
    content = bytearray((tmp_path / "x.parquet").read_bytes())
    content[4:40] = bytes(36)
    (tmp_path / "x.parquet").write_bytes(content)
    source = open_source(path)
    with pytest.raises(NstError, match=r"x\.parquet"):
        list(source.rows(0, 6))


def test_parquet_files_that_name_their_classes_differently_are_not_mixed(tmp_path):
    for file, names in (("a", ["ant", "bee"]), ("b", ["bee", "ant"])):
        features = Features({"image": Value("binary"), "label": ClassLabel(names=names)})
        Dataset.from_dict({"image": [png(0), png(1)], "label": [0, 1]}, features=features).to_parquet(tmp_path / f"{file}.parquet")
    with pytest.raises(NstError, match=r"b\.parquet"):
        open_source(str(tmp_path), labeled=True)


def test_a_saved_dataset_of_several_splits_asks_for_one(tmp_path):
    images_and_labels().train_test_split(1, seed=0).save_to_disk(tmp_path)
    with pytest.raises(NstError, match=r"expected one split, found train, test; name one, as in .*train"):
        open_source(str(tmp_path))
    assert len(open_source(str(tmp_path / "train"), labeled=True)) == 2


def test_the_same_classes_in_another_order_are_matched_by_name():
    assert match_classes(["c", "a", "b"], ["a", "b", "c"], "test").tolist() == [2, 0, 1]


@pytest.mark.parametrize(("found", "reason"), [(["a", "x"], "not expected: 1 .x."), (["a"], "missing: 1 .b.")])
def test_another_set_of_classes_is_an_error_that_shows_both(found, reason):
    with pytest.raises(NstError, match=rf"test: expected the classes 2 \(a, b\), found {len(found)} \({', '.join(found)}\); {reason}"):
        match_classes(found, ["a", "b"], "test")


def test_a_subset_of_the_classes_is_matched_where_it_is_allowed():
    assert match_classes(["c", "a"], ["a", "b", "c"], "test", subset=True).tolist() == [2, 0]
    with pytest.raises(NstError, match=r"not expected: 1 \(x\)"):
        match_classes(["x"], ["a", "b"], "test", subset=True)


def test_a_file_names_the_classes_of_integer_labels(tmp_path):
    (tmp_path / "names.txt").write_text("ant\n\n bee \ncat\n")
    path = write_table(tmp_path / "x.parquet", image=[png(0), png(1)], label=[1, 0])
    assert open_source(path, labeled=True, class_names_file=str(tmp_path / "names.txt")).class_names == ["ant", "bee", "cat"]


@pytest.mark.parametrize("text", ["ant\n", "ant\nant\n", ""])
def test_a_file_with_too_few_different_class_names_is_an_error(tmp_path, text):
    (tmp_path / "names.txt").write_text(text)
    path = write_table(tmp_path / "x.parquet", image=[png(0), png(1)], label=[1, 0])
    with pytest.raises(UsageError, match="expected 2 or more different names"):
        open_source(path, labeled=True, class_names_file=str(tmp_path / "names.txt"))


def test_a_missing_file_of_class_names_is_an_error(tmp_path):
    path = write_table(tmp_path / "x.parquet", image=[png(0), png(1)], label=[1, 0])
    with pytest.raises(UsageError, match=r"--class-names nowhere\.txt: No such file"):
        open_source(path, labeled=True, class_names_file="nowhere.txt")


def write_one_kind(kind, folder):
    if kind == "folder":
        return str(write_class_folders(folder, ["ant", "bee"], 2))
    folder.mkdir()
    if kind == "parquet":
        images_and_labels().to_parquet(folder / "x.parquet")
    else:
        images_and_labels().save_to_disk(folder)
    return str(folder)


@pytest.mark.parametrize("kind", ["folder", "parquet", "saved"])
def test_the_fingerprint_is_the_same_wherever_the_source_lies(tmp_path, kind):
    here = write_one_kind(kind, tmp_path / "here")
    shutil.copytree(here, tmp_path / "there")
    for labeled in (False, True):
        assert open_source(here, labeled).fingerprint == open_source(str(tmp_path / "there"), labeled).fingerprint
    assert open_source(here).fingerprint != open_source(here, labeled=True).fingerprint


def test_the_fingerprint_changes_with_a_files_name_or_size(tmp_path):
    found = [open_source(write_files(tmp_path, "a.png", "b.png")).fingerprint]
    (tmp_path / "b.png").rename(tmp_path / "c.png")
    found.append(open_source(str(tmp_path)).fingerprint)
    (tmp_path / "c.png").write_bytes(png(0, 1) + b"!")
    found.append(open_source(str(tmp_path)).fingerprint)
    assert len(set(found)) == 3


def test_the_fingerprint_changes_with_labels_and_class_names(tmp_path):
    (tmp_path / "names.txt").write_text("ant\nbee\n")
    images = [png(0), png(1)]
    path, other = (
        write_table(tmp_path / folder / "x.parquet", image=images, label=labels) for folder, labels in (("a", [0, 1]), ("b", [1, 0]))
    )
    assert open_source(path).fingerprint == open_source(other).fingerprint
    named = open_source(path, labeled=True, class_names_file=str(tmp_path / "names.txt"))
    assert named.images_fingerprint == open_source(other).images_fingerprint == open_source(other).fingerprint
    found = {source.fingerprint for source in (open_source(path, labeled=True), open_source(other, labeled=True), named)}
    assert len(found) == 3


def test_rows_are_found_by_their_keys(tmp_path):
    source = open_source(write_files(tmp_path, "a.png", "b.png", "c.png"))
    assert source.rows_of(["c.png", "a.png", "c.png"]).tolist() == [2, 0, 2]
    with pytest.raises(NstError, match=r"lacks 2 of 3 images, the first is 'x.png'; give the pool that was labeled"):
        source.rows_of(["a.png", "x.png", "y.png"])
