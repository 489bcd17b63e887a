"""Keep freed memory for reuse: glibc returns large blocks to the system, which then has to clear every page again."""

import ctypes
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_MMAP_THRESHOLD, _TOP_PAD, _TRIM_THRESHOLD = -3, -2, -1  # from glibc's malloc.h
_KEEP_PARAMETERS = {_TOP_PAD: 2**26, _TRIM_THRESHOLD: -1}  # -1: never
_OLD_GLIBC_MAX_THRESHOLD = 2**25  # the largest threshold that glibc before 2.35 accepts
_RETURN_PARAMETERS = {
    _MMAP_THRESHOLD: _OLD_GLIBC_MAX_THRESHOLD,
    _TOP_PAD: 2**17,
    _TRIM_THRESHOLD: 2**26,
}  # as glibc itself does once large blocks were freed
_PIXEL_BLOCK_BYTES = 15 * 2**20  # bytes, just below the 16 MB blocks that Pillow allocates
_largest_kept = 0  # bytes; 0 unless memory is being kept


@contextmanager
def keep_freed_memory(max_block_bytes: int = 2**30) -> Iterator[None]:
    """Let glibc keep what one layer frees for the next, instead of returning large tensors to the system, which clears every page again.

    Blocks of more than `max_block_bytes` bytes are returned nevertheless. Does nothing with another C library, or if the environment tunes
    malloc (`MALLOC_*` or `GLIBC_TUNABLES`, see man mallopt).
    """
    global _largest_kept
    is_tuned = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(name.startswith("MALLOC_") for name in os.environ)
    if is_tuned or platform.libc_ver()[0] != "glibc":
        yield
        return
    _tune_malloc(_KEEP_PARAMETERS | {_MMAP_THRESHOLD: max_block_bytes})
    _largest_kept = max_block_bytes
    try:
        yield
    finally:
        return_freed_memory()


def return_freed_memory() -> None:
    """End `keep_freed_memory`, even in a process forked within it: return free memory to the system, now and for future large blocks."""
    global _largest_kept
    if _largest_kept:
        _largest_kept = 0
        _tune_malloc(_RETURN_PARAMETERS)
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def release_pixel_memory() -> Iterator[None]:
    """Do not keep freed blocks of a large image's pixels. Only one thread at a time may be inside.

    Pillow asks for zeroed blocks. New memory from the system is zero already, and takes up no RAM until it is written to; kept memory would
    have to be cleared, and would be in use in full even for a file that claims more pixels than it has.
    """
    if _largest_kept > _PIXEL_BLOCK_BYTES:
        _tune_malloc({_MMAP_THRESHOLD: _PIXEL_BLOCK_BYTES})
    try:
        yield
    finally:
        if _largest_kept > _PIXEL_BLOCK_BYTES:
            _tune_malloc({_MMAP_THRESHOLD: _largest_kept})


def _tune_malloc(parameters: Mapping[int, int]) -> None:
    mallopt = ctypes.CDLL(None).mallopt
    for parameter, value in parameters.items():
        if not mallopt(parameter, value):
            mallopt(parameter, min(value, _OLD_GLIBC_MAX_THRESHOLD))
