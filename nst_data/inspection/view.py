"""The rows of a version or a labeled source as a person looks at them: filtered, sorted and counted."""

import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from nst_data.errors import UsageError
from nst_data.inspection.dropped import DroppedImages
from nst_data.inspection.label_rows import LabelRows
from nst_data.inspection.ordering import first_rows
from nst_data.inspection.query import Query
from nst_data.inspection.row_columns import RowColumns, grouped, hash_numbers
from nst_data.inspection.source_rows import SourceRows
from nst_data.selection.hash_index import MAX_DISTANCE
from nst_data.store.manifest import EditionManifest, is_anonymous
from nst_data.store.parent import parent_of
from nst_data.store.store import Store, Version
from nst_data.tables.label_tables import read_errors

BINS, MAX_LABEL_CHANGES, _MAX_NEAR = 20, 30, 200
KEPT = "kept"  # the `reason` of rows that were not left out
_LARGEST_FIRST = {"-confidence", "entropy", "-suspicion"}


class View:
    """Numbered rows: first those of the table, then images that could not be labeled, then those that an edition left out.

    `compared` holds `label2` and `confidence2` of each row, from another version of the same images, once they are joined. `hashed` is set
    once the hashes of all rows are being computed in the background.
    """

    def __init__(self, store: Store, viewed: "Version | SourceRows", class_names: Sequence[str]) -> None:
        self.store, self.class_names = store, list(class_names)
        self.rows = LabelRows(viewed) if isinstance(viewed, Version) else viewed
        self.version = viewed if isinstance(viewed, Version) else None
        self.columns = RowColumns(store, self.rows) if isinstance(self.rows, LabelRows) else None
        self.frame = self._read_frame()
        self.suspicion: Future[pl.Series] | None = None
        self.compared: Future[pl.DataFrame] | None = None
        self.hashed: Future[pl.Series] | None = None
        self._lock, self._query_lock = threading.Lock(), threading.Lock()
        self._dropped: DroppedImages | None = None

    def _read_frame(self) -> pl.DataFrame:
        if isinstance(self.rows, SourceRows):
            return self.rows.frame()
        copies = ["copies"] if "copies" in self.rows.schema else []
        table = self.rows.read(["label", "confidence", *copies]).with_columns(pl.col("label").cast(pl.Int32)).rechunk()
        return table.with_columns(row=pl.arange(0, table.height, eager=True, dtype=pl.UInt32))

    @cached_property
    def errors(self) -> pl.DataFrame:
        """`id`, `key` and `reason` of the images that could not be labeled; empty for images that are not in a version yet."""
        if self.version is None:
            return pl.DataFrame(schema={"id": pl.Int64, "key": pl.String, "reason": pl.String})
        return read_errors(self.version.folder, self.version.ref)

    @property
    def dropped(self) -> DroppedImages:
        """The images that an edition left out, computed when first requested. Raises UsageError if they are unknown."""
        if self.version is None or not isinstance(self.version.manifest, EditionManifest):
            raise UsageError("reason: only an edition leaves images out")
        with self._lock:
            if self._dropped is None:
                self._dropped = DroppedImages(self.store, self.version)
            return self._dropped

    @property
    def name(self) -> str:
        """The version's reference or the source's location."""
        return self.version.ref if self.version else self.rows.source.location  # type: ignore[union-attr]

    def __len__(self) -> int:
        return self.frame.height

    @property
    def total_rows(self) -> int:
        """The number of rows of all kinds."""
        return self.first_dropped_row + (len(self._dropped) if self._dropped else 0)

    @property
    def first_dropped_row(self) -> int:
        """The number of the first row that an edition left out."""
        return len(self) + self.errors.height

    def locate(self, row: int) -> "tuple[LabelRows | SourceRows, int]":
        """The table that contains a labeled row, and the row's position in it."""
        if row < len(self):
            return self.rows, row
        return self.dropped.rows, self.dropped.positions([row - self.first_dropped_row])[0]

    def page(self, query: Query) -> tuple[int, list[int]]:
        """The total number of rows of a query, and the rows on the requested page. Raises UsageError if the view lacks what it asks for."""
        if query.only_errors:
            start = len(self) + query.offset
            return self.errors.height, list(range(start, min(start + query.limit, len(self) + self.errors.height)))
        is_dropped = query.reason not in (None, KEPT)
        rows, sort_column = self._dropped_rows(query) if is_dropped else self._selected_rows(query), self._sort_column(query)
        offset = self.first_dropped_row if is_dropped else 0
        if sort_column is None:
            total, page = pl.collect_all([rows.select(pl.len()), rows.select("row").slice(query.offset, query.limit)])
            return int(total.item()), (offset + page["row"].cast(pl.Int64)).to_list()
        with self._query_lock:  # bounds memory to that of one query, however fast a person types
            values = rows.select("row", by=sort_column).collect()
            return values.height, (offset + first_rows(values, query.sort in _LARGEST_FIRST, query.offset, query.limit)).tolist()

    def _sort_column(self, query: Query) -> str | None:
        """The column to sort by; None to keep the order of the rows."""
        sort_column = query.sort.removeprefix("-") if query.sort else None
        if sort_column == "confidence" and "confidence" not in self.frame.columns:
            return None
        return sort_column

    def _dropped_rows(self, query: Query) -> pl.LazyFrame:
        if query.near_row is not None or query.only_disagreements or query.changed_from or query.changed_to:
            raise UsageError(f"reason={query.reason}: images that were left out can be filtered by class, confidence and answers only")
        dropped = self.dropped
        rows = dropped.frame.lazy().filter(pl.col("reason") == query.reason)
        number = pl.col("row").cast(pl.Int64) + self.first_dropped_row
        if query.rows is not None:
            rows = rows.filter(number.is_in(pl.Series(query.rows, dtype=pl.Int64).implode()))
        if query.excluded_rows is not None:
            rows = rows.filter(~number.is_in(pl.Series(query.excluded_rows, dtype=pl.Int64).implode()))
        if query.sort == "-suspicion":
            raise UsageError(f"reason={query.reason}: images that were left out have no suspicion score")
        if query.sort == "key":
            rows = rows.with_columns(pl.lit(dropped.columns.key_ranks()).gather(pl.col("place")).alias("key"))
        if query.sort in ("margin", "entropy"):
            rows = rows.with_columns(pl.lit(dropped.columns.margins_and_entropies()[query.sort]).gather(pl.col("place")).alias(query.sort))
        return rows.filter(*self._conditions(query))

    def _selected_rows(self, query: Query) -> pl.LazyFrame:
        rows = self.frame.lazy()
        if query.rows is not None:
            valid = query.rows[(query.rows >= 0) & (query.rows < len(self))]
            rows = self.frame[valid.tolist()].lazy()
        if query.near_row is not None:
            rows = self.frame[self.near_duplicates(query.near_row).tolist()].lazy()
        rows = self._with_columns(rows, query).filter(*self._conditions(query))
        if query.excluded_rows is not None and len(query.excluded_rows):
            rows = rows.filter(~pl.col("row").is_in(pl.Series(query.excluded_rows, dtype=pl.UInt32).implode()))
        return rows

    def _with_columns(self, rows: pl.LazyFrame, query: Query) -> pl.LazyFrame:
        """Add columns needed by filters and sorting that the frame lacks."""
        columns: list[pl.Series] = []
        if query.sort == "key":
            columns.append(self._key_ranks)
        if query.sort in ("margin", "entropy"):
            if self.columns is None:
                raise UsageError(f"sort={query.sort}: labeled images have no soft labels")
            columns.append(self.columns.margins_and_entropies()[query.sort])
        if query.sort == "-suspicion":
            if self.suspicion is None:
                raise UsageError(f"sort=-suspicion: suspicion scores have not been computed; run `pick({self.name!r}, by='suspicion')`")
            columns.append(self.suspicion.result())
        if query.only_disagreements or query.changed_from is not None or (query.changed_to is not None):
            if self.compared is None:
                raise UsageError("there is no other version to compare with; name one as REF2")
            columns.append(self.compared.result()["label2"])
        for column in columns:
            is_whole = query.rows is None and query.near_row is None
            values = pl.lit(column) if is_whole else pl.lit(column).gather(pl.col("row"))
            rows = rows.with_columns(values.alias(column.name))
        return rows

    @property
    def _key_ranks(self) -> pl.Series:
        if isinstance(self.rows, SourceRows):
            return self.rows.key_ranks
        assert self.columns is not None  # set for every version
        return self.columns.key_ranks()

    def _conditions(self, query: Query) -> list[pl.Expr]:
        conditions = []
        if query.class_name is not None:
            conditions.append(pl.col("label") == self.class_index(query.class_name))
        if query.min_confidence is not None or query.max_confidence is not None:
            if "confidence" not in self.frame.columns:
                raise UsageError("labeled images have no confidence to filter by")
            confidence = pl.col("confidence").cast(pl.Float64)
            if query.min_confidence is not None and query.min_confidence > 0:
                conditions.append(confidence >= query.min_confidence)
            if query.max_confidence is not None and query.max_confidence < 1:
                conditions.append(confidence < query.max_confidence)
        if query.only_repeated:
            conditions.append(pl.col("copies") > 1 if "copies" in self.frame.columns else pl.lit(False))
        if query.only_disagreements:
            conditions.append(pl.col("label") != pl.col("label2"))
        if query.changed_from is not None:
            conditions.append(pl.col("label2") == self.class_index(query.changed_from))
        if query.changed_to is not None:
            conditions.append(pl.col("label") == self.class_index(query.changed_to))
        return conditions

    def class_index(self, name: str) -> int:
        """The index of a class. Raises UsageError if there is no such class."""
        try:
            return self.class_names.index(name)
        except ValueError:
            raise UsageError(f"no class {name!r}; expected one of {', '.join(self.class_names[:20])}") from None

    def near_duplicates(self, row: int) -> NDArray[np.int64]:
        """The rows whose perceptual hash is close to that of `row`, nearest first, without `row` itself."""
        hashes = self._phashes
        if hashes is None or not 0 <= row < len(self):
            return np.empty(0, np.int64)
        distances = np.bitwise_count((hashes ^ hashes[row]).view(np.uint64))
        near = np.flatnonzero(distances <= MAX_DISTANCE)
        near = near[near != row]
        nearest: NDArray[np.int64] = near[np.argsort(distances[near], kind="stable")][:_MAX_NEAR]
        return nearest

    @cached_property
    def _phashes(self) -> NDArray[np.int64] | None:
        """The perceptual hash of each row, for an edition taken from its generation. None if they are unknown."""
        if not isinstance(self.rows, LabelRows) or self.version is None or self.columns is None or is_anonymous(self.version.manifest):
            return None
        if "phash" in self.rows.schema:
            return self.columns.phashes()
        parent = parent_of(self.version, self.store)
        if parent is None or parent.manifest.kind != "generation":
            return None
        parent_rows = LabelRows(parent)
        if parent_rows.is_sample:
            return None
        hashes, ids = parent_rows.read(["phash", "id"])
        places = np.searchsorted(ids.to_numpy(), self.rows.read(["id"])["id"].to_numpy())
        phashes: NDArray[np.int64] = hashes.to_numpy()[np.minimum(places, len(ids) - 1)]
        return phashes

    def rows_of(self, hashes: Iterable[str]) -> dict[str, list[int]]:
        """The rows of each `image_hash` that occurs in the view."""
        sorted_hashes = sorted(set(hashes))
        if not sorted_hashes:
            return {}
        if isinstance(self.rows, SourceRows):
            all_hashes = self.rows.hashes
            places = all_hashes.is_in(sorted_hashes).arg_true().to_list()
            return grouped((all_hashes[place], place) for place in places)
        assert self.columns is not None
        return self.columns.positions_by_hash(sorted_hashes)

    def dropped_rows_of(self, hashes: Iterable[str]) -> dict[str, list[int]]:
        """The rows of each `image_hash` that an edition left out; none as long as nobody has asked which those are."""
        dropped = self._dropped.rows_of(hashes) if self._dropped else {}
        return {hashed: [self.first_dropped_row + row for row in rows] for hashed, rows in dropped.items()}

    @property
    def knows_dropped(self) -> bool:
        """Whether somebody has asked which images an edition left out."""
        return self._dropped is not None

    def hashes(self) -> pl.Series:
        """The hash of each row or, for a version, an integer that stands for it. Computed on first use; a source is read in full."""
        return self.rows.hashes if isinstance(self.rows, SourceRows) else self.columns.hashes()  # type: ignore[union-attr]

    @property
    def has_hashes(self) -> bool:
        """Whether `rows_of` can answer immediately."""
        return "hashes" in vars(self.rows) if isinstance(self.rows, SourceRows) else self.columns.is_computed("hashes")  # type: ignore[union-attr]

    def align_by_hash(self, hashes: pl.Series, values: pl.Series) -> pl.Series:
        """Align values given by `image_hash` with the rows, NaN where there is none."""
        row_hashes = hash_numbers(self.rows.hashes) if isinstance(self.rows, SourceRows) else self.columns.hashes()  # type: ignore[union-attr]
        numbers = hash_numbers(hashes).to_numpy()
        order = np.argsort(numbers)
        numbers, sorted_values = numbers[order], values.cast(pl.Float32).to_numpy()[order]
        if not len(numbers):
            return pl.Series(values.name, np.full(len(self), np.nan, np.float32))
        positions = np.minimum(np.searchsorted(numbers, row_hashes.to_numpy()), len(numbers) - 1)
        return pl.Series(values.name, np.where(numbers[positions] == row_hashes.to_numpy(), sorted_values[positions], np.float32(np.nan)))

    @cached_property
    def histogram(self) -> dict[str, Any] | None:
        """`edges` (21) and `counts` (20) of the confidences."""
        if "confidence" not in self.frame.columns:
            return None
        bins = (pl.col("confidence").cast(pl.Float64).clip(0, 1) * BINS).floor().cast(pl.Int32).clip(0, BINS - 1)
        numbered = self.frame.lazy().filter(pl.col("confidence").is_not_nan()).select(bin=bins).group_by("bin").len()
        counts = dict(numbered.collect(engine="streaming").iter_rows())
        return {"edges": [number / BINS for number in range(BINS + 1)], "counts": [counts.get(number, 0) for number in range(BINS)]}

    @cached_property
    def per_class(self) -> dict[int, int]:
        """Number of rows by label."""
        return dict(self.frame.lazy().group_by("label").len().collect(engine="streaming").iter_rows())

    @cached_property
    def label_changes(self) -> tuple[int, list[dict[str, Any]]]:
        """How many labels differ from the compared version, and the most frequent changes between classes."""
        assert self.compared is not None
        labels = self.frame.lazy().select("label").with_columns(label2=pl.lit(self.compared.result()["label2"]))
        changes = (
            labels.filter(pl.col("label") != pl.col("label2")).group_by("label2", "label").agg(images=pl.len()).collect(engine="streaming")
        )
        ranked = changes.sort("images", "label2", "label", descending=[True, False, False]).head(MAX_LABEL_CHANGES)
        names = self.class_names
        largest = [{"from": names[before], "to": names[after], "images": images} for before, after, images in ranked.iter_rows()]
        return int(changes["images"].sum()), largest
