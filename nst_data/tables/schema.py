"""Columns and types of each table, as Arrow schemas that `datasets` reads back with class names; and checks of tables as they are read."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from nst_data.errors import NstError

if TYPE_CHECKING:
    from datasets import List


def pseudo_labels_schema(class_names: Sequence[str], top_k: int | None = None) -> pa.Schema:
    """`pseudo_labels`: one row per readable image of the pool, in pool order; soft labels are dense, or the `top_k` largest values."""
    from datasets import ClassLabel, Features, Value

    return Features(
        {
            "id": Value("int64"),  # row number in the pool's fixed order
            "key": Value("string"),  # where the image is in its source
            "image_hash": Value("string"),  # xxh3-128 of the encoded bytes
            "label": ClassLabel(names=list(class_names)),  # the most probable class, before rounding to float16
            "confidence": Value("float32"),  # its probability, in [0, 1]
            **_soft_label_features(len(class_names), top_k),
            "phash": Value("int64"),  # 64-bit perceptual hash
        }
    ).arrow_schema


def balanced_schema(class_names: Sequence[str], top_k: int | None = None, with_images: bool = False) -> pa.Schema:
    """`balanced`: one row per selected image, with soft labels as in the generation it is drawn from.

    Rows are in pool order or, with the images next to their labels, shuffled.
    """
    from datasets import ClassLabel, Features, Image, Value

    return Features(
        {
            **({"image": Image()} if with_images else {}),  # the encoded bytes as they are in the pool; `path` is the key
            "id": Value("int64"),
            "key": Value("string"),
            "image_hash": Value("string"),
            "label": ClassLabel(names=list(class_names)),
            "confidence": Value("float32"),
            **_soft_label_features(len(class_names), top_k),
            "duplicates": Value("int32"),  # images of the pool with exactly these bytes, this one included
            "copies": Value("int32"),  # entries in the training set
        }
    ).arrow_schema


def _soft_label_features(n_classes: int, top_k: int | None) -> "dict[str, List]":
    """The columns of the soft label; `nst_train.training.loss` renormalizes them and spreads the remaining mass of a top-k label."""
    from datasets import List, Value

    if top_k is None:
        return {"probs": List(Value("float16"), length=n_classes)}
    if not 1 <= top_k <= n_classes:
        raise NstError(f"top-k {top_k}: expected 1 to {n_classes}, the number of classes; choose another `top_k`")
    return {
        "top_labels": List(Value("int32"), length=top_k),  # the most probable classes, in descending order
        "top_probs": List(Value("float16"), length=top_k),  # their probabilities; the rest is spread evenly over the other classes
    }


def top_k_of(schema: pa.Schema) -> int | None:
    """The number of classes in each soft label of a table; None if it has a value for every class."""
    column_type = schema.field("top_labels").type if "top_labels" in schema.names else None
    return int(column_type.list_size) if isinstance(column_type, pa.FixedSizeListType) else None


def soft_label_columns(schema: pa.Schema) -> tuple[str, ...]:
    """The columns that hold a table's soft labels: `probs`, or `top_labels` and `top_probs`."""
    return ("probs",) if top_k_of(schema) is None else ("top_labels", "top_probs")


def soft_label_bytes(schema: pa.Schema) -> int:
    """The size of one row's soft label, before compression."""
    list_types = [schema.field(name).type for name in soft_label_columns(schema)]
    return sum(list_type.list_size * list_type.value_type.bit_width // 8 for list_type in list_types)


def review_schema(class_names: Sequence[str], with_reviewers: bool = True) -> pa.Schema:
    """`review`: one row per image that people have settled, ordered by `image_hash`; either `label` or `excluded` is null."""
    from datasets import ClassLabel, Features, List, Value

    return Features(
        {
            "image_hash": Value("string"),
            "key": Value("string"),  # where it was seen
            "label": ClassLabel(names=list(class_names)),  # the class that people gave it
            "excluded": Value("string"),  # none of these, unusable
            "picked_by": Value("string"),  # how it was picked for review, null if it was not
            "seen_in": Value("string"),  # the version in which they saw it
            **({"reviewers": List(Value("string"))} if with_reviewers else {}),
            "time": Value("string"),  # of the last answer
        }
    ).arrow_schema


def answered_schema(class_names: Sequence[str], with_images: bool = False) -> pa.Schema:
    """`answered`: the images of an edition's generation to which people gave a class, which are trained on as labeled ones."""
    from datasets import ClassLabel, Features, Image, Value

    return Features(
        {
            **({"image": Image()} if with_images else {}),
            "id": Value("int64"),
            "key": Value("string"),
            "image_hash": Value("string"),
            "label": ClassLabel(names=list(class_names)),  # the class that people gave it
        }
    ).arrow_schema


def errors_schema() -> pa.Schema:
    """`errors`: every image that could not be labeled, and why."""
    from datasets import Features, Value

    return Features({"id": Value("int64"), "key": Value("string"), "reason": Value("string")}).arrow_schema


SELECTION_COLUMNS = {"id": pl.Int64, "image_hash": pl.String, "label": pl.Int64, "confidence": pl.Float32}


OVERLAP_COLUMNS = pa.schema([("id", pa.int64()), ("key", pa.string()), ("image_hash", pa.string()), ("phash", pa.int64())])


def check_columns(file: Path, expected: pa.Schema, subject: str) -> None:
    """Check the columns of a parquet file. Raises NstError that names the column, the type found and the type expected.

    Raises one of `nst_data.parquet_footer.PARQUET_ERRORS` for a damaged footer.
    """
    schema = pq.read_schema(file)
    for field in expected:
        column_type = schema.field(field.name).type if field.name in schema.names else "missing"
        if column_type != field.type:
            raise NstError(f"{subject}: column `{field.name}` is {column_type}, expected {field.type}")


def check_labels(labels: pl.LazyFrame, table: str = "pseudo_labels") -> pl.LazyFrame:
    """Check the columns that selection reads. Raises NstError that names the column, the type found and the type expected."""
    schema = labels.collect_schema()
    for column, expected in SELECTION_COLUMNS.items():
        if column not in schema:
            raise NstError(f"{table}: column `{column}` is missing; expected {expected}; found {', '.join(schema)}")
        if schema[column] != expected:
            raise NstError(f"{table}: column `{column}` is {schema[column]}, expected {expected}")
    return labels
