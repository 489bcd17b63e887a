"""Noise for teachers while they label, which the method advises against: Table 6 measures what it costs."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from random import Random

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from nst_data.errors import NstError
from nst_train.networks.network_noise import CURRENT_MODE, NetworkNoise, NoiseMode, add_noise, find_classifiers, stochastic_depth_layers
from nst_train.noise_settings import Noise, TransformKind
from nst_train.seeds import derive_seed
from nst_train.settings import TrainSettings
from nst_train.transforms.noise import Transform, training_transform
from nst_train.transforms.preprocessing import Preprocessing, to_pillow
from nst_train.transforms.randaugment import RandAugment, cutout


class TeacherNoise:
    """Crop, flip and RandAugment as in training, dropout and stochastic depth; an image's noise depends on the seed and its row only."""

    def __init__(self, settings: TrainSettings, seed: int, transform: TransformKind, mode: NoiseMode = CURRENT_MODE) -> None:
        """`settings` and `mode` are those of the teacher's training.

        With `transform` evaluation, only RandAugment and Cutout are applied, before the evaluation transform.
        """
        if settings.noise.augmentation:  # timm's augmentations draw from global generators, which threads share
            augmentation = settings.noise.augmentation
            raise NstError(f"`noise`: only RandAugment can noise labels, and this teacher was trained with {augmentation}; remove `noise`")
        self._settings, self._noise, self._seed, self._transform = settings, settings.noise, seed, transform
        self._mode = mode
        self._of_training: dict[Preprocessing, Transform] = {}
        self._networks: list[NetworkNoise] = []
        self._lock = threading.Lock()

    def add_to(self, network: nn.Module, classes: int) -> None:
        """Add noise to a network on its device and in evaluation mode. Raises NstError if the network has no place for it."""
        try:
            self._networks.append(add_noise(network, self._noise, self._noise, classes, self._seed, self._mode))
        except NstError as error:
            raise NstError(f"`noise`: this teacher cannot be noised ({str(error).partition(';')[0]}); label without") from None
        for layer in [*stochastic_depth_layers(network), *find_classifiers(network, classes, self._mode.every_head)]:
            layer.training = True

    def prepare(self, preprocessing: Preprocessing, encoded: bytes | memoryview, pixels: UInt8[Tensor, "3 h w"], row: int) -> Tensor:
        """A noised tensor of the classifier's input size, from the encoded and decoded image in a row of the pool."""
        seed = derive_seed(self._seed, "label noise", row)
        if self._transform == "evaluation":
            return preprocessing.prepare(self._augment(pixels, Random(seed)))
        if self._settings.transform == "evaluation":  # it was trained without input noise
            return preprocessing.prepare(pixels)
        if preprocessing not in self._of_training:
            self._of_training[preprocessing] = training_transform(self._settings, preprocessing.data_config)
        return preprocessing.prepare_sized(self._of_training[preprocessing](encoded, seed))

    def _augment(self, pixels: UInt8[Tensor, "3 height width"], random: Random) -> UInt8[Tensor, "3 height width"]:
        image = to_pillow(pixels)
        if self._noise.operations:
            image = _randaugment(self._noise, min(pixels.shape[1:]))(image, random)
        if self._noise.cutout:
            image = cutout(image, self._noise.cutout, random)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    @contextmanager
    def for_rows(self, rows: Sequence[int]) -> Iterator[None]:
        """Context for a forward pass over the images in these rows; excludes other threads."""
        with self._lock:
            for noise in self._networks:
                noise.prepare_step(0, (), rows)
            yield


@lru_cache(maxsize=64)
def _randaugment(noise: Noise, side_px: int) -> RandAugment:
    return RandAugment(noise, side_px)
