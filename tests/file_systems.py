"""File systems that lack what Linux's own have: exFAT, FAT, many network disks, buckets that are mounted as folders."""

import errno
import fcntl
import os
import stat
from pathlib import Path

LACKING = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)


def without_links_locks_and_times(patch, number: int) -> None:
    """Have hard and symbolic links, locks, permissions, file times and fsync of folders fail, for a test, with an error number."""

    def refused(*where, **_):
        raise OSError(number, os.strerror(number), *where[:1])

    whole = os.fsync

    def fsync(descriptor):
        return refused() if stat.S_ISDIR(os.fstat(descriptor).st_mode) else whole(descriptor)

    for name in ("link", "symlink", "chmod", "fchmod", "utime"):
        patch.setattr(os, name, refused)
    for name in ("symlink_to", "hardlink_to", "chmod"):
        patch.setattr(Path, name, refused)
    for name in ("flock", "lockf"):
        patch.setattr(fcntl, name, refused)
    patch.setattr(os, "fsync", fsync)


def without_renames_of_folders(patch, number: int) -> None:
    """Have a folder keep its name, as in a bucket without folders."""
    whole = Path.rename

    def rename(self, target):
        if self.is_dir():
            raise OSError(number, os.strerror(number), str(self), None, str(target))
        return whole(self, target)

    patch.setattr(Path, "rename", rename)
