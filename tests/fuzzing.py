"""What strangers hand to nst, damaged at random: every reader gives its content or one line of an error, never a crash.

python tests/fuzzing.py NAME SECONDS [FIRST]    tries one reader for so long, and prints each kind of crash with its number
"""

import io
import json
import random
import sys
import tarfile
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from nst_data.adoption import adopt
from nst_data.errors import NstError
from nst_data.hub.licenses import read_front_matter
from nst_data.hub.reference import HubReference
from nst_data.hub.repository import Repository
from nst_data.images import decode, phash_thumbnail, upright_size
from nst_data.progress import Progress
from nst_data.sharing.remote_manifest import check_remote_manifest
from nst_data.sources import open_source
from nst_data.sources.class_texts import read_synonyms
from nst_data.store.manifest import parse_manifest
from nst_data.store.store import Store
from nst_train.recipes.reading import parse_recipe

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = ["ant", "bee", "cat"]
TOKENS = [
    one.encode()
    for one in ["", "\0", "\n", "\t", "  ", "-1", "0", "1e999", "NaN", "null", "true", "{}", "[]", '"', "'", ",", ":", "..", "/", "é"]
]
TOKENS += [b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\x7f\xff\xff\xff", b"9" * 20, b"&a [*a]", b"a" * 300, b"[" * 500]
TOKENS += [b".nan", b"-.inf", b"!!bool x", b"2024-99-99", b"9" * 30, b"[" * 100 + b"]" * 100, rb'"\ud800"', b"{'a': 1}", b"[5]"]
FORMATS = ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "JPEG2000", "AVIF"]


def damaged(original: bytes, random: random.Random) -> bytes:
    """The bytes after one to four changes, such as a cut, a repeated piece, changed bits or a token put in."""
    content = bytearray(original)
    for _ in range(random.randint(1, 4)):
        at, length = random.randint(0, len(content)), random.choice([1, 1, 2, 4, 8, 64, 1024])
        token = random.choice(TOKENS) if random.random() < 0.5 else random.randbytes(length)
        match random.randint(0, 5):
            case 0:
                del content[at : at + length]
            case 1:
                content[at:at] = token
            case 2:
                content[at : at + len(token)] = token
            case 3:
                content[at:at] = content[at : at + length]
            case 4 if at < len(content):
                content[at] ^= 1 << random.randint(0, 7)
            case 5 if random.random() < 0.2:
                del content[at:]
    return bytes(content)


def encoded(form="PNG", label=0):
    """A picture of 12 pixels a side in a format of image files."""
    pixels = np.random.default_rng(label).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    file = io.BytesIO()
    exif = {"exif": Image.Exif().tobytes()} if form in ("JPEG", "PNG", "WEBP") else {}
    Image.fromarray(pixels).save(file, form, **exif)
    return file.getvalue()


def table(labels=NAMES, **writing):
    """Images and labels, as a parquet file. Without dictionaries each image can be read alone."""
    rows = {
        "image": [{"bytes": encoded(label=label), "path": f"{label}.png"} for label in range(3)],
        "label": labels,
        "probs": [[0.5, 0.25, 0.25]] * 3,
        "key": [f"{label}.png" for label in range(3)],
    }
    file = io.BytesIO()
    pq.write_table(pa.table(rows), file, row_group_size=2, **({"compression": "none"} | writing))
    return file.getvalue()


def tar():
    """Images with their classes, as WebDataset has them."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for label in range(3):
            document = json.dumps({"label": NAMES, "probs": [0.5, 0.25, 0.25], "key": f"{label}.png"})
            for suffix, content in (("png", encoded(label=label)), ("cls", str(label).encode()), ("json", document.encode())):
                member = tarfile.TarInfo(f"{label:03d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def manifest():
    """Of an edition, as a pull reads it."""
    from sealed_labels import label_row, seal_edition, seal_generation

    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        rows = [label_row(row, encoded(label=row % 3), row % 3, 0.5) for row in range(3)]
        edition = seal_edition(store, seal_generation(store, rows), rows)
        return (edition.folder / "nst.json").read_bytes()


def _as_source(content: bytes, folder: Path, name: str, labeled: bool) -> None:
    (folder / name).write_bytes(content)
    source = open_source(str(folder / name), labeled=labeled)
    for row in range(len(source)):
        source.key(row)
    for row in source.rows(range(len(source))):
        try:
            decode(row.read())
        except (NstError, OSError):  # listed as an unreadable image
            continue
    if not source.describe_copy():
        for row in range(len(source)):
            with suppress(NstError, OSError):
                source.read(row)


def _both_ways(name: str):
    def read(content: bytes, folder: Path) -> None:
        for labeled in (False, True):
            _as_source(content, folder, name, labeled)

    return read


def _as_labels(name: str, of_its_images: bool = False):
    def read(content: bytes, folder: Path) -> None:
        (folder / name).write_bytes(content)
        (folder / "pool").mkdir(exist_ok=True)
        for label in range(3):
            (folder / "pool" / f"{label}.png").write_bytes(encoded(label=label))
        pool = None if of_its_images else open_source(str(folder / "pool"))
        adopt(Store(folder / "store"), "bugs", folder / name, pool=pool, progress=Progress())

    return read


def _image(content: bytes, folder: Path) -> None:
    upright_size(content)
    phash_thumbnail(decode(content))
    decode(content, 4)


def _manifest(content: bytes, folder: Path) -> None:
    text = content.decode(errors="replace")
    read = parse_manifest(text, "nst.json")
    check_remote_manifest(read, Repository.from_id("alice/bugs"))


def _class_texts(content: bytes, folder: Path) -> None:
    (folder / "names.yaml").write_bytes(content)
    read_synonyms(str(folder / "names.yaml"))


TEXT = b"key,label,prob_ant,prob_bee,prob_cat\n0.png,ant,0.5,0.25,0.25\n1.png,bee,0.25,0.5,0.25\n2.png,cat,0.1,0.2,0.7\n"
LINES = b"".join(
    json.dumps({"key": f"{n}.png", "label": name, "probs": [0.5, 0.25, 0.25]}).encode() + b"\n" for n, name in enumerate(NAMES)
)


def _lines(**columns):
    """Soft labels of three images as JSON lines."""
    return b"".join(json.dumps({"key": f"{n}.png", **columns}).encode() + b"\n" for n in range(3))


SOFT = _lines(label=NAMES, probs=[0.5, 0.25, 0.25])
BY_CLASS = _lines(probs={"ant": 0.5, "bee": 0.25, "cat": 0.25})
ANNOTATED = [[{"result": [{"value": {"choices": [name]}}]}] for name in NAMES]
STUDIO = json.dumps([{"data": {"image": f"/data/{n}.png"}, "annotations": given} for n, given in enumerate(ANNOTATED)])
COCO = json.dumps(
    {
        "images": [{"id": n, "file_name": f"{n}.png"} for n in range(3)],
        "annotations": [{"image_id": n, "category_id": n} for n in range(3)],
        "categories": [{"id": n, "name": name} for n, name in enumerate(NAMES)],
    }
).encode()
SCORED = [{"label": name, "score": 0.5, "logits": [1, 2, 3]} for name in NAMES]
FORMS = [
    json.dumps(one).encode()
    for one in (
        {"columns": ["key", "label"], "index": [0, 1, 2], "data": [[f"{n}.png", name] for n, name in enumerate(NAMES)]},  # pandas' `split`
        {f"{n}.png": [scored] for n, scored in enumerate(SCORED)},  # what a pipeline gives for each
        {"classes": NAMES, "labels": {f"{n}.png": scored for n, scored in enumerate(SCORED)}},  # FiftyOne
        {"samples": [{"filepath": f"{n}.png", "predictions": scored} for n, scored in enumerate(SCORED)]},
    )
]
CARD = (
    b"---\nlicense: mit\ndataset_info:\n  features:\n  - name: image\n    dtype: image\nconfigs:\n- config_name: default\n---\n# A card\n"
)
READERS = {
    "image": (lambda: [encoded(form) for form in FORMATS], _image),
    "tar": (lambda: [tar()], _both_ways("a.tar")),
    "parquet": (
        lambda: [table(), table(use_dictionary=False), table(use_dictionary=False, data_page_version="2.0"), table(compression="zstd")],
        _both_ways("a.parquet"),
    ),
    "csv": (lambda: [TEXT.replace(b"key", b"path")], _both_ways("a.csv")),
    "jsonl": (lambda: [LINES.replace(b"key", b"path")], _both_ways("a.jsonl")),
    "adopt-csv": (lambda: [TEXT], _as_labels("a.csv")),
    "adopt-tsv": (lambda: [TEXT.replace(b",", b"\t")], _as_labels("a.tsv")),
    "adopt-jsonl": (lambda: [SOFT, BY_CLASS], _as_labels("a.jsonl")),
    "coco": (lambda: [COCO], _both_ways("a.json")),
    "adopt-json": (lambda: [STUDIO.encode(), b"[" + SOFT.strip().replace(b"\n", b",") + b"]", COCO, *FORMS], _as_labels("a.json")),
    "adopt-parquet": (lambda: [table([NAMES] * 3)], _as_labels("a.parquet")),
    "adopt-tar": (lambda: [tar()], _as_labels("a.tar", of_its_images=True)),
    "recipe": (
        lambda: [(EXAMPLES / f"{name}.yaml").read_bytes() for name in ("digits", "image_folder", "imagenet", "study_1")],
        lambda content, folder: parse_recipe(content.decode(errors="replace"), folder / "recipe.yaml"),
    ),
    "manifest": (lambda: [manifest()], _manifest),
    "card": (lambda: [CARD], lambda content, folder: read_front_matter(content.decode(errors="replace"))),
    "class-names": (lambda: [b"ant: [ant, emmet]\nbee: bee\ncat: [cat, 'house cat']\n"], _class_texts),
    "reference": (
        lambda: [b"owner/name@v1.0:config/train", b"hf://datasets/owner/name/data/*.parquet"],
        lambda content, folder: HubReference.parse(content.decode(errors="replace")),
    ),
}
_SOUND: dict[str, list[bytes]] = {}


def read_damaged(name: str, number: int) -> None:
    """Damage what a reader takes as `number` decides, and read it. Raises whatever is no NstError."""
    sound, read = READERS[name]
    contents = _SOUND.setdefault(name, sound())
    chosen = random.Random(f"{name} {number}")
    content = damaged(chosen.choice(contents), chosen)
    with tempfile.TemporaryDirectory() as folder:
        try:
            read(content, Path(folder))
        except NstError:
            return


def main() -> None:
    """Try a reader for some seconds."""
    import conftest  # noqa: F401 - cards without their pictures

    name, seconds = sys.argv[1], float(sys.argv[2])
    number, end, seen = int(sys.argv[3]) if len(sys.argv) > 3 else 0, time.monotonic() + seconds, set()
    first = number
    while time.monotonic() < end:
        try:
            read_damaged(name, number)
        except BaseException as error:  # Polars' panics are no Exception
            if isinstance(error, KeyboardInterrupt):
                raise
            where = traceback.extract_tb(error.__traceback__)[-1]
            kind = (type(error).__name__, where.filename, where.lineno)
            if kind not in seen:
                seen.add(kind)
                print(f"{name} {number}: {type(error).__name__}: {str(error)[:200]}")
                traceback.print_exc(limit=-6)
        number += 1
    print(f"{name}: {number - first:,} tried, {len(seen)} kinds of crash")


if __name__ == "__main__":
    main()
