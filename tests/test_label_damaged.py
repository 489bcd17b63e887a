"""Hostile and damaged pools: every image is labeled or in `errors` with its reason, and nothing else happens."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import picture
from labels import table_rows, write_teacher
from pictures import tar_bytes, write_table
from PIL import Image

from nst_data.sources import open_source
from nst_data.store.store import Store

pytestmark = pytest.mark.slow
FILES = 500
# the command, and how many MB it needed at most beyond what importing it takes
NST = """
from resource import RUSAGE_SELF, getrusage
import nst_train.labeling.label
from nst_cli.main import run
imported = getrusage(RUSAGE_SELF).ru_maxrss
try:
    run()
finally:
    print((getrusage(RUSAGE_SELF).ru_maxrss - imported) // 1024)
"""


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_of(width, height):
    """A PNG that claims a size, with next to no pixels."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def bombs():
    """Small files that claim a billion pixels, or would need them when resized."""
    gif, bmp, jpeg = (bytearray(encode(picture(0, 0), kind)) for kind in ("GIF", "BMP", "JPEG"))
    gif[6:10] = struct.pack("<HH", 65535, 65535)
    bmp[18:26] = struct.pack("<ii", 40000, 40000)
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 60000, 60000)
    yield from (bytes(gif), bytes(bmp), bytes(jpeg), png_of(40000, 30000), png_of(2**31 - 1, 2**31 - 1), png_of(0, 5))
    yield from (encode(Image.new("L", size), "PNG") for size in ((1, 60000), (60000, 1), (3, 4000)))
    yield png_of(13000, 13000)  # allowed, but not there


def damaged(rng):
    """(suffix, bytes) without end: images cut short, with bytes changed, and what is none."""
    images = [picture(1, 1, 48), picture(2, 2, 48).convert("L"), picture(0, 3, 48).convert("CMYK")]
    wholes = [("jpg", encode(image, "JPEG", progressive=progressive)) for image in images for progressive in (False, True)]
    frames = [picture(0, index, 48) for index in range(3)]
    wholes += [("gif", encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))]
    wholes += [(kind.lower(), encode(images[0], kind)) for kind in ("PNG", "BMP", "WEBP", "TIFF")]
    yield from (("jpg", b""), ("png", b""), ("jpg", b"not an image"))
    yield from (("jpg", b"\xff\xd8"), ("gif", b"GIF89a"), ("webp", b"RIFF\xff\xff\xff\xffWEBP"))
    yield from (("png", content) for content in bombs())
    while True:
        suffix, whole = wholes[rng.integers(len(wholes))]
        if rng.random() < 0.4:
            yield suffix, whole[: rng.integers(len(whole))]
        else:
            changed = bytearray(whole)
            for place in rng.integers(len(whole), size=rng.choice([1, 3, 30])):
                changed[place] = rng.integers(256)
            yield suffix, bytes(changed)


def write_damaged(folder):
    folder.mkdir()
    content = damaged(np.random.default_rng(0))
    for number in range(FILES - 1):
        suffix, encoded = next(content)
        (folder / f"{number:03d}.{suffix}").write_bytes(encoded)
    picture(0, 0).save(folder / "sound.png")
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(the finished command, the version, its pool, MB needed) of a pool of damaged images."""
    top = tmp_path_factory.mktemp("damaged")
    write_teacher(top / "teacher", ["ant", "bee", "cat"])
    pool = write_damaged(top / "pool")
    words = ["label", pool, "--teacher", f"local-dir:{top / 'teacher'}", "--corpus", "damaged", "--store", top / "store"]
    done = subprocess.run(
        [sys.executable, "-c", NST, *map(str, words), "--batch-size", "16", "--max-unreadable", "0.7"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done, Store(top / "store").open("damaged"), pool, int(done.stdout.splitlines()[-1])


def test_each_damaged_image_is_labeled_or_has_its_reason_on_one_line(finished):
    done, version, pool, _ = finished
    assert done.returncode == 0, done.stderr
    labeled, errors = table_rows(version), table_rows(version, "errors")
    assert sorted(row["id"] for row in labeled + errors) == list(range(FILES))
    assert {row["key"] for row in labeled + errors} == {path.name for path in pool.iterdir()}
    assert "sound.png" in {row["key"] for row in labeled}
    assert all(row["reason"].strip() == row["reason"] != "" and "\n" not in row["reason"] for row in errors)
    assert 100 < len(errors) < 450
    assert version.verify() == []


def test_bombs_and_empty_files_say_what_they_are(finished):
    reasons = {row["key"]: row["reason"] for row in table_rows(finished[1], "errors")}
    assert [reasons[f"{number:03d}.{suffix}"] for number, suffix in enumerate(("jpg", "png", "jpg"))] == [
        *["empty file"] * 2,
        "not an image in a known format",
    ]
    bombs = [reasons[f"{number:03d}.png"] for number in (*range(6, 11), *range(12, 15))]
    assert all("pixels" in reason for reason in bombs), bombs


def test_damaged_images_bring_no_warning_to_the_screen(finished):
    assert warnings(finished) == []


def warnings(finished):
    return [line for line in finished[0].stderr.splitlines() if not line.startswith(("damaged@gen-1: ", "label damaged@gen-1: "))]


def test_bombs_need_less_memory_than_the_largest_image_that_is_allowed(finished):
    assert finished[3] < 500  # MB; one bomb as RGB would need 3,000


@pytest.mark.parametrize("cut", [0.2, 0.5])
def test_a_tar_cut_short_keeps_the_images_before_the_cut(tmp_path, cut):
    write_teacher(tmp_path / "teacher", ["ant", "bee"])
    whole = tar_bytes([(f"{number}.png", encode(picture(0, number), "PNG")) for number in range(10)])
    (tmp_path / "pool.tar").write_bytes(whole[: int(len(whole) * cut)])
    version = labeled_here(tmp_path, tmp_path / "pool.tar")
    labels, errors = table_rows(version), table_rows(version, "errors")
    assert [row["key"] for row in labels] == [f"pool.tar:{number}.png" for number in range(len(labels))]
    assert 0 < len(labels) < 10
    assert [row["id"] for row in errors] == list(range(len(labels), len(labels) + 2))
    assert errors[0]["reason"].startswith("cut short: ")
    assert errors[1]["reason"].startswith("the tar file is damaged from byte ")


def test_a_parquet_file_with_nulls_and_a_damaged_page_keeps_the_rest(tmp_path):
    write_teacher(tmp_path / "teacher", ["ant", "bee"])
    images = [encode(picture(0, number), "PNG") if number % 4 else None for number in range(12)]
    path = tmp_path / "pool.parquet"
    write_table(path, row_group_size=4, image=pa.array(images, pa.binary()))
    content = bytearray(path.read_bytes())
    page = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    content[page : page + 40] = bytes(40)
    path.write_bytes(content)
    version = labeled_here(tmp_path, path)
    labels, errors = table_rows(version), {row["id"]: row["reason"] for row in table_rows(version, "errors")}
    assert sorted([row["id"] for row in labels] + list(errors)) == list(range(12))
    assert {row["id"] for row in labels} == {1, 2, 3, 9, 10, 11}
    assert errors[0] == errors[8] == "no image in this row"
    assert all(errors[number].startswith("row group 1 of pool.parquet is damaged") for number in (4, 5, 6, 7))


def labeled_here(top, source):
    from nst_train.labeling.label import label
    from nst_train.settings import LabelSettings

    return label(Store(top / "store"), "bugs", f"local-dir:{top / 'teacher'}", open_source(str(source)), LabelSettings(batch_size=4))
