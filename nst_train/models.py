"""A name to a network with its preprocessing and class names; a trained network to a teacher's folder in timm's Hub format."""

import difflib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from timm.models import save_for_hf
from timm.optim import list_optimizers
from torch import nn

from nst_data.errors import NstError, UsageError
from nst_data.files import hash_file
from nst_data.manifest import Input, SealedFile, json_digest
from nst_data.store import Store
from nst_train.settings import TrainSettings

WEIGHTS, CONFIG = "model.safetensors", "config.json"
_FOLDER, _HUB = "local-dir:", "hf-hub:"


@dataclass(frozen=True)
class Classifier:
    """A network in evaluation mode, never noised, with all that its predictions need."""

    network: nn.Module
    data_config: dict[str, Any]
    class_names: list[str]

    @property
    def parameters(self) -> int:
        """How many weights it has."""
        return count_parameters(self.network)


def count_parameters(network: nn.Module) -> int:
    """How many weights a network has."""
    return sum(weight.numel() for weight in network.parameters())


def check_names(settings: TrainSettings) -> None:
    """Raises UsageError for a network or an optimizer that does not exist, with near names."""
    _check_name(settings.model)
    if settings.optimizer not in list_optimizers():
        hint = _suggestion(settings.optimizer, list_optimizers(), "optim.list_optimizers")
        raise UsageError(f"optimizer {settings.optimizer}: not in timm; {hint}")


def create_network(settings: TrainSettings, classes: int) -> nn.Module:
    """The network to train, with the dropout and stochastic depth of `settings.noise`.

    The initial weights follow torch's seed. Raises NstError for what the network refuses; `check_names` knows the names.
    """
    options: dict[str, Any] = {"num_classes": classes, "drop_rate": settings.noise.dropout}
    if settings.noise.stochastic_depth:
        options["drop_path_rate"] = settings.noise.stochastic_depth
    if settings.image_size and _has_fixed_size(settings.model):
        options["img_size"] = settings.image_size
    try:
        return timm.create_model(settings.model, pretrained=settings.pretrained, **options)  # type: ignore[no-any-return]
    except TypeError as error:
        raise NstError(
            f"{settings.model}: does not take {_argument(error)}; set noise.stochastic_depth or noise.dropout to 0 for it"
        ) from None
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        raise NstError(f"{settings.model}: cannot be made with these settings ({_first_line(error)})") from None


def save_teacher(network: nn.Module, folder: Path, class_names: list[str], settings: TrainSettings) -> dict[str, SealedFile]:
    """Write config.json and model.safetensors, so that timm, transformers and nst load the folder as it is."""
    data_config = dict(resolve_model_data_config(network))
    if settings.image_size:
        data_config["input_size"] = (3, settings.image_size, settings.image_size)
    if settings.crop_pct:
        data_config["crop_pct"] = settings.crop_pct
    save_for_hf(network, str(folder), model_config={"label_names": class_names}, data_config=data_config, safe_serialization=True)
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    for noise in ("num_classes", "drop_rate", "drop_path_rate"):  # transformers passes num_classes itself; noise is no part of a teacher
        config.get("model_args", {}).pop(noise, None)
    config["pretrained_cfg"].pop("test_input_size", None)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    return {name: hash_file(folder / name) for name in (CONFIG, WEIGHTS)}


def load_classifier(name: str, store: Store) -> tuple[Classifier, Input]:
    """A teacher by name: one in the store, local-dir:FOLDER, hf-hub:OWNER/NAME, or a timm name with published weights.

    Returns it with the digest that stands in the lineage of what it labels.
    """
    if is_in_store(name, store):
        version = store.open(name, "teacher")
        classifier = _load(f"{_FOLDER}{version.folder}", version.manifest.class_names)
        return classifier, teacher_input(name, store)
    _check_name(name)
    classifier = _load(name, None)
    weights = _weights_sha256(classifier.network)
    identity = json_digest([weights, sorted((key, str(value)) for key, value in classifier.data_config.items()), classifier.class_names])
    return classifier, Input(ref=name, digest=identity, weights_sha256=weights)


def local_weights(name: str) -> Path | None:
    """The weights file of local-dir:FOLDER; None for other names. Raises UsageError where it is missing."""
    if not name.startswith(_FOLDER):
        return None
    _check_name(name)
    return Path(name.removeprefix(_FOLDER)) / WEIGHTS


def is_in_store(name: str, store: Store) -> bool:
    """Whether a model name means a teacher of the store."""
    return not {":", "/"} & set(name) and ("@" in name or bool(store.versions(name)))


def teacher_input(ref: str, store: Store) -> Input:
    """The lineage entry of a teacher in the store, without loading it."""
    version = store.open(ref, "teacher")
    return Input(ref=version.ref, digest=version.manifest.digest, weights_sha256=version.manifest.files[WEIGHTS].sha256)


def _load(name: str, class_names: list[str] | None) -> Classifier:
    try:
        network = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        raise NstError(f"{name}: expected a network with trained weights; loading failed ({_first_line(error)})") from None
    names = class_names or _class_names(network)
    return Classifier(network.eval(), dict(resolve_model_data_config(network)), names)


def _class_names(network: nn.Module) -> list[str]:
    names = network.pretrained_cfg.get("label_names")  # type: ignore[union-attr, operator]
    if names:
        return list(names)
    subset = infer_imagenet_subset(network)
    if subset:
        return list(ImageNetInfo(subset).label_names())
    return [str(index) for index in range(int(network.num_classes))]  # type: ignore[arg-type]


def _has_fixed_size(name: str) -> bool:
    if name.startswith((_FOLDER, _HUB)):
        return False
    config = timm.models.get_pretrained_cfg(name, allow_unregistered=True)
    return bool(config and config.fixed_input_size)


def _check_name(name: str) -> None:
    """Raises UsageError for a name that means nothing, with near ones."""
    if name.startswith(_FOLDER):
        folder = Path(name.removeprefix(_FOLDER))
        for file in (CONFIG, WEIGHTS):
            if not (folder / file).is_file():
                raise UsageError(f"{name}: expected a folder with {CONFIG} and {WEIGHTS} (timm's Hub format); {folder / file} is missing")
        return
    if name.startswith(_HUB):
        return
    if not timm.is_model(name.split(".")[0]):
        raise UsageError(f"{name}: no network of timm and no teacher in the store; {_suggestion(name, timm.list_models(), 'list_models')}")


def _suggestion(name: str, known: list[str], function: str) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"see timm.{function}()"


def _weights_sha256(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, tensor in sorted(network.state_dict().items()):
        digest.update(key.encode())
        digest.update(
            tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else str(tensor.item()).encode()
        )
    return digest.hexdigest()


def _argument(error: TypeError) -> str:
    parts = str(error).split("'")
    return parts[1] if len(parts) > 1 else str(error)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
