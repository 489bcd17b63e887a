"""OpenCLIP's models as image-text models: open_clip_config.json next to safetensors. Requires the package open-clip-torch."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from nst_data.errors import NstError, UsageError, first_line
from nst_train.networks.image_text import ImageFeatures, ImageText, check_lengths
from nst_train.networks.weights import FOLDER, measure_tensors
from nst_train.transforms.preprocessing import LARGEST_SIDE_PX, TimmPreprocessing

OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_FILES = ("open_clip_*.safetensors",)
_TOKENIZER_OPTIONS = frozenset(("clean", "language", "strip_sep_token"))
_SIDES = ("text_cfg", "vision_cfg")
_SIZES = ("width", "vocab_size", "context_length", "head_width", "heads", "mlp_ratio", "patch_size")
_CROP_MODES = {"shortest": "center", "squash": "squash"}


def is_open_clip(folder: Path) -> bool:
    """Whether a folder holds a model in OpenCLIP's format."""
    return (folder / OPEN_CLIP_CONFIG).is_file()


def load_open_clip(name: str, folder: Path, exact: bool) -> ImageText:
    """Load an OpenCLIP model from a folder, on the CPU in float32. Only safetensors are read, and nothing is downloaded.

    Raises UsageError if the package is missing and NstError for a config that does not fit the weights; OpenCLIP's errors are passed on.
    """
    if find_spec("open_clip") is None:
        raise UsageError(f"{name}: OpenCLIP's weights need the package open-clip-torch: pip install 'nst[openclip]'")
    import open_clip
    from open_clip.factory import load_checkpoint

    weights = sorted(folder.glob("open_clip_*.safetensors")) or sorted(folder.glob("[!.]*.safetensors"))
    if not weights:
        raise NstError(
            f"{name}: expected {OPEN_CLIP_CONFIG} beside weights as safetensors, found none; pickle files (.bin, .pt) are not supported"
        )
    config = _load_config(name, folder)
    with _silence_logging():
        no_pretrained = {"pretrained_image": False, "pretrained_text": False, "pretrained_hf": False}
        network = open_clip.create_model(f"{FOLDER}{folder}", precision="fp32", device="cpu", load_weights=False, **no_pretrained)
        load_checkpoint(network, str(weights[0]), strict=True)
        # without it, the folder's `auto_map` could name code to run
        tokenizer_options = {"trust_remote_code": False} if config["text_cfg"].get("hf_tokenizer_name") else {}
        tokenizer = open_clip.get_tokenizer(f"{FOLDER}{folder}", **tokenizer_options)
    network.eval()

    def tokenize(texts: Sequence[str]) -> dict[str, Tensor]:
        if hasattr(tokenizer, "encode"):
            lengths = [len(tokenizer.encode(text)) + 2 for text in texts]
        else:
            lengths = [len(ids) for ids in tokenizer.tokenizer(list(texts))["input_ids"]]
        check_lengths(lengths, texts, tokenizer.context_length)
        return {"input_ids": tokenizer(list(texts))}

    return ImageText(
        ImageFeatures(network, lambda network, pixels: network.encode_image(pixels)),
        _build_preprocessing(network.visual.preprocess_cfg, exact),
        tokenize,
        lambda ids: network.encode_text(ids["input_ids"]),
        lambda pixels, ids: (
            network.logit_scale.exp()
            * network.encode_image(pixels, normalize=True)
            @ network.encode_text(ids["input_ids"], normalize=True).T
        ),
        float(network.logit_scale.detach().exp()),
    )


@contextmanager
def _silence_logging() -> Iterator[None]:
    """Silence OpenCLIP's messages about each step, and keep its use of the root logger from installing a handler there."""
    handler, previous = logging.NullHandler(), logging.root.manager.disable
    logging.root.addHandler(handler)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)
        logging.root.removeHandler(handler)


def _build_preprocessing(config: dict[str, Any], exact: bool) -> TimmPreprocessing:
    """OpenCLIP's evaluation transform, which is the same as timm's: resize, center crop, normalize."""
    size, mode = config["size"], config.get("resize_mode") or "shortest"
    if mode not in _CROP_MODES:
        raise NstError(f"{OPEN_CLIP_CONFIG}: resize_mode: expected {' or '.join(_CROP_MODES)}, found {mode!r}")
    height, width = (size, size) if isinstance(size, int) else size[-2:]
    interpolation = "bilinear" if config.get("interpolation") == "bilinear" else "bicubic"
    of_transform = {"input_size": (3, height, width), "interpolation": interpolation, "crop_pct": 1.0, "crop_mode": _CROP_MODES[mode]}
    return TimmPreprocessing.from_data_config(of_transform | {"mean": config["mean"], "std": config["std"]}, exact)


def _load_config(name: str, folder: Path) -> dict[str, Any]:
    """The `model_cfg` of a folder's config, checked before anything is created from it.

    Raises NstError for numbers that do not fit the weights, for references to other models, and for tokenizer options other than a few
    that name neither files nor code.
    """
    try:
        config: dict[str, Any] = json.loads((folder / OPEN_CLIP_CONFIG).read_text("utf-8"))["model_cfg"]
        sides = {side: dict(config[side]) for side in _SIDES}
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise NstError(f"{name}: {OPEN_CLIP_CONFIG}: expected model_cfg with text_cfg and vision_cfg ({first_line(error)})") from None
    options = sides["text_cfg"].get("tokenizer_kwargs") or {}
    if not isinstance(options, dict) or (odd := sorted(set(options) - _TOKENIZER_OPTIONS)):
        actual = str(options if not isinstance(options, dict) else odd)[:80]
        raise NstError(
            f"{name}: {OPEN_CLIP_CONFIG}: text_cfg.tokenizer_kwargs: expected {', '.join(sorted(_TOKENIZER_OPTIONS))}, found {actual}"
        )
    tensors, largest = measure_tensors(name, folder)
    if not isinstance(config.get("embed_dim"), int) or not 0 < config["embed_dim"] <= largest:
        actual = str(config.get("embed_dim"))[:80]
        raise NstError(
            f"{name}: {OPEN_CLIP_CONFIG}: embed_dim: expected a number up to {largest:,}, the largest of its tensors, found {actual}"
        )
    for side, of_side in sides.items():
        if of_side.get("hf_model_name"):
            raise NstError(f"{name}: {OPEN_CLIP_CONFIG}: {side}.hf_model_name refers to another model, which nst does not download")
        if (network := of_side.get("timm_model_name")) is not None and not (isinstance(network, str) and timm.is_model(network)):
            raise NstError(f"{name}: {OPEN_CLIP_CONFIG}: {side}.timm_model_name: expected a network of timm, found {str(network)[:80]!r}")
        limits = dict.fromkeys(_SIZES, largest) | {"layers": tensors, "image_size": LARGEST_SIDE_PX}
        for key, limit in limits.items():
            values = of_side.get(key, 1)
            values = values if isinstance(values, list) else [values]
            if not all(isinstance(value, int | float) and 0 < value <= limit for value in values):
                raise NstError(
                    f"{name}: {OPEN_CLIP_CONFIG}: {side}.{key}: expected numbers that its {tensors:,} tensors of up to {largest:,} rows "
                    f"or columns can have, found {str(of_side[key])[:80]}"
                )
    return config
