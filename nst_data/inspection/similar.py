"""Images similar to a given one, by features that `nst embed` has stored: a brute-force scan over as many as fit into memory."""

import logging
import threading
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nst_data.errors import NstError
from nst_data.features.features import Features
from nst_data.features.kept import list_features
from nst_data.inspection.view import View
from nst_data.store.store import Store

_log = logging.getLogger("nst_data")  # Python prints warnings of loggers without handlers to standard error
_MAX_BYTES = 2**28  # of features in memory; if there are more, an even share of the images is compared
_NEAREST_IMAGES = 12


@dataclass
class SimilaritySearch:
    """Similarity search by features among the images of a view."""

    view: View
    features: Features
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def find(self, row: int) -> list[tuple[int, float]]:
        """(row, cosine similarity) of the most similar other rows in descending order; empty for a row without features."""
        with self._lock:
            rows, matrix = self._unit_features
        matches = np.flatnonzero(rows == row)
        if not len(matches):
            return []
        similarity = matrix @ matrix[matches[0]]
        similarity[matches] = -2
        nearest = np.argsort(-similarity, kind="stable")[:_NEAREST_IMAGES]
        return [(int(rows[place]), round(float(similarity[place]), 4)) for place in nearest if similarity[place] > -2]

    @cached_property
    def _unit_features(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The rows of the view that have features, and these scaled to unit length; shapes (images,) and (images, dimensions).

        Both are empty if the features were removed or are damaged, so that the rest of the page still works.
        """
        try:
            return self._load_features()
        except (NstError, OSError, pa.ArrowInvalid) as error:
            _log.warning("%s; similar images are not shown", error)
            return np.empty(0, np.int64), np.empty((0, self.features.about.dimensions), np.float32)

    def _load_features(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        record = self.features.about
        step = max(1, -(-record.images * record.dimensions * 4 // _MAX_BYTES))
        hashes, chunks, offset = [], [np.empty((0, record.dimensions), np.float32)], 0
        folder = self.features.folder
        for name in sorted(name for name in record.files if name.startswith("features/")):
            for batch in pq.ParquetFile(folder / name).iter_batches(8192, columns=["image_hash", "features"]):
                indices = np.arange(-offset % step, batch.num_rows, step)
                values = batch["features"].flatten().to_numpy(zero_copy_only=False).reshape(-1, record.dimensions)[indices]
                hashes += batch["image_hash"].take(indices).to_pylist()
                chunks.append(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12))
                offset += batch.num_rows
        rows_by_hash = {hashed: iter(rows) for hashed, rows in self.view.rows_of(hashes).items()}  # identical images each have features
        rows = np.array([next(rows_by_hash.get(hashed, iter(())), -1) for hashed in hashes], np.int64)
        return rows[rows >= 0], np.concatenate(chunks).astype(np.float32)[rows >= 0]


def open_similarity_search(store: Store, view: View) -> SimilaritySearch | None:
    """Search by features of the view's own source: those of its teacher, else the newest; None if the store has none."""
    inputs = view.version.manifest.request.inputs if view.version else None
    source_digest = (
        inputs.pool.digest if inputs and inputs.pool else getattr(getattr(view.rows, "source", None), "images_fingerprint", None)
    )
    teachers = {entry.digest for role, entry in inputs.by_role.items() if role.startswith("teacher")} if inputs else set()
    best: tuple[tuple[bool, str], Features] | None = None
    for features in filter(None, (stored.features for stored in list_features(store) if stored.is_finished)):
        request, created = features.about.request, features.about.created
        rank = (request.model.digest in teachers, created)
        if request.source.digest == source_digest and (best is None or rank > best[0]):
            best = rank, features
    return SimilaritySearch(view, best[1]) if best else None
