"""What a tar file holds, from its headers alone, and where it is damaged."""

import io
import tarfile
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO, NamedTuple

from nst_data.errors import NstError, UsageError
from nst_data.sources.files import has_image_suffix
from nst_data.sources.pairing import is_class
from nst_data.sources.skipped import LOOKED_AT_BYTES, Skipped
from nst_data.utf8_names import is_utf8

_END_BYTES = 2**20  # zeros that a packer may fill its last record with
_MOST_DOCUMENT_BYTES = 2**24
_MOST_BYTES = 2**62  # headers may claim more, which no column holds
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Member(NamedTuple):
    """An image or the class of one: `size` bytes at `offset`, or a problem in their place; or only the name of an image that is skipped."""

    name: str
    offset: int
    size: int
    problem: str | None = None
    is_skipped: bool = False
    is_end: bool = False  # what is said of the rest of a damaged file


def members(path: str, file: BinaryIO, skipped: Skipped | None = None) -> Iterator[Member]:
    """Images and .cls files of a tar file, in its order; hidden ones are left out. `skipped` sees the others, and chooses those that come.

    `file` is the open file, which others may move between two members.

    Where the file does not end as a tar file does, one more member `@<byte offset>` says so: what followed is not known.
    Raises UsageError for a tar file that is compressed, or stores an image with holes.
    """
    length = file.seek(0, io.SEEK_END)
    file.seek(0)
    _refuse_compressed(path, file)
    tar, position = _open(file), 0
    while tar is not None and (info := _next(tar)) is not None and tar.offset > position:
        position = tar.offset
        if skipped is not None and _is_wanted(info) and not is_class(info.name) and not is_utf8(info.name):
            skipped.see_not_utf8(f"{path}:{info.name}")
            yield Member(info.name, info.offset_data, 0, is_skipped=True)
        elif _is_wanted(info):
            if info.issparse():
                raise UsageError(f"{path}: {info.name} is stored with holes (sparse); unpack it and pack it without --sparse")
            yield Member(info.name, info.offset_data, min(info.size, _MOST_BYTES), _problem(info))
        elif skipped is not None and _is_seen(skipped, file, info):
            yield Member(info.name, info.offset_data, 0, is_skipped=True)
    end = min(position, length)
    if problem := _unfinished(file, end, cut=position > length):
        yield Member(f"@{end}", end, 0, problem, is_end=True)


def documents(file: BinaryIO) -> Iterator[tuple[str, bytes | None]]:
    """Name and content of the .json members of a tar file, in its order, as far as it is whole; None for one of many megabytes."""
    tar = _open(file)
    while tar is not None and (info := _next(tar)) is not None:
        if info.isreg() and not _is_hidden(info) and info.name.lower().endswith(".json"):
            file.seek(info.offset_data)
            yield info.name, file.read(info.size) if info.size <= _MOST_DOCUMENT_BYTES else None


def _refuse_compressed(path: str, file: BinaryIO) -> None:
    start = file.read(6)
    file.seek(0)
    for magic, name in _COMPRESSED.items():
        if start.startswith(magic):
            raise UsageError(f"{path}: compressed with {name}, which does not allow random access; unpack it or write a plain .tar")


def _open(file: BinaryIO) -> tarfile.TarFile | None:
    try:
        return tarfile.TarFile(fileobj=file)
    except NstError:
        raise
    except Exception:  # as below
        return None


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The next member; None at the end and at damage, where tarfile raises anything or ends as if all were well.

    Raises NstError where the file cannot be read at its address.
    """
    try:
        info = tar.next()
    except NstError:
        raise
    except Exception:
        return None
    tar.members.clear()  # type: ignore[attr-defined] # it would keep all of them
    return info


def _is_wanted(info: tarfile.TarInfo) -> bool:
    name = info.name.rpartition("/")[2]
    return not _is_hidden(info) and not info.isdir() and (has_image_suffix(name) or is_class(name))


def _is_seen(skipped: Skipped, file: BinaryIO, info: tarfile.TarInfo) -> bool:
    return info.isreg() and not _is_hidden(info) and skipped.see(info.name.rpartition("/")[2], partial(_start, file, info))


def _is_hidden(info: tarfile.TarInfo) -> bool:
    *folders, name = info.name.split("/")
    return name.startswith(".") or any(folder.startswith(".") and folder not in (".", "..") for folder in folders)


def _start(file: BinaryIO, info: tarfile.TarInfo) -> bytes:
    file.seek(info.offset_data)
    return file.read(min(info.size, LOOKED_AT_BYTES))


def _problem(info: tarfile.TarInfo) -> str | None:
    if info.islnk() or info.issym():
        return f"a link to {info.linkname!r}, which holds no bytes itself"
    if not info.isreg():
        return "not a file"
    return None


def _unfinished(file: BinaryIO, position: int, cut: bool) -> str | None:
    """What is wrong with the end of a tar file: after its last member there are zeros, or nothing."""
    file.seek(position)
    rest = file.read(_END_BYTES + 1)
    if cut or any(rest[: tarfile.BLOCKSIZE]) or (not rest and position == 0):
        return f"the tar file is damaged from byte {position:,} on; what followed is lost"
    if len(rest) > _END_BYTES or any(rest):
        return f"the tar file ends at byte {position:,}, what follows its end mark is lost; unpack joined tar files one by one"
    return None
