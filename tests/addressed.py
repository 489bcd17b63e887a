"""Files to put at an address, and what a source of them gives."""

import io
import json
import os
import threading
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from conftest import picture, png, write_class_folders
from pictures import write_tar

from nst_data.errors import NstError
from nst_data.store.file_tree import NO_SUCH_FILE, MissingFileError

ROWS = 40
ODD = {"images": "b/x/04", "tars": "1.tar", "parquet": "1.parquet"}  # what a fault is put before
SOURCES = [  # name, options of open_source
    ("images", {}),
    ("classes", {"labeled": True}),
    ("tars", {}),
    ("tars/1.tar", {}),
    ("tars/*.tar", {}),
    ("tars/**/*.tar", {}),
    ("labeled.tar", {"labeled": True}),
    ("parquet", {}),
    ("parquet", {"labeled": True, "label_column": "label"}),
    ("parquet/{0,1}.parquet", {"image_column": "image"}),
    ("tables/list.txt", {}),
    ("tables/paths.csv", {}),
    ("tables/paths.csv", {"labeled": True, "label_column": "kind"}),
    ("tables/rows.jsonl", {"labeled": True, "class_names": ["zero", "one", "two"]}),
    ("tables/coco.json", {"labeled": True}),
    ("metadata", {"labeled": True}),
]


def write_files(top):
    """Folders `images`, `tars`, `parquet`, `classes` and `labeled.tar`, on this disk."""
    write_class_folders(top / "classes", ["ant", "bee", "cat"], 4)
    for name in ("images/b/x", "images/ü", "tars/z", "parquet"):
        (top / name).mkdir(parents=True)
    for index in range(ROWS):
        (top / f"images/{'b/x' if index % 3 else 'ü'}/{index:02d} +%20.png").write_bytes(png(index % 3, index))
    for name, content in (("b.png", b"no image"), ("b/empty.png", b""), ("b/.hidden.png", b"x"), ("b/odd.dcm", b"x"), ("notes.txt", b"x")):
        (top / "images" / name).write_bytes(content)
    members = [(f"{index}.png", png(index % 3, index)) for index in range(ROWS)]
    write_tar(top / "tars/1.tar", members[:25])
    write_tar(top / "tars/z/2.tar", [*members[25:], ("25.png", b"again")])
    write_tar(top / "labeled.tar", [part for name, image in members for part in ((name, image), (name.replace("png", "cls"), b"1"))])
    write_tables(top)
    for file in range(2):
        images = [{"bytes": image, "path": None} for _, image in members[file::2]]
        table = pa.table({"image": images, "label": [index % 3 for index in range(ROWS // 2)]})
        pq.write_table(table, top / f"parquet/{file}.parquet", row_group_size=6, compression="zstd" if file else "none")
    return top


def write_tables(top):
    """Folders `tables`, whose files name images in and beside it, and `metadata`, a Hugging Face `imagefolder`."""
    for folder in ("tables/own", "metadata/train"):
        (top / folder).mkdir(parents=True)
    names = [f"own/{index:02d}.png" for index in range(10)]
    for index, name in enumerate(names):
        (top / "tables" / name).write_bytes(png(index % 3, index))
    beside = sorted(path.relative_to(top).as_posix() for path in (top / "classes").rglob("*.png"))
    names = [names[7], "./own/../own/01.png", names[1], "own/gone.png", *(f"../{name}" for name in beside)]
    classes = ["ant", "bee", "bee", "cat", *(name.split("/")[1] for name in beside)]
    (top / "tables/list.txt").write_text("\n\n".join(names))
    rows = [f"{name},{kind},7" for name, kind in zip(names, classes, strict=True)]
    (top / "tables/paths.csv").write_text("\n".join(["file,kind,other", *rows]))
    (top / "tables/whole.csv").write_text("\n".join(["path", *(name for name in names if "gone" not in name)]))
    numbers = [{"path": name, "label": index % 3} for index, name in enumerate(names)]
    (top / "tables/rows.jsonl").write_text("\n".join(map(json.dumps, numbers)))
    images = [{"id": index, "file_name": name} for index, name in enumerate(names)]
    categories = [{"id": 5 + index, "name": name} for index, name in enumerate(["ant", "bee", "cat"])]
    annotations = [{"image_id": index, "category_id": 5 + ["ant", "bee", "cat"].index(kind)} for index, kind in enumerate(classes)]
    coco = {"images": images, "categories": categories, "annotations": annotations}
    (top / "tables/coco.json").write_text(json.dumps(coco))
    for index in range(12):
        (top / f"metadata/train/{index:02d}.png").write_bytes(png(index % 3, index))
    rows = [f"train/{index:02d}.png,{'ab'[index % 2]}" for index in range(12)]
    (top / "metadata/metadata.csv").write_text("\n".join(["file_name,label", *rows]))


def content_of(read_content):
    try:
        return bytes(read_content())
    except (FileNotFoundError, MissingFileError):
        return NO_SUCH_FILE
    except (NstError, OSError) as error:
        return str(error)


def read_all(source, rows=None):
    wanted = range(len(source)) if rows is None else rows
    return [(row.id, row.key, content_of(row.read)) for row in source.rows(wanted)]


def assert_is_as_on_disk(remote, local):
    """A source at an address gives the rows of the same files on this disk: all, some, and one by one."""
    assert remote.fingerprint == local.fingerprint
    assert remote.class_names == local.class_names
    assert remote.skipped == local.skipped
    assert read_all(remote) == read_all(local)
    some = np.array([2, 3, 11])
    assert read_all(remote, some) == read_all(local, some)
    for row in range(9):
        assert content_of(partial(remote.read, row)) == content_of(partial(local.read, row))


def assert_requests_are_few(images, tars, faults):
    """One for each image, and one for the neighbors in each of two tar files."""
    faults.requests.clear()
    read_all(images)
    assert len(faults.requests) == len(images) - 1  # none for the empty one
    faults.requests.clear()
    read_all(tars)
    assert len(faults.requests) == 2


def assert_threads_and_a_fork_read(sources):
    """Pairs of sources, here and at an address, whose single rows are read by several threads at once, then by another process."""
    found = {}

    def read(number):
        found[number] = [there.read(number) for _, there in sources]

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [here.read(number) for here, _ in sources] for number in range(8)}
    if (child := os.fork()) == 0:
        os._exit(0 if [there.read(9) for _, there in sources] == [here.read(9) for here, _ in sources] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def bmp(index):
    file = io.BytesIO()
    picture(0, index).save(file, "BMP")  # all of one size
    return file.getvalue()
