"""Determine the kind of a source's files from their names."""

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from nst_data.errors import UsageError
from nst_data.sources.files import IMAGE_SUFFIXES

READ_FROM_FOLDERS = frozenset([".parquet", ".tar"])
EXPECTED = (
    "expected a folder of images, tar or parquet files, a .txt, .csv or .jsonl list of images, a folder saved by datasets "
    "or owner/name on the Hub"
)
EXPECTED_AT_ADDRESS = (
    "expected at an address a folder of images, tar or parquet files, one of these, a pattern such as '*.tar', or a .txt, .csv or .jsonl "
    "list of images"
)
_PARQUET_STARTS = (b"PAR1", b"PARE")  # the latter if the footer is encrypted
_COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def kind_of(names: Sequence[str], location: str) -> Literal["tar", "parquet"]:
    """Tar if all names end in `.tar`, else parquet. Raises UsageError for compressed tar files, for images and for a mix of kinds."""
    if any(name.endswith(_COMPRESSED_TARS) for name in names):
        raise UsageError(f"{location}: compressed tar files do not allow random access; unpack it or write a plain .tar")
    if _are_all_of_kind(names, lambda suffix: suffix == ".tar", location):
        return "tar"
    if _are_all_of_kind(names, lambda suffix: suffix in IMAGE_SUFFIXES, location):
        raise UsageError(f"{location}: these are images; give their folder, or a .txt file with the path of an image on each line")
    return "parquet"


def claims_parquet(name: str, start: bytes) -> bool:
    """Whether a file, damaged or not, is parquet by its name or its first bytes."""
    return name.lower().endswith(".parquet") or start.startswith(_PARQUET_STARTS)


def not_a_source_message(file: str, expected: str) -> str:
    """The message for a file of a kind that holds no images."""
    is_yaml = file.lower().endswith((".yaml", ".yml"))
    return f"{file}: not a source of images; {expected}" + ("; if it is a recipe, run it" if is_yaml else "")


def _are_all_of_kind(names: Sequence[str], is_kind: Callable[[str], bool], location: str) -> bool:
    """Whether all files are of a kind. Raises UsageError if only some are."""
    matches = [is_kind(PurePosixPath(name).suffix.lower()) for name in names]
    if any(matches) and not all(matches):
        mismatch = names[matches.index(not matches[0])]
        raise UsageError(
            f"{location}: expected files of one kind, found {names[0]} and {mismatch}; choose one, e.g. '*{Path(mismatch).suffix}'"
        )
    return all(matches)
