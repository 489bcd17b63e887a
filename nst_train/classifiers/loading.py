"""Turn the rows of a batch into network inputs: read, hash, decode, noise, resize."""

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nst_data.errors import NstError, first_line
from nst_data.images import ImageError, check_shape, image_hash, phash
from nst_data.sources import Row
from nst_train.classifiers.noised_teacher import TeacherNoise
from nst_train.transforms.preprocessing import Preprocessing, decode_pixels, stack_images, stack_thumbnails, thumbnail

_READ_AT_ONCE, _SMALL_BYTES = 32, 2**13
_small_images = threading.Lock()


@dataclass(frozen=True)
class LoadedImages:
    """A decoded batch. `pixels` are zero for unreadable images, so that the logits of the others do not depend on them."""

    readable: list[int]
    reasons: list[tuple[int, str]]
    hashes: list[str]
    phashes: NDArray[np.int64]
    pixels: list[Tensor]


def load_images(
    rows: Sequence[Row], preprocessings: Sequence[Preprocessing], batch_size: int, hashes: bool, noise: TeacherNoise | None = None
) -> LoadedImages:
    """Read, hash, decode, noise and preprocess the rows of a batch, in this thread."""
    exact = any(one.exact for one in preprocessings)
    sides = [one.min_side_px for one in preprocessings]
    min_side_px = None if None in sides else max(side for side in sides if side is not None)
    readable, reasons, hashed, small = [], [], [], []
    prepared: list[list[Tensor]] = [[] for _ in preprocessings]
    start = 0
    while start < len(rows):
        contents = _read_contents(rows[start : start + _READ_AT_ONCE])
        with _decode_lock(contents):
            for position, content in enumerate(contents, start):
                try:
                    if isinstance(content, Exception):
                        raise content
                    pixels = decode_pixels(content, min_side_px, exact)
                    check_shape(pixels.shape[2], pixels.shape[1])
                    views = [_prepare(one, content, pixels, rows[position].id, noise) for one in preprocessings]
                except (NstError, OSError) as error:
                    reasons.append((position, error_reason(error)))
                    continue
                readable.append(position)
                if hashes:
                    hashed.append(image_hash(content))
                    small.append(thumbnail(pixels))
                for view, into in zip(views, prepared, strict=True):
                    into.append(view)
        start += len(contents)
    batches = [stack_images(one) if one else torch.empty(0) for one in prepared]
    # an image that already has thumbnail size is its own thumbnail
    if small and all(view is one for view, one in zip(prepared[0], small, strict=True)):
        thumbnails = batches[0].permute(0, 2, 3, 1).numpy()
    else:
        thumbnails = stack_thumbnails(small)
    return LoadedImages(readable, reasons, hashed, phash(thumbnails), [_pad_batch(one, readable, batch_size) for one in batches])


def error_reason(error: Exception) -> str:
    """Why an image cannot be read, in a few words."""
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)


def _read_contents(rows: Sequence[Row]) -> list[bytes | memoryview | Exception]:
    """The contents of the first rows, up to the one that takes them past 1 MiB."""
    contents: list[bytes | memoryview | Exception] = []
    size = 0
    for row in rows:
        contents.append(content := _read_content(row))
        size += 0 if isinstance(content, Exception) else len(content)
        if size > 2**20:
            break
    return contents


def _read_content(row: Row) -> bytes | memoryview | Exception:
    """The bytes of an image, or the error that reading it raised."""
    try:
        return row.read()
    except (NstError, OSError) as error:
        return error


def _decode_lock(contents: Sequence[bytes | memoryview | Exception]) -> AbstractContextManager[object]:
    """A lock to hold while small images are decoded, for which the GIL would otherwise change hands several times each, at its full cost.

    Meanwhile the other threads read or run the network.
    """
    sizes = [len(content) for content in contents if not isinstance(content, Exception)]
    return _small_images if sum(sizes) <= _SMALL_BYTES * len(sizes) else nullcontext()


def _prepare(preprocessing: Preprocessing, encoded: bytes | memoryview, pixels: Tensor, row: int, noise: TeacherNoise | None) -> Tensor:
    try:
        return noise.prepare(preprocessing, encoded, pixels, row) if noise else preprocessing.prepare(pixels)
    except (RuntimeError, ValueError, ZeroDivisionError) as error:  # such as a resized side of 0 pixels
        raise ImageError(
            f"{pixels.shape[2]}x{pixels.shape[1]} pixels, which the teacher's transform refuses ({first_line(error)})"
        ) from None


def _pad_batch(prepared: Tensor, readable: list[int], batch_size: int) -> Tensor:
    """Pad with zeros to a full batch: logits differ in the last bits between batch sizes, so all batches have the same one."""
    if len(prepared) in (0, batch_size):
        return prepared
    batch = prepared.new_zeros(batch_size, *prepared.shape[1:])
    batch[readable] = prepared
    return batch
