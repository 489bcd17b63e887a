"""Images as the page shows them: decoded, shrunk and encoded again, so that only the pixels of a file are passed on."""

import io
import threading
from collections import OrderedDict
from collections.abc import Callable

from PIL import Image

from nst_data.images import check_shape, decode

THUMB_PX, IMAGE_PX = 192, 1024
_CACHE_BYTES = 64 * 2**20
_QUALITY = 85


class Thumbnails:
    """A cache of the most recently used JPEGs, up to a number of bytes."""

    def __init__(self, max_bytes: int = _CACHE_BYTES) -> None:
        self._most, self._bytes, self._lock = max_bytes, 0, threading.Lock()
        self._made: OrderedDict[tuple[str, int], bytes] = OrderedDict()

    def get(self, name: str, side_px: int, read: Callable[[], bytes]) -> bytes:
        """The JPEG of an image, with sides of at most `side_px`. `name` is the image's hash; if it is empty, nothing is cached.

        Raises NstError or OSError if the image cannot be read or decoded.
        """
        place = (name, side_px)
        with self._lock:
            if place in self._made:
                self._made.move_to_end(place)
                return self._made[place]
        jpeg = as_jpeg(read(), side_px)
        if name:
            self._cache(place, jpeg)
        return jpeg

    def _cache(self, key: tuple[str, int], jpeg: bytes) -> None:
        with self._lock:
            self._bytes += len(jpeg) - len(self._made.pop(key, b""))
            self._made[key] = jpeg
            while self._bytes > self._most:
                self._bytes -= len(self._made.popitem(last=False)[1])


def as_jpeg(encoded: bytes, side_px: int) -> bytes:
    """The pixels of an encoded image as a JPEG, shrunk if larger than `side_px`, without its metadata, color profile and comments."""
    image = decode(encoded, side_px)
    check_shape(*image.size)
    image.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    clean = Image.new("RGB", image.size)
    clean.paste(image)  # leaves `info` behind
    file = io.BytesIO()
    clean.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
