"""Derived columns of a view, computed once and cached: margin and entropy, hashes to look up rows by, labels of another version.

They are cached in `runs/look/` of the store as memory-mapped Arrow files, and recomputed if these are missing.
"""

import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from nst_data.inspection.label_rows import LabelRows
from nst_data.store.files import atomic_write, clear_abandoned
from nst_data.store.store import Store

_MIN_CACHED_ROWS = 200_000  # smaller tables are recomputed quickly
_MAX_PRECOMPUTED = 500_000_000  # probabilities to process before anything has asked for the result


class RowColumns:
    """Columns of the rows of a version, each computed once when it is first requested, by one thread."""

    def __init__(self, store: Store, rows: LabelRows) -> None:
        self.rows, self._folder = rows, store.root / "runs" / "look"
        self._made: dict[str, pl.DataFrame] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def is_computed(self, name: str) -> bool:
        """Whether a column has been computed already."""
        return name in self._made

    def margins_and_entropies(self) -> pl.DataFrame:
        """`margin` between the two most probable classes, and `entropy` in nats, float32."""
        return self._compute_once("soft", self._compute_margins_and_entropies)

    def key_ranks(self) -> pl.Series:
        """The rank of each row when sorted bytewise by `key`, uint32."""
        return self._compute_once("key-places", lambda: pl.DataFrame({"key": rank_texts(self.rows.read(["key"])["key"])}))["key"]

    def hashes(self) -> pl.Series:
        """The first 16 hex digits of each `image_hash` as an integer, uint64."""
        return self._compute_once("hashes", self._compute_hashes)["hash"]

    def positions_by_hash(self, hashes: Iterable[str]) -> dict[str, list[int]]:
        """The positions of each `image_hash` that occurs in the rows."""
        requested = set(hashes)
        numbers = hash_numbers(pl.Series(sorted(requested), dtype=pl.String))
        places = self.hashes().is_in(numbers.implode()).arg_true().to_list() if requested else []
        candidates = self.rows.take(places, ["image_hash"])["image_hash"].to_list() if places else []
        return grouped((hashed, place) for hashed, place in zip(candidates, places, strict=True) if hashed in requested)

    def phashes(self) -> NDArray[np.int64]:
        """The perceptual hashes of a generation's rows, int64."""
        return self._compute_once("phashes", lambda: self.rows.read(["phash"]), is_cached=False)["phash"].to_numpy()

    def labels_of(self, other: LabelRows, class_indices: NDArray[np.int64]) -> pl.DataFrame:
        """`label2` (int32, mapped by `class_indices`) and `confidence2` of the same images in another version, null where it lacks them."""
        digest = other.version.manifest.digest[:16]
        return self._compute_once(f"labels-of-{digest}", lambda: self._compute_labels_of(other, class_indices))

    def precompute(self) -> None:
        """Compute in advance what filters need, unless that is expensive."""
        self.hashes()
        width = self.rows.top_k or len(self.rows.version.manifest.class_names)
        if len(self.rows) * width <= _MAX_PRECOMPUTED:
            self.margins_and_entropies()

    def _compute_once(self, name: str, compute: Callable[[], pl.DataFrame], is_cached: bool = True) -> pl.DataFrame:
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            if name not in self._made:
                self._made[name] = self._load_or_compute(name, compute) if is_cached and len(self.rows) >= _MIN_CACHED_ROWS else compute()
            return self._made[name]

    def _load_or_compute(self, name: str, compute: Callable[[], pl.DataFrame]) -> pl.DataFrame:
        manifest = self.rows.version.manifest
        path = self._folder / f"{manifest.digest[:32]}-{len(self.rows)}-{name}.arrow"
        if (cached := _read_cached(path, len(self.rows))) is not None:
            return cached
        frame = compute()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            clear_abandoned(self._folder)
            table = frame.rechunk().to_arrow()
            with atomic_write(path) as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
        except OSError:  # full or read-only disk: keep the column in memory
            return frame
        cached = _read_cached(path, len(self.rows))
        return frame if cached is None else cached

    def _compute_margins_and_entropies(self) -> pl.DataFrame:
        margins, entropies = [np.empty(0, np.float32)], [np.empty(0, np.float32)]
        probs_column, classes = self.rows.soft_columns[-1], len(self.rows.version.manifest.class_names)
        for batch in self.rows.batches([probs_column]):
            column = batch.column(0)
            probs = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(column), -1)
            margin, entropy = margin_and_entropy(probs, classes)
            margins.append(margin)
            entropies.append(entropy)
        return pl.DataFrame({"margin": np.concatenate(margins), "entropy": np.concatenate(entropies)})

    def _compute_hashes(self) -> pl.DataFrame:
        chunks = [pl.Series(dtype=pl.UInt64)]
        for batch in self.rows.batches(["image_hash"]):
            chunks.append(hash_numbers(pl.Series(batch.column(0))))
        return pl.DataFrame({"hash": pl.concat(chunks)})

    def _compute_labels_of(self, other: LabelRows, class_indices: NDArray[np.int64]) -> pl.DataFrame:
        """Join by row number if the pool is the same, else by the first half of the hash; the other table is read once, in batches."""
        own_pool, other_pool = (rows.version.manifest.request.inputs.pool for rows in (self.rows, other))
        join_column = "id" if own_pool and other_pool and own_pool.digest == other_pool.digest else "image_hash"
        row_keys = self.rows.read(["id"])["id"].to_numpy() if join_column == "id" else self.hashes().to_numpy()
        if len(row_keys) < 2 or (row_keys[1:] > row_keys[:-1]).all():
            keys, inverse = row_keys, None
        else:
            keys, inverse = np.unique(row_keys, return_inverse=True)
        labels, confidences = np.full(len(keys), -1, np.int32), np.full(len(keys), np.nan, np.float32)
        for batch in other.batches([join_column, "label", "confidence"]):
            values = batch.column(0).to_numpy() if join_column == "id" else hash_numbers(pl.Series(batch.column(0))).to_numpy()
            positions = np.minimum(np.searchsorted(keys, values), max(len(keys) - 1, 0))
            is_match = keys[positions] == values if len(keys) else np.zeros(len(values), np.bool_)
            labels[positions[is_match]] = class_indices[np.clip(batch.column(1).to_numpy()[is_match], 0, len(class_indices) - 1)]
            confidences[positions[is_match]] = batch.column(2).to_numpy()[is_match]
        if inverse is not None:
            labels, confidences = labels[inverse], confidences[inverse]
        is_known = pl.Series(labels >= 0)
        table = pl.DataFrame({"label2": labels, "confidence2": confidences})
        return table.select(pl.when(is_known).then(pl.all()))


def margin_and_entropy(probs: NDArray[np.float32], n_classes: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Margin between the two largest probabilities, and entropy in nats, of soft labels of shape (rows, K).

    Probability missing from a row is spread evenly over the `n_classes` that are not stored.
    """
    entropy = -(probs * np.log(np.maximum(probs, 1e-12))).sum(axis=1)
    unstored, remainder = n_classes - probs.shape[1], np.clip(1 - probs.sum(axis=1), 0, 1)
    if unstored > 0:
        entropy -= remainder * np.log(np.maximum(remainder / unstored, 1e-12))
    largest = probs if probs.shape[1] > 1 else np.stack([remainder / max(unstored, 1), probs[:, 0]], axis=1)
    top = np.partition(largest, -2, axis=1)[:, -2:]
    return top[:, 1] - top[:, 0], entropy.astype(np.float32)


def hash_numbers(hashes: pl.Series) -> pl.Series:
    """The first 16 hex digits of each `image_hash` as an integer, 0 if it is not a hash."""
    return hashes.str.slice(0, 16).str.to_integer(base=16, dtype=pl.UInt64, strict=False).fill_null(0)


def grouped(pairs: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    """The positions of each hash, in the given order."""
    groups: dict[str, list[int]] = {}
    for hashed, place in pairs:
        groups.setdefault(hashed, []).append(place)
    return groups


def rank_texts(texts: pl.Series) -> pl.Series:
    """The rank of each string in bytewise order, uint32; ties keep their order."""
    return texts.rank("ordinal").cast(pl.UInt32)


def _read_cached(path: Path, n_rows: int) -> pl.DataFrame | None:
    try:
        table = pl.DataFrame(pa.ipc.open_file(pa.memory_map(str(path))).read_all())
    except (OSError, pa.ArrowException):
        return None
    return table if table.height == n_rows else None
