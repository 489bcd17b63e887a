"""The fifteen corruptions of Hendrycks and Dietterich (ICLR 2019, arXiv 1903.12261) at five severities, and their four extra ones.

Parameters are the published ones of the benchmark with images nearest in size: CIFAR-10-C (32 px), Tiny ImageNet-C (64 px) or
ImageNet-C (224 px), see `parameters`. Lengths are in pixels and not scaled further: resize and crop images first, as for ImageNet-C.
The formulas are those of the published code (hendrycks/robustness), for any aspect ratio. The pixels differ from the released files:

- frost overlays generated ice instead of photographs (`frost`): its numbers cannot be compared with published ones;
- zooms and displacements are interpolated by OpenCV, which before version 5 resolves 1/32 of a pixel, and motion blur sums ImageMagick's
  kernel without ImageMagick: for the same draws, with version 5, both are within one level;
- levels are rounded down, as by NumPy's conversion to uint8 there, but a value up to 0.001 below a whole level counts as that level;
- the noise is drawn by other generators: equal in distribution, not in value;
- the released ImageNet-C files are JPEGs of quality 85; these pixels are not compressed.

They are implemented here because no library that installs today would do. imagecorruptions 1.1.2 cannot be imported with current NumPy and
SciPy; its forks imagecorruptions-imaug 1.1.5 and imgcorr 1.1.3 and corrupt-tta 0.1.7 draw from NumPy's global generator, only have
ImageNet-C's parameters, and depend on OpenCV's desktop build, two of them also on Numba; imagenet-c 0.0.3 needs ImageMagick; kornia is
based on torch, and neither it nor albumentations (its MIT-licensed line has ended, its successor is AGPL) nor augly has the set with these
parameters. OpenCV, Pillow and NumPy do the work.
"""

import operator
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from nst_data.errors import NstError, UsageError

SEVERITIES = (1, 2, 3, 4, 5)
MIN_SIDE_PX = 32

CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
"""The names that count towards mCE, in the paper's order."""
EXTRA_CORRUPTIONS = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""The names that the paper sets aside for validation."""


def corrupt(pixels: NDArray[np.uint8], name: str, severity: int, seed: int) -> NDArray[np.uint8]:
    """A corrupted copy of one RGB image, uint8, shape (height, width, 3), both sides 32 px or more.

    It depends only on the arguments: give each image its own seed, or images of one size get the same noise. The draws (noise, angle,
    piece of ice) differ between corruptions and are the same at all five severities, which differ only in strength. Raises UsageError for
    an unknown name or severity, and NstError for invalid pixels or an invalid seed.
    """
    if name not in (names := CORRUPTIONS + EXTRA_CORRUPTIONS):
        raise UsageError(f"corruption: expected one of {', '.join(names)}, found {name!r}")
    if severity not in SEVERITIES:
        raise UsageError(f"severity of {name}: expected 1 to 5, found {severity!r}")
    _check_pixels(pixels, name)
    random = np.random.default_rng([_check_seed(seed, name), *name.encode()])
    check_opencv()
    from nst_train.evaluation.corruptions.functions import apply_corruption

    return apply_corruption(name, pixels, random, int(severity))


def check_opencv() -> None:
    """Raises UsageError if OpenCV, which corruptions need, is not installed."""
    try:
        is_missing = find_spec("cv2") is None
    except ValueError:  # another thread is just importing it
        is_missing = False
    if is_missing:
        raise UsageError("corruptions are made by OpenCV, which is not installed: pip install 'nst[robustness]'")


def _check_pixels(pixels: NDArray[np.uint8], name: str) -> None:
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        actual = f"{pixels.dtype}, shape {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise NstError(f"{name}: expected an RGB image as uint8 array of shape (height, width, 3), found {actual}")
    if min(pixels.shape[:2]) < MIN_SIDE_PX:
        height, width = pixels.shape[:2]
        raise NstError(f"{name}: expected an image of {MIN_SIDE_PX} px or more on both sides, found {width}x{height}; enlarge it first")


def _check_seed(seed: int, name: str) -> int:
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if number < 0:
        raise NstError(f"{name}: expected a whole number from 0 up as seed, found {seed!r}")
    return number
