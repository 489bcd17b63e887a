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
from nst_data.cards.reproduction import command, thresholds
from nst_data.cards.rights import rights
from nst_data.store.counts import EditionCounts, GenerationCounts, ReviewCounts, in_words
from nst_data.store.files import replacing, write_text
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

_MOST_CLASSES = 100  # a card lists at most this many; of more, the largest and the smallest
_ENDS = 20


def dataset_card(version: Version, published: Published | None = None, target: Path | None = None) -> str:
    """The card of a generation, an edition or a review, for its local folder or, if `published`, for the Hub.

    Local paths are replaced by names. Only the command that reproduces the version keeps full paths in a local card, so that it can be run.

    `target` is the version's folder in the store, where its inputs are looked up; by default the folder that it is in. Pictures in that
    folder are shown; `write_pictures` draws them.
    """
    return _dataset_card(Described.of(version, target), published)


def model_card(version: Version, published: Published | None = None, target: Path | None = None) -> str:
    """The card of a teacher with its measured results, for its local folder or, if `published`, for the Hub."""
    return _model_card(Described.of(version, target), published)


def write_dataset_card(staging: Staging, manifest: Manifest) -> None:
    """Write the card and pictures of a version that is about to be sealed. Neither is covered by the seal."""
    _write_dataset_card(Described(staging.build, staging.target, manifest), staging.work)


def write_card(described: Described) -> None:
    """Write the card of a version of any kind, with the pictures of its labels, to its folder."""
    if described.manifest.kind == "teacher":
        write_model_card(described)
    else:
        _write_dataset_card(described)


def _write_dataset_card(described: Described, parts: Path | None = None) -> None:
    write_pictures(described, parts)
    write_text(described.folder / "README.md", _dataset_card(described, None), parts)


def show_on_card(version: Version, picture: bytes) -> None:
    """Show a PNG of some images on the card of a generation or an edition, locally and once it is pushed."""
    with replacing(version.folder / LOOK) as file:
        file.write(picture)
    write_text(version.folder / "README.md", dataset_card(version))


def write_model_card(described: Described) -> OwnText:
    """Write the card of a teacher to its folder; called again when new metrics are measured, keeping the user's own text.

    Returns that text, and any problem with the marks around it.
    """
    write_text(described.folder / "README.md", _model_card(described, None))
    return own_text(read_card(described.folder))


def _dataset_card(described: Described, published: Published | None) -> str:
    earlier, own = _earlier(described.folder, published)
    counts = described.manifest.counts
    if isinstance(counts, ReviewCounts):
        about = _about(described, published, earlier) | {"labels": sum(counts.per_class.values()), "per_class": _class_rows(described)}
        text = _render("review.md.jinja", **about, table=described.table, pool_source=pool_source_of(published, earlier))
        return front_matter(dataset_metadata(described, published, earlier)) + text + own.section
    assert isinstance(counts, GenerationCounts | EditionCounts), "teachers have cards of their own"
    pictures = [name for name in (CONFIDENCE, CLASSES, LOOK) if (described.folder / name).is_file()]
    text = _render(
        "edition.md.jinja" if isinstance(counts, EditionCounts) else "generation.md.jinja",
        **_about(described, published, earlier),
        table=described.table,
        tables=described.tables,
        confidence=CONFIDENCE if CONFIDENCE in pictures else None,
        class_counts=CLASSES if CLASSES in pictures else None,
        look=LOOK if LOOK in pictures else None,
        top_k=counts.top_k,
        first_images=described.manifest.first_images if isinstance(described.manifest, GenerationManifest) else None,
        per_class=_class_rows(described),
        teachers=_teachers(described, published),
        is_adopted=described.is_adopted,
        calibration=described.calibration,
        limits=known_limits(described, published),
        pool_source=pool_source_of(published, earlier),
        empty=_names(counts.classes_without_images if isinstance(counts, EditionCounts) else []),
        has_images=described.has_images,
    )
    return front_matter(dataset_metadata(described, published, earlier)) + text + own.section


def _model_card(described: Described, published: Published | None) -> str:
    earlier, own = _earlier(described.folder, published)
    text = _render(
        "teacher.md.jinja",
        **_about(described, published, earlier),
        results=scores(described.metrics()),
        requires_import=required_import(described.folder),
        library=library_of(described.folder),
        curves=CURVES if (described.folder / CURVES).is_file() else None,
        pool_source=None,
        most_classes=_MOST_CLASSES,
        steps=_lineage(described, published),
    )
    return front_matter(model_metadata(described, published, earlier)) + text + own.section


def _earlier(folder: Path, published: Published | None) -> tuple[dict[str, Any], OwnText]:
    """Front matter and own text to carry over, from the card in the repository or, failing that, from the one in the folder."""
    own = own_text(published.earlier if published else "")
    return earlier_metadata(folder, published), own if own.text.strip() else own_text(read_card(folder))


def _about(described: Described, published: Published | None, earlier: Mapping[str, Any]) -> dict[str, Any]:
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
            (role, _shown(role, entry, published), _code(entry.digest[:12]), entry.revision)
            for role, entry in described.inputs.by_role.items()
        ],
        "settings": dict(_settings(manifest.request.settings)),
        "license": license_of(published, earlier),
        "rights": rights(described, published),
        "command": command(described, published),
        "thresholds": thresholds(described),
    }


def _shown(role: str, made_from: Input, published: Published | None) -> str:
    """An input as markdown: its name, linked if it is on the Hub."""
    name = public_ref(made_from)
    place, part = place_of(role, made_from, published), f" ({as_text(made_from.part)})" if made_from.part else ""
    return (f"[{as_text(name)}]({place.url})" if place else as_text(name)) + part


def _settings(values: Mapping[str, Any], outer: str = "") -> Iterator[tuple[str, str]]:
    """Each setting by its full name, such as `noise.dropout`, with its value as text."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _settings(value, f"{outer}{name}.")
        else:
            yield f"{outer}{name}", "none" if value is None or value in ({}, []) else as_text(public_setting(name, value))


def _teachers(described: Described, published: Published | None) -> list[str]:
    """Each teacher as a line of markdown: link and revision, share in an ensemble, and accuracy."""
    entries = described.teachers()
    lines = []
    for role, entry in entries.items():
        version = described.found(entry)
        results = scores(Described.of(version).metrics()) if version else {}
        parts = [f"**{_shown(role, entry, published)}**"]
        parts += [f"revision {as_text(entry.revision)}"] if entry.revision else []
        parts += [f"zero-shot, by the class names in {_prompts(entry.texts)}"] if entry.texts else []
        parts += [f"one of {len(entries)}, each has the same share of the mean"] if len(entries) > 1 else []
        parts += [f"{as_text(name)}: {_score(result)}" for name, result in results.items()]
        lines.append("; ".join(parts) + ("" if results else "; its accuracy is not known here"))
    return lines


def _prompts(texts: ClassTexts) -> str:
    """The first three prompt templates of an image-text model, and how many more there are."""
    more = f" and {len(texts.prompts) - 3:,} more" if len(texts.prompts) > 3 else ""
    return ", ".join(as_text(f"“{prompt}”") for prompt in texts.prompts[:3]) + more


def _lineage(described: Described, published: Published | None) -> list[str]:
    """The steps from the first teacher to this one, one line of markdown each, as far back as the store has them."""
    steps = []
    for role, entry, version in described.lineage():
        line = _shown(role, entry, published if role in described.inputs.by_role else _without_links(published))
        steps.append(f"{line}: {_step(version)}" if version else f"{line}: further back the store here does not reach")
    last_step = f"**{as_text(described.ref)}**: {_step(described)}"
    return [*reversed(steps), last_step]


def _without_links(published: Published | None) -> Published | None:
    """Drop the links, which are keyed by role and apply to the version's own inputs only; inputs of other versions have the same roles."""
    return Published(published.repo, published.tag) if published else None


def _step(described: Described) -> str:
    match described.manifest:
        case EditionManifest(counts=counts):
            return f"{counts.copies:,} entries from {counts.unique:,} images selected"
        case TeacherManifest(counts=counts, request=request):
            parts = [f"{counts.labeled:,} labeled images"] if counts.labeled or not request.inputs.edition else []
            parts += [f"{counts.entries:,} pseudo-labeled entries"] if request.inputs.edition else []
            results = [f"{as_text(name)}: {_score(result)}" for name, result in scores(described.metrics()).items()]
            return "; ".join([f"trained on {' and '.join(parts)}", *results])
        case GenerationManifest(counts=counts):
            return f"{counts.labeled:,} images labeled by it"
    raise AssertionError(described.manifest.kind)


def _class_rows(described: Described) -> list[tuple[str, list[int]] | None]:
    """Rows of the class table with counts; if there are many, the largest and the smallest, separated by None."""
    rows = [(name, list(row.values())) for name, row in described.per_class().items()]
    if len(rows) <= _MOST_CLASSES:
        return list(rows)
    ranked = sorted(rows, key=lambda row: -row[1][min(1, len(row[1]) - 1)])
    return [*ranked[:_ENDS], None, *ranked[-_ENDS:]]


def _names(names: Sequence[str]) -> str:
    """Names as text, abbreviated if there are many."""
    more = f" and {len(names) - _MOST_CLASSES:,} more" if len(names) > _MOST_CLASSES else ""
    return as_text(", ".join(names[:_MOST_CLASSES])) + more


def _score(result: Mapping[str, Any]) -> str:
    """One result in words, as markdown."""
    parts = [f"{name} {100 * result[key]:.2f}%" for key, name in (("top1", "top-1"), ("top5", "top-5")) if key in result]
    if "mce" in result:
        parts.append(
            f"mCE {100 * result['mce']:.1f}" + (f" relative to {as_text(result['relative_to'])}" if "relative_to" in result else "")
        )
    if "mfr" in result:
        parts.append(f"mFR {100 * result['mfr']:.1f} relative to AlexNet")
    if "ece" in result:
        parts.append(f"expected calibration error {100 * result['ece']:.2f}%")
    attack = f" under an attack of {255 * result['epsilon']:.3g}/255" if "epsilon" in result else ""
    images = f" on {result['images']:,} images" if result.get("images") else ""
    return ", ".join(parts) + attack + images


def _code(text: str) -> str:
    return f"`{text}`" if re.fullmatch(r"[\w-]+", text, re.ASCII) else as_text(text)


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
    environment.filters |= {"text": as_text, "reason": in_words, "score": _score, "shell": shlex.quote}
    environment.filters |= {"number": "{:,}".format, "measured": "{:.4g}".format, "percent": "{:.2%}".format}
    return environment


def as_text(value: object) -> str:
    """Any value as a single line of markdown that is shown literally: no tags, links, tables or headings."""
    line = " ".join(str(value).split())
    return re.sub(r"([\\`*_{}\[\]()#+!|~$:.-])", r"\\\1", html.escape(line, quote=False))
