"""The data that the page shows: an overview of a version or a labeled source, its rows page by page, and the details of an image."""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, wait
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from nst_cli.messages import reword_for_cli

from nst_data.errors import NstError, UsageError
from nst_data.inspection.label_rows import LabelRows
from nst_data.inspection.quality import ECE_BINS, calibration_error, reliability
from nst_data.inspection.query import Query, parse_query
from nst_data.inspection.row_images import ImageReader, NoImages
from nst_data.inspection.same_images import read_columns_by_hash
from nst_data.inspection.similar import open_similarity_search
from nst_data.inspection.view import KEPT, View
from nst_data.sources import Source
from nst_data.store.manifest import EditionManifest, is_anonymous
from nst_data.store.parent import parent_of
from nst_data.store.store import Store, Version
from nst_data.tables.label_tables import scan_labels

from .numbers import json_number, top_classes
from .reviewing import ReviewSession
from .thumbnails import Thumbnails

CALIBRATION_BINS = 10
_WAIT_SECONDS, _MANY_ROWS = 0.3, 1_000_000


class _RowDetails(NamedTuple):
    """About a row with a label: its image hash, its row number in the pool (None for labeled images), and its most probable classes."""

    image_hash: str
    pool_row: int | None
    top_classes: list[dict[str, Any]]


class Contents:
    """Everything that the page shows of a view."""

    def __init__(
        self,
        store: Store,
        ref: str,
        view: View,
        images: ImageReader,
        reviewing: ReviewSession | None = None,
        compared: "Version | Source | None" = None,
        ref2: str | None = None,
    ) -> None:
        """`compared` is a version whose labels are shown next to the view's own, or labeled images with the true labels."""
        self.store, self.ref, self.view, self.images, self.reviewing = store, ref, view, images, reviewing
        self.other, self.ref2, self.similar = compared, ref2, open_similarity_search(store, view)
        self._thumbnails = Thumbnails()

    def overview(self) -> dict[str, Any]:
        """Statistics of the whole view."""
        view, version = self.view, self.view.version
        self._wait_for(view.hashed)
        manifest = version.manifest if version else None
        counts = manifest.counts if isinstance(manifest, EditionManifest) else None
        return {
            "ref": self.ref,
            "kind": manifest.kind if manifest else "labeled",
            "ref2": self.ref2,
            "compared": self.compared_name,
            "rows": len(view),
            "sampled": {"rows": len(view), "of": view.rows.total_rows} if view.rows.is_sample else None,
            "class_names": view.class_names,
            "kept": counts.unique if counts else None,
            "dropped": {reason: rows for reason, rows in counts.dropped.items() if rows} if counts else None,
            "errors": view.errors.height,
            "per_class": self._per_class(),
            "histogram": view.histogram,
            "calibration": self._calibration(),
            "flow": self._flow(),
            "pending": any(future is not None and not future.done() for future in (view.compared, view.suspicion, view.hashed)),
            "review": self._review_summary(),
            "queues": self.reviewing.queue_summaries() if self.reviewing else [],
            "can": {
                "review": self.reviewing is not None,
                "similar": self.similar is not None,
                "compare": view.compared is not None and not self._is_comparison_unreadable,
                "suspicion": view.suspicion is not None,
            },
            "teacher": self.teacher,
            "images": reword_for_cli(self.images.reason) if isinstance(self.images, NoImages) else None,
        }

    @property
    def compared_name(self) -> str | None:
        """The name of what the labels are compared with, or None."""
        return None if self.other is None or self._is_comparison_unreadable else display_name(self.other)

    @property
    def _is_comparison_unreadable(self) -> bool:
        """Whether the labels of the previous generation are damaged. Nobody asked for it, so everything is shown as if there were none."""
        future = self.view.compared
        return self.ref2 is None and future is not None and future.done() and isinstance(future.exception(), NstError)

    def compared_labels(self) -> pl.DataFrame | None:
        """The labels to compare each row with, once they are computed. Raises NstError if a version that was asked for is damaged."""
        future = self.view.compared
        return future.result() if future is not None and future.done() and not self._is_comparison_unreadable else None

    @property
    def teacher(self) -> str | None:
        """The teachers that gave the labels, up to five."""
        version = self.view.version
        parent = None if version is None else parent_of(version, self.store)
        return ", ".join([name for shown in (version, parent) if shown for name in _teachers(shown)][:5]) or None

    def grid(self, values: Mapping[str, str]) -> dict[str, Any]:
        """One page of rows: the total number and the items. Raises UsageError for an invalid query."""
        query = self._restrict_rows(parse_query(values), values)
        total, rows = self.view.page(query)
        items = self.items(rows)
        if values.get("reviewed") == "no":  # an earlier answer does not answer what is asked here
            items = [item | {"answer": None} for item in items]
        return {"total": total, "items": items}

    def items(self, rows: list[int]) -> list[dict[str, Any]]:
        """The items that the grid shows for these rows."""
        view = self.view
        if self.reviewing:
            self.reviewing.refresh()
        left_out = [row for row in rows if row >= view.first_dropped_row]
        labeled = [row for row in rows if row < len(view)]
        columns = view.rows.take(labeled, ["key", "image_hash"])
        frame = view.frame[labeled]
        joined = self.compared_labels()
        compared = joined[labeled] if joined is not None else None
        suspicion = view.suspicion.result()[labeled] if view.suspicion is not None and view.suspicion.done() else None
        by_row = {}
        for place, row in enumerate(labeled):
            hashed = columns["image_hash"][place]
            answer, disputed = self.reviewing.shown_answer(hashed) if self.reviewing else (None, False)
            label2 = compared["label2"][place] if compared is not None else None
            by_row[row] = {
                "id": row,
                "key": columns["key"][place],
                "label": view.class_names[frame["label"][place]],
                "confidence": json_number(frame["confidence"][place]) if "confidence" in frame.columns else None,
                "reason": None,
                "copies": int(frame["copies"][place]) if "copies" in frame.columns else 1,
                "error": None,
                "answer": answer,
                "disputed": disputed,
                "label2": None if label2 is None else view.class_names[label2],
                "confidence2": json_number(compared["confidence2"][place]) if compared is not None else None,
                "suspicion": json_number(suspicion[place]) if suspicion is not None else None,
            }
        by_row |= self._dropped_items(left_out) if left_out else {}
        return [by_row[row] if row in by_row else self._error_item(row) for row in rows]

    def _dropped_items(self, rows: list[int]) -> dict[int, dict[str, Any]]:
        """The items of images that the edition dropped."""
        dropped, first = self.view.dropped, self.view.first_dropped_row
        frame = dropped.frame[[row - first for row in rows]]
        columns = dropped.rows.take(frame["place"].to_list(), ["key", "image_hash"])
        by_row = {}
        for place, row in enumerate(rows):
            answer, disputed = self.reviewing.shown_answer(columns["image_hash"][place]) if self.reviewing else (None, False)
            by_row[row] = {
                "id": row,
                "key": columns["key"][place],
                "label": self.view.class_names[frame["label"][place]],
                "confidence": json_number(frame["confidence"][place]),
                "reason": frame["reason"][place],
                "copies": 0,
                "error": None,
                "answer": answer,
                "disputed": disputed,
                **dict.fromkeys(("label2", "confidence2", "suspicion")),
            }
        return by_row

    def detail(self, row: int) -> dict[str, Any]:
        """Everything known about one row. Raises UsageError for a row that does not exist."""
        (detail,) = self.details([self._check_row(row)])
        return detail

    def details(self, rows: list[int]) -> list[dict[str, Any]]:
        """Everything known about some rows, read together."""
        by_row = {row: about for part in self._read_details(rows) for row, about in part.items()}
        images = {about.image_hash: about.pool_row for about in by_row.values() if about.pool_row is not None}
        histories, tops = self._histories(images), self._compared_top_classes(images)
        entries = []
        for item in self.items(rows):
            about = by_row.get(item["id"], _RowDetails("", None, []))
            entries.append(
                {
                    **item,
                    "hash": about.image_hash or None,
                    "teacher": self.teacher,
                    "top": about.top_classes,
                    "top2": tops.get(about.image_hash),
                    "history": histories.get(about.image_hash, []),
                    "similar": self._similar_images(item["id"]),
                    "pick": self.reviewing.pick_of(about.image_hash) if self.reviewing else None,
                    "near_duplicates": self.view.near_duplicates(item["id"]).tolist()[:24],
                    "answers": self.reviewing.all_answers(about.image_hash) if self.reviewing else [],
                }
            )
        return entries

    def _read_details(self, rows: list[int]) -> "Iterator[dict[int, _RowDetails]]":
        """Yield what the tables say about the rows that have a label, table by table."""
        view = self.view
        for is_selected in (True, False):
            part = [row for row in rows if (row < len(view) if is_selected else row >= view.first_dropped_row)]
            if not part:
                continue
            table = view.rows if is_selected else view.dropped.rows
            places = part if is_selected else view.dropped.positions([row - view.first_dropped_row for row in part])
            names = ["image_hash", *(["id", *table.soft_columns] if isinstance(table, LabelRows) else [])]
            frame = table.take(places, names)
            yield {
                row: _RowDetails(hashed or "", cells[0] if cells else None, top_classes(cells[1:], view.class_names) if cells else [])
                for row, (hashed, *cells) in zip(part, frame.iter_rows(), strict=True)
            }

    def jpeg(self, row: int, side_px: int) -> tuple[str, bytes]:
        """(a name that identifies the bytes, the image of a row as a JPEG). Raises NstError or OSError if there is none."""
        key, hashed, number = self._image_identity(self._check_row(row))
        version = self.view.version
        prefix = f"{version.manifest.digest[:32]}-" if version and is_anonymous(version.manifest) else ""  # hashed by row number
        return f"{prefix}{hashed}-{side_px}", self._thumbnails.get(hashed, side_px, lambda: self.images.read(row, number, key, hashed))

    def answer(self, payload: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON value
        """Write an answer. Raises UsageError if it is not valid."""
        if self.reviewing is None:
            raise UsageError("answers require a corpus; pass --corpus NAME")
        if not isinstance(payload, dict) or not isinstance(payload.get("id"), int) or isinstance(payload.get("id"), bool):
            raise UsageError("expected an answer as {id, class, excluded} or {id, undo}")
        if unknown := payload.keys() - {"id", "class", "excluded", "undo"}:
            raise UsageError(f"expected an answer as {{id, class, excluded}} or {{id, undo}}, found {sorted(unknown)[0]!r}")
        class_name, excluded, undo = payload.get("class"), payload.get("excluded"), payload.get("undo", False)
        if not (isinstance(class_name, str | None) and isinstance(excluded, str | None) and isinstance(undo, bool)):
            raise UsageError("expected an answer as {id, class, excluded} or {id, undo}, found another kind of value")
        row = self._check_row(payload["id"])
        if len(self.view) <= row < self.view.first_dropped_row:
            raise UsageError("this image could not be read: it has no hash, which identifies answers")
        key, hashed, _ = self._image_identity(row)
        self.reviewing.append(hashed, key, class_name, excluded, undo)
        answer, disputed = self.reviewing.shown_answer(hashed)
        return {"answer": answer, "disputed": disputed, "review": self.reviewing.summary()}

    def _image_identity(self, row: int) -> tuple[str, str, int]:
        """(key, hash, row number in the pool) of a row."""
        view = self.view
        if len(view) <= row < view.first_dropped_row:
            error = view.errors.row(row - len(view), named=True)
            raise NstError(f"{error['key']!r} could not be read: {error['reason']}")
        rows, place = view.locate(row)
        names = ["key", "image_hash", *(["id"] if view.version else [])]
        key, hashed, *number = rows.take([place], names).row(0)
        return key, hashed or "", number[0] if number else row

    def _check_row(self, row: int) -> int:
        if not 0 <= row < self.view.total_rows:
            raise UsageError(f"no row {row}; there are {self.view.total_rows:,}, from 0")
        return row

    def _restrict_rows(self, query: Query, values: Mapping[str, str]) -> Query:
        """Restrict a query to the rows given by answers, a queue or a list of numbers."""
        if values.get("id"):
            numbers = [part for part in values["id"].split(",") if part.isascii() and part.isdigit() and len(part) < 16]
            query = replace(query, rows=np.array(numbers, np.int64))
        is_dropped = query.reason not in (None, KEPT)
        if name := values.get("queue"):
            if self.reviewing is None:
                raise UsageError("there are no queues here; pass --corpus NAME")
            if is_dropped:
                raise UsageError(f"queue={name}: a queue shows the images that were kept; remove the filter reason={query.reason}")
            query = replace(query, rows=self.reviewing.queue_rows(name))
        if reviewed := values.get("reviewed"):
            if self.reviewing is None:
                raise UsageError("there are no answers here; pass --corpus NAME")
            if reviewed not in ("yes", "no", "disputed"):
                raise UsageError(f"reviewed={reviewed}: expected yes, no or disputed")
            self.reviewing.refresh()
            if is_dropped and len(self.view.dropped):  # known from here on
                rows = self.reviewing.dropped_rows("disputed" if reviewed == "disputed" else "yes")
                return replace(query, excluded_rows=rows) if reviewed == "no" else replace(query, rows=rows)
            if reviewed == "no":
                return replace(query, excluded_rows=self.reviewing.completed_rows(values.get("queue") or None))
            rows = self.reviewing.answered_rows(reviewed)
            query = replace(query, rows=rows if query.rows is None else query.rows[np.isin(query.rows, rows)])
        return query

    def _per_class(self) -> list[dict[str, Any]]:
        view, manifest = self.view, self.view.version.manifest if self.view.version else None
        if isinstance(manifest, EditionManifest):
            return [{"name": name, "before": row.labeled, "after": row.unique} for name, row in manifest.counts.per_class.items()]
        counts = view.per_class
        return [{"name": name, "before": counts.get(number, 0), "after": None} for number, name in enumerate(view.class_names)]

    def _calibration(self) -> dict[str, Any] | None:
        """How often labels are right at each confidence, if labeled images tell the truth."""
        view, truth = self.view, self.compared_labels()
        if truth is None or isinstance(self.other, Version) or "confidence" not in view.frame.columns:
            return None
        judged = view.frame.lazy().select("label", "confidence").with_columns(truth=pl.lit(truth["label2"]))
        judged = judged.filter(pl.col("truth").is_not_null())
        shown, fine = pl.collect_all([reliability(judged, CALIBRATION_BINS), reliability(judged, ECE_BINS)])
        images = int(shown["images"].sum())
        if not images:
            return None
        bins = [
            {"confidence": round(confidence / rows, 4), "accuracy": round(correct / rows, 4), "images": rows}
            for _, rows, correct, confidence in shown.sort("bin").iter_rows()
        ]
        return {"bins": bins, "accuracy": int(shown["correct"].sum()) / images, "ece": calibration_error(fine), "images": images}

    def _flow(self) -> dict[str, Any] | None:
        self._wait_for(self.view.compared)
        if self.compared_labels() is None:
            return None
        changed, moves = self.view.label_changes
        return {"from": self.compared_name, "changed": changed, "moves": moves}

    def _wait_for(self, future: "Future[Any] | None") -> None:
        """Wait for a moment, so that the first page of a small view is complete."""
        if future is not None:
            wait([future], _WAIT_SECONDS if len(self.view) < _MANY_ROWS else 0)

    def _review_summary(self) -> dict[str, Any] | None:
        if self.reviewing is None:
            return None
        self.reviewing.refresh()
        return self.reviewing.summary()

    def _similar_images(self, row: int) -> list[dict[str, Any]]:
        return [{"id": other, "similarity": value} for other, value in self.similar.find(row)] if self.similar else []

    def _compared_top_classes(self, pool_rows: Mapping[str, int]) -> dict[str, list[dict[str, Any]]]:
        """The most probable classes in the version REF2, by image hash."""
        if self.ref2 is None or not isinstance(self.other, Version) or self.view.version is None:
            return {}
        names = self.other.manifest.class_names
        soft = [name for name in ("probs", "top_labels", "top_probs") if name in scan_labels(self.other).collect_schema()]
        soft_labels = read_columns_by_hash(pool_rows, self.view.version, self.other, soft)
        return {hashed: top_classes(values, names) for hashed, values in soft_labels.items()}

    def _histories(self, pool_rows: Mapping[str, int]) -> dict[str, list[dict[str, Any]]]:
        """What the generations of this corpus say about images, the first generation first, by image hash."""
        version, histories = self.view.version, dict[str, list[dict[str, Any]]]()
        for generation in self.store.versions(version.name) if version else []:
            if version is None or not pool_rows or not generation.is_readable or generation.manifest.kind != "generation":
                continue
            try:
                labels = read_columns_by_hash(pool_rows, version, generation, ["label", "confidence"])
            except NstError:  # damaged: the others can still be shown
                continue
            for hashed, (label, confidence) in labels.items():
                entry = {"version": generation.ref, "label": generation.manifest.class_names[label], "confidence": json_number(confidence)}
                histories.setdefault(hashed, []).append(entry)
        return histories

    def _error_item(self, row: int) -> dict[str, Any]:
        error = self.view.errors.row(row - len(self.view), named=True)
        empty = dict.fromkeys(("label", "confidence", "reason", "answer", "label2", "confidence2", "suspicion"))
        return {"id": row, "key": error["key"], **empty, "copies": 0, "error": error["reason"], "disputed": False}


def display_name(shown: "Version | Source") -> str:
    """The name by which a person knows a version or source."""
    return shown.ref if isinstance(shown, Version) else shown.location


def _teachers(version: Version) -> list[str]:
    inputs = version.manifest.request.inputs
    entries = inputs.by_role
    return [entry.ref for role, entry in entries.items() if role == "teacher" or role.startswith("teacher_")]
