"""User-defined networks: any torch module from images to logits, registered under a name that timm and nst then know."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import load_file
from timm.models import PretrainedCfg, register_model
from torch import nn

from nst_data.errors import UsageError
from nst_train.networks.weights import WEIGHTS

_HALF = (0.5, 0.5, 0.5)
_TIMM_ARGUMENTS = (
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "cache_dir",
    "pretrained_model_args",
)  # arguments that timm passes to all networks
_registered: set[str] = set()


def register_network(
    name: str,
    make: Callable[..., nn.Module],
    *,
    image_size: int,
    mean: tuple[float, ...] = _HALF,
    std: tuple[float, ...] = _HALF,
) -> None:
    """Register a network under a name that works wherever a timm name does: `TrainSettings.model`, a recipe, loading a sealed teacher.

    A name is only known in the program that registered it: register it again in the one that loads the teacher.

    Args:
        name: Letters, digits and `_`, beginning with a letter.
        make: `make(classes)` returns the module, with initial weights that depend on torch's seed. It maps images of shape
            (batch, 3, image_size, image_size) to logits of shape (batch, classes). The dropout of the settings is applied before its last
            layer with as many outputs as classes. For stochastic depth, `make` has to take `drop_path_rate`, and the module has to skip
            blocks by timm's DropPath.
        image_size: Side of its images in pixels.
        mean: Mean of each channel, for values in [0, 1], to normalize images by.
        std: Standard deviation of each channel, likewise.

    Raises:
        UsageError: The name is not valid, or is that of a timm network.
    """
    if not re.fullmatch(r"[A-Za-z]\w*", name):
        raise UsageError(f"{name}: expected a name of letters, digits and _ that begins with a letter")
    if timm.is_model(name) and name not in _registered:
        raise UsageError(f"{name}: this is the name of a timm network; choose another one")
    config = PretrainedCfg(architecture=name, input_size=(3, image_size, image_size), mean=mean, std=std, crop_pct=1.0)

    def network(pretrained: bool = False, num_classes: int | None = None, **options: Any) -> nn.Module:  # noqa: ANN401 - what timm passes on
        stored = options.get("pretrained_cfg") or config
        stored = stored if isinstance(stored, dict) else stored.to_dict()
        num_classes = num_classes or stored["num_classes"]
        module: Any = make(num_classes, **{key: value for key, value in options.items() if key not in _TIMM_ARGUMENTS})
        module.pretrained_cfg = stored
        module.num_classes = num_classes
        if not hasattr(module, "num_features"):  # timm writes it to the saved config
            module.num_features = next((layer.in_features for layer in reversed([*module.modules()]) if isinstance(layer, nn.Linear)), 0)
        if pretrained:
            module.load_state_dict(load_file(Path(module.pretrained_cfg["file"], WEIGHTS)))  # the folder of a local-dir: name
        return module  # type: ignore[no-any-return]

    network.__name__ = name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a name that is registered again
        register_model(network)
    _registered.add(name)
