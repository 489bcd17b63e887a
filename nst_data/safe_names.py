"""Safe file names and table cells, derived from untrusted names."""

import re
import unicodedata
from collections.abc import Collection, Sequence

_UNSAFE_CHARACTERS = re.compile(r"[^\w.\- ]+")
_FORBIDDEN_CHARACTERS = frozenset('/\\:*?"<>|$')  # each rejected by some file system; some tools expand what follows $ as a variable
_WINDOWS_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_MAX_NAME_BYTES = 100
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
QUOTED_FORMULA = r"^'([=+\-@\t\r])"  # matches text quoted by `escape_formula`; the first group is where the original text starts


def safe_file_name(name: str) -> str:
    """The last part of a path as a file name that stays in its folder on any file system; never empty or hidden."""
    last = unicodedata.normalize("NFC", name).replace("\\", "/").rstrip("/").rpartition("/")[2]
    return _sanitize(_UNSAFE_CHARACTERS.sub("_", last))


def _sanitize(name: str) -> str:
    """A name of allowed characters, truncated, neither hidden nor reserved on Windows; never empty."""
    safe = name.strip(" .") or "_"
    stem, dot, suffix = safe.rpartition(".")
    if not dot or len(suffix) > 10:
        stem, dot, suffix = safe, "", ""
    while len((stem + dot + suffix).encode()) > _MAX_NAME_BYTES:
        stem = stem[:-1]
    safe = stem.rstrip(" .") + dot + suffix
    return f"_{safe}" if _WINDOWS_RESERVED.fullmatch(safe) else safe


def folder_names(class_names: Sequence[str], reserved_names: Collection[str] = ()) -> list[str]:
    """One folder name per class, the same as the class name except for non-printable characters and those rejected by some file system.

    Names are distinct even on file systems that ignore case, and even if class names differ only in replaced characters. None of them
    equals one of the `reserved_names`, files in the same folder.
    """
    names: list[str] = []
    used_names = set(map(fold_name, reserved_names))
    for index, name in enumerate(class_names):
        normalized = unicodedata.normalize("NFC", name)
        safe = _sanitize("".join(char if char.isprintable() and char not in _FORBIDDEN_CHARACTERS else "_" for char in normalized))
        while fold_name(safe) in used_names:
            safe = f"{safe}-{index}"
        used_names.add(fold_name(safe))
        names.append(safe)
    return names


def fold_name(name: str) -> str:
    """A common form of names that some file system considers equal: macOS ignores case and how accents are encoded."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def find_lookalike(name: str, names: Collection[str]) -> str | None:
    """One of `names` that some file system considers equal to this different name; None if there is none or `name` is among them."""
    by_folded_name = {fold_name(other): other for other in names if other != name}
    return None if name in names else by_folded_name.get(fold_name(name))


def escape_formula(text: str) -> str:
    """Text as a table cell that no spreadsheet evaluates: with a leading apostrophe if it would start a formula."""
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


def unescape_formula(cell: str) -> str:
    """The original text of a cell written by `escape_formula`."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_FORMULA_STARTS) else cell
