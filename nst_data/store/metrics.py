"""`metrics.json` of a teacher: its evaluation results by name. It is kept next to the sealed files, and grows."""

import json
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError

from nst_data.errors import NstError
from nst_data.store.as_written import AsWritten
from nst_data.store.counts import Count
from nst_data.store.files import write_text
from nst_data.store.places import METRICS_NAME

_Fraction = Annotated[float, Field(strict=True, ge=0, le=1)]
_Number = Annotated[float, Field(strict=True)]
_DISAGREEMENT_RATE = 0.2


class AttackResult(BaseModel):
    """Accuracy under an attack of size `epsilon`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    epsilon: _Number
    top1: _Fraction


class Result(AsWritten):
    """The result of one suite on one set of images, identified by `fingerprint`. Suites add fields of their own."""

    suite: str | None = None  # None for accuracy on clean images
    top1: _Fraction | None = None
    top5: _Fraction | None = None
    ece: _Fraction | None = None
    mce: _Number | None = None
    mfr: _Number | None = None
    relative_to: str | None = None
    by_epsilon: list[AttackResult] = Field([])
    images: Count | None = None
    partial: dict[str, Any] | None = None
    source: str | None = None
    fingerprint: str | None = None


class Metrics(RootModel[dict[str, Result]]):
    """All of a teacher's results, by name."""

    root: dict[str, Result] = Field({})

    @classmethod
    def parse(cls, text: str, path: str) -> Self:
        """Parse the text of metrics; `path` names it in errors. Raises NstError if it is invalid."""
        try:
            return cls.model_validate(json.loads(text))
        except ValidationError as error:
            first = error.errors()[0]
            problem = ": ".join([*map(str, first["loc"]), first["msg"]])
        except (ValueError, RecursionError) as error:
            problem = f"unreadable JSON ({error})"
        raise NstError(f"{path}: expected the metrics of a teacher, found {problem}; delete it and evaluate again")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the metrics of the teacher in a folder; empty if nothing was measured. Raises NstError if they are invalid."""
        path = folder / METRICS_NAME
        return cls.parse(path.read_text("utf-8", errors="replace"), str(path)) if path.exists() else cls()

    @classmethod
    def read_if_valid(cls, folder: Path) -> Self:
        """Like `read`, but empty if the file is invalid, for commands that show more than the metrics."""
        try:
            return cls.read(folder)
        except NstError:
            return cls()

    def write(self, folder: Path) -> None:
        """Write them to a teacher's folder."""
        write_text(folder / METRICS_NAME, json.dumps(self.model_dump(), indent=2) + "\n")

    @property
    def test_top1(self) -> float | None:
        """The top-1 accuracy on test images, or None if it was not measured."""
        return self.root["test"].top1 if "test" in self.root else None


def min_significant_difference(images: int) -> float:
    """The smallest difference in accuracy that can be told from chance on `images` test images, as a fraction: two standard errors.

    Assumes that exactly one of two networks is right on a fifth of the images, which is common if one was trained from the other.
    """
    return min(1.0, 2 * (_DISAGREEMENT_RATE / images) ** 0.5) if images else 1.0
