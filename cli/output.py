"""Standard output and error of the command, which never make its work fail.

Characters that the terminal's encoding lacks are escaped; output that nobody reads any more, or that a full disk refuses, is dropped.
"""

import errno
import io
import os
import sys
from typing import Any

_READER_IS_GONE = errno.EPIPE  # as with `nst list | head -1`


class _SafeStream(io.TextIOWrapper):
    """A text stream that drops everything once it cannot be written; `lost` is the first error."""

    lost: OSError | None = None

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._drop(error)
        return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        self.lost = self.lost or error
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, self.fileno())  # also for what is still buffered
        os.close(devnull)


def open_output() -> None:
    """Make `sys.stdout` and `sys.stderr` safe for the rest of this process, even if they were closed (`>&-`)."""
    for number in range(3):  # otherwise the next file opened would become standard output, and receive what libraries print
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.__stdout__ = _safe_stream(sys.stdout)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _safe_stream(sys.stderr)  # type: ignore[misc]


def lost_output() -> str | None:
    """Why part of standard output could not be written; None if all of it was, or if its reader stopped reading."""
    sys.stdout.flush()
    error: OSError | None = getattr(sys.stdout, "lost", None)
    return None if error is None or error.errno == _READER_IS_GONE else error.strerror


def null_stream() -> io.TextIOWrapper:
    """A stream that drops whatever is written."""
    return open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")


def _safe_stream(stream: Any) -> Any:  # noqa: ANN401 - None if it was closed, anything if a program replaced it
    if stream is None:
        return null_stream()
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    options: dict[str, Any] = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
    return _SafeStream(stream.detach(), encoding=stream.encoding, errors="backslashreplace", **options)
