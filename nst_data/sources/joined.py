"""Several labeled sources concatenated into one, with the classes of all of them."""

import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate, count
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from nst_data.errors import NstError, UsageError
from nst_data.sources.imagenet_names import match_imagenet_classes
from nst_data.sources.labels import MAX_UNNAMED_CLASSES, class_numbers, indices_among, labels_in, normalize_unicode
from nst_data.sources.listing import PIECE, build_listing
from nst_data.sources.source import Row, RowIndices, Source, within
from nst_data.store.inputs import Input


class JoinedSource(Source):
    """All rows of the first source, then all rows of the next, and so on. Keys begin with the name of their source."""

    def __init__(self, sources: Sequence[Source]) -> None:
        locations = [source.location for source in sources]
        if duplicates := [path for path, times in Counter(map(_canonical, locations)).items() if times > 1]:
            raise UsageError(f"{duplicates[0]}: is named twice; name each source once")
        super().__init__(" + ".join(locations))
        self._sources = sources
        self._names = _make_unique([_source_name(location) for location in locations])
        self._starts = [0, *accumulate(len(source) for source in sources)]
        self.class_names, mappings = _merge_classes(sources)
        self.labels = np.concatenate([mapping[labels_in(source)] for mapping, source in zip(mappings, sources, strict=True)])
        self.skipped = dict(sum((Counter(source.skipped) for source in sources), Counter()))
        present = {self.class_names[label] for label in np.unique(self.labels)}
        self.empty_classes = sorted({name for source in sources for name in source.empty_classes} - present)
        self.image_column = next((source.image_column for source in sources if source.image_column), None)
        self.label_column = next((source.label_column for source in sources if source.label_column), None)
        self._pins = tuple(pin for source in sources for pin in source._pins)
        self._listing = build_listing(self._entries())

    def _entries(self) -> Iterator[tuple[list[str], list[int]]]:
        for name, source in zip(self._names, self._sources, strict=True):
            for batch in source.listing().to_batches(PIECE):
                yield [f"{name}/{key}" for key in batch["name"].to_pylist()], batch["bytes"].to_pylist()

    def __len__(self) -> int:
        return self._starts[-1]

    def _locate(self, row: int) -> tuple[int, int]:
        """The index of a row's source, and the row number within it."""
        number = bisect_right(self._starts, row) - 1
        return number, row - self._starts[number]

    def key(self, row: int) -> str:
        """The name of the row's source, followed by its key there."""
        number, source_row = self._locate(row)
        return f"{self._names[number]}/{self._sources[number].key(source_row)}"

    def read(self, row: int) -> bytes:
        """The encoded bytes, read from the row's source."""
        number, source_row = self._locate(row)
        return self._sources[number].read(source_row)

    def rows(self, needed: RowIndices) -> Iterator[Row]:
        """The needed rows, source by source."""
        for number, source in enumerate(self._sources):
            start = self._starts[number]
            source_rows = np.asarray(within(needed, start, self._starts[number + 1]), dtype=np.int64) - start
            for row in source.rows(source_rows):
                yield replace(row, id=row.id + start, key=f"{self._names[number]}/{row.key}")

    def empty_files(self, n_rows: int) -> tuple[int, str]:
        """Empty files among the first rows, summed over all sources."""
        total, first = 0, ""
        for number, source in enumerate(self._sources):
            count, key = source.empty_files(max(0, min(len(source), n_rows - self._starts[number])))
            first = first or (f"{self._names[number]}/{key}" if count else "")
            total += count
        return total, first

    def describe_copy(self) -> str:
        """What must be copied for the first source that needs a copy."""
        return next(filter(None, (source.describe_copy() for source in self._sources)), "")

    def describe_slow_reads(self) -> str:
        """Why reading is slow, for the first source that is slow to read."""
        return next(filter(None, (source.describe_slow_reads() for source in self._sources)), "")

    def remarks(self) -> list[str]:
        """The remarks of all sources, and the classes that each lacks: a name with another spelling becomes another class."""
        lines = [line for source in self._sources for line in source.remarks()]
        lines += [f"{source.location}: has no {', '.join(missing)}" for source, missing in self._missing_classes() if missing]
        return lines

    def _missing_classes(self) -> Iterator[tuple[Source, list[str]]]:
        names, labels = self.class_names or [], labels_in(self)
        for number, source in enumerate(self._sources):
            present = set(labels[self._starts[number] : self._starts[number + 1]].tolist())
            missing = [name for label, name in enumerate(names) if label not in present]
            yield source, [*missing[:5], f"and {len(missing) - 5:,} more classes"] if len(missing) > 6 else missing

    @property
    def rows_per_file(self) -> int | None:
        """1 if it is 1 in all sources."""
        return 1 if all(source.rows_per_file == 1 for source in self._sources) else None

    def rows_of_files(self, files: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows stored in the given files, as each source maps its own files."""
        rows = [
            self._starts[number]
            + source.rows_of_files(np.asarray(within(files, *self._file_starts[number : number + 2])) - self._file_starts[number])
            for number, source in enumerate(self._sources)
        ]
        return np.concatenate(rows)

    @cached_property
    def _file_starts(self) -> list[int]:
        """Number of files before those of each source, followed by the total."""
        return [0, *accumulate(sum(1 for _ in source.files()) or len(source.stamps()) for source in self._sources)]

    @property
    def lineage(self) -> Input:
        """Adds the joined sources."""
        entries = [source.lineage for source in self._sources]
        licenses = dict.fromkeys(entry.license for entry in entries if entry.license)
        update = {"sources": tuple(entry.ref for entry in entries), "license": " + ".join(licenses) or None}
        return super().lineage.model_copy(update=update)

    def _stamps(self) -> NDArray[np.uint64]:
        return np.concatenate([source.stamps() for source in self._sources])

    def _paths(self) -> Iterable[str]:
        for source in self._sources:
            yield from source.files()


def _make_unique(names: Sequence[str]) -> list[str]:
    """The names, with a number appended to those that occur more than once to make them unique."""
    unique: list[str] = []
    for name in names:
        aliases = (f"{name}-{number}" for number in count(1))
        unique.append(name if names.count(name) == 1 else next(alias for alias in aliases if alias not in names and alias not in unique))
    return unique


def _source_name(location: str) -> str:
    return PurePath(location if "://" in location else location.partition("@")[0]).name or "source"


def _canonical(location: str) -> str:
    """A canonical form of the location, equal for all spellings of one path."""
    return os.path.realpath(location) if os.path.exists(location) else location


def _merge_classes(sources: Sequence[Source]) -> tuple[list[str], list[NDArray[np.int64]]]:
    """(class names of all sources, for each source the index of each of its classes among them).

    Classes are in the order of the first source that has those of all others, else sorted. Class numbers stay numbers if all sources
    have numbers. Raises NstError if some have numbers and others names.
    """
    listed = [source.class_names or [] for source in sources]
    numbers = [class_numbers(names) for names in listed]
    number_lists = [values for values in numbers if values is not None]
    if len(number_lists) == len(sources):
        all_numbers = sorted(set().union(*number_lists))
        if all_numbers[-1] < MAX_UNNAMED_CLASSES:  # larger ones are names, such as article numbers
            all_numbers = list(range(all_numbers[-1] + 1))
        return [str(number) for number in all_numbers], [np.searchsorted(all_numbers, values) for values in number_lists]
    if number_lists:
        numbered = next(source.location for source, values in zip(sources, numbers, strict=True) if values is not None)
        named_location = next(source.location for source, values in zip(sources, numbers, strict=True) if values is None)
        raise NstError(
            f"{numbered}: its classes are numbers, and those of {named_location} are names; give the numbers names with `class_names`"
        )
    for names in listed:
        places = [_class_indices(source_names, names) for source_names in listed]
        if all(place is not None for values in places for place in values):
            return names, [np.array(values, np.int64) for values in places]
    spellings = {
        normalize_unicode(name): name for classes in reversed(listed) for name in classes
    }  # of several spellings, that of the first source
    names = sorted(spellings.values())
    place = {name: index for index, name in enumerate(names)}
    return names, [np.array([place[spellings[normalize_unicode(name)]] for name in classes], np.int64) for classes in listed]


def _class_indices(names: Sequence[str], expected: Sequence[str]) -> Sequence[int | None]:
    places = indices_among(names, expected)
    return (match_imagenet_classes(names, expected) or places) if None in places else places
