"""Odd tables of labeled images, made by code: what strangers' tools write, with the classes or the error that each must give.

Each has three images, `IMAGES`, unless it says otherwise.
"""

import io
import json
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from conftest import png
from datasets import Audio, ClassLabel, Dataset, Features, Image, Value

IMAGES = [png(0, index) for index in range(3)]
CELL = pa.struct({"bytes": pa.binary(), "path": pa.string()})
CELLS = [{"bytes": image, "path": None} for image in IMAGES]
ABC = ["a", "b", "a"]


@dataclass(frozen=True)
class Odd:
    """What to write below an empty folder, and the class of each row by name or the line that must be raised."""

    name: str
    write: Callable[[Path], Any]
    classes: list[str] | None = None
    error: str | None = None
    images: list[bytes | str] = field(default_factory=lambda: list(IMAGES))  # in place of one that cannot be read how its reason begins
    options: dict[str, Any] = field(default_factory=dict)
    where: str = ""  # below the folder


def parquet(name: str = "x.parquet", options: dict[str, Any] | None = None, **columns: Any) -> Callable[[Path], Any]:
    """A writer of one parquet file; images stand in `image` unless they are given."""
    given = {"image": pa.array(IMAGES), **columns}
    table = pa.table({key: value for key, value in given.items() if value is not None})
    return lambda folder: pq.write_table(table, folder / name, **(options or {}))


def several(*writers: Callable[[Path], Any]) -> Callable[[Path], Any]:
    return lambda folder: [write(folder) for write in writers]


def two(first: pa.Array | None, second: pa.Array | None, kind: pa.DataType = None, between: Any = None) -> Callable[[Path], Any]:
    """Two images in a.parquet and one, of another type, in c.parquet, each with labels of its own; b.parquet may lie between them."""
    cells = pa.array(CELLS[2:], kind) if kind else pa.array(IMAGES[2:])
    return several(
        parquet("a.parquet", image=pa.array(IMAGES[:2]), label=first),
        parquet("c.parquet", image=cells, label=second),
        *([parquet("b.parquet", **between)] if between else []),
    )


def tar(spec: str, name: str = "x.tar", first: int = 0) -> Callable[[Path], Any]:
    """A writer of one tar file of members such as `x.png x.cls:3`; images are taken in turn from the first one on."""
    images = iter(IMAGES[first:])
    members = [member.split(":") for member in spec.split()]
    return packed([(member, text[0].encode() if text else next(images)) for member, *text in members], name)


def packed(members: list[tuple[str, bytes]], name: str = "x.tar") -> Callable[[Path], Any]:
    """A writer of one tar file of (name, content)."""

    def write(folder: Path) -> None:
        with tarfile.open(folder / name, "w") as file:
            for member, content in members:
                info = tarfile.TarInfo(member)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))

    return write


def dataset(features: dict[str, Any], saved: bool = True, **columns: list[Any]) -> Callable[[Path], Any]:
    """A writer of rows as `datasets` writes them, saved to disk or as parquet; what is not given is made by its feature."""
    made = {Image: CELLS, ClassLabel: [0, 1, 0], Audio: [None] * 3, Value: [b"7", b"8", b"9"]}
    given = {name: columns.get(name, made[type(feature)]) for name, feature in features.items()}
    data = Dataset.from_dict(given, features=Features(features))
    return lambda folder: data.save_to_disk(folder / "saved") if saved else data.to_parquet(folder / "x.parquet")


def in_footer(features: Any, label: Any = (0, 1, 0), **options: Any) -> Callable[[Path], Any]:
    """A parquet file with these words where `datasets` writes its features."""
    table = pa.table({"image": IMAGES, "label": list(label)}).replace_schema_metadata({"huggingface": features})
    return lambda folder: pq.write_table(table, folder / "x.parquet", **options)


def class_label(names: list[Any]) -> str:
    """As `datasets` writes them for the column `label`."""
    return json.dumps({"info": {"features": {"label": {"_type": "ClassLabel", "names": names}}}})


def path_only(absolute: bool) -> Callable[[Path], Any]:
    """A saved dataset that names its image files, as older versions of `datasets` save them."""

    def write(folder: Path) -> None:
        (folder / "saved").mkdir()
        cells = []
        for row, image in enumerate(IMAGES):
            (folder / "saved" / f"{row}.png").write_bytes(image)
            cells.append({"bytes": None, "path": str(folder / "saved" / f"{row}.png") if absolute else f"{row}.png"})
        cell = {"bytes": Value("binary"), "path": Value("string")}
        features = Features({"image": cell, "label": ClassLabel(names=["a", "b"])})
        Dataset.from_dict({"image": cells, "label": [0, 1, 0]}, features=features).save_to_disk(folder / "saved")

    return write


def claiming_rows(folder: Path) -> None:
    """A footer that claims 2^40 rows, in the file and in its row group: Thrift's varints in place."""
    pq.write_table(pa.table({"image": IMAGES * 100, "label": [0, 1, 0] * 100}), folder / "x.parquet", store_schema=False)
    content = (folder / "x.parquet").read_bytes()
    (length,) = struct.unpack("<I", content[-8:-4])
    footer = content[-8 - length : -8].replace(varint(300 * 2), varint(2**41))
    (folder / "x.parquet").write_bytes(content[: -8 - length] + footer + struct.pack("<I", len(footer)) + b"PAR1")


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def claiming_bytes(size: int) -> Callable[[Path], Any]:
    """A tar file whose last header claims more bytes than there are."""

    def write(folder: Path) -> None:
        tar("a.cls:0 a.png b.cls:1")(folder)
        whole = (folder / "x.tar").read_bytes().rstrip(b"\0")
        info = tarfile.TarInfo("b.png")
        info.size = size
        whole += bytes(-len(whole) % 512)
        (folder / "x.tar").write_bytes(whole + info.tobuf(tarfile.GNU_FORMAT))

    return write


def linked(folder: Path) -> None:
    """A tar file whose class is a link."""
    with tarfile.open(folder / "x.tar", "w") as file:
        info = tarfile.TarInfo("a.png")
        info.size = len(IMAGES[0])
        file.addfile(info, io.BytesIO(IMAGES[0]))
        link = tarfile.TarInfo("a.cls")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)


def folders(*names: str) -> Callable[[Path], Any]:
    """Class folders with one image each."""

    def write(folder: Path) -> None:
        for name, image in zip(names, IMAGES, strict=False):
            (folder / "in" / name).mkdir(parents=True)
            (folder / "in" / name / "x.png").write_bytes(image)

    return write


def names(*lines: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / "names.txt").write_text("".join(f"{line}\n" for line in lines))


def pairs(*classes: bytes) -> list[tuple[str, bytes]]:
    return [member for row, text in enumerate(classes) for member in ((f"{row}.png", IMAGES[row]), (f"{row}.cls", text))]


A, B, C = IMAGES
NAMED, ONE, KIND = {"class_names": "names.txt"}, {"image_column": "image"}, {"label_column": "kind"}
IMAGE, CLASSES = Image(), ClassLabel(names=["a", "b"])
TWO = pa.array([0, 1])
ALPHABET = "abcdefghijk"
PLAIN = {"image": IMAGE, "label": CLASSES}
FINE = {"image": IMAGE, "fine": ClassLabel(names=["x", "y"]), "coarse": CLASSES}
MANY = [f"n{index}" for index in range(100_001)]

PARQUET = [
    Odd("string views", parquet(label=pa.array(ABC, pa.string_view())), ABC),
    Odd("large strings", parquet(label=pa.array(ABC, pa.large_string())), ABC),
    Odd("text as binary", parquet(label=pa.array(ABC, pa.large_binary())), ABC, options=ONE),
    Odd("binary that is no text", parquet(label=[b"\xff", b"a", b"b"]), None, "not UTF-8 text", options=ONE),
    Odd("a dictionary of text", parquet(label=pa.array(["b", "a", "b"]).dictionary_encode()), ["b", "a", "b"]),
    Odd("a dictionary of numbers", parquet(label=pa.array([2, 0, 2]).dictionary_encode()), ["2", "0", "2"]),
    Odd("a dictionary with nulls", parquet(label=pa.array(["a", None, "b"]).dictionary_encode()), None, "no label in row 1"),
    Odd("booleans", parquet(label=[True, False, True]), ["1", "0", "1"]),
    Odd("eight-bit numbers", parquet(label=pa.array([0, 200, 1], pa.uint8())), ["0", "200", "1"]),
    Odd("nulls alone", parquet(label=pa.nulls(3)), None, "no label in 3 rows, the first is row 0"),
    Odd("one null", parquet(label=[0, None, 1]), None, "no label in row 1"),
    Odd("empty text", parquet(label=["a", " ", "b"]), None, "an empty label in row 1"),
    Odd("an id for a class", parquet(label=[0, 1, 3_000_000_000]), None, "up to 3,000,000,000 in 3 rows .* `class_names` FILE"),
    Odd("beyond int64", parquet(label=pa.array([0, 1, 2**64 - 1], pa.uint64())), None, "up to 18,446,744,073,709,551,615 in 3 rows"),
    Odd("one negative", parquet(label=[0, -1, 2]), None, "has values -1 to 2, expected 0 to 2: others in row 1"),
    Odd("negative alone", parquet(label=[-1, -1, -1]), None, "are negative; classes start at 0"),
    Odd("thousands without names", parquet(label=[0, 21_840, 5]), ["0", "21840", "5"]),
    Odd("floats with a fraction", parquet(label=[0.0, 1.5, 0.0]), None, "is double with the value 1.5, expected whole numbers or strings"),
    Odd("lists of labels", parquet(label=[[0], [1], [0, 1]]), None, "is list<.*>, expected integers or strings"),
    Odd("structs of labels", parquet(label=[{"id": 0}] * 3), None, "is struct<.*>, expected integers or strings"),
    Odd("two columns of one name", lambda folder: pq.write_table(
        pa.table([pa.array(IMAGES), pa.array(ABC), pa.array(ABC)], names=["image", "label", "label"]), folder / "x.parquet"
    ), None, "expected one column `label`, found 2"),
    Odd("another name", parquet(species=ABC, id=[7, 8, 9]), None, "with `label_column`, e.g. species, id"),
    Odd("another name that is given", parquet(species=ABC, id=[7, 8, 9]), ABC, options={"label_column": "species"}),
    Odd("a name that is not there", parquet(label=ABC), None, "`label_column` kind: .* columns: image, label", options=KIND),
    Odd("an image as label", parquet(label=pa.array(CELLS, CELL)), None, "is struct<.*>, expected", options=ONE),
    Odd("images of every width", parquet(image=pa.array(IMAGES, pa.large_binary()), label=ABC), ABC),
    Odd("images as views", parquet(image=pa.array(IMAGES, pa.binary_view()), label=ABC), ABC),
    Odd("images in a dictionary", parquet(image=pa.array(IMAGES).dictionary_encode(), label=ABC), ABC),
    Odd("lists of images", parquet(image=pa.array([[cell] for cell in CELLS], pa.list_(CELL)), label=ABC), None, "found `image` .list<"),
    Odd("a null image", parquet(image=pa.array([A, None, C]), label=ABC), ABC, images=[A, "no image in this row", C]),
    Odd("a null struct", parquet(image=pa.array([CELLS[0], None, CELLS[2]], CELL), label=ABC), ABC, images=[A, "no image in this row", C]),
    Odd("an extension", parquet(label=pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, 0, 1], pa.int8()))), ["1", "0", "1"]),
    Odd("numbers in text", several(parquet(label=["10", "2", "10"]), names(*ALPHABET)), ["k", "c", "k"], options=NAMED),
    Odd("beyond the names", several(parquet(label=[0, 1, 2]), names("a", "b")), None, "at least 3 distinct names.* class 2", options=NAMED),
    Odd("decimals in text", several(parquet(label=["1.0", "0.0", "1.0"]), names("a", "b")), ["b", "a", "b"], options=NAMED),
    Odd("few names of decimals", several(parquet(label=["1.0", "0.0", "1.0"]), names("a")), None, "at least 2 .* class 1", options=NAMED),
    Odd("fractions in text", several(parquet(label=["1.5", "0.0", "1.5"]), names("a")), None, "class names of its own", options=NAMED),
    Odd("no rows", parquet(image=pa.array([], pa.binary()), label=pa.nulls(0)), None, "expected rows, found parquet files without"),
    Odd("a footer that claims rows", claiming_rows, None, "corrupt .*claims 1,099,511,627,776 rows"),
    Odd("text of megabytes", parquet(label=["x" * 70_000_000, "y", "z"]), None, "too large for class labels .67 MB in 3 rows"),
]  # fmt: skip

FILES = [
    Odd("text of two widths", two(pa.array(["a", "b"]), pa.array(["a"], pa.large_string())), ABC),
    Odd("numbers of two widths", two(pa.array([0, 1], pa.int32()), pa.array([0])), ["0", "1", "0"]),
    Odd("a dictionary beside text", two(pa.array(["a", "b"]).dictionary_encode(), pa.array(["a"])), ABC),
    Odd("numbers beside text", two(TWO, pa.array(["a"])), None, "c.parquet: column `label` is string, expected numbers as in .*a.parquet"),
    Odd("a file without labels", two(TWO, None), None, "c.parquet: no column `label`; every file needs it, as in .*a.parquet"),
    Odd("a null label in one file", two(TWO, pa.nulls(1)), None, "c.parquet: column `label` has no label in row"),
    Odd("structs beside bytes", two(TWO, pa.array([0]), CELL), ["0", "1", "0"]),
    Odd("an empty file between", two(TWO, pa.array([0]), between={"image": pa.nulls(0), "label": None}), ["0", "1", "0"]),
    Odd("an empty file first", several(parquet("a.parquet", image=pa.nulls(0), label=None), parquet("b.parquet", label=ABC)), ABC),
    Odd("a first row group without rows", lambda folder: write_groups(folder / "x.parquet", [0, 3], "snappy"), ["0", "1", "0"]),
    Odd("row groups without rows", lambda folder: write_groups(folder / "x.parquet", [0, 2, 0, 1], "none"), ["0", "1", "0"]),
    Odd("class names that are not names", in_footer(class_label([1, None])), ["0", "1", "0"]),
    Odd("features that are none", in_footer(b'{"info": {"features": [1, 2]}}'), ["0", "1", "0"]),
    Odd("deep nonsense for features", in_footer(b"[" * 100_000), ["0", "1", "0"]),
    Odd("a class name twice", in_footer(class_label(["a", "a"])), None, "duplicate class name 'a'"),
    Odd("more classes than names", in_footer(class_label(["a"])), None, "has values 0 to 1, expected 0 to 0"),
]  # fmt: skip

DATASETS = [
    Odd("the one Image of two", dataset({"thumb": Value("binary"), "photo": IMAGE, "label": CLASSES}, saved=False), ABC),
    Odd("an Audio beside an Image", dataset({"photo": IMAGE, "sound": Audio(), "label": CLASSES}), ABC, where="saved"),
    Odd("the one ClassLabel", dataset({"image": IMAGE, "n": Value("binary"), "kind": CLASSES}), ABC, where="saved"),
    Odd("two ClassLabels", dataset(FINE, saved=False), None, "`label_column`, e.g. fine, coarse"),
    Odd("one of two ClassLabels", dataset(FINE), ABC, options={"label_column": "coarse"}, where="saved"),
    Odd("many class names", in_footer(class_label(MANY), [0, 100_000, 5], use_dictionary=False), ["n0", "n100000", "n5"]),
    Odd("images that are not decoded", dataset({"image": Image(decode=False), "label": CLASSES}), ABC, where="saved"),
    Odd("a null label in a saved dataset", dataset(PLAIN, label=[0, None, 1]), None, "no label in row 1", where="saved"),
    Odd("a saved dataset without rows", dataset(PLAIN, image=[], label=[]), None, "expected rows, found an empty dataset", where="saved"),
    Odd("paths beside a saved dataset", path_only(absolute=False), ABC, where="saved"),
    Odd("paths that lead elsewhere", path_only(absolute=True), ABC, images=["names the file '/"] * 3, where="saved"),
]  # fmt: skip

TARS = [
    Odd("classes before images", tar("0.cls:a 0.png 1.cls:b 1.png 2.cls:a 2.png"), ABC),
    Odd("names that come again", tar("x.png x.cls:a y.png y.cls:b x.png x.cls:b"), ["a", "b", "b"]),
    Odd("sorted by suffix", tar("0.cls:a 1.cls:b 2.cls:a 0.png 1.png 2.png"), ABC),
    Odd("sorted by suffix, a name again", tar("x.png y.png x.cls:a y.cls:b x.png"), None, "x.png occurs several times"),
    Odd("one name side by side", tar("x.png x.cls:a x.png x.cls:b"), None, "x.png occurs several times in one sample"),
    Odd("a class appended later", tar("x.png x.cls:a y.png y.cls:b x.cls:b"), None, "x.cls occurs .* times with different classes"),
    Odd("an image appended", tar("x.png x.cls:a y.png y.cls:b x.png"), None, "x.png has no class; expected a neighboring member x.cls"),
    Odd("several images of one key", tar("x.png x.seg.png x.jpg x.cls:a"), ["a"] * 3),
    Odd("two classes of one key", tar("x.jpg x.cls:a x.png x.cls:b"), None, "x.cls occurs several times in one sample"),
    Odd("dots in names", tar("x.1.png x.1.cls:a x.2.png x.2.cls:b x.3.png x.3.cls:a"), ABC),
    Odd("folders of one name", tar("d/x.png d/x.cls:a e/x.png e/x.cls:b d.2/x.png d.2/x.cls:a"), ABC),
    Odd("a name in two tar files", several(tar("x.png x.cls:a y.png y.cls:b", "0.tar"), tar("x.png x.cls:a", "1.tar", 2)), ABC),
    Odd("a class elsewhere", several(tar("x.png", "0.tar"), tar("x.cls:b y.png y.cls:a", "1.tar")), None, "0.tar: x.png has no class"),
    Odd("byte order marks and line ends", packed(pairs(b"\xef\xbb\xbf1\r\n", b"\xef\xbb\xbf10 ", b"\t2\n")), ["1", "10", "2"]),
    Odd("leading zeros", packed(pairs(b"07", b"7", b"0")), ["7", "7", "0"]),
    Odd("an empty class", packed(pairs(b"1", b"", b"0")), None, "1.png has no class, its .cls member is empty"),
    Odd("two lines in a class", packed(pairs(b"1", b"a\nb", b"0")), None, "1.cls: expected one line .* found 'a.*b'"),
    Odd("an image for a class", packed(pairs(b"1", A * 9, b"0")), None, "1.cls: expected one line .* found .* bytes"),
    Odd("a negative class", packed(pairs(b"1", b"-1", b"0")), None, "`.cls` has values -1 to 1, expected 0 to 1"),
    Odd("a class of twenty digits", packed(pairs(b"0", b"1", b"12345678901234567890")), None, "up to 12,345,678,901,234,567,890 in 3 rows"),
    Odd("a class of a thousand digits", packed(pairs(b"0", b"1", b"9" * 1000)), None, "up to a number of 1,000 digits"),
    Odd("a class that is a link", linked, None, "a.cls: a link to '/etc/passwd'"),
    Odd("numbers and text", packed(pairs(b"1", b"one", b"1")), ["1", "one", "1"]),
    Odd("a header that claims bytes", claiming_bytes(2**34), None, "the tar file is damaged from byte"),
    Odd("a header beyond int64", claiming_bytes(2**70), None, "the tar file is damaged from byte"),
]  # fmt: skip

FOLDERS = [
    Odd("padded numbers", several(folders("00", "02", "10"), names(*ALPHABET)), ["a", "c", "k"], options=NAMED, where="in"),
    Odd("numbers in the order of text", several(folders("0", "10", "2"), names(*ALPHABET)), ["a", "k", "c"], options=NAMED, where="in"),
    Odd("gaps", several(folders("0", "1", "3"), names(*"abcd")), ["a", "b", "d"], options=NAMED, where="in"),
    Odd("a number twice", several(folders("0", "00", "1"), names(*"ab")), None, "several spellings.*'0', '00'", options=NAMED, where="in"),
    Odd("from one", several(folders("1", "2", "3"), names(*"abc")), None, "class 3; classes start at 0", options=NAMED, where="in"),
    Odd("names of their own", several(folders("ant", "bee", "cat"), names(*"abc")), None, "names of its own", options=NAMED, where="in"),
    Odd("a column of folders", folders("ant", "bee", "cat"), None, "have no columns", options=KIND, where="in"),
]  # fmt: skip


def write_groups(path: Path, sizes: list[int], compression: str) -> None:
    """A parquet file with row groups of these sizes."""
    table = pa.table({"image": IMAGES, "label": np.array([0, 1, 0])})
    with pq.ParquetWriter(path, table.schema, compression=compression, use_dictionary=False) as writer:
        start = 0
        for size in sizes:
            writer.write_table(table.slice(start, size))
            start += size


TABLES = [*PARQUET, *FILES, *DATASETS, *TARS, *FOLDERS]
