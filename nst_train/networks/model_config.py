"""Reading a model's config.json, which is not trusted: it is checked before anything is created from its numbers and names."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import timm

from nst_data.errors import NstError, first_line
from nst_train.networks.probe import NETWORK_ERRORS
from nst_train.networks.weights import COMBINED_PROCESSOR_FILE, CONFIG, PROCESSOR_FILE, measure_tensors
from nst_train.transforms.preprocessing import LARGEST_SIDE_PX

_SIDES = ("img_size", "input_size")  # in pixels; need not show in the shape of any tensor
_DEPTHS = ("layers", "depths", "depth", "num_layers", "num_hidden_layers", "num_blocks")
_WIDTHS = ("hidden_size", "hidden_sizes", "intermediate_size", "embed_dim")  # of transformers; many others do not show in the weights
_IMAGE_TEXT_WIDTHS = ("hidden_size", "intermediate_size", "vocab_size")  # of an image-text model
ADAPTER = "adapter_config.json"
_KERNEL_KEYS = re.compile(r"_?(attn|experts)_implementation(_internal)?")  # a value with a slash names code on the Hub
_OTHER_WEIGHT_KEYS = ("backbone", "use_timm_backbone", "use_pretrained_backbone", "quantization_config")
# names of timm arguments that may refer to files
_FILE_ARGUMENTS = re.compile(r"pretrained|checkpoint|(?<!drop_)path|file|url|hub|_dir|custom_load|state_dict")
_OTHER_PROBLEM_TYPES = ("regression", "multi_label_classification")


def read_config(name: str, folder: Path) -> dict[str, Any]:
    """Read the config.json in a model's folder. Raises NstError if it is missing or not a JSON object."""
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise NstError(f"{name}: not a timm or transformers {CONFIG} ({first_line(error)})") from None
    if not isinstance(config, dict):
        raise NstError(f"{name}: not a timm or transformers {CONFIG} (a JSON {type(config).__name__})")
    return config


def is_timm_config(config: dict[str, Any]) -> bool:
    """Whether a config is timm's rather than transformers'."""
    return "pretrained_cfg" in config or "architecture" in config


def is_image_text(config: dict[str, Any]) -> bool:
    """Whether a config.json is that of a transformers model for zero-shot image classification, rather than of a classifier made of one."""
    architectures = config.get("architectures") or []
    return (class_name := _image_text_class(config)) is not None and (not architectures or class_name in architectures)


def _image_text_class(config: dict[str, Any]) -> str | None:
    """The class of the whole model where a config.json is of a kind of image-text model, whether or not it is a classifier made of one."""
    kind = config.get("model_type")
    if not isinstance(kind, str):  # such as timm's: transformers takes seconds to import
        return None
    from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES as KNOWN

    class_name: str | None = KNOWN.get(kind)
    return class_name


def check_config(name: str, folder: Path, config: dict[str, Any]) -> None:
    """Check a config before a network is created from it, whose numbers might ask for more memory than there is.

    Raises NstError, in one line that begins with `name`, for numbers that do not fit the weights, for an architecture that timm does not
    know, for references to code, and for values of the wrong type.
    """
    classes = _check_timm_config(name, config) if is_timm_config(config) else _check_transformers_config(name, folder, config)
    tensors, largest = measure_tensors(name, folder)
    for place, number in classes.items():
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise NstError(f"{name}: {CONFIG}: {place}: expected a positive number of classes, found {_format_value(number)}")
        if number > largest:
            raise NstError(
                f"{name}: {CONFIG}: {place} is {number:,}, but no tensor of its weights has more than {largest:,} rows or columns"
            )
    if len(set(classes.values())) > 1:  # the libraries would initialize the last layer at random
        actual = ", ".join(f"{place} {number:,}" for place, number in classes.items())
        raise NstError(f"{name}: {CONFIG}: expected one number of classes, found {actual}")
    _check_numbers(name, config, tensors, largest)
    if not is_timm_config(config):
        _check_types(name, folder, config)


def _check_numbers(name: str, config: dict[str, Any], tensors: int, largest: int) -> None:
    """Raises NstError for a layer that is wider than any tensor, and for more layers than there are tensors."""
    if is_timm_config(config):
        checked_values = {f"model_args.{key}": value for key, value in config.get("model_args", {}).items() if key not in _SIDES}
    else:
        checked_values = {key: config[key] for key in (*_WIDTHS, *_DEPTHS) if key in config}
        is_image_side = _image_text_class(config) is not None and not is_image_text(config)  # a classifier, for which no text side is made
        side_names = ["vision_config"] if is_image_side else ["text_config", "vision_config"]
        sides = {side: config[side] for side in side_names if isinstance(config.get(side), dict)}
        checked_values |= {
            f"{side}.{key}": of_side[key] for side, of_side in sides.items() for key in (*_IMAGE_TEXT_WIDTHS, *_DEPTHS) if key in of_side
        }
    for place, value in checked_values.items():
        numbers = _flatten_numbers(value)
        number, limit = max(numbers, default=0), max(tensors, largest)
        if place.rpartition(".")[2] in _DEPTHS:
            number, limit = sum(numbers), tensors
        if not number <= limit:  # refuses NaN too
            raise NstError(
                f"{name}: {CONFIG}: {place}: expected numbers that its {tensors:,} tensors of up to {largest:,} rows or columns can have, "
                f"found {_format_value(value)}"
            )


def _check_types(name: str, folder: Path, config: dict[str, Any]) -> None:
    """Raises NstError for a value whose type transformers refuses. Its other errors are reported when the network is created."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig
    from transformers.utils import logging

    logging.set_verbosity_error()  # it warns of numbers for texts, which a classifier of images never uses
    kind = config.get("model_type", "")
    if not isinstance(kind, str):
        raise NstError(f"{name}: {CONFIG}: model_type: expected the name of a kind of network, found {_format_value(kind)}")
    try:
        with suppress(*NETWORK_ERRORS, OSError, ImportError):
            AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except StrictDataclassError as error:
        text = str(error)
        field = re.search(r"for field '(\w+)'", text)
        expected = re.search(r"any type in \((.+?)\)\. Errors", text) or re.search(r"expected (.+?), got", text)
        if not field or not expected:
            raise NstError(f"{name}: {CONFIG}: {first_line(error.__cause__ or error)}") from None
        types = re.sub(r"<class '(\w+)'>", r"\1", expected[1])
        actual = next((value for key, value in _iterate_values(config) if key == field[1]), None)
        raise NstError(f"{name}: {CONFIG}: {field[1]}: expected {types}, found {_format_value(actual)}") from None


def _flatten_numbers(value: Any) -> list[int | float]:  # noqa: ANN401 - anything that JSON can hold
    if isinstance(value, list | dict):
        return [number for item in (value.values() if isinstance(value, dict) else value) for number in _flatten_numbers(item)]
    return [value] if isinstance(value, int | float) else []


def _check_timm_config(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Check a timm config, and return each number of classes in it by its place."""
    stored, arguments = config.get("pretrained_cfg", config), config.get("model_args", {})
    for place, value in (("pretrained_cfg", stored), ("model_args", arguments)):
        if not isinstance(value, dict):
            raise NstError(f"{name}: {CONFIG}: {place}: expected an object, found {_format_value(value)}")
    for key, value in arguments.items():
        _check_argument(name, key, value)
    size = stored.get("input_size", [3, 1, 1])
    if not isinstance(size, list) or len(size) != 3 or not all(isinstance(length, int) for length in size):
        raise NstError(f"{name}: {CONFIG}: input_size: expected channels, height and width, found {_format_value(size)}")
    architecture = config.get("architecture") or stored.get("architecture")
    if not isinstance(architecture, str):
        raise NstError(f"{name}: {CONFIG}: architecture: expected the name of a timm network, found {_format_value(architecture)}")
    if not timm.is_model(architecture):
        raise NstError(
            f"{name}: {architecture[:80]} is not a timm network; if it is your own, load it from the program that registers it "
            "(nst_train.networks.own_networks.register_network)"
        )
    places = {"num_classes": config, "pretrained_cfg.num_classes": {} if "num_classes" in config else stored}
    places["model_args.num_classes"] = arguments
    return {place: holder["num_classes"] for place, holder in places.items() if "num_classes" in holder}


def _check_transformers_config(name: str, folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    _check_self_contained(name, folder, config)
    channels = config.get("num_channels", 3)
    if channels != 3:
        raise NstError(f"{name}: expected a network for RGB images (3 channels); this one has num_channels {_format_value(channels)}")
    _check_processor(name, folder)
    classes = {"num_labels": config["num_labels"]} if "num_labels" in config else {}
    names = config.get("id2label")
    if names is None:
        return classes
    if not isinstance(names, dict) or sorted(map(str, names)) != sorted(map(str, range(len(names)))):
        expected = f"a name for each of the classes 0 to {len(names) - 1}" if isinstance(names, dict) else "a name for each class"
        raise NstError(f"{name}: {CONFIG}: id2label: expected {expected}, found {_format_value(names)}")
    return {**classes, "id2label": len(names)}


def _check_argument(name: str, key: str, value: Any) -> None:  # noqa: ANN401 - anything that JSON can hold
    """Raises NstError for a timm model argument that could name a file or URL: only numbers and plain words pass."""
    for inner_key, text in _iterate_values(value, key):
        if not isinstance(text, str) or (
            re.fullmatch(r"\w*", text) and not _FILE_ARGUMENTS.search(key) and not _FILE_ARGUMENTS.search(inner_key)
        ):
            continue
        raise NstError(
            f"{name}: {CONFIG}: model_args.{key}: expected numbers and plain words, found {_format_value(value)}; no files: remove it"
        )


def _check_self_contained(name: str, folder: Path, config: dict[str, Any]) -> None:
    """Raises NstError for a transformers config that would fetch code or read weights from outside the folder."""
    if (folder / ADAPTER).exists():
        raise NstError(
            f"{name}: {ADAPTER} refers to another model's weights, which nst does not download; merge them and save the whole model"
        )
    for key, value in _iterate_values(config):
        if _KERNEL_KEYS.fullmatch(key):
            if references := [text for _, text in _iterate_values(value) if isinstance(text, str) and "/" in text]:
                raise NstError(
                    f"{name}: {CONFIG}: {key} {references[0]} refers to code on the Hub, which nst does not run; remove it from {CONFIG}"
                )
        elif key in _OTHER_WEIGHT_KEYS and value:
            raise NstError(f"{name}: {CONFIG}: {key}: expected a network with only its own weights, found {_format_value(value)}")
        elif key == "transformers_weights" and not str(value).endswith(".safetensors"):
            raise NstError(f"{name}: {CONFIG}: {key}: expected a file in safetensors, found {_format_value(value)}")
        elif key == "model_type" and str(value).startswith("timm"):
            raise NstError(f"{name}: {CONFIG}: model_type {value}: expected `architecture`, `pretrained_cfg` and weights of timm")


def _iterate_values(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - anything that JSON can hold
    """Yield a value and everything nested in it, each with its key; items of a list have none."""
    remaining = [(key, value)]
    while remaining:
        key, current = remaining.pop()
        yield key, current
        if isinstance(current, dict | list):
            remaining += current.items() if isinstance(current, dict) else [("", item) for item in current]


def _check_processor(name: str, folder: Path) -> None:
    """Raises NstError for an image processor with a size that an image cannot be resized to."""
    for file in (PROCESSOR_FILE, COMBINED_PROCESSOR_FILE):
        try:
            stored = json.loads((folder / file).read_text("utf-8"))
        except (OSError, ValueError, RecursionError):  # transformers reports it when it is loaded
            continue
        if file == COMBINED_PROCESSOR_FILE:
            stored = stored.get("image_processor") if isinstance(stored, dict) else None
        _check_sizes(name, file, stored)


def _check_sizes(name: str, file: str, stored: Any) -> None:  # noqa: ANN401 - anything that JSON can hold
    sizes = [stored.get(key) for key in ("size", "crop_size", "pad_size")] if isinstance(stored, dict) else []
    for size in sizes:
        for side in size.values() if isinstance(size, dict) else [size]:
            if isinstance(side, int | float) and not 0 < side <= LARGEST_SIDE_PX:
                raise NstError(f"{name}: {file}: expected a side of 1 to {LARGEST_SIDE_PX} pixels, found {side}")


def check_is_classifier(name: str, config: Any) -> None:  # noqa: ANN401 - transformers' are not typed
    """Raises NstError for a network whose outputs are not mutually exclusive classes: their softmax would be meaningless."""
    if config.problem_type in _OTHER_PROBLEM_TYPES:
        raise NstError(f"{name}: expected a single-label classifier, found problem_type {config.problem_type}")


def _format_value(value: Any) -> str:  # noqa: ANN401 - anything that JSON can hold
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
