import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from pictures import images_and_labels, png, write_files, write_table, write_tar

from nst_data.errors import NstError, UsageError
from nst_data.sources import check_trainable, match_classes, open_source
from nst_data.sources.labels import labels_from_numbers, read_class_names


def test_class_names_are_read_from_parquet_metadata_in_their_order(tmp_path):
    images_and_labels([0, 1]).to_parquet(tmp_path / "x.parquet")
    source = open_source(str(tmp_path / "x.parquet"), labeled=True)
    assert (source.class_names, source.labels.tolist()) == (["zebra", "ant"], [0, 1])


def test_integer_labels_without_names_are_their_own_names(tmp_path):
    source = open_source(write_table(tmp_path / "x.parquet", image=[png(0), png(1)], label=[2, 0]), labeled=True)
    assert (source.class_names, source.labels.tolist()) == (["0", "1", "2"], [2, 0])
    assert source.labels.dtype == np.int64


@pytest.mark.parametrize("labels", [[2.0, 0.0], ["2.0", "0.0"], ["2.0", "0"]])
def test_labels_in_floats_are_their_integers(tmp_path, labels):
    source = open_source(write_table(tmp_path / "x.parquet", image=[png(0), png(1)], label=labels), labeled=True)
    assert (source.class_names, source.labels.tolist()) == (["0", "1", "2"], [2, 0])
    text = "".join(f"{number}.png,{label}\n" for number, label in enumerate(labels))
    (tmp_path / "x.csv").write_text(f"path,label\n{text}")
    source = open_source(str(tmp_path / "x.csv"), labeled=True)
    assert (source.class_names, source.labels.tolist()) == (["0", "1", "2"], [2, 0])
    write_tar(
        tmp_path / "x.tar",
        [one for number, label in enumerate(labels) for one in ((f"{number}.png", png(number)), (f"{number}.cls", str(label).encode()))],
    )
    source = open_source(str(tmp_path / "x.tar"), labeled=True)
    assert (source.class_names, source.labels.tolist()) == (["0", "1", "2"], [2, 0])


def test_a_negative_label_in_text_is_an_error(tmp_path):
    for labels in (("-1", "0"), ("-1.0", "0.0"), ("-1", "ant")):
        (tmp_path / "x.csv").write_text("path,label\n" + "".join(f"{number}.png,{label}\n" for number, label in enumerate(labels)))
        with pytest.raises(NstError, match=rf"`label` has the label {labels[0]}, expected a class name or number from 0; drop rows"):
            open_source(str(tmp_path / "x.csv"), labeled=True)


def test_string_labels_are_classes_in_sorted_order(tmp_path):
    source = open_source(write_table(tmp_path / "x.parquet", image=[png(0), png(1), png(2)], label=["b", "a", "b"]), labeled=True)
    assert (source.class_names, source.labels.tolist()) == (["a", "b"], [1, 0, 1])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, None], "no label in row 1"),
        ([0.5, 1.0], "is double with the value 0.5, expected whole numbers or strings"),
        ([0.0, float("nan")], "no label in row 1"),
        (["-1", "0"], "`label` has the label -1, expected a class name or number from 0; drop rows without a class"),
        (["-1.0", "ant"], "`label` has the label -1.0, expected a class name"),
        ([-1, 1], r"`label` has values -1 to 1.*0 to 1"),
    ],
)
def test_labels_that_name_no_class_are_an_error(tmp_path, labels, message):
    with pytest.raises(NstError, match=message):
        open_source(write_table(tmp_path / "x.parquet", image=[png(0), png(1)], label=labels), labeled=True)


def test_a_labeled_source_without_a_label_column_is_an_error(tmp_path):
    with pytest.raises(NstError, match="expected a column `label`, found image, kind"):
        open_source(write_table(tmp_path / "x.parquet", image=[png(0)], kind=["a"]), labeled=True)


def test_a_class_that_is_spelled_nearly_so_is_suggested():
    with pytest.raises(
        NstError, match=r"expected 2 classes \(hat, shoe\), found 2 \(Hat, shoe\); unknown: Hat \(did you mean hat\?\)\. Rename"
    ):
        match_classes(["Hat", "shoe"], ["hat", "shoe"], "test")


def test_one_class_is_an_error(tmp_path):
    with pytest.raises(NstError, match="two classes or more, found only 'ant'"):
        check_trainable(open_source(write_files(tmp_path, "ant/1.png", "ant/2.png"), labeled=True))


def test_parquet_files_that_name_their_classes_differently_are_not_mixed(tmp_path):
    for file, names in (("a", ["ant", "bee"]), ("b", ["bee", "ant"])):
        features = Features({"image": Value("binary"), "label": ClassLabel(names=names)})
        Dataset.from_dict({"image": [png(0), png(1)], "label": [0, 1]}, features=features).to_parquet(tmp_path / f"{file}.parquet")
    with pytest.raises(NstError, match=r"b\.parquet"):
        open_source(str(tmp_path), labeled=True)


def test_a_saved_dataset_of_several_splits_asks_for_one(tmp_path):
    images_and_labels().train_test_split(1, seed=0).save_to_disk(tmp_path)
    with pytest.raises(NstError, match=r"one split, found train, test.*/train"):
        open_source(str(tmp_path))
    assert len(open_source(str(tmp_path / "train"), labeled=True)) == 2


def test_the_same_classes_in_another_order_are_matched_by_name():
    assert match_classes(["c", "a", "b"], ["a", "b", "c"], "test").tolist() == [2, 0, 1]


@pytest.mark.parametrize(("found", "reason"), [(["a", "x"], "unknown: x"), (["a"], "missing: b")])
def test_another_set_of_classes_is_an_error_that_shows_both(found, reason):
    with pytest.raises(
        NstError, match=rf"test:.*2 classes \(a, b\), found {len(found)} \({', '.join(found)}\); {reason}.*`class_names` FILE"
    ):
        match_classes(found, ["a", "b"], "test")


def test_a_subset_of_the_classes_is_matched_where_it_is_allowed():
    assert match_classes(["c", "a"], ["a", "b", "c"], "test", subset=True).tolist() == [2, 0]
    with pytest.raises(NstError, match=r"unknown: x"):
        match_classes(["x"], ["a", "b"], "test", subset=True)


def test_a_file_names_the_classes_of_integer_labels(tmp_path):
    (tmp_path / "names.txt").write_text("ant\n bee \ncat\n")
    path = write_table(tmp_path / "x.parquet", image=[png(0), png(1)], label=[1, 0])
    for names in (str(tmp_path / "names.txt"), tmp_path / "names.txt", ["ant", "bee", "cat"], ("ant", "bee", "cat")):
        assert open_source(path, labeled=True, class_names=names).class_names == ["ant", "bee", "cat"]
    with pytest.raises(UsageError, match=r"`class_names` \(a list\): expected at least 2 distinct names.*found 1"):
        open_source(path, labeled=True, class_names=["ant"])
    with pytest.raises(UsageError, match=r"`class_names\[1\]`: expected text, found 2"):
        open_source(path, labeled=True, class_names=["ant", 2])


def test_accents_of_class_names_are_the_same_composed_or_not():
    composed, apart = "caf\u00e9", "cafe\u0301"
    assert match_classes([apart, "bar"], ["bar", composed], "test").tolist() == [1, 0]
    assert match_classes([composed], ["bar", apart], "test", subset=True).tolist() == [1]
    assert match_classes([composed, apart], [apart, composed], "test").tolist() == [1, 0]  # where both are there, each is itself


@pytest.mark.parametrize("width", [1, 2])
def test_a_file_names_class_folders_that_are_numbers(tmp_path, width):
    write_files(tmp_path / "in", *(f"{index:0{width}d}/x.png" for index in range(12)))
    (tmp_path / "names.txt").write_bytes(b"\xef\xbb\xbf" + "".join(f"kind {index}\r\n" for index in range(12)).encode())
    source = open_source(str(tmp_path / "in"), labeled=True, class_names=str(tmp_path / "names.txt"))
    named = {source.key(row): source.class_names[label] for row, label in enumerate(source.labels)}
    assert named == {f"{index:0{width}d}/x.png": f"kind {index}" for index in range(12)}


def test_numbers_without_a_file_of_names_stay_classes_in_the_order_of_their_text(tmp_path):
    source = open_source(write_files(tmp_path, "0/x.png", "2/x.png", "10/x.png"), labeled=True)
    assert (source.class_names, source.labels.tolist()) == (["0", "10", "2"], [0, 1, 2])


def test_padded_numbers_are_the_classes_of_plain_ones():
    assert match_classes(["00", "01", "10"], ["0", "1", "2", "10"], "test", subset=True).tolist() == [0, 1, 3]
    with pytest.raises(NstError, match=r"unknown: 3"):
        match_classes(["00", "03"], ["0", "1"], "test", subset=True)
    with pytest.raises(NstError, match=r"unknown: 00"):
        match_classes(["0", "00"], ["0", "1"], "test", subset=True)


@pytest.mark.parametrize(
    ("labels", "rows", "names", "count"),
    [([5, 99_999], 2, 0, 100_000), ([5, 100_000], 200_002, 0, 100_001), ([5, 100_000], 2, 100_001, 100_001)],
)
def test_numbers_without_names_are_classes_up_to_a_bound(labels, rows, names, count):
    numbers = np.resize(np.array(labels), rows)
    assert len(labels_from_numbers(numbers, None, "test", names)[1]) == count
    with pytest.raises(NstError, match=rf"up to {count:,} in {rows:,} rows.*{count:,}:.*`class_names` FILE"):
        labels_from_numbers(np.append(numbers[1:], count), None, "test", names)


def test_a_file_of_class_names_that_does_not_end_is_an_error():
    with pytest.raises(UsageError, match=r"`class_names` /dev/zero:.*64 MB.*one class name per line"):
        read_class_names("/dev/zero")


def test_what_is_said_of_labels_of_a_source_without_any_is_an_error(tmp_path):
    with pytest.raises(UsageError, match=r"`label_column` kind is not used:.*remove it"):
        open_source(write_files(tmp_path, "a.png"), label_column="kind")


def test_the_label_column_that_was_asked_for_stands_in_the_lineage_and_changes_no_fingerprint(tmp_path):
    images = [png(0), png(1)]
    path = write_table(tmp_path / "x.parquet", image=images, label=["a", "b"], kind=["b", "a"])
    found, named, other = (open_source(path, labeled=True, label_column=column) for column in (None, "label", "kind"))
    assert [source.lineage.label_column for source in (found, named, other)] == [None, "label", "kind"]
    assert found.fingerprint == named.fingerprint != other.fingerprint
    assert other.labels.tolist() == [1, 0]


@pytest.mark.parametrize("text", ["ant\n", "ant\nant\n", ""])
def test_a_file_with_too_few_different_class_names_is_an_error(tmp_path, text):
    (tmp_path / "names.txt").write_text(text)
    path = write_table(tmp_path / "x.parquet", image=[png(0), png(1)], label=[1, 0])
    with pytest.raises(UsageError, match="expected at least 2 distinct names"):
        open_source(path, labeled=True, class_names=str(tmp_path / "names.txt"))


def test_a_missing_file_of_class_names_is_an_error(tmp_path):
    path = write_table(tmp_path / "x.parquet", image=[png(0), png(1)], label=[1, 0])
    with pytest.raises(UsageError, match=r"`class_names` nowhere\.txt: No such file"):
        open_source(path, labeled=True, class_names="nowhere.txt")


@pytest.mark.parametrize(
    ("text", "names"),
    [("ant\r\nbee\r\n", ["ant", "bee"]), ("a\u2009b\nc\x20\n\n\n", ["a\u2009b", "c"]), ("\ufeffant\nbee", ["ant", "bee"]), (" \n", [])],
)
def test_each_line_of_a_file_of_class_names_is_one_name(tmp_path, text, names):
    (tmp_path / "names.txt").write_bytes(text.encode())
    assert read_class_names(str(tmp_path / "names.txt")) == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("zero\n\ntwo\n", "line 2 is empty.*class 1"),
        ("\n \nzero\n", "line 1 is empty.*class 0"),
        ('[\n"zero",\n"one"\n]\n', r"begins with '\['.*one class name per line"),
        ('{"0": "zero"}', r"begins with '{', as JSON does"),
        ("zero\nred\x1b[31m\n", r"line 2 is 'red\\x1b\[31m'.*control characters"),
        ("ze\x85ro\none\n", r"line 1 is 'ze\\x85ro'.*control characters"),
        ("zero\rone\rtwo", r"line 1 is 'zero\\rone\\rtwo'.*control characters"),
        ("a\u2028b\n", r"line 1 is 'a\\u2028b'.*control characters"),
    ],
)
def test_lines_that_are_no_class_names_are_an_error(tmp_path, text, message):
    (tmp_path / "names.txt").write_bytes(text.encode())
    with pytest.raises(UsageError, match=rf"`class_names` .*names\.txt: {message}"):
        read_class_names(str(tmp_path / "names.txt"))


@pytest.mark.parametrize("option", ["image_column", "label_column"])
def test_an_empty_name_of_a_column_is_an_error(tmp_path, option):
    path = write_table(tmp_path / "x.parquet", image=[png(0), png(1)], label=[1, 0])
    with pytest.raises(UsageError, match=rf"`{option}` '': empty column name.*or remove `{option}`"):
        open_source(path, labeled=True, **{option: ""})
