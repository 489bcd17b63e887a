"""Creating networks to train by name, and saving trained ones as teachers in timm's Hub format."""

import copy
import difflib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from timm.data import resolve_model_data_config
from timm.models import save_for_hf
from timm.optim import get_optimizer_info, list_optimizers
from torch import Tensor, nn

from nst_data.errors import NstError, UsageError, first_line
from nst_data.settings import DENSE_CLASSES
from nst_data.store.files import hash_file
from nst_data.store.manifest import SealedFile
from nst_train import small_efficientnet
from nst_train.networks import image_processors
from nst_train.networks.heads import zero_heads
from nst_train.networks.model_config import check_config, is_timm_config, read_config
from nst_train.networks.network_noise import add_noise, check_row_order, drop_paths_of
from nst_train.networks.preparation import prepare_for_training
from nst_train.networks.probe import NETWORK_ERRORS, check_logits
from nst_train.networks.transformers_networks import TransformersClassifier, create_transformer, save_transformer
from nst_train.networks.weights import (
    CONFIG,
    FOLDER,
    HUB,
    WEIGHTS,
    check_folder,
    describe_load_error,
    download,
    parse_repository,
    published_weights,
    require_safetensors,
)
from nst_train.settings import TrainSettings
from nst_train.transforms.preprocessing import check_data_config


def count_parameters(network: nn.Module) -> int:
    """Number of weights of a network."""
    return sum(weight.numel() for weight in network.parameters())


def parameters_and_classes(settings: TrainSettings, classes: int | None = None) -> tuple[int, int] | None:
    """Numbers of (weights, classes) of the network for these settings, by default with its published classes, without allocating weights.

    None for a network on the Hub, whose config would have to be downloaded. Raises NstError for settings that the network refuses.
    """
    if "/" in settings.model and not settings.model.startswith(FOLDER):
        return None
    if classes is None:
        config = None if settings.model.startswith(FOLDER) else timm.models.get_pretrained_cfg(settings.model, allow_unregistered=True)
        classes = config.num_classes if config else DENSE_CLASSES
    with torch.device("meta"):
        return count_parameters(create_network(settings.model_copy(update={"pretrained": False}), classes)), classes


def check_model_and_optimizer(settings: TrainSettings) -> None:
    """Raises UsageError for a network or an optimizer that does not exist, and suggests similar names."""
    check_network_name(settings.model)
    if settings.optimizer not in list_optimizers():
        hint = _suggestion(settings.optimizer, list_optimizers(), "optim.list_optimizers")
        raise UsageError(f"optimizer {settings.optimizer}: not in timm; {hint}")


def takes_momentum(optimizer: str) -> bool:
    """Whether a timm optimizer takes `momentum`."""
    return bool(get_optimizer_info(optimizer).has_momentum)


def create_network(settings: TrainSettings, classes: int) -> nn.Module:
    """Create the network to train, with blocks that can be skipped if the settings have stochastic depth (`network_noise.add_noise`).

    Initial weights depend on torch's seed. Raises NstError for settings that the network refuses; names are checked by
    `check_model_and_optimizer`.
    """
    name = settings.model
    if "/" in name and not name.startswith(FOLDER):
        name = f"{FOLDER}{download(name)[0]}"
    if name.startswith(FOLDER):
        folder = Path(name.removeprefix(FOLDER))
        config = read_config(settings.model, folder)
        check_config(settings.model, folder, config)
        if not is_timm_config(config):
            with _translate_library_errors(settings):
                return create_transformer(folder, settings, classes)
    options: dict[str, Any] = {"num_classes": classes}
    if largest := max(settings.noise.stochastic_depth, settings.for_pseudo_images.noise.stochastic_depth):
        options["drop_path_rate"] = largest
    if settings.image_size and _has_fixed_size(settings.model):
        options["img_size"] = settings.image_size
    if settings.pretrained and name.startswith(FOLDER):
        require_safetensors(settings.model, Path(name.removeprefix(FOLDER)))
    elif settings.pretrained:
        options["pretrained_cfg_overlay"] = {"file": str(published_weights(name)[0])}
    with _translate_library_errors(settings):
        network = _create_timm_network(name, settings, options)
    published: Any = getattr(network, "pretrained_cfg", None) or {}
    has_published_head = settings.pretrained and published.get("num_classes") == classes
    if settings.head_init == "zero" and not has_published_head:
        zero_heads(network, classes, settings.model)
    return network


def _create_timm_network(name: str, settings: TrainSettings, options: dict[str, Any]) -> nn.Module:
    """A network of timm with no other noise than the settings', and the initial weights that it has with its own."""
    random_state = torch.get_rng_state()
    network: nn.Module = timm.create_model(name, pretrained=settings.pretrained, **options)
    if unasked := unrequested_noise_arguments(network, settings):
        torch.set_rng_state(random_state)
        network = timm.create_model(name, pretrained=settings.pretrained, **options, **dict.fromkeys(unasked, 0.0))
    return network


def unrequested_noise_arguments(network: nn.Module, settings: TrainSettings) -> list[str]:
    """The arguments that timm gives a network by default, though the settings do not ask for the noise.

    They are dropout as in GhostNet and ReXNet, which would come on top of `noise.dropout`, and, if `noise.stochastic_depth` is 0, the
    stochastic depth of Swin, NesT and others.
    """
    if not type(network).__module__.startswith("timm."):  # a user's own network, which may not take these arguments
        return []
    unasked = ["drop_rate"] if getattr(network, "drop_rate", 0) else []
    asks = max(settings.noise.stochastic_depth, settings.for_pseudo_images.noise.stochastic_depth) > 0
    return unasked if asks or not any(rate for *_, rate in drop_paths_of(network)) else [*unasked, "drop_path_rate"]


@contextmanager
def _translate_library_errors(settings: TrainSettings) -> Iterator[None]:
    """Turn a library's errors into an NstError of one line."""
    try:
        yield
    except NstError:
        raise
    except (*NETWORK_ERRORS, OSError, ImportError, SafetensorError) as error:
        if isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
            raise NstError(
                f"{settings.model}: does not support {_argument_name(error)}; set noise.stochastic_depth or noise.dropout to 0 for it"
            ) from None
        raise NstError(f"{settings.model}: cannot be made with these settings ({describe_load_error(error)})") from None


def training_data_config(network: nn.Module, settings: TrainSettings) -> dict[str, Any]:
    """How images are prepared for a network in training: timm's `resolve_model_data_config` with the changes that the settings make.

    Raises NstError for a network that does not take RGB images, and for invalid values in a config.
    """
    try:
        if isinstance(network, TransformersClassifier):
            return check_data_config(image_processors.processor_data_config(network.processor, settings.image_size, settings.crop_pct))
        data_config = check_data_config(dict(resolve_model_data_config(network)))
    except (NstError, *NETWORK_ERRORS) as error:
        raise NstError(f"{settings.model}: {error}") from None
    data_config = _with_side(data_config, settings.image_size)
    if settings.crop_pct:
        data_config["crop_pct"] = settings.crop_pct
    return data_config


def evaluation_data_config(network: nn.Module, settings: TrainSettings) -> dict[str, Any]:
    """Like `training_data_config`, for the images that the trained network is evaluated on and labels.

    Objects look larger in a random crop than in the whole image, so a network trained on crops does better with a larger test size
    (Touvron et al. 2019, "Fixing the train-test resolution discrepancy").
    """
    return _with_side(training_data_config(network, settings), settings.test_size)


def _with_side(data_config: dict[str, Any], side: int | None) -> dict[str, Any]:
    return data_config | {"input_size": (3, side, side)} if side else data_config


@torch.no_grad()
def check_accepts_images(
    network: nn.Module, settings: TrainSettings, data_config: dict[str, Any], classes: int, batch_size: int = 2
) -> None:
    """Raises NstError if the network does not take images of this size, does not return a logit for each class, or ties weights.

    `batch_size` is the number of images in a training forward pass: batch-norm, for one, refuses a single value per channel.
    """
    _check_untied(network, settings.model)
    _check_finite_buffers(network, settings.model)
    network.eval()
    size = data_config["input_size"]
    for side, name in ((size[-1], "image_size"), (settings.test_size, "test_size")):
        if side is None:
            continue
        try:
            output = network(torch.zeros(1, size[0], side, side))
        except NETWORK_ERRORS as error:
            remedy = f"choose another `{name}`, or omit it" if getattr(settings, name) else f"set `{name}` to one that it takes"
            raise NstError(f"image size {side}: not supported by {settings.model} ({describe_load_error(error)}); {remedy}") from None
        try:
            check_logits(output, classes)
        except NstError as error:
            raise NstError(f"{settings.model}: {error}") from None
    _check_training(network, settings, torch.zeros(min(batch_size, 2), *size), classes)


def _check_untied(network: nn.Module, name: str) -> None:
    """Raises NstError for weights that share memory under two names: safetensors does not store these, and their average would differ."""
    owners: dict[int, str] = {}
    for weight, tensor in network.state_dict().items():
        first = owners.setdefault(tensor.untyped_storage().data_ptr(), weight) if tensor.numel() else weight
        if first != weight:
            raise NstError(
                f"{name}: {first} and {weight} share their weights, which safetensors cannot hold; choose another `model`, or untie them"
            )


def _check_finite_buffers(network: nn.Module, name: str) -> None:
    """Raises NstError for a persistent buffer, averaged with the weights, that has values that are not finite, such as a mask of -inf."""
    state = network.state_dict()
    for buffer, tensor in network.named_buffers():
        if buffer in state and tensor.is_floating_point() and not tensor.isfinite().all():
            raise NstError(f"{name}: {buffer} has infinite values, which cannot be averaged; register it with `persistent=False`")


def _check_training(network: nn.Module, settings: TrainSettings, images: Tensor, classes: int) -> None:
    """Run a copy of the network as in training, without side effects on it or the random state. Raises NstError if that fails."""
    trial = copy.deepcopy(network)
    prepare_for_training(trial, settings)
    try:
        with torch.random.fork_rng(devices=[]):
            logits = trial(images)
    except NETWORK_ERRORS as error:
        raise NstError(
            f"{settings.model} cannot be trained on {_format_images(len(images))} of {images.shape[-1]} px at once ({first_line(error)}); "
            "use a larger `batch_size` or `image_size`, fewer processes or a smaller `accumulate`"
        ) from None
    actual = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if actual != (len(images), classes):
        raise NstError(f"{settings.model}: expected logits of shape ({len(images)}, {classes}) in training, found {actual}")
    _check_noised(trial, settings, torch.zeros(2, *images.shape[1:]), classes)


def _check_noised(trial: nn.Module, settings: TrainSettings, images: Tensor, classes: int) -> None:
    """Run a network in training with noise, on two images, since any rows would do for one. Raises NstError if that fails."""
    noise = add_noise(trial, settings.noise, settings.for_pseudo_images.noise, classes, settings.seed)
    noise.prepare_step(0, range(len(images)), ())
    try:
        with torch.random.fork_rng(devices=[]):
            check_row_order(trial, images)
    except NETWORK_ERRORS as error:
        raise NstError(
            f"{settings.model}: stochastic depth or dropout for each image does not work with this network ({first_line(error)}); "
            "set noise.stochastic_depth or noise.dropout to 0 for it"
        ) from None


def _format_images(number: int) -> str:
    return "one image" if number == 1 else f"{number} images"


def save_teacher(network: nn.Module, folder: Path, class_names: list[str], settings: TrainSettings) -> dict[str, SealedFile]:
    """Write config.json and model.safetensors, so that timm, transformers and nst load the folder as it is.

    For a network that timm lacks (`nst_train.small_efficientnet`), config.json names the module to import first as `requires_import`.
    """
    data_config = evaluation_data_config(network, settings)
    if isinstance(network, TransformersClassifier):
        return {name: hash_file(folder / name) for name in save_transformer(network, folder, class_names, data_config)}
    network = network.to(memory_format=torch.contiguous_format)  # safetensors refuses channels-last weights
    save_for_hf(network, str(folder), model_config={"label_names": class_names}, data_config=data_config, safe_serialization=True)
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    for noise in ("num_classes", "drop_rate", "drop_path_rate"):  # transformers passes num_classes itself; a teacher has no noise
        config.get("model_args", {}).pop(noise, None)
    config["pretrained_cfg"].pop("test_input_size", None)
    if config["architecture"] in small_efficientnet.default_cfgs:  # timm and transformers only know it after this import
        config["requires_import"] = small_efficientnet.__name__
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    return {name: hash_file(folder / name) for name in (CONFIG, WEIGHTS)}


def _has_fixed_size(name: str) -> bool:
    if name.startswith((FOLDER, HUB)):
        return False
    config = timm.models.get_pretrained_cfg(name, allow_unregistered=True)
    return bool(config and config.fixed_input_size)


def published_size(name: str) -> int | None:
    """The image side in pixels of a timm network; None for other networks, whose size is only known once they are loaded."""
    config = None if "/" in name or name.startswith(FOLDER) else timm.models.get_pretrained_cfg(name, allow_unregistered=True)
    return config.input_size[-1] if config else None


def check_network_name(name: str, other_names: Sequence[str] = ()) -> None:
    """Raises UsageError for an unknown name, and suggests similar ones from timm and `other_names`."""
    if name.startswith(FOLDER):
        check_folder(name)
    elif "/" in name:
        parse_repository(name)
    elif not timm.is_model(name.split(".")[0]):
        is_folder = Path(name, CONFIG).is_file()
        hint = (
            f"for the folder, write {FOLDER}{name}" if is_folder else _suggestion(name, [*other_names, *timm.list_models()], "list_models")
        )
        raise UsageError(f"{name}: no network of timm and no teacher in the store; {hint}")
    else:
        _check_tag(name)


def _check_tag(name: str) -> None:
    """Raises UsageError for a weights tag (as in `resnet18.a1_in1k`) that timm does not list for the network."""
    try:
        timm.models.get_pretrained_cfg(name, allow_unregistered=True)
    except RuntimeError:
        network = name.split(".")[0]
        tags = [model.partition(".")[2] for model in timm.list_models(f"{network}.*", pretrained=True)]
        raise UsageError(f"{name}: {network} has no weights of that name; expected one of {', '.join(tags)}, or just {network}") from None


def _suggestion(name: str, known: list[str], function: str) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"see timm.{function}()"


def _argument_name(error: TypeError) -> str:
    parts = str(error).split("'")
    return parts[1] if len(parts) > 1 else str(error)
