"""Input noise and its seeds: RandAugment over random crops and flips for training, the plain evaluation transform for teachers.

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
from torch import Tensor

from nst_train.settings import TrainSettings

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


def training_transform(settings: TrainSettings, data_config: dict[str, Any]) -> Transform:
    """Random crop, flip and RandAugment; gives uint8 of shape (3, height, width), normalized later on the device.

    timm applies each drawn operation with probability 0.5 and clips the magnitude to 10 unless told otherwise; the paper does neither.
    """
    noise = settings.noise
    policy = None
    if noise.operations:
        policy = f"rand-m{noise.magnitude}-n{noise.operations}-p1-mmax{max(10, noise.magnitude)}-inc1"
    transform: Transform = create_transform(
        input_size=data_config["input_size"],
        is_training=True,
        scale=(settings.crop_scale_min, 1.0),
        ratio=(3 / 4, 4 / 3) if settings.crop_scale_min < 1 else (1.0, 1.0),
        hflip=settings.flip,
        color_jitter=0.0,
        auto_augment=policy,
        interpolation=data_config["interpolation"],
        mean=data_config["mean"],
        std=data_config["std"],
        use_prefetcher=True,
    )
    return transform


def clean_transform(data_config: dict[str, Any]) -> Transform:
    """The network's own evaluation transform; gives normalized float32 of shape (3, height, width)."""
    transform: Transform = create_transform(
        input_size=data_config["input_size"],
        is_training=False,
        interpolation=data_config["interpolation"],
        mean=data_config["mean"],
        std=data_config["std"],
        crop_pct=data_config["crop_pct"],
        crop_mode=data_config.get("crop_mode"),
    )
    return transform


class Normalize:
    """uint8 images to what the network reads, on the device: shape (batch, 3, height, width) to the same in float32."""

    def __init__(self, data_config: dict[str, Any], device: torch.device) -> None:
        self._mean = torch.tensor(data_config["mean"], device=device).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(data_config["std"], device=device).view(1, 3, 1, 1) * 255

    def __call__(self, images: Tensor) -> Tensor:
        """Normalize a batch."""
        return (images.float() - self._mean) / self._std
