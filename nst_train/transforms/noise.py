"""Input noise: random crops, flips, and RandAugment or another augmentation.

Dropout and stochastic depth are part of the network (`network_noise`).
"""

import itertools
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data.auto_augment import AutoAugment, posterize
from timm.data.transforms_factory import transforms_imagenet_train
from torch import Tensor

from nst_train.noise_settings import Noise
from nst_train.seeds import seed_transforms
from nst_train.settings import TrainSettings
from nst_train.transforms.crops import PaddedCrop, RandomResizedCrop
from nst_train.transforms.preprocessing import TimmPreprocessing, decode_pixels
from nst_train.transforms.randaugment import RandAugment, cutout

Transform = Callable[[bytes | memoryview, int], NDArray[np.uint8]]


def training_transforms(settings: TrainSettings, data_config: dict[str, Any]) -> dict[str, Transform]:
    """The transforms for `labeled` and `pseudo` images."""
    return {"labeled": training_transform(settings, data_config), "pseudo": training_transform(settings.for_pseudo_images, data_config)}


def training_transform(settings: TrainSettings, data_config: dict[str, Any]) -> Transform:
    """A transform from encoded bytes and a seed to a noised image: uint8 of shape (height, width, 3), normalized later on the device.

    Random resized crop, flip, RandAugment, Cutout; with `crop_padding` RandAugment, Cutout, random crop, flip, as in the released code for
    small images; with `transform: evaluation` what the network sees in evaluation. The image depends only on the bytes and the seed.
    The transform raises ImageError for bytes that cannot be decoded.
    """
    if settings.transform == "evaluation":
        return _EvaluationTransform(data_config)
    _, height, width = data_config["input_size"]
    scale_min = 1.0 if settings.crop_padding else settings.crop_scale_min
    crop = RandomResizedCrop(scale_min, (height, width), data_config["interpolation"], settings.crop_draw)
    steps = _build_augmentations(settings.noise, data_config)
    flip = [_Flip(settings.flip)] if settings.flip else []
    if settings.crop_padding:
        return _Chain(crop, [*steps, PaddedCrop(settings.crop_padding, (height, width)), *flip])
    return _Chain(crop, [*flip, *steps])


_Step = Callable[[Image.Image, Random], Image.Image]


class _Chain:
    def __init__(self, crop: RandomResizedCrop, steps: list[_Step]) -> None:
        self._crop, self._steps = crop, steps

    def __call__(self, encoded: bytes | memoryview, seed: int) -> NDArray[np.uint8]:
        random = Random(seed)
        image = self._crop(encoded, random)
        for step in self._steps:
            image = step(image, random)
        return np.asarray(image)


class _EvaluationTransform:
    def __init__(self, data_config: dict[str, Any]) -> None:
        self._preprocessing = TimmPreprocessing.from_data_config(data_config)

    def __call__(self, encoded: bytes | memoryview, seed: int) -> NDArray[np.uint8]:
        pixels = self._preprocessing.prepare(decode_pixels(encoded, self._preprocessing.min_side_px))
        return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())


class _Flip:
    def __init__(self, probability: float) -> None:
        self._chance = probability

    def __call__(self, image: Image.Image, random: Random) -> Image.Image:
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < self._chance else image


class _Cutout:
    def __init__(self, side_px: int) -> None:
        self._side_px = side_px

    def __call__(self, image: Image.Image, random: Random) -> Image.Image:
        return cutout(image, self._side_px, random)


class _TimmAugmentation:
    """A timm augmentation, given as a string. It draws from the three global random generators, which are seeded for each image."""

    def __init__(self, augmentation: str, data_config: dict[str, Any]) -> None:
        _, stage, _ = transforms_imagenet_train(
            img_size=data_config["input_size"][1:],
            color_jitter=None,
            auto_augment=augmentation,
            interpolation=data_config["interpolation"],
            mean=data_config["mean"],
            separate=True,
        )
        (self._augment,) = stage.transforms
        policy = self._augment.policy if isinstance(self._augment, AutoAugment) else [self._augment.ops]
        for operation in itertools.chain(*policy):
            if operation.aug_fn is posterize:
                operation.aug_fn = _posterize

    def __call__(self, image: Image.Image, random: Random) -> Image.Image:
        seed_transforms(random.getrandbits(32))
        return self._augment(image)  # type: ignore[no-any-return]


def _posterize(image: Image.Image, bits: int, **options: object) -> Image.Image:
    """timm's posterize, where 0 or fewer bits give a black image, which Pillow 13 refuses."""
    return posterize(image, bits, **options) if bits > 0 else Image.new("RGB", image.size)


def _build_augmentations(noise: Noise, data_config: dict[str, Any]) -> list[_Step]:
    steps: list[_Step] = []
    if noise.augmentation:
        steps.append(_TimmAugmentation(noise.augmentation, data_config))
    elif noise.operations:
        steps.append(RandAugment(noise, min(data_config["input_size"][1:])))
    if noise.cutout:
        steps.append(_Cutout(noise.cutout))
    return steps


class Normalize:
    """Normalize uint8 images of shape (batch, 3, height, width) on the device, to float32 of the same shape."""

    def __init__(self, data_config: dict[str, Any], device: torch.device) -> None:
        self._mean = torch.tensor(data_config["mean"], device=device).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(data_config["std"], device=device).view(1, 3, 1, 1) * 255

    def __call__(self, images: Tensor) -> Tensor:
        """Normalize a batch."""
        return (images.float() - self._mean) / self._std
