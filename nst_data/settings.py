"""Settings of filtering and balancing: the only home of their defaults."""

import contextlib
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Settings(BaseModel):
    """Settings are values: frozen, and a key that they do not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def for_request(self) -> dict[str, Any]:
        """The settings that shape data, as JSON values."""
        return self.model_dump(mode="json")


class BalanceSettings(Settings):
    """Which pseudo-labeled images make the training set (section 3.1 of the paper)."""

    min_confidence: float = Field(0.3, ge=0, le=1, description="Keep images that the teacher is surer of than this.")
    class_min_confidence: dict[str, float] = Field({}, description="Thresholds of single classes, by name.")
    confidence_range: tuple[float, float] | None = Field(
        None, description="Keep images with a confidence above the first number, up to the second, in place of the threshold (figure 5)."
    )
    exclude_class: tuple[str, ...] = Field((), description="Leave out the images with this label; several allowed.")
    fraction: float = Field(1.0, gt=0, le=1, description="Keep this share of the images, drawn evenly (study 2).")
    per_class: int | Literal["auto", "none"] = Field(
        130_000,
        description="Entries per class: the surest images, copies where there are fewer. auto: a quantile of the classes; none: all.",
    )
    auto_quantile: float = Field(
        0.5, gt=0, le=1, description="With --per-class auto: the share of classes that have no more images than that."
    )
    max_copies: int | None = Field(None, ge=1, description="Repeat no image more often than this; a class may then have fewer entries.")
    method: Literal["exact", "official"] = Field(
        "exact", description="official: by bins of confidence and random rounding, as in the released code."
    )
    exact_overlap_only: bool = Field(False, description="Leave out images with the very bytes of an excluded one, not its near-duplicates.")
    embed_images: bool = Field(False, description="Write the images too, in shuffled shards: a training set that needs no pool.")
    shard_mb: int = Field(500, ge=1, description="Size of a shard with images, in megabytes.")
    seed: int = Field(0, ge=0, lt=2**31, description="Decides which images of a class get one copy more, and other draws.")

    @field_validator("per_class", mode="before")
    @classmethod
    def _is_a_quota(cls, value: Any) -> Any:  # noqa: ANN401 - what a user wrote
        if value in ("auto", "none"):
            return value
        with contextlib.suppress(ValueError, TypeError):
            if int(value) == float(value) and int(value) >= 1:
                return int(value)
        raise ValueError("expected a number of entries from 1, auto or none")

    @field_validator("class_min_confidence")
    @classmethod
    def _are_confidences(cls, value: dict[str, float]) -> dict[str, float]:
        for name, least in value.items():
            if not 0 <= least <= 1:
                raise ValueError(f"expected confidences from 0 to 1, found {least} for {name}")
        return value

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.confidence_range:
            low, high = self.confidence_range
            if not 0 <= low < high <= 1:
                raise ValueError(f"--confidence-range {low} {high}: expected two numbers from 0 to 1, the lower one first")
            if self.class_min_confidence or self.min_confidence != BalanceSettings.model_fields["min_confidence"].default:
                raise ValueError("--confidence-range takes the place of --min-confidence and of thresholds of classes; give one of them")
        if self.max_copies and self.per_class == "none":
            raise ValueError("--max-copies bounds copies, and --per-class none makes none; leave one out")
        return self
