"""Settings of filtering and balancing: the only home of their defaults."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """Settings are values: frozen, and a key that they do not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def for_request(self) -> dict[str, Any]:
        """The settings that shape data, as JSON values."""
        return self.model_dump(mode="json")


class BalanceSettings(Settings):
    """Which pseudo-labeled images make the training set (section 3.1 of the paper)."""

    min_confidence: float = Field(0.3, ge=0, le=1, description="Keep images that the teacher is surer of than this.")
    per_class: int = Field(130_000, ge=1, description="Entries per class: the most confident images, with copies where a class has fewer.")
    exact_overlap_only: bool = Field(False, description="Leave out images with the very bytes of an excluded one, not its near-duplicates.")
    seed: int = Field(0, ge=0, lt=2**31, description="Decides which images of a class get one copy more.")
