"""Checking a classifier's input and output by one forward pass when it is loaded."""

import torch
from torch import Tensor, nn

from nst_data.errors import NstError
from nst_train.networks.weights import describe_load_error
from nst_train.transforms.preprocessing import Preprocessing

NETWORK_ERRORS = (RuntimeError, ValueError, TypeError, AssertionError, AttributeError, LookupError, ZeroDivisionError)
"""What networks and image processors raise for images that they reject."""


@torch.no_grad()
def check_forward_pass(network: nn.Module, preprocessing: Preprocessing, class_names: list[str]) -> None:
    """Run a network on one gray image, prepared as others will be.

    Raises NstError if the network does not take it, does not return a logit for each class, or has damaged weights or fewer than 2 classes.
    """
    if len(class_names) < 2:
        raise NstError(f"expected a classifier with at least two classes, found {len(class_names)} ({', '.join(class_names)})")
    if damaged := _find_damaged_tensor(network):
        raise NstError(f"expected a trained network, found weights that are NaN or infinite: {damaged}; retrain it")
    shape = "an image"
    try:
        pixels = preprocessing.finish(preprocessing.prepare(torch.full((3, 48, 64), 128, dtype=torch.uint8))[None])
        shape = f"an RGB image of {pixels.shape[-1]}x{pixels.shape[-2]} pixels prepared with its own settings"
        output = network(pixels)
    except NETWORK_ERRORS as error:
        raise NstError(f"it rejects {shape}: {describe_load_error(error)}") from None
    check_logits(output, len(class_names))


def _find_damaged_tensor(network: nn.Module) -> str | None:
    """The name of the first tensor with NaN, or weight with infinite values; an infinite buffer may be a mask."""
    weights = {name for name, _ in network.named_parameters()}
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and (tensor.isnan().any() or (name in weights and tensor.isinf().any())):
            return name
    return None


def check_logits(output: object, classes: int) -> None:
    """Raises NstError if a network's output for one image is not one logit for each class."""
    if not isinstance(output, Tensor):
        raise NstError(f"expected logits of shape (1, {classes}) for one image, found a {type(output).__name__}")
    if tuple(output.shape) != (1, classes):
        raise NstError(f"expected logits of shape (1, {classes}) for one image, found {tuple(output.shape)}")
