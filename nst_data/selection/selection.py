"""The selection that settings define, over all labels of a generation: filters, quota and copies in order, and what happened to each row.

Intermediate results are kept as parquet files in a work folder, so that memory does not grow with the labels.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import narwhals as nw
import polars as pl
from narwhals.typing import LazyFrameT

from nst_data.errors import NstError
from nst_data.selection import filters
from nst_data.selection.balance import COPIES, assign_copies, balance_as_released, quota_from_quantile
from nst_data.selection.cutoffs import bin_of, count_bins, find_cutoffs
from nst_data.selection.row_bins import RowBins
from nst_data.selection.seeded_order import with_seeded_order
from nst_data.settings import BalanceSettings
from nst_data.tables.engines import cache_rows, cache_sorted_rows, collect_small, is_polars, with_null_text
from nst_data.tables.hash_numbers import HashNumbers

REASONS = (
    *("held_out", "near_held_out", "duplicate", "excluded_class", "not_sampled"),
    *("low_confidence", "outside_range", "over_quota"),
)
INVALID = "invalid"
UNANSWERED = "no_answer"  # only in generations of earlier versions, which kept rows with a NaN confidence; counted if there are any


@dataclass(frozen=True)
class Selection:
    """The selected rows in pool order, as parquet files of `id`, `duplicates` and `copies`, and the counts of all rows.

    `dropped_counts` has a row for each `label` and `reason`, `selected_counts` one for each label: its unique `images` and their `copies`.
    """

    files: list[Path]
    quota: int | None
    labeled_counts: Mapping[int, int]
    dropped_counts: pl.DataFrame
    selected_counts: pl.DataFrame


def select(
    labels: Any,  # noqa: ANN401 - a lazy frame of Polars or Spark
    settings: BalanceSettings,
    class_names: Sequence[str],
    held_out: Mapping[str, Collection[str]],
    work_folder: Path,
    location: str,
) -> Selection:
    """Select from `labels`: `id`, `image_hash`, `label`, `confidence`.

    `held_out` has the hashes of images to leave out, by reason. `location` names the labels in errors. Raises NstError for a confidence
    that is not a number in [0, 1], and for a label that is not a class.
    """
    all_rows, reasons = nw.from_native(labels), _all_reasons(held_out)
    hashes = HashNumbers.write(labels, work_folder / "image_hashes") if is_polars(all_rows) else None
    repeated = cache_rows(
        nw.from_native(filters.repeated_images_in_memory(labels) if hashes is None else hashes.find_repeated().lazy()),
        work_folder / "repeated",
    )
    add_reasons = _build_filters(all_rows, repeated, settings, class_names, held_out, work_folder)
    rows = add_reasons(all_rows)
    is_by_quota = settings.per_class != "none" and settings.method != "official"
    with RowBins(work_folder / "bins", len(class_names), reasons) as bins:
        counted = _count_rows(rows, len(class_names), reasons, bins.add if hashes and is_by_quota else None)
    _check_values(counted, labels, class_names, location)
    remaining = counted.filter(pl.col("reason").is_null())
    quota = _resolve_quota(settings, remaining)
    if quota is None:
        chosen = _remaining_rows(rows).with_columns(copies=nw.lit(1, dtype=nw.Int32))
    elif settings.method == "official":
        native = balance_as_released(rows.to_native(), quota, settings.seed, settings.max_copies)
        chosen = _remaining_rows(nw.from_native(native))
    else:  # `most_confident` in less time: most rows are dropped by their confidence, and need no other reason
        in_bins = remaining.select("label", "bin", "rows")
        cuts = find_cutoffs(
            all_rows, "confidence", quota, bin_counts=in_bins, select_remaining=lambda subset: _remaining_rows(add_reasons(subset))
        )
        if hashes and hashes.ids.are_increasing and bins.is_stored and (ends := cuts.ids_in_last_bins) is not None:
            repeats = collect_small(repeated.filter(nw.col("id") == nw.col("first_id")).select("id", "duplicates"))
            confident_rows = nw.from_native(
                bins.write_first_rows(cuts, ends, repeats, hashes, settings.seed, work_folder / "most_confident")
            )
        else:
            confident_rows = with_seeded_order(
                _remaining_rows(add_reasons(cuts.select_first(all_rows))), settings.seed, COPIES, "nst_order"
            )
            confident_rows = cache_rows(
                confident_rows.select("id", "label", "duplicates", nw.col("nst_order").cast(nw.Int32)), work_folder / "most_confident"
            )
        chosen = assign_copies(confident_rows, quota, settings.max_copies, all_rows)
    chosen = cache_sorted_rows(chosen.select("id", "label", "duplicates", "copies"), work_folder / "selected")
    per_class = collect_small(chosen.group_by("label").agg(images=nw.len(), copies=nw.col("copies").cast(nw.Int64).sum()))
    return Selection(
        sorted((work_folder / "selected").glob("[!.]*.parquet")),
        quota,
        dict(counted.group_by("label").agg(pl.col("rows").sum()).iter_rows()),
        _dropped_counts(counted, per_class),
        per_class,
    )


def with_reasons(
    labels: Any,  # noqa: ANN401 - a lazy frame of Polars or Spark
    settings: BalanceSettings,
    class_names: Sequence[str],
    held_out: Mapping[str, Collection[str]],
    work_folder: Path,
) -> nw.LazyFrame[Any]:
    """The labels with `duplicates` and `reason`, before any quota."""
    rows, repeated = (
        nw.from_native(labels),
        cache_rows(nw.from_native(filters.repeated_images(labels, work_folder)), work_folder / "repeated"),
    )
    return _build_filters(rows, repeated, settings, class_names, held_out, work_folder)(rows)


def _build_filters(
    labels: nw.LazyFrame[Any],
    repeated: nw.LazyFrame[Any],
    settings: BalanceSettings,
    class_names: Sequence[str],
    held_out: Mapping[str, Collection[str]],
    work_folder: Path,
) -> Callable[[nw.LazyFrame[Any]], nw.LazyFrame[Any]]:
    """A function that adds `duplicates` and `reason` to any of the `labels`; held-out images are looked up in all labels only once."""
    held_out_ids = {reason: filters.held_out_rows(labels.to_native(), images) for reason, images in held_out.items() if images}
    held_out_ids = {reason: cache_rows(nw.from_native(ids), work_folder / reason).to_native() for reason, ids in held_out_ids.items()}
    reject_duplicates = filters.build_duplicate_filter(repeated.to_native())
    numbers = {name: index for index, name in enumerate(class_names)}
    thresholds = {numbers[name]: threshold for name, threshold in settings.class_min_confidence.items()}

    def add_reasons(subset: nw.LazyFrame[Any]) -> nw.LazyFrame[Any]:
        rows = filters.reject(with_null_text(subset, "reason", _all_reasons(held_out)).to_native(), UNANSWERED, _is_unanswered())
        rows = filters.reject(rows, INVALID, _is_invalid(len(class_names)))
        for reason, ids in held_out_ids.items():
            rows = filters.reject_rows(rows, ids, reason)
        rows = reject_duplicates(rows)
        if settings.exclude_class:
            rows = filters.reject_classes(rows, [numbers[name] for name in settings.exclude_class])
        if settings.fraction < 1:
            rows = filters.reject_unsampled(rows, settings.fraction, settings.seed)
        if settings.confidence_range:
            rows = filters.reject_outside(rows, *settings.confidence_range)
        else:
            rows = filters.reject_unsure(rows, settings.min_confidence, thresholds, keep_equal=settings.at_threshold == "keep")
        return cast("nw.LazyFrame[Any]", nw.from_native(rows))

    return add_reasons


def _remaining_rows(rows: nw.LazyFrame[Any]) -> nw.LazyFrame[Any]:
    return rows.filter(nw.col("reason").is_null())


def _all_reasons(held_out: Mapping[str, Collection[str]]) -> list[str]:
    """All reasons that a row may have."""
    return list(dict.fromkeys([*REASONS, *held_out, UNANSWERED, INVALID]))


def _is_unanswered() -> nw.Expr:
    return ~nw.col("confidence").is_null() & nw.col("confidence").is_nan()


def _is_invalid(n_classes: int) -> nw.Expr:
    confidence, label = nw.col("confidence"), nw.col("label")
    is_number = ~confidence.is_null() & ~confidence.is_nan() & (confidence >= 0) & (confidence <= 1)
    return ~(is_number & ~label.is_null() & (label >= 0) & (label < n_classes))


def _count_rows(
    rows: LazyFrameT, n_classes: int, reasons: Sequence[str], on_batch: Callable[[pl.DataFrame], None] | None = None
) -> pl.DataFrame:
    """Count `rows` by `label` and `reason` or, if they are still in, by `label` and `bin` of confidence. An invalid label counts as 0.

    `on_batch` is as for `count_bins`.
    """
    confidence = nw.when(nw.col("reason").is_null()).then(nw.col("confidence"))
    label = nw.when((nw.col("label") >= 0) & (nw.col("label") < n_classes)).then(nw.col("label")).otherwise(0)
    return count_bins(rows.with_columns(label=label), bin_of(confidence), reasons, on_batch)


def _check_values(counts: pl.DataFrame, labels: Any, class_names: Sequence[str], location: str) -> None:  # noqa: ANN401
    invalid = counts.filter(pl.col("reason") == INVALID)["rows"].sum()
    if invalid:
        rows = nw.from_native(labels).filter(_is_invalid(len(class_names)) & ~_is_unanswered())
        rows = rows.select("id", "label", "confidence").head(1)
        first = collect_small(rows).row(0, named=True)
        invalid_rows = f"{invalid:,} row{'s' * (invalid > 1)} with others"
        raise NstError(
            f"{location}: expected labels from 0 to {len(class_names) - 1} and confidences from 0 to 1, found {invalid_rows}, such as row "
            f"{first['id']}: label {first['label']}, confidence {first['confidence']}; the table was made or changed elsewhere"
        )


def _resolve_quota(settings: BalanceSettings, remaining_counts: pl.DataFrame) -> int | None:
    if settings.per_class == "none":
        return None
    if settings.per_class == "auto":
        counts = dict(remaining_counts.group_by("label").agg(pl.col("rows").sum()).iter_rows())
        return quota_from_quantile(counts, settings.auto_quantile)
    return settings.per_class


def _dropped_counts(counts: pl.DataFrame, selected_counts: pl.DataFrame) -> pl.DataFrame:
    """Dropped rows by `label` and `reason`; those that are neither chosen nor dropped for another reason are over the quota."""
    remaining = counts.filter(pl.col("reason").is_null()).group_by("label").agg(pl.col("rows").sum())
    over_quota = remaining.join(selected_counts, on="label", how="left").with_columns(rows=pl.col("rows") - pl.col("images").fill_null(0))
    rejected = counts.filter(pl.col("reason").is_not_null()).group_by("label", "reason").agg(pl.col("rows").sum())
    return pl.concat([rejected, over_quota.select("label", pl.lit("over_quota").alias("reason"), "rows")])
