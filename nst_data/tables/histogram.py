"""Label counts by confidence, cached in the store for sealed versions, which do not change. Does not import Polars itself."""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from nst_data.store.files import write_text
from nst_data.store.manifest import json_digest
from nst_data.store.store import Store, Version

BINS = 10


@dataclass(frozen=True)
class Histogram:
    """Label counts by confidence: `images[m]` in (m/BINS, (m+1)/BINS], the first also at 0; `outside`, not a number in [0, 1]."""

    images: tuple[int, ...]
    outside: int


def bin_bounds(number: int, bins: int = BINS) -> tuple[float, float]:
    """The lower and upper end of a bin."""
    return number / bins, (number + 1) / bins


def cached_histograms(store: Store, versions: Sequence[Version], ref: str) -> list[Histogram]:
    """The confidence histogram of each version, from the cache, or counted now and cached. Errors of reading the labels name `ref`."""
    cached = [_cached_histogram(store, version) for version in versions]
    if None not in cached:
        return [entry for entry in cached if entry is not None]
    from nst_data.tables.label_tables import confidence_histograms, scan_labels  # Polars and Arrow, which take half a second to import

    counted = confidence_histograms(ref, *map(scan_labels, versions))
    for version, histogram in zip(versions, counted, strict=True):
        with contextlib.suppress(OSError):  # a store that cannot be written to
            path = _cache_path(store, version)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(asdict(histogram)))
    return counted


def _cached_histogram(store: Store, version: Version) -> Histogram | None:
    try:
        cached = json.loads(_cache_path(store, version).read_text("utf-8"))
        return Histogram(tuple(cached["images"]), cached["outside"])
    except (OSError, ValueError, KeyError, TypeError):  # not counted yet
        return None


def _cache_path(store: Store, version: Version) -> Path:
    """The cache file of a version, a new one if somebody has written to its files; those at an address are not downloaded to check."""
    files = [] if version.mirror else [version.local_folder / name for name in sorted(version.manifest.files)]
    stats = [(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for stat in (file.stat() for file in files)]
    return store.root / "runs" / "confidence" / f"{json_digest([version.manifest.digest, stats])}.json"
