"""The sections of a recipe other than its networks: sources, selection, evaluation, the Hub. Imports no torch."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from nst_data.hub.repository import Repository
from nst_data.settings import BalanceSettings, Settings
from nst_data.store.store import check_name
from nst_train.cluster_settings import ClusterSettings
from nst_train.evaluation_settings import EvaluateSettings, result_name
from nst_train.settings import LabelSettings
from nst_train.zero_shot_settings import ZeroShot


class SourceSettings(Settings):
    """A source in a recipe. Relative paths start at the recipe's folder; a name that is not found there is looked up on the Hub."""

    source: str | list[str] = Field(
        description="Location of the images; labeled images may come from a list of sources (classes are matched by name)."
    )
    image_column: str | None = Field(None, description="Image column, if there are several.")
    class_names: str | None = Field(None, description="A file with one class name per line, for integer labels without names.")
    label_column: str | None = Field(None, description="Label column; default `label`.")
    stream: bool = Field(False, description="Read a Hub dataset's parquet files as needed, without downloading them.")

    @field_validator("source", mode="before")
    @classmethod
    def _check_source(cls, value: Any) -> Any:  # noqa: ANN401 - anything a YAML file holds
        values = value if isinstance(value, list) else [value]
        if not values or not all(isinstance(text, str) and text for text in values):
            raise ValueError("expected text, or a list of texts")
        return value

    @property
    def sources(self) -> list[str]:
        """The sources as a list."""
        return [self.source] if isinstance(self.source, str) else self.source

    def map_sources(self, locate: Callable[[str], str]) -> Self:
        """A copy whose sources are replaced by `locate(source)`."""
        sources = list(map(locate, self.sources))
        return self.model_copy(update={"source": sources[0] if isinstance(self.source, str) else sources})


class TeacherSettings(Settings):
    """The teacher of a recipe in place of generation 0: a trained model, or an image-text model with the words of the classes."""

    model: str = Field(min_length=1, description="A model, named like the `teacher` of `label`, or an image-text model.")
    class_names: str | list[str] | dict[str, Any] | None = Field(
        None,
        description="For an image-text model: a file with one name per line, a .yaml file with the synonyms of each, or these themselves.",
    )
    prompts: str | list[str] | None = Field(
        None,
        description="For an image-text model: a file with one template per line, {} in the place of the name, or the templates themselves.",
    )

    @model_validator(mode="after")
    def _check_prompts(self) -> Self:
        if self.class_names is None and self.prompts is not None:
            raise ValueError("`prompts` apply to image-text models, which require `class_names`; add them")
        if self.class_names is not None:
            ZeroShot(model=self.model, class_names=self.class_names, prompts=self.prompts)
        return self

    @property
    def teacher_name(self) -> str | ZeroShot:
        """The teacher in the form that labeling accepts. Raises UsageError if a file of words does not exist."""
        if self.class_names is None:
            return self.model
        return ZeroShot(model=self.model, class_names=self.class_names, prompts=self.prompts)


class LabelSectionSettings(ClusterSettings, LabelSettings):
    """How a recipe labels the pool, and with which model."""

    def for_request(self) -> dict[str, Any]:
        """The settings of the labeling, without those of the cluster."""
        return {name: value for name, value in super().for_request().items() if name not in ClusterSettings.model_fields}


class SelectSettings(BalanceSettings):
    """How a recipe selects pseudo-labels."""

    by: str | None = Field(
        None,
        min_length=1,
        description="Select by the labels of another model, named like the `teacher` of `label`; it labels the pool once.",
    )
    when: Literal["every_generation", "once"] = Field(
        "every_generation", description="once: later teachers label the images that were selected for the first student, as in the paper."
    )

    @model_validator(mode="after")
    def _check_selector(self) -> Self:
        if self.by is not None and self.when != "once":
            raise ValueError(f"`by` {self.by} selects with one model for all generations; add `when: once`, or remove `by`")
        return self

    @property
    def balance_settings(self) -> BalanceSettings:
        """The settings without those that only a recipe has."""
        return BalanceSettings.model_validate(self.model_dump(exclude={"by", "when"}))


class PushToSettings(Settings):
    """Where on the Hub a recipe pushes its versions as they are made."""

    corpus: str | None = Field(None, description="OWNER/NAME of the dataset that gets the generations and editions.")
    teacher: str | None = Field(None, description="OWNER/NAME of the model that gets the teachers.")
    public: bool = Field(False, description="Create public repositories; by default new ones are private.")
    anonymous: bool = Field(False, description="Omit keys and source names, and replace image hashes by row numbers.")
    license: str | None = Field(None, description="For the cards, such as cc-by-4.0.")
    pool_source: str | None = Field(None, description="For the cards: where the pool's images come from.")

    @field_validator("corpus", "teacher")
    @classmethod
    def _check_repository(cls, value: str | None) -> str | None:
        return value if value is None else Repository.from_id(value).id

    @model_validator(mode="after")
    def _check_any_repository(self) -> Self:
        if self.corpus is None and self.teacher is None:
            raise ValueError("expected `corpus: OWNER/NAME`, `teacher: OWNER/NAME` or both")
        return self


class EvaluationSettings(EvaluateSettings):
    """What is measured for every generation, besides its accuracy on the test images."""

    data: SourceSettings | None = Field(None, description="Labeled images, or a published suite's folder; the test images by default.")
    name: Annotated[str, AfterValidator(check_name)] | None = Field(
        None, description="Prefix of the results in metrics.json (default `test`); published suites keep their own names."
    )

    @field_validator("data", mode="before", json_schema_input_type=str | SourceSettings | None)
    @classmethod
    def _parse_data(cls, value: Any) -> Any:  # noqa: ANN401 - anything a YAML file holds
        return {"source": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_data_and_name(self) -> Self:
        if self.is_published and self.data is None:
            raise ValueError(f"`suite` {self.suite[0]} has its own folder; set it as `data`")
        if self.is_published and self.data and (self.data.class_names or self.data.image_column or self.data.label_column):
            raise ValueError(
                f"`class_names`, `image_column` and `label_column` do not apply to {self.suite[0]}, "
                "which is read from its published folders; remove them"
            )
        if self.is_published and self.data and len(self.data.sources) > 1:
            raise ValueError(f"`data` of {self.suite[0]} is one folder, found {len(self.data.sources)} sources; name one")
        if self.is_published and self.data and self.data.stream:
            raise ValueError(f"`stream` does not apply to {self.suite[0]}, which is read from its published folders; remove it")
        if self.data and not self.is_published and not self.name:
            raise ValueError("`name` is missing: results on `data` are recorded under it in metrics.json")
        return self

    def result_name(self, suite: str) -> str:
        """The name of a suite in metrics.json: prefixed with `name` or test; by default a published suite keeps its own."""
        return result_name(self.name or (suite if self.is_published else "test"), suite)
