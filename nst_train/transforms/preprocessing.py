"""From encoded bytes to classifier inputs: its own evaluation transform, exactly, or on tensors within a level or two of 255."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import ResizeKeepRatio, str_to_interp_mode
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import Resize
from torchvision.transforms.v2 import functional as tensor_transforms

from nst_data.decoding.jpeg import jpeg_header, may_hold_more_images
from nst_data.decoding.orientation import TRANSPOSED, jpeg_orientation
from nst_data.errors import NstError
from nst_data.images import PHASH_SIZE_PX, check_dimensions, decode, large_image_lock, phash_row_step, reduced_factor

try:
    from simplejpeg import decode_jpeg  # libjpeg-turbo, as in Pillow; raises its warnings as errors and prints nothing
except ImportError:  # no wheel for this platform; Pillow decodes to the same pixels
    decode_jpeg = None

LARGEST_SIDE_PX = 8192  # of a network's input; EfficientNet-L2 takes 800
_OVERSIZE = 8  # a JPEG is decoded at 8 or more times the size that it is then resized to: with 4, 2% of labels changed
_DCT_SIDE_PX = 8  # from this side on, scales of n/8 all give different sizes, by which simplejpeg chooses the scale
_FLIPS: dict[int, tuple[int, ...]] = {2: (-1,), 3: (-2, -1), 4: (-2,), 6: (-1,), 7: (-2, -1), 8: (-2,)}
"""The axes along which an image of each EXIF orientation is flipped, after transposing it if it lies on its side."""
_THUMBNAIL_SIZE = (PHASH_SIZE_PX, PHASH_SIZE_PX)
_CROP_MODES = (None, "", "center", "squash", "border")
_PILLOW_ONLY = ("lanczos", "hamming", "box")  # torchvision cannot resize tensors with these


class Preprocessing(Protocol):
    """How a classifier expects its images. Equal preprocessings give equal tensors."""

    @property
    def exact(self) -> bool:
        """Whether images are decoded and resized by Pillow."""

    @property
    def min_side_px(self) -> int | None:
        """The least length of both sides for decoding a JPEG at reduced size; None to never reduce."""

    def prepare(self, pixels: UInt8[Tensor, "3 h w"]) -> Tensor:
        """Turn a decoded image of any size into a tensor of the classifier's size."""

    @property
    def as_json(self) -> dict[str, Any]:
        """What other programs need to prepare images in the same way, as JSON values."""

    @property
    def data_config(self) -> dict[str, Any]:
        """What a training transform is built from: `input_size` and `interpolation`."""

    def prepare_sized(self, image: UInt8[np.ndarray, "height width 3"]) -> Tensor:
        """Turn an image from a training transform, of the classifier's size, into what `prepare` returns."""

    def finish(self, batch: Tensor) -> Float[Tensor, "batch 3 height width"]:
        """Turn a batch of prepared images, on the device, into the network's input."""


@dataclass(frozen=True)
class TimmPreprocessing:
    """timm's evaluation transform (`create_transform`, from the network's `data_config`): resize, crop, normalize.

    It resizes uint8 tensors; with `exact`, Pillow images, as timm does. The two differ by rounding: on photographs by 0.01 of 255 levels
    on average, and by 2 at most (`benchmarks/results/label.md`).
    """

    input_size: tuple[int, int, int]
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    crop_mode: str | None
    exact: bool = False

    @classmethod
    def from_data_config(cls, data_config: dict[str, Any], exact: bool = False) -> "TimmPreprocessing":
        """Create it from the result of timm's `resolve_model_data_config`. Raises NstError like `check_data_config`."""
        c = check_data_config(data_config)
        return cls(
            tuple(c["input_size"]), c["interpolation"], tuple(c["mean"]), tuple(c["std"]), c["crop_pct"], c.get("crop_mode") or None, exact
        )

    @cached_property
    def min_side_px(self) -> int | None:
        """Eight times the longer side that images are resized to; None with `exact`."""
        return None if self.exact else _OVERSIZE * max(self._resize_size)

    def prepare(self, pixels: UInt8[Tensor, "3 h w"]) -> UInt8[Tensor, "3 height width"]:
        """Resize and crop a decoded image."""
        # timm pads tensors with a single level, not with a color
        if self.exact or self.crop_mode == "border" or self.interpolation in _PILLOW_ONLY:
            return self._transform(to_pillow(pixels))  # type: ignore[no-any-return]
        if pixels.shape[-2:] == self.input_size[1:] == self._resize_size:
            return pixels
        for step in self._transform.transforms[:-1]:
            resizes = isinstance(step, Resize)  # torchvision's v1 `Resize` converts tensors to float32, at four times the cost
            pixels = tensor_transforms.resize(pixels, step.size, step.interpolation, antialias=True) if resizes else step(pixels)
        return pixels

    @property
    def as_json(self) -> dict[str, Any]:
        """timm's `data_config`, for RGB values in [0, 1]."""
        return {
            **{"input_size": list(self.input_size), "interpolation": self.interpolation, "mean": list(self.mean), "std": list(self.std)},
            **{"crop_pct": self.crop_pct, "crop_mode": self.crop_mode or "center"},
        }

    @property
    def data_config(self) -> dict[str, Any]:
        """The input size and interpolation, in timm's format."""
        return {"input_size": self.input_size, "interpolation": self.interpolation}

    def prepare_sized(self, image: UInt8[np.ndarray, "height width 3"]) -> UInt8[Tensor, "3 height width"]:
        """The image as a tensor, otherwise unchanged."""
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def finish(self, batch: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Normalize a batch, bit for bit as torchvision's ToTensor and Normalize do for each image."""
        mean, std = (_channel_tensor(value, batch.device) for value in (self.mean, self.std))
        return batch.float().div_(255).sub_(mean).div_(std)

    @cached_property
    def _transform(self) -> Any:  # noqa: ANN401 - torchvision ships no types
        return create_transform(
            input_size=self.input_size,
            is_training=False,
            interpolation=self.interpolation,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            normalize=False,
        )

    @cached_property
    def _resize_size(self) -> tuple[int, int]:
        resize = self._transform.transforms[0]
        assert isinstance(resize, Resize | ResizeKeepRatio), "timm's evaluation transform begins by resizing"
        size = resize.size
        return (size, size) if isinstance(size, int) else (size[0], size[1])


@dataclass(frozen=True)
class ProcessorPreprocessing:
    """The image processor of a transformers classifier, as it is. Raises NstError if its output has no fixed size."""

    identity: str  # distinguishes processors: their JSON
    processor: Any = field(compare=False)
    exact: bool = False
    min_side_px: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        shapes = {tuple(self.prepare(torch.zeros(3, *size, dtype=torch.uint8)).shape) for size in ((48, 64), (640, 480))}
        if len(shapes) > 1:
            raise NstError(f"{type(self.processor).__name__}: expected an image processor with one output size, found {sorted(shapes)}")

    def prepare(self, pixels: UInt8[Tensor, "3 h w"]) -> Float[Tensor, "3 height width"]:
        """The processor's own pixel values."""
        values: Tensor = self.processor(images=to_pillow(pixels), return_tensors="pt")["pixel_values"]
        return values[0]

    @property
    def as_json(self) -> dict[str, Any]:
        """The processor's own `preprocessor_config.json`."""
        return dict(json.loads(self.processor.to_json_string()))

    @property
    def data_config(self) -> dict[str, Any]:
        """The input size and interpolation, in timm's format."""
        size = tuple(self.prepare(torch.zeros(3, 48, 64, dtype=torch.uint8)).shape)
        return {"input_size": size, "interpolation": "bilinear" if self.processor.resample == Image.Resampling.BILINEAR else "bicubic"}

    def prepare_sized(self, image: UInt8[np.ndarray, "height width 3"]) -> Float[Tensor, "3 height width"]:
        """Rescale and normalize an image, without resizing or cropping."""
        options = {"do_resize": False, "do_center_crop": False, "return_tensors": "pt"}
        values: Tensor = self.processor(images=Image.fromarray(image), **options)["pixel_values"]
        return values[0]

    def finish(self, batch: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """The batch unchanged: `prepare` has done everything."""
        return batch


def check_data_config(data_config: dict[str, Any]) -> dict[str, Any]:
    """Return a `data_config` if it is valid and for RGB images, else raise NstError that names the bad value. It may not be trusted."""
    c = data_config
    size = c["input_size"]
    if not _are_numbers(size, 3) or not all(isinstance(side, int) and 0 < side <= LARGEST_SIDE_PX for side in size):
        raise NstError(f"input_size: expected channels, height and width, up to {LARGEST_SIDE_PX} pixels, found {size!r}")
    if size[0] != 3:
        raise NstError(f"expected a network for RGB images (3 channels), found one of {size[0]} channel{'s' * (size[0] != 1)}")
    if not _are_numbers(c["mean"], 3) or not _are_numbers(c["std"], 3) or not all(c["std"]):
        raise NstError(f"mean, std: expected three numbers each, none of std 0, found {c['mean']!r} and {c['std']!r}")
    if not _are_numbers([c["crop_pct"]], 1) or not max(size) / LARGEST_SIDE_PX <= c["crop_pct"]:
        raise NstError(f"crop_pct: expected the kept share of the image, such as 0.875, found {c['crop_pct']!r}")
    if c.get("crop_mode") not in _CROP_MODES:  # timm would fall back to center
        raise NstError(f"crop_mode: expected center, squash or border, found {c['crop_mode']!r}")
    try:
        str_to_interp_mode(c["interpolation"])
    except (KeyError, TypeError):
        raise NstError(f"interpolation: expected bicubic, bilinear or another of timm's, found {c['interpolation']!r}") from None
    return data_config


def _are_numbers(values: Any, count: int) -> bool:  # noqa: ANN401 - anything that JSON can hold
    are_numbers = isinstance(values, list | tuple) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in values
    )
    return are_numbers and len(values) == count and bool(np.isfinite(values).all())


def decode_pixels(encoded: bytes | memoryview, min_side_px: int | None = None, exact: bool = False) -> UInt8[Tensor, "3 height width"]:
    """Decode like `nst_data.images.decode`, but a JPEG by libjpeg-turbo directly unless `exact`: the same pixels at less cost.

    With `min_side_px`, a JPEG may be decoded at reduced size, as described there. Raises ImageError with the reason.
    """
    header = None if exact or decode_jpeg is None else jpeg_header(encoded)
    if header is not None and header.components in (1, 3):
        check_dimensions(header.width, header.height)
        factor = reduced_factor(header.width, header.height, min_side_px) if min_side_px else 1
        if factor == 1 or (min(header.width, header.height) >= _DCT_SIDE_PX and not may_hold_more_images(encoded)):
            min_size = {"min_width": -(-header.width // factor), "min_height": -(-header.height // factor)}  # Pillow rounds up too
            try:
                with large_image_lock(header.width * header.height):
                    pixels = torch.from_numpy(decode_jpeg(memoryview(encoded).cast("B"), "RGB", **min_size)).permute(2, 0, 1)
                return _apply_orientation(pixels, jpeg_orientation(encoded))
            except ValueError:
                pass  # left to Pillow, which decodes it or gives the reason
    image = decode(encoded, min_side_px)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _apply_orientation(pixels: UInt8[Tensor, "3 h w"], orientation: int) -> UInt8[Tensor, "3 height width"]:
    if orientation in TRANSPOSED:
        pixels = pixels.transpose(-2, -1)
    return pixels.flip(_FLIPS[orientation]) if orientation in _FLIPS else pixels


def thumbnail(pixels: UInt8[Tensor, "3 h w"]) -> UInt8[Tensor, "3 32 32"]:
    """The thumbnail that the perceptual hash is computed from, up to rounding the same as `nst_data.images.phash_thumbnail`."""
    if pixels.shape[-2:] == _THUMBNAIL_SIZE:
        return pixels
    rows = pixels[:, :: phash_row_step(pixels.shape[-2])]
    return F.interpolate(rows[None], size=_THUMBNAIL_SIZE, mode="bilinear", antialias=True)[0]


def stack_thumbnails(images: Sequence[UInt8[Tensor, "3 32 32"]]) -> NDArray[np.uint8]:
    """Stack thumbnails for `nst_data.images.phash`, to shape (images, 32, 32, 3)."""
    if not images:
        return np.empty((0, *_THUMBNAIL_SIZE, 3), np.uint8)
    thumbnails: NDArray[np.uint8] = stack_images(images).permute(0, 2, 3, 1).numpy()
    return thumbnails


def stack_images(images: Sequence[Tensor]) -> Tensor:
    """Stack images of one size, channels last in memory if the first is, so that whole images are copied and not single values."""
    if images[0].stride(0) == 1:
        return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
    return torch.stack(list(images))


def to_pillow(pixels: UInt8[Tensor, "3 height width"]) -> Image.Image:
    """A decoded image as a Pillow image."""
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))


@lru_cache
def _channel_tensor(values: tuple[float, ...], device: torch.device) -> Float[Tensor, "1 channels 1 1"]:
    """Mean or std on the device, cached: copying it for each batch would make the device wait."""
    return torch.tensor(values, device=device).view(1, -1, 1, 1)
