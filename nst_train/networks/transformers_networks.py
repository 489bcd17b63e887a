"""Networks in transformers' format as students: made, described for the input pipeline, and saved as teachers."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nst_data.errors import NstError, first_line
from nst_train.networks.heads import zero_heads
from nst_train.networks.model_config import PROCESSOR
from nst_train.networks.probe import FAILURES
from nst_train.networks.weights import CONFIG, differences
from nst_train.settings import TrainSettings

_DEFAULT_SIZE_PX = 224
_INTERPOLATION = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers, which processors store
_HALF = (0.5, 0.5, 0.5)
_SQUASHED_BY_CONVNEXT_PX = 384
_OF_PROCESSOR = (
    *("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_flip_channel_order", "resample", "crop_pct"),
    *("rescale_factor", "rescale_offset", "image_mean", "image_std", "include_top"),
)


class Logits(nn.Module):
    """A transformers classifier that answers with its logits alone."""

    def __init__(self, network: Any, processor: dict[str, Any] | None = None) -> None:  # noqa: ANN401 - transformers' are not typed
        super().__init__()
        self.network, self.processor = network, processor or {}

    def forward(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        """Logits of a batch."""
        logits: Tensor = self.network(pixel_values=pixels).logits
        return logits


def load_trained(kind: Any, folder: Path, what: str) -> Any:  # noqa: ANN401 - transformers' are not typed
    """The network of an auto class of transformers that a folder holds, on the CPU in float32, in evaluation mode; no code of it is run.

    Raises ValueError, which says what it is not, where weights are missing or of another shape: transformers would give them random values.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    network, info = kind.from_pretrained(
        *(folder,),
        **{"use_safetensors": True, "trust_remote_code": False, "dtype": torch.float32},
        **{"output_loading_info": True, "ignore_mismatched_sizes": True},  # refused here, by name
    )
    missing, reshaped = sorted(info["missing_keys"]), {key: shapes for key, *shapes in sorted(info["mismatched_keys"])}
    if missing or reshaped:
        raise ValueError(f"not a trained {what}, {differences(missing, sorted(info['unexpected_keys']), reshaped)}")
    return network.eval()


def create_transformer(folder: Path, settings: TrainSettings, classes: int) -> Logits:
    """The classifier that a folder's config.json describes, with random weights or, `pretrained`, the folder's.

    Only a last layer for other classes is made anew. Raises NstError where other weights are missing or of another shape.
    """
    from transformers import AutoConfig, AutoModelForImageClassification
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    _settle(config, settings, classes)
    if not settings.pretrained:
        made = Logits(AutoModelForImageClassification.from_config(config, trust_remote_code=False), _processor(folder))
        return _begun(made, settings, classes)
    network, info = AutoModelForImageClassification.from_pretrained(
        *(folder,),
        **{"config": config, "use_safetensors": True, "trust_remote_code": False, "dtype": torch.float32},
        **{"ignore_mismatched_sizes": True, "output_loading_info": True},
    )
    missing = sorted(name for name in info["missing_keys"] if "classifier" not in name)
    reshaped = {name: shapes for name, *shapes in sorted(info["mismatched_keys"]) if "classifier" not in name}
    if missing or reshaped:
        wrong = differences(missing, sorted(info["unexpected_keys"]), reshaped)
        raise NstError(f"{settings.model}: its weights do not fit these settings ({wrong}); remove `image_size` or `pretrained`")
    is_published = not info["missing_keys"] and not info["mismatched_keys"]
    made = Logits(network, _processor(folder))
    return made if is_published else _begun(made, settings, classes)


def outline_of_kind(content: dict[str, Any], settings: TrainSettings, classes: int) -> Logits:
    """A classifier of the `model_type` that a config.json names, in that type's own sizes, whatever the config's numbers are.

    Raises NstError for a type that transformers does not have.
    """
    from transformers import AutoConfig, AutoModelForImageClassification

    try:
        config = AutoConfig.for_model(str(content.get("model_type")))
        named = content.get("architectures")
        config.architectures = [str(one) for one in named] if isinstance(named, list) else []
        _settle(config, settings, classes)
        return Logits(AutoModelForImageClassification.from_config(config, trust_remote_code=False))
    except (ValueError, TypeError) as error:
        raise NstError(f"{settings.model}: not an image classifier of transformers ({first_line(error)})") from None


def _settle(config: Any, settings: TrainSettings, classes: int) -> None:  # noqa: ANN401 - transformers' are not typed
    if config.problem_type is not None:
        config.problem_type = "single_label_classification"  # as it is trained, whatever it was before
    config.num_labels = classes
    if settings.image_size and hasattr(config, "image_size"):
        config.image_size = settings.image_size
    if hasattr(config, "drop_path_rate"):
        config.drop_path_rate = max(settings.noise.stochastic_depth, settings.of_pseudo.noise.stochastic_depth)


def _begun(network: Logits, settings: TrainSettings, classes: int) -> Logits:
    """With a new last layer as `head_init` has it."""
    if settings.head_init == "zero":
        zero_heads(network, classes, settings.model)
    return network


def data_config_of(network: Logits, settings: TrainSettings) -> dict[str, Any]:
    """What timm's `resolve_model_data_config` gives for its own: size, crop, interpolation, mean and std, as the image processor has them.

    Raises NstError for a processor that does what these cannot say.
    """
    stored = network.processor
    _check_expressible(stored)
    size, crop = _sides(stored.get("size")), _sides(stored.get("crop_size") if stored.get("do_center_crop", True) else None)
    resized = _resized_to(stored, size)
    own = crop.get("height") or crop.get("shortest_edge") or size.get("height") or size.get("shortest_edge")
    mean, std = _normalization(stored)
    return {
        "input_size": (3, *2 * (settings.image_size or own or _DEFAULT_SIZE_PX,)),
        "interpolation": _INTERPOLATION.get(stored.get("resample", 2), "bicubic"),
        "mean": mean,
        "std": std,
        "crop_pct": settings.crop_pct or (_crop_pct(own, resized) if own and resized else 1.0),
        "crop_mode": "squash" if _squashes(stored, size) else "center",
    }


def _check_expressible(stored: dict[str, Any]) -> None:
    """Raises NstError for steps of a processor that timm's evaluation transform does not have."""
    kind = str(stored.get("image_processor_type") or "its image processor")
    for found, what in (
        (stored.get("do_flip_channel_order"), "reads channels as BGR (`do_flip_channel_order`)"),
        (not stored.get("do_resize", True), "does not resize images (`do_resize`)"),
        (kind.startswith("Perceiver"), "crops images before it resizes them"),
    ):
        if found:
            raise NstError(
                f"{kind} {what}; training, probes and features expect RGB images, resized and cropped. "
                "Choose another model; labeling with this one works as it is"
            )


def _sides(size: Any) -> dict[str, int]:  # noqa: ANN401 - anything that JSON can hold
    return {"shortest_edge": size} if isinstance(size, int) else {name: side for name, side in (size or {}).items() if side}


def _squashes(stored: dict[str, Any], size: dict[str, int]) -> bool:
    """Whether an image is resized to a square whatever its shape. ConvNeXT's processor does so from 384 pixels on."""
    is_large = _is_of(stored, "ConvNext") and size.get("shortest_edge", 0) >= _SQUASHED_BY_CONVNEXT_PX
    return is_large or ("height" in size and "width" in size)


def _resized_to(stored: dict[str, Any], size: dict[str, int]) -> int | None:
    """The side in pixels that an image has before its middle is cut out."""
    side = size.get("height") or size.get("shortest_edge")
    if side is None or _squashes(stored, size):
        return side
    if _is_of(stored, "Levit"):
        return int(256 / 224 * side)  # as its processor has it
    return int(side / stored["crop_pct"]) if stored.get("crop_pct") else side


def _is_of(stored: dict[str, Any], kind: str) -> bool:
    return str(stored.get("image_processor_type", "")).startswith(kind)


def _crop_pct(side: int, resized: int) -> float:
    """The share by which timm, which rounds down, resizes to just this side."""
    share = side / resized
    return share if math.floor(side / share) == resized else math.nextafter(share, 0)


def _normalization(stored: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of RGB values from 0 to 1, whatever scale the processor computes in."""
    is_scaled, is_normalized = stored.get("do_rescale", True), stored.get("do_normalize", True)
    scale = 255 * (stored.get("rescale_factor") or 1 / 255) if is_scaled else 255.0
    offset = float(bool(is_scaled and stored.get("rescale_offset")))
    mean = tuple(stored.get("image_mean") or _HALF) if is_normalized else (0.0,) * 3
    std = tuple(stored.get("image_std") or _HALF) if is_normalized else (1.0,) * 3
    twice = std if stored.get("include_top") else (1.0,) * 3  # EfficientNet's divides once more
    if scale == 1 and not offset:
        return mean, tuple(one * again for one, again in zip(std, twice, strict=True))
    return tuple((one + offset) / scale for one in mean), tuple(one * again / scale for one, again in zip(std, twice, strict=True))


def save_transformer(network: Logits, folder: Path, class_names: list[str], data_config: dict[str, Any]) -> list[str]:
    """Write config.json, model.safetensors and preprocessor_config.json; the names of these files.

    The processor resizes and crops the middle as timm's evaluation transform does: the shorter side, or to a square whatever the shape.
    """
    from transformers import BitImageProcessor

    side = data_config["input_size"][-1]
    resized = int(side / data_config["crop_pct"])
    squashes = data_config["crop_mode"] == "squash"
    network.network.config.id2label = dict(enumerate(class_names))
    network.network.config.label2id = {name: index for index, name in enumerate(class_names)}
    network.network.save_pretrained(folder)
    BitImageProcessor(
        size={"height": resized, "width": resized} if squashes else {"shortest_edge": resized},
        crop_size={"height": side, "width": side},
        image_mean=list(data_config["mean"]),
        image_std=list(data_config["std"]),
        resample=next(number for number, name in _INTERPOLATION.items() if name == data_config["interpolation"]),
    ).save_pretrained(folder)
    return [CONFIG, "model.safetensors", PROCESSOR]


def _processor(folder: Path) -> dict[str, Any]:
    """What a folder's image processor does to images, with the defaults of its kind; empty where there is none."""
    path = folder / PROCESSOR
    if not path.is_file():
        return {}
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    except (*FAILURES, OSError, ImportError):  # of a kind that transformers does not know
        stored: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return stored
    own = {name: getattr(processor, name, None) for name in _OF_PROCESSOR}  # None is off, and missing in its JSON
    sizes = {name: json.loads(processor.to_json_string()).get(name) for name in ("size", "crop_size")}
    return own | sizes | {"image_processor_type": type(processor).__name__}
