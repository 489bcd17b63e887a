"""Opening what the page shows: a version from the store or the Hub, or labeled images, and what its labels are compared with."""

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from threading import Timer
from typing import TypeVar

import numpy as np
import polars as pl

from nst_data.errors import NstError, UsageError
from nst_data.hub.reference import HubReference
from nst_data.inspection.label_rows import LabelRows
from nst_data.inspection.row_columns import RowColumns
from nst_data.inspection.row_images import SourceImages, open_images
from nst_data.inspection.source_rows import SourceRows
from nst_data.inspection.truth import read_truth
from nst_data.inspection.view import View
from nst_data.review.queues import LABELED, load_suspicion
from nst_data.sources import Source, match_classes, open_source
from nst_data.sources.addresses import is_address
from nst_data.sources.patterns import is_pattern
from nst_data.store.manifest import is_anonymous
from nst_data.store.store import Number, Store, Version
from nst_data.store.version import check_not_anonymous
from nst_data.tables.label_tables import translate_table_errors

from .contents import Contents, display_name
from .reviewing import ReviewSession

_T = TypeVar("_T")
_MANY_ROWS, _FIRST_PAGE_SECONDS = 1_000_000, 3.0
_MAX_PREREAD_IMAGES = 20_000  # labeled images, to find out which answers are about them


def open_contents(
    store: Store, ref: str, ref2: str | None = None, pool: str | None = None, reviewer: str = "reviewer", corpus: str | None = None
) -> Contents:
    """Open what to look at; only what takes long for many rows is computed later. Raises NstError in one line for what does not exist."""
    shown = open_ref(store, ref)
    other = None if ref2 is None else open_ref(store, ref2)
    if isinstance(shown, Source):
        if pool is not None:
            raise UsageError(f"`pool`: {ref} already contains its images; remove `pool`")
        view, images, name = View(store, SourceRows(shown), shown.class_names or []), SourceImages(shown), corpus
    else:
        view, images = View(store, shown, shown.manifest.class_names), open_images(store, shown, pool)  # type: ignore[assignment]
        if corpus is not None:
            check_not_anonymous(shown, "look at")
        name = None if is_anonymous(shown.manifest) else corpus or shown.name  # answers are identified by hashes
    baseline = other if other is not None else generation_before(store, shown) if isinstance(shown, Version) else None
    if baseline is not None:
        try:
            view.compared = _run_in_background(_build_comparison(store, view, baseline), view.columns)
        except NstError:
            if other is not None:  # nobody asked for the previous generation
                raise
    reviewing = None
    if name is not None:
        reviewing = ReviewSession(store, view, name, reviewer)
        view.suspicion = _load_suspicion(store, view, name)
        if reviewing.has_answers_or_queues and _may_precompute_hashes(shown):
            view.hashed = _run_in_background(view.hashes, view.columns)
    if view.columns is not None and view.compared is None:
        _start_thread(view.columns.precompute, view.columns)
    compared = None if view.compared is None else baseline
    return Contents(store, display_name(shown), view, images, reviewing, compared, None if other is None else display_name(other))


def _may_precompute_hashes(shown: Version | Source) -> bool:
    """Whether all hashes may be computed without being asked: a version has them in its table, labeled images have to be read."""
    return isinstance(shown, Version) or (len(shown) <= _MAX_PREREAD_IMAGES and not is_address(shown.location))


def _load_suspicion(store: Store, view: View, corpus: str) -> "Future[pl.Series] | None":
    """The probability that each label is wrong, if `nst pick` has computed it."""
    stored = load_suspicion(store, corpus, view.version.local_folder.name if view.version else LABELED)
    if stored is None:
        return None

    def joined() -> pl.Series:
        with translate_table_errors(f"the suspicion of {corpus}"):
            table = stored.collect()
        return view.align_by_hash(table["image_hash"], table["suspicion"])

    return _run_in_background(joined)


def open_ref(store: Store, ref: str) -> Version | Source:
    """Open a generation or an edition, pulled first if it is on the Hub, or else labeled images. Raises NstError if it is neither."""
    name, _, number = ref.partition("@")
    if store.versions(name):
        return store.open(ref, "generation", "edition")
    if is_address(ref) or Path(ref).exists() or is_pattern(ref):
        return open_source(ref, labeled=True, indexes=store.indexes)
    if HubReference.parse_repository(ref) is not None:
        if Number.is_valid(number):
            from nst_data.sharing.pull import pull

            return pull(store, ref, kinds=("generation", "edition"))
        return open_source(ref, labeled=True, indexes=store.indexes)
    if "/" in ref:
        return open_source(ref, labeled=True, indexes=store.indexes)
    return store.open(ref, "generation", "edition")


def generation_before(store: Store, version: Version) -> Version | None:
    """The newest readable generation of a corpus before that of a version."""
    earlier = [
        candidate
        for candidate in store.versions(version.name)
        if candidate.number.generation < version.number.generation and candidate.is_readable and candidate.manifest.kind == "generation"
    ]
    return earlier[-1] if earlier else None


def _build_comparison(store: Store, view: View, other: Version | Source) -> Callable[[], pl.DataFrame]:
    """A function that computes `label2` and `confidence2` of each row. Raises NstError if the classes differ."""
    name = display_name(other)
    for version in (view.version, other):
        if isinstance(version, Version):
            check_not_anonymous(version, "compare")
    if isinstance(other, Version):
        places = match_classes(other.manifest.class_names, view.class_names, name)
        if (stored_columns := view.columns) is not None:
            rows = LabelRows(other, max_rows=2**63)
            return lambda: stored_columns.labels_of(rows, places)
        return lambda: _labels_by_hash(view, other, places)
    if view.version is None:
        raise UsageError(f"{name}: expected a version to compare labeled images with; name a generation or an edition")
    truth = read_truth(other, view.version, store)
    if view.rows.is_sample:
        raise UsageError(f"{view.name} is too large to show in full, and a sample cannot be compared with {name}")
    columns = view.columns
    assert columns is not None

    def joined() -> pl.DataFrame:
        labels = columns.rows.read([truth.join_column]).join(truth.table, on=truth.join_column, how="left", maintain_order="left")
        return pl.DataFrame({"label2": labels["truth"].cast(pl.Int32)}).with_columns(confidence2=pl.lit(None, pl.Float32))

    return joined


def _labels_by_hash(view: View, version: Version, class_indices: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> pl.DataFrame:
    """The labels that a version has for labeled images, joined by the hashes of their bytes."""
    assert isinstance(view.rows, SourceRows)
    images = pl.DataFrame({"image_hash": view.rows.hashes})
    labels = LabelRows(version).read(["image_hash", "label", "confidence"]).unique("image_hash", keep="first")
    joined = images.join(labels, on="image_hash", how="left", maintain_order="left")
    label2 = joined["label"].replace_strict(list(range(len(class_indices))), class_indices.tolist(), default=None, return_dtype=pl.Int32)
    return pl.DataFrame({"label2": label2, "confidence2": joined["confidence"]})


def _run_in_background(compute: Callable[[], _T], columns: RowColumns | None = None) -> "Future[_T]":
    """Compute something while the page is already open, and then what filters will need."""
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(compute())
        except BaseException as error:
            future.set_exception(error)
        if columns is not None:
            columns.precompute()

    _start_thread(run, columns)
    return future


def _start_thread(target: Callable[[], None], columns: RowColumns | None) -> None:
    """Run something in a thread; with many rows a little later, so that the first page is served first."""
    timer = Timer(_FIRST_PAGE_SECONDS if columns is not None and len(columns.rows) > _MANY_ROWS else 0, target)
    timer.daemon = True
    timer.start()
