"""A network without memory for its weights, on torch's meta device: what it refuses is known before any training, and what kind it is."""

from typing import Any

import timm
import torch
from torch import nn

from nst_data.errors import NstError
from nst_train.networks.model_config import is_of_timm, read_config
from nst_train.networks.models import create_network
from nst_train.networks.network_noise import add_noise
from nst_train.networks.preparation import prepare
from nst_train.networks.probe import FAILURES
from nst_train.networks.transformers_networks import Logits, outline_of_kind
from nst_train.networks.weights import cached_folder, local_name
from nst_train.settings import TrainSettings


def outline(settings: TrainSettings, classes: int) -> nn.Module | None:
    """The network that settings ask for, ready to be trained. Asks the Hub nothing and reads no weights.

    Of a network of the Hub whose config.json alone is in the cache it is one of the same kind; None where not even that is there.
    Raises NstError for what the network refuses.
    """
    bare = settings.model_copy(update={"pretrained": False, "start": None})
    if (local := local_name(settings.model)) is not None:
        return _made(bare.model_copy(update={"model": local}), classes, None)
    if (folder := cached_folder(settings.model)) is None:
        return None
    config = read_config(settings.model, folder)
    if not is_of_timm(config):
        return _made(bare, classes, config)
    architecture = str(config.get("architecture"))
    return _made(bare.model_copy(update={"model": architecture}), classes, None) if timm.is_model(architecture) else None


def _made(settings: TrainSettings, classes: int, config: dict[str, Any] | None) -> nn.Module:
    try:
        return _made_on("meta", settings, classes, config)
    except (NstError, *FAILURES):  # some need numbers when they are made: what is refused with these too is refused
        return _made_on("cpu", settings, classes, config)


def _made_on(device: str, settings: TrainSettings, classes: int, config: dict[str, Any] | None) -> nn.Module:
    with torch.random.fork_rng(devices=[]), torch.device(device):
        network = create_network(settings, classes) if config is None else outline_of_kind(config, settings, classes)
        prepare(network, settings)
        add_noise(network, settings.noise, settings.of_pseudo.noise, classes, settings.seed)
    return network


def suits_vit_preset(network: nn.Module) -> bool:
    """Whether a network is finetuned at the low rates of vision transformers: all but those with batch-norm alone."""
    kinds = {kind.__name__ for layer in network.modules() for kind in type(layer).__mro__}
    has_layer_norm = any("LayerNorm" in kind or "RmsNorm" in kind or "RMSNorm" in kind for kind in kinds)
    return "_BatchNorm" not in kinds or has_layer_norm


def has_layer_groups(network: nn.Module) -> bool:
    """Whether timm knows which weights belong to which layer, as `layer_decay` needs: it does of its own networks."""
    return not isinstance(network, Logits)
