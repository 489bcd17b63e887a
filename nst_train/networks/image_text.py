"""Image-text models, whose logits are similarities of images and texts: CLIP, SigLIP and the like in transformers' format."""

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
from nst_train.networks.transformers_networks import load_trained
from nst_train.networks.weights import COMBINED_PROCESSOR_FILE
from nst_train.transforms.preprocessing import Preprocessing, ProcessorPreprocessing, to_pillow

TOKENIZER_FILES = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    COMBINED_PROCESSOR_FILE,
)
_SIGLIP_TOKENS = 64  # length SigLIP was trained with, padding included; its configs do not record it
_TOLERANCE = 1e-3  # of a softmax over two texts


class ImageFeatures(nn.Module):
    """The image side of a model, from pixels to features, which `features(network, pixels)` computes."""

    def __init__(self, network: Any, features: Callable[[Any, Tensor], Tensor]) -> None:  # noqa: ANN401 - libraries' own classes
        super().__init__()
        self.network, self._features = network, features

    def forward(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dimensions"]:
        """Features of a batch, not normalized."""
        return self._features(self.network, pixels)

    def drop_unused_modules(self, pixels: Tensor) -> None:
        """Drop the submodules that image features do not go through, such as the text side."""
        called: set[str] = set()
        hooks = [module.register_forward_hook(lambda *_, name=name: called.add(name)) for name, module in self.network.named_children()]
        self(pixels)
        for hook in hooks:
            hook.remove()
        for name in [name for name, _ in self.network.named_children() if name not in called]:
            delattr(self.network, name)


@dataclass(frozen=True)
class ImageText:
    """A loaded model: its image side, its text side, and how it compares them."""

    image_features: ImageFeatures
    preprocessing: Preprocessing
    tokenize: Callable[[Sequence[str]], dict[str, Tensor]]
    text_features: Callable[[Mapping[str, Tensor]], Float[Tensor, "texts dimensions"]]
    logits: Callable[[Tensor, Mapping[str, Tensor]], Float[Tensor, "images texts"]]
    """The logits for pixels and tokens, as the model's own code computes them."""
    scale: float

    @property
    def test_pixels(self) -> Float[Tensor, "1 3 height width"]:
        """A preprocessed test image: a gradient in each color, as a gray image might be all zeros."""
        ramp = torch.arange(64, dtype=torch.uint8) * 4
        picture = torch.stack([ramp.expand(48, 64), ramp.flip(0).expand(48, 64), ramp[:48, None].expand(48, 64)])
        return self.preprocessing.finish(self.preprocessing.prepare(picture)[None])

    def check(self, texts: Sequence[str]) -> None:
        """Raises NstError for a model whose own logits are not similarities times one common scale."""
        tokens = self.tokenize(texts)
        own = self.logits(self.test_pixels, tokens).softmax(dim=1)
        similarities = (
            self.scale * F.normalize(self.image_features(self.test_pixels), dim=1) @ F.normalize(self.text_features(tokens), dim=1).T
        )
        if not torch.allclose(own, similarities.softmax(dim=1), atol=_TOLERANCE):
            raise NstError("its logits are not scaled similarities of image and text, so it cannot be used as a classifier")


def load_image_text(folder: Path, exact: bool) -> ImageText:
    """Load a transformers model from a folder, on the CPU in float32. Errors that transformers raises are passed on."""
    from transformers import AutoImageProcessor, AutoModelForZeroShotImageClassification, AutoTokenizer

    network = load_trained(AutoModelForZeroShotImageClassification, folder, "image-text model")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    takes_patches = network.config.model_type == "siglip2"  # SigLIP 2 models with a fixed size have the type siglip
    inputs = _unpack_patches if takes_patches else _pixel_inputs
    return ImageText(
        ImageFeatures(network, lambda network, pixels: _pooled_output(network.get_image_features(**inputs(pixels)))),
        (PatchPreprocessing if takes_patches else ProcessorPreprocessing)(processor.to_json_string(), processor, exact),
        _build_tokenize(network.config, tokenizer),
        lambda tokens: _pooled_output(network.get_text_features(**tokens)),
        lambda pixels, tokens: network(**inputs(pixels), **tokens).logits_per_image,
        _logit_scale(network),
    )


@dataclass(frozen=True)
class PatchPreprocessing(ProcessorPreprocessing):
    """The image processor of SigLIP 2's NaFlex models: an image of any shape to patches, their mask, and the shape of the patch grid."""

    def prepare(self, pixels: UInt8[Tensor, "3 h w"]) -> Float[Tensor, "1 patches values"]:
        """All three in one tensor: the last three values of each patch are its mask, and the numbers of rows and columns of patches."""
        processed = self.processor(images=to_pillow(pixels), return_tensors="pt")
        patches, attention_mask, shape = (processed[name][0].float() for name in ("pixel_values", "pixel_attention_mask", "spatial_shapes"))
        return torch.cat([patches, attention_mask[:, None], shape.expand(len(patches), 2)], dim=1)[None]


def _unpack_patches(packed: Float[Tensor, "batch 1 patches values"]) -> dict[str, Tensor]:
    """The model's inputs from the tensors of `PatchPreprocessing`. Padding of a batch that is not full becomes images of one patch."""
    patches = packed[:, 0]
    attention_mask = patches[..., -3].long()
    attention_mask[:, 0] = 1
    shapes = patches[:, 0, -2:].long().clamp(min=1)
    return {"pixel_values": patches[..., :-3], "pixel_attention_mask": attention_mask, "spatial_shapes": shapes}


def _pixel_inputs(pixels: Float[Tensor, "batch 3 height width"]) -> dict[str, Tensor]:
    return {"pixel_values": pixels}


def _pooled_output(output: Any) -> Tensor:  # noqa: ANN401 - transformers' are not typed
    pooled: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return pooled


def _logit_scale(network: Any) -> float:  # noqa: ANN401 - transformers' are not typed
    scale = network.logit_scale.exp() if hasattr(network, "logit_scale") else 1 / network.temperature
    return float(scale.detach())


def _build_tokenize(config: Any, tokenizer: Any) -> Callable[[Sequence[str]], dict[str, Tensor]]:  # noqa: ANN401 - transformers' are not typed
    """Tokenize texts as transformers' zero-shot image classification pipeline does, except that none is truncated."""
    is_siglip = "siglip" in config.model_type
    limit = min(tokenizer.model_max_length, getattr(getattr(config, "text_config", config), "max_position_embeddings", 2**30))
    limit = min(limit, _SIGLIP_TOKENS) if is_siglip else limit
    padding = {"padding": "max_length", "max_length": limit} if is_siglip else {"padding": True}

    def tokenize(texts: Sequence[str]) -> dict[str, Tensor]:
        check_lengths([len(ids) for ids in tokenizer(list(texts))["input_ids"]], texts, limit)
        return dict(tokenizer(list(texts), return_tensors="pt", **padding))

    return tokenize


def check_lengths(lengths: Sequence[int], texts: Sequence[str], limit: int) -> None:
    """Raises UsageError for a text that is too long for the model, which would be truncated."""
    for length, text in zip(lengths, texts, strict=True):
        if length > limit:
            raise UsageError(f"{text[:60]!r} has {length} tokens and the model's limit is {limit}; shorten the name or the prompt")


@contextmanager
def in_full_precision(device_type: str) -> Iterator[None]:
    """Disable autocast: similarities of long vectors times a hundred would be off by tenths in bf16, which has 8 bits of precision."""
    with torch.autocast(device_type, enabled=False):
        yield
