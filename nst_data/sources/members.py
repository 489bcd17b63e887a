"""List the members of a tar file by reading only its headers, and detect where it is damaged."""

import io
import tarfile
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO, NamedTuple

from nst_data.errors import NstError, UsageError
from nst_data.sources.files import has_image_suffix
from nst_data.sources.pairing import is_class_member
from nst_data.sources.skipped import SNIFFED_BYTES, Skipped
from nst_data.utf8_names import is_utf8

_END_BYTES = 2**20  # most zero bytes with which a packer may pad the last record
_MAX_JSON_BYTES = 2**24
_MAX_BYTES = 2**62  # headers may claim more than fits into a column
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Member(NamedTuple):
    """An image or its class: `size` bytes at `offset`, or a `problem` instead; of a skipped image only the name."""

    name: str
    offset: int
    size: int
    problem: str | None = None
    is_skipped: bool = False
    is_lost_rest: bool = False  # stands for the lost rest of a damaged file


def members(path: str, file: BinaryIO, skipped: Skipped | None = None) -> Iterator[Member]:
    """Images and .cls members of a tar file in file order, without hidden ones. `skipped` counts other members that may be images.

    `file` is the open file, whose position the caller may change between two members. With `skipped`, skipped images are yielded too.

    If the file does not end like a tar file, an extra member `@<byte offset>` says so: whatever followed is lost.
    Raises UsageError for a compressed tar file, or an image stored with holes (sparse).
    """
    length = file.seek(0, io.SEEK_END)
    file.seek(0)
    _check_uncompressed(path, file)
    tar, position = _open(file), 0
    while tar is not None and (info := _next_member(tar)) is not None and tar.offset > position:
        position = tar.offset
        if skipped is not None and _is_image_or_class(info) and not is_class_member(info.name) and not is_utf8(info.name):
            skipped.record_not_utf8(f"{path}:{info.name}")
            yield Member(info.name, info.offset_data, 0, is_skipped=True)
        elif _is_image_or_class(info):
            if info.issparse():
                raise UsageError(f"{path}: {info.name} is stored with holes (sparse); unpack it and pack it without --sparse")
            yield Member(info.name, info.offset_data, min(info.size, _MAX_BYTES), _problem(info))
        elif skipped is not None and _is_skipped_image(skipped, file, info):
            yield Member(info.name, info.offset_data, 0, is_skipped=True)
    end = min(position, length)
    if problem := _end_problem(file, end, is_cut=position > length):
        yield Member(f"@{end}", end, 0, problem, is_lost_rest=True)


def documents(file: BinaryIO) -> Iterator[tuple[str, bytes | None]]:
    """Name and content of the .json members of a tar file in file order, up to any damage; the content of one above 16 MB is None."""
    tar = _open(file)
    while tar is not None and (info := _next_member(tar)) is not None:
        if info.isreg() and not _is_hidden(info) and info.name.lower().endswith(".json"):
            file.seek(info.offset_data)
            yield info.name, file.read(info.size) if info.size <= _MAX_JSON_BYTES else None


def _check_uncompressed(path: str, file: BinaryIO) -> None:
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
    except Exception:  # damage, as in `_next_member`
        return None


def _next_member(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The next member; None at the end, and at damage, for which tarfile raises various errors or silently stops.

    Raises NstError if a file at an address cannot be read.
    """
    try:
        info = tar.next()
    except NstError:
        raise
    except Exception:
        return None
    tar.members.clear()  # type: ignore[attr-defined] # tarfile would keep all of them
    return info


def _is_image_or_class(info: tarfile.TarInfo) -> bool:
    name = info.name.rpartition("/")[2]
    return not _is_hidden(info) and not info.isdir() and (has_image_suffix(name) or is_class_member(name))


def _is_skipped_image(skipped: Skipped, file: BinaryIO, info: tarfile.TarInfo) -> bool:
    return info.isreg() and not _is_hidden(info) and skipped.record(info.name.rpartition("/")[2], partial(_first_bytes, file, info))


def _is_hidden(info: tarfile.TarInfo) -> bool:
    *folders, name = info.name.split("/")
    return name.startswith(".") or any(folder.startswith(".") and folder not in (".", "..") for folder in folders)


def _first_bytes(file: BinaryIO, info: tarfile.TarInfo) -> bytes:
    file.seek(info.offset_data)
    return file.read(min(info.size, SNIFFED_BYTES))


def _problem(info: tarfile.TarInfo) -> str | None:
    if info.islnk() or info.issym():
        return f"a link to {info.linkname!r}, which holds no bytes itself"
    if not info.isreg():
        return "not a file"
    return None


def _end_problem(file: BinaryIO, position: int, is_cut: bool) -> str | None:
    """What is wrong with the end of a tar file, if anything: only zeros, or nothing, may follow the last member."""
    file.seek(position)
    rest = file.read(_END_BYTES + 1)
    if is_cut or any(rest[: tarfile.BLOCKSIZE]) or (not rest and position == 0):
        return f"the tar file is damaged from byte {position:,} on; what followed is lost"
    if len(rest) > _END_BYTES or any(rest):
        return f"the tar file ends at byte {position:,}, what follows its end mark is lost; unpack joined tar files one by one"
    return None
