"""RandAugment with the operations and formulas of the released code (google-research/noisystudent, `randaugment.py`, TensorFlow 1).

Its magnitude is not clipped at 10: 27 gives each operation 2.7 times its amount at 10. timm's operations, which are Pillow's, are used if
they give the same pixels as the released code. These do not:

- Posterize, Solarize: the released code compares and shifts in uint8, and amounts out of range wrap around. At magnitude 27, Solarize's
  threshold of 691 acts as 179, and at 10, one of 256 as 0; 10 bits of Posterize are a shift by -2, which becomes 254 and is clamped to 7.
- SolarizeAdd: adds up to 297 at magnitude 27, and then clips.
- Contrast: blends not with the mean gray but with the number of pixels / 256, at most 255: white from 256x256 on.
- Sharpness: rounds its smoothed image down.
- Rotate, Shear, Translate: take the nearest pixel; Shear measures from the center of the first pixel. Uncovered pixels are 128.
- Cutout: timm has none.

With `amounts` released, three more operations follow the released code: Color's gray and AutoContrast's levels are rounded down in
float32, and Shear rounds half up. With `scaled`, the only behavior of earlier versions of nst, they are Pillow's: on photographs 20% of
Color's pixels differ, by at most 4 levels, 1% of AutoContrast's, by one level, and 1% of Shear's.

Remaining differences from TensorFlow 2.21, on photographs: 0.7% of Sharpness's pixels, where TensorFlow's float32 sums end just below a
whole level (which ones depends on its device), and 0.1% of Rotate's and 0.05% of Shear's, midway between two pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random

import numpy as np
from PIL import Image, ImageChops, ImageFilter
from timm.data import auto_augment

from nst_train.noise_settings import Amounts, Noise
from nst_train.transforms.level_tables import apply_table, autocontrast, equalize

_LEVELS = np.arange(256)
FILL = (128, 128, 128)
_REFERENCE_MAGNITUDE = 10  # the amounts below are what an operation does at this magnitude
_REFERENCE_SIDE, _TRANSLATE_PX, _CUTOUT_PX = 600, 100, 40  # of the released code, for the image size of its EfficientNet-B7
_SMALL_SIDE = 64
_ROUND_UP_PX = (
    0.005  # pixels: above the error of Pillow's coordinates (in 1/65536) over 600 rows, below the 0.01 between two at one magnitude
)
_OF_WHITE, _GRAY = np.float32(1 / 255), np.array([0.2989, 0.587, 0.114], np.float32)
# Pillow adds 0.5, so that an offset of -0.49 rounds down, whatever the float errors
_SMOOTH = ImageFilter.Kernel((3, 3), (1, 1, 1, 1, 5, 1, 1, 1, 1), scale=13, offset=-0.49)


def translate_px(side_px: int, amounts: Amounts = "scaled") -> float:
    """Pixels that images move at magnitude 10: an eighth of sides up to 64, as for SVHN; else 100 (released), or 100 per 600 (scaled)."""
    return _scaled_pixels(_TRANSLATE_PX, side_px, amounts)


def cutout_px(side_px: int, amounts: Amounts = "scaled") -> float:
    """Half the side of Cutout's square at magnitude 10: an eighth of sides up to 64, as for SVHN; else 40, or 40 per 600."""
    return _scaled_pixels(_CUTOUT_PX, side_px, amounts)


def _scaled_pixels(released: int, side_px: int, amounts: Amounts) -> float:
    if side_px <= _SMALL_SIDE:
        return side_px / 8
    return released if amounts == "released" else side_px * released / _REFERENCE_SIDE


_AMOUNTS: dict[str, Callable[[float, int, Amounts], float]] = {  # of (magnitude / 10, shorter side, amounts), in the released code's order
    "AutoContrast": lambda level, *_: 0,
    "Equalize": lambda level, *_: 0,
    "Invert": lambda level, *_: 0,
    "Rotate": lambda level, *_: level * 30,
    "Posterize": lambda level, *_: int(level * 4),
    "Solarize": lambda level, *_: int(level * 256),
    "Color": lambda level, *_: level * 1.8 + 0.1,
    "Contrast": lambda level, *_: level * 1.8 + 0.1,
    "Brightness": lambda level, *_: level * 1.8 + 0.1,
    "Sharpness": lambda level, *_: level * 1.8 + 0.1,
    "ShearX": lambda level, *_: level * 0.3,
    "ShearY": lambda level, *_: level * 0.3,
    "TranslateX": lambda level, side, amounts: level * translate_px(side, amounts),
    "TranslateY": lambda level, side, amounts: level * translate_px(side, amounts),
    "SolarizeAdd": lambda level, *_: int(level * 110),
    "Cutout": lambda level, side, amounts: int(level * cutout_px(side, amounts)),
}
OPERATIONS = tuple(_AMOUNTS)
_SIGNED = {"Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"}


def operation_amount(name: str, magnitude: float, side_px: int = _REFERENCE_SIDE, amounts: Amounts = "scaled") -> float:
    """The amount that the released code passes to an operation, without its random sign.

    Degrees for Rotate, bits kept by Posterize, levels for Solarize and SolarizeAdd, pixels for Translate and Cutout, a slope for Shear, a
    blending factor for Color, Contrast, Brightness and Sharpness; 0 for operations without an amount.
    """
    return _AMOUNTS[name](magnitude / _REFERENCE_MAGNITUDE, side_px, amounts)


@dataclass(frozen=True)
class Operation:
    """One of the 16 operations at one magnitude."""

    name: str
    amount: float
    amounts: Amounts = "scaled"

    def __call__(self, image: Image.Image, random: Random) -> Image.Image:
        """Apply it to a copy of an RGB image; `random` determines signs and positions."""
        amount = -self.amount if self.name in _SIGNED and random.random() < 0.5 else self.amount
        if self.name == "Cutout":
            return cutout(image, 2 * int(amount), random)
        changes = _RELEASED_FUNCTIONS if self.amounts == "released" else _FUNCTIONS
        return changes[self.name](image, amount)


class RandAugment:
    """Operations drawn with replacement, each applied (section 3.1: two of them, magnitude 27)."""

    def __init__(self, noise: Noise, side_px: int) -> None:
        by_name = {name: operation_amount(name, noise.magnitude, side_px, noise.amounts) for name in OPERATIONS}
        self.operations = [Operation(name, amount, noise.amounts) for name, amount in by_name.items()]
        self._count = noise.operations

    def __call__(self, image: Image.Image, random: Random) -> Image.Image:
        """Augment a copy of an RGB image; `random` determines everything."""
        for _ in range(self._count):
            image = random.choice(self.operations)(image, random)
        return image


def cutout(image: Image.Image, side_px: int, random: Random) -> Image.Image:
    """A copy with a gray square around a uniformly drawn pixel, which may extend beyond the image (arXiv 1708.04552)."""
    left, top = random.randrange(image.width) - side_px // 2, random.randrange(image.height) - side_px // 2
    cut = image.copy()
    if side_px:
        cut.paste(FILL, (max(left, 0), max(top, 0), min(left + side_px, image.width), min(top + side_px, image.height)))
    return cut


def _posterize(image: Image.Image, bits: float) -> Image.Image:
    shift = min((8 - int(bits)) % 256, 7)  # TensorFlow shifts a byte by no more than 7
    return apply_table(image, _LEVELS >> shift << shift)


def _solarize(image: Image.Image, threshold: float) -> Image.Image:
    return apply_table(image, np.where(int(threshold) % 256 > _LEVELS, _LEVELS, 255 - _LEVELS))


def _solarize_add(image: Image.Image, addition: float) -> Image.Image:
    return apply_table(image, np.where(_LEVELS < 128, np.minimum(_LEVELS + int(addition), 255), _LEVELS))


def _contrast(image: Image.Image, factor: float) -> Image.Image:
    gray = min(255, image.width * image.height // 256)
    return Image.blend(Image.new("RGB", image.size, (gray, gray, gray)), image, factor)


def _color(image: Image.Image, factor: float) -> Image.Image:
    red, green, blue = np.moveaxis(np.asarray(image).astype(np.float32) * _OF_WHITE, 2, 0)
    gray = (red * _GRAY[0] + green * _GRAY[1] + blue * _GRAY[2]) * np.float32(255.5)
    return Image.blend(Image.fromarray(gray.astype(np.uint8)).convert("RGB"), image, factor)


def _sharpness(image: Image.Image, factor: float) -> Image.Image:
    return Image.blend(image.filter(_SMOOTH), image, factor)


def _shear(image: Image.Image, level: float, across: bool, up: float = 0.0) -> Image.Image:
    half = level / 2 - up  # Pillow measures from the corner of the first pixel
    matrix = (1, level, -half, 0, 1, 0) if across else (1, 0, 0, level, 1, -half)
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=FILL)


_nearest = {"resample": Image.Resampling.NEAREST, "fillcolor": FILL}
_FUNCTIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "AutoContrast": lambda image, _: autocontrast(image),
    "Equalize": lambda image, _: equalize(image),
    "Invert": lambda image, _: ImageChops.invert(image),
    "Rotate": partial(auto_augment.rotate, **_nearest),
    "Posterize": _posterize,
    "Solarize": _solarize,
    "Color": auto_augment.color,
    "Contrast": _contrast,
    "Brightness": auto_augment.brightness,
    "Sharpness": _sharpness,
    "ShearX": partial(_shear, across=True),
    "ShearY": partial(_shear, across=False),
    "TranslateX": partial(auto_augment.translate_x_abs, **_nearest),
    "TranslateY": partial(auto_augment.translate_y_abs, **_nearest),
    "SolarizeAdd": _solarize_add,
}
_RELEASED_FUNCTIONS = _FUNCTIONS | {
    "AutoContrast": lambda image, _: autocontrast(image, np.float32),
    "Color": _color,
    "ShearX": partial(_shear, across=True, up=_ROUND_UP_PX),
    "ShearY": partial(_shear, across=False, up=_ROUND_UP_PX),
}
