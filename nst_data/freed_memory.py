"""Memory that one step frees is kept for the next: glibc returns large blocks to the system, which then clears every page anew."""

import ctypes
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_MMAP_THRESHOLD, _TOP_PAD, _TRIM_THRESHOLD = -3, -2, -1  # of glibc's malloc.h
_KEEPING = {_TOP_PAD: 2**26, _TRIM_THRESHOLD: -1}  # -1: never
_OLDER_MOST = 2**25  # the most that glibc before 2.35 takes for a threshold
_RETURNING = {_MMAP_THRESHOLD: _OLDER_MOST, _TOP_PAD: 2**17, _TRIM_THRESHOLD: 2**26}  # as glibc's own, once large blocks were freed
_DECODED = 15 * 2**20  # bytes: less than Pillow's blocks of 16 MB
_largest_kept = 0  # bytes, while memory is kept


@contextmanager
def freed_memory_kept(largest: int = 2**30) -> Iterator[None]:
    """Let glibc keep what one layer frees for the next. It returns large tensors to the system, which then clears every page anew.

    Blocks of more than `largest` bytes are returned nevertheless. Does nothing with another C library, or where the environment tunes
    malloc (`MALLOC_*` or `GLIBC_TUNABLES`, see man mallopt).
    """
    global _largest_kept
    is_tuned = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(name.startswith("MALLOC_") for name in os.environ)
    if is_tuned or platform.libc_ver()[0] != "glibc":
        yield
        return
    _tune_malloc(_KEEPING | {_MMAP_THRESHOLD: largest})
    _largest_kept = largest
    try:
        yield
    finally:
        return_freed_memory()


def return_freed_memory() -> None:
    """End `freed_memory_kept`, also in a process that was forked in it: what is free goes back to the system, and large blocks again do."""
    global _largest_kept
    if _largest_kept:
        _largest_kept = 0
        _tune_malloc(_RETURNING)
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def decoded_memory_returned() -> Iterator[None]:
    """Keep no blocks of a large image's pixels. One thread at a time may be in here.

    Pillow asks for them cleared, and memory of the system is until it is written to. Out of what was kept they would all be real, also
    for a file that claims more pixels than it has.
    """
    if _largest_kept > _DECODED:
        _tune_malloc({_MMAP_THRESHOLD: _DECODED})
    try:
        yield
    finally:
        if _largest_kept > _DECODED:
            _tune_malloc({_MMAP_THRESHOLD: _largest_kept})


def _tune_malloc(parameters: Mapping[int, int]) -> None:
    mallopt = ctypes.CDLL(None).mallopt
    for parameter, value in parameters.items():
        if not mallopt(parameter, value):
            mallopt(parameter, min(value, _OLDER_MOST))
