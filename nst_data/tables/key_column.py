"""A column of a table that someone else wrote, which gives the key of a pool's image in each row."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nst_data.errors import NstError
from nst_data.sources import Source
from nst_data.sources.files import IMAGE_SUFFIXES
from nst_data.sources.keys import match_keys
from nst_data.sources.listing import PIECE
from nst_data.sources.source import RowIndices

IMAGE_HASH = "image_hash"  # a column that names images by their content


@dataclass(frozen=True)
class MatchedRows:
    """The rows of the labeled images, in pool order: their increasing row numbers in the pool, and their row numbers in the table."""

    in_pool: RowIndices
    in_table: RowIndices


@dataclass(frozen=True)
class _Comparison:
    """The result of a way of comparing keys: how many rows match no image, and the first of these; else a row that may match two images."""

    method: str
    n_missing: int
    row: int
    ambiguous_rows: tuple[int, int] = (0, 0)  # rows of the pool


class KeyColumn:
    """The column of a table that names an image of a pool in each row."""

    def __init__(self, table: Source, name: str) -> None:
        self._table, self._name = table, name
        self.matched_by = ""  # how images were found whose keys are not keys of the pool

    def pieces(self) -> Iterator[pa.Array]:
        """Yield all keys in order, in pieces. Raises NstError for anything that is not a key."""
        start = 0
        for batch in self._table.columns([self._name]):
            keys = batch.column(0)
            value_type = keys.type.value_type if pa.types.is_dictionary(keys.type) else keys.type
            if not (pa.types.is_string(value_type) or pa.types.is_large_string(value_type) or pa.types.is_integer(value_type)):
                raise NstError(f"{self._table.location}: column `{self._name}` is {keys.type}, expected texts: keys of images in the pool")
            if keys.null_count:
                row = self._table.key(start + int(keys.is_null().to_numpy(zero_copy_only=False).argmax()))
                raise NstError(
                    f"{self._table.location}: column `{self._name}` of row {row!r} is empty, expected the key of an image in the pool"
                )
            yield keys.cast(pa.large_string())
            start += len(keys)

    def digest(self) -> str:
        """The sha256 of all keys."""
        sha256 = hashlib.sha256()
        for piece in self.pieces():
            sha256.update("".join(f"{key}\0" for key in piece.to_pylist()).encode())
        return sha256.hexdigest()

    def match_rows(self, pool: Source) -> MatchedRows:
        """The rows in pool order. Raises NstError for images that the pool lacks, and for one that is in the table twice.

        Keys that are not keys of the pool may be paths from elsewhere: they are compared in the first way by which each matches one image.
        """
        pool_rows = np.empty(len(self._table), np.int64)
        if self._name == IMAGE_HASH:
            pool.find_by_hash(self.pieces, self.pieces, pool_rows)
        elif not pool.try_find_all(self.pieces, pool_rows):
            self.matched_by = self._match_partially(pool, pool_rows)
            if not self.matched_by:
                raise self._no_match_error(pool)
        order = np.argsort(pool_rows, kind="stable")
        ordered = pool_rows[order]
        repeats = np.flatnonzero(ordered[1:] == ordered[:-1])
        if len(repeats):
            first, second = (self._table.key(int(row)) for row in order[repeats[0] : repeats[0] + 2])
            key = pool.key(int(ordered[repeats[0]]))
            raise NstError(f"{self._table.location}: rows {first!r} and {second!r} both name the image {key!r}; expected one row for each")
        return MatchedRows(ordered, order)

    @property
    def remarks(self) -> list[str]:
        """What users should know about how images were found."""
        return [f"the images of column `{self._name}` are found by {self.matched_by}"] if self.matched_by else []

    def _match_partially(self, pool: Source, pool_rows: NDArray[np.int64]) -> str:
        """How the images were found by less than their keys, as a phrase for users; empty if they were not."""
        for method, normalize in self._key_normalizers(pool):
            if pool.try_find_all(self.pieces, pool_rows, normalize):
                return method
        below_first = partial(pc.replace_substring_regex, pattern="^[^/]*/", replacement="")  # the pool's images sorted into class folders
        is_found = pool.try_find_all(lambda: map(below_first, self.pieces()), pool_rows) and len(np.unique(pool_rows)) == len(pool_rows)
        return "path below the first folder" if is_found else ""

    def _no_match_error(self, pool: Source) -> NstError:
        """The error about keys that match no image of the pool, or more than one, by the way of comparing that finds most."""
        best = self._compare_keys("key", pool, None)
        for method, normalize in self._key_normalizers(pool):
            if (comparison := self._compare_keys(method, pool, normalize)).n_missing < best.n_missing:
                best = comparison
        column, rows, row = f"{self._table.location}: column `{self._name}`", len(self._table), self._table.key(best.row)
        example = f"{self._key_of(best.row)!r} in row {row!r}"
        expected = f"expected paths in it or their file names, such as {pool.key(0)!r}"
        if best.n_missing:
            matched, verb = rows - best.n_missing, "are" if best.n_missing > 1 else "is"
            remainder = f"; the other {matched:,} {'are' if matched > 1 else 'is'} found by {best.method}" if matched else ""
            return NstError(
                f"{column}: {best.n_missing:,} of its {rows:,} images {verb} not in {pool.location}, such as {example}{remainder}; "
                f"{expected}; drop such rows, or give another `pool`"
            )
        first, second = best.ambiguous_rows
        return NstError(
            f"{column} names images by {best.method}, and {self._key_of(best.row)!r} may be {pool.key(first)!r} or {pool.key(second)!r} of "
            f"{pool.location}; expected paths in it, such as {pool.key(first)!r}"
        )

    def _compare_keys(self, method: str, pool: Source, normalize: Callable[[pa.Array], pa.Array] | None) -> "_Comparison":
        rows = np.empty(len(self._table), np.int64)
        pool.try_find_all(self.pieces, rows, normalize)
        missing = rows < 0
        if missing.any() or normalize is None:
            return _Comparison(method, int(missing.sum()), int(missing.argmax()))
        table_rows = np.empty(len(pool), np.int64)
        match_keys(map(normalize, _pool_keys(pool)), map(normalize, self.pieces()), table_rows)
        order = np.argsort(table_rows, kind="stable")
        repeat = np.flatnonzero((table_rows[order[1:]] == table_rows[order[:-1]]) & (table_rows[order[1:]] >= 0))[0]
        return _Comparison(method, 0, int(table_rows[order[repeat]]), (int(order[repeat]), int(order[repeat + 1])))

    def _key_of(self, row: int) -> str:
        for piece in self.pieces():
            if row < len(piece):
                return str(piece[row].as_py())
            row -= len(piece)
        raise IndexError(row)

    def _key_normalizers(self, pool: Source) -> Iterator[tuple[str, Callable[[pa.Array], pa.Array]]]:
        """Yield which part of a key may be compared, as a phrase for users, and a function that extracts it."""
        folders = [f"{pool.location}/", self._shared_folder()]
        below = _pattern_remover(f"^(?:{'|'.join(re.escape(folder) for folder in folders if folder)}|(?:\\./)+)")
        suffix, all_folders = _pattern_remover(r"\.[^./\\:]*$"), _pattern_remover(r"^.*[/\\:]")
        image_suffix = _pattern_remover(
            rf"(?i)(?:{'|'.join(map(re.escape, sorted(IMAGE_SUFFIXES)))})$"
        )  # a name without it may still contain dots
        yield "path below the folder", below
        yield "path without suffix", lambda keys: image_suffix(below(keys))
        yield "path without suffix", lambda keys: suffix(below(keys))
        yield "file name", all_folders
        yield "file name without suffix", lambda keys: image_suffix(all_folders(keys))
        yield "file name without suffix", lambda keys: suffix(all_folders(keys))

    def _shared_folder(self) -> str:
        """The folder that all keys begin with, with a trailing slash; empty if there is none."""
        ends = [end.as_py() for piece in self.pieces() if len(piece) for end in (pc.min(piece), pc.max(piece))]
        try:
            shared = os.path.commonpath([os.path.dirname(key) for key in ends])
        except ValueError:  # both relative and absolute keys
            return ""
        return shared and f"{shared.rstrip('/')}/"


def _pool_keys(pool: Source) -> Iterator[pa.Array]:
    for start in range(0, len(pool), PIECE):
        yield pa.array([pool.key(row) for row in range(start, min(start + PIECE, len(pool)))], pa.large_string())


def _pattern_remover(pattern: str) -> Callable[[pa.Array], pa.Array]:
    """Remove matches from keys and compose letters with accents, which macOS and some archives write as two characters."""
    return lambda keys: pc.utf8_normalize(pc.replace_substring_regex(keys, pattern, ""), form="NFC")
