import os
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pytest
from conftest import write_class_folders
from pictures import images_and_labels, keys, png, read_contents, write_files, write_table, write_tar

from nst_data.errors import NstError, UsageError
from nst_data.sources import open_source

EVERY_KIND = ["folder", "list.txt", "one.parquet", "parts/*.parquet", "parts", "saved", "one.tar", "tars", "tars/{a,b}.tar"]


def write_every_kind(top):
    """The same three images as every kind of source; where a kind has labels, they are ant, zebra, ant."""
    images = [(f"{('zebra', 'ant')[label]}/{row}.png", png(label, row)) for row, label in enumerate((1, 0, 1))]
    for name, content in images:
        (top / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (top / "folder" / name).write_bytes(content)
    (top / "list.txt").write_text("".join(f"folder/{name}\n" for name, _ in images))
    (top / "parts").mkdir()
    data = images_and_labels()
    data.to_parquet(top / "one.parquet")
    data.select([0, 1]).to_parquet(top / "parts" / "a.parquet")
    data.select([2]).to_parquet(top / "parts" / "b.parquet")
    data.save_to_disk(top / "saved")
    members = [[(name, content), (f"{name[:-4]}.cls", name.split("/")[0].encode())] for name, content in images]
    write_tar(top / "one.tar", [*members[0], *members[1], *members[2]])
    write_tar(top / "tars" / "a.tar", [*members[0], *members[1]])
    write_tar(top / "tars" / "b.tar", members[2])


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory):
    top = tmp_path_factory.mktemp("every-kind")
    write_every_kind(top)
    return top


@pytest.mark.parametrize("place", EVERY_KIND)
def test_every_kind_of_source_gives_the_same_bytes(every_kind, place):
    source = open_source(str(every_kind / place))
    assert sorted(read_contents(source)) == sorted([png(1, 0), png(0, 1), png(1, 2)])
    assert read_contents(source) == [source.read(row) for row in range(3)]
    assert [row.key for row in source.rows(range(3))] == keys(source)
    assert len(set(keys(source))) == 3


@pytest.mark.parametrize("place", [place for place in EVERY_KIND if place != "list.txt"])
def test_every_kind_of_labeled_source_gives_the_same_labels(every_kind, place):
    source = open_source(str(every_kind / place), labeled=True)
    named = [source.class_names[label] for label in source.labels]
    assert dict(zip(read_contents(source), named, strict=True)) == {png(1, 0): "ant", png(0, 1): "zebra", png(1, 2): "ant"}
    assert (source.labels.shape, source.labels.dtype) == ((3,), np.int64)


@pytest.mark.parametrize("place", EVERY_KIND)
@pytest.mark.parametrize("wanted", [range(0), range(1, 3), range(0, 3, 2), [], [0, 2], [1]])
def test_every_kind_of_source_gives_the_wanted_rows_alone(every_kind, place, wanted):
    source = open_source(str(every_kind / place))
    asked = wanted if isinstance(wanted, range) else np.array(wanted, dtype=np.int64)
    found = list(source.rows(asked))
    assert [(row.id, row.key, bytes(row.read())) for row in found] == [(row, source.key(row), source.read(row)) for row in wanted]
    assert all(type(row.id) is int for row in found)


@pytest.mark.parametrize("place", EVERY_KIND)
def test_every_kind_of_source_is_read_after_a_fork(every_kind, place):
    source = open_source(str(every_kind / place))
    expected = source.read(1)
    source = pickle.loads(pickle.dumps(source))  # and by workers that are started anew
    assert source.read(1) == expected
    child = os.fork()
    if not child:
        os._exit(0 if source.read(1) == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("place", EVERY_KIND)
def test_the_fingerprint_is_the_same_wherever_the_source_lies(every_kind, tmp_path, place):
    shutil.copytree(every_kind, tmp_path / "there")
    for labeled in (False, True) if place != "list.txt" else (False,):
        here, there = (open_source(str(top / place), labeled=labeled) for top in (every_kind, tmp_path / "there"))
        assert here.fingerprint == there.fingerprint
        assert (here.fingerprint == here.images_fingerprint) is not labeled
        assert here.listing().equals(there.listing())
        assert here.listing().schema.names == ["name", "bytes"]


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
    named = open_source(path, labeled=True, class_names=str(tmp_path / "names.txt"))
    assert named.images_fingerprint == open_source(other).images_fingerprint == open_source(other).fingerprint
    found = {source.fingerprint for source in (open_source(path, labeled=True), open_source(other, labeled=True), named)}
    assert len(found) == 3


@pytest.mark.parametrize("place", EVERY_KIND)
def test_rows_are_found_by_their_keys(every_kind, place):
    source = open_source(str(every_kind / place))
    first, _, last = keys(source)
    assert source.rows_of([last, first, last]).tolist() == [2, 0, 2]
    with pytest.raises(NstError, match=r": lacks 2 of 3 images.*'x\.png'.*`pool`"):
        source.rows_of([first, "x.png", "y.png"])


@pytest.mark.parametrize("place", EVERY_KIND)
def test_rows_of_any_number_of_keys_are_found(every_kind, place):
    source = open_source(str(every_kind / place))
    first, middle, last = keys(source)
    rows = np.zeros(4, np.int64)
    source.find_all(lambda: [pa.array([last, first]), pa.array([middle, last])], rows)
    assert rows.tolist() == [2, 0, 1, 2]
    with pytest.raises(NstError, match=r": lacks 2 of 4 images.*'x\.png'.*`pool`"):
        source.find_all(lambda: [pa.array([last]), pa.array([first, "x.png", "y.png"])], rows)


def test_what_was_asked_for_stands_in_the_source(every_kind):
    assert open_source(str(every_kind / "one.parquet")).image_column is None
    assert open_source(str(every_kind / "saved"), image_column="image").image_column == "image"
    assert open_source(str(every_kind / "tars")).revision is None
    assert open_source(str(every_kind / "tars")).location == str(every_kind / "tars")


@pytest.mark.parametrize("place", ["folder", "list.txt", "tars"])
def test_image_files_have_no_columns(every_kind, place):
    with pytest.raises(UsageError, match=r"`image_column` photo:.*image files.*remove `image_column`"):
        open_source(str(every_kind / place), image_column="photo")


def test_only_the_hub_is_streamed(every_kind):
    with pytest.raises(UsageError, match=r"`stream`:.*one\.parquet.*Hub dataset; remove `stream`"):
        open_source(str(every_kind / "one.parquet"), stream=True)


def test_what_is_not_there_is_an_error_that_names_every_kind(tmp_path):
    with pytest.raises(NstError, match=r"nowhere: no such file.*owner/name on the Hub"):
        open_source(str(tmp_path / "nowhere"))


def test_a_missing_file_beside_this_folder_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NstError, match=r"photos/pool\.tar: no such file or folder; expected"):
        open_source("photos/pool.tar")


def test_without_the_hub_a_missing_folder_is_an_error_that_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NstError, match=r"photos/pool: no such file.*HF_HUB_OFFLINE.*unset it"):
        open_source("photos/pool")


def test_files_of_two_kinds_are_not_mixed(tmp_path):
    write_tar(tmp_path / "a.tar", [("a.png", png(0))])
    write_table(tmp_path / "b.parquet", image=[png(0)])
    for place in (tmp_path, tmp_path / "*"):
        with pytest.raises(UsageError, match=r"one kind, found a\.tar and b\.parquet.*'\*\.parquet'"):
            open_source(str(place))


def test_a_pattern_of_images_is_an_error_that_says_what_to_give(tmp_path):
    write_files(tmp_path, "a.png", "b.png")
    with pytest.raises(UsageError, match=r"\*\.png:.*are images.*folder.*\.txt file"):
        open_source(str(tmp_path / "*.png"))


def test_a_folder_in_brackets_is_a_folder_and_no_pattern(tmp_path):
    assert keys(open_source(write_files(tmp_path / "photos [2024] {1,2}", "a.png"))) == ["a.png"]


def test_a_folder_with_images_and_tables_is_a_folder_of_images(tmp_path):
    write_class_folders(tmp_path, ["ant"], 1)
    write_table(tmp_path / "labels.parquet", label=[1])
    assert keys(open_source(str(tmp_path))) == ["ant/000.png"]


def test_a_path_has_one_location_however_it_is_written(tmp_path, monkeypatch):
    write_class_folders(tmp_path / "photos", ["ant"], 1)
    (tmp_path / "other" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "other")
    assert open_source("../photos").location == open_source(str(tmp_path / "photos")).location == str(tmp_path / "photos")
    (tmp_path / "link").symlink_to("other/deep")
    (tmp_path / "other" / "photos").symlink_to("../photos")
    written = str(tmp_path / "link" / ".." / "photos")  # the folder above what the link leads to
    assert open_source(written).location == str(tmp_path / "photos")  # which is the same in the end
    (tmp_path / "other" / "photos").unlink()
    write_class_folders(tmp_path / "other" / "photos", ["bee"], 1)
    assert open_source(written).location == written
