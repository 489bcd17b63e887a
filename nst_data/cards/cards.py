"""Dataset and model cards. Names from the data are always escaped, never interpreted as markup."""

import functools
import html
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from nst_data.cards.card_metadata import (
    dataset_metadata,
    earlier_metadata,
    front_matter,
    library_of,
    license_of,
    model_metadata,
    pool_source_of,
    required_import,
    scores,
)
from nst_data.cards.curves import CURVES
from nst_data.cards.described import Described
from nst_data.cards.known_limits import known_limits
from nst_data.cards.label_pictures import CLASSES, CONFIDENCE, LOOK, write_pictures
from nst_data.cards.own_text import OwnText, own_text, read_card
from nst_data.cards.published import Published, place_of, public_ref, public_setting
from nst_data.cards.reproduction import reproduction_command, thresholds_yaml
from nst_data.cards.rights import input_licenses
from nst_data.store.counts import EditionCounts, GenerationCounts, ReviewCounts, describe_reason
from nst_data.store.files import atomic_write, write_text
from nst_data.store.inputs import ClassTexts, Input
from nst_data.store.manifest import EditionManifest, GenerationManifest, Manifest, TeacherManifest
from nst_data.store.staging import Staging
from nst_data.store.version import Version

__all__ = [
    "Published",
    "dataset_card",
    "model_card",
    "own_text",
    "show_on_card",
    "write_card",
    "write_dataset_card",
    "write_model_card",
    "write_pictures",
]

_MAX_CLASSES = 100  # a card lists at most this many; of more, the largest and the smallest
_SHOWN_AT_EACH_END = 20


def dataset_card(version: Version, published: Published | None = None, target: Path | None = None) -> str:
    """The card of a generation, an edition or a review, for its local folder or, if `published`, for the Hub.

    Local paths are replaced by names. Only the command that reproduces the version keeps full paths in a local card, so that it can be run.

    `target` is the version's folder in the store, where its inputs are looked up; by default the folder that it is in. Pictures in that
    folder are shown; `write_pictures` draws them.
    """
    return _dataset_card(Described.from_version(version, target), published)


def model_card(version: Version, published: Published | None = None, target: Path | None = None) -> str:
    """The card of a teacher with its measured results, for its local folder or, if `published`, for the Hub."""
    return _model_card(Described.from_version(version, target), published)


def write_dataset_card(staging: Staging, manifest: Manifest) -> None:
    """Write the card and pictures of a version that is about to be sealed. Neither is covered by the seal."""
    _write_dataset_card(Described(staging.build, staging.target, manifest), staging.work)


def write_card(described: Described) -> None:
    """Write the card of a version of any kind, with the pictures of its labels, to its folder."""
    if described.manifest.kind == "teacher":
        write_model_card(described)
    else:
        _write_dataset_card(described)


def _write_dataset_card(described: Described, temp_folder: Path | None = None) -> None:
    write_pictures(described, temp_folder)
    write_text(described.folder / "README.md", _dataset_card(described, None), temp_folder)


def show_on_card(version: Version, picture: bytes) -> None:
    """Show a PNG of some images on the card of a generation or an edition, locally and once it is pushed."""
    with atomic_write(version.folder / LOOK) as file:
        file.write(picture)
    write_text(version.folder / "README.md", dataset_card(version))


def write_model_card(described: Described) -> OwnText:
    """Write the card of a teacher to its folder; called again when new metrics are measured, keeping the user's own text.

    Returns that text, and any problem with the marks around it.
    """
    write_text(described.folder / "README.md", _model_card(described, None))
    return own_text(read_card(described.folder))


def _dataset_card(described: Described, published: Published | None) -> str:
    earlier, own = _earlier_content(described.folder, published)
    counts = described.manifest.counts
    if isinstance(counts, ReviewCounts):
        context = _common_values(described, published, earlier) | {
            "labels": sum(counts.per_class.values()),
            "per_class": _class_rows(described),
        }
        text = _render("review.md.jinja", **context, table=described.table, pool_source=pool_source_of(published, earlier))
        return front_matter(dataset_metadata(described, published, earlier)) + text + own.section
    assert isinstance(counts, GenerationCounts | EditionCounts), "teachers have cards of their own"
    pictures = [name for name in (CONFIDENCE, CLASSES, LOOK) if (described.folder / name).is_file()]
    text = _render(
        "edition.md.jinja" if isinstance(counts, EditionCounts) else "generation.md.jinja",
        **_common_values(described, published, earlier),
        table=described.table,
        tables=described.tables,
        confidence=CONFIDENCE if CONFIDENCE in pictures else None,
        class_counts=CLASSES if CLASSES in pictures else None,
        look=LOOK if LOOK in pictures else None,
        top_k=counts.top_k,
        first_images=described.manifest.first_images if isinstance(described.manifest, GenerationManifest) else None,
        per_class=_class_rows(described),
        teachers=_teacher_lines(described, published),
        is_adopted=described.is_adopted,
        calibration=described.calibration,
        limits=known_limits(described, published),
        pool_source=pool_source_of(published, earlier),
        empty=_join_names(counts.classes_without_images if isinstance(counts, EditionCounts) else []),
        has_images=described.has_images,
    )
    return front_matter(dataset_metadata(described, published, earlier)) + text + own.section


def _model_card(described: Described, published: Published | None) -> str:
    earlier, own = _earlier_content(described.folder, published)
    text = _render(
        "teacher.md.jinja",
        **_common_values(described, published, earlier),
        results=scores(described.metrics()),
        requires_import=required_import(described.folder),
        library=library_of(described.folder),
        curves=CURVES if (described.folder / CURVES).is_file() else None,
        pool_source=None,
        most_classes=_MAX_CLASSES,
        steps=_lineage_lines(described, published),
    )
    return front_matter(model_metadata(described, published, earlier)) + text + own.section


def _earlier_content(folder: Path, published: Published | None) -> tuple[dict[str, Any], OwnText]:
    """Front matter and own text to carry over, from the card in the repository or, failing that, from the one in the folder."""
    own = own_text(published.earlier_card if published else "")
    return earlier_metadata(folder, published), own if own.text.strip() else own_text(read_card(folder))


def _common_values(described: Described, published: Published | None, earlier: Mapping[str, Any]) -> dict[str, Any]:
    """Template values that both kinds of card need."""
    manifest = described.manifest
    return {
        "ref": described.ref,
        "name": described.target.parent.name,
        "folder": described.target.name,
        "published": published,
        "request": manifest.request,
        "class_names": manifest.class_names,
        "counts": manifest.counts,
        "made_from": [
            (role, _input_link(role, entry, published), _as_code(entry.digest[:12]), entry.revision)
            for role, entry in described.inputs.by_role.items()
        ],
        "settings": dict(_flatten_settings(manifest.request.settings)),
        "license": license_of(published, earlier),
        "rights": input_licenses(described, published),
        "command": reproduction_command(described, published),
        "thresholds": thresholds_yaml(described),
    }


def _input_link(role: str, entry: Input, published: Published | None) -> str:
    """An input as markdown: its name, linked if it is on the Hub."""
    name = public_ref(entry)
    place, part_text = place_of(role, entry, published), f" ({escape_markdown(entry.part)})" if entry.part else ""
    return (f"[{escape_markdown(name)}]({place.url})" if place else escape_markdown(name)) + part_text


def _flatten_settings(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each setting by its full name, such as `noise.dropout`, with its value as text."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flatten_settings(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", "none" if value is None or value in ({}, []) else escape_markdown(public_setting(name, value))


def _teacher_lines(described: Described, published: Published | None) -> list[str]:
    """Each teacher as a line of markdown: link and revision, share in an ensemble, and accuracy."""
    entries = described.teachers()
    lines = []
    for role, entry in entries.items():
        version = described.find_input(entry)
        results = scores(Described.from_version(version).metrics()) if version else {}
        phrases = [f"**{_input_link(role, entry, published)}**"]
        phrases += [f"revision {escape_markdown(entry.revision)}"] if entry.revision else []
        phrases += [f"zero-shot, by the class names in {_prompts(entry.texts)}"] if entry.texts else []
        phrases += [f"one of {len(entries)}, each has the same share of the mean"] if len(entries) > 1 else []
        phrases += [f"{escape_markdown(name)}: {_format_score(result)}" for name, result in results.items()]
        lines.append("; ".join(phrases) + ("" if results else "; its accuracy is not known here"))
    return lines


def _prompts(texts: ClassTexts) -> str:
    """The first three prompt templates of an image-text model, and how many more there are."""
    remainder = f" and {len(texts.prompts) - 3:,} more" if len(texts.prompts) > 3 else ""
    return ", ".join(escape_markdown(f"“{prompt}”") for prompt in texts.prompts[:3]) + remainder


def _lineage_lines(described: Described, published: Published | None) -> list[str]:
    """The steps from the first teacher to this one, one line of markdown each, as far back as the store has them."""
    steps = []
    for role, entry, version in described.lineage():
        line = _input_link(role, entry, published if role in described.inputs.by_role else _without_links(published))
        steps.append(f"{line}: {_describe_step(version)}" if version else f"{line}: further back the store here does not reach")
    last_step = f"**{escape_markdown(described.ref)}**: {_describe_step(described)}"
    return [*reversed(steps), last_step]


def _without_links(published: Published | None) -> Published | None:
    """Drop the links, which are keyed by role and apply to the version's own inputs only; inputs of other versions have the same roles."""
    return Published(published.repo, published.tag) if published else None


def _describe_step(described: Described) -> str:
    match described.manifest:
        case EditionManifest(counts=counts):
            return f"{counts.copies:,} entries from {counts.unique:,} images selected"
        case TeacherManifest(counts=counts, request=request):
            phrases = [f"{counts.labeled:,} labeled images"] if counts.labeled or not request.inputs.edition else []
            phrases += [f"{counts.entries:,} pseudo-labeled entries"] if request.inputs.edition else []
            results = [f"{escape_markdown(name)}: {_format_score(result)}" for name, result in scores(described.metrics()).items()]
            return "; ".join([f"trained on {' and '.join(phrases)}", *results])
        case GenerationManifest(counts=counts):
            return f"{counts.labeled:,} images labeled by it"
    raise AssertionError(described.manifest.kind)


def _class_rows(described: Described) -> list[tuple[str, list[int]] | None]:
    """Rows of the class table with counts; if there are many, the largest and the smallest, separated by None."""
    rows = [(name, list(row.values())) for name, row in described.per_class().items()]
    if len(rows) <= _MAX_CLASSES:
        return list(rows)
    ranked = sorted(rows, key=lambda row: -row[1][min(1, len(row[1]) - 1)])
    return [*ranked[:_SHOWN_AT_EACH_END], None, *ranked[-_SHOWN_AT_EACH_END:]]


def _join_names(names: Sequence[str]) -> str:
    """Names as text, abbreviated if there are many."""
    remainder = f" and {len(names) - _MAX_CLASSES:,} more" if len(names) > _MAX_CLASSES else ""
    return escape_markdown(", ".join(names[:_MAX_CLASSES])) + remainder


def _format_score(result: Mapping[str, Any]) -> str:
    """One result in words, as markdown."""
    phrases = [f"{name} {100 * result[key]:.2f}%" for key, name in (("top1", "top-1"), ("top5", "top-5")) if key in result]
    if "mce" in result:
        phrases.append(
            f"mCE {100 * result['mce']:.1f}" + (f" relative to {escape_markdown(result['relative_to'])}" if "relative_to" in result else "")
        )
    if "mfr" in result:
        phrases.append(f"mFR {100 * result['mfr']:.1f} relative to AlexNet")
    if "ece" in result:
        phrases.append(f"expected calibration error {100 * result['ece']:.2f}%")
    attack = f" under an attack of {255 * result['epsilon']:.3g}/255" if "epsilon" in result else ""
    images = f" on {result['images']:,} images" if result.get("images") else ""
    return ", ".join(phrases) + attack + images


def _as_code(text: str) -> str:
    return f"`{text}`" if re.fullmatch(r"[\w-]+", text, re.ASCII) else escape_markdown(text)


def _render(template: str, **values: Any) -> str:  # noqa: ANN401 - what the template shows
    return _templates().get_template(template).render(**values)


@functools.cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(  # nosec B701 # markdown: `text` escapes both HTML and markdown
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # markdown: `text` escapes both HTML and markdown
    )
    environment.filters |= {"text": escape_markdown, "reason": describe_reason, "score": _format_score, "shell": shlex.quote}
    environment.filters |= {"number": "{:,}".format, "measured": "{:.4g}".format, "percent": "{:.2%}".format}
    return environment


def escape_markdown(value: object) -> str:
    """Any value as a single line of markdown that is shown literally: no tags, links, tables or headings."""
    line = " ".join(str(value).split())
    return re.sub(r"([\\`*_{}\[\]()#+!|~$:.-])", r"\\\1", html.escape(line, quote=False))
