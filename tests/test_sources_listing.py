import tracemalloc

import pyarrow as pa
import pytest
from pictures import png, write_files, write_tar

from nst_data.sources import listing as listing_module
from nst_data.sources import open_source, what_changed
from nst_data.sources.listing import build_listing


def table(**sizes):
    return pa.table({"name": pa.array(list(sizes), pa.large_string()), "bytes": pa.array(list(sizes.values()), pa.int64())})


def test_a_listing_has_the_name_and_size_of_every_file(tmp_path):
    source = open_source(write_files(tmp_path, "a.png", "b/c.png"))
    assert source.listing().to_pylist() == [{"name": "a.png", "bytes": len(png(0, 0))}, {"name": "b/c.png", "bytes": len(png(0, 1))}]
    assert source.listing().schema.types == [pa.large_string(), pa.int64()]


@pytest.mark.parametrize(("piece", "in_memory"), [(1, 0), (2, 1), (2, 99), (65_536, 0)])
def test_a_listing_is_the_same_in_a_file_and_in_pieces_of_any_size(tmp_path, monkeypatch, piece, in_memory):
    folder = write_files(tmp_path / "pool", "a.png", "b/c.png", "d.png")
    expected = open_source(folder)
    monkeypatch.setattr(listing_module, "PIECE", piece)
    monkeypatch.setattr(listing_module, "IN_MEMORY_ROWS", in_memory)
    source = open_source(folder)
    assert source.images_fingerprint == expected.images_fingerprint
    assert source.listing().equals(expected.listing())
    assert source.read(2) == png(0, 2)


def test_a_long_listing_takes_no_memory_of_its_own(monkeypatch):
    names = [f"{index:06d}.png" for index in range(20_000)]
    tracemalloc.start()
    kept = build_listing([(names, list(range(20_000)))])
    assert tracemalloc.get_traced_memory()[0] > 300_000
    del kept
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    monkeypatch.setattr(listing_module, "IN_MEMORY_ROWS", 1_000)
    mapped = build_listing([(names, list(range(20_000)))])
    assert tracemalloc.get_traced_memory()[0] - before < 100_000
    tracemalloc.stop()
    assert mapped.table["name"][19_999].as_py() == "019999.png"


def test_the_headers_of_tar_files_are_read_once(tmp_path, monkeypatch):
    tar = write_tar(tmp_path / "a.tar", [("x.png", png(0)), ("y.png", png(1))])
    first = open_source(tar, indexes=tmp_path / "indexes")
    monkeypatch.setattr("nst_data.sources.tar_index.members", None)
    again = open_source(tar, indexes=tmp_path / "indexes")
    assert again.read(1) == first.read(1) == png(1)
    monkeypatch.undo()
    write_tar(tmp_path / "a.tar", [("x.png", png(2)), ("y.png", png(3))])
    assert open_source(tar, indexes=tmp_path / "indexes").read(1) == png(3)


def test_equal_listings_have_not_changed():
    assert what_changed(table(a=1, b=2), table(a=1, b=2)) == ""
    assert what_changed(table(), table()) == ""


@pytest.mark.parametrize(
    ("before", "now", "phrase"),
    [
        ({}, {"x.png": 5}, "1 image more ('x.png')"),
        ({"a": 1}, {"a": 1, "x.png": 5, "y.png": 5}, "2 images more (the first is 'x.png')"),
        ({"a": 1, "y": 2}, {"a": 1}, "1 image gone ('y')"),
        ({"z.png": 1100}, {"z.png": 90}, "1 image of another size ('z.png': 1,100 bytes before, 90 now)"),
        (
            {"y.png": 1, "z.png": 100, "zz": 3},
            {"x.png": 1, "xx.png": 1, "z.png": 90, "zz": 4},
            "2 images more (the first is 'x.png'), 1 gone ('y.png'), 2 of another size (the first is 'z.png': 100 bytes before, 90 now)",
        ),
        ({"a": 1, "b": 1}, {"b": 1, "a": 1}, "the same images in another order or number"),
        ({"a.tar": 1}, {"a.tar": 1, "b.tar": 1}, "1 file more ('b.tar')"),
        ({"one@1": 0}, {"one@2": 0}, "'one@1' before, 'one@2' now"),
    ],
)
def test_what_has_changed_is_said_in_a_phrase(before, now, phrase):
    assert what_changed(table(**before), table(**now)) == phrase


def test_a_name_that_stands_more_often_is_a_change():
    names = pa.table({"name": pa.array(["a", "a"], pa.large_string()), "bytes": pa.array([1, 1], pa.int64())})
    assert what_changed(table(a=1), names) == "the same images in another order or number"
    assert what_changed(names, table(a=2)) == "1 image of another size ('a': 1 bytes before, 2 now)"
