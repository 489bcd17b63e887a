"""Settings for filtering, balancing, adopting and picking: the single place where their defaults are defined."""

import contextlib
import difflib
import functools
import inspect
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from nst_data.errors import UsageError, short_repr


@dataclass(frozen=True)
class Later:
    """Marks a field added after data had been made without it: `before` is the value that reproduces the earlier behavior.

    The field is omitted from stored requests while it has this value, whatever its default, so that digests do not change.
    """

    before: Any


@functools.cache
def later_fields(model: type[BaseModel]) -> dict[str, Any]:
    """The fields of a model that are marked as `Later`, with their `before` values."""
    marks = ((name, mark) for name, field in model.model_fields.items() for mark in field.metadata)
    return {name: mark.before for name, mark in marks if isinstance(mark, Later)}


if typing.TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass as _InOneLine
    from pydantic_core import ErrorDetails
else:

    class _InOneLine(type(BaseModel)):
        def __call__(cls, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            """Construct settings in Python. Raises UsageError with the first fault, whereas `model_validate` raises pydantic's error."""
            try:
                return super().__call__(*args, **kwargs)
            except ValidationError as error:
                raise UsageError(f"{cls.__name__}: {_error_message(cls, error)}") from None


def _error_message(model: type[BaseModel], error: ValidationError) -> str:
    first = error.errors()[0]
    *parents, name = first["loc"] or ("",)
    for parent in parents:
        inner = model.model_fields[parent].annotation if parent in model.model_fields else None
        model = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else model
    prefix = f"`{'.'.join(map(str, first['loc']))}`: " if name != "" else ""
    if first["type"] == "missing":
        description = model.model_fields[str(name)].description
        return f"{prefix}missing{(description and f': {description}') or ''}"
    if first["type"] == "extra_forbidden":
        return prefix + unknown_key_message(str(name), model)
    return prefix + describe_validation_error(first) + (f", found {first['input']!r}" if prefix else "")


_EXPECTED = {
    "greater_than": "a number above {gt:,}",
    "greater_than_equal": "a number of at least {ge:,}",
    "less_than": "a number below {lt:,}",
    "less_than_equal": "a number of at most {le:,}",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "literal_error": "{expected}",
    "list_type": "a list",
    "tuple_type": "a list",
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
}  # what was expected, by pydantic's error type


def describe_validation_error(error: "ErrorDetails") -> str:
    """What a pydantic error says was expected, in the style of nst's other messages."""
    if expected := _EXPECTED.get(error["type"]):
        bounds = {
            name: int(value) if isinstance(value, float) and value.is_integer() else value for name, value in error.get("ctx", {}).items()
        }
        return "expected " + expected.format(**bounds)
    message = error["msg"].removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def unknown_key_message(name: str, model: type[BaseModel]) -> str:
    """The message about an unknown settings key, with a suggestion."""
    matches = difflib.get_close_matches(name, model.model_fields, n=1)
    return "unknown key; " + (f"did you mean {matches[0]}?" if matches else f"expected one of {', '.join(model.model_fields)}")


class Settings(BaseModel, metaclass=_InOneLine):
    """Settings are values: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    panel: ClassVar[str] = "Options"  # heading in a command's help

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:  # noqa: ANN401
        """Append the description of each field to the docstring, for `help()` and notebooks."""
        lines = [f"    {name}: {_description_with_default(field)}" for name, field in cls.model_fields.items()]
        cls.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__ or ""), "", "Args:", *lines])

    @field_validator("*", mode="before")
    @classmethod
    def _reject_bool_for_number(cls, value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401 - what a user wrote
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and {annotation, *typing.get_args(annotation)} & {int, float} and annotation != tuple[float, float]:
            raise ValueError("expected a number")  # otherwise it would become 0 or 1
        return value

    def for_request(self) -> dict[str, Any]:
        """The settings that affect data, as JSON values, without `Later` fields that have their `before` value."""
        later, values = later_fields(type(self)), self.model_dump(mode="json")
        attributes = {name: getattr(self, name) for name in values}
        return {
            name: attributes[name].for_request() if isinstance(attributes[name], Settings) else value
            for name, value in values.items()
            if name not in later or attributes[name] != later[name]
        }

    @classmethod
    def from_request(cls, values: Mapping[str, Any]) -> Self:
        """Restore settings from `for_request`: missing fields get their `before` value, whatever the default is now."""
        return cls.model_validate({**later_fields(cls), **values})


def _description_with_default(field: FieldInfo) -> str:
    description = field.description or ""
    if field.is_required() or field.default in (None, (), {}) or isinstance(field.default, BaseModel):
        return description
    return f"{description} [default: {field.default!r}]"


class ReadableSettings(Settings):
    """How many unreadable images are tolerated; does not affect the data."""

    panel: ClassVar[str] = "Execution (does not affect results)"

    max_unreadable: float = Field(
        0.5, ge=0, le=1, description="Largest tolerated share of unreadable images; above it the command stops and can be resumed."
    )


def _reject_bool(value: Any) -> Any:  # noqa: ANN401 - what a user wrote
    if isinstance(value, bool):
        raise ValueError("expected a number from 0 to 1")  # otherwise it would become 0 or 1
    return value


_Confidence = Annotated[float, BeforeValidator(_reject_bool), Field(ge=0, le=1)]
MAX_ENTRIES = 2**31 - 1  # `copies` is an int32
_Quota = Annotated[int, Field(ge=1, le=MAX_ENTRIES)] | Literal["auto", "none"]
DENSE_CLASSES, DEFAULT_TOP_K, ROWS_PER_SHARD = 1_000, 100, 50_000


def default_top_k(classes: int) -> int | None:
    """The default number of classes kept per soft label; None for all."""
    return DEFAULT_TOP_K if classes > DENSE_CLASSES else None


class AdoptSettings(Settings):
    """How the labels are laid out in a table that was made elsewhere, and how they are stored."""

    probs: str | None = Field(
        None,
        description="Column of probabilities: a list for all classes, or beside `label_column`; prob stands for prob_0, prob_1, ... too. "
        "By default a column named prob, score or similar.",
    )
    label_column: Annotated[str | None, Later(None)] = Field(
        None,
        description="Column of classes, by name or number: one, or a list of the most probable. By default one named label or similar.",
    )
    logits: Annotated[bool, Later(False)] = Field(False, description="The values are logits; apply softmax.")
    smoothing: Annotated[float, Later(0.0)] = Field(
        0.0, ge=0, lt=1, description="For labels without a confidence: label smoothing, the share spread evenly over all classes."
    )
    key: str | None = Field(None, description="Column that names the image of each row: its key, path or file name in the pool.")
    top_k: int | None = Field(
        None, ge=1, description=f"Keep the K largest probabilities; by default all, above {DENSE_CLASSES:,} classes {DEFAULT_TOP_K}."
    )
    rows_per_shard: int = Field(ROWS_PER_SHARD, ge=1, description="Rows per parquet shard; progress is saved after each shard.")


class PickSettings(Settings):
    """Which images a person should look at."""

    by: Literal["margin", "entropy", "confidence", "churn", "suspicion", "outlier", "mixed", "random"] | None = Field(
        None,
        description="How to rank images; default: mixed, for labeled images suspicion; random gives an unbiased estimate.",
    )
    number: int = Field(100, ge=1, le=10_000, description="How many images.")
    spread: Literal["k-means", "k-center", "classes"] | None = Field(
        None,
        description="Diversify picks by features (computed once and cached) or by class only; default: k-means, for suspicion classes.",
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Random seed.")


class BalanceSettings(Settings):
    """Which pseudo-labeled images make the training set (section 3.1 of the paper)."""

    min_confidence: float = Field(0.3, ge=0, le=1, description="Keep images with a confidence above this.")
    class_min_confidence: dict[str, _Confidence] = Field({}, description="Thresholds for individual classes: lines such as `rose: 0.5`.")
    at_threshold: Annotated[Literal["drop", "keep"], Later("drop")] = Field(
        "drop",
        description="Images with a confidence equal to the threshold; the paper drops them. `method` official keeps them by default.",
    )
    confidence_range: tuple[float, float] | None = Field(
        None, description="Keep images with a confidence above the first number, up to the second, in place of the threshold (figure 5)."
    )
    exclude_class: tuple[str, ...] = Field((), description="Leave out the images with this label; repeatable.")
    fraction: float = Field(1.0, gt=0, le=1, description="Keep this share of the images, chosen at random (study 2).")
    per_class: int | Literal["auto", "none"] = Field(
        130_000,
        description="Entries per class: the most confident images, with copies if too few. auto: a quantile of the classes; none: all.",
    )
    auto_quantile: float = Field(
        0.5, gt=0, le=1, description="With `per_class` auto: quantile of the images per class that becomes the quota."
    )
    max_copies: int | None = Field(None, ge=1, description="Maximum number of entries per image; a class may then have fewer entries.")
    method: Literal["exact", "official"] = Field(
        "exact", description="official: by bins of confidence and random rounding, as in the released code."
    )
    exact_overlap_only: bool = Field(
        False, description="Leave out only byte-identical copies of excluded images, not their near-duplicates."
    )
    embed_images: bool = Field(False, description="Also write the images, in shuffled shards: a dataset that needs no pool.")
    shard_mb: int = Field(500, ge=1, description="Size of a shard with images, in megabytes.")
    seed: int = Field(0, ge=0, lt=2**31, description="Random seed, e.g. for which images get an extra copy.")

    @model_validator(mode="before")
    @classmethod
    def _default_at_threshold(cls, values: Any) -> Any:  # noqa: ANN401 - what a user wrote
        """The released code keeps images whose confidence equals the threshold (filter_unlabel.py)."""
        if isinstance(values, dict) and values.get("method") == "official" and not values.get("confidence_range"):
            return {"at_threshold": "keep", **values}
        return values

    @field_validator("class_min_confidence", mode="before")
    @classmethod
    def _convert_class_names(cls, value: Any) -> Any:  # noqa: ANN401 - what a user wrote
        if not isinstance(value, dict):
            raise ValueError("expected class names with a confidence each, such as `rose: 0.5`")
        return {_class_name_text(name): threshold for name, threshold in value.items()}

    @field_validator("confidence_range", mode="wrap")
    @classmethod
    def _check_range(cls, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:  # noqa: ANN401 - what a user wrote
        with contextlib.suppress(ValueError):
            checked = handler(value)
            if checked is None or 0 <= checked[0] < checked[1] <= 1:
                return checked
        raise ValueError("expected two numbers from 0 to 1, the smaller one first")

    @field_validator("exclude_class", mode="before", json_schema_input_type=list[str | int])
    @classmethod
    def _convert_excluded_classes(cls, value: Any) -> Any:  # noqa: ANN401 - what a user wrote
        if not isinstance(value, list | tuple):
            raise ValueError("expected a list of class names")
        return sorted({_class_name_text(name) for name in value})

    @field_validator("per_class", mode="before", json_schema_input_type=_Quota)
    @classmethod
    def _parse_quota(cls, value: Any) -> Any:  # noqa: ANN401 - what a user wrote
        if value in ("auto", "none"):
            return value
        quota = 0
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            quota = int(value) if not isinstance(value, bool) and int(value) == float(value) else 0
        if quota < 1:
            raise ValueError("expected a number of entries from 1, 'auto' or 'none'")
        if quota > MAX_ENTRIES:
            raise ValueError(f"expected at most {MAX_ENTRIES:,} entries")
        return quota

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        """Setting names in backticks are shown as options on the command line."""
        if self.confidence_range and (self.class_min_confidence or self._is_set("min_confidence")):
            raise ValueError("`confidence_range` replaces `min_confidence` and `class_min_confidence`; remove those")
        if self.confidence_range and self._is_set("at_threshold"):
            raise ValueError("`at_threshold` does not apply to `confidence_range`; remove one of them")
        if self.per_class == "none" and self.max_copies:
            raise ValueError("`max_copies` limits copies, and `per_class` none makes none; remove one of them")
        if self.per_class == "none" and self.method != "exact":
            raise ValueError(f"`method` {self.method} is a balancing method, and `per_class` none does not balance; remove one of them")
        if self.per_class != "auto" and self._is_set("auto_quantile"):
            raise ValueError("`auto_quantile` applies to `per_class` auto; add that, or remove it")
        if not self.embed_images and self._is_set("shard_mb"):
            raise ValueError("`shard_mb` applies to shards with images; add `embed_images`, or remove it")
        return self

    def _is_set(self, name: str) -> bool:
        return bool(getattr(self, name) != type(self).model_fields[name].default)


def _class_name_text(name: Any) -> str:  # noqa: ANN401 - what a user wrote
    """Convert a class name that YAML parsed as a number, such as `7`, back to text."""
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise ValueError(f"expected class names, one is {short_repr(name)}: put names such as 'no' and '1.0' in quotes")
    return str(name)
