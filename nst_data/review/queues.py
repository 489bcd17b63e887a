"""Queues of images for people to look at, and suspicion scores of labels: files next to the answers, read by the review page."""

import io
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import polars as pl

from nst_data.errors import NstError, UsageError
from nst_data.safe_names import find_lookalike
from nst_data.store.files import atomic_write
from nst_data.store.store import Store, check_name

PICK_COLUMNS = {
    "image_hash": pl.String,
    "key": pl.String,
    "label": pl.String,
    "confidence": pl.Float32,
    "by": pl.String,
    "score": pl.Float32,
    "seen_in": pl.String,  # version the images were picked from; null for labeled images and in queues of older releases
}
LABELED = "labeled"  # used instead of a version for labeled images


@dataclass(frozen=True)
class Queue:
    """Picks kept under a name."""

    name: str
    path: Path

    def __len__(self) -> int:
        return int(_scan(self.path).select(pl.len()).collect().item())

    def rows(self) -> pl.DataFrame:
        """The picks with `PICK_COLUMNS`, in the order in which to look at them. Raises NstError if the file is damaged."""
        return _read_picks(self.path)


def list_queues(store: Store, corpus: str) -> list[Queue]:
    """The queues of a corpus, sorted by name."""
    paths = _folder(store, corpus, "queues").glob("[!.]*.parquet")  # skips the `._NAME` files that macOS adds on foreign file systems
    complete = (Queue(path.stem, path) for path in paths if path.stat().st_size)  # an empty file is still being written
    return sorted(complete, key=lambda queue: queue.name)


def read_queue(store: Store, corpus: str, name: str) -> Queue:
    """The queue with the given name. Raises UsageError if there is none."""
    for queue in list_queues(store, corpus):
        if queue.name == name:
            return queue
    names = ", ".join(queue.name for queue in list_queues(store, corpus)) or "none"
    raise UsageError(f"queue {name!r}: expected one of {corpus}'s queues, there is {names}")


def save_queue(store: Store, corpus: str, picks: pl.DataFrame, name: str | None = None) -> str:
    """Keep picks as a queue and return its name: `name`, or else how they were picked, plus a number if that name is taken.

    Identical picks are kept only once. Raises UsageError if the queue `name` exists with other picks.
    """
    by_name = {queue.name: queue for queue in list_queues(store, corpus)}
    base = check_name(name) if name is not None else str(picks["by"][0])
    for number in count(1):
        candidate = base if number == 1 else f"{base}-{number}"
        stored_name = find_lookalike(candidate, by_name) or candidate
        if stored_name not in by_name:
            if _write_new(store, corpus, candidate, picks):
                return candidate
            if name is None:
                continue
            raise UsageError(f"queue {name!r}: another process is writing it; run this again, or delete {_queue_file(store, corpus, name)}")
        if stored_name == candidate and _are_equal(by_name[candidate].rows(), _with_all_columns(picks)):
            return candidate
        if name is not None:
            conflict = "one of that name" if stored_name == name else f"{stored_name!r}, on some file systems the same name,"
            raise UsageError(f"queue {name!r}: {corpus} has {conflict} with other images; choose another `queue`")
    raise AssertionError("one of the names is free")


def _are_equal(stored: pl.DataFrame, picks: pl.DataFrame) -> bool:
    """Whether two tables hold the same picks, ignoring `seen_in` if it is unknown for the kept ones."""
    unknown = ["seen_in"] if stored["seen_in"].null_count() == len(stored) else []
    return stored.drop(unknown).equals(picks.drop(unknown))


def _with_all_columns(picks: pl.DataFrame) -> pl.DataFrame:
    """Add a null `seen_in` column if missing, and put the columns in the order of `PICK_COLUMNS`."""
    missing = {"seen_in": pl.lit(None, pl.String)} if "seen_in" not in picks.columns else {}
    return picks.with_columns(**missing).select(list(PICK_COLUMNS))


def as_parquet(table: pl.DataFrame) -> bytes:
    """A table serialized as parquet."""
    file = io.BytesIO()
    table.write_parquet(file)
    return file.getvalue()


def _write_new(store: Store, corpus: str, name: str, picks: pl.DataFrame) -> bool:
    """Write a new queue; False if another process has claimed the name. An empty file serves as the claim until it is replaced."""
    path, content = _queue_file(store, corpus, name), as_parquet(_with_all_columns(picks))
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    try:
        with atomic_write(path) as file:
            file.write(content)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return True


def save_suspicion(store: Store, corpus: str, version: str, suspicion: pl.DataFrame) -> None:
    """Keep the probability that each label of a version is wrong: `image_hash` and `suspicion`, float32 in [0, 1]."""
    path = _suspicion_file(store, corpus, version)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(as_parquet(suspicion.select("image_hash", "suspicion")))


def load_suspicion(store: Store, corpus: str, version: str) -> pl.LazyFrame | None:
    """The scores kept by `save_suspicion` for a version, such as `gen-2`, or for labeled images (`LABELED`); None if there are none."""
    path = _suspicion_file(store, corpus, version)
    return pl.scan_parquet(path, glob=False) if path.is_file() else None


def _suspicion_file(store: Store, corpus: str, version: str) -> Path:
    return _folder(store, corpus, "scores") / f"{version}.suspicion.parquet"


def _queue_file(store: Store, corpus: str, name: str) -> Path:
    return _folder(store, corpus, "queues") / f"{name}.parquet"


def _folder(store: Store, corpus: str, kind: str) -> Path:
    return store.root / "reviews" / check_name(corpus) / kind


def _scan(path: Path) -> pl.LazyFrame:
    return pl.scan_parquet(path, glob=False)


def _read_picks(path: Path) -> pl.DataFrame:
    try:
        return _with_all_columns(_scan(path).collect())
    except (pl.exceptions.PolarsError, OSError):
        raise NstError(f"{path}: expected a queue of images, found it damaged; delete it and pick again") from None
