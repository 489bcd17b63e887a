"""Mixup and CutMix with timm's formulas, over the joint batch of a step: each image takes a part of another image and of its target.

All images of a step are mixed alike, as in timm's batch mode, with one share and one box drawn per step from (seed, step). The partner of
an image follows from its position only: a labeled image and its `ratio` pseudo-labeled ones form a cycle, in which each takes from the
next; if a step has only one kind of image, neighbors are paired. A cycle is never split, however a step is distributed over processes
or accumulated in parts, so every distribution mixes the same images by the same share.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nst_train.seeds import derive_seed
from nst_train.settings import TrainSettings

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Mixing:
    """How the images of a step are mixed. `own_share` is the share of itself that each image keeps, `box` the area that CutMix pastes into.

    The box is (top, bottom, left, right) in pixels; None means mixup, a weighted mean of both images. `partners` holds, for each image, the
    position of its partner.
    """

    own_share: float
    box: Box | None
    partners: Int[Tensor, " batch"]

    def mix_images(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Mix each image with its partner."""
        if self.box is None:
            return images * self.own_share + images[self.partners] * (1 - self.own_share)
        top, bottom, left, right = self.box
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = images[self.partners, :, top:bottom, left:right]
        return mixed

    def mix_losses(self, logits: Float[Tensor, "batch classes"], criterion: Callable[[Tensor], Tensor]) -> Float[Tensor, " batch"]:
        """The loss of each mixed image against its mixed target. It is linear in the target, so mixed targets are never built.

        `criterion` returns the losses of logits against the targets of the unmixed images, in order.
        """
        taker_losses = criterion(logits[self.partners.argsort()])  # each target against the image that took from its image
        return self.own_share * criterion(logits) + (1 - self.own_share) * taker_losses[self.partners]


def sample_mixing(settings: TrainSettings, step: int, images: Float[Tensor, "batch 3 height width"], labeled: int) -> Mixing | None:
    """The mixing of a step whose first `labeled` images are the labeled ones; None if neither mixup nor CutMix is on.

    If both are on, each gets half of the steps (timm's `switch_prob` 0.5).
    """
    if not settings.mixup and not settings.cutmix:
        return None
    partners = partner_positions(labeled, len(images) - labeled).to(images.device, non_blocking=True)
    draw = np.random.default_rng(derive_seed(settings.seed, "mixing", step))
    is_cutmix = draw.random() < 0.5 if settings.mixup and settings.cutmix else bool(settings.cutmix)
    alpha = settings.cutmix if is_cutmix else settings.mixup
    own_share = float(draw.beta(alpha, alpha))
    if not is_cutmix:
        return Mixing(own_share, None, partners)
    height_px, width_px = images.shape[-2:]
    box = cutmix_box(own_share, height_px, width_px, int(draw.integers(height_px)), int(draw.integers(width_px)))
    top, bottom, left, right = box
    return Mixing(1 - (bottom - top) * (right - left) / (height_px * width_px), box, partners)  # of the box after clipping


def cutmix_box(own_share: float, height_px: int, width_px: int, middle_y: int, middle_x: int) -> Box:
    """A box with the image's aspect ratio that leaves `own_share` of its area, centered on the given point and clipped at the border."""
    side = (1 - own_share) ** 0.5
    height, width = int(height_px * side), int(width_px * side)
    top, bottom = max(0, middle_y - height // 2), min(height_px, middle_y + (height + 1) // 2)
    left, right = max(0, middle_x - width // 2), min(width_px, middle_x + (width + 1) // 2)
    return top, bottom, left, right


def partner_positions(labeled: int, pseudo: int) -> Int[Tensor, " batch"]:
    """For each image of a step or of a part of it, labeled ones first, the position of its partner.

    The number of pseudo-labeled images must be a multiple of the labeled ones, or there is only one kind and its number is even.
    """
    circles = labeled if labeled and pseudo else (labeled + pseudo) // 2
    places = torch.arange(labeled + pseudo)
    members = torch.cat([part.reshape(circles, -1) for part in (places[:labeled], places[labeled:]) if len(part)], dim=1)
    partners = torch.empty_like(places)
    partners[members.flatten()] = members.roll(-1, dims=1).flatten()
    return partners
