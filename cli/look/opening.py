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
from nst_data.inspection.row_images import SourceImages, images_of
from nst_data.inspection.source_rows import SourceRows
from nst_data.inspection.truth import read_truth
from nst_data.inspection.view import View
from nst_data.review.queues import LABELED, suspicion_of
from nst_data.sources import Source, match_classes, open_source
from nst_data.sources.addresses import is_address
from nst_data.sources.patterns import is_pattern
from nst_data.store.manifest import is_anonymous
from nst_data.store.store import Number, Store, Version
from nst_data.store.version import check_names_images
from nst_data.tables.label_tables import damage_is_named

from .contents import Contents, name_of
from .reviewing import Reviewing

_T = TypeVar("_T")
_MANY_ROWS, _FIRST_PAGE_SECONDS = 1_000_000, 3.0
_MOST_READ_UNASKED = 20_000  # labeled images, to find out which answers are about them


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
        view, images = View(store, shown, shown.manifest.class_names), images_of(store, shown, pool)  # type: ignore[assignment]
        if corpus is not None:
            check_names_images(shown, "look at")
        name = None if is_anonymous(shown.manifest) else corpus or shown.name  # answers are identified by hashes
    baseline = other if other is not None else generation_before(store, shown) if isinstance(shown, Version) else None
    if baseline is not None:
        try:
            view.compared = _later(_comparison(store, view, baseline), view.columns)
        except NstError:
            if other is not None:  # nobody asked for the previous generation
                raise
    reviewing = None
    if name is not None:
        reviewing = Reviewing(store, view, name, reviewer)
        view.suspicion = _suspicion(store, view, name)
        if reviewing.counts_something and _may_be_read(shown):
            view.hashed = _later(view.hashes, view.columns)
    if view.columns is not None and view.compared is None:
        _start(view.columns.prepare, view.columns)
    compared = None if view.compared is None else baseline
    return Contents(store, name_of(shown), view, images, reviewing, compared, None if other is None else name_of(other))


def _may_be_read(shown: Version | Source) -> bool:
    """Whether all hashes may be computed without being asked: a version has them in its table, labeled images have to be read."""
    return isinstance(shown, Version) or (len(shown) <= _MOST_READ_UNASKED and not is_address(shown.location))


def _suspicion(store: Store, view: View, corpus: str) -> "Future[pl.Series] | None":
    """The probability that each label is wrong, if `nst pick` has computed it."""
    kept = suspicion_of(store, corpus, view.version.place.name if view.version else LABELED)
    if kept is None:
        return None

    def joined() -> pl.Series:
        with damage_is_named(f"the suspicion of {corpus}"):
            table = kept.collect()
        return view.by_hash(table["image_hash"], table["suspicion"])

    return _later(joined)


def open_ref(store: Store, ref: str) -> Version | Source:
    """Open a generation or an edition, pulled first if it is on the Hub, or else labeled images. Raises NstError if it is neither."""
    name, _, number = ref.partition("@")
    if store.versions(name):
        return store.open(ref, "generation", "edition")
    if is_address(ref) or Path(ref).exists() or is_pattern(ref):
        return open_source(ref, labeled=True, indexes=store.indexes)
    if HubReference.of_repository(ref) is not None:
        if Number.is_one(number):
            from nst_data.sharing.pull import pull

            return pull(store, ref, kinds=("generation", "edition"))
        return open_source(ref, labeled=True, indexes=store.indexes)
    if "/" in ref:
        return open_source(ref, labeled=True, indexes=store.indexes)
    return store.open(ref, "generation", "edition")


def generation_before(store: Store, version: Version) -> Version | None:
    """The newest readable generation of a corpus before that of a version."""
    earlier = [
        other
        for other in store.versions(version.name)
        if other.number.generation < version.number.generation and other.is_readable and other.manifest.kind == "generation"
    ]
    return earlier[-1] if earlier else None


def _comparison(store: Store, view: View, other: Version | Source) -> Callable[[], pl.DataFrame]:
    """A function that computes `label2` and `confidence2` of each row. Raises NstError if the classes differ."""
    name = name_of(other)
    for version in (view.version, other):
        if isinstance(version, Version):
            check_names_images(version, "compare")
    if isinstance(other, Version):
        places = match_classes(other.manifest.class_names, view.class_names, name)
        if (kept := view.columns) is not None:
            rows = LabelRows(other, most=2**63)
            return lambda: kept.labels_of(rows, places)
        return lambda: _of_images(view, other, places)
    if view.version is None:
        raise UsageError(f"{name}: expected a version to compare labeled images with; name a generation or an edition")
    truth = read_truth(other, view.version, store)
    if view.rows.is_sample:
        raise UsageError(f"{view.name} is too large to show in full, and a sample cannot be compared with {name}")
    columns = view.columns
    assert columns is not None

    def joined() -> pl.DataFrame:
        labels = columns.rows.read([truth.by]).join(truth.table, on=truth.by, how="left", maintain_order="left")
        return pl.DataFrame({"label2": labels["truth"].cast(pl.Int32)}).with_columns(confidence2=pl.lit(None, pl.Float32))

    return joined


def _of_images(view: View, version: Version, places: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> pl.DataFrame:
    """The labels that a version has for labeled images, joined by the hashes of their bytes."""
    assert isinstance(view.rows, SourceRows)
    images = pl.DataFrame({"image_hash": view.rows.hashes})
    labels = LabelRows(version).read(["image_hash", "label", "confidence"]).unique("image_hash", keep="first")
    joined = images.join(labels, on="image_hash", how="left", maintain_order="left")
    label2 = joined["label"].replace_strict(list(range(len(places))), places.tolist(), default=None, return_dtype=pl.Int32)
    return pl.DataFrame({"label2": label2, "confidence2": joined["confidence"]})


def _later(make: Callable[[], _T], columns: RowColumns | None = None) -> "Future[_T]":
    """Compute something while the page is already open, and then what filters will need."""
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(make())
        except BaseException as error:
            future.set_exception(error)
        if columns is not None:
            columns.prepare()

    _start(run, columns)
    return future


def _start(work: Callable[[], None], columns: RowColumns | None) -> None:
    """Run something in a thread; with many rows a little later, so that the first page is served first."""
    timer = Timer(_FIRST_PAGE_SECONDS if columns is not None and len(columns.rows) > _MANY_ROWS else 0, work)
    timer.daemon = True
    timer.start()
