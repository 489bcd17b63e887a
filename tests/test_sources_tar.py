import io
import os
import tarfile
import threading
import time
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from pictures import keys, png, read_contents, tar_bytes, write_tar

from nst_data.errors import NstError, UsageError
from nst_data.sources import open_source
from nst_data.sources import tar as tar_module
from nst_data.sources.members import members
from nst_data.sources.range_file import HeaderFile
from nst_data.sources.tar_index import TarHeaders, skipped_counts

THREE = [("a.png", bytes(range(200)) * 5), ("a.cls", b"1"), ("b.png", b"x" * 700), ("c.png", b"y" * 512)]
HEADER, PADDED = 512, 1024  # each of a.png and b.png takes its header and 1,024 bytes


def open_tar(folder, content, **options):
    (folder / "x.tar").write_bytes(content)
    return open_source(str(folder / "x.tar"), **options)


def test_members_with_an_image_suffix_are_rows_in_the_order_of_the_file(tmp_path):
    names = ["z.png", "z.json", "./sub/b.JPG", "._z.png", ".cache/q.png", "a.webp", "../up.png", "png"]
    source = open_tar(tmp_path, tar_bytes([(name, name.encode()) for name in names]))
    assert keys(source) == ["x.tar:z.png", "x.tar:./sub/b.JPG", "x.tar:a.webp", "x.tar:../up.png"]
    assert read_contents(source) == [b"z.png", b"./sub/b.JPG", b"a.webp", b"../up.png"]


def test_members_of_one_name_are_rows_of_their_own(tmp_path):
    source = open_tar(tmp_path, tar_bytes([("a.png", b"first"), ("a.png", b"second")]))
    assert read_contents(source) == [b"first", b"second"]
    assert source.rows_of(["x.tar:a.png"]).tolist() == [0]


def test_members_of_one_name_have_keys_of_their_own(tmp_path):
    write_tar(tmp_path / "a.tar", [("x.png", b"1"), ("y.png", b"2"), ("x.png", b"3"), ("x.png", b"4")])
    write_tar(tmp_path / "b.tar", [("x.png", b"5")])
    source = open_source(str(tmp_path))
    expected = ["a.tar:x.png", "a.tar:y.png", "a.tar:x.png#2", "a.tar:x.png#3", "b.tar:x.png"]
    assert keys(source) == [row.key for row in source.rows(range(5))] == expected
    rows = np.zeros(5, np.int64)
    source.find_all(lambda: [pa.array(expected[::-1])], rows)
    assert rows.tolist() == source.rows_of(expected[::-1]).tolist() == [4, 3, 2, 1, 0]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_dialect_is_read(tmp_path, format):
    name = "f/" * 45 + "é" * 20 + ".png"
    with tarfile.open(tmp_path / "x.tar", "w", format=format) as tar:
        for index in range(3):
            info = tarfile.TarInfo(f"{index}{name}")
            info.size = 3
            tar.addfile(info, io.BytesIO(b"%03d" % index))
    source = open_source(str(tmp_path))
    assert keys(source) == [f"x.tar:{index}{name}" for index in range(3)]
    assert read_contents(source) == [b"000", b"001", b"002"]


def test_a_link_is_a_row_that_says_so(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, kind in (("a.png", tarfile.LNKTYPE), ("b.png", tarfile.SYMTYPE), ("c.png", tarfile.DIRTYPE), ("d.png", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "../../etc/passwd"
            tar.addfile(info)
    reason = "NstError: a link to '../../etc/passwd', which holds no bytes itself"
    assert read_contents(open_source(str(tmp_path))) == [reason, reason, "NstError: not a file"]


def test_an_image_cut_in_its_data_says_how_much_is_there(tmp_path):
    source = open_tar(tmp_path, tar_bytes(THREE)[: HEADER + 123])
    assert keys(source) == ["x.tar:a.png", f"x.tar:@{HEADER + 123}"]
    assert read_contents(source) == [
        "NstError: cut short: 123 of 1,000 bytes",
        "NstError: the tar file is damaged from byte 635 on; what followed is lost",
    ]


@pytest.mark.parametrize("cut", [1, 100, 511])
def test_a_tar_file_cut_in_a_header_has_a_row_that_says_so(tmp_path, cut):
    at = HEADER + PADDED + HEADER + 512  # after a.png and a.cls
    source = open_tar(tmp_path, tar_bytes(THREE)[: at + cut])
    assert keys(source) == ["x.tar:a.png", f"x.tar:@{at}"]
    assert read_contents(source) == [THREE[0][1], f"NstError: the tar file is damaged from byte {at:,} on; what followed is lost"]


def test_a_tar_file_cut_in_the_padding_keeps_its_image_and_says_so(tmp_path):
    source = open_tar(tmp_path, tar_bytes(THREE)[: HEADER + 1010])
    assert keys(source) == ["x.tar:a.png", "x.tar:@1522"]
    assert read_contents(source)[0] == THREE[0][1]


@pytest.mark.parametrize("zeros", [0, 512, 1024, 9000])
def test_a_tar_file_may_end_without_its_end_mark(tmp_path, zeros):
    whole = tar_bytes(THREE)
    end = len(whole.rstrip(b"\0"))
    assert end % 512 == 0
    assert read_contents(open_tar(tmp_path, whole[:end] + bytes(zeros))) == [THREE[0][1], THREE[2][1], THREE[3][1]]


def test_joined_tar_files_have_a_row_that_says_what_is_lost(tmp_path):
    source = open_tar(tmp_path, tar_bytes(THREE) + tar_bytes(THREE))
    assert len(source) == 4
    assert (
        read_contents(source)[3]
        == "NstError: the tar file ends at byte 5,120, what follows its end mark is lost; unpack joined tar files one by one"
    )


def test_a_hole_in_place_of_the_rest_has_a_row_that_says_so(tmp_path):
    source = open_tar(tmp_path, tar_bytes(THREE)[: HEADER + PADDED] + bytes(3 * 2**20))
    assert keys(source) == ["x.tar:a.png", "x.tar:@1536"]


@pytest.mark.parametrize("content", [b"", b"no tar file at all", b"no tar file at all" * 100])
def test_a_file_that_is_no_tar_file_has_a_row_that_says_so(tmp_path, content):
    write_tar(tmp_path / "a.tar", THREE)
    (tmp_path / "b.tar").write_bytes(content)
    source = open_source(str(tmp_path))
    assert keys(source)[3:] == ["b.tar:@0"]
    assert read_contents(source)[3:] == ["NstError: the tar file is damaged from byte 0 on; what followed is lost"]


def test_wherever_a_tar_file_is_cut_every_image_is_there_or_its_loss_is(tmp_path):
    members = [(f"{index}.png", os.urandom(300 * index)) for index in range(4)] + [("é" * 120 + ".png", b"long name"), ("z.png", b"end")]
    whole = tar_bytes(members)
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        ends = [info.offset_data + -(-info.size // 512) * 512 for info in tar]
    for cut in [*range(0, ends[-1], 37), *range(512, ends[-1], 512)]:
        source = open_tar(tmp_path, whole[:cut])
        found = read_contents(source)
        complete = [content for content in found if isinstance(content, bytes)]
        assert complete == [content for _, content in members[: len(complete)]]
        assert keys(source)[-1].startswith("x.tar:@") is (cut not in ends)
        assert all(reason.startswith("NstError: ") for reason in found[len(complete) :])
        assert [key.partition(":")[2] for key in keys(source)[: len(complete)]] == [name for name, _ in members[: len(complete)]]


def test_whatever_byte_is_damaged_nothing_is_lost_in_silence(tmp_path):
    members = [(f"{index}.png", b"%d" % index * 600) for index in range(3)]
    whole = bytearray(tar_bytes(members))
    headers = [start + offset for start in (0, 1536, 3072) for offset in range(0, 512, 3)]
    for place in headers:
        damaged = whole.copy()
        damaged[place] ^= 0x55
        found = read_contents(open_tar(tmp_path, damaged))
        images = [content for content in found if content in [content for _, content in members]]
        assert len(images) == 3 or any(isinstance(content, str) for content in found)


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_compressed_tar_file_is_an_error_that_says_what_to_do(tmp_path, mode):
    for name in ("x.tar", "x.tar.gz", "x.tgz"):
        with tarfile.open(tmp_path / name, mode) as tar:
            tar.addfile(tarfile.TarInfo("a.png"))
        with pytest.raises(UsageError, match=r"x\.\w+.*: compressed.*unpack it.*plain \.tar"):
            open_source(str(tmp_path / name))


def test_an_image_with_holes_is_an_error(tmp_path):
    info = tarfile.TarInfo("a.png")
    info.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,10", "GNU.sparse.size": "20"}
    info.size = 10
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(bytes(10)))
    with pytest.raises(UsageError, match=r"x\.tar: a\.png.*\(sparse\).*without --sparse"):
        open_source(str(tmp_path))


def test_tar_files_without_images_are_an_error(tmp_path):
    with pytest.raises(NstError, match=r"x\.tar:.*images.*, found none"):
        open_tar(tmp_path, tar_bytes([("a.txt", b"text")]))


def test_a_tar_file_that_has_changed_is_not_read(tmp_path):
    source = open_tar(tmp_path, tar_bytes(THREE))
    (tmp_path / "x.tar").write_bytes(b"short")
    assert read_contents(source) == [f"NstError: has 5 bytes, {10_240:,} when the pool was listed"] * 3
    (tmp_path / "x.tar").unlink()
    assert read_contents(source)[0].startswith("FileNotFoundError: ")


def test_many_tar_files_are_read_by_threads_with_few_open(tmp_path):
    for index in range(100):
        write_tar(tmp_path / f"{index:03d}.tar", [("x.png", png(0, index))])
    source = open_source(str(tmp_path))
    expected = read_contents(source)
    found = [[] for _ in range(3)]
    threads = [threading.Thread(target=lambda k=k: found[k].extend(source.read(row) for row in range(100))) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 3
    assert tar_module._open_cached.cache_info().currsize <= 64
    here = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
    assert sum(path.startswith(str(tmp_path)) for path in here) <= 64


def headers_of(folder, before, at_once=2):
    """Of the tar files in a folder; `before` is called with the number of each before it is opened."""
    paths = sorted(folder.glob("*.tar"))

    def opened_at(file):
        before(file)
        return paths[file].open("rb")

    return TarHeaders([path.name for path in paths], opened_at, at_once)


def test_the_headers_of_two_tar_files_are_read_at_once_and_come_in_order(tmp_path):
    write_tar(tmp_path / "a.tar", [("x.png", b""), ("x.cls", b"1"), ("y.heic", b""), ("y.cls", b"2"), ("z.png", b""), ("z.cls", b"3")])
    write_tar(tmp_path / "b.tar", [("z.json", b"")])
    write_tar(tmp_path / "c.tar", [("x.png", b""), ("x.cls", b"4"), ("v.heic", b""), ("v.cls", b"0")])
    both, classes = threading.Barrier(2), []
    index = headers_of(tmp_path, lambda file: file < 2 and both.wait(20)).build_index(classes)
    assert (index["file"].to_pylist(), index["name"].to_pylist()) == ([0, 0, 2], ["x.png", "z.png", "x.png"])
    assert (classes, skipped_counts(index)) == (["1", "3", "4"], {".heic": 2})


def test_the_first_tar_file_that_is_refused_is_named_and_the_others_are_not_read_to_their_end(tmp_path):
    write_tar(tmp_path / "a.tar", [("a.cls", b"1"), ("b.png", b"")])
    write_tar(tmp_path / "b.tar", [("b.png", b"")])
    write_tar(tmp_path / "c.tar", [(f"{index}.png", b"") for index in range(2000)])
    (tmp_path / "b.tar").write_bytes(b"damaged")
    second, slow = threading.Event(), []

    class Slow(io.FileIO):
        def read(self, size=-1):
            time.sleep(0.002)
            slow.append(self.tell())
            return super().read(size)

    def before(file):
        if file:
            second.set()
        else:
            assert second.wait(20)

    headers = headers_of(tmp_path, before, at_once=3)
    with pytest.raises(NstError, match=r"^a\.tar: b\.png has no class"):
        TarHeaders(headers.paths, lambda file: Slow(tmp_path / "c.tar") if file == 2 else headers.open(file), 3).build_index([])
    so_far = len(slow)
    time.sleep(0.2)
    assert len(slow) <= so_far + 4  # to the next member


@pytest.mark.parametrize(("size", "requests", "most_bytes"), [(1_000, 1, 10**5), (600_000, 7, 26_000_000), (1_500_000, 39, 7 * 10**6)])
def test_members_are_read_through_where_they_are_small_and_else_their_headers_alone(tmp_path, size, requests, most_bytes):
    write_tar(tmp_path / "x.tar", [(f"{index}.png", bytes(size)) for index in range(40)])
    content, asked = (tmp_path / "x.tar").read_bytes(), []

    def read(_, start, stop):
        asked.append(stop - start)
        return content[start:stop]

    file = HeaderFile(SimpleNamespace(read=read), "x.tar", len(content))
    assert [member.name for member in members("x.tar", file)] == [f"{index}.png" for index in range(40)]
    assert len(asked) <= requests
    assert sum(asked) <= most_bytes


@pytest.mark.parametrize(
    ("members", "classes", "labels"),
    [
        ([("a.png", b""), ("a.cls", b"2\n"), ("b.png", b""), ("b.cls", b"0")], ["0", "1", "2"], [2, 0]),
        ([("a.cls", b"wild ant"), ("a.png", b""), ("d/b.photo.png", b""), ("d/b.cls", "Käfer".encode())], ["Käfer", "wild ant"], [1, 0]),
        ([("@a.png", b""), ("@a.cls", b"x"), ("@2560.png", b""), ("@2560.cls", b"y")], ["x", "y"], [0, 1]),
        ([("a.1.png", b""), ("a.1.cls", b"x"), ("a.2.png", b""), ("a.2.cls", b"y")], ["x", "y"], [0, 1]),
    ],
)
def test_a_member_beside_the_image_holds_its_class(tmp_path, members, classes, labels):
    source = open_tar(tmp_path, tar_bytes(members), labeled=True)
    assert (source.class_names, source.labels.tolist()) == (classes, labels)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", b""), ("a.cls", b"1"), ("d/b.png", b"")], r"x\.tar: d/b\.png.*no class.*neighboring member d/b\.cls"),
        ([("a.png", b""), ("a.cls", b" ")], r"x\.tar: a\.png has no class"),
        ([("a.png", b""), ("a.cls", b"\xff")], r"x\.tar: a\.cls: expected one line.*UTF-8"),
    ],
)
def test_an_image_without_a_class_is_an_error(tmp_path, members, message):
    with pytest.raises(NstError, match=message):
        open_tar(tmp_path, tar_bytes(members), labeled=True)


def test_a_labeled_tar_file_must_be_whole(tmp_path):
    with pytest.raises(NstError, match=r"x\.tar:.*damaged from byte 2,560"):
        open_tar(tmp_path, tar_bytes(THREE)[: HEADER + PADDED + HEADER + 512 + 100], labeled=True)


def test_the_class_of_a_skipped_image_is_no_other_ones(tmp_path):
    image = png(0)
    members = [("a.heic", b"x"), ("a.cls", b"0"), ("b.png", image), ("b.CLS", b"1"), ("./c.png", image), ("c.cls", b"0")]
    source = open_source(write_tar(tmp_path / "x.tar", members), labeled=True)
    assert keys(source) == ["x.tar:b.png", "x.tar:./c.png"]
    assert (source.labels.tolist(), source.skipped) == ([1, 0], {".heic": 1})
    with pytest.raises(NstError, match=r"\.tar: a\.png.*no class.*neighboring member a\.cls"):
        open_source(write_tar(tmp_path / "y.tar", [*members, ("a.png", image)]), labeled=True)


def test_a_file_that_was_packed_again_at_its_size_and_time_is_looked_through_again(tmp_path):
    packed, file = [("a.png", b"a" * 900), ("b.png", b"b" * 900)], tmp_path / "x.tar"
    file.write_bytes(tar_bytes(packed))
    stat = file.stat()
    open_source(file, indexes=tmp_path / "kept")
    file.write_bytes(tar_bytes(packed[::-1]))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (keys(open_source(file, indexes=tmp_path / "kept")), file.stat().st_size) == (["x.tar:b.png", "x.tar:a.png"], stat.st_size)
