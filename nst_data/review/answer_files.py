"""`nst review import` and `nst review export`: answers in a CSV or JSONL file, by key or hash."""

import csv
import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from nst_data.arguments import with_checked_arguments
from nst_data.errors import NstError, UsageError
from nst_data.review.answers import EXCLUDED, Answer, AnswerLog, Answers, check_class
from nst_data.review.freeze import classes_of
from nst_data.safe_names import cell, without_quote
from nst_data.store.files import replacing
from nst_data.store.store import Store, Version
from nst_data.tables.label_tables import collect, scan_labels
from nst_data.tables.review_table import read_review

COLUMNS = ("image_hash", "key", "class", "excluded", "picked_by", "seen_in", "reviewer", "time")
_SUFFIXES = (".csv", ".jsonl")


@with_checked_arguments
def import_answers(store: Store, corpus: str, file: Path | str, *, reviewer: str = "reviewer") -> tuple[int, int]:
    """Add the answers in a file to those of a reviewer, all or none.

    Args:
        store: Where the answers are kept.
        corpus: The corpus they are about.
        file: CSV with a header, or JSONL: in each row `class`, or `excluded` (none of these, unusable), of the image with this
            `image_hash` or `key`; keys are those of the corpus' newest labels. `picked_by`, or `by`, says how the image was
            chosen. Rows with an empty `class` are not filled in yet, and left out.
        reviewer: Whose answers these are.

    Returns:
        (answers that were added, those that this reviewer had given already).

    Raises:
        NstError: A row names no image of the corpus, or no class of it; the message says which.
        UsageError: The file is of another kind.
    """
    path = Path(file)
    rows = [_parsed(row, where) for row, where in _rows(path) if not _is_open(row)]
    classes, labels = classes_of(store, corpus), newest_labels(store, corpus)
    for row, where in rows:
        if row.class_name is not None and classes:
            try:
                check_class(row.class_name, classes)
            except UsageError as error:
                raise NstError(f"{where}: {error}") from None
    found = _found(labels, [row for row, _ in rows]) if labels else {}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    log, answers = AnswerLog(store, corpus, reviewer), []
    for row, where in rows:
        image_hash, key = found.get(row.image_hash or row.key, (row.image_hash, row.key or row.image_hash))
        if not image_hash:
            there = f"{labels.ref} has no image {row.key!r}" if labels else f"no labels of {corpus} are in the store to find {row.key!r} in"
            raise NstError(f"{where}: {there}; name its `image_hash`")
        answers.append(replace(row, image_hash=image_hash, key=key, time=now))
    new = [answer for answer in answers if answer.says != log.says_of(answer.image_hash)]
    if new:
        log.extend(new)
    return len(new), len(answers) - len(new)


@with_checked_arguments
def export_answers(store: Store, what: str, file: Path | str) -> int:
    """Write answers to a CSV or JSONL file, which `import_answers` reads.

    Args:
        store: Where they are kept.
        what: A corpus: the answer of each of its reviewers about each image; or a frozen review, `name@review-N`.
        file: Ends in .csv or .jsonl.

    Returns:
        How many there are.

    Raises:
        UsageError: The file has another ending, or there is no such review.
        NstError: There is no answer.
    """
    path = Path(file)
    _check_suffix(path)
    rows = list(_of_review(store.open(what, "review")) if "@" in what else _of_corpus(store, what))
    if not rows:
        raise NstError(f"{what}: there is no answer to export yet")
    with replacing(path.absolute()) as out:
        if path.suffix.lower() == ".csv":
            lines = [",".join(COLUMNS), *(",".join(_quoted(row[name]) for name in COLUMNS) for row in rows)]
        else:
            lines = [json.dumps({name: row[name] for name in COLUMNS}, ensure_ascii=False) for row in rows]
        out.write(("\n".join(lines) + "\n").encode())
    return len(rows)


def _of_corpus(store: Store, corpus: str) -> Iterator[Mapping[str, Any]]:
    answers = Answers(store, corpus)
    answers.refresh()
    for image_hash in answers.images():
        for one in answers.of(image_hash):
            yield {**vars(one), "class": one.class_name}


def _of_review(review: Version) -> Iterator[Mapping[str, Any]]:
    names = review.manifest.class_names
    for row in read_review(review).iter_rows(named=True):
        yield {**row, "class": None if row["label"] is None else names[row["label"]], "reviewer": None, "time": None}


def _quoted(value: str | None) -> str:
    text = cell(value or "")
    return '"' + text.replace('"', '""') + '"' if set(text) & set(',"\r\n') else text


def _check_suffix(path: Path) -> None:
    if path.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"{path}: expected a file that ends in .csv or .jsonl")


def _rows(path: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Each row, with where it stands."""
    _check_suffix(path)
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; expected a CSV or JSONL file") from None
    except UnicodeDecodeError:
        raise NstError(f"{path}: expected UTF-8; save it so") from None
    if path.suffix.lower() == ".csv":
        reader = csv.DictReader(text.splitlines(keepends=True), restval=None)
        if not {"image_hash", "key"} & set(reader.fieldnames or ()) or not {"class", "excluded"} & set(reader.fieldnames or ()):
            found = ", ".join(reader.fieldnames or ()) or "nothing"
            raise NstError(f"{path}: expected a header with `image_hash` or `key`, and `class` or `excluded`; found {found}")
        for row in reader:
            yield (
                {name: without_quote(value) if isinstance(value, str) else value for name, value in row.items()},
                f"{path}, line {reader.line_num}",
            )
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise NstError(f"{path}, line {number}: expected a JSON object ({error})") from None
            if not isinstance(row, dict):
                raise NstError(f"{path}, line {number}: expected a JSON object, found {type(row).__name__}")
            yield row, f"{path}, line {number}"


def _is_open(row: Mapping[str, Any]) -> bool:
    """Whether a row of a list of picks is not filled in: it has a place for the class, and nothing in it."""
    return row.get("class") == "" and not row.get("excluded")


def _parsed(row: Mapping[str, Any], where: str) -> tuple[Answer, str]:
    values = {name: row.get(name) or None for name in COLUMNS}  # an empty cell of a CSV file says nothing
    values["picked_by"] = values["picked_by"] or row.get("by") or None  # as `nst pick` calls it
    if odd := [name for name, value in values.items() if not isinstance(value, str | None)]:
        raise NstError(f"{where}: `{odd[0]}` is {values[odd[0]]!r}, expected text")
    if not (values["image_hash"] or values["key"]):
        raise NstError(f"{where}: names no image; expected its `image_hash` or `key`")
    if (values["class"] is None) == (values["excluded"] is None):
        raise NstError(f"{where}: expected either a `class` or why it is `excluded`")
    if values["excluded"] not in (None, *EXCLUDED):
        raise NstError(f"{where}: `excluded` is {values['excluded']!r}, expected {' or '.join(map(repr, EXCLUDED))}")
    image_hash, key, class_name, excluded, picked_by, seen_in, *_ = (values[name] for name in COLUMNS)
    return Answer(image_hash or "", key or "", class_name, excluded, picked_by=picked_by, seen_in=seen_in), where


def newest_labels(store: Store, corpus: str) -> Version | None:
    """The newest generation of a corpus, of one that has none here the newest edition; None where it has no labels."""
    labels = [version for version in store.versions(corpus) if version.is_readable and version.manifest.kind in ("generation", "edition")]
    generations = [version for version in labels if version.manifest.kind == "generation"]
    return next(reversed(generations or labels), None)


def _found(labels: Version, rows: Sequence[Answer]) -> dict[str, tuple[str, str]]:
    """(hash, key) of the images in the labels, by the hash or the key that a row names."""
    hashes = [row.image_hash for row in rows if row.image_hash]
    keys = [row.key for row in rows if not row.image_hash]
    table = scan_labels(labels).select("image_hash", "key")
    by_hash, by_key = collect(labels.ref, table.filter(pl.col("image_hash").is_in(hashes)), table.filter(pl.col("key").is_in(keys)))
    found = {image_hash: (image_hash, key) for image_hash, key in by_hash.iter_rows()}
    return found | {key: (image_hash, key) for image_hash, key in by_key.iter_rows()}
