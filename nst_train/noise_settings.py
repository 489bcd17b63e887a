"""Settings of noise, the only place of their defaults. Imports no torch."""

import re
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from nst_data.settings import Later, Settings

TransformKind = Literal["training", "evaluation"]
Amounts = Literal["scaled", "released"]
RANDAUGMENT_SETTINGS = ("magnitude", "operations", "amounts")  # of Noise: replaced by another augmentation
INPUT_NOISE_SETTINGS = (*RANDAUGMENT_SETTINGS, "augmentation", "cutout")  # of Noise: replaced by `transform: evaluation`
_NUMBER = r"\d+(\.\d+)?"
_AUGMENTATION = re.compile(  # timm ignores some words that it does not know, and fails on others, some of them only at the first image
    rf"rand(-(m|mmax|inc)\d+|-n[1-9]|-(p|mstd){_NUMBER}|-t(weights|3a|3aw))*"
    rf"|augmix(-(m|d|b)\d+|-w[1-9]|-mstd{_NUMBER}|-a(?!0+(\.0+)?(-|$)){_NUMBER})*"
    rf"|(original|originalr|v0|v0r|3a)(-mstd{_NUMBER})?"
)


class Noise(Settings):
    """The noise with which a network is trained (section 2). The defaults are the paper's for EfficientNet-B7 and L2.

    Evaluation uses no noise, and neither does labeling, except with `LabelSettings(noise=True)`, which is meant for comparisons.
    `Noise.none()` trains without noise.
    """

    panel: ClassVar[str] = "Noise"

    magnitude: int = Field(27, ge=0, le=100, description="RandAugment magnitude; not clipped at 10 (the paper uses 27).")
    operations: int = Field(2, ge=0, le=10, description="RandAugment operations per image; 0 turns RandAugment off.")
    amounts: Annotated[Amounts, Later("scaled")] = Field(
        "scaled",
        description="Pixels of RandAugment's Translate and Cutout: in proportion to the image, or the released code's 100 and 40 at any "
        "size above 64, with its rounding in Color, AutoContrast and Shear.",
    )
    augmentation: str | None = Field(
        None, description="Instead of RandAugment, in timm's notation: rand-m9-mstd0.5-inc1, augmix-m3-w3, original, v0, 3a."
    )
    cutout: int = Field(0, ge=0, description="Cutout: side in pixels of the gray square; 0 turns it off.")
    dropout: float = Field(
        0.5, ge=0, lt=1, description="Dropout before the classifier. Other dropout in a transformers network's configuration stays."
    )
    stochastic_depth: float = Field(
        0.2, ge=0, lt=1, description="Stochastic-depth rate of the last block; increases linearly from 0 at the first."
    )

    @classmethod
    def none(cls) -> Self:
        """No RandAugment, no dropout, no stochastic depth."""
        return cls(magnitude=0, operations=0, dropout=0, stochastic_depth=0)

    @field_validator("augmentation")
    @classmethod
    def _check_augmentation(cls, value: str | None) -> str | None:
        if value is not None and not _AUGMENTATION.fullmatch(value):
            raise ValueError(
                "expected an augmentation of timm, such as rand-m9-mstd0.5-inc1, augmix-m3-w3, original, originalr, v0, v0r, 3a"
            )
        return value

    @model_validator(mode="after")
    def _check_single_augmentation(self) -> Self:
        fields = type(self).model_fields
        if self.augmentation and any(getattr(self, name) != fields[name].default for name in RANDAUGMENT_SETTINGS):
            raise ValueError("`augmentation` replaces RandAugment and its `magnitude`, `operations` and `amounts`; remove those")
        return self


class PseudoNoise(Settings):
    """How the noise of pseudo-labeled images differs from that of labeled ones (Table 6); settings left out are the same."""

    panel: ClassVar[str] = "Noise of pseudo-labeled images"

    magnitude: int | None = Field(None, ge=0, le=100, description="RandAugment magnitude on pseudo-labeled images, if different.")
    operations: int | None = Field(None, ge=0, le=10, description="RandAugment operations per pseudo-labeled image, if different.")
    transform: Annotated[TransformKind | None, Later(None)] = Field(
        None, description="evaluation: pseudo-labeled images are not augmented, even if labeled ones are."
    )
    flip: Annotated[float | None, Later(None)] = Field(
        None, ge=0, le=1, description="Flip probability for pseudo-labeled images, if different."
    )
    crop_scale_min: Annotated[float | None, Later(None)] = Field(
        None, gt=0, le=1, description="Lower bound of the crop scale for pseudo-labeled images, if different; 1: no random crop."
    )
    cutout: int | None = Field(None, ge=0, description="Cutout side for pseudo-labeled images, if different.")
    dropout: float | None = Field(None, ge=0, lt=1, description="Dropout for pseudo-labeled images, if different.")
    stochastic_depth: float | None = Field(None, ge=0, lt=1, description="Stochastic depth for pseudo-labeled images, if different.")

    @model_validator(mode="after")
    def _check_augmentation_conflicts(self) -> Self:
        names = [name for name in ("magnitude", "operations", "flip", "crop_scale_min", "cutout") if getattr(self, name) is not None]
        if self.transform == "evaluation" and names:
            raise ValueError(f"{', '.join(names)}: pseudo-labeled images are un-augmented by transform evaluation; remove one of them")
        return self
