"""The last layers of a network, with an output for each class, and their initialization."""

import torch
from torch import nn

from nst_data.errors import NstError
from nst_train.networks.network_noise import find_classifiers, heads_in_config


def find_heads(network: nn.Module, classes: int, every_head: bool = True) -> list[nn.Module]:
    """The last layer with an output for each class, in each of a network's classifiers; of RepViT, whose classifier has two, both.

    Without `every_head`, those that an earlier nst knew of (see `network_noise.NoiseMode`).
    """
    config_head_ids = {id(layer) for layer in heads_in_config(network, classes)} if every_head else set[int]()
    heads = []
    for classifier in find_classifiers(network, classes, every_head):
        layers = [
            layer for layer in classifier.modules() if getattr(layer, "out_features", getattr(layer, "out_channels", None)) == classes
        ]
        heads += [layer for layer in layers if id(layer) in config_head_ids] or layers[-1:]
    return heads


@torch.no_grad()
def zero_heads(network: nn.Module, classes: int, name: str) -> None:
    """Make all classes equally likely: weights and biases of the last layers are set to 0, so that the initial loss is ln(classes).

    New layers before the last keep their initial weights, or none of them would learn. Raises NstError if no last layer is found.
    """
    heads = find_heads(network, classes)
    if not heads:
        raise NstError(f"{name}: expected a last layer with {classes} outputs, found none; set `head_init` to network")
    for head in heads:
        for weight in head.parameters(recurse=False):
            weight.zero_()
