"""Features in the store: `features/DIGEST/`, with parquet shards and `features.json`, which is written last."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from nst_data.errors import NstError
from nst_data.store.files import clear_abandoned, discard
from nst_data.store.inputs import Input
from nst_data.store.manifest import SealedFile, json_digest
from nst_data.store.mirror import FEATURES, FEATURES_NAME, Mirror
from nst_data.store.store import Store
from nst_data.tables.shards import ShardPlan

TABLE, RECORD_FILE = "features", FEATURES_NAME
FOLDER = FEATURES
_SHOWN_DIGITS = 12


def features_ref(folder: Path) -> str:
    """`features@` and the first digits of the folder's name, as `nst list` shows and `nst remove` accepts."""
    return f"{FOLDER}@{folder.name[:_SHOWN_DIGITS]}"


_LAYOUT = 1
_ROWS_AT_ONCE = 4_000


class FeaturesRequest(BaseModel):
    """Which features to compute: the source, the network, and settings such as the image size."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Input
    source: Input
    settings: dict[str, Any]

    @property
    def digest(self) -> str:
        """Equal for equal settings, network and source content, wherever the source is located."""
        identity = {"settings": self.settings, "model": self.model.digest, "source": self.source.digest, "layout": _LAYOUT}
        return json_digest({"kind": "features", **identity})


class FeaturesRecord(BaseModel):
    """The content of `features.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    request: FeaturesRequest
    images: int
    errors: int
    dimensions: int
    files: dict[str, SealedFile]
    machine: dict[str, Any]
    created: str


@dataclass(frozen=True)
class Features:
    """Finished features of a source, in its order, without unreadable images.

    If the store is remote, `mirror` is given, and `place` may contain only `features.json`.
    """

    place: Path
    mirror: Mirror | None = field(default=None, compare=False, repr=False)

    @property
    def folder(self) -> Path:
        """The folder with all files; for a remote store they are downloaded first."""
        if self.mirror is not None and self.about:
            self.mirror.download_version(self.place)
        return self.place

    @property
    def location(self) -> str:
        """The folder or URL of the features, for messages."""
        return str(self.place) if self.mirror is None else self.mirror.tree.address_of(self.mirror.name_of(self.place))

    @cached_property
    def about(self) -> FeaturesRecord:
        """The record of what the features were computed from. Raises NstError if it is damaged."""
        path = self.place / RECORD_FILE
        try:
            return FeaturesRecord.model_validate_json(path.read_text("utf-8"))
        except (OSError, ValueError):  # includes pydantic's ValidationError
            remedy = f"`remove_features(store, {features_ref(self.place)!r})`"
            raise NstError(f"{path}: the record of what these features were computed from is damaged; {remedy}") from None

    def rows(self) -> pa.Table:
        """`id` (the row number in the source), `key` and `image_hash` of each image."""
        return pa.concat_tables(pq.read_table(path, columns=["id", "key", "image_hash"]) for path in self._files)

    def errors(self) -> list[dict[str, Any]]:
        """`id`, `key` and `reason` of each image that could not be read."""
        rows: list[dict[str, Any]] = pq.read_table(self.folder / ShardPlan(1, 1, "errors").file(0)).to_pylist()
        return rows

    def matrix(self) -> NDArray[np.float32]:
        """The features, shape (images, dimensions), in the order of `rows`."""
        return np.concatenate([np.empty((0, self.about.dimensions), np.float32), *(matrix for _, matrix in self.batches())])

    def batches(self) -> Iterator[tuple[pa.RecordBatch, NDArray[np.float32]]]:
        """The content of `rows` and `matrix`, a few thousand images at a time."""
        for path in self._files:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(_ROWS_AT_ONCE):
                    values = batch["features"].flatten().to_numpy(zero_copy_only=False)
                    yield batch.select(["id", "key", "image_hash"]), values.reshape(-1, self.about.dimensions)

    @property
    def _files(self) -> list[Path]:
        folder = self.folder
        return [folder / name for name in sorted(self.about.files) if name.startswith(f"{TABLE}/")]


def find_features(store: Store, request: FeaturesRequest) -> Features | None:
    """The features of a request if they are finished; in a remote store, by any machine."""
    place, mirror = features_folder(store, request), store.mirror
    for folder in (place.parent, store.root / "runs" / FOLDER):
        clear_abandoned(folder)
    if mirror is not None:
        mirror.publish_local_features(place)
        if mirror.refresh_version(mirror.name_of(place)):
            discard(mirror.root / "runs" / mirror.name_of(place))  # leftovers of this machine's own run
            mirror.download_source_states(place)
    return Features(place, mirror) if (place / RECORD_FILE).is_file() else None


def features_folder(store: Store, request: FeaturesRequest) -> Path:
    """The folder of a request's features, whether or not they exist."""
    return store.root / FOLDER / request.digest[:32]


def features_schema(dimensions: int) -> pa.Schema:
    """The columns of the table `features`."""
    from datasets import Features as Columns
    from datasets import List, Value

    return Columns(
        {
            "id": Value("int64"),  # row number in the source's fixed order
            "key": Value("string"),
            "image_hash": Value("string"),  # xxh3-128 of the encoded bytes
            "features": List(Value("float32"), length=dimensions),
        }
    ).arrow_schema
