"""Expand file patterns: braces as in a shell and WebDataset, then `*`, `?` and `[...]`."""

import glob
import os
import re
from collections.abc import Iterator

from nst_data.errors import NstError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def is_pattern(text: str) -> bool:
    """Whether text is a pattern that may match several files."""
    return glob.has_magic(text) or any(_brace_choices(match[1]) for match in _BRACES.finditer(text))


def expand_braces(text: str) -> Iterator[str]:
    """Expand braces, innermost first: `a-{08..10}.{x,y}` yields six names. Braces without a range or a comma are literal."""
    for match in _BRACES.finditer(text):
        if choices := _brace_choices(match[1]):
            for choice in choices:
                yield from expand_braces(text[: match.start()] + choice + text[match.end() :])
            return
    yield text


def _brace_choices(content: str) -> list[str]:
    if bounds := _RANGE.fullmatch(content):
        first, last = int(bounds[1]), int(bounds[2])
        padded = any(len(bound) > 1 and bound[0] == "0" for bound in bounds.groups())
        width = max(map(len, bounds.groups())) if padded else 0
        step = 1 if first <= last else -1
        return [f"{number:0{width}d}" for number in range(first, last + step, step)]
    return content.split(",") if "," in content else []


def matching_files(text: str) -> list[str]:
    """Absolute paths of the files that match a pattern. Raises NstError if an expanded name does not exist, or nothing matches."""
    paths: set[str] = set()
    for pattern in expand_braces(text):
        files = [name for name in glob.glob(pattern, recursive=True) if os.path.isfile(name)] if glob.has_magic(pattern) else [pattern]
        for file in files:
            if not os.path.isfile(file):
                raise NstError(f"{text}: {file}: no such file")
        paths.update(os.path.abspath(file) for file in files)
    if not paths:
        raise NstError(f"{text}: expected parquet or tar files, no file matches")
    return sorted(paths)
