"""`nst export`: write a generation, an edition or a review as files for other tools."""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args
from xml.sax.saxutils import quoteattr  # nosec B406 # only writes XML, never parses it

from nst_data.arguments import with_checked_arguments
from nst_data.errors import NstError, UsageError
from nst_data.formats.labeled_images import LabeledImages, LabeledRow, labeled_images
from nst_data.images import image_suffix
from nst_data.label_files import label_studio
from nst_data.label_files.writing import csv_line, json_line, write_json
from nst_data.progress import Progress, on_this_terminal
from nst_data.safe_names import file_name, folder_names
from nst_data.sources import Source
from nst_data.sources.files import has_image_suffix
from nst_data.store.files import clear_abandoned, names_in, replacing, write_text
from nst_data.store.manifest import is_anonymous
from nst_data.store.store import Store, Version

Format = Literal["folders", "csv", "jsonl", "imagefolder", "webdataset", "fiftyone", "label-studio"]
FORMATS: tuple[Format, ...] = get_args(Format)
MARKER, CLASSES, OTHER_NAMES = ".nst-export.json", "classes.txt", "folders.json"
_WITHOUT_IMAGES = {"csv": "labels.csv", "jsonl": "labels.jsonl"}  # the file with the labels
_OF_FILES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".txt", ".tar", ".zip")
_ROWS_PER_TAR = 1_000


@dataclass(frozen=True)
class Exported:
    """The result of an export: the folder, and the number of images in total and per class."""

    folder: Path
    images: int
    per_class: dict[str, int]
    table: Path | None = None  # the only file with labels, for formats without images


@with_checked_arguments
def export(
    store: Store,
    version: Version | str,
    path: str | Path,
    *,
    to: Format = "folders",
    pool: Source | str | None = None,
    link: bool = False,
    probs: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write a generation, an edition or a review for other tools. An interrupted export resumes; a finished one is not repeated.

    Args:
        store: The store that holds the version.
        version: A generation, an edition or a review, or its name, such as `name@gen-N`. For a review, the images to which people gave
            a class are written, each with probability 1.
        path: The target: a new or empty folder, or one in which an export of the same version with the same options was started.
        to: `folders` (a folder per class, for torchvision's ImageFolder), `csv` and `jsonl` (only labels), `imagefolder` (that of
            `datasets`, with `metadata.jsonl`), `webdataset` (tar files), `fiftyone` (its image classification dataset) or
            `label-studio` (tasks with predictions or, for a review, annotations).
        pool: The images, if they have moved since labeling: a source or its location.
        link: Link to the image files of the pool instead of copying them.
        probs: Also write the probability of every class.
        progress: How progress is shown.

    Returns:
        The folder, the number of images in it, and the number per class. An image with several copies in an edition is written once;
        `csv`, `jsonl`, `imagefolder` and `webdataset` record their number as `copies`.

    Raises:
        UsageError: The version has no labels, options contradict each other, or `path` is named like a file.
        NstError: The folder has other files, or an image is missing or has changed.
    """
    version = version if isinstance(version, Version) else store.open(version)
    if version.manifest.kind == "teacher":
        raise UsageError(f"{version.ref} is a teacher, a network without labels; `to` onnx or torch-export writes it to a file")
    if to not in FORMATS:
        raise UsageError(f"`to` {to}: expected {', '.join(FORMATS)}")
    if link and to in (*_WITHOUT_IMAGES, "webdataset"):
        raise UsageError(f"`link`: {to} has no image files of its own; remove `link`")
    if is_anonymous(version.manifest) and to in _WITHOUT_IMAGES:
        raise UsageError(f"{version.ref}: was published without the keys and hashes that {to} lists; choose a format with images")
    target = _Target(Path(path), version, {"to": to, "link": link, "probs": probs})
    target.begin()
    pool_location = pool.location if isinstance(pool, Source) else pool
    labeled = labeled_images(store, version, pool_location, to not in _WITHOUT_IMAGES)
    progress = progress or on_this_terminal()
    if reviews := version.manifest.request.inputs.by_role.get("reviews"):
        progress.say(f"{version.ref} was drawn with {reviews.ref}, which has the images that people gave a class: export that too")
    if not target.is_done:
        with progress.task(f"export {version.ref}", labeled.count, "images") as task:
            _WRITERS[to](_Export(target.folder, labeled, link, probs, task.advance, progress.say))
        write_text(target.folder / CLASSES, "".join(f"{name}\n" for name in version.manifest.class_names))
        target.end()
    per_class = Counter(row.class_name for row in labeled.rows())
    table = target.folder / _WITHOUT_IMAGES[to] if to in _WITHOUT_IMAGES else None
    return Exported(target.folder, labeled.count, {name: per_class[name] for name in version.manifest.class_names}, table)


@dataclass(frozen=True)
class _Target:
    """The target folder, with a marker file that records what it holds."""

    folder: Path
    version: Version
    options: dict[str, Any]

    @property
    def _wanted(self) -> dict[str, Any]:
        return {"ref": self.version.ref, "digest": self.version.manifest.digest, **self.options}

    def begin(self) -> None:
        """Claim the folder. Raises NstError if it has files that this export did not write, UsageError if it is named like a file."""
        marker = self._marker()
        if marker is None:
            if self.folder.suffix.lower() in _OF_FILES and not self.folder.exists():
                raise UsageError(
                    f"{self.folder}: named like a file; an export of labels is a folder, such as {self.folder.with_suffix('')}"
                )
            if self.folder.is_file() or (self.folder.is_dir() and names_in(self.folder)):
                raise NstError(f"{self.folder}: expected a new or empty folder, found other files; choose another one")
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                raise NstError(f"{self.folder}: part of this path is a file, not a folder; choose another one") from None
            self._mark(is_done=False)
            return
        if any(marker.get(name) != value for name, value in self._wanted.items()):
            raise NstError(f"{self.folder}: holds an export of {self._about(marker)}; choose another folder, or remove this one")
        for folder in (self.folder, *(path for path in self.folder.iterdir() if path.is_dir())):
            clear_abandoned(folder, seconds=0)

    def _about(self, found: dict[str, Any]) -> str:
        """A phrase about the version and options of another export."""
        is_same_name = found.get("ref") == self.version.ref and found.get("digest") != self.version.manifest.digest
        options = "".join(f", with `{name}`" for name in ("link", "probs") if found.get(name))
        return f"{'another ' * is_same_name}{found.get('ref')} as {found.get('to')}{options}"

    @property
    def is_done(self) -> bool:
        """Whether the export is complete."""
        return bool((self._marker() or {}).get("done"))

    def end(self) -> None:
        """Record that the export is complete."""
        self._mark(is_done=True)

    def _mark(self, is_done: bool) -> None:
        write_text(self.folder / MARKER, json.dumps(self._wanted | {"done": is_done}, indent=2) + "\n")

    def _marker(self) -> dict[str, Any] | None:
        try:
            marker = json.loads((self.folder / MARKER).read_text("utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError):
            raise NstError(f"{self.folder / MARKER}: the record of the export is damaged; remove {self.folder}") from None
        return marker if isinstance(marker, dict) else None


@dataclass(frozen=True)
class _Export:
    """The input of a writer: the folder, the rows with their images, and the options."""

    folder: Path
    labeled: LabeledImages
    link: bool
    probs: bool
    advance: Callable[[int], None]
    say: Callable[[str], None]

    @property
    def class_names(self) -> list[str]:
        """The classes of the version."""
        return self.labeled.version.manifest.class_names

    def described(self, row: LabeledRow) -> dict[str, Any]:
        """A row as a JSON object."""
        record: dict[str, Any] = {"key": row.key, "image_hash": row.image_hash, "label": row.class_name, "confidence": row.confidence}
        if row.copies is not None:
            record["copies"] = row.copies
        if row.probs is not None:
            record["probs"] = dict(zip(self.class_names, map(float, row.probs), strict=True))
        return record

    def placed(self, folder_of: Callable[[LabeledRow], str]) -> Iterator[tuple[LabeledRow, str]]:
        """Write the image of each row into the subfolder `folder_of(row)`, unless it exists; yields rows with relative paths."""
        for row in self.labeled.rows(self.probs):
            name, encoded = self.named(row)
            path = f"{folder_of(row)}/{row.id:08d}-{name}"
            target = self.folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists() and not target.is_symlink():
                self._place(row, target, encoded or self.labeled.read(row))
            self.advance(1)
            yield row, path

    def named(self, row: LabeledRow) -> tuple[str, bytes | None]:
        """A file name with an image suffix for a row, and the image's bytes if they had to be read to determine the suffix."""
        name = file_name(row.key)
        if has_image_suffix(name):
            return name, None
        encoded = self.labeled.read(row)
        return name + image_suffix(encoded), encoded

    def _place(self, row: LabeledRow, place: Path, encoded: bytes) -> None:
        if self.link:
            place.symlink_to(self.labeled.file_of(row))
            return
        with replacing(place) as file:
            file.write(encoded)


def _folders(export: _Export) -> None:
    names = folder_names(export.class_names, [CLASSES])
    for name in names:
        (export.folder / name).mkdir(exist_ok=True)
    for _ in export.placed(lambda row: names[row.label]):
        pass
    other_names = {folder: name for folder, name in zip(names, export.class_names, strict=True) if folder != name}
    if other_names:
        write_json(export.folder / OTHER_NAMES, other_names)
        one = "1 class has a name that some file systems reject, so its folder has another"
        several = f"{len(other_names):,} classes have names that some file systems reject, so their folders have others"
        export.say(f"{export.folder}: {several if len(other_names) > 1 else one}; {OTHER_NAMES} has both")


def _csv(export: _Export) -> None:
    has_copies = export.labeled.version.manifest.kind == "edition"
    header = ["key", "image_hash", "label", "confidence", *(["copies"] * has_copies)]
    if export.probs and (clashes := [name for name in header if name in export.class_names]):
        raise UsageError(f"`probs`: class {clashes[0]!r} has the name of another column of the table; use jsonl, or remove `probs`")
    with replacing(export.folder / _WITHOUT_IMAGES["csv"]) as file:
        file.write(csv_line(header + export.class_names * export.probs))
        for row in export.labeled.rows(export.probs):
            values = [f"{value:.6g}" for value in row.probs] if row.probs is not None else []
            copies = [row.copies] if has_copies else []
            file.write(csv_line([row.key, row.image_hash, row.class_name, f"{row.confidence:.6g}", *copies, *values]))
            export.advance(1)


def _jsonl(export: _Export) -> None:
    with replacing(export.folder / _WITHOUT_IMAGES["jsonl"]) as file:
        for row in export.labeled.rows(export.probs):
            file.write(json_line(export.described(row)))
            export.advance(1)


def _imagefolder(export: _Export) -> None:
    with replacing(export.folder / "metadata.jsonl") as file:
        for row, path in export.placed(lambda _: "images"):
            file.write(json_line({"file_name": path, **export.described(row)}))


def _webdataset(export: _Export) -> None:
    all_rows, number = export.labeled.rows(export.probs), 0
    while rows := list(islice(all_rows, _ROWS_PER_TAR)):
        path = export.folder / f"{export.labeled.version.ref.replace('@', '-')}-{number:06d}.tar"
        if not path.exists():
            with replacing(path) as file, tarfile.open(mode="w|", fileobj=file, format=tarfile.GNU_FORMAT) as tar:  # type: ignore[call-overload]
                for row in rows:
                    name, encoded = export.named(row)
                    suffix, encoded = Path(name).suffix.lstrip(".").lower() or "img", encoded or export.labeled.read(row)
                    members = {suffix: encoded, "cls": str(row.label).encode(), "json": json_line(export.described(row))}
                    for kind, content in members.items():
                        member = tarfile.TarInfo(f"{row.id:08d}.{kind}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
        export.advance(len(rows))
        number += 1


def _fiftyone(export: _Export) -> None:
    """Write a FiftyOneImageClassificationDataset: `data/`, and `labels.json` with targets and confidences."""
    labels = {}
    for row, path in export.placed(lambda _: "data"):
        labels[Path(path).stem] = {"label": row.label, "confidence": row.confidence}  # the importer looks up numbers in `classes`
    write_json(export.folder / "labels.json", {"classes": export.class_names, "labels": labels})


def _label_studio(export: _Export) -> None:
    """Write tasks with one prediction or annotation each, for local file serving from this folder, and a labeling configuration."""
    tasks = []
    for row, path in export.placed(lambda _: "images"):
        version, chosen = export.labeled.version, label_studio.chosen(row.class_name)
        results = {label_studio.PREDICTIONS: [{"model_version": version.ref, "score": row.confidence, **chosen}]}
        if version.manifest.kind == "review":
            results = {label_studio.ANSWERS: [chosen]}
        address = label_studio.served(f"{export.folder.resolve().name}/{path}")
        tasks.append({"data": {"image": address, "key": row.key, "image_hash": row.image_hash}, **results})
    write_json(export.folder / "tasks.json", tasks)
    choices = "".join(f"\n    <Choice value={quoteattr(name)}/>" for name in export.class_names)
    view = f'<View>\n  <Image name="image" value="$image"/>\n  <Choices name="class" toName="image">{choices}\n  </Choices>\n</View>\n'
    write_text(export.folder / "config.xml", view)


_WRITERS: dict[Format, Callable[[_Export], None]] = {
    "folders": _folders,
    "csv": _csv,
    "jsonl": _jsonl,
    "imagefolder": _imagefolder,
    "webdataset": _webdataset,
    "fiftyone": _fiftyone,
    "label-studio": _label_studio,
}
