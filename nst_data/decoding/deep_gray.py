"""Convert gray images with more than 8 bits, or with signed or floating-point values, to levels from 0 to 255.

The values of black and white must be known: from the type (16-bit counts, 12-bit TIFFs), from a TIFF's SMinSampleValue and
SMaxSampleValue, or because there is only one plausible reading: all values from 0 to 1, or integers from 0 to 255. Otherwise the image
cannot be converted.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT, TiffImageFile

_SMALLEST_TAG, _LARGEST_TAG, _NO_DATA_TAG = 340, 341, 42113  # TIFF 6.0, section 19; the last is GDAL's
_SIGNED = (2,)
_WHITE_IS_ZERO = 0
_TOLERANCE = 0.5 / 255  # tolerated rounding outside [0, 1]: clipping it changes a pixel no more than 8-bit quantization does


def is_deep_gray(image: Image.Image) -> bool:
    """Whether a loaded image needs `gray_levels`, since Pillow's own conversion would clip or wrap."""
    return image.mode.startswith("I") or image.mode == "F" or (image.mode == "L" and _tag(image, SAMPLEFORMAT) == _SIGNED)


@np.errstate(invalid="ignore")  # for signaling NaNs
def gray_levels(image: Image.Image) -> NDArray[np.uint8]:
    """Levels, shape (height, width); missing data (NaN, GDAL's no-data value) becomes black. Raises ValueError if the range is unknown."""
    values = _stored_pixels(image).astype(np.float64)
    if isinstance(no_data := _tag(image, _NO_DATA_TAG), str):
        values[values == _to_float(no_data)] = np.nan
    missing = np.isnan(values)
    hidden = values == image.info["transparency"] if image.format == "PNG" and "transparency" in image.info else None
    black, white = _value_range(image, values)
    values[missing] = black
    values -= black  # in place, since large images take much memory in float64
    values *= 255
    values /= white - black
    levels: NDArray[np.uint8] = values.clip(0, 255, out=values).round(out=values).astype(np.uint8)
    if _tag(image, PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO:
        levels = 255 - levels
    levels[missing] = 0
    if hidden is not None:
        levels[hidden] = 255  # transparent pixels become white, as in 8-bit images
    return levels


def _stored_pixels(image: Image.Image) -> NDArray[np.generic]:
    """Pillow's array, reinterpreted as the type stored in the file."""
    pixels: NDArray[np.generic] = np.asarray(image)
    if image.mode == "L":
        return pixels.view(np.int8)
    if image.mode == "I" and isinstance(image, TiffImageFile) and _tag(image, SAMPLEFORMAT) != _SIGNED:
        return pixels.view(np.uint32)
    return pixels


def _value_range(image: Image.Image, values: NDArray[np.float64]) -> tuple[float, float]:
    """The values of black and white."""
    if image.mode.startswith("I;16"):
        return 0, 4095 if _tag(image, BITSPERSAMPLE) == (12,) else 65535
    if image.mode == "I" and not isinstance(image, TiffImageFile):
        return 0, 65535  # how Pillow represents 16 bits in other formats
    values = values[np.isfinite(values)]
    if len(values) == 0:
        raise ValueError("the image has no finite pixel values")
    black, white = _to_float(_tag(image, _SMALLEST_TAG)), _to_float(_tag(image, _LARGEST_TAG))
    if black < white:
        return black, white
    smallest, largest = values.min(), values.max()
    if smallest >= -_TOLERANCE and largest <= 1 + _TOLERANCE:
        return 0, 1
    if smallest >= 0 and largest <= 255 and (values == np.rint(values)).all():
        return 0, 255
    raise ValueError(
        f"unknown value range ({smallest:g} to {largest:g}); expected 0 to 1, whole numbers from 0 to 255, "
        "or a TIFF with SMinSampleValue and SMaxSampleValue"
    )


def _tag(image: Image.Image, number: int) -> object:
    return image.tag_v2.get(number) if isinstance(image, TiffImageFile) else None


def _to_float(value: object) -> float:
    """A tag's value as a float; NaN, which equals nothing, if it is missing, not finite, or not a number."""
    single = value[0] if isinstance(value, tuple) and len(value) == 1 else value
    try:
        number = float(single.strip(" \0") if isinstance(single, str) else single)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        return np.nan
    return number if np.isfinite(number) else np.nan
