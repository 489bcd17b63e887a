"""Column features as declared by `datasets`: in the metadata of an Arrow schema, or in the card of a repository."""

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

Features = Mapping[str, Any]  # features of `datasets` by column, as declared in a card


def feature_names(schema: pa.Schema, column: str) -> list[str] | None:
    """The class names that `datasets` wrote into the schema."""
    feature = _schema_features(schema).get(column)
    return _valid_names(feature.get("names")) if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None


def card_names(features: Features | None, column: str) -> list[str] | None:
    """The class names declared in a card."""
    return _valid_names(getattr((features or {}).get(column), "names", None))


def class_columns(schema: pa.Schema, features: Features | None = None) -> dict[str, list[str]]:
    """Class names by column, from the schema or else from the card, for the columns that have any."""
    names_by_column = {name: feature_names(schema, name) or card_names(features, name) for name in schema.names}
    return {name: names for name, names in names_by_column.items() if names}


def columns_of_kind(kind: str, schema: pa.Schema, features: Features | None = None) -> list[str]:
    """The columns that the schema, or else the card, declares to be of a kind such as `Image` or `ClassLabel`."""
    written = _schema_features(schema)

    def kind_of(column: str) -> Any:  # noqa: ANN401 - anybody may have written the metadata
        feature = written.get(column)
        return feature.get("_type") if isinstance(feature, dict) else type((features or {}).get(column)).__name__

    return [name for name in schema.names if kind_of(name) == kind]


def _schema_features(schema: pa.Schema) -> dict[str, Any]:
    text = (schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(text)["info"]["features"] if text else {}
    except (ValueError, LookupError, TypeError, RecursionError):  # anybody may have written the metadata
        return {}
    return features if isinstance(features, dict) else {}


def _valid_names(value: Any) -> list[str] | None:  # noqa: ANN401 - anybody may have written the metadata
    return value if isinstance(value, list) and value and all(isinstance(name, str) for name in value) else None
