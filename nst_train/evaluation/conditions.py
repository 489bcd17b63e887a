"""Conditions under which a classifier sees images: clean, corrupted, or attacked by the classifier's own gradient.

Images are corrupted and attacked after the classifier's resize and crop and before its normalization, as for the published sets.
Classifiers with different input sizes see different images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import xxhash
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from nst_train.evaluation.attacks import fgsm, pgd, random_start
from nst_train.evaluation.corruptions import corrupt


@dataclass(frozen=True)
class Condition:
    """Clean images, and the base class of other conditions."""

    needs_gradients: ClassVar[bool] = False  # whether it needs gradients of the network

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that determines the images shown."""
        return {"kind": type(self).__name__, **vars(self)}

    def apply(self, image: NDArray[np.uint8], row: int) -> NDArray[np.uint8]:
        """The image to show, computed on the CPU from one of the classifier's size, (height, width, 3); `row` is its row in the source."""
        return image

    def attack(
        self, network: nn.Module, images: Float[Tensor, "batch 3 height width"], labels: Int[Tensor, " batch"], rows: Sequence[int]
    ) -> Float[Tensor, "batch 3 height width"]:
        """The images to show, computed on the device by gradients of the network; images in [0, 1], which the network takes."""
        return images


@dataclass(frozen=True)
class Corrupted(Condition):
    """One of the published corruptions (`nst_train.evaluation.corruptions`); an image's noise depends on the seed and its row."""

    name: str
    severity: int
    seed: int

    def apply(self, image: NDArray[np.uint8], row: int) -> NDArray[np.uint8]:
        """Corrupt an image. Raises NstError for an image with a side of less than 32 pixels."""
        return corrupt(image, self.name, self.severity, image_seed(self.seed, row))


@dataclass(frozen=True)
class FastGradientSign(Condition):
    """One signed step of epsilon (section 3.4 of the paper)."""

    needs_gradients: ClassVar[bool] = True
    epsilon: float

    def attack(
        self, network: nn.Module, images: Float[Tensor, "batch 3 height width"], labels: Int[Tensor, " batch"], rows: Sequence[int]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Attacked images, with no value further than epsilon from the original."""
        return fgsm(network, images, labels, self.epsilon)


@dataclass(frozen=True)
class ProjectedGradient(Condition):
    """Several signed steps within epsilon, with a seed from a random start that is drawn by seed and row."""

    needs_gradients: ClassVar[bool] = True
    epsilon: float
    steps: int
    step_size: float
    seed: int | None

    def attack(
        self, network: nn.Module, images: Float[Tensor, "batch 3 height width"], labels: Int[Tensor, " batch"], rows: Sequence[int]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Attacked images, with no value further than epsilon from the original."""
        seed = self.seed
        start = None if seed is None else random_start(images, self.epsilon, [image_seed(seed, row) for row in rows])
        return pgd(network, images, labels, self.epsilon, self.steps, self.step_size, start)


def image_seed(seed: int, row: int) -> int:
    """A seed for one image, unrelated to those of adjacent rows and of the same row under another seed."""
    return xxhash.xxh3_64_intdigest(f"{seed} {row}".encode()) >> 1
