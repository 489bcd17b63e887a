"""`--show-settings`: the settings that a command would use, where each value comes from, and what follows from them."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nst_data.progress import escape_unprintable
from nst_train.settings import PROBE_SETTINGS, PSEUDO_LABEL_SETTINGS, ReadSettings, RunSettings, TrainSettings

if TYPE_CHECKING:
    from nst_data.self_contained.remote import StreamedEdition
    from nst_data.sources import Source
    from nst_data.store.store import Version

_WIDTH = 100


def settings_report(
    settings: TrainSettings,
    run: RunSettings,
    user_values: Mapping[str, Mapping[str, Any]],
    describe_origin: Callable[[str], str],
    labeled: "Source | None",
    edition: "Version | StreamedEdition | None",
    student: bool,
) -> dict[str, Any]:
    """Settings with their origins, and what follows from them, as JSON values. Raises UsageError for names that do not exist."""
    from nst_data.store.manifest import EditionManifest
    from nst_train.networks.models import check_model_and_optimizer, parameters_and_classes
    from nst_train.presets import PRESETS

    from .origins import derive_values, setting_origins

    check_model_and_optimizer(settings)
    by_place = setting_origins(settings, user_values["settings"], describe_origin) | setting_origins(
        run, user_values["run"], describe_origin
    )
    if not student:
        unused = [place for place in by_place if place.split(".")[0] in PSEUDO_LABEL_SETTINGS]
        by_place |= {place: (by_place[place][0], "unused without pseudo-labels") for place in unused}
    if settings.probe:
        by_place = {place: entry for place, entry in by_place.items() if place in {*PROBE_SETTINGS, *ReadSettings.model_fields}}
    named_classes = labeled.class_names if labeled else edition.manifest.class_names if edition else None
    parameters = parameters_and_classes(settings, len(named_classes) if named_classes else None)
    entries = EditionManifest.from_manifest(edition.manifest).counts.copies if edition else None
    return {
        "preset": f"{settings.preset}: {PRESETS[settings.preset].summary}" if settings.preset else None,
        "settings": {name: {"value": value, "source": source} for name, (value, source) in by_place.items()},
        "derived": ({} if settings.probe else derive_values(settings, len(labeled) if labeled else None, entries, student))
        | dict(zip(("parameters", "classes"), parameters or (None, None), strict=True)),
    }


def print_settings(report: Mapping[str, Any]) -> None:
    """Print the result of `settings_report` in aligned columns."""
    if report["preset"]:
        print(f"preset {report['preset']}\n")
    rows = [(name, _format_value(setting["value"]), escape_unprintable(setting["source"])) for name, setting in report["settings"].items()]
    _print_columns([("setting", "value", "from"), *rows])
    print()
    _print_columns(_derived_rows(report["derived"]))


def _derived_rows(derived: Mapping[str, Any]) -> list[tuple[str, str]]:
    sentences = _step_rows(derived) if "steps" in derived else []
    if derived["parameters"]:
        sentences.append(("parameters", f"{derived['parameters']:,} with {derived['classes']:,} classes"))
    return sentences


def _step_rows(derived: Mapping[str, Any]) -> list[tuple[str, str]]:
    images = f"{derived['labeled_images_per_step']:,} labeled"
    if derived["pseudo_labeled_images_per_step"]:
        images = f"{derived['images_per_step']:,}: {images}, {derived['pseudo_labeled_images_per_step']:,} pseudo-labeled"
    epochs_between = derived["epochs_between_decays"]
    sentences = [
        ("images in a step", images),
        ("learning rate at its peak", f"{derived['peak_learning_rate']:.6g}"),
        ("epochs between its steps down", "none: a cosine" if epochs_between is None else f"{epochs_between:.6g}"),
        ("steps", "name the labeled images to see them"),
    ]
    if derived["steps"] and derived["labeled_images"]:
        sentences[-1] = ("steps", f"{derived['steps']:,} over {derived['labeled_images']:,} labeled images")
    elif derived["steps"] and derived["pseudo_labeled_entries"]:
        sentences[-1] = ("steps", f"{derived['steps']:,}")
    if derived["passes_over_entries"]:
        entries = f"{derived['passes_over_entries']:.1f} over {derived['pseudo_labeled_entries']:,} entries"
        sentences.append(("passes over the pseudo-labels", entries))
    return sentences


def _print_columns(rows: Sequence[tuple[str, ...]]) -> None:
    """Print aligned columns. The last one is wrapped below itself, unless the others take up half of the line."""
    if not rows:
        return
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    indent = sum(width + 2 for width in widths[:-1])
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        print(textwrap.fill(line, _WIDTH, subsequent_indent=" " * indent, break_on_hyphens=False) if indent < _WIDTH / 2 else line)


def _format_value(value: Any) -> str:  # noqa: ANN401 - any setting
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else escape_unprintable(str(value))
