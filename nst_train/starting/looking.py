"""What a user has: sources by role, images per class, sizes, and likely problems. Decodes one image of each class."""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nst_data.errors import NstError, UsageError
from nst_data.images import decode, upright_size
from nst_data.progress import escape_unprintable
from nst_data.selection.overlap import DECODED_SIDE_PX
from nst_data.sources import Row, Source, check_trainable, labels_in, match_classes, open_source
from nst_data.sources.changes import HASH
from nst_data.sources.hashing import image_hashes
from nst_data.sources.unreadable import describe_lost_classes, lost_class_error
from nst_data.store.metrics import min_significant_difference
from nst_train.training.readable import duplicate_warning

FOLDERS = {  # names in common use; messages show the first
    "labeled": ("labeled", "labelled", "train", "training"),
    "pool": ("unlabeled", "unlabelled", "pool"),
    "test": ("test", "testing"),
    "validation": ("validation", "valid", "val"),
}
_FILE_SUFFIXES = (".parquet", ".tar", ".txt", ".csv", ".jsonl")
HOLDOUT = 0.2
_SAMPLE_SIZE = 64  # images of a source whose headers are read
TINY_PX = 80  # images with shorter sides than this are enlarged a lot for a network of photographs
_MAX_HASHED, _MAX_COMPARED = 5_000, 1_000  # images that are hashed to find copies
_UNBALANCED, _FEW_TESTED, _MAX_POOL_RATIO = 10, 1_000, 50


@dataclass(frozen=True)
class Inventory:
    """What was found. `locations` maps each role to its source as named or found, `columns` to the columns it was opened with."""

    locations: dict[str, str]
    labeled: Source
    pool: Source
    test: Source | None
    validation: Source | None
    class_counts: NDArray[np.int64]  # labeled images of each class
    sides_px: NDArray[np.int64]  # shorter side of some labeled and pool images, upright
    n_unreadable: int  # number of sampled images that cannot be read
    faults: list[str] = field(default_factory=list)  # unreadable classes; labeled images in two classes or in the test or validation set
    columns: dict[str, dict[str, str]] = field(default_factory=dict)  # by role, such as {"label_column": "kind"}

    @property
    def class_names(self) -> list[str]:
        """The classes of the labeled images."""
        return self.labeled.class_names or []

    @property
    def holdout(self) -> float | None:
        """The share to hold out if there is no test set and a class has two images."""
        return HOLDOUT if self.test is None and int(self.class_counts.max()) > 1 else None

    @property
    def n_training(self) -> int:
        """The number of labeled images left for training; near-duplicates may make it slightly larger."""
        if self.holdout is None:
            return len(self.labeled)
        held_out = np.where(self.class_counts > 1, np.maximum(1, np.floor(self.holdout * self.class_counts + 0.5)), 0)
        return len(self.labeled) - int(held_out.sum())

    @property
    def per_class(self) -> str:
        """Labeled images per class as text: a number or a range."""
        min_count, max_count = int(self.class_counts.min()), int(self.class_counts.max())
        return f"{min_count:,}" if min_count == max_count else f"{min_count:,} to {max_count:,}"

    @property
    def side_px(self) -> int:
        """The median shorter side; 0 if no sampled image could be read."""
        return int(np.median(self.sides_px)) if len(self.sides_px) else 0


def inspect_sources(photos: Path | str | None, columns: Mapping[str, str] | None = None, **by_role: str | None) -> Inventory:
    """Open the sources in a folder with labeled/, unlabeled/, test/ and validation/, and those named by role.

    `columns` are `open_source`'s `label_column`, `image_column` and `class_names` of the labeled images, and of others that have them.
    Raises UsageError or NstError, in one line, for anything that makes a recipe impossible.
    """
    locations = {role: location for role, location in by_role.items() if location is not None}
    if photos is not None:
        locations = _find_sources(Path(photos), set(locations)) | locations
    _check_required_roles(photos, locations)
    _check_distinct(locations)
    sources, used_columns = {}, {}
    for role, location in locations.items():
        sources[role], used_columns[role] = _open_role(role, location, columns or {})
    labeled, pool = sources["labeled"], sources["pool"]
    check_trainable(labeled)
    for role in ("test", "validation"):
        if role in sources:
            match_classes(sources[role].class_names or [], labeled.class_names or [], sources[role].location, subset=True)
    counts = np.bincount(labels_in(labeled), minlength=len(labeled.class_names or []))
    sides = []
    for role in ("labeled", "pool"):
        sampled = list(_sides_px(sources[role]))
        _check_some_readable(role, sources[role], sampled)
        sides += sampled
    readable = np.array([side for side in sides if side], dtype=np.int64)
    check_classes_are_readable(labeled)
    test, validation = sources.get("test"), sources.get("validation")
    eval_sources = [source for source in (test, validation) if source]
    faults = [f"{source.location}: {describe_lost_classes(classes)}" for source in eval_sources if (classes := _lost_classes(source))]
    faults += _duplicate_warnings(labeled, eval_sources, pool)
    return Inventory(locations, labeled, pool, test, validation, counts, readable, len(sides) - len(readable), faults, used_columns)


def check_classes_are_readable(labeled: Source) -> None:
    """Raises NstError for a class whose images exist but cannot be read, as training does. Of a readable class, it reads one image."""
    names = labeled.class_names or []
    for name, images, fault in _unreadable_classes(labeled):
        raise lost_class_error(labeled.location, images, names[name], fault)


def _duplicate_warnings(labeled: Source, eval_sources: list[Source], pool: Source) -> Iterator[str]:
    """A line for labeled images in two classes, and one per set for those also in it; skipped if there are many labeled images."""
    if len(labeled) > _MAX_HASHED:
        return
    labeled_hashes = [hashed for _, hashed in image_hashes(labeled.rows(np.arange(len(labeled))))]
    if line := duplicate_warning(labeled, np.array([bytes.fromhex(hashed or "0" * 32) for hashed in labeled_hashes], HASH)):
        yield line
    distinct_hashes = {hashed for hashed in labeled_hashes if hashed}
    for source in eval_sources:
        n_common, compared = _count_common(source, distinct_hashes)
        if n_common:
            yield f"{source.location}: {n_common:,} of {compared} are labeled images too, on which a score tells nothing: remove them there"
    n_common, compared = _count_common(pool, distinct_hashes)
    if n_common == len(pool):
        yield f"{pool.location}: all of its images are labeled images too: nothing is left to learn from; add unlabeled images"
    elif n_common and not Path(pool.location).is_dir():  # of a folder that contains the labeled one `_pool_warnings` tells
        yield f"{pool.location}: {n_common:,} of {compared} are labeled images too, from which nothing new is learned"


def _count_common(source: Source, hashes: set[str]) -> tuple[int, str]:
    """How many images of a sample have one of the hashes, and the sample's size as text."""
    sample = source.rows(np.linspace(0, len(source) - 1, min(len(source), _MAX_COMPARED), dtype=np.int64))
    compared = [hashed for _, hashed in image_hashes(sample) if hashed]
    note = " that were compared" * (len(compared) < len(source))
    return sum(hashed in hashes for hashed in compared), f"its {len(compared):,} images{note}"


def _lost_classes(source: Source) -> dict[str, int]:
    """The classes of which no image can be read, with their number of images."""
    names = source.class_names or []
    return {names[label]: images for label, images, _ in _unreadable_classes(source)}


def _unreadable_classes(source: Source) -> Iterator[tuple[int, int, str]]:
    """(class, number of images, a line about the first one) for each class of which no image can be read."""
    labels = labels_in(source)
    present, first_rows = np.unique(labels, return_index=True)
    suspects = {int(labels[row.id]): reason for row in source.rows(np.sort(first_rows)) if (reason := _read_error(row))}
    for label in map(int, present):
        if label in suspects:
            rows = np.flatnonzero(labels == label)
            if len(rows) == 1 or all(_read_error(row) for row in source.rows(rows[1:])):
                yield label, len(rows), suspects[label]


def _read_error(row: Row) -> str | None:
    """Where and why an image cannot be read; None if it can."""
    try:
        decode(row.read(), DECODED_SIDE_PX)
    except (OSError, NstError) as error:
        return f"{row.key}: {error}"
    return None


def check_is_folder(photos: Path) -> None:
    """Raises NstError if it is not a folder."""
    if not photos.is_dir():
        problem = "not a folder" if photos.exists() else "no such folder"
        raise NstError(f"{photos}: {problem}; expected one with labeled/ and unlabeled/ in it, or `labeled` and `pool` sources")


def _find_sources(photos: Path, named_roles: set[str]) -> dict[str, str]:
    check_is_folder(photos)
    paths = sorted(
        path for path in photos.iterdir() if not path.name.startswith(".") and (path.is_dir() or path.suffix.lower() in _FILE_SUFFIXES)
    )
    locations = {}
    for role, names in FOLDERS.items():
        if role in named_roles:
            continue
        matching = [path for path in paths if (path.name if path.is_dir() else path.stem).lower() in names]
        if len(matching) > 1:
            raise UsageError(f"{photos}: {matching[0].name} and {matching[1].name} may both be the {role} images; name one with `{role}`")
        if matching:
            locations[role] = str(matching[0])
    return locations


def _check_required_roles(photos: Path | str | None, locations: dict[str, str]) -> None:
    """Raises UsageError if there are no labeled images or no pool, listing what was found."""
    if photos is None and (missing := [f"`{role}`" for role in ("labeled", "pool") if role not in locations]):
        raise UsageError(f"{' and '.join(missing)}: missing; give a folder with labeled/ and unlabeled/ in it, or name both sources")
    for role in ("labeled", "pool"):
        if role not in locations:
            entry_names = sorted(escape_unprintable(entry.name) for entry in Path(str(photos)).iterdir() if not entry.name.startswith("."))
            shown = ", ".join(entry_names[:5]) + ", ..." * (len(entry_names) > 5)
            hint = "; without a pool there is nothing to learn from: a single training makes a classifier" if role == "pool" else ""
            raise UsageError(
                f"{photos}: expected a folder {FOLDERS[role][0]}/ in it, found {shown or 'nothing'}; name them with `{role}`{hint}"
            )


def _check_distinct(locations: dict[str, str]) -> None:
    """Raises NstError for a source inside the labeled folder, whose folders are classes; UsageError for a source in two roles."""
    paths = {role: Path(location).resolve() for role, location in locations.items() if os.path.exists(location)}
    labeled = paths.pop("labeled", None)
    for first, second in (("test", "validation"), ("pool", "test"), ("pool", "validation")):
        if first in paths and paths[first] == paths.get(second):
            raise UsageError(f"{locations[first]}: given as `{first}` and as `{second}`; expected two sources")
    for role in paths:
        if labeled is None:
            continue
        if paths[role] == labeled:
            raise UsageError(f"{locations[role]}: given as `labeled` and as `{role}`; expected two sources")
        if labeled.is_dir() and labeled in paths[role].parents:
            raise NstError(
                f"{locations[role]}: is inside the labeled folder {locations['labeled']}, where each folder is a class; move it out of "
                "there"
            )


def _open_role(role: str, location: str, columns: Mapping[str, str]) -> tuple[Source, dict[str, str]]:
    """The source, and the columns it was opened with: sources other than the labeled one may be folders, or have other columns."""
    used_columns: dict[str, Any] = {name: value for name, value in columns.items() if role != "pool" or name == "image_column"}
    try:
        return open_source(location, labeled=role != "pool", **used_columns), used_columns
    except NstError as error:
        if used_columns and role != "labeled":
            with suppress(NstError):
                return open_source(location, labeled=role != "pool"), {}
        raise type(error)(f"{role}: {error}") from None


def _sides_px(source: Source) -> Iterator[int]:
    """The shorter side of some evenly spread images, from their headers; 0 for unreadable ones."""
    for row in source.rows(np.unique(np.linspace(0, len(source) - 1, min(_SAMPLE_SIZE, len(source))).astype(np.int64))):
        try:
            yield min(upright_size(row.read()))
        except (OSError, NstError):
            yield 0


def _check_some_readable(role: str, source: Source, sides: list[int]) -> None:
    """Raises NstError if none of the sampled images can be read."""
    if not any(sides):
        inspected = f"its {len(sides):,}" if len(sides) == len(source) else f"{len(sides):,} of its {len(source):,}"
        row = next(iter(source.rows(np.zeros(1, np.int64))))
        raise NstError(
            f"{role}: {source.location}: none of {inspected} images that were looked at can be read; the first is {_read_error(row)}"
        )


def likely_problems(inventory: Inventory) -> list[str]:
    """Likely problems, one line each."""
    return [*_label_warnings(inventory), *_pool_warnings(inventory), *_image_warnings(inventory)]


def _label_warnings(inventory: Inventory) -> Iterator[str]:
    counts, names = inventory.class_counts, inventory.class_names
    for min_count, max_count, description in ((0, 0, "no labeled images"), (1, 2, "one or two labeled images")):
        if rare := [escape_unprintable(name) for name, images in zip(names, counts, strict=True) if min_count <= images <= max_count]:
            shown = ", ".join(rare[:5]) + ", ..." * (len(rare) > 5)
            verb, pronoun = ("have", "these") if len(rare) > 1 else ("has", "it")
            yield f"{len(rare):,} of {len(names):,} classes {verb} {description} ({shown}): label some more of {pronoun} first"
    if empty := inventory.labeled.empty_classes:
        folders, are = ("folders", "are not classes") if len(empty) > 1 else ("folder", "is not a class")
        yield f"{len(empty):,} {folders} without images {are}: {', '.join(empty[:5])}{', ...' * (len(empty) > 5)}"
    present = counts[counts > 0]
    if present.max() >= _UNBALANCED * present.min() and present.max() > 20:
        rarest, commonest = (
            escape_unprintable(names[int(np.flatnonzero(counts == images)[0])]) for images in (present.min(), present.max())
        )
        yield (
            f"labels are unbalanced: {present.max():,} of {commonest}, {present.min():,} of {rarest}: "
            "`class_weights: balanced` in the generations makes classes count alike"
        )
    if inventory.test is None and inventory.holdout is None:
        yield "there are no test images, and no class has two images of which one could be held out: nothing will be measured"
    elif inventory.test is None:
        singletons = int((counts == 1).sum())
        singletons_text = (
            f"{singletons:,} classes with one image keep it and are" if singletons > 1 else "1 class with one image keeps it and is"
        )
        held_out = len(inventory.labeled) - inventory.n_training
        note = f"; {singletons_text} not tested" if singletons else ""
        yield f"there are no test images: {held_out:,} of the labeled ones {'are' if held_out > 1 else 'is'} held out{note}"
    tested = len(inventory.test) if inventory.test else len(inventory.labeled) - inventory.n_training
    if 0 < tested < _FEW_TESTED:
        tell = f"{tested:,} test images tell" if tested > 1 else "1 test image tells"
        yield f"{tell} networks apart only where they differ by {100 * min_significant_difference(tested):.0f} points or more"


def _pool_warnings(inventory: Inventory) -> Iterator[str]:
    if len(inventory.pool) < len(inventory.labeled):
        yield (
            f"the pool has {format_count(len(inventory.pool), 'image')}, fewer than the {len(inventory.labeled):,} labeled ones: it can "
            "teach little"
        )
    places = {role: Path(location).resolve() for role, location in inventory.locations.items() if os.path.isdir(location)}
    for role in ("labeled", "test", "validation"):
        if "pool" in places and role in places and places["pool"] in places[role].parents:
            yield f"the pool contains the {role} images: students are not trained on them, but they are labeled, which takes time"


def _image_warnings(inventory: Inventory) -> Iterator[str]:
    if 0 < inventory.side_px < TINY_PX:
        yield f"the images are tiny ({inventory.side_px} px): they are enlarged for a network that was trained on photographs"
    if inventory.n_unreadable:
        they = "they" if inventory.n_unreadable > 1 else "it"
        yield (
            f"{inventory.n_unreadable:,} of {inventory.n_unreadable + len(inventory.sides_px):,} images that were looked at cannot be "
            f"read: {they} will be skipped"
        )
    yield from inventory.faults


def format_count(number: int, noun: str) -> str:
    """A number with its noun, such as `1 image` or `1,200 images`."""
    return f"{number:,} {noun}{('es' if noun.endswith('s') else 's') * (number != 1)}"


def pool_resembles_labeled(inventory: Inventory) -> bool:
    """Whether the pool is small enough to resemble the labeled images: nobody collects many times as many by hand."""
    return len(inventory.pool) <= _MAX_POOL_RATIO * len(inventory.labeled)
