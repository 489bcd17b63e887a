"""Networks on torch's meta device, without memory for weights: shows what a network refuses, and its kind, before any training."""

from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from nst_data.errors import NstError, is_out_of_memory
from nst_data.store.manifest import HEADS, NETWORK_NOISE
from nst_train.networks.heads import find_heads
from nst_train.networks.model_config import is_timm_config, read_config
from nst_train.networks.models import create_network, training_data_config, unrequested_noise_arguments
from nst_train.networks.network_noise import NetworkNoise, add_noise, stochastic_depth_layers
from nst_train.networks.preparation import prepare_for_training
from nst_train.networks.probe import NETWORK_ERRORS
from nst_train.networks.transformers_networks import TransformersClassifier, create_outline_of_type, has_last_dropout
from nst_train.networks.weights import FOLDER, cached_folder, local_name
from nst_train.noise_settings import Noise, PseudoNoise
from nst_train.settings import TrainSettings


def create_outline(settings: TrainSettings, classes: int) -> nn.Module | None:
    """The network for these settings, ready to be trained. Does not access the Hub or read weights.

    For a Hub network with only its config.json in the cache, it is a network of the same type; None if not even that is cached.
    Raises NstError for settings that the network refuses.
    """
    if (outline_settings := _outline_settings(settings)) is None:
        return None
    bare, config = outline_settings
    try:
        return _create_on("meta", bare, classes, config)[0]
    except (NstError, *NETWORK_ERRORS):  # some networks need real values when they are created: the CPU decides
        return _create_on("cpu", bare, classes, config)[0]


def extra_settings(settings: TrainSettings, classes: int) -> dict[str, str]:
    """What a training request names in addition to its settings if an earlier nst trained the network differently."""
    changes = {"each use": reuses_stochastic_depth, "as configured": brings_noise}
    noise = ", ".join(change for change, applies in changes.items() if applies(settings, classes))
    return ({NETWORK_NOISE: noise} if noise else {}) | ({HEADS: "all"} if has_several_heads(settings, classes) else {})


def has_several_heads(settings: TrainSettings, classes: int) -> bool:
    """Whether a network has last layers that an earlier nst passed over; False for a network that cannot be created.

    These are all but one of a distilled DeiT of transformers, and of timm's networks those that `get_classifier` does not name, such as
    VOLO's auxiliary head.
    """
    config = None if "/" in settings.model else timm.models.get_pretrained_cfg(settings.model, allow_unregistered=True)
    if "/" not in settings.model and (config is None or isinstance(config.classifier, str | None)):
        return False
    try:
        network = create_outline(settings.model_copy(update={"noise": Noise.none(), "pseudo_noise": PseudoNoise()}), classes)
    except (NstError, *NETWORK_ERRORS):  # training will refuse it
        return False
    if network is None:
        return False
    if isinstance(network, TransformersClassifier):
        return len(network.last_layers()) > 1
    return len(find_heads(network, classes)) > len(find_heads(network, classes, every_head=False))


def brings_noise(settings: TrainSettings, classes: int) -> bool:
    """Whether timm or transformers create the network with noise that the settings do not ask for, with which an earlier nst trained it.

    False for a linear probe, which trains without noise.
    """
    if settings.probe or (known := _outline_settings(settings)) is None:
        return False
    model, config = known[0].model, known[1]
    if config is None and model.startswith(FOLDER):
        config = read_config(model, Path(model.removeprefix(FOLDER)))
    if config is not None and not is_timm_config(config):
        return has_last_dropout(config)
    asks = max(settings.noise.stochastic_depth, settings.for_pseudo_images.noise.stochastic_depth) > 0
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            network = timm.create_model(model, num_classes=classes, **({"drop_path_rate": 0.1} if asks else {}))
    except (NstError, *NETWORK_ERRORS):  # training will refuse it
        return False
    return bool(unrequested_noise_arguments(network, settings))


def reuses_stochastic_depth(settings: TrainSettings, classes: int) -> bool:
    """Whether a training forward pass uses a stochastic-depth layer more than once, as in blocks of transformers' BEiT and DINOv2.

    False for a network that cannot be created or does not take its images: training will refuse it. Raises NstError if memory runs out.
    """
    if not max(settings.noise.stochastic_depth, settings.for_pseudo_images.noise.stochastic_depth):
        return False
    for device in ("meta", "cpu"):  # the CPU decides if the meta device does not work
        try:
            return (outline_settings := _outline_settings(settings)) is not None and _reuses_layer(device, *outline_settings, classes)
        except (NstError, *NETWORK_ERRORS) as error:
            if is_out_of_memory(error):
                raise NstError(f"{settings.model}: out of memory where two images were tried") from None
    return False


def _outline_settings(settings: TrainSettings) -> tuple[TrainSettings, dict[str, Any] | None] | None:
    """The settings to create a network by without weights, and its config.json if only that is used; None if it cannot be created."""
    bare = settings.model_copy(update={"pretrained": False, "start": None})
    if (local := local_name(settings.model)) is not None:
        return bare.model_copy(update={"model": local}), None
    if (folder := cached_folder(settings.model)) is None:
        return None
    config = read_config(settings.model, folder)
    if not is_timm_config(config):
        return bare, config
    architecture = str(config.get("architecture"))
    return (bare.model_copy(update={"model": architecture}), None) if timm.is_model(architecture) else None


def _reuses_layer(device: str, settings: TrainSettings, config: dict[str, Any] | None, classes: int) -> bool:
    called_layers: list[nn.Module] = []
    network, noise = _create_on(device, settings, classes, config)
    noise.prepare_step(0, range(2), ())
    for layer in stochastic_depth_layers(network):
        layer.register_forward_pre_hook(lambda layer, _: called_layers.append(layer))
    size = training_data_config(network, settings)["input_size"]
    with torch.random.fork_rng(devices=[]), torch.no_grad(), torch.device(device):
        network(torch.zeros(2, *size))
    return len(called_layers) > len(set(called_layers))


def _create_on(device: str, settings: TrainSettings, classes: int, config: dict[str, Any] | None) -> tuple[nn.Module, NetworkNoise]:
    with torch.random.fork_rng(devices=[]), torch.device(device):
        network = create_network(settings, classes) if config is None else create_outline_of_type(config, settings, classes)
        prepare_for_training(network, settings)
        noise = add_noise(network, settings.noise, settings.for_pseudo_images.noise, classes, settings.seed)
    return network, noise


def suits_vit_preset(network: nn.Module) -> bool:
    """Whether a network is finetuned at the low learning rates of vision transformers: any but those with batch-norm and no layer norm."""
    kinds = {kind.__name__ for layer in network.modules() for kind in type(layer).__mro__}
    has_layer_norm = any("LayerNorm" in kind or "RmsNorm" in kind or "RMSNorm" in kind for kind in kinds)
    return "_BatchNorm" not in kinds or has_layer_norm


def has_layer_groups(network: nn.Module) -> bool:
    """Whether timm knows which weights belong to which layer, as `layer_decay` needs: it does for its own networks only."""
    return not isinstance(network, TransformersClassifier)
