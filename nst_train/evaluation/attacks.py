"""Gradient attacks on a classifier: FGSM (Goodfellow et al. 2015, arXiv 1412.6572) and PGD (Madry et al. 2018, arXiv 1706.06083).

Images are in [0, 1], and so is epsilon, the maximum change of any value: the published 16/255 is 0.0627. Networks take such images
(`PixelClassifier`) and are in evaluation mode. Images are attacked independently: others in the batch only affect rounding.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from nst_data.errors import NstError
from nst_train.transforms.preprocessing import Preprocessing

_PROBE_PX = 64
_LINEAR_TOLERANCE = 1e-3


class PixelClassifier(nn.Module):
    """A network with built-in normalization, from images in [0, 1] of the network's own size to logits."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Float[Tensor, " channels"], std: Float[Tensor, " channels"]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", mean.view(-1, 1, 1))
        self.register_buffer("std", std.view(-1, 1, 1))

    @classmethod
    def wrap(cls, network: nn.Module, preprocessing: Preprocessing) -> "PixelClassifier":
        """Wrap a network with the normalization of its preprocessing (`infer_normalization`), on the network's device and in its mode."""
        parameter = next(network.parameters(), torch.empty(0))
        classifier = cls(network, *infer_normalization(preprocessing)).to(parameter.device)
        return classifier.train(network.training)

    def forward(self, pixels: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits of a batch of images in [0, 1]."""
        logits: Tensor = self.network((pixels - self.mean) / self.std)
        return logits

    def denormalize(self, batch: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Undo the normalization of the preprocessing's `finish`: images in [0, 1]."""
        return (batch * self.std + self.mean).clamp(0, 1)


def infer_normalization(preprocessing: Preprocessing) -> tuple[Float[Tensor, " channels"], Float[Tensor, " channels"]]:
    """Mean and standard deviation that a preprocessing normalizes images in [0, 1] by, inferred from black, gray and white images.

    Raises NstError if it does anything else to levels.
    """
    images = [torch.full((3, _PROBE_PX, _PROBE_PX), level, dtype=torch.uint8) for level in (0, 51, 255)]
    probes = preprocessing.finish(torch.stack([preprocessing.prepare(image) for image in images])).double()
    black, gray, white = probes[:, :, probes.shape[2] // 2, probes.shape[3] // 2]
    slope = white - black
    if not torch.allclose(black + slope * (51 / 255), gray, atol=_LINEAR_TOLERANCE) or not slope.all():
        outputs = ", ".join(f"{value:.4g}" for value in (black[0], gray[0], white[0]))
        raise NstError(
            f"attacks: expected a preprocessing that subtracts a mean and divides, found one that makes {outputs} of levels 0, 51, 255"
        )
    return (-black / slope).float(), (1 / slope).float()


def fgsm(
    network: nn.Module, pixels: Float[Tensor, "batch channels height width"], labels: Int[Tensor, " batch"], epsilon: float
) -> Float[Tensor, "batch channels height width"]:
    """The fast gradient sign method: one step of epsilon that increases the cross-entropy of the true labels, clipped to [0, 1]."""
    return pgd(network, pixels, labels, epsilon, steps=1, step_size=epsilon)


def pgd(
    network: nn.Module,
    pixels: Float[Tensor, "batch channels height width"],
    labels: Int[Tensor, " batch"],
    epsilon: float,
    steps: int,
    step_size: float,
    start: Float[Tensor, "batch channels height width"] | None = None,
) -> Float[Tensor, "batch channels height width"]:
    """Projected gradient descent: signed steps, each projected back to within epsilon of the image and to [0, 1].

    It starts at the images, or at an offset `start` from them (`random_start`).
    """
    assert not network.training, "batch statistics would let images see each other"
    low, high = (pixels - epsilon).clamp_min(0), (pixels + epsilon).clamp_max(1)
    moved = pixels if start is None else (pixels + start).clamp(low, high)
    for _ in range(steps):
        moved = (moved + step_size * _gradient(network, moved, labels).sign()).clamp(low, high)
    return moved


def random_start(pixels: Float[Tensor, "batch channels height width"], epsilon: float, seeds: Sequence[int]) -> Tensor:
    """Offsets uniform in [-epsilon, epsilon], in the shape of `pixels`, drawn from one seed per image and the same on any device."""
    noise = [torch.rand(pixels.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return ((2 * torch.stack(noise) - 1) * epsilon).to(pixels)


def _gradient(network: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
    """The gradient of each image's cross-entropy, even if the caller has disabled gradients."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = pixels.detach().clone().requires_grad_()
        loss = F.cross_entropy(network(leaf), labels.clone(), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient
