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
from nst_data.progress import Progress, terminal_progress
from nst_data.safe_names import folder_names, safe_file_name
from nst_data.sources import Source
from nst_data.sources.files import has_image_suffix
from nst_data.store.files import atomic_write, clear_abandoned, list_names, write_text
from nst_data.store.manifest import is_anonymous
from nst_data.store.store import Store, Version

Format = Literal["folders", "csv", "jsonl", "imagefolder", "webdataset", "fiftyone", "label-studio"]
FORMATS: tuple[Format, ...] = get_args(Format)
MARKER, CLASSES, OTHER_NAMES = ".nst-export.json", "classes.txt", "folders.json"
_LABEL_FILES = {"csv": "labels.csv", "jsonl": "labels.jsonl"}  # the file with the labels
_FILE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".txt", ".tar", ".zip")
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
    if link and to in (*_LABEL_FILES, "webdataset"):
        raise UsageError(f"`link`: {to} has no image files of its own; remove `link`")
    if is_anonymous(version.manifest) and to in _LABEL_FILES:
        raise UsageError(f"{version.ref}: was published without the keys and hashes that {to} lists; choose a format with images")
    target = _Target(Path(path), version, {"to": to, "link": link, "probs": probs})
    target.prepare()
    pool_location = pool.location if isinstance(pool, Source) else pool
    labeled = labeled_images(store, version, pool_location, to not in _LABEL_FILES)
    progress = progress or terminal_progress()
    if reviews := version.manifest.request.inputs.by_role.get("reviews"):
        progress.say(f"{version.ref} was drawn with {reviews.ref}, which has the images that people gave a class: export that too")
    if not target.is_done:
        with progress.task(f"export {version.ref}", labeled.count, "images") as task:
            _WRITERS[to](_Export(target.folder, labeled, link, probs, task.advance, progress.say))
        write_text(target.folder / CLASSES, "".join(f"{name}\n" for name in version.manifest.class_names))
        target.mark_done()
    per_class = Counter(row.class_name for row in labeled.rows())
    table = target.folder / _LABEL_FILES[to] if to in _LABEL_FILES else None
    return Exported(target.folder, labeled.count, {name: per_class[name] for name in version.manifest.class_names}, table)


@dataclass(frozen=True)
class _Target:
    """The target folder, with a marker file that records what it holds."""

    folder: Path
    version: Version
    options: dict[str, Any]

    @property
    def _own_marker(self) -> dict[str, Any]:
        return {"ref": self.version.ref, "digest": self.version.manifest.digest, **self.options}

    def prepare(self) -> None:
        """Claim the folder. Raises NstError if it has files that this export did not write, UsageError if it is named like a file."""
        marker = self._read_marker()
        if marker is None:
            if self.folder.suffix.lower() in _FILE_SUFFIXES and not self.folder.exists():
                raise UsageError(
                    f"{self.folder}: named like a file; an export of labels is a folder, such as {self.folder.with_suffix('')}"
                )
            if self.folder.is_file() or (self.folder.is_dir() and list_names(self.folder)):
                raise NstError(f"{self.folder}: expected a new or empty folder, found other files; choose another one")
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                raise NstError(f"{self.folder}: part of this path is a file, not a folder; choose another one") from None
            self._write_marker(is_done=False)
            return
        if any(marker.get(name) != value for name, value in self._own_marker.items()):
            raise NstError(f"{self.folder}: holds an export of {self._describe(marker)}; choose another folder, or remove this one")
        for folder in (self.folder, *(path for path in self.folder.iterdir() if path.is_dir())):
            clear_abandoned(folder, min_age_seconds=0)

    def _describe(self, marker: dict[str, Any]) -> str:
        """A phrase about the version and options of another export."""
        is_same_name = marker.get("ref") == self.version.ref and marker.get("digest") != self.version.manifest.digest
        options = "".join(f", with `{name}`" for name in ("link", "probs") if marker.get(name))
        return f"{'another ' * is_same_name}{marker.get('ref')} as {marker.get('to')}{options}"

    @property
    def is_done(self) -> bool:
        """Whether the export is complete."""
        return bool((self._read_marker() or {}).get("done"))

    def mark_done(self) -> None:
        """Record that the export is complete."""
        self._write_marker(is_done=True)

    def _write_marker(self, is_done: bool) -> None:
        write_text(self.folder / MARKER, json.dumps(self._own_marker | {"done": is_done}, indent=2) + "\n")

    def _read_marker(self) -> dict[str, Any] | None:
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
    report: Callable[[str], None]

    @property
    def class_names(self) -> list[str]:
        """The classes of the version."""
        return self.labeled.version.manifest.class_names

    def as_record(self, row: LabeledRow) -> dict[str, Any]:
        """A row as a JSON object."""
        record: dict[str, Any] = {"key": row.key, "image_hash": row.image_hash, "label": row.class_name, "confidence": row.confidence}
        if row.copies is not None:
            record["copies"] = row.copies
        if row.probs is not None:
            record["probs"] = dict(zip(self.class_names, map(float, row.probs), strict=True))
        return record

    def write_images(self, folder_of: Callable[[LabeledRow], str]) -> Iterator[tuple[LabeledRow, str]]:
        """Write the image of each row into the subfolder `folder_of(row)`, unless it exists; yields rows with relative paths."""
        for row in self.labeled.rows(self.probs):
            name, encoded = self.image_name(row)
            path = f"{folder_of(row)}/{row.id:08d}-{name}"
            target = self.folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists() and not target.is_symlink():
                self._write_image(row, target, encoded or self.labeled.read(row))
            self.advance(1)
            yield row, path

    def image_name(self, row: LabeledRow) -> tuple[str, bytes | None]:
        """A file name with an image suffix for a row, and the image's bytes if they had to be read to determine the suffix."""
        name = safe_file_name(row.key)
        if has_image_suffix(name):
            return name, None
        encoded = self.labeled.read(row)
        return name + image_suffix(encoded), encoded

    def _write_image(self, row: LabeledRow, path: Path, encoded: bytes) -> None:
        if self.link:
            path.symlink_to(self.labeled.file_of(row))
            return
        with atomic_write(path) as file:
            file.write(encoded)


def _write_folders(export: _Export) -> None:
    names = folder_names(export.class_names, [CLASSES])
    for name in names:
        (export.folder / name).mkdir(exist_ok=True)
    for _ in export.write_images(lambda row: names[row.label]):
        pass
    renamed_folders = {folder: name for folder, name in zip(names, export.class_names, strict=True) if folder != name}
    if renamed_folders:
        write_json(export.folder / OTHER_NAMES, renamed_folders)
        singular = "1 class has a name that some file systems reject, so its folder has another"
        plural = f"{len(renamed_folders):,} classes have names that some file systems reject, so their folders have others"
        export.report(f"{export.folder}: {plural if len(renamed_folders) > 1 else singular}; {OTHER_NAMES} has both")


def _write_csv(export: _Export) -> None:
    has_copies = export.labeled.version.manifest.kind == "edition"
    header = ["key", "image_hash", "label", "confidence", *(["copies"] * has_copies)]
    if export.probs and (clashes := [name for name in header if name in export.class_names]):
        raise UsageError(f"`probs`: class {clashes[0]!r} has the name of another column of the table; use jsonl, or remove `probs`")
    with atomic_write(export.folder / _LABEL_FILES["csv"]) as file:
        file.write(csv_line(header + export.class_names * export.probs))
        for row in export.labeled.rows(export.probs):
            values = [f"{value:.6g}" for value in row.probs] if row.probs is not None else []
            copies = [row.copies] if has_copies else []
            file.write(csv_line([row.key, row.image_hash, row.class_name, f"{row.confidence:.6g}", *copies, *values]))
            export.advance(1)


def _write_jsonl(export: _Export) -> None:
    with atomic_write(export.folder / _LABEL_FILES["jsonl"]) as file:
        for row in export.labeled.rows(export.probs):
            file.write(json_line(export.as_record(row)))
            export.advance(1)


def _write_imagefolder(export: _Export) -> None:
    with atomic_write(export.folder / "metadata.jsonl") as file:
        for row, path in export.write_images(lambda _: "images"):
            file.write(json_line({"file_name": path, **export.as_record(row)}))


def _write_webdataset(export: _Export) -> None:
    all_rows, number = export.labeled.rows(export.probs), 0
    while rows := list(islice(all_rows, _ROWS_PER_TAR)):
        path = export.folder / f"{export.labeled.version.ref.replace('@', '-')}-{number:06d}.tar"
        if not path.exists():
            with atomic_write(path) as file, tarfile.open(mode="w|", fileobj=file, format=tarfile.GNU_FORMAT) as tar:  # type: ignore[call-overload]
                for row in rows:
                    name, encoded = export.image_name(row)
                    suffix, encoded = Path(name).suffix.lstrip(".").lower() or "img", encoded or export.labeled.read(row)
                    members = {suffix: encoded, "cls": str(row.label).encode(), "json": json_line(export.as_record(row))}
                    for kind, content in members.items():
                        member = tarfile.TarInfo(f"{row.id:08d}.{kind}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
        export.advance(len(rows))
        number += 1


def _write_fiftyone(export: _Export) -> None:
    """Write a FiftyOneImageClassificationDataset: `data/`, and `labels.json` with targets and confidences."""
    labels = {}
    for row, path in export.write_images(lambda _: "data"):
        labels[Path(path).stem] = {"label": row.label, "confidence": row.confidence}  # the importer looks up numbers in `classes`
    write_json(export.folder / "labels.json", {"classes": export.class_names, "labels": labels})


def _write_label_studio(export: _Export) -> None:
    """Write tasks with one prediction or annotation each, for local file serving from this folder, and a labeling configuration."""
    tasks = []
    for row, path in export.write_images(lambda _: "images"):
        version, chosen = export.labeled.version, label_studio.choice_result(row.class_name)
        results = {label_studio.PREDICTIONS: [{"model_version": version.ref, "score": row.confidence, **chosen}]}
        if version.manifest.kind == "review":
            results = {label_studio.ANSWERS: [chosen]}
        address = label_studio.served_address(f"{export.folder.resolve().name}/{path}")
        tasks.append({"data": {"image": address, "key": row.key, "image_hash": row.image_hash}, **results})
    write_json(export.folder / "tasks.json", tasks)
    choices = "".join(f"\n    <Choice value={quoteattr(name)}/>" for name in export.class_names)
    view = f'<View>\n  <Image name="image" value="$image"/>\n  <Choices name="class" toName="image">{choices}\n  </Choices>\n</View>\n'
    write_text(export.folder / "config.xml", view)


_WRITERS: dict[Format, Callable[[_Export], None]] = {
    "folders": _write_folders,
    "csv": _write_csv,
    "jsonl": _write_jsonl,
    "imagefolder": _write_imagefolder,
    "webdataset": _write_webdataset,
    "fiftyone": _write_fiftyone,
    "label-studio": _write_label_studio,
}
