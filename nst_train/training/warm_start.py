"""Starting from a trained network: a student from its teacher (study 8), a finetuning run from the training before it."""

import math

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from nst_data.errors import NstError
from nst_data.progress import Progress
from nst_data.sources import match_classes
from nst_data.store.inputs import Input
from nst_data.store.store import Store
from nst_train.classifiers.lineage import teacher_input
from nst_train.classifiers.teachers import load_classifier
from nst_train.networks.heads import find_heads
from nst_train.networks.models import training_data_config
from nst_train.networks.probe import NETWORK_ERRORS
from nst_train.networks.weights import describe_differences
from nst_train.settings import TrainSettings
from nst_train.teacher_names import is_in_store
from nst_train.transforms.preprocessing import Preprocessing

_TRIAL_SIZE = (64, 64)
_TOLERANCE = 1e-3


def start_input(name: str, store: Store) -> Input:
    """The lineage entry of the network to start from."""
    return teacher_input(name, store) if is_in_store(name, store) else load_classifier(name, store)[1]


def load_start_weights(network: nn.Module, settings: TrainSettings, store: Store, class_names: list[str], progress: Progress) -> None:
    """Load the weights of `settings.start` into `network`, with the classes in the order of `class_names`.

    If it has other classes, the last layer keeps its initial weights. This is reported, as is a difference in the normalization of the
    images it was trained on. Raises NstError if the weights belong to another network.
    """
    assert settings.start is not None, "asked for by settings that name a start"
    trained, _ = load_classifier(settings.start, store)
    weights, initial = trained.network.state_dict(), network.state_dict()
    order = _class_order(class_names, trained.class_names)
    head_ids = {id(weight) for head in find_heads(network, len(class_names)) for weight in head.parameters(recurse=False)}
    for name, value in network.state_dict(keep_vars=True).items():
        if id(value) in head_ids and name in weights:
            weights[name] = initial[name] if order is None else weights[name][order]
    missing, unexpected = (
        [name for name in state if name not in other_state] for state, other_state in ((initial, weights), (weights, initial))
    )
    shapes = {name: (tuple(weights[name].shape), tuple(initial[name].shape)) for name in initial if name in weights}
    reshaped = {name: (actual, expected) for name, (actual, expected) in shapes.items() if actual != expected}
    if missing or unexpected or reshaped:
        raise NstError(
            f"start {settings.start}: the weights do not match {settings.model}: {describe_differences(missing, unexpected, reshaped)}; "
            "choose matching weights with `start`, or another `model`"
        )
    network.load_state_dict(weights)
    if order is None:
        progress.say(f"{settings.start} has other classes: the last layer starts from scratch")
    start_normalization, config = _measure_normalization(trained.preprocessing), training_data_config(network, settings)
    if order is not None and order.tolist() != list(range(len(order))):
        _check_reordered(network, trained.network, order, settings, config["input_size"])
    normalization = [float(value) for value in (*config["mean"], *config["std"])]
    if not np.allclose(start_normalization, normalization, rtol=0, atol=_TOLERANCE):
        progress.say(
            f"warning: start {settings.start} was trained on images normalized by {_format_normalization(start_normalization)}, "
            f"{settings.model} is trained with {_format_normalization(normalization)}; "
            "choose the `model` that the start was trained as, with its tag"
        )


@torch.no_grad()
def _check_reordered(
    network: nn.Module, trained: nn.Module, order: Int[Tensor, " classes"], settings: TrainSettings, size: tuple[int, int, int]
) -> None:
    """Raises NstError if the logits are not those of the start in the new order, since layers before the last ones know the classes too."""
    image, was_training = torch.linspace(-1, 1, math.prod(size)).view(1, *size), network.training
    try:
        actual, expected = network.eval()(image), trained(image)[:, order]
    except NETWORK_ERRORS:  # `check_accepts_images` says that it does not take this size
        return
    finally:
        network.train(was_training)
    if not torch.allclose(actual, expected, rtol=_TOLERANCE, atol=_TOLERANCE * float(expected.abs().max())):
        raise NstError(
            f"start {settings.start}: has the classes in another order, and in more layers of {settings.model} than the last; "
            "choose another `model`, or a start that was trained on these images"
        )


def _measure_normalization(preprocessing: Preprocessing) -> list[float]:
    """The mean and then the standard deviation of each channel, derived from how black and white are preprocessed."""
    levels = (torch.full((3, *_TRIAL_SIZE), level, dtype=torch.uint8) for level in (0, 255))
    black, white = (preprocessing.finish(preprocessing.prepare(level)[None])[0].double() for level in levels)
    center = (slice(None), black.shape[1] // 2, black.shape[2] // 2)
    std = 1 / (white[center] - black[center])
    return [*((0 - black[center]) * std).tolist(), *std.tolist()]


def _format_normalization(normalization: list[float]) -> str:
    mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (normalization[:3], normalization[3:]))
    return f"mean {mean} and standard deviation {std}"


def _class_order(class_names: list[str], trained: list[str]) -> Int[Tensor, " classes"] | None:
    """For each class, its index in the trained network; None if that has other classes."""
    try:
        return torch.from_numpy(match_classes(class_names, trained, "start"))
    except NstError:
        return None
