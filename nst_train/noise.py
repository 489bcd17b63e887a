"""Input noise and its seeds: RandAugment over random crops and flips.

Dropout and stochastic depth are made into the network (`models.create_network`).
"""

import hashlib
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp, RandAugment
from torch import Tensor

from nst_train.settings import Noise, TrainSettings

_OPERATIONS = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd"),
    *("Color", "Contrast", "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"),
)
_LEAST_MAGNITUDE = {"Posterize": 3}  # below, it keeps 0 bits of each channel, which Pillow refuses

Transform = Callable[[Image.Image], Any]


def seed_of(*words: int | str) -> int:
    """A 32-bit seed that depends on every word."""
    return int.from_bytes(hashlib.blake2b(repr(words).encode(), digest_size=4).digest(), "big")


def seed_transforms(seed: int) -> None:
    """Seed the three generators that timm's and torchvision's transforms draw from.

    `torch.manual_seed` would format a stack trace for each call to remind CUDA; a transform needs the CPU's generator alone.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)


def seed_network(seed: int) -> None:
    """Seed what initial weights, dropout and stochastic depth draw from, on every device."""
    torch.manual_seed(seed)


def training_transforms(settings: TrainSettings, data_config: dict[str, Any]) -> dict[str, Transform]:
    """The transform of `labeled` and that of `pseudo` images."""
    pseudo = settings.model_copy(update={"noise": settings.noise_of_pseudo})
    return {"labeled": training_transform(settings, data_config), "pseudo": training_transform(pseudo, data_config)}


def training_transform(settings: TrainSettings, data_config: dict[str, Any]) -> Transform:
    """Random crop, flip and RandAugment; gives uint8 of shape (3, height, width), normalized later on the device."""
    transform = create_transform(
        input_size=data_config["input_size"],
        is_training=True,
        scale=(settings.crop_scale_min, 1.0),
        ratio=(3 / 4, 4 / 3) if settings.crop_scale_min < 1 else (1.0, 1.0),
        hflip=settings.flip,
        color_jitter=0.0,
        interpolation=data_config["interpolation"],
        mean=data_config["mean"],
        std=data_config["std"],
        use_prefetcher=True,
    )
    if settings.noise.operations:
        transform.transforms.insert(-1, randaugment(settings.noise))  # the last transform makes an array of the image
    return transform  # type: ignore[no-any-return]


def randaugment(noise: Noise) -> Transform:
    """RandAugment as the released code has it: every drawn operation is applied, at a magnitude that is not clipped.

    timm's own policy string applies each with probability 0.5, clips the magnitude to 10 and moves images by 45% at 10, which at 27 leaves
    none of the image. The released code moves them by 100 pixels at 10, a sixth of its B7's 600. There is no Cutout among the operations.
    """
    hparams = {"translate_pct": 100 / 600, "img_mean": (128, 128, 128), "magnitude_max": max(10, noise.magnitude)}
    operations = [
        AugmentOp(name, prob=1.0, magnitude=max(noise.magnitude, _LEAST_MAGNITUDE.get(name, 0)), hparams=hparams) for name in _OPERATIONS
    ]
    return RandAugment(operations, noise.operations)  # type: ignore[no-any-return]


class Normalize:
    """uint8 images to what the network reads, on the device: shape (batch, 3, height, width) to the same in float32."""

    def __init__(self, data_config: dict[str, Any], device: torch.device) -> None:
        self._mean = torch.tensor(data_config["mean"], device=device).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(data_config["std"], device=device).view(1, 3, 1, 1) * 255

    def __call__(self, images: Tensor) -> Tensor:
        """Normalize a batch."""
        return (images.float() - self._mean) / self._std
