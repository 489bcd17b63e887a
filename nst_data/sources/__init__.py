"""Image sources: a folder, a list, tar or parquet files, a dataset saved to disk or on the Hub.

Input: a location as the user writes it. Output: rows of (id, key, encoded bytes, label?) in one fixed order, a fingerprint by names and
sizes, and what was skipped or has changed.
"""

from nst_data.sources.labels import check_trainable, labels_in, match_classes
from nst_data.sources.listing import read_listing, what_changed
from nst_data.sources.opening import open_source, open_table
from nst_data.sources.source import Buffer, Row, Source

__all__ = [
    "Buffer",
    "Row",
    "Source",
    "check_trainable",
    "labels_in",
    "match_classes",
    "open_source",
    "open_table",
    "read_listing",
    "what_changed",
]
