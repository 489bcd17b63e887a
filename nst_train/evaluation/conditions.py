"""Ways of showing an image to a classifier: corrupted, or attacked by the classifier's own gradient.

Images are corrupted and attacked as the classifier sees them: after its resize and crop, before its normalization, as the published
sets were made. Classifiers of different input sizes see different pictures.
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
    """The clean images."""

    attacks: ClassVar[bool] = False  # whether it takes gradients of the network

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides what is shown."""
        return {"kind": type(self).__name__, **vars(self)}

    def changed(self, image: NDArray[np.uint8], row: int) -> NDArray[np.uint8]:
        """An image of the classifier's size, (height, width, 3), as it is shown, made on the CPU; `row` is its place in the source."""
        return image

    def attacked(
        self, network: nn.Module, images: Float[Tensor, "batch 3 height width"], labels: Int[Tensor, " batch"], rows: Sequence[int]
    ) -> Float[Tensor, "batch 3 height width"]:
        """Images in [0, 1] as they are shown, made on the device by the gradient of the network, which takes such images."""
        return images


@dataclass(frozen=True)
class Corrupted(Condition):
    """With one of the published corruptions (`nst_train.evaluation.corruptions`); an image's noise follows from the seed and its row."""

    name: str
    severity: int
    seed: int

    def changed(self, image: NDArray[np.uint8], row: int) -> NDArray[np.uint8]:
        """Corrupted. Raises NstError for an image of less than 32 pixels."""
        return corrupt(image, self.name, self.severity, seed_of_image(self.seed, row))


@dataclass(frozen=True)
class FastGradientSign(Condition):
    """One signed step of epsilon (section 3.4 of the paper)."""

    attacks: ClassVar[bool] = True
    epsilon: float

    def attacked(
        self, network: nn.Module, images: Float[Tensor, "batch 3 height width"], labels: Int[Tensor, " batch"], rows: Sequence[int]
    ) -> Float[Tensor, "batch 3 height width"]:
        """No value further than epsilon from the image's."""
        return fgsm(network, images, labels, self.epsilon)


@dataclass(frozen=True)
class ProjectedGradient(Condition):
    """Several signed steps within epsilon; from a random place there, drawn by seed and row, where a seed is given."""

    attacks: ClassVar[bool] = True
    epsilon: float
    steps: int
    step_size: float
    seed: int | None

    def attacked(
        self, network: nn.Module, images: Float[Tensor, "batch 3 height width"], labels: Int[Tensor, " batch"], rows: Sequence[int]
    ) -> Float[Tensor, "batch 3 height width"]:
        """No value further than epsilon from the image's."""
        seed = self.seed
        start = None if seed is None else random_start(images, self.epsilon, [seed_of_image(seed, row) for row in rows])
        return pgd(network, images, labels, self.epsilon, self.steps, self.step_size, start)


def seed_of_image(seed: int, row: int) -> int:
    """A seed for one image: rows next to each other, and the same row under another seed, have nothing in common."""
    return xxhash.xxh3_64_intdigest(f"{seed} {row}".encode()) >> 1
