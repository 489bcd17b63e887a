"""Standard output and error of the command: they never fail what is done.

What the terminal's encoding lacks is escaped; what nobody reads any more, or no disk takes, is dropped.
"""

import errno
import io
import os
import sys
from typing import Any

_READER_IS_GONE = errno.EPIPE  # `nst list | head -1` wants no more


class _Output(io.TextIOWrapper):
    """Text that goes nowhere once it cannot be written; `lost` is the reason."""

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
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())  # for what is still held in buffers too
        os.close(nowhere)


def open_output() -> None:
    """Make `sys.stdout` and `sys.stderr` safe for the rest of this process, also where they were closed (`>&-`)."""
    for number in range(3):  # else the next file that is opened would be standard output, and take what libraries print
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.__stdout__ = _safe(sys.stdout)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _safe(sys.stderr)  # type: ignore[misc]


def lost_output() -> str | None:
    """Why a part of standard output could not be written, None where it was or where its reader wanted no more."""
    sys.stdout.flush()
    lost: OSError | None = getattr(sys.stdout, "lost", None)
    return None if lost is None or lost.errno == _READER_IS_GONE else lost.strerror


def nowhere() -> io.TextIOWrapper:
    """What is written here is dropped."""
    return open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")


def _safe(stream: Any) -> Any:  # noqa: ANN401 - None where it was closed, anything where a program put its own
    if stream is None:
        return nowhere()
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    options: dict[str, Any] = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
    return _Output(stream.detach(), encoding=stream.encoding, errors="backslashreplace", **options)
