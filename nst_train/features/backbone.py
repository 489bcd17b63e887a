"""A network without its last layer, whose outputs are the features of an image."""

import copy
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nst_data.errors import NstError
from nst_data.store.inputs import Input
from nst_data.store.store import Store
from nst_train.classifiers.classifier import Classifier
from nst_train.classifiers.lineage import teacher_input
from nst_train.classifiers.teachers import Teacher
from nst_train.networks.models import check_network_name, create_network, training_data_config
from nst_train.networks.network_noise import find_classifiers
from nst_train.networks.probe import NETWORK_ERRORS
from nst_train.networks.weights import FOLDER, describe_load_error, initial_weights_input
from nst_train.settings import TrainSettings
from nst_train.teacher_names import is_in_store
from nst_train.transforms.preprocessing import TimmPreprocessing

_LOGITS_TOLERANCE = 1e-3  # relative, for logits computed in two ways
_CLASSES = 2  # of the temporary last layer, which is removed again


class Backbone(Teacher):
    """Returns the features of an image instead of probabilities."""

    @property
    def dimensions(self) -> int:
        """The number of features per image."""
        return len(self.class_names)

    def log_probs(self, logits: Sequence[Float[Tensor, "batch dimensions"]], temperature: float = 1.0) -> Float[Tensor, "batch dimensions"]:
        """The features unchanged, in float32."""
        return logits[0].float()


def last_layer(network: nn.Module, classes: int, name: str) -> nn.Linear:
    """The layer that turns features into logits. Raises NstError if the network does not end in a single linear layer."""
    layers = find_classifiers(network, classes)
    if len(layers) != 1 or not isinstance(layers[0], nn.Linear) or layers[0].bias is None:
        kinds = ", ".join(type(layer).__name__ for layer in layers) or "none"
        raise NstError(f"{name}: expected one linear layer with a bias at the end of the network, found {kinds}; choose another model")
    return layers[0]


def create_backbone(network: nn.Module, classes: int, name: str, data_config: dict[str, Any]) -> Backbone:
    """A copy of a network without its last layer, with the evaluation transform of its data config. Puts the network in evaluation mode.

    Raises NstError if the logits are not the last layer's output for these features, or the network rejects images of that size.
    """
    layer = last_layer(network.eval(), classes, name)
    headless = copy.deepcopy(network)
    place = next(path for path, module in network.named_modules() if module is layer)
    parent, _, attribute = place.rpartition(".")
    setattr(headless.get_submodule(parent), attribute, nn.Identity())
    _check_features(network, headless, layer, name, data_config["input_size"])
    classifier = Classifier(headless, TimmPreprocessing.from_data_config(data_config), [str(number) for number in range(layer.in_features)])
    return Backbone((classifier,), (None,))


@torch.no_grad()
def _check_features(network: nn.Module, headless: nn.Module, layer: nn.Linear, name: str, size: tuple[int, int, int]) -> None:
    """Run both on a gray image. Raises NstError if the logits are not the output of the last layer for the features."""
    image = torch.zeros(1, *size)
    try:
        logits = network(image)
    except NETWORK_ERRORS as error:
        raise NstError(
            f"{name}: rejects images of {size[-1]} px ({describe_load_error(error)}); choose another `image_size`, or omit it"
        ) from None
    if not logits.isfinite().all():
        raise NstError(f"{name}: expected a trained network, found one whose output is not finite; retrain it, or choose another model")
    with suppress(*NETWORK_ERRORS):
        if torch.allclose(layer(headless(image)), logits, rtol=_LOGITS_TOLERANCE, atol=_LOGITS_TOLERANCE * float(logits.abs().max())):
            return
    raise NstError(
        f"{name}: expected one linear layer with a bias at the end of the network, found that its logits do not come from that layer only; "
        "choose another model"
    )


@dataclass(frozen=True)
class Embedder:
    """A backbone, loaded by name, and its entry in the lineage."""

    backbone: Backbone
    entry: Input


def load_backbone(name: str, store: Store, image_size: int | None, crop_pct: float | None) -> Embedder:
    """The backbone of a teacher in the store or of a model with published weights, at an image size (by default the model's own).

    Raises UsageError or NstError if there is no such model.
    """
    model, entry = name, None
    if is_in_store(name, store):
        version = store.open(name, "teacher")
        model, entry = f"{FOLDER}{version.folder}", teacher_input(name, store)
    check_network_name(model)
    settings = TrainSettings(model=model, pretrained=True, image_size=image_size, crop_pct=crop_pct, noise={"stochastic_depth": 0})
    entry = entry or initial_weights_input(model)
    with torch.random.fork_rng(devices=[]):
        network = create_network(settings, _CLASSES)
    return Embedder(create_backbone(network, _CLASSES, name, training_data_config(network, settings)), entry)
