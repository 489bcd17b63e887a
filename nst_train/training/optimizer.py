"""The optimizer of a training, and the weights it decays."""

import logging
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from torch import nn

from nst_data.errors import NstError, first_line
from nst_train.settings import TrainSettings
from nst_train.training.checkpoint import check_can_be_saved
from nst_train.training.schedule import Schedule

logging.getLogger("timm.optim").addHandler(logging.NullHandler())  # otherwise Python prints its warnings to stderr
_TRIAL_SHAPES = [(8, 3, 3, 3), (8,), (160, 160)]  # a convolution, a bias, and a matrix that optimizers with factored state do factor


def create_optimizer(network: nn.Module, settings: TrainSettings, schedule: Schedule) -> torch.optim.Optimizer:
    """timm's optimizer for the trainable weights. Raises NstError if timm rejects the settings."""
    options: dict[str, Any] = {"alpha": 0.9, "eps": 1e-3} if settings.optimizer == "rmsproptf" else {}  # as in the released code
    if settings.weight_decay_on == "all":
        options["param_group_fn"] = lambda network: _weight_decay_groups(network, settings.weight_decay)
    if settings.layer_decay is not None:
        options["layer_decay"] = settings.layer_decay  # each group gets an `lr_scale`, by which `Step` multiplies
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            network, settings.optimizer, schedule.peak_learning_rate, settings.weight_decay, settings.momentum, **options
        )
    except (ValueError, TypeError) as error:
        raise _settings_error(settings, error) from None
    return optimizer


def is_layer_decay_idle(settings: TrainSettings, optimizer: torch.optim.Optimizer) -> bool:
    """Whether `layer_decay` was requested but all trainable weights still get the same learning rate."""
    return settings.layer_decay not in (None, 1) and all(group["lr_scale"] == 1 for group in optimizer.param_groups)


def check_optimizer(settings: TrainSettings, device: torch.device) -> None:
    """Take a trial step on weights of a few shapes, and save the optimizer's state as a checkpoint would.

    Raises NstError: some timm optimizers need a GPU or second derivatives, or have state that no checkpoint can hold.
    """
    weights = [nn.Parameter(torch.zeros(shape, device=device)) for shape in _TRIAL_SHAPES]
    optimizer: Any
    try:
        optimizer = create_optimizer_v2(weights, settings.optimizer, settings.learning_rate, settings.weight_decay, settings.momentum)
    except (ValueError, TypeError) as error:
        raise _settings_error(settings, error) from None
    except (AssertionError, RuntimeError, ImportError) as error:
        raise _unusable_error(settings, error) from None
    try:
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        with torch.random.fork_rng(devices=[]):  # some optimizers draw random numbers in a step
            optimizer.step()
        check_can_be_saved(optimizer)
    except (ValueError, TypeError, AssertionError, RuntimeError, NstError) as error:
        raise _unusable_error(settings, error) from None


def _settings_error(settings: TrainSettings, error: Exception) -> NstError:
    return NstError(f"optimizer {settings.optimizer}: cannot be made with these settings ({first_line(error)})")


def _unusable_error(settings: TrainSettings, error: Exception) -> NstError:
    return NstError(f"optimizer {settings.optimizer}: cannot be used here ({first_line(error)}); choose another `optimizer`")


def _weight_decay_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups that decay all trainable weights, biases too, except those of normalization layers (released code: main.py)."""
    normalizing = {weight for layer in network.modules() if _is_normalization(layer) for weight in layer.parameters(recurse=False)}
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    groups = [(weight_decay, [weight for weight in trained if weight not in normalizing])]
    groups += [(0.0, [weight for weight in trained if weight in normalizing])]
    return [{"params": weights, "weight_decay": decay} for decay, weights in groups if weights]


def _is_normalization(layer: nn.Module) -> bool:
    """Judge by the name of the class or of a base class: BatchNormAct2d, LayerNorm, RmsNorm, or a transformers network's own."""
    return any("Norm" in kind.__name__ for kind in type(layer).__mro__)
