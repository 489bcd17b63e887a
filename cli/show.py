"""`nst show`: what a version is, how confident its labels are and, if the truth is known, how accurate."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nst_data.errors import UsageError
from nst_data.progress import escape_unprintable
from nst_data.store.store import Store, Version
from nst_data.store.version import is_review_ref

from .messages import cli_progress
from .options import ClassNamesOption, ImageColumnOption, JsonOption, LabelColumnOption, StoreOption, open_store, open_version, print_json
from .tables import WIDTH, bar, describe_empty_classes, print_table, print_wrapped
from .version_settings import format_value, version_settings
from .versions import Ref, describe_version

if TYPE_CHECKING:
    from nst_data.tables.histogram import Histogram

_CLASSES, _WORST = 20, 10
_HEADINGS = {"unique": "selected", "copies": "entries"}  # as on the card


def show(
    ref: Ref,
    truth: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="True labels to compare with: labeled images, labels without images, or CORPUS@review-N."),
    ] = None,
    class_names: ClassNamesOption = None,
    image_column: ImageColumnOption = None,
    label_column: LabelColumnOption = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Show a version: its inputs, how confident its labels are and, with --truth, how accurate."""
    if truth is None and (class_names or image_column or label_column):
        options = "--class-names, --image-column and --label-column"
        raise UsageError(f"{options} require --truth SOURCE")
    opened_store = open_store(store)
    version = opened_store.open(ref)
    result = version.manifest.model_dump(mode="json")
    if version.manifest.kind in ("generation", "edition"):
        result["confidence"] = _confidence(version, opened_store)
    if truth is not None:
        result["quality"] = _quality(version, opened_store, truth, class_names, image_column, label_column)
    if json:
        print_json(result)
        return
    _print_manifest(version)
    if "confidence" in result:
        _print_confidence(result["confidence"])
    if "quality" in result:
        _print_quality(result["quality"])
    _print_settings(version)


def _confidence(version: Version, store: Store) -> list[dict[str, Any]]:
    """The confidence histogram of a version, for an edition preceded by that of the version it was drawn from."""
    from nst_data.store.parent import parent_of
    from nst_data.tables.histogram import cached_histograms

    parent = parent_of(version, store)
    shown = [version] if parent is None else [parent, version]
    counted = cached_histograms(store, shown, version.ref)
    return [{"ref": counted_version.ref, **_bins(bins)} for counted_version, bins in zip(shown, counted, strict=True)]


def _bins(histogram: "Histogram") -> dict[str, Any]:
    from nst_data.tables.histogram import bin_bounds

    bins = [
        dict(zip(("low", "high"), bin_bounds(number), strict=True)) | {"images": images} for number, images in enumerate(histogram.images)
    ]
    return {"bins": bins, "outside": histogram.outside}


def _quality(
    version: Version, store: Store, location: str, class_names: str | None, image_column: str | None, label_column: str | None
) -> dict[str, Any]:
    from nst_data.inspection.quality import quality

    if version.manifest.kind == "teacher":
        raise UsageError(f"--truth: {version.ref} is a teacher and has no labels; `nst evaluate {version.ref} --data SOURCE` measures it")
    if version.manifest.kind == "review":
        raise UsageError(
            f"--truth measures labels of a teacher; name a generation or an edition, as in `nst show NAME --truth {version.ref}`"
        )
    if is_review_ref(location):
        if class_names or image_column or label_column:
            raise UsageError(f"--truth {location} knows its classes; remove --class-names, --image-column and --label-column")
        return asdict(quality(store, version, open_version(store, location, "review"), progress=cli_progress()))
    columns: dict[str, Any] = {"class_names": class_names, "image_column": image_column, "label_column": label_column}
    return asdict(quality(store, version, location, **columns, progress=cli_progress()))


def _print_manifest(version: Version) -> None:
    manifest = version.manifest
    print(f"{version.ref}  {manifest.kind}  {describe_version(manifest, version.local_folder)}")
    print(f"folder    {version.location}\ndigest    {manifest.digest}\ncreated   {manifest.created}, {manifest.seconds:,.1f} s")
    print("made from")
    for role, made_from in manifest.request.inputs.by_role.items():
        part = f" ({escape_unprintable(made_from.part)})" if made_from.part else ""
        print(f"  {role:<10} {escape_unprintable(made_from.ref)}{part}  {made_from.digest[:12]}")
    _print_counts(manifest.counts.model_dump())


def _print_settings(version: Version) -> None:
    manifest = version.manifest
    print("settings")
    for key, text in version_settings(manifest):
        print_wrapped(f"{key:<24} {text}", hang=25)
    if "batch_size" in manifest.machine:
        names = ("device", "precision", "batch_size", "threads")
        print("computed  " + ", ".join(f"{name.replace('_', ' ')} {manifest.machine[name]}" for name in names))


def _print_counts(counts: dict[str, Any]) -> None:
    from nst_data.store.counts import describe_reason as reason_in_words

    print("counts")
    for key, value in counts.items():
        if key not in ("per_class", "dropped", "classes_without_images", "shards"):
            print(f"  {_HEADINGS.get(key, key):<24} {format_value(value)}")
    if "dropped" in counts:
        print("dropped")
        print_wrapped(", ".join(f"{rows:,} {reason_in_words(reason)}" for reason, rows in counts["dropped"].items()))
    if counts.get("per_class"):
        _print_classes(counts["per_class"], counts.get("classes_without_images"))


def _print_classes(per_class: dict[str, Any], empty: list[str] | None) -> None:
    """Print the largest classes before selection with what is left of them, and all without images that were not excluded on purpose."""
    columns = {name: value if isinstance(value, dict) else {"labeled": value} for name, value in per_class.items()}
    ranked = sorted(columns, key=lambda name: -columns[name]["labeled"])
    names = list(columns[ranked[0]])
    shown = f"the largest {_CLASSES} of {len(ranked):,}, --json shows all" if len(ranked) > _CLASSES else f"all {len(ranked):,}"
    print(f"classes ({shown})")
    print_table(["class", *(_HEADINGS.get(name, name) for name in names)], ([name, *columns[name].values()] for name in ranked[:_CLASSES]))
    last = "unique" if "unique" in names else "labeled"
    empty = [name for name in per_class if not columns[name][last]] if empty is None else empty
    if empty:
        print_wrapped(describe_empty_classes(empty))


def _print_confidence(histograms: list[dict[str, Any]]) -> None:
    """Print the histograms before and after selection side by side."""
    print("confidence")
    max_counts = [max(bucket["images"] for bucket in version["bins"]) for version in histograms]
    digits = [max(len(f"{count:,}"), 6) for count in max_counts]
    width = (WIDTH - 12) // len(histograms)
    if len(histograms) > 1:
        print(" " * 14 + "".join(version["ref"].ljust(width) for version in histograms).rstrip())
    for bins in zip(*(version["bins"] for version in histograms), strict=True):
        line = f"  {bins[0]['low']:.1f} to {bins[0]['high']:.1f}"
        for bucket, count, n_digits in zip(bins, max_counts, digits, strict=True):
            line += f"  {bucket['images']:>{n_digits},}  {bar(bucket['images'], count, width - n_digits - 4)}".ljust(width)
        print(line.rstrip())
    for version in histograms:
        if version["outside"]:
            print(f"  {version['outside']:,} of {version['ref']} have a confidence that is no number in [0, 1]")


def _print_quality(quality: dict[str, Any]) -> None:
    from nst_data.inspection.quality import ECE_BINS

    by = "row" if quality["joined_by"] == "id" else quality["joined_by"]
    print(f"quality against {escape_unprintable(quality['truth'])}")
    print_wrapped(f"{quality['joined']:,} of {quality['labels']:,} images have a true label there, joined by {by}")
    if quality["ambiguous"]:
        print_wrapped(
            f"{quality['ambiguous']:,} of its {quality['truth_rows']:,} rows were left out: their images have several classes there"
        )
    if quality["unreadable"]:
        print_wrapped(f"{quality['unreadable']:,} of its {quality['truth_rows']:,} images could not be read")
    if review := quality["review"]:
        _print_review(review)
    error = f"expected calibration error {quality['calibration_error']:.4f} over {ECE_BINS} bins"
    of_these = " of these" if review else ""
    print_wrapped(f"accuracy{of_these} {100 * quality['accuracy']:.2f}%, {error}")
    print("accuracy by confidence")
    rows = [row for row in quality["by_confidence"] if row["images"]]
    print_table(
        ["confidence", "images", "accuracy", "mean confidence"],
        ([f"{row['low']:.1f} to {row['high']:.1f}", row["images"], row["accuracy"], row["mean_confidence"]] for row in rows),
    )
    if quality["wrong_pairs"]:
        print("most frequent mistakes")
        print_table(["labeled", "truly", "images"], ([*row.values()] for row in quality["wrong_pairs"]), names=2)
    print("least precise classes")
    print_table(["class", "labeled", "correct", "precision"], ([*row.values()] for row in quality["precision"][:_WORST]))


def _print_review(review: dict[str, Any]) -> None:
    """Print what reviewers' answers say about all images, and about those picked by each criterion."""
    if excluded := ", ".join(f"{images:,} {reason}" for reason, images in review["excluded"].items() if images):
        print_wrapped(f"people answered about {review['answered']:,} of its {review['images']:,} different images; {excluded}")
    if estimate := review["estimate"]:
        exclusions = ", ".join(f"{images:,} more {reason}" for reason, images in review["excluded_at_random"].items() if images)
        is_part = review["estimated"] < review["images"]
        scope = f"the {review['estimated']:,} of its {review['images']:,} images that picks were drawn from" if is_part else "all images"
        print_wrapped(
            f"estimated accuracy over {scope} {100 * estimate['accuracy']:.1f}%, 95% interval {100 * estimate['low']:.1f} to "
            f"{100 * estimate['high']:.1f}%, from {estimate['images']:,} picked at random{f' ({exclusions})' * bool(exclusions)}"
        )
    else:
        print_wrapped("no estimate for all images: none was picked at random from all; `nst pick REF --by random` picks some")
    rows = [(criterion, share) for criterion, share in review["by_pick"].items()]
    print_table(
        ["picked by", "images", "correct", "accuracy", "from", "to (95%)"],
        ([criterion, *(share[name] for name in ("images", "correct", "accuracy", "low", "high"))] for criterion, share in rows),
    )
