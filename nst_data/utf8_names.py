"""File names that are not valid UTF-8, which tables cannot store."""

import os
import sys

from nst_data.errors import NstError


def is_utf8(name: str) -> bool:
    """Whether the bytes of a name are valid UTF-8; Python reads invalid ones as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_utf8(path: str) -> None:
    """Raises NstError if a path is not valid UTF-8."""
    if is_utf8(path):
        return
    encoding = sys.getfilesystemencoding()
    remedy = "rename it" if encoding == "utf-8" else f"names are read as {encoding} here: set PYTHONUTF8=1"
    raise NstError(f"{escape_path(path)}: expected a name in UTF-8; {remedy}")


def escape_path(path: str) -> str:
    """A path as text, with escapes for bytes that are not valid UTF-8."""
    return os.fsencode(path).decode(errors="backslashreplace")
