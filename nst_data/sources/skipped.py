"""Count files of a source that are not read but may be or contain images, so that users do not assume that they were read."""

import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping

from nst_data.utf8_names import check_utf8, escape_path

_RAW = "3fr arw cr2 cr3 crw dcr dng erf iiq kdc mef mos mrw nef nrw orf pef raf raw rw2 rwl sr2 srf srw x3f"
_OTHERS = "apng dcm dds exr fits hdr heic heics heif hif ico j2c j2k jpf jpx jxl jxr mpo pcx psd qoi svg"
_PACKED = "7z bz2 gz parquet rar tar tbz tgz txz xz zip zst"
SUFFIXES = frozenset(f".{kind}" for kind in f"{_RAW} {_OTHERS} {_PACKED}".split())
_PACKED_SUFFIXES = frozenset(f".{kind}" for kind in _PACKED.split())
_NO_IMAGES = "bib c cfg cls conf cpp css csv db doc docx h htm html ini ipynb js json jsonl key lock log mat md mp3 mp4 npy npz"
_NO_IMAGES += " pdf pkl pth ps1 pt py pyc rst safetensors sh sha256 sql sqlite srt tex toml tsv txt url wav xls xlsx xml yaml yml"
NO_IMAGES = frozenset(f".{kind}" for kind in _NO_IMAGES.split())
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ")
SNIFFED_BYTES = 16
NO_SUFFIX, OTHER_SUFFIXES, NOT_UTF8 = "without a suffix", "with other suffixes", "not named in UTF-8"
_NAMED_SUFFIX = re.compile(r"\.[a-z][a-z0-9~]{0,7}")  # other suffixes are more often numbers, dates or ends of addresses
_MAX_NAMED = 8


class Skipped:
    """Counts skipped files by suffix. `not_utf8` is the first image whose name is not UTF-8, if any."""

    not_utf8: str = ""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._unusual: Counter[str] = Counter()

    def record(self, name: str, read_start: Callable[[], bytes]) -> bool:
        """Record a file that is not read, by its name without folders. `read_start` returns its first bytes, used if the suffix is unknown.

        Returns whether it may be an image.
        """
        dot = name.rfind(".")
        suffix = name[dot:].lower() if dot > 0 else ""
        if suffix in SUFFIXES:
            self._counts[suffix] += 1
            return suffix not in _PACKED_SUFFIXES
        if suffix in NO_IMAGES or not _is_image(read_start()):
            return False
        if suffix:
            self._unusual[suffix if _NAMED_SUFFIX.fullmatch(suffix) else OTHER_SUFFIXES] += 1
        else:
            self._counts[NO_SUFFIX] += 1
        return True

    def record_not_utf8(self, path: str) -> None:
        """Record an image whose name is not UTF-8. Raises NstError if the file system encoding is not UTF-8, which may be the cause."""
        if sys.getfilesystemencoding() != "utf-8":
            check_utf8(path)
        self._counts[NOT_UTF8] += 1
        self.not_utf8 = self.not_utf8 or escape_path(path)

    def add(self, other: "Skipped") -> None:
        """Add the counts of another instance."""
        self._counts.update(other._counts)
        self._unusual.update(other._unusual)

    @property
    def counts(self) -> dict[str, int]:
        """Number of files by suffix, most frequent first; rare unusual suffixes are combined."""
        totals = self._counts.copy()
        for rank, (suffix, count) in enumerate(_by_count(self._unusual).items()):
            totals[suffix if rank < _MAX_NAMED else OTHER_SUFFIXES] += count
        return _by_count(totals)


def _by_count(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda one: (-one[1], one[0])))


def _is_image(start: bytes) -> bool:
    return (
        start.startswith(_MAGIC)
        or (start[:2] == b"BM" and start[6:10] == b"\0\0\0\0")
        or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")
        or start[4:12] in (b"ftypavif", b"ftypheic", b"ftypmif1")
    )


def describe_skipped(counts: Mapping[str, int], not_utf8: str = "") -> str:
    """What was skipped, and what to do; empty if nothing was. `not_utf8` is an example of a name that is not UTF-8."""
    if not counts:
        return ""
    total = sum(counts.values())
    kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in counts.items())
    todo = ["convert them to .jpg or .png"] if counts.keys() & SUFFIXES - _PACKED_SUFFIXES else []
    todo += ["rename images to end in .jpg or .png"] if counts.keys() - SUFFIXES - {NO_SUFFIX, NOT_UTF8} else []
    todo += ["add the missing suffixes"] if NO_SUFFIX in counts else []
    todo += ["pass archives as separate sources"] if counts.keys() & _PACKED_SUFFIXES else []
    todo += [f"rename {f'files such as {not_utf8}' if not_utf8 else 'those that are not named in UTF-8'}"] if NOT_UTF8 in counts else []
    return f"skipped {total:,} file{'s' * (total > 1)}: {kinds}; {', '.join(todo)}"
