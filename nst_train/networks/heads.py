"""The last layers of a network, with an output for each class, and their initialization."""

import torch
from torch import nn

from nst_data.errors import NstError
from nst_train.networks.network_noise import classifiers_of


def heads_of(network: nn.Module, classes: int) -> list[nn.Module]:
    """The last layer with an output for each class, in each of a network's classifiers."""
    heads = []
    for classifier in classifiers_of(network, classes):
        layers = [
            layer for layer in classifier.modules() if getattr(layer, "out_features", getattr(layer, "out_channels", None)) == classes
        ]
        heads += layers[-1:]
    return heads


@torch.no_grad()
def zero_heads(network: nn.Module, classes: int, name: str) -> None:
    """Make all classes equally likely: weights and biases of the last layers are set to 0, so that the initial loss is ln(classes).

    New layers before the last keep their initial weights, or none of them would learn. Raises NstError if no last layer is found.
    """
    heads = heads_of(network, classes)
    if not heads:
        raise NstError(f"{name}: expected a last layer with {classes} outputs, found none; set `head_init` to network")
    for head in heads:
        for weight in head.parameters(recurse=False):
            weight.zero_()
