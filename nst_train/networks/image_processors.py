"""The image processor of a transformers network as the timm `data_config` by which training, probes and features prepare images."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import UInt8
from torch import Tensor

from nst_data.errors import NstError, first_line
from nst_train.networks.model_config import check_config, is_timm_config, read_config
from nst_train.networks.probe import NETWORK_ERRORS
from nst_train.networks.weights import COMBINED_PROCESSOR_FILE, FOLDER, PROCESSOR_FILE, download
from nst_train.settings import TrainSettings
from nst_train.transforms.preprocessing import TimmPreprocessing, to_pillow

_DEFAULT_SIZE_PX = 224
_INTERPOLATION = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers, which processors store
_HALF = (0.5, 0.5, 0.5)
_SQUASHED_BY_CONVNEXT_PX = 384
_MAX_SHOWN = 120  # characters of a transformers error, which may list all known types
_READ_FIELDS = (
    *("do_center_crop", "do_rescale", "do_normalize", "resample", "crop_pct"),
    *("rescale_factor", "rescale_offset", "image_mean", "image_std", "include_top"),
)


def read_processor(name: str, folder: Path) -> dict[str, Any]:
    """Settings of the image processor in a network's folder, with the defaults of its type; if there is none, the size of its config.json.

    Raises NstError, in one line that begins with `name`, if training cannot do the same, which is tried on one image.
    """
    if not any((folder / file).is_file() for file in (PROCESSOR_FILE, COMBINED_PROCESSOR_FILE)):
        return _sized_by_config(folder)
    from transformers import AutoImageProcessor
    from transformers.utils import logging

    logging.set_verbosity_error()
    try:
        processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
        sizes = json.loads(processor.to_json_string())
        stored = {key: getattr(processor, key, None) for key in _READ_FIELDS} | {key: sizes.get(key) for key in ("size", "crop_size")}
        stored["image_processor_type"] = type(processor).__name__
        with torch.device("cpu"):  # even while the outline of a network is created on the meta device
            is_reproducible = _is_reproducible(processor, stored)
    except (NstError, *NETWORK_ERRORS, OSError, ImportError) as error:
        raise NstError(
            f"{name}: its image processor cannot be used ({first_line(error)[:_MAX_SHOWN]}); correct its {PROCESSOR_FILE}"
        ) from None
    if not is_reproducible:
        raise NstError(
            f"{name}: its {stored['image_processor_type']} does more to images than training, probes and features can, which resize, crop "
            "the middle and normalize RGB (not BGR); choose another model, or only label with this one"
        )
    return stored


def _sized_by_config(folder: Path) -> dict[str, Any]:
    """The image size in a network's config.json, or that of its type, as a processor's center crop; empty if it has none."""
    from transformers import AutoConfig

    try:
        size: Any = getattr(AutoConfig.from_pretrained(folder, trust_remote_code=False), "image_size", None)
    except (*NETWORK_ERRORS, StrictDataclassError, OSError, ImportError):  # creating the network says what is wrong
        return {}
    sides = size if isinstance(size, list | tuple) else [size]
    is_square = len(set(sides)) == 1 and isinstance(sides[0], int)
    return {"crop_size": sides[0]} if is_square else {}


def _is_reproducible(processor: Any, stored: dict[str, Any]) -> bool:  # noqa: ANN401 - transformers' are not typed
    """Whether training prepares an image as the processor does, up to a shift by one pixel, since they round differently."""
    image = _gradient_image()
    preprocessing = TimmPreprocessing.from_data_config(processor_data_config(stored))
    actual = preprocessing.finish(preprocessing.prepare(image)[None])[0]
    expected: Tensor = processor(images=to_pillow(image), return_tensors="pt")["pixel_values"][0]
    return expected.shape == actual.shape and bool((actual - expected).abs().mean() <= (0.02 + 2 / expected.shape[-1]) * expected.std())


def _gradient_image() -> UInt8[Tensor, "3 160 240"]:
    """A wide image whose colors show where each pixel ends up: red grows to the right, green downward, blue to the left."""
    right, down = (torch.arange(240) * 255 // 239).expand(160, -1), (torch.arange(160) * 255 // 159)[:, None].expand(-1, 240)
    return torch.stack([right, down, 255 - right]).to(torch.uint8)


def processor_data_config(stored: dict[str, Any], image_size: int | None = None, crop_pct: float | None = None) -> dict[str, Any]:
    """A processor's size, crop, interpolation, mean and std, in the form of timm's `resolve_model_data_config`."""
    size, crop = _sides(stored.get("size")), _sides(stored.get("crop_size") if stored.get("do_center_crop", True) else None)
    resized = _resized_side(stored, size)
    side = crop.get("height") or crop.get("shortest_edge") or size.get("height") or size.get("shortest_edge")
    mean, std = _normalization(stored)
    return {
        "input_size": (3, *2 * (image_size or side or _DEFAULT_SIZE_PX,)),
        "interpolation": _INTERPOLATION.get(stored.get("resample", 2), "bicubic"),
        "mean": mean,
        "std": std,
        "crop_pct": crop_pct or (_crop_pct(side, resized, stored.get("crop_pct")) if side and resized else 1.0),
        "crop_mode": "squash" if _is_squashed(stored, size) else "center",
    }


def _earlier_data_config(stored: dict[str, Any], image_size: int | None, crop_pct: float | None) -> dict[str, Any]:
    """What earlier versions of nst made of the same JSON, whatever the type of the processor and its defaults."""
    size = stored.get("crop_size") or stored.get("size") or {}
    side = image_size or (size if isinstance(size, int) else size.get("height") or size.get("shortest_edge")) or _DEFAULT_SIZE_PX
    return {
        "input_size": (3, side, side),
        "interpolation": _INTERPOLATION.get(stored.get("resample", 2), "bicubic"),
        "mean": tuple(stored.get("image_mean") or _HALF),
        "std": tuple(stored.get("image_std") or _HALF),
        "crop_pct": crop_pct or stored.get("crop_pct") or 1.0,
        "crop_mode": "center",
    }


def preparation_changes(settings: TrainSettings) -> dict[str, Any]:
    """How training prepares images differently from earlier versions of nst for the same network, as JSON values; empty for timm networks.

    Raises NstError for an image processor that training cannot reproduce.
    """
    name = settings.model
    if "/" not in name and not name.startswith(FOLDER):
        return {}
    folder = Path(name.removeprefix(FOLDER)) if name.startswith(FOLDER) else download(name)[0]
    config = read_config(name, folder)
    if is_timm_config(config):
        return {}
    check_config(name, folder, config)
    path, changed = folder / PROCESSOR_FILE, (settings.image_size, settings.crop_pct)
    new_config = processor_data_config(read_processor(name, folder), *changed)
    old_config = _earlier_data_config(json.loads(path.read_text("utf-8")) if path.is_file() else {}, *changed)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in new_config.items() if value != old_config[key]}


def write_processor(folder: Path, data_config: dict[str, Any]) -> None:
    """Write a preprocessor_config.json that prepares images as timm's evaluation transform does.

    The processor resizes the shorter side, or squashes to a square, and takes the center crop.
    """
    from transformers import BitImageProcessor

    side = data_config["input_size"][-1]
    resized = int(side / data_config["crop_pct"])
    BitImageProcessor(
        size={"height": resized, "width": resized} if data_config["crop_mode"] == "squash" else {"shortest_edge": resized},
        crop_size={"height": side, "width": side},
        image_mean=list(data_config["mean"]),
        image_std=list(data_config["std"]),
        resample=next(number for number, name in _INTERPOLATION.items() if name == data_config["interpolation"]),
    ).save_pretrained(folder)


def _sides(size: Any) -> dict[str, int]:  # noqa: ANN401 - anything that JSON can hold
    return {"shortest_edge": size} if isinstance(size, int) else {name: side for name, side in (size or {}).items() if side}


def _is_squashed(stored: dict[str, Any], size: dict[str, int]) -> bool:
    """Whether an image is resized to a square whatever its aspect ratio. ConvNeXT's processor does so from 384 pixels."""
    is_large = _is_processor_type(stored, "ConvNext") and size.get("shortest_edge", 0) >= _SQUASHED_BY_CONVNEXT_PX
    return is_large or ("height" in size and "width" in size)


def _resized_side(stored: dict[str, Any], size: dict[str, int]) -> int | None:
    """The side in pixels that an image is resized to before the center crop."""
    side = size.get("height") or size.get("shortest_edge")
    if side is None or _is_squashed(stored, size):
        return side
    if _is_processor_type(stored, "Levit"):
        return int(256 / 224 * side)  # hard-coded in its processor
    return int(side / stored["crop_pct"]) if stored.get("crop_pct") else side


def _is_processor_type(stored: dict[str, Any], kind: str) -> bool:
    return str(stored.get("image_processor_type", "")).startswith(kind)


def _crop_pct(side: int, resized: int, own: float | None) -> float:
    """The share with which timm, which rounds down, resizes to exactly `resized`: the processor's own, or else the simplest one."""
    shares = (own, side / resized, math.nextafter(side / resized, 0))
    return next(share for share in shares if share and math.floor(side / share) == resized)


def _normalization(stored: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of RGB values in [0, 1], whatever scale the processor uses."""
    is_scaled, is_normalized = stored.get("do_rescale", True), stored.get("do_normalize", True)
    scale = 255 * (stored.get("rescale_factor") or 1 / 255) if is_scaled else 255.0
    offset = float(bool(is_scaled and stored.get("rescale_offset")))
    mean = tuple(stored.get("image_mean") or _HALF) if is_normalized else (0.0,) * 3
    std = tuple(stored.get("image_std") or _HALF) if is_normalized else (1.0,) * 3
    twice = std if stored.get("include_top") else (1.0,) * 3  # EfficientNet's processor divides by it again
    if scale == 1 and not offset:
        return mean, tuple(value * factor for value, factor in zip(std, twice, strict=True))
    return tuple((value + offset) / scale for value in mean), tuple(
        value * factor / scale for value, factor in zip(std, twice, strict=True)
    )
