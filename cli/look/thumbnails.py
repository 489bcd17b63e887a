"""Images as the page shows them: decoded, made smaller and encoded anew, so that nothing of the file is passed on but its pixels."""

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
    """The JPEGs that were made last, up to a number of bytes."""

    def __init__(self, most_bytes: int = _CACHE_BYTES) -> None:
        self._most, self._bytes, self._lock = most_bytes, 0, threading.Lock()
        self._made: OrderedDict[tuple[str, int], bytes] = OrderedDict()

    def get(self, name: str, side_px: int, read: Callable[[], bytes]) -> bytes:
        """The JPEG of an image whose longest side is at most `side_px`. `name` is its hash; where it is empty nothing is kept.

        Raises NstError or OSError where the image cannot be read or decoded.
        """
        place = (name, side_px)
        with self._lock:
            if place in self._made:
                self._made.move_to_end(place)
                return self._made[place]
        made = as_jpeg(read(), side_px)
        if name:
            self._keep(place, made)
        return made

    def _keep(self, place: tuple[str, int], made: bytes) -> None:
        with self._lock:
            self._bytes += len(made) - len(self._made.pop(place, b""))
            self._made[place] = made
            while self._bytes > self._most:
                self._bytes -= len(self._made.popitem(last=False)[1])


def as_jpeg(encoded: bytes, side_px: int) -> bytes:
    """The pixels of an encoded image as a JPEG, larger ones shrunk; nothing else of it: no metadata, no profile, no comment."""
    image = decode(encoded, side_px)
    check_shape(*image.size)
    image.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    clean = Image.new("RGB", image.size)
    clean.paste(image)  # `info` stays behind
    file = io.BytesIO()
    clean.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
