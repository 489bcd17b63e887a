"""Open a source from a location as the user writes it: a folder, a file, a pattern, or a dataset of the Hub."""

import difflib
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from nst_data.arguments import with_checked_arguments
from nst_data.errors import NstError, UsageError
from nst_data.hub.reference import HubReference
from nst_data.sources.addressed_table import LIST_SUFFIX, open_local_table
from nst_data.sources.addresses import file_tree_at, local_path, open_address
from nst_data.sources.cells import NO_IMAGES
from nst_data.sources.files import IMAGE_SUFFIXES, absolute_path, check_regular
from nst_data.sources.folder import ImageFolder, walk
from nst_data.sources.hub import open_hub
from nst_data.sources.image_table import SUFFIXES as TABLE_SUFFIXES
from nst_data.sources.image_table import metadata_in
from nst_data.sources.joined import JoinedSource
from nst_data.sources.kinds import EXPECTED, READ_FROM_FOLDERS, kind_of
from nst_data.sources.labels import ClassNames, LabelOptions, class_numbers, labels_in, names_origin, read_class_names, rename_classes
from nst_data.sources.parquet import ParquetFiles
from nst_data.sources.patterns import is_pattern, matching_files
from nst_data.sources.saved import open_saved_dataset
from nst_data.sources.skipped import describe_skipped
from nst_data.sources.source import Source
from nst_data.sources.splits import check_split_files
from nst_data.sources.tar import TarFiles
from nst_data.store.indexes import Indexes
from nst_data.utf8_names import check_utf8

_log = logging.getLogger(__name__)
_SAVED_DATASET_FILES = ("state.json", "dataset_dict.json")


class PathNotFoundError(NstError):
    """The path does not exist, and its neighbors show that a local path, not a dataset of the Hub, is meant."""


@with_checked_arguments
def open_source(
    location: str | Path | Sequence[str | Path],
    *,
    labeled: bool = False,
    class_names: ClassNames | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    stream: bool = False,
    indexes: Indexes | Path | None = None,
    digest: str | None = None,
    stamp: str = "",
) -> Source:
    """Open a source of images. No image is decoded: a source of a million images opens in seconds.

    Args:
        location: A folder of images, tar or parquet files (a pattern such as `'*.tar'` takes several), a .txt list of images, a .csv,
            .tsv or .jsonl table with their paths or addresses, COCO's .json, a folder saved by `datasets`, an address such as
            `s3://bucket/pool` (docs/object-stores.md) or, if there is no such path, `owner/name@revision:config/split` on the Hub.
            Several labeled ones are joined into one source with the classes of all.
        labeled: Read the labels too: class folders, a column of labels, `.cls` members of a tar file, COCO's categories or, for images
            outside class folders, the `metadata.csv` or `.jsonl` next to them.
        class_names: Names for integer labels that have none, or a file with one per line: class K is name K, from 0.
        image_column: Image column, if there are several.
        label_column: The column with the labels, if none is called `label`.
        stream: Read parquet files of the Hub as needed, without downloading them.
        indexes: `store.indexes` or a folder, where results that are slow to compute are stored: the positions of images in tar files, and
            listings of addresses.
        digest: The `fingerprint` that unlabeled images at an address had when they were opened with these `indexes`: they are opened as
            they were then, without listing. If that listing is not stored they are listed again, and the fingerprint may differ.
        stamp: The `stamp` that they had then, which rules out a listing made when files of the same names and sizes had other content.

    Returns:
        The source, with its length, `location`, rows in one fixed order and, if labeled, `class_names` and `labels` of shape (images,).

    Raises:
        UsageError: The arguments contradict each other or do not fit the source.
        NstError: The location holds nothing usable.
    """
    several = not isinstance(location, str | Path)
    locations = [str(path) for path in location] if not isinstance(location, str | Path) else [str(location)]
    if not locations:
        raise UsageError("expected the location of a source, found an empty list")
    if several and not labeled:
        raise UsageError(f"{', '.join(locations)}: expected one source; several are for labeled images (`labeled`)")
    names = read_class_names(class_names) if class_names is not None else []
    labels = LabelOptions(label_column, len(names)) if labeled else None
    for option, value in (("`image_column`", image_column), ("`label_column`", label_column)):
        if value == "":
            raise UsageError(f"{option} '': empty column name for {locations[0]}; expected a name, or remove {option}")
    file = None if class_names is None else names_origin(class_names)
    for option, value in (("`class_names`", file), ("`label_column`", label_column)):
        if value is not None and not labeled:
            raise UsageError(f"{option} {value or repr(value)} is not used: labels of {locations[0]} are not read; remove it")
    index_cache = Indexes.coerce(indexes)
    sources = [_open_one(path, labels, image_column, stream, index_cache, digest, stamp) for path in locations]
    for source in sources:
        _log.info("%s: %d images, read as %s", source.location, len(source), type(source).__name__)
    _check_column_used("`image_column`", image_column, [source.image_column for source in sources], locations)
    _check_column_used("`label_column`", label_column, [source.label_column for source in sources], locations)
    for source in sources:
        source_names = source.class_names or []
        if file is not None and (len(sources) == 1 or class_numbers(source_names) is not None):
            source.labels, source.class_names = rename_classes(labels_in(source), source_names, source.location, names, file)
    return sources[0] if len(sources) == 1 else JoinedSource(sources)


def _open_one(
    location: str,
    labels: LabelOptions | None,
    image_column: str | None,
    stream: bool,
    indexes: Indexes | None,
    digest: str | None,
    stamp: str,
) -> Source:
    location = local_path(location)
    if (tree := file_tree_at(location)) is not None:
        return open_address(tree, labels, image_column, indexes, digest, stamp)
    path = absolute_path(location)
    _check_mistyped_path(location, path)
    if not path.exists() and not is_pattern(location) and (reference := HubReference.parse(location)) is not None:
        return open_hub(reference, labels, image_column, stream, indexes)
    if stream:
        raise UsageError(f"`stream`: {location} is not a Hub dataset; remove `stream`")
    return _open_local(location, path, labels, image_column, indexes)


def _check_column_used(option: str, requested: str | None, used: Sequence[str | None], locations: Sequence[str]) -> None:
    """Raise UsageError if a column was named but all sources are image files, which have none."""
    if requested is not None and not any(used):
        verb = "contains" if len(locations) == 1 else "contain"
        raise UsageError(f"{option} {requested}: {', '.join(locations)} {verb} image files, which have no columns; remove {option}")


def open_table(location: str) -> Source:
    """Open parquet files, or a dataset saved to disk or on the Hub, only for its `columns`: it need not hold images."""
    location = local_path(location)
    if (tree := file_tree_at(location)) is not None:
        return open_address(tree, None, NO_IMAGES, None)
    path = absolute_path(location)
    _check_mistyped_path(location, path)
    if not path.exists() and not is_pattern(location) and (reference := HubReference.parse(location)) is not None:
        return open_hub(reference, None, NO_IMAGES, False, None)
    return _open_local(location, path, None, NO_IMAGES, None)


def _check_mistyped_path(location: str, path: Path) -> None:
    """Raise PathNotFoundError, naming what exists, for a mistyped path such as `photos/unlabelled` if there is a local folder `photos`."""
    if path.exists() or is_pattern(location) or not path.parent.is_dir() or path.parent == Path.cwd() or set("@:") & set(location):
        return
    names = sorted(entry.name for entry in path.parent.iterdir() if not entry.name.startswith("."))
    matches = difflib.get_close_matches(path.name, names, n=1)
    examples = ", ".join(names[:5]) + ", ..." * (len(names) > 5)
    if matches:
        raise PathNotFoundError(f"{location}: no such file or folder; did you mean {path.parent.name}/{matches[0]}?")
    if HubReference.parse(location) is not None:
        raise PathNotFoundError(
            f"{location}: no such file or folder; {path.parent} has {examples or 'nothing'}. On the Hub it is {location}@main"
        )


def _open_local(location: str, path: Path, labels: LabelOptions | None, column: str | None, indexes: Indexes | None) -> Source:
    check_utf8(str(path))
    if path.is_dir():
        if any((path / name).is_file() for name in _SAVED_DATASET_FILES):
            return open_saved_dataset(str(path), labels, column)
        try:
            images = ImageFolder(str(path), labels is not None)
        except NstError:
            if labels is None or (metadata := metadata_in(str(path))) is None:
                raise
            return open_local_table(metadata, labels, column, only_in_folder=True)
        if labels is not None and len(images.class_names or ()) == 1 and (metadata := metadata_in(str(path))) is not None:
            return open_local_table(metadata, labels, column, only_in_folder=True)
        if len(images):
            return images
        files = _tables_and_tars(path, images.skipped)
        if labels is not None:
            check_split_files(str(path), (os.path.relpath(file, path) for file in files))
        source, skipped = _open_files(str(path), files, labels, column, indexes), Counter(images.skipped)
        skipped -= Counter({kind: skipped[kind] for kind in READ_FROM_FOLDERS})
        source.skipped = dict(skipped + Counter(source.skipped))
        return source
    if path.is_file():
        suffix = path.suffix.lower()
        if suffix == LIST_SUFFIX or (suffix in TABLE_SUFFIXES and column != NO_IMAGES):
            return open_local_table(str(path), labels, column)
        return _open_files(str(path), [str(path)], labels, column, indexes)
    if is_pattern(location):
        return _open_files(str(path), matching_files(location), labels, column, indexes)
    raise NstError(f"{location}: no such file or folder; {EXPECTED}")


def _tables_and_tars(path: Path, skipped: Mapping[str, int]) -> list[str]:
    files = [str(path / name) for names, _ in walk(str(path), READ_FROM_FOLDERS) for name in names]
    if not files:
        skipped_note = f", but {describe_skipped(skipped)}" if skipped else ""
        raise NstError(f"{path}: expected images ({', '.join(sorted(IMAGE_SUFFIXES))}), found none below this folder{skipped_note}")
    return files


def _open_files(location: str, files: list[str], labels: LabelOptions | None, column: str | None, indexes: Indexes | None) -> Source:
    """Tar or parquet files, in bytewise order of their paths relative to their common folder."""
    for file in files:
        check_utf8(file)
        check_regular(file)
    parent = Path(os.path.commonpath([os.path.dirname(file) for file in files]))
    pairs = sorted((Path(file).relative_to(parent).as_posix(), file) for file in files)
    names, files = [name for name, _ in pairs], [file for _, file in pairs]
    if kind_of(names, location) == "tar":
        return TarFiles(location, files, names, labels, indexes and indexes.alone)
    parquet = ParquetFiles(location, files, names, column)
    if labels is not None:
        parquet.read_labels(labels)
    return parquet
