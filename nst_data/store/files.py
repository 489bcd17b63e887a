"""Files and folders that appear whole or not at all: hashed as they are written, fsynced, then renamed.

Calls to fsync that a file system does not support are skipped. All that a store requires is that moving a folder to a new name fails if
another folder is there (`move_unless_exists`): this is how processes agree on who was first. No locks, permissions or hard links are
needed.
"""

import contextlib
import errno
import hashlib
import os
import platform
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import psutil

from nst_data.errors import NstError, UsageError
from nst_data.store.manifest import SealedFile

_INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # the number of the space of process ids that Linux begins with
_ABANDONED_SECONDS = 600
_OLD_DOWNLOAD_SECONDS = 24 * 3600
_DISCARD_PREFIX = ".discarded."
_FSYNC_UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EBADF)


def _pid_namespace() -> str:
    try:
        space = os.stat("/proc/self/ns/pid").st_ino
    except OSError:  # only Linux has namespaces of process ids
        space = _INITIAL_PID_NAMESPACE
    return (platform.node() or "localhost") + (f"-{space:x}" if space != _INITIAL_PID_NAMESPACE else "")


PID_NAMESPACE = _pid_namespace()
"""The scope in which a process id is unique: this machine, or this container if several share the machine's name."""


class HashedWriter:
    """A write-only file object that computes the sha256 of what is written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._bytes = 0
        self.closed = False

    def write(self, data: bytes) -> int:
        """Write and hash."""
        self._file.write(data)
        self._sha256.update(data)
        self._bytes += len(data)
        return len(data)

    def tell(self) -> int:
        """Bytes written so far."""
        return self._bytes

    def flush(self) -> None:
        """Flush the file underneath."""
        self._file.flush()

    def close(self) -> None:
        """Mark as closed; the file underneath is closed by `atomic_write`."""
        self.closed = True

    @property
    def sealed(self) -> SealedFile:
        """Hash and size of what was written."""
        return SealedFile(sha256=self._sha256.hexdigest(), bytes=self._bytes)


def temporary_path(path: Path) -> Path:
    """A temporary name for use by this process only; `clear_abandoned` recognizes it."""
    return path.with_name(f"{path.name}.{PID_NAMESPACE}.{os.getpid()}.tmp")


@contextmanager
def atomic_write(path: Path, temp_folder: Path | None = None) -> Iterator[HashedWriter]:
    """Open `path` for writing under a temporary name; it appears whole if the block succeeds, otherwise not at all.

    The folder must exist. The temporary file is next to `path`, or in the folder `temp_folder` of the same file system.
    """
    temp_path = temporary_path(
        (temp_folder or path.parent) / f".{path.name}.{secrets.token_hex(4)}"
    )  # containers may share host name and process id
    try:
        with temp_path.open("wb") as file:
            yield HashedWriter(file)
            file.flush()
            fsync(file.fileno())
        replace_file(temp_path, path)
    except BaseException:
        temp_path.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_output(path: Path, content: bytes) -> None:
    """Write a file at a path chosen by the user, whole or not at all.

    Raises UsageError if a file with other content is there: somebody may have filled it in.
    """
    if path.exists() and not (path.is_file() and path.read_bytes() == content):
        raise overwrite_error(path)
    with atomic_write(path.absolute()) as file:
        file.write(content)


def overwrite_error(path: Path) -> UsageError:
    """The error for an existing file with other content than what would be written."""
    return UsageError(f"{path}: already exists with other content and is not overwritten; name another file, or remove it")


def replace_file(source: Path, target: Path) -> None:
    """Rename a file over another one, in one step, or in two if the file system cannot replace files."""
    try:
        source.replace(target)
    except OSError:
        if not target.is_file():
            raise
        backup = temporary_path(target.with_name(f".{target.name}.{secrets.token_hex(4)}"))
        target.rename(backup)
        try:
            source.rename(target)
        except OSError:
            backup.rename(target)
            raise
        backup.unlink(missing_ok=True)


def write_text(path: Path, text: str, temp_folder: Path | None = None) -> SealedFile:
    """Write a small text file, whole or not at all."""
    with atomic_write(path, temp_folder) as file:
        file.write(text.encode())
    return file.sealed


def hash_file(path: Path) -> SealedFile:
    """sha256 and size of a file on disk."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return SealedFile(sha256=digest.hexdigest(), bytes=file.tell())


def fsync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut, if its file system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno not in _FSYNC_UNSUPPORTED:
            raise
        return
    try:
        fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Make every file and folder below `folder` survive a power cut, if its file system can."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with (Path(parent) / name).open("rb") as file:
                fsync(file.fileno())
        fsync_folder(Path(parent))


def fsync(descriptor: int) -> None:
    """Make what was written to an open file survive a power cut, if its file system can."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _FSYNC_UNSUPPORTED:
            raise


def move_unless_exists(source: Path, target: Path) -> bool:
    """Move a nonempty folder to `target` in one step. If another folder is there already, leave it where it is and return False.

    Raises NstError if the file system cannot do that.
    """
    try:
        source.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST) or target.is_dir():  # it may be gone again by now
            return False
        if error.errno == errno.EXDEV and source.parent != target.parent:
            raise _two_disks_error(source.parent, target.parent) from None
        if error.errno in (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.EXDEV, errno.EMFILE):
            raise NstError(
                f"{target.parent}: its file system cannot rename folders ({error.strerror}), which a store needs; "
                "put the store on another disk (`store`)"
            ) from None
        raise
    fsync_folder(target.parent)
    return True


def check_same_disk(source: Path, target: Path) -> None:
    """Raises NstError if folders cannot be moved from one to the other because they are on two disks; neither has to exist yet."""
    if _nearest_existing(source).stat().st_dev != _nearest_existing(target).stat().st_dev:
        raise _two_disks_error(source, target)


def _two_disks_error(source: Path, target: Path) -> NstError:
    return NstError(
        f"{target}: is on another disk than {source}, from which finished folders are moved there; "
        "keep all of a store on one disk, links included"
    )


def _nearest_existing(folder: Path) -> Path:
    """A folder, or its nearest ancestor that exists."""
    while not folder.exists():
        folder = folder.parent
    return folder


def list_names(folder: Path) -> list[str]:
    """The sorted names in a folder, except the files that macOS adds to folders that are opened in Finder or are on foreign disks."""
    return sorted(name for name in os.listdir(folder) if name != ".DS_Store" and not name.startswith("._"))


def is_writable(folder: Path) -> bool:
    """Whether this process may write into a folder, or create it if it does not exist yet."""
    return os.access(_nearest_existing(folder), os.W_OK | os.X_OK)


def discard(folder: Path) -> None:
    """Delete a folder; if interrupted, what is left has a name that only `clear_abandoned` looks for."""
    if not folder.is_dir():
        return
    with contextlib.suppress(FileNotFoundError):  # another process is discarding it too
        trash = Path(tempfile.mkdtemp(prefix=_DISCARD_PREFIX, dir=folder.parent))
        try:
            folder.rename(trash / folder.name)
        finally:
            shutil.rmtree(trash, ignore_errors=True)


def format_size(size: float) -> str:
    """A number of bytes as a phrase for users."""
    return f"about {size / 2**20:,.0f} MB" if size > 2**20 else "under 1 MB"


def space_warning(folder: Path, needed: float) -> str:
    """A clause for a message about work in a folder whose disk has fewer bytes free than needed; otherwise empty."""
    free = shutil.disk_usage(folder).free
    return f", only {free / 2**20:,.0f} MB are free" if needed > free else ""


def clear_abandoned(folder: Path, min_age_seconds: float = _ABANDONED_SECONDS) -> None:
    """Delete temporary files and folders that nobody has written to for `min_age_seconds`, of ended processes in this space of process ids.

    What an interrupted `discard` left is deleted too, whoever started it: nothing else looks for it.
    """
    for path in folder.glob(f"*.{PID_NAMESPACE}.*.tmp"):
        with contextlib.suppress(OSError, ValueError):  # another process is clearing too, this one may not, or the name is not ours
            is_gone = not psutil.pid_exists(int(path.name.split(".")[-2]))
            if is_gone and _age_seconds(path) >= min_age_seconds:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in folder.glob(f"{_DISCARD_PREFIX}*"):
        with contextlib.suppress(OSError):
            if path.is_dir() and _age_seconds(path) >= _ABANDONED_SECONDS:  # a younger one may still be about to receive its folder
                shutil.rmtree(path, ignore_errors=True)


def clear_old_downloads(folder: Path) -> None:
    """Delete temporary files of any machine below a folder that nobody has written to for a day: a pod's name never recurs."""
    for path in folder.rglob(".*.tmp"):
        with contextlib.suppress(OSError):  # another process is clearing too
            if path.is_file() and _age_seconds(path) >= _OLD_DOWNLOAD_SECONDS:
                path.unlink()


def _age_seconds(path: Path) -> float:
    return time.time() - path.stat().st_mtime
