"""Images as bytes, and sources of every kind made of them."""

import io
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
from conftest import picture
from datasets import ClassLabel, Dataset, Features, Image


def png(label, index=0):
    file = io.BytesIO()
    picture(label, index).save(file, "PNG")
    return file.getvalue()


def write_files(folder, *names):
    """Files that hold png(0, 0), png(0, 1) and so on."""
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(0, index))
    return str(folder)


def images_and_labels(labels=(1, 0, 1)):
    """png(label, row) with ClassLabel names zebra and ant."""
    features = Features({"image": Image(), "label": ClassLabel(names=["zebra", "ant"])})
    images = [{"bytes": png(label, index), "path": None} for index, label in enumerate(labels)]
    return Dataset.from_dict({"image": images, "label": list(labels)}, features=features)


def write_table(path, row_group_size=None, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return str(path)


def tar_bytes(members):
    """A plain tar file of (name, bytes) pairs."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(members))
    return str(path)


def keys(source):
    return [source.key(row) for row in range(len(source))]


def read_contents(source, row_numbers=None):
    """The bytes of the wanted rows, all by default; in place of those that cannot be read the reason."""
    return [_content(row) for row in source.rows(range(len(source)) if row_numbers is None else row_numbers)]


def _content(row):
    try:
        return bytes(row.read())
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
