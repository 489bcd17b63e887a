"""Filters and order of the rows of a view, and how to parse them from URL parameters."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from nst_data.errors import UsageError

Sort = Literal["confidence", "-confidence", "margin", "entropy", "-suspicion", "key"]
SORTS: tuple[Sort, ...] = get_args(Sort)


@dataclass(frozen=True)
class Query:
    """Filters and order.

    `min_confidence` is inclusive, `max_confidence` exclusive unless it is 1; `rows` restricts the result to these, in their order.
    """

    class_name: str | None = None
    min_confidence: float | None = None
    max_confidence: float | None = None
    reason: str | None = None
    only_repeated: bool = False
    only_disagreements: bool = False
    near_row: int | None = None
    only_errors: bool = False
    changed_from: str | None = None
    changed_to: str | None = None
    sort: Sort | None = None
    offset: int = 0
    limit: int = 60
    rows: NDArray[np.int64] | None = None
    excluded_rows: NDArray[np.int64] | None = None


def parse_query(values: Mapping[str, str]) -> Query:
    """Parse URL parameters. Raises UsageError if they are not a valid query."""
    sort = values.get("sort") or None
    if sort is not None and sort not in SORTS:
        raise UsageError(f"sort={sort}: expected {', '.join(SORTS)}")
    return Query(
        class_name=values.get("class") or None,
        min_confidence=_parse_fraction(values, "min"),
        max_confidence=_parse_fraction(values, "max"),
        reason=values.get("reason") or None,
        only_repeated=values.get("copies") == "1",
        only_disagreements=values.get("disagree") == "1",
        near_row=_parse_integer(values, "near", None),
        only_errors=values.get("errors") == "1",
        changed_from=values.get("from") or None,
        changed_to=values.get("to") or None,
        sort=sort,
        offset=_parse_integer(values, "offset", 0) or 0,
        limit=min(_parse_integer(values, "limit", 60) or 0, 500),
    )


def _parse_fraction(values: Mapping[str, str], name: str) -> float | None:
    if not values.get(name):
        return None
    try:
        value = float(values[name])
    except ValueError:
        raise UsageError(f"{name}={values[name]}: expected a number from 0 to 1") from None
    if not 0 <= value <= 1:
        raise UsageError(f"{name}={values[name]}: expected a number from 0 to 1")
    return value


def _parse_integer(values: Mapping[str, str], name: str, default: int | None) -> int | None:
    if not values.get(name):
        return default
    if not values[name].isascii() or not values[name].isdigit() or len(values[name]) > 15:
        raise UsageError(f"{name}={values[name]}: expected a whole number from 0")
    return int(values[name])
