"""Image-text models, whose logits are similarities of an image and of texts: CLIP, SigLIP and their like in transformers' format."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from nst_data.errors import NstError, UsageError
from nst_train.networks.model_config import PROCESSORS
from nst_train.networks.transformers_networks import load_trained
from nst_train.transforms.preprocessing import Preprocessing, ProcessorPreprocessing, as_image

TOKENIZER_FILES = ("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", PROCESSORS)
_SIGLIP_TOKENS = 64  # that SigLIP was trained on, padding included; its configs do not say so
_TOLERANCE = 1e-3  # of a softmax over two texts


class ImageFeatures(nn.Module):
    """The image side of a model: pixels to features. `features` of `network` gives them."""

    def __init__(self, network: Any, features: Callable[[Any, Tensor], Tensor]) -> None:  # noqa: ANN401 - libraries' own classes
        super().__init__()
        self.network, self._features = network, features

    def forward(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dimensions"]:
        """Features of a batch, of any length."""
        return self._features(self.network, pixels)

    def keep_what_answers(self, pixels: Tensor) -> None:
        """Drop the parts of the network that features of an image do not pass, such as its text side."""
        called: set[str] = set()
        hooks = [part.register_forward_hook(lambda *_, name=name: called.add(name)) for name, part in self.network.named_children()]
        self(pixels)
        for hook in hooks:
            hook.remove()
        for name in [name for name, _ in self.network.named_children() if name not in called]:
            delattr(self.network, name)


@dataclass(frozen=True)
class ImageText:
    """A model that was loaded: its image side, its text side, and how it was trained to compare them."""

    images: ImageFeatures
    preprocessing: Preprocessing
    tokens: Callable[[Sequence[str]], dict[str, Tensor]]
    text_features: Callable[[Mapping[str, Tensor]], Float[Tensor, "texts dimensions"]]
    logits: Callable[[Tensor, Mapping[str, Tensor]], Float[Tensor, "images texts"]]
    """Of pixels and tokens, as the model's own code computes them."""
    scale: float

    @property
    def pixels(self) -> Float[Tensor, "1 3 height width"]:
        """A picture to try the model on: a gradient in each color, for a gray one may be nothing but zeros."""
        ramp = torch.arange(64, dtype=torch.uint8) * 4
        picture = torch.stack([ramp.expand(48, 64), ramp.flip(0).expand(48, 64), ramp[:48, None].expand(48, 64)])
        return self.preprocessing.finish(self.preprocessing.prepare(picture)[None])

    def check(self, texts: Sequence[str]) -> None:
        """Raises NstError for a model whose own logits are something else than similarities, all times the same number."""
        tokens = self.tokens(texts)
        own = self.logits(self.pixels, tokens).softmax(dim=1)
        ours = self.scale * F.normalize(self.images(self.pixels), dim=1) @ F.normalize(self.text_features(tokens), dim=1).T
        if not torch.allclose(own, ours.softmax(dim=1), atol=_TOLERANCE):
            raise NstError("its logits are not scaled similarities of image and text, so it cannot be used as a classifier")


def is_image_text(config: dict[str, Any]) -> bool:
    """Whether a config.json is that of a transformers model for zero-shot image classification, rather than of a classifier made of one."""
    kind, named = config.get("model_type"), config.get("architectures") or []
    if not isinstance(kind, str):  # such as timm's: transformers takes seconds to import
        return False
    from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES as KNOWN

    return kind in KNOWN and (not named or KNOWN[kind] in named)


def load_image_text(folder: Path, exact: bool) -> ImageText:
    """The transformers model in a folder, on the CPU in float32. Raises what transformers does for one that it does not take."""
    from transformers import AutoImageProcessor, AutoModelForZeroShotImageClassification, AutoTokenizer

    network = load_trained(AutoModelForZeroShotImageClassification, folder, "image-text model")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    takes_patches = network.config.model_type == "siglip2"  # those of one size are called siglip, as the first ones
    inputs = _unpacked if takes_patches else _as_they_are
    return ImageText(
        ImageFeatures(network, lambda network, pixels: _pooled(network.get_image_features(**inputs(pixels)))),
        (PatchPreprocessing if takes_patches else ProcessorPreprocessing)(processor.to_json_string(), processor, exact),
        _tokens_of(network.config, tokenizer),
        lambda tokens: _pooled(network.get_text_features(**tokens)),
        lambda pixels, tokens: network(**inputs(pixels), **tokens).logits_per_image,
        _scale_of(network),
    )


@dataclass(frozen=True)
class PatchPreprocessing(ProcessorPreprocessing):
    """The image processor of SigLIP 2's NaFlex models: an image of any shape to patches, which ones there are, and how many each way."""

    def prepare(self, pixels: UInt8[Tensor, "3 h w"]) -> Float[Tensor, "1 patches values"]:
        """All three in one tensor: the last three values of each patch are whether it is there, and rows and columns of patches."""
        made = self.processor(images=as_image(pixels), return_tensors="pt")
        patches, there, shape = (made[name][0].float() for name in ("pixel_values", "pixel_attention_mask", "spatial_shapes"))
        return torch.cat([patches, there[:, None], shape.expand(len(patches), 2)], dim=1)[None]


def _unpacked(packed: Float[Tensor, "batch 1 patches values"]) -> dict[str, Tensor]:
    """What `PatchPreprocessing` put together. Where there is no image, in a batch that is not full, there is one patch."""
    patches = packed[:, 0]
    there = patches[..., -3].long()
    there[:, 0] = 1
    shapes = patches[:, 0, -2:].long().clamp(min=1)
    return {"pixel_values": patches[..., :-3], "pixel_attention_mask": there, "spatial_shapes": shapes}


def _as_they_are(pixels: Float[Tensor, "batch 3 height width"]) -> dict[str, Tensor]:
    return {"pixel_values": pixels}


def _pooled(answer: Any) -> Tensor:  # noqa: ANN401 - transformers' are not typed
    pooled: Tensor = answer if isinstance(answer, Tensor) else answer.pooler_output
    return pooled


def _scale_of(network: Any) -> float:  # noqa: ANN401 - transformers' are not typed
    scale = network.logit_scale.exp() if hasattr(network, "logit_scale") else 1 / network.temperature
    return float(scale.detach())


def _tokens_of(config: Any, tokenizer: Any) -> Callable[[Sequence[str]], dict[str, Tensor]]:  # noqa: ANN401 - transformers' are not typed
    """How transformers' pipeline for zero-shot image classification prepares texts, but that none is cut short."""
    is_siglip = "siglip" in config.model_type
    most = min(tokenizer.model_max_length, getattr(getattr(config, "text_config", config), "max_position_embeddings", 2**30))
    most = min(most, _SIGLIP_TOKENS) if is_siglip else most
    padding = {"padding": "max_length", "max_length": most} if is_siglip else {"padding": True}

    def tokens(texts: Sequence[str]) -> dict[str, Tensor]:
        check_lengths([len(one) for one in tokenizer(list(texts))["input_ids"]], texts, most)
        return dict(tokenizer(list(texts), return_tensors="pt", **padding))

    return tokens


def check_lengths(lengths: Sequence[int], texts: Sequence[str], most: int) -> None:
    """Raises UsageError for a text that the model would read only the beginning of."""
    for length, text in zip(lengths, texts, strict=True):
        if length > most:
            raise UsageError(f"{text[:60]!r} has {length} tokens and the model's limit is {most}; shorten the name or the prompt")


@contextmanager
def in_full_precision(device_type: str) -> Iterator[None]:
    """Similarities of long vectors times a hundred: in 8 bits of precision they would be off by tenths."""
    with torch.autocast(device_type, enabled=False):
        yield
