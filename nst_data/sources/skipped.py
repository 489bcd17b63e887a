"""Files beside the images of a source that are not read and may be images, or hold some: counted, so that nobody takes them for read."""

from collections import Counter
from collections.abc import Callable, Mapping

_RAW = "3fr arw cr2 cr3 crw dcr dng erf iiq kdc mef mos mrw nef nrw orf pef raf raw rw2 rwl sr2 srf srw x3f"
_OTHERS = "apng dds exr hdr heic heics heif hif ico j2c j2k jpf jpx jxl jxr mpo pcx psd qoi svg"
_PACKED = "7z bz2 gz parquet rar tar tbz tgz txz xz zip zst"
SUFFIXES = frozenset(f".{kind}" for kind in f"{_RAW} {_OTHERS} {_PACKED}".split())
_IS_PACKED = frozenset(f".{kind}" for kind in _PACKED.split())
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ")
LOOKED_AT_BYTES = 16
NO_SUFFIX = "without a suffix"


class Skipped:
    """Counts such files by their suffix."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def see(self, name: str, start: Callable[[], bytes]) -> bool:
        """A file that is not read: its name without folders; `start` gives its first bytes, which decide where it has no suffix.

        True where it may be an image.
        """
        dot = name.rfind(".")
        suffix = name[dot:].lower() if dot > 0 else ""
        if suffix in SUFFIXES:
            self._counts[suffix] += 1
            return suffix not in _IS_PACKED
        if not suffix and _is_image(start()):
            self._counts[NO_SUFFIX] += 1
            return True
        return False

    @property
    def counts(self) -> dict[str, int]:
        """Files by suffix, the most frequent first."""
        return dict(sorted(self._counts.items(), key=lambda one: (-one[1], one[0])))


def _is_image(start: bytes) -> bool:
    return (
        start.startswith(_MAGIC)
        or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")
        or start[4:12] in (b"ftypavif", b"ftypheic", b"ftypmif1")
    )


def phrase(counts: Mapping[str, int]) -> str:
    """What was skipped, and what to do; empty where nothing was."""
    if not counts:
        return ""
    total = sum(counts.values())
    kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in counts.items())
    todo = ["convert them, as to .jpg or .png"] if counts.keys() - _IS_PACKED - {NO_SUFFIX} else []
    todo += ["add the suffixes that are missing"] if NO_SUFFIX in counts else []
    todo += ["name packed files as a source of their own"] if counts.keys() & _IS_PACKED else []
    return f"skipped {total:,} file{'s' * (total > 1)}: {kinds}; {', '.join(todo)}"
