"""RandAugment with the operations, formulas and pixels of the released code (google-research/noisystudent, `randaugment.py`, TensorFlow 1).

Its magnitude is not clipped: 27 of 10 gives each operation 2.7 times its amount at 10. timm's operations, which are Pillow's, do the work
where they give the same pixels; these do not:

- Posterize, Solarize: the released code compares and shifts in uint8, and an amount outside it wraps around. At magnitude 27 Solarize's
  threshold of 691 acts as 179, at 10 the one of 256 as 0; 10 bits of Posterize are a shift by -2, which is 254 and clamped to 7.
- SolarizeAdd: adds up to 297 at magnitude 27, and then clips.
- Contrast: moves away not from the mean gray but from the number of pixels / 256, at most 255: white from 256x256 on.
- Sharpness: rounds its smooth image down.
- Rotate, Shear, Translate: take the nearest pixel; Shear counts from the middle of the first one. Uncovered pixels are 128.
- Cutout: timm has none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random

import numpy as np
from PIL import Image, ImageChops, ImageFilter
from timm.data import auto_augment

from nst_train.settings import Noise
from nst_train.transforms.level_tables import autocontrast, equalize, through

_LEVELS = np.arange(256)
FILL = (128, 128, 128)
_AT_MAGNITUDE = 10  # the amounts below are what an operation does at this magnitude
_REFERENCE_SIDE, _TRANSLATE_PX, _CUTOUT_PX = 600, 100, 40  # of the released code, at the image size of its EfficientNet-B7
_SMALL_SIDE = 64
_SMOOTH = ImageFilter.Kernel((3, 3), (1, 1, 1, 1, 5, 1, 1, 1, 1), scale=13, offset=-0.49)  # Pillow adds 0.5: down, and not by float error


def translate_px(side_px: int) -> float:
    """How far images move at magnitude 10: 100 pixels of 600, in proportion for other sizes; an eighth of small ones, as for SVHN."""
    return side_px / 8 if side_px <= _SMALL_SIDE else side_px * _TRANSLATE_PX / _REFERENCE_SIDE


def cutout_px(side_px: int) -> float:
    """Half the side of Cutout's square at magnitude 10: 40 pixels of 600, in proportion; an eighth of small images, as for SVHN."""
    return side_px / 8 if side_px <= _SMALL_SIDE else side_px * _CUTOUT_PX / _REFERENCE_SIDE


_AMOUNTS: dict[str, Callable[[float, int], float]] = {  # of (magnitude / 10, shorter side of the image), in the released code's order
    "AutoContrast": lambda level, side: 0,
    "Equalize": lambda level, side: 0,
    "Invert": lambda level, side: 0,
    "Rotate": lambda level, side: level * 30,
    "Posterize": lambda level, side: int(level * 4),
    "Solarize": lambda level, side: int(level * 256),
    "Color": lambda level, side: level * 1.8 + 0.1,
    "Contrast": lambda level, side: level * 1.8 + 0.1,
    "Brightness": lambda level, side: level * 1.8 + 0.1,
    "Sharpness": lambda level, side: level * 1.8 + 0.1,
    "ShearX": lambda level, side: level * 0.3,
    "ShearY": lambda level, side: level * 0.3,
    "TranslateX": lambda level, side: level * translate_px(side),
    "TranslateY": lambda level, side: level * translate_px(side),
    "SolarizeAdd": lambda level, side: int(level * 110),
    "Cutout": lambda level, side: int(level * cutout_px(side)),
}
OPERATIONS = tuple(_AMOUNTS)
_SIGNED = {"Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"}


def amount_of(name: str, magnitude: float, side_px: int = _REFERENCE_SIDE) -> float:
    """What the released code hands to an operation, its random sign apart.

    Degrees of Rotate, bits that Posterize keeps, thresholds, sums and pixels as whole levels, factors of a blend; 0 where there is none.
    """
    return _AMOUNTS[name](magnitude / _AT_MAGNITUDE, side_px)


@dataclass(frozen=True)
class Operation:
    """One of the 16 operations at one magnitude."""

    name: str
    amount: float

    def __call__(self, image: Image.Image, random: Random) -> Image.Image:
        """A changed copy of an RGB image; `random` decides signs and places."""
        amount = -self.amount if self.name in _SIGNED and random.random() < 0.5 else self.amount
        return cutout(image, 2 * int(amount), random) if self.name == "Cutout" else _CHANGES[self.name](image, amount)


class RandAugment:
    """Operations drawn with replacement, each applied (section 3.1: two of them, magnitude 27)."""

    def __init__(self, noise: Noise, side_px: int) -> None:
        self.operations = [Operation(name, amount_of(name, noise.magnitude, side_px)) for name in OPERATIONS]
        self._count = noise.operations

    def __call__(self, image: Image.Image, random: Random) -> Image.Image:
        """An augmented copy of an RGB image; `random` decides all."""
        for _ in range(self._count):
            image = random.choice(self.operations)(image, random)
        return image


def cutout(image: Image.Image, side_px: int, random: Random) -> Image.Image:
    """A copy with a gray square around a pixel drawn evenly, so that part of it may lie outside (arXiv 1708.04552)."""
    left, top = random.randrange(image.width) - side_px // 2, random.randrange(image.height) - side_px // 2
    cut = image.copy()
    if side_px:
        cut.paste(FILL, (max(left, 0), max(top, 0), min(left + side_px, image.width), min(top + side_px, image.height)))
    return cut


def _posterize(image: Image.Image, bits: float) -> Image.Image:
    shift = min((8 - int(bits)) % 256, 7)  # TensorFlow shifts a byte by no more than 7
    return through(image, _LEVELS >> shift << shift)


def _solarize(image: Image.Image, threshold: float) -> Image.Image:
    return through(image, np.where(int(threshold) % 256 > _LEVELS, _LEVELS, 255 - _LEVELS))


def _solarize_add(image: Image.Image, addition: float) -> Image.Image:
    return through(image, np.where(_LEVELS < 128, np.minimum(_LEVELS + int(addition), 255), _LEVELS))


def _contrast(image: Image.Image, factor: float) -> Image.Image:
    gray = min(255, image.width * image.height // 256)
    return Image.blend(Image.new("RGB", image.size, (gray, gray, gray)), image, factor)


def _sharpness(image: Image.Image, factor: float) -> Image.Image:
    return Image.blend(image.filter(_SMOOTH), image, factor)


def _shear(image: Image.Image, level: float, across: bool) -> Image.Image:
    half = level / 2  # Pillow measures from the corner of the first pixel
    matrix = (1, level, -half, 0, 1, 0) if across else (1, 0, 0, level, 1, -half)
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=FILL)


_nearest = {"resample": Image.Resampling.NEAREST, "fillcolor": FILL}
_CHANGES: dict[str, Callable[[Image.Image, float], Image.Image]] = {
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
