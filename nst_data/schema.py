"""Columns and types of each table, as Arrow schemas that `datasets` reads back with class names; one check on entry."""

from collections.abc import Sequence

import polars as pl
import pyarrow as pa
from datasets import ClassLabel, Features, List, Value

from nst_data.errors import NstError


def pseudo_labels_schema(class_names: Sequence[str]) -> pa.Schema:
    """`pseudo_labels`: one row per readable image of the pool, in pool order."""
    return Features(
        {
            "id": Value("int64"),  # row number in the pool's fixed order
            "key": Value("string"),  # where the image is in its source
            "image_hash": Value("string"),  # xxh3-128 of the encoded bytes
            "label": ClassLabel(names=list(class_names)),  # the most probable class, before rounding to float16
            "confidence": Value("float32"),  # its probability, in [0, 1]
            "probs": List(Value("float16"), length=len(class_names)),  # the soft label; renormalized when read
            "phash": Value("int64"),  # 64-bit perceptual hash
        }
    ).arrow_schema


def balanced_schema(class_names: Sequence[str]) -> pa.Schema:
    """`balanced`: one row per selected image, in pool order."""
    return Features(
        {
            "id": Value("int64"),
            "key": Value("string"),
            "image_hash": Value("string"),
            "label": ClassLabel(names=list(class_names)),
            "confidence": Value("float32"),
            "probs": List(Value("float16"), length=len(class_names)),
            "duplicates": Value("int32"),  # images of the pool with exactly these bytes, this one included
            "copies": Value("int32"),  # entries in the training set
        }
    ).arrow_schema


def errors_schema() -> pa.Schema:
    """`errors`: every image that could not be labeled, and why."""
    return Features({"id": Value("int64"), "key": Value("string"), "reason": Value("string")}).arrow_schema


SELECTION_COLUMNS = {"id": pl.Int64, "image_hash": pl.String, "label": pl.Int64, "confidence": pl.Float32}


def check_labels(labels: pl.LazyFrame, table: str = "pseudo_labels") -> pl.LazyFrame:
    """Check the columns that selection reads. Raises NstError that names column, type found and type expected."""
    found = labels.collect_schema()
    for column, expected in SELECTION_COLUMNS.items():
        if column not in found:
            raise NstError(f"{table}: column `{column}` is missing; expected {expected}; found {', '.join(found)}")
        if found[column] != expected:
            raise NstError(f"{table}: column `{column}` is {found[column]}, expected {expected}")
    return labels
