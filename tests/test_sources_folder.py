import os
import random
import threading
from pathlib import Path

import pytest
from conftest import write_class_folders
from datasets import Dataset
from pictures import keys, png, read_contents, write_files, write_table
from wording import mentions

from nst_data.errors import NstError
from nst_data.sources import folder as folder_module
from nst_data.sources import open_source


def test_a_folder_is_read_in_bytewise_order_of_relative_paths(tmp_path):
    names = ["a.png", "B.png", "b/z.png", "b.png", "b/a/c.png", "b-.png", "b0.png", "é.png", "😀.png", "\uffee.png"]
    source = open_source(write_files(tmp_path, *names))
    assert keys(source) == sorted(names, key=str.encode)
    assert read_contents(source) == [(tmp_path / key).read_bytes() for key in keys(source)]


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 65_536])
def test_the_order_does_not_depend_on_how_many_names_are_sorted_at_once(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(folder_module, "PIECE", piece)
    rng = random.Random(0)
    parts = ["a", "b", "a-", "a0", "é", "ab"]
    names = sorted({"/".join(rng.choices(parts, k=rng.randint(1, 3))) + ".png" for _ in range(40)}, key=str.encode)
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert keys(open_source(str(tmp_path))) == names


def test_hidden_files_and_files_that_are_no_images_are_left_out(tmp_path):
    write_files(tmp_path, "a.png", "b.JPG", ".c.png", ".cache/d.png", "notes.txt", "png", "x.png.txt")
    assert keys(open_source(str(tmp_path))) == ["a.png", "b.JPG"]


def test_a_folder_named_like_an_image_is_a_folder(tmp_path):
    assert keys(open_source(write_files(tmp_path, "a.png/b.png"))) == ["a.png/b.png"]


def test_a_folder_that_links_to_itself_is_read_once(tmp_path):
    write_files(tmp_path, "a.png", "b/c.png")
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "round").symlink_to("round")
    assert keys(open_source(str(tmp_path))) == ["a.png", "b/c.png"]


def test_a_folder_with_two_names_is_read_under_the_first(tmp_path):
    write_files(tmp_path, "z/c.png")
    (tmp_path / "a").symlink_to("z")
    assert keys(open_source(str(tmp_path))) == ["a/c.png"]


def test_class_folders_that_differ_in_case_alone_are_pointed_out(tmp_path):
    write_files(tmp_path, "Hat/a.png", "hat/b.png", "dress/c.png")
    if len(list(tmp_path.iterdir())) == 2:
        pytest.skip("here they are one folder")
    assert open_source(str(tmp_path), labeled=True).remarks() == [f"{tmp_path}: warning: classes that differ only in case: Hat and hat"]
    assert open_source(str(tmp_path)).remarks() == []


def test_an_image_whose_name_is_not_in_utf_8_is_left_out_and_named(tmp_path):
    write_files(tmp_path, "a.png")
    for name in (b"caf\xe9.png", b"\xff.png"):
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).write_bytes(png(0))
    source = open_source(str(tmp_path))
    assert keys(source) == ["a.png"]
    assert source.skipped == {"not named in UTF-8": 2}
    (line,) = source.remarks()
    assert mentions(line, rf"{tmp_path}: skipped 2 files: 2 not named in UTF-8; rename … {tmp_path}/")
    assert r"caf\xe9.png" in line or r"\xff.png" in line


@pytest.mark.parametrize("where", ["class folder", "location", "table", "pattern"])
def test_another_name_that_is_not_in_utf_8_is_an_error(tmp_path, where):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xe9.parquet")
    if where in ("class folder", "location"):
        write_files(Path(odd), "a.png")
    else:
        os.rename(write_table(tmp_path / "a", image=[png(0)]), odd)
    location = {"location": odd, "pattern": f"{tmp_path}/*.parquet"}.get(where, str(tmp_path))
    with pytest.raises(NstError, match=rf"{tmp_path}/.xe9\.parquet: .*UTF-8; rename it"):
        open_source(location, labeled=where == "class folder")


def test_an_image_that_cannot_be_read_is_a_row_with_its_error(tmp_path):
    source = open_source(write_files(tmp_path, "a.png", "b.png"))
    (tmp_path / "a.png").unlink()
    first, second = source.rows(range(2))
    with pytest.raises(FileNotFoundError, match=r"a\.png"):
        first.read()
    assert (first.id, first.key, second.id, second.read()) == (0, "a.png", 1, png(0, 1))


def test_a_link_to_nothing_is_a_row_with_its_error(tmp_path):
    (tmp_path / "a.png").symlink_to("nowhere.png")
    source = open_source(str(tmp_path))
    assert source.listing().to_pylist() == [{"name": "a.png", "bytes": 0}]
    assert read_contents(source)[0].startswith("FileNotFoundError: ")


def test_an_image_that_has_changed_its_size_is_a_row_with_its_error(tmp_path):
    (tmp_path / "a.png").write_bytes(bytes(100))
    source = open_source(str(tmp_path))
    (tmp_path / "a.png").write_bytes(bytes(1090))
    assert read_contents(source) == ["NstError: has 1,090 bytes, 100 when the pool was listed"]
    with pytest.raises(NstError, match=r"has 1,090 bytes, 100 when.*listed"):
        source.read(0)


def test_a_named_pipe_is_a_row_with_its_error_and_nobody_waits(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert read_contents(open_source(str(tmp_path))) == ["NstError: not a file"]


def test_images_are_read_when_their_row_is_and_not_before(tmp_path):
    source = open_source(write_files(tmp_path, "a.png", "b.png"))
    rows = list(source.rows(range(2)))
    os.utime(tmp_path / "a.png", (0, 0))
    (tmp_path / "a.png").write_bytes(png(0, 0)[::-1])
    assert rows[0].read() == png(0, 0)[::-1]


def test_rows_are_read_by_several_threads(tmp_path):
    names = [f"{index:03d}.png" for index in range(60)]
    source = open_source(write_files(tmp_path, *names))
    found = {}
    threads = [threading.Thread(target=lambda k=k: found.update({row: source.read(row) for row in range(k, 60, 3)})) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[row] for row in range(60)] == [png(0, index) for index in range(60)]


def test_the_first_folder_level_names_the_class(tmp_path):
    source = open_source(write_files(tmp_path, "bee/1.png", "ant/wild/2.png", "ant/1.png"), labeled=True)
    assert source.class_names == ["ant", "bee"]
    assert dict(zip(keys(source), source.labels.tolist(), strict=True)) == {"ant/1.png": 0, "ant/wild/2.png": 0, "bee/1.png": 1}


def test_an_image_outside_of_a_class_folder_is_an_error(tmp_path):
    with pytest.raises(NstError, match=r"one folder per class.*'lost\.png'.*its class folder"):
        open_source(write_files(tmp_path, "ant/1.png", "bee/1.png", "lost.png"), labeled=True)


def test_a_folder_without_images_is_an_error(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(NstError, match=r"expected images .*\.png.*, found none"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("name", ["x.parquet", "x.tar"])
@pytest.mark.parametrize("labeled", [False, True])
def test_tables_and_tar_files_that_are_pipes_or_devices_are_an_error(tmp_path, name, labeled):
    os.mkfifo(tmp_path / name)
    with pytest.raises(NstError, match=rf"{name}: not a file.*folder.*remove it"):
        open_source(str(tmp_path), labeled=labeled)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(NstError, match=f"{name}: not a file"):
        open_source(str(tmp_path), labeled=labeled)


def test_a_saved_dataset_with_a_pipe_in_it_is_an_error(tmp_path):
    Dataset.from_dict({"image": [png(0)]}).save_to_disk(tmp_path)
    (table,) = tmp_path.glob("*.arrow")
    table.unlink()
    os.mkfifo(table)
    with pytest.raises(NstError, match=r"data-00000-of-00001\.arrow: not a file"):
        open_source(str(tmp_path))


def test_a_class_folder_that_is_a_link_to_another_is_an_error(tmp_path):
    write_class_folders(tmp_path / "images", ["dog", "eel"], 2)
    (tmp_path / "images/ant").symlink_to("dog")
    with pytest.raises(NstError, match=r"class folders 'dog' and 'ant' are one folder; remove the link 'ant'"):
        open_source(tmp_path / "images", labeled=True)
    (tmp_path / "images/ant").unlink()
    write_class_folders(tmp_path / "elsewhere", ["dog"], 2)
    (tmp_path / "images/ant").symlink_to(tmp_path / "elsewhere/dog")
    assert open_source(tmp_path / "images", labeled=True).class_names == ["ant", "dog", "eel"]
