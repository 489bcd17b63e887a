"""`nst review import` and `nst review export`: answers in a table or in Label Studio tasks, by key or hash."""

import datetime
import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from nst_data.arguments import with_checked_arguments
from nst_data.corpora import label_versions, labels_with_classes, newest_labels
from nst_data.errors import NstError, UsageError
from nst_data.label_files import label_studio
from nst_data.label_files.json_rows import JsonRows
from nst_data.label_files.writing import as_json, csv_line, json_line
from nst_data.review.answers import EXCLUDED, Answer, AnswerLog, Answers, answers_folder, check_class
from nst_data.sources.text_tables import DELIMITERS, delimited_batches, header, json_lines, translate_read_errors
from nst_data.store.files import write_output
from nst_data.store.store import Store, Version
from nst_data.tables.label_tables import collect, scan_labels
from nst_data.tables.review_table import read_review

COLUMNS = ("image_hash", "key", "class", "excluded", "picked_by", "seen_in", "reviewer", "time")
_SUFFIXES = (*DELIMITERS, ".jsonl", ".json")
_READABLE_SUFFIXES = (*_SUFFIXES, ".parquet")  # `nst pick` can write its lists as parquet
_HASH = re.compile(r"[0-9a-f]{32}")


@with_checked_arguments
def import_answers(store: Store, corpus: str, file: Path | str, *, reviewer: str = "reviewer") -> tuple[int, int]:
    """Add the answers in a file to a reviewer's answers, all or nothing.

    Args:
        store: Where the answers are kept.
        corpus: The corpus the answers are about.
        file: CSV or TSV with a header, JSONL or parquet. Each row gives the `class` of an image, or the reason it is `excluded` (none of
            these, unusable), and names the image by `image_hash` or by `key`, a key in the newest labels of the corpus. `picked_by`, or
            `by`, says how the image was chosen. Rows with an empty `class` have not been filled in yet and are skipped. Alternatively,
            Label Studio JSON, whose annotations are read.
        reviewer: Name of the reviewer.

    Returns:
        The number of answers added, and of those that this reviewer had already given. An answer about an image that was picked at random
        is added even if the reviewer gave the same answer when it was picked in another way.

    Raises:
        NstError: A row names an unknown image or class, or rows disagree about an image; the message says which.
        UsageError: The file is of an unsupported kind, or the corpus has neither labels nor answers and another has a similar name.
    """
    path = Path(file)
    rows = [_parse_row(row, location) for row, location in _read_rows(path) if not _is_unanswered(row)]
    _check_corpus_name(store, corpus)
    labels = newest_labels(store, corpus)
    all_classes = {name for version in label_versions(store, corpus) for name in version.manifest.class_names}
    rows = [(_as_excluded(row, all_classes), location) for row, location in rows]
    with_classes = labels_with_classes(store, corpus, [row.class_name for row, _ in rows if row.class_name])
    classes = with_classes.manifest.class_names if with_classes else []
    for row, location in rows:
        if row.class_name is not None and classes:
            try:
                check_class(row.class_name, classes)
            except UsageError as error:
                raise NstError(f"{location}: {error}") from None
    images = _find_images(labels, [row for row, _ in rows]) if labels else {}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
    log, answers, first_answers = AnswerLog(store, corpus, reviewer), [], dict[str, tuple[Answer, str]]()
    for row, location in rows:
        image_hash, key = images.get(row.image_hash or row.key, (row.image_hash, row.key or row.image_hash))
        if not image_hash:
            there = f"{labels.ref} has no image {row.key!r}" if labels else f"no labels of {corpus} are in the store to find {row.key!r} in"
            raise NstError(f"{location}: {there}; name its `image_hash`")
        if not _HASH.fullmatch(image_hash):
            raise NstError(
                f"{location}: `image_hash` is {image_hash!r}, expected 32 digits of 0-9 and a-f, as labels have it; name its `key`"
            )
        answer = replace(row, image_hash=image_hash, key=key, time=now)
        earlier, there = first_answers.setdefault(image_hash, (answer, location))
        if earlier.verdict != answer.verdict:
            raise NstError(
                f"{location}: says {answer.text!r} of {key!r}, and {there}, {earlier.text!r} of the same image; remove one of them"
            )
        answers.append(answer)
    distinct = {(answer.image_hash, answer.picked_by, answer.seen_in): answer for answer in answers}.values()
    new_answers = [answer for answer in distinct if not log.contains(answer)]
    if new_answers:
        log.extend(new_answers)
    return len(new_answers), len(answers) - len(new_answers)


@with_checked_arguments
def export_answers(store: Store, what: str, file: Path | str) -> int:
    """Write answers to a file that `import_answers` can read.

    Args:
        store: Where the answers are kept.
        what: A corpus, to export every reviewer's answer about each image; or a frozen review, `name@review-N`.
        file: A name ending in .csv, .tsv, .jsonl or, for Label Studio, .json: one task per image, without image URLs.

    Returns:
        The number of answers written.

    Raises:
        UsageError: The file has another extension or exists with different content, or there is no such review.
        NstError: There are no answers.
    """
    path = Path(file)
    _check_suffix(path)
    rows = list(_review_rows(store.open(what, "review")) if "@" in what else _corpus_rows(store, what))
    if not rows:
        raise NstError(f"{what}: there is no answer to export yet")
    suffix = path.suffix.lower()
    if suffix == ".json":
        write_output(path, as_json(_as_tasks(rows)))
        return len(rows)
    values = [{name: row[name] for name in COLUMNS} for row in rows]
    if suffix in DELIMITERS:
        lines = [csv_line(cells, DELIMITERS[suffix]) for cells in (COLUMNS, *(row.values() for row in values))]
    else:
        lines = [json_line(row) for row in values]
    write_output(path, b"".join(lines))
    return len(rows)


def _as_tasks(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One Label Studio task per image, with the answers about it."""
    tasks: dict[str, dict[str, Any]] = {}
    for row in rows:
        data = {"image": row["key"], "key": row["key"], **{name: row[name] for name in label_studio.IMAGE_FIELDS if row[name]}}
        task = tasks.setdefault(row["image_hash"], {"data": data, label_studio.ANSWERS: []})
        task[label_studio.ANSWERS].append(label_studio.choice_result(row["class"] or row["excluded"]))
    return list(tasks.values())


def _corpus_rows(store: Store, corpus: str) -> Iterator[Mapping[str, Any]]:
    answers = Answers(store, corpus)
    answers.refresh()
    for image_hash in answers.images():
        for answer in answers.current_answers(image_hash):
            yield {**vars(answer), "class": answer.class_name}


def _review_rows(review: Version) -> Iterator[Mapping[str, Any]]:
    names = review.manifest.class_names
    for row in read_review(review).iter_rows(named=True):
        yield {**row, "class": None if row["label"] is None else names[row["label"]], "reviewer": None, "time": None}


def _check_suffix(path: Path, suffixes: Sequence[str] = _SUFFIXES) -> None:
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"{path}: expected a file that ends in {', '.join(suffixes)}")


def _read_rows(path: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Each row, with its location in the file for error messages."""
    _check_suffix(path, _READABLE_SUFFIXES)
    suffix, location = path.suffix.lower(), str(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such file; expected one that ends in {', '.join(_READABLE_SUFFIXES)}")
    with translate_read_errors(location, "answers of people, a row for each"):
        if suffix == ".json":
            yield from _task_rows(location)
        elif suffix in DELIMITERS:
            _check_columns(path, header(location, DELIMITERS[suffix]), "a header with")
            rows = (row for batch in delimited_batches(location, DELIMITERS[suffix]) for row in batch.to_pylist())
            for number, row in enumerate(rows, start=1):
                yield {name: value or "" for name, value in row.items()}, f"{path}, row {number}"
        elif suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                names = file.schema_arrow.names
                _check_columns(path, names, "columns")
                columns = [name for name in names if name in {*COLUMNS, "by"}]
                rows = (row for batch in file.iter_batches(columns=columns) for row in batch.to_pylist())
                for number, row in enumerate(rows, start=1):
                    yield row, f"{path}, row {number}"
        else:
            yield from ((row, f"{path}, line {number}") for number, row in json_lines(location))


def _check_columns(path: Path, names: Sequence[str], expected: str) -> None:
    if not {"image_hash", "key"} & set(names) or not {"class", "excluded"} & set(names):
        columns = ", ".join(names) or "nothing"
        raise NstError(f"{path}: expected {expected} `image_hash` or `key`, and `class` or `excluded`; found {columns}")


def _task_rows(location: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    """The answers in Label Studio tasks; tasks without an answer are skipped."""
    for number, row in enumerate(JsonRows(location)):
        if label_studio.ANSWERS not in row:
            raise NstError(f"{location}: expected Label Studio's tasks with annotations, found {', '.join(row)}")
        answer = row[label_studio.ANSWERS]
        if answer is not None:
            yield {**row, "class": answer["label"]}, f"{location}, task {number}"


def _is_unanswered(row: Mapping[str, Any]) -> bool:
    """Whether a row of a pick list has not been filled in: it has a `class` column, which is empty, and no `excluded`."""
    return "class" in row and row["class"] in ("", None) and not row.get("excluded")


def _as_excluded(answer: Answer, classes: Collection[str]) -> Answer:
    """Treat an exclusion such as `unusable` in the class column as an exclusion, unless a class has that name."""
    if answer.class_name not in EXCLUDED or answer.class_name in classes:
        return answer
    return replace(answer, class_name=None, excluded=answer.class_name)


def _parse_row(row: Mapping[str, Any], location: str) -> tuple[Answer, str]:
    values = {name: row.get(name) or None for name in COLUMNS}  # empty CSV cells count as missing
    values["picked_by"] = values["picked_by"] or row.get("by") or None  # the column name in lists of `nst pick`
    if invalid := [name for name, value in values.items() if not isinstance(value, str | None)]:
        raise NstError(f"{location}: `{invalid[0]}` is {values[invalid[0]]!r}, expected text")
    if not (values["image_hash"] or values["key"]):
        raise NstError(f"{location}: names no image; expected its `image_hash` or `key`")
    if (values["class"] is None) == (values["excluded"] is None):
        raise NstError(f"{location}: expected either a `class` or why it is `excluded`")
    if values["excluded"] not in (None, *EXCLUDED):
        raise NstError(f"{location}: `excluded` is {values['excluded']!r}, expected {' or '.join(map(repr, EXCLUDED))}")
    image_hash, key, class_name, excluded, picked_by, seen_in, *_ = (values[name] for name in COLUMNS)
    return Answer(image_hash or "", key or "", class_name, excluded, picked_by=picked_by, seen_in=seen_in), location


def _check_corpus_name(store: Store, corpus: str) -> None:
    """Raises UsageError if the store knows nothing of a corpus but has one with a similar name."""
    if answers_folder(store, corpus).is_dir() or store.versions(corpus):
        return
    corpora = {version.name for version in store.versions() if version.is_readable and version.manifest.kind != "teacher"}
    similar = difflib.get_close_matches(corpus, sorted(corpora), n=1, cutoff=0.85)
    if similar and not corpus.startswith(similar[0]):  # flowers-test may well be a set of labeled images next to the corpus flowers
        raise UsageError(f"{corpus}: the store has no labels or answers of that name; did you mean {similar[0]}?")


def _find_images(labels: Version, rows: Sequence[Answer]) -> dict[str, tuple[str, str]]:
    """The (hash, key) of each image in the labels, under the hash or key by which a row names it."""
    hashes = [row.image_hash for row in rows if row.image_hash]
    keys = [row.key for row in rows if not row.image_hash]
    table = scan_labels(labels).select("image_hash", "key")
    by_hash, by_key = collect(labels.ref, table.filter(pl.col("image_hash").is_in(hashes)), table.filter(pl.col("key").is_in(keys)))
    images = {image_hash: (image_hash, key) for image_hash, key in by_hash.iter_rows()}
    return images | {key: (image_hash, key) for image_hash, key in by_key.iter_rows()}
