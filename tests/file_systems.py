"""File systems that lack what Linux's own have: exFAT, FAT, many network disks, buckets that are mounted as folders."""

import errno
import fcntl
import os
import stat
from pathlib import Path

LACKING = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)


def without_links_locks_and_times(patch, number: int, below: str = "/") -> None:
    """Have links, locks, permissions, file times and fsync of folders fail with an error number, for whatever is `below` a folder."""

    def path_of(target):
        descriptor = target.fileno() if hasattr(target, "fileno") else target
        return os.readlink(f"/proc/self/fd/{descriptor}") if isinstance(descriptor, int) else os.fspath(descriptor)

    def failing_below(original, places):
        def call(*arguments, **options):
            if any(path_of(one).startswith(below) for one in arguments[:places]):
                raise OSError(number, os.strerror(number))
            return original(*arguments, **options)

        return call

    calls = {"link": 2, "symlink": 2, "chmod": 1, "fchmod": 1, "utime": 1, "flock": 1, "lockf": 1}  # how many arguments name a file
    for name, places in calls.items():
        module = fcntl if name.startswith(("fl", "lo")) else os
        patch.setattr(module, name, failing_below(getattr(module, name), places))
    whole = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) and path_of(descriptor).startswith(below):
            raise OSError(number, os.strerror(number))
        whole(descriptor)

    patch.setattr(os, "fsync", fsync)


def without_renames_of_folders(patch, number: int) -> None:
    """Have a folder keep its name, as in a bucket without folders."""
    whole = Path.rename

    def rename(self, target):
        if self.is_dir():
            raise OSError(number, os.strerror(number), str(self), None, str(target))
        return whole(self, target)

    patch.setattr(Path, "rename", rename)
