"""The images of a generation that an edition left out, each with its reason, found by running the selection's filters again."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl

from nst_data.errors import UsageError
from nst_data.inspection.label_rows import LabelRows
from nst_data.inspection.row_columns import RowColumns
from nst_data.selection.selection import with_reasons
from nst_data.settings import BalanceSettings
from nst_data.sources.changes import ReadRecord
from nst_data.store.manifest import EditionManifest
from nst_data.store.parent import parent_of
from nst_data.store.store import Store, Version
from nst_data.tables import engines
from nst_data.tables.label_tables import collect, translate_table_errors
from nst_data.tables.review_table import hashes_by_reason
from nst_data.tables.schema import SELECTION_COLUMNS
from nst_data.tables.shards import table_files


class DroppedImages:
    """`frame` has `row`, `place` (the position in `rows`, the rows of the generation), `label`, `confidence` and `reason`.

    Exact copies of held-out images are recognized by hashes stored with the edition, which editions from the Hub lack. Near-duplicates are
    inferred: no other filter drops them, and they are more confident than some selected image.
    """

    def __init__(self, store: Store, edition: Version) -> None:
        manifest = EditionManifest.from_manifest(edition.manifest)
        parent, settings = parent_of(edition, store), manifest.request.selection
        if parent is None or settings is None or parent.manifest.kind != "generation":
            raise UsageError(f"{edition.ref}: its generation is not in the store, so the images it leaves out are unknown")
        self.rows = LabelRows(parent)
        if self.rows.is_sample:
            raise UsageError(f"{parent.ref} has {self.rows.total_rows:,} labels, too many to list why each was left out")
        self.columns = RowColumns(store, self.rows)
        self.frame = self._find_dropped(store, edition, settings)

    def _find_dropped(self, store: Store, edition: Version, settings: BalanceSettings) -> pl.DataFrame:
        parent, request = self.rows.version, EditionManifest.from_manifest(edition.manifest).request
        hashes = (piece for role in request.inputs.excluded for _, piece in ReadRecord(edition.folder, role).stored_hashes())
        excluded_hashes = {"held_out": frozenset(hashed.tobytes().hex() for piece in hashes for hashed in piece)} | _answered_hashes(
            store, edition
        )
        with tempfile.TemporaryDirectory(prefix="nst-look-", dir=_work_folder(store)) as work, translate_table_errors(parent.ref):
            labels = engines.scan(table_files(parent.folder, "pseudo_labels"), SELECTION_COLUMNS)
            rows = with_reasons(labels, settings, parent.manifest.class_names, excluded_hashes, Path(work)).to_native()
            (table,) = collect(parent.ref, rows.select("id", pl.col("label").cast(pl.Int32), "confidence", "reason"))
        table = table.sort("id").with_columns(place=pl.arange(0, table.height, eager=True, dtype=pl.UInt32))
        selected = LabelRows(edition, max_rows=2**63).read(["id", "label", "confidence"])
        table = table.filter(~pl.col("id").is_in(selected["id"].implode())).drop("id")
        table = _fill_missing_reasons(table, selected, settings)
        return table.with_columns(row=pl.arange(0, table.height, eager=True, dtype=pl.UInt32)).rechunk()

    def __len__(self) -> int:
        return self.frame.height

    def positions(self, rows: list[int]) -> list[int]:
        """The positions in `rows` of some of the images left out."""
        return self.frame["place"].gather(np.asarray(rows, np.int64)).to_list()

    def rows_of(self, hashes: Iterable[str]) -> dict[str, list[int]]:
        """The rows of each `image_hash` that was left out."""
        found = self.columns.positions_by_hash(hashes)
        places = pl.Series([place for positions in found.values() for place in positions], dtype=pl.UInt32)
        frame = self.frame.filter(pl.col("place").is_in(places.implode()))
        row_at = dict(frame.select("place", "row").iter_rows())
        return {hashed: rows for hashed, positions in found.items() if (rows := [row_at[place] for place in positions if place in row_at])}


def _answered_hashes(store: Store, edition: Version) -> dict[str, frozenset[str]]:
    """The images that had been answered in the review with which an edition was drawn, by the reason for leaving them out."""
    entry = EditionManifest.from_manifest(edition.manifest).request.inputs.reviews
    reviews = [version for version in store.versions(entry.ref.partition("@")[0]) if version.ref == entry.ref] if entry else []
    return hashes_by_reason(reviews[0]) if reviews and entry and reviews[0].manifest.digest == entry.digest else {}


def _fill_missing_reasons(table: pl.DataFrame, selected: pl.DataFrame, settings: BalanceSettings) -> pl.DataFrame:
    """Fill in the reason for rows that passed all filters: over the quota if the selected ones are more confident, else near-duplicates."""
    if settings.per_class == "none":
        return table.with_columns(pl.col("reason").fill_null("near_held_out"))
    lowest = selected.group_by(pl.col("label").cast(pl.Int32)).agg(least=pl.col("confidence").min())
    is_surer = (pl.col("confidence") > pl.col("least")).fill_null(True) if settings.method == "exact" else pl.lit(False)
    last_reason = pl.when(is_surer).then(pl.lit("near_held_out")).otherwise(pl.lit("over_quota"))
    return (
        table.join(lowest, on="label", how="left", maintain_order="left")
        .with_columns(pl.col("reason").fill_null(last_reason))
        .drop("least")
    )


def _work_folder(store: Store) -> Path:
    folder = store.root / "runs" / "look"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
