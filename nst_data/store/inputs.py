"""What a version was made from: an entry for each teacher, pool, labeled set and version, keyed by role."""

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from nst_data.settings import Later, later_fields
from nst_data.store.as_written import AsWritten

_MODEL_ROLES = re.compile(r"teacher(_\d+)?|initial_weights")


class ClassTexts(BaseModel):
    """The words given to an image-text model for each class; `prompts` are templates in which {} stands for the word."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    synonyms: dict[str, list[str]]
    prompts: list[str]
    tokens_sha256: str = Field(description="of what its tokenizer made of all texts")


class Input(BaseModel):
    """One input of a version. Only `digest` decides whether two inputs are the same."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ref: str = Field(description="name@version in the store, or the source as it was found")
    digest: str = Field(description="the version's digest, or the source's fingerprint")
    weights_sha256: str | None = None
    revision: str | None = Field(None, description="commit on the Hub")
    repo: str | None = Field(None, description="owner/name@tag of a version on the Hub")
    image_column: str | None = Field(None, description="the requested image column, in a source with several")
    label_column: Annotated[str | None, Later(None)] = Field(None, description="the requested label column")
    pulled: Annotated[bool, Later(False)] = Field(False, description="taken from a downloaded manifest: `ref` is shown but never opened")
    license: Annotated[str | None, Later(None)] = Field(None, description="of weights or images on the Hub, as their repository names it")
    sources: Annotated[tuple[str, ...] | None, Later(None)] = Field(None, description="the sources that were joined, in their order")
    part: Annotated[str | None, Later(None)] = Field(None, description="which of the source's images, where not all")
    skipped: Annotated[dict[str, int] | None, Later(None)] = Field(None, description="skipped files that may be images, by suffix")
    texts: Annotated[ClassTexts | None, Later(None)] = Field(None, description="of a zero-shot teacher: the words for its classes")

    @model_serializer(mode="wrap")
    def _omit_later_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out `Later` fields that have their `before` value, so that earlier versions of nst can read the entry."""
        later, values = later_fields(type(self)), handler(self)
        return {name: value for name, value in values.items() if name not in later or value != later[name]}


class Inputs(AsWritten):
    """The inputs of any version. Numbered roles, and roles that only a later nst knows, have no field of their own."""

    __pydantic_extra__: dict[str, Input] = Field(init=False)
    pool: Input | None = None

    @field_validator("*", mode="before")
    @classmethod
    def _reject_null(cls, entry: Any) -> Any:  # noqa: ANN401 - any JSON value
        if entry is None:  # an absent role is left out instead
            raise ValueError("expected an input")
        return entry

    @property
    def by_role(self) -> dict[str, Input]:
        """All inputs by role, in the order of the manifest."""
        values = dict(self)
        return {role: values[role] for role in self._field_names}

    @property
    def teachers(self) -> dict[str, Input]:
        """The teachers that gave the labels: `teacher`, or `teacher_1`, `teacher_2`, ... of an ensemble."""
        return self._entries_of_role("teacher")

    @property
    def adopted_tables(self) -> dict[str, Input]:
        """The tables of labels that were made elsewhere: `adopted`, followed by `adopted_2`, ... if there are several."""
        return self._entries_of_role("adopted")

    @property
    def excluded(self) -> dict[str, Input]:
        """The sources of excluded images: `exclude_1`, `exclude_2`, ..."""
        return self._entries_of_role("exclude")

    def map_entries(self, change: Callable[[str, Input], Input]) -> Self:
        """The same roles, each entry replaced by `change(role, entry)`."""
        return type(self).model_validate({role: change(role, entry) for role, entry in self.by_role.items()})

    def _entries_of_role(self, role: str) -> dict[str, Input]:
        name = re.compile(rf"{role}(_\d+)?")
        return {role: entry for role, entry in self.by_role.items() if name.fullmatch(role)}


class GenerationInputs(Inputs):
    """The inputs of a generation: the pool, and what labeled it; `adopted` is a table of labels made elsewhere."""

    pool: Input
    teacher: Input | None = None
    calibration: Input | None = None
    extended: Input | None = None
    adopted: Input | None = None
    class_names: Input | None = None


class EditionInputs(Inputs):
    """The inputs of an edition: the pool, and the generation it was drawn from or the edition that was labeled again."""

    pool: Input
    teacher: Input | None = None
    generation: Input | None = None
    like: Input | None = None
    reviews: Input | None = None

    @property
    def parent(self) -> Input | None:
        """The version whose rows the edition has."""
        return self.generation or self.like


class TeacherInputs(Inputs):
    """The inputs of a trained teacher: its images, and the weights it started from."""

    labeled: Input | None = None
    validation: Input | None = None
    edition: Input | None = None
    reviews: Input | None = None
    initial_weights: Input | None = None


class ReviewInputs(Inputs):
    """The input of a review: the answers given until it was frozen."""

    answers: Input


def by_numbered_role(role: str, entries: Sequence[Input]) -> dict[str, Input]:
    """Entries by role: a single one under `role`, several under `role_1`, `role_2`, ..."""
    return {role: entries[0]} if len(entries) == 1 else {f"{role}_{number}": entry for number, entry in enumerate(entries, start=1)}


def is_model_role(role: str) -> bool:
    """Whether the role is that of a teacher or other weights, whose Hub repository is a model."""
    return _MODEL_ROLES.fullmatch(role) is not None
