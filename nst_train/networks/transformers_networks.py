"""Networks in transformers' format: created as students, and saved as teachers."""

import copy
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Float
from torch import Tensor, nn

from nst_data.errors import NstError, first_line
from nst_train.networks.heads import zero_heads
from nst_train.networks.image_processors import read_processor, write_processor
from nst_train.networks.probe import NETWORK_ERRORS
from nst_train.networks.weights import CONFIG, PROCESSOR_FILE, describe_differences
from nst_train.settings import TrainSettings

_LAST_DROPOUT = "classifier_dropout_prob"
"""Off in training, which has `noise.dropout` in its place: MobileNets come with what was the share to keep in TensorFlow, 0.999 and 0.8."""


class TransformersClassifier(nn.Module):
    """A transformers classifier that returns only its logits."""

    def __init__(self, network: Any, processor: dict[str, Any] | None = None) -> None:  # noqa: ANN401 - transformers' are not typed
        super().__init__()
        self.network, self.processor = network, processor or {}

    def forward(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        """Logits of a batch."""
        logits: Tensor = self.network(pixel_values=pixels).logits
        return logits

    def last_layers(self) -> list[nn.Module]:
        """The layers whose weights have a shape that depends on the number of classes: one, or of a distilled network two."""
        config = copy.deepcopy(self.network.config)
        config.num_labels += 1
        other = dict(_create_outline(type(self.network), config).named_parameters())

        def differs(place: str, layer: nn.Module) -> bool:
            weights = {f"{place}.{name}": weight for name, weight in layer.named_parameters(recurse=False)}
            return any(name in other and other[name].shape != weight.shape for name, weight in weights.items())

        return [layer for place, layer in self.network.named_modules() if differs(place, layer)]


def _create_outline(kind: Any, config: Any) -> nn.Module:  # noqa: ANN401 - transformers' are not typed
    """A transformers network without memory for its weights, unless its constructor needs their values."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return kind(config)  # type: ignore[no-any-return]
        except (RuntimeError, NotImplementedError):
            with torch.device("cpu"):
                return kind(config)  # type: ignore[no-any-return]


def load_trained(kind: Any, folder: Path, description: str) -> Any:  # noqa: ANN401 - transformers' are not typed
    """Load a network of a transformers auto class from a folder, on the CPU in float32 and eval mode, without running code from it.

    Raises ValueError if weights are missing or have another shape, which transformers would initialize at random; `description` names the
    network.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    network, info = kind.from_pretrained(
        *(folder,),
        **{"use_safetensors": True, "trust_remote_code": False, "dtype": torch.float32},
        **{"output_loading_info": True, "ignore_mismatched_sizes": True},  # refused below, with their names
    )
    missing, reshaped = sorted(info["missing_keys"]), {key: shapes for key, *shapes in sorted(info["mismatched_keys"])}
    if missing or reshaped:
        raise ValueError(f"not a trained {description}, {describe_differences(missing, sorted(info['unexpected_keys']), reshaped)}")
    return network.eval()


def create_transformer(folder: Path, settings: TrainSettings, classes: int) -> TransformersClassifier:
    """Create the classifier that a folder's config.json describes, with random weights or, with `pretrained`, the folder's.

    Only a last layer for other classes is initialized again. Raises NstError if other weights are missing or have another shape.
    """
    from transformers import AutoConfig, AutoModelForImageClassification
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    config, processor = AutoConfig.from_pretrained(folder, trust_remote_code=False), read_processor(settings.model, folder)
    _apply_settings(config, settings, classes)
    if not settings.pretrained:
        classifier = TransformersClassifier(AutoModelForImageClassification.from_config(config, trust_remote_code=False), processor)
        return _init_head(classifier, settings, classes)
    network, info = AutoModelForImageClassification.from_pretrained(
        *(folder,),
        **{"config": config, "use_safetensors": True, "trust_remote_code": False, "dtype": torch.float32},
        **{"ignore_mismatched_sizes": True, "output_loading_info": True},
    )
    classifier = TransformersClassifier(network, processor)
    last = [id(weight) for layer in classifier.last_layers() for weight in layer.parameters(recurse=False)]
    renewed = {name for name, weight in network.state_dict(keep_vars=True).items() if id(weight) in last}
    missing = sorted(name for name in info["missing_keys"] if name not in renewed)
    reshaped = {name: shapes for name, *shapes in sorted(info["mismatched_keys"]) if name not in renewed}
    if missing or reshaped:
        wrong = describe_differences(missing, sorted(info["unexpected_keys"]), reshaped)
        raise NstError(f"{settings.model}: its weights do not fit these settings ({wrong}); remove `image_size` or `pretrained`")
    is_published = not info["missing_keys"] and not info["mismatched_keys"]
    return classifier if is_published else _init_head(classifier, settings, classes)


def create_outline_of_type(content: dict[str, Any], settings: TrainSettings, classes: int) -> TransformersClassifier:
    """A classifier of the `model_type` in a config.json, in that type's default sizes, whatever the numbers in the config.

    Raises NstError for a type that is not an image classifier of transformers.
    """
    from transformers import AutoConfig, AutoModelForImageClassification

    try:
        config = AutoConfig.for_model(str(content.get("model_type")))
        architectures = content.get("architectures")
        config.architectures = [str(architecture) for architecture in architectures] if isinstance(architectures, list) else []
        _apply_settings(config, settings, classes)
        return TransformersClassifier(AutoModelForImageClassification.from_config(config, trust_remote_code=False))
    except NstError:
        raise
    except (ValueError, TypeError) as error:
        raise NstError(f"{settings.model}: not an image classifier of transformers ({first_line(error)})") from None


def has_last_dropout(content: dict[str, Any]) -> bool:
    """Whether the network that a config.json describes has dropout of its own before the last layer, where that of `noise` is."""
    from transformers import AutoConfig

    try:
        default = getattr(AutoConfig.for_model(str(content.get("model_type"))), _LAST_DROPOUT, 0)
    except (*NETWORK_ERRORS, ImportError):  # training will refuse it
        return False
    return bool(content.get(_LAST_DROPOUT, default))


def _apply_settings(config: Any, settings: TrainSettings, classes: int) -> None:  # noqa: ANN401 - transformers' are not typed
    if config.problem_type is not None:
        config.problem_type = "single_label_classification"  # it is trained as one, whatever it was before
    config.num_labels = classes
    if getattr(config, _LAST_DROPOUT, 0):
        setattr(config, _LAST_DROPOUT, 0.0)
    if settings.image_size and hasattr(config, "image_size"):
        try:
            config.image_size = settings.image_size
        except StrictDataclassError:  # Hiera's is a list of height and width
            config.image_size = [settings.image_size] * 2
    if not hasattr(config, "drop_path_rate"):
        return
    rate, stages = max(settings.noise.stochastic_depth, settings.for_pseudo_images.noise.stochastic_depth), config.drop_path_rate
    if not isinstance(stages, list | tuple):
        try:
            config.drop_path_rate = rate
        except StrictDataclassError:  # LeViT's is an int: it has no DropPath, so `add_noise` refuses stochastic depth
            config.drop_path_rate = 0
    elif rate:  # CvT gives its blocks rates other than those asked for
        raise NstError(f"{settings.model}: has a rate of stochastic depth for each stage, not one; set noise.stochastic_depth to 0")
    else:
        config.drop_path_rate = [0.0] * len(stages)


def _init_head(network: TransformersClassifier, settings: TrainSettings, classes: int) -> TransformersClassifier:
    """Initialize a new last layer as `head_init` says."""
    if settings.head_init == "zero":
        zero_heads(network, classes, settings.model)
    return network


def save_transformer(network: TransformersClassifier, folder: Path, class_names: list[str], data_config: dict[str, Any]) -> list[str]:
    """Write config.json, model.safetensors and preprocessor_config.json, and return the names of these files."""
    network.network.config.id2label = dict(enumerate(class_names))
    network.network.config.label2id = {name: index for index, name in enumerate(class_names)}
    network.network.save_pretrained(folder)
    write_processor(folder, data_config)
    return [CONFIG, "model.safetensors", PROCESSOR_FILE]
