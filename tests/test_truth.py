import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import png, write_class_folders
from datasets import ClassLabel, Features, Value
from PIL import Image
from sealed_labels import NAMES, label_row, seal_edition, seal_generation

from nst_data.errors import NstError, UsageError
from nst_data.inspection.truth import read_truth
from nst_data.progress import Progress
from nst_data.store.inputs import Input
from nst_data.store.store import Store

IMAGES = [(label, index) for label in range(3) for index in range(2)]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def seal_pool(store, keys, **more):
    """A generation over `IMAGES`, all labeled as ants, under these keys."""
    rows = [label_row(row, png(*image), 0, 0.5, key=key) for row, (image, key) in enumerate(zip(IMAGES, keys, strict=False))]
    return seal_generation(store, rows, **more)


def folder_keys():
    return [f"{NAMES[label]}/{index:03d}.png" for label, index in IMAGES]


def found(truth):
    return dict(truth.table.sort(truth.join_column).iter_rows())


def write_labels(path, columns, names=None):
    """A parquet table, its `label` with class names where they are given."""
    table = pa.table(columns)
    if names:
        features = Features({"label": ClassLabel(names=names), **{name: Value("string") for name in columns if name != "label"}})
        table = table.select(list(features)).cast(features.arrow_schema)
    pq.write_table(table, path)
    return str(path)


class Counting(Progress):
    """Remembers how many images were announced to be read."""

    def __init__(self):
        self.totals = []

    def task(self, name, total, unit, done=0):
        self.totals.append(total)
        return super().task(name, total, unit, done)


def test_the_same_keys_over_the_same_bytes_are_joined_by_key(store, tmp_path):
    write_class_folders(tmp_path / "truth", NAMES, 2)
    progress = Counting()
    truth = read_truth(str(tmp_path / "truth"), seal_pool(store, folder_keys()), store, progress=progress)
    assert (truth.join_column, truth.rows, progress.totals) == ("key", 6, [])
    assert found(truth) == {key: label for key, (label, _) in zip(folder_keys(), IMAGES, strict=True)}


def test_a_truth_about_some_of_the_images_is_joined_by_key(store, tmp_path):
    write_class_folders(tmp_path / "truth", NAMES, 1)
    assert read_truth(str(tmp_path / "truth"), seal_pool(store, folder_keys()), store).join_column == "key"


def test_a_truth_about_more_than_the_images_is_joined_by_key(store, tmp_path):
    write_class_folders(tmp_path / "truth", NAMES, 4)
    assert read_truth(str(tmp_path / "truth"), seal_pool(store, folder_keys()), store).join_column == "key"


def test_another_layout_is_joined_by_the_bytes(store, tmp_path):
    write_class_folders(tmp_path / "truth", NAMES, 3)
    generation, progress = seal_pool(store, [f"{row}.png" for row in range(6)]), Counting()
    truth = read_truth(str(tmp_path / "truth"), generation, store, progress=progress)
    assert (truth.join_column, truth.rows, truth.table.height, progress.totals) == ("image_hash", 9, 9, [9])
    hashes = {label_row(0, png(*image), 0, 0)["image_hash"]: image[0] for image in IMAGES}
    assert {key: found(truth)[key] for key in hashes} == hashes


def test_the_same_keys_over_other_bytes_are_joined_by_the_bytes(store, tmp_path):
    write_class_folders(tmp_path / "truth", NAMES, 2)
    assert read_truth(str(tmp_path / "truth"), seal_pool(store, folder_keys()[::-1]), store).join_column == "image_hash"


def test_an_image_under_several_classes_is_left_out_and_counted(store, tmp_path):
    folder = write_class_folders(tmp_path / "truth", NAMES, 2)
    (folder / "bee" / "900.png").write_bytes(png(0, 0))
    (folder / "ant" / "broken.png").write_bytes(png(0, 0))  # again, in its own class: that is no contradiction
    truth = read_truth(str(folder), seal_pool(store, [f"{row}.png" for row in range(6)]), store)
    assert (truth.rows, truth.ambiguous, truth.table.height) == (8, 3, 5)


def test_an_image_that_cannot_be_read_is_counted(store, tmp_path):
    rows = [{"bytes": png(*image), "path": None} for image in IMAGES]
    rows[2] = {"bytes": None, "path": "nowhere.png"}
    image = pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pq.write_table(pa.table({"image": image, "label": [NAMES[label] for label, _ in IMAGES]}), tmp_path / "truth.parquet")
    truth = read_truth(str(tmp_path / "truth.parquet"), seal_pool(store, [f"{row}.png" for row in range(6)]), store)
    assert (truth.join_column, truth.unreadable, truth.table.height) == ("image_hash", 1, 5)


def test_labels_alone_are_joined_row_by_row(store, tmp_path):
    path = write_labels(tmp_path / "truth.parquet", {"label": [2, 1, 0]}, names=["cat", "bee", "ant"])
    truth = read_truth(path, seal_pool(store, ["a", "b", "c"]), store)
    assert (truth.join_column, found(truth)) == ("id", {0: 0, 1: 1, 2: 2})


def test_labels_alone_in_several_files_follow_the_order_of_their_names(store, tmp_path):
    for name, label in (("b", "cat"), ("a", "ant"), ("c", "bee")):
        write_labels(tmp_path / f"{name}.parquet", {"label": [label]})
    assert found(read_truth(str(tmp_path / "*.parquet"), seal_pool(store, ["a", "b", "c"]), store)) == {0: 0, 1: 2, 2: 1}


def test_labels_alone_know_the_pool_of_an_edition_through_its_generation(store, tmp_path):
    path = write_labels(tmp_path / "truth.parquet", {"label": ["ant", "bee", "cat"]})
    generation = seal_pool(store, ["a", "b", "c"])
    edition = seal_edition(store, generation, [label_row(1, "b", 1, 0.5)])
    again = seal_edition(store, edition, [label_row(1, "b", 2, 0.5)], role="like")
    assert found(read_truth(path, again, store)) == {0: 0, 1: 1, 2: 2}


def test_labels_alone_need_the_generation_in_the_store(store, tmp_path):
    path = write_labels(tmp_path / "truth.parquet", {"label": ["ant", "bee", "cat"]})
    generation = seal_pool(store, ["a", "b", "c"])
    edition = seal_edition(store, generation, [label_row(1, "b", 1, 0.5)], pool=Input(ref="/other", digest="another pool"))
    with pytest.raises(UsageError, match=r"truth\.parquet:.*bugs@gen-1\.1.*not in the store.*`key` or `image_hash`"):
        read_truth(path, edition, store)


@pytest.mark.parametrize("rows", [2, 4])
def test_another_number_of_labels_alone_is_an_error(store, tmp_path, rows):
    path = write_labels(tmp_path / "truth.parquet", {"label": ["ant"] * rows})
    with pytest.raises(UsageError, match=f"truth\\.parquet:.*3 labels.*bugs@gen-1, found {rows}.*`key` or `image_hash`"):
        read_truth(path, seal_pool(store, ["a", "b", "c"]), store)


def test_of_a_pool_that_was_labeled_in_part_the_truth_may_be_whole(store, tmp_path):
    path = write_labels(tmp_path / "truth.parquet", {"label": ["ant", "bee", "cat", "cat"]})
    assert read_truth(path, seal_pool(store, ["a", "b", "c"], settings={"limit": 3}), store).table.height == 4


@pytest.mark.parametrize("by", ["key", "image_hash"])
def test_labels_alone_with_a_column_to_join_by_need_no_order(store, tmp_path, by):
    generation = seal_pool(store, ["a", "b", "c"])
    rows = [label_row(0, png(*image), 0, 0.5, key=key) for image, key in zip(IMAGES, ["a", "b", "c"], strict=False)]
    path = write_labels(tmp_path / "truth.parquet", {by: [rows[2][by], rows[0][by], "elsewhere"], "label": ["cat", "bee", "ant"]})
    truth = read_truth(path, generation, store)
    assert (truth.join_column, found(truth)) == (by, {rows[2][by]: 2, rows[0][by]: 1, "elsewhere": 0})


def test_integer_labels_without_names_take_them_from_a_file(store, tmp_path):
    path, names = write_labels(tmp_path / "truth.parquet", {"label": [0, 2, 1]}), tmp_path / "names.txt"
    generation = seal_pool(store, ["a", "b", "c"])
    with pytest.raises(NstError, match=r"truth\.parquet:.*3 classes \(ant, bee, cat\), found 3 \(0, 1, 2\).*`class_names` FILE"):
        read_truth(path, generation, store)
    names.write_text("cat\nbee\nant\n")
    assert found(read_truth(path, generation, store, class_names=str(names))) == {0: 2, 1: 0, 2: 1}


def test_classes_that_the_labels_do_not_know_are_an_error(store, tmp_path):
    write_class_folders(tmp_path / "truth", ["ant", "dog"], 1)
    with pytest.raises(NstError, match=r":.*3 classes \(ant, bee, cat\), found 2 \(ant, dog\).*: dog\..*`class_names` FILE"):
        read_truth(str(tmp_path / "truth"), seal_pool(store, folder_keys()), store)


def test_the_column_with_the_images_can_be_named(store, tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    columns = {"photo": [png(*image) for image in IMAGES], "mask": [file.getvalue()] * 6, "label": [NAMES[label] for label, _ in IMAGES]}
    pq.write_table(pa.table(columns), tmp_path / "truth.parquet")
    generation = seal_pool(store, [f"{row}.png" for row in range(6)])
    with pytest.raises(UsageError, match=r"truth\.parquet:.*found photo, mask.*`image_column`"):
        read_truth(str(tmp_path / "truth.parquet"), generation, store)
    assert read_truth(str(tmp_path / "truth.parquet"), generation, store, image_column="photo").table.height == 6


def test_the_column_with_the_labels_can_be_named(store, tmp_path):
    labels = {"label": ["cat"] * 6, "checked": [NAMES[label] for label, _ in IMAGES]}
    generation = seal_pool(store, folder_keys())
    for columns in (labels | {"key": folder_keys()}, labels | {"photo": [png(*image) for image in IMAGES]}):
        pq.write_table(pa.table(columns), tmp_path / "truth.parquet")
        truth = read_truth(str(tmp_path / "truth.parquet"), generation, store, label_column="checked")
        assert sorted(truth.table["truth"]) == [0, 0, 1, 1, 2, 2]


def test_a_truth_of_numbers_takes_names_from_a_file(store, tmp_path):
    path = write_labels(tmp_path / "truth.parquet", {"key": folder_keys(), "label": ["1", "1", "00", "00", "2", "2"]})
    (tmp_path / "names.txt").write_text("bee\nant\ncat\n")
    truth = read_truth(path, seal_pool(store, folder_keys()), store, class_names=str(tmp_path / "names.txt"))
    assert found(truth) == {key: label for key, (label, _) in zip(folder_keys(), IMAGES, strict=True)}


def test_labels_alone_without_a_label_column_are_an_error(store, tmp_path):
    path = write_labels(tmp_path / "truth.parquet", {"key": ["a"]})
    with pytest.raises(NstError, match="expected a column `label`, found key"):
        read_truth(path, seal_pool(store, ["a"]), store)


def test_files_of_labels_with_other_classes_are_an_error(store, tmp_path):
    write_labels(tmp_path / "a.parquet", {"label": [0]}, names=["ant", "bee"])
    write_labels(tmp_path / "b.parquet", {"label": [0]}, names=["bee", "ant"])
    with pytest.raises(NstError, match=r"one set of classes.*others than in.*a\.parquet"):
        read_truth(str(tmp_path / "*.parquet"), seal_pool(store, ["a", "b"]), store)
