"""Clean images for labeling and evaluating: decoded by threads a few batches ahead of the network."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from nst_data.images import ImageError, decode, image_hash, phash_thumbnail
from nst_data.sources import Row, Source
from nst_train.noise import Transform

_AHEAD = 3


@dataclass(frozen=True)
class CleanImage:
    """A decoded row, or the reason why there is none."""

    row: Row
    pixels: Float[Tensor, "3 height width"] | None
    thumbnail: NDArray[np.uint8] | None
    hash: str
    reason: str = ""


@dataclass(frozen=True)
class CleanBatch:
    """Rows that go through the network together. An unreadable image leaves zeros: the others' logits do not depend on it."""

    images: list[CleanImage]
    pixels: Float[Tensor, "batch 3 height width"]

    @property
    def readable(self) -> list[int]:
        """Positions of the images that could be read."""
        return [position for position, image in enumerate(self.images) if image.pixels is not None]


def clean_batches(
    source: Source, spans: Iterable[tuple[int, int]], transform: Transform, image_shape: tuple[int, int, int], threads: int, hashes: bool
) -> Iterator[CleanBatch]:
    """A batch for each span (first row, row after the last). With `hashes`, image hash and phash thumbnail are taken too."""

    def load(row: Row) -> CleanImage:
        if isinstance(row.encoded, Exception):
            return CleanImage(row, None, None, "", _reason(row.encoded))
        try:
            image = decode(row.encoded)
        except ImageError as error:
            return CleanImage(row, None, None, "", str(error))
        thumbnail = phash_thumbnail(image) if hashes else None
        return CleanImage(row, transform(image), thumbnail, image_hash(row.encoded) if hashes else "")

    def submit(span: tuple[int, int]) -> list[Future[CleanImage]]:
        return [pool.submit(load, row) for row in source.rows(*span)]

    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[list[Future[CleanImage]]] = deque()
        try:
            for span in spans:
                waiting.append(submit(span))
                if len(waiting) > _AHEAD:
                    yield _collect(waiting.popleft(), image_shape)
            while waiting:
                yield _collect(waiting.popleft(), image_shape)
        finally:
            pool.shutdown(cancel_futures=True)


def _collect(futures: list[Future[CleanImage]], image_shape: tuple[int, int, int]) -> CleanBatch:
    images = [future.result() for future in futures]
    pixels = torch.zeros(len(images), *image_shape)
    for position, image in enumerate(images):
        if image.pixels is not None:
            pixels[position] = image.pixels
    return CleanBatch(images, pixels)


def _reason(error: Exception) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)
