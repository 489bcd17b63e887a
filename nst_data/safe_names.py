"""Names of files and cells of tables from names that strangers chose."""

import re
import unicodedata
from collections.abc import Collection, Sequence

_ODD = re.compile(r"[^\w.\- ]+")
_REFUSED = frozenset('/\\:*?"<>|$')  # by some file system; what follows $ some tools take for a variable
_OF_WINDOWS = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_MOST_BYTES = 100
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
QUOTED_FORMULA = r"^'([=+\-@\t\r])"  # what `cell` wrote, as a regular expression: the first group is where the text begins


def file_name(name: str) -> str:
    """The last part of a path as the name of a file that stays where it is put, on any file system; never empty, never hidden."""
    last = unicodedata.normalize("NFC", name).replace("\\", "/").rstrip("/").rpartition("/")[2]
    return _fitting(_ODD.sub("_", last))


def _fitting(name: str) -> str:
    """A name of allowed characters, cut to length, neither hidden nor reserved by Windows; never empty."""
    safe = name.strip(" .") or "_"
    stem, dot, suffix = safe.rpartition(".")
    if not dot or len(suffix) > 10:
        stem, dot, suffix = safe, "", ""
    while len((stem + dot + suffix).encode()) > _MOST_BYTES:
        stem = stem[:-1]
    safe = stem.rstrip(" .") + dot + suffix
    return f"_{safe}" if _OF_WINDOWS.fullmatch(safe) else safe


def folder_names(class_names: Sequence[str], others: Collection[str] = ()) -> list[str]:
    """A folder for each class, named like it except for characters that some file system rejects or that are not printable.

    Distinct also on file systems that ignore case, and where names differ in such characters only. None of them is one of the `others`,
    files in the same folder.
    """
    names: list[str] = []
    taken = set(map(folded, others))
    for index, name in enumerate(class_names):
        signs = unicodedata.normalize("NFC", name)
        safe = _fitting("".join(sign if sign.isprintable() and sign not in _REFUSED else "_" for sign in signs))
        while folded(safe) in taken:
            safe = f"{safe}-{index}"
        taken.add(folded(safe))
        names.append(safe)
    return names


def folded(name: str) -> str:
    """One form of all names that some file system takes for one: macOS tells neither case nor how an accent is encoded."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def mistaken_for(name: str, names: Collection[str]) -> str | None:
    """One of the names that some file system takes for this one, which it is not; None where the name is among them."""
    others = {folded(other): other for other in names if other != name}
    return None if name in names else others.get(folded(name))


def cell(text: str) -> str:
    """Text as a cell that no spreadsheet runs as a formula: behind an apostrophe where it begins as one does."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def without_quote(cell: str) -> str:
    """The text of a cell that `cell` wrote."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_FORMULA) else cell
