"""On the path of a process it takes away what Linux alone has, in its workers too, and says by which method they start."""

import builtins
import multiprocessing
import os
import pathlib
import signal
import sys


def take_away(delete=delattr):
    """Functions that macOS lacks, file locks, and for our own modules /proc and /dev/shm; psutil reads what it does on this system."""
    for module, names in {os: ("sched_getaffinity", "posix_fadvise"), signal: ("sigwaitinfo", "sigtimedwait")}.items():
        for name in names:
            delete(module, name)


if method := os.environ.get("START_METHOD"):
    take_away()
    sys.modules["fcntl"] = None
    multiprocessing.set_start_method(method)
    whole = pathlib.Path.read_text, os.stat, builtins.open

    def read_text(self, *arguments, **options):
        if str(self).startswith("/proc"):
            raise FileNotFoundError(2, "No such file or directory", str(self))
        return whole[0](self, *arguments, **options)

    def stat(path, *arguments, **options):
        if str(path).startswith(("/proc/self/ns", "/dev/shm")):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return whole[1](path, *arguments, **options)

    pathlib.Path.read_text, os.stat = read_text, stat
