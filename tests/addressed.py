"""Files to put at an address, and what a source of them gives."""

import io
import os
import threading
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from conftest import picture, png, write_class_folders
from pictures import write_tar

from nst_data.errors import NstError

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
    for file in range(2):
        images = [{"bytes": image, "path": None} for _, image in members[file::2]]
        table = pa.table({"image": images, "label": [index % 3 for index in range(ROWS // 2)]})
        pq.write_table(table, top / f"parquet/{file}.parquet", row_group_size=6, compression="zstd" if file else "none")
    return top


def content_of(read):
    try:
        return bytes(read())
    except (NstError, OSError) as error:
        return str(error)


def seen(source, rows=None):
    wanted = range(len(source)) if rows is None else rows
    return [(row.id, row.key, content_of(row.read)) for row in source.rows(wanted)]


def assert_is_as_on_disk(there, here):
    """A source at an address gives the rows of the same files on this disk: all, some, and one by one."""
    assert there.fingerprint == here.fingerprint
    assert there.class_names == here.class_names
    assert there.skipped == here.skipped
    assert seen(there) == seen(here)
    some = np.array([2, 3, 11])
    assert seen(there, some) == seen(here, some)
    for row in range(9):
        assert content_of(partial(there.read, row)) == content_of(partial(here.read, row))


def assert_requests_are_few(images, tars, faults):
    """One for each image, and one for the neighbors in each of two tar files."""
    faults.asked.clear()
    seen(images)
    assert len(faults.asked) == len(images) - 1  # none for the empty one
    faults.asked.clear()
    seen(tars)
    assert len(faults.asked) == 2


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
