"""A trained network, together with everything that its predictions depend on."""

import hashlib
from dataclasses import dataclass

import torch
from torch import nn

from nst_train.networks.models import count_parameters
from nst_train.transforms.preprocessing import Preprocessing

_OUTPUT_FIELDS = ("identity", "input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")


@dataclass(frozen=True)
class Classifier:
    """A network in evaluation mode and without noise, with its preprocessing and class names."""

    network: nn.Module
    preprocessing: Preprocessing
    class_names: list[str]

    @property
    def parameters(self) -> int:
        """Number of weights of the network."""
        return count_parameters(self.network)


def output_fields(preprocessing: Preprocessing) -> list[tuple[str, str]]:
    """The fields of a preprocessing that determine its output, as sorted (name, text) pairs for a digest."""
    return sorted((key, str(value)) for key, value in vars(preprocessing).items() if key in _OUTPUT_FIELDS)


def weights_sha256(network: nn.Module) -> str:
    """SHA-256 of all tensors in a network's state dict, in the order of their names."""
    digest = hashlib.sha256()
    for key, tensor in sorted(network.state_dict().items()):
        digest.update(key.encode())
        digest.update(
            tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else str(tensor.item()).encode()
        )
    return digest.hexdigest()
