"""Open an address, such as `s3://bucket/pool`, as a source."""

import posixpath
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

from nst_data.errors import NstError, UsageError
from nst_data.hub.reference import HubReference
from nst_data.sources.addressed import AddressedImages, AddressedTars, is_hidden
from nst_data.sources.addressed_table import LIST_SUFFIX, open_table_at
from nst_data.sources.cells import NO_IMAGES
from nst_data.sources.files import IMAGE_SUFFIXES
from nst_data.sources.image_table import METADATA_FILES, single_metadata
from nst_data.sources.image_table import SUFFIXES as TABLE_SUFFIXES
from nst_data.sources.kept_listing import AddressListing
from nst_data.sources.kinds import EXPECTED_AT_ADDRESS, READ_FROM_FOLDERS, kind_of
from nst_data.sources.labels import LabelOptions
from nst_data.sources.patterns import expand_braces, is_pattern
from nst_data.sources.skipped import describe_skipped
from nst_data.sources.source import Source
from nst_data.sources.splits import check_split_files
from nst_data.sources.streamed import StreamedParquet
from nst_data.store.file_tree import FileTree, ServerUnavailableError, StoredFile, without_secrets
from nst_data.store.indexes import Indexes

_HUB_ADDRESS = re.compile(r"hf://(datasets|buckets)/[^/]+/[^/]+/.*[^/].*", re.DOTALL)
_TABLES = TABLE_SUFFIXES | {LIST_SUFFIX}
_LOCAL_SUFFIXES = _TABLES | {".arrow"}
_FILE_SCHEME = "file://"


def local_path(location: str) -> str:
    """The local path of a `file://` address; any other text is returned unchanged."""
    if not location.lower().startswith(_FILE_SCHEME):
        return location
    path = location[len(_FILE_SCHEME) :]
    if not path.startswith("/"):
        raise UsageError(f"{location}: expected a path from the root, as in file:///data/photos")
    return path


def file_tree_at(location: str) -> FileTree | None:
    """The file tree at an address, or None for paths and datasets of the Hub. Raises UsageError for unsupported addresses."""
    if without_secrets(location) == location and not _HUB_ADDRESS.fullmatch(location):
        HubReference.parse(location)  # its error tells how to name a Hub dataset that was given as an address
    return FileTree.parse(location)


def is_address(location: str) -> bool:
    """Whether text is an address rather than a path or a dataset of the Hub."""
    return "://" in location


def open_address(
    tree: FileTree, labels: LabelOptions | None, column: str | None, indexes: Indexes | None, digest: str | None = None, stamp: str = ""
) -> Source:
    """Open image, tar or parquet files at an address: everything below it, a single file, or the files that match a pattern.

    Listings made without labels are stored in `indexes`. If a stored one has the fingerprint `digest`, and the `stamp` if one is given,
    it is used and nothing is listed.
    """
    if indexes is None or labels is not None:
        return _open_listed(tree, labels, column, indexes)
    source = None if digest is None else _open_stored(tree, column, indexes, digest, stamp)
    if source is None:
        source = _open_listed(tree, None, column, indexes)
        source.store_listing(indexes)
    return source


def _open_stored(tree: FileTree, column: str | None, indexes: Indexes, digest: str, stamp: str) -> Source | None:
    """The source as it was when it had this fingerprint; None if that listing is not stored, or can no longer be opened.

    Raises NstError if the server cannot be reached.
    """
    listing = AddressListing.load(indexes, tree.address, digest, stamp)
    if listing is None or not listing.exists:
        return None
    try:
        if listing.holds_images:
            source: Source = AddressedImages(tree, listing=listing)
        else:
            source = _open_files(tree.address, FileTree(listing.top), listing.files, None, column, indexes)
            source.skipped = listing.skipped
    except ServerUnavailableError:
        raise
    except NstError:  # listing it again reports what is wrong
        return None
    return source if source.fingerprint == digest and stamp in ("", source.stamp) else None


def _open_listed(tree: FileTree, labels: LabelOptions | None, column: str | None, indexes: Indexes | None) -> Source:
    if is_pattern(tree.address):
        return _open_files(tree.address, *_matching_files(tree), labels, column, indexes)
    suffix = PurePosixPath(tree.address).suffix.lower()
    if suffix in READ_FROM_FOLDERS and (single := _single_file(tree)) is not None:
        return _open_files(tree.address, *single, labels, column, indexes)
    if suffix in _TABLES and column != NO_IMAGES and (single := _single_file(tree)) is not None:
        return open_table_at(single[0], single[1][0].name, labels, column)
    try:
        images = AddressedImages(tree, labels is not None)
    except NstError:
        if labels is None or (metadata := _metadata_in(tree)) is None:
            raise
        return open_table_at(tree, metadata, labels, column, only_in_folder=True)
    if labels is not None and len(images.class_names or ()) == 1 and (metadata := _metadata_in(tree)) is not None:
        return open_table_at(tree, metadata, labels, column, only_in_folder=True)
    if len(images):
        return images
    files, skipped = images.other_files, Counter(images.skipped)
    if not images.has_files and (single := _single_file(tree)) is not None:
        if suffix in _LOCAL_SUFFIXES:
            raise UsageError(f"{tree.address}: a {suffix} file is read from the local disk only; {EXPECTED_AT_ADDRESS}")
        return _open_files(tree.address, *single, labels, column, indexes)
    if not images.has_files:
        raise NstError(f"{tree.address}: no such file or folder; {EXPECTED_AT_ADDRESS}")
    if not files:
        skipped_note = f", but {describe_skipped(skipped)}" if skipped else ""
        raise NstError(
            f"{tree.address}: expected images ({', '.join(sorted(IMAGE_SUFFIXES))}), found none below this address{skipped_note}"
        )
    if labels is not None:
        check_split_files(tree.address, (file.name for file in files))
    skipped -= Counter({kind: skipped[kind] for kind in READ_FROM_FOLDERS})
    source = _open_files(tree.address, tree, files, labels, column, indexes)
    source.skipped = dict(skipped + Counter(source.skipped))
    return source


def _metadata_in(tree: FileTree) -> str | None:
    """The metadata file of a Hugging Face `imagefolder`, like `metadata_in` for a local folder."""
    names = [name for name in METADATA_FILES if tree.stat(name) is not None]
    return single_metadata(tree.address, names)


def _single_file(tree: FileTree) -> tuple[FileTree, list[StoredFile]] | None:
    """The folder and file at an address, or None if it is not a file."""
    folder, _, name = tree.address.rpartition("/")
    if folder.endswith("/"):  # the address of a bucket
        return None
    file = FileTree(folder).stat(name)
    return None if file is None else (FileTree(folder), [file])


def _matching_files(tree: FileTree) -> tuple[FileTree, list[StoredFile]]:
    """The common folder of the files that match a pattern, and these files. Raises NstError if none matches."""
    from fsspec.utils import glob_translate

    folder = re.split(r"[*?\[{]", tree.address)[0].rpartition("/")[0]
    if folder.endswith("/"):
        raise UsageError(f"{tree.address}: expected a bucket without wildcards")
    patterns = [re.compile(glob_translate(pattern.removeprefix(f"{folder}/"))) for pattern in expand_braces(tree.address)]
    top = FileTree(folder)
    files = [file for file in top.files() if not is_hidden(file.name) and any(pattern.match(file.name) for pattern in patterns)]
    if not files:
        raise NstError(f"{tree.address}: expected parquet or tar files, no file matches")
    return top, files


def _open_files(
    location: str,
    tree: FileTree,
    files: Sequence[StoredFile],
    labels: LabelOptions | None,
    column: str | None,
    indexes: Indexes | None,
) -> Source:
    """Tar or parquet files, in bytewise order of their paths relative to their common folder."""
    folder = posixpath.commonpath([posixpath.dirname(file.name) for file in files])
    names = [posixpath.relpath(file.name, folder or ".") for file in files]
    if kind_of(names, location) == "tar":
        return AddressedTars(location, tree, files, names, labels, indexes)
    parquet = StreamedParquet(location, tree, files, names, column)
    if labels is not None:
        parquet.read_labels(labels)
    return parquet
