"""Settings of evaluation, the only place of their defaults. Imports no torch."""

from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from nst_data.settings import Settings

CLEAN, CORRUPTED, EXTRA_CORRUPTED, FGSM, PGD = "clean", "corruptions", "extra-corruptions", "fgsm", "pgd"
IMAGENET_A, IMAGENET_R, IMAGENET_C, IMAGENET_P = "imagenet-a", "imagenet-r", "imagenet-c", "imagenet-p"
OWN_IMAGE_SUITES = (CLEAN, CORRUPTED, EXTRA_CORRUPTED, FGSM, PGD)
STEPS_LENGTH = 2.5  # total length of all PGD steps, in epsilons (Madry et al. 2018, arXiv 1706.06083)
PUBLISHED_SUITES = (IMAGENET_A, IMAGENET_R, IMAGENET_C, IMAGENET_P)


def _parse_numbers(value: Any) -> Any:  # noqa: ANN401 - what a user wrote
    """A flat list of numbers, from numbers, fractions such as 2/255, and comma-separated lists of either."""
    parts = [value] if isinstance(value, str | int | float) else value
    if not isinstance(parts, list | tuple):
        return value
    return [_parse_number(part) for item in parts for part in (item.split(",") if isinstance(item, str) else [item])]


def _parse_number(value: Any) -> Any:  # noqa: ANN401 - what a user wrote
    if not isinstance(value, str):
        return value
    numerator, _, denominator = value.partition("/")
    try:
        return float(numerator) / float(denominator or 1)
    except (ValueError, ZeroDivisionError):
        raise ValueError("expected numbers such as 2/255 or 0.01, with commas between them") from None


_Epsilons = Annotated[tuple[float, ...], BeforeValidator(_parse_numbers, json_schema_input_type=float | str | list[float | str])]
_Suite = Annotated[str, Field(json_schema_extra={"enum": [*OWN_IMAGE_SUITES, *PUBLISHED_SUITES]})]


def _check_epsilons(value: tuple[float, ...]) -> tuple[float, ...]:
    if not value or not all(0 < size <= 1 for size in value):
        raise ValueError("expected sizes above 0, up to 1: images are in [0, 1]")
    return tuple(sorted(set(value)))


class EvaluateSettings(Settings):
    """What to measure of a classifier."""

    model_config = ConfigDict(defer_build=True)  # so that `nst --help` need not wait for it
    panel: ClassVar[str] = "Suites"

    suite: tuple[str, ...] = Field(
        (CLEAN,),
        min_length=1,
        description=f"What to measure; repeatable. {', '.join(OWN_IMAGE_SUITES)}: on any labeled images "
        f"(extra-corruptions: the four that do not count towards mCE). {', '.join(PUBLISHED_SUITES)}: "
        "on the published folders.",
    )
    relative_to: str | None = Field(
        None, description="corruptions: normalize errors by this model's, as the paper does by AlexNet's; by default unnormalized."
    )
    epsilon: Annotated[_Epsilons, AfterValidator(_check_epsilons)] = Field(
        (1 / 255, 2 / 255, 4 / 255, 8 / 255, 16 / 255),
        description="fgsm, pgd: L-infinity bounds, for pixels in [0, 1].",
        examples=["1/255,2/255,4/255,8/255,16/255"],
    )
    steps: int = Field(10, ge=1, description="pgd: number of steps (the paper: 10).")
    step_size: float | None = Field(None, gt=0, le=1, description=f"pgd: step size; by default {STEPS_LENGTH} x epsilon / steps.")
    random_start: bool = Field(False, description="pgd: start at a random point within epsilon, by seed and image.")
    partial: bool = Field(False, description="imagenet-...: allow missing corruptions, classes or sequences, and measure the rest.")
    seed: int = Field(0, ge=0, lt=2**31, description="Random seed of corruptions, random starts and bootstrap samples.")

    @field_validator("suite", mode="before", json_schema_input_type=_Suite | list[_Suite])
    @classmethod
    def _parse_suites(cls, value: Any) -> Any:  # noqa: ANN401 - what a user wrote
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list | tuple) or not all(name in OWN_IMAGE_SUITES + PUBLISHED_SUITES for name in names):
            raise ValueError(f"expected some of {', '.join(OWN_IMAGE_SUITES + PUBLISHED_SUITES)}")
        return list(dict.fromkeys(names))

    @field_validator("step_size", mode="before", json_schema_input_type=float | str | None)
    @classmethod
    def _parse_step_size(cls, value: Any) -> Any:  # noqa: ANN401 - what a user wrote
        return _parse_number(value)

    @model_validator(mode="after")
    def _check_options_apply(self) -> Self:
        """Reject options of suites that are not requested: they would do nothing. Names in backticks become options on the command line."""
        of_attacks = dict.fromkeys(("epsilon",), (FGSM, PGD)) | dict.fromkeys(("steps", "step_size", "random_start"), (PGD,))
        for name, suites in {**of_attacks, "relative_to": (CORRUPTED,), "partial": PUBLISHED_SUITES}.items():
            if name in self.model_fields_set and getattr(self, name) not in (None, False) and not set(suites) & set(self.suite):
                raise ValueError(f"`{name}` applies to the suite {' or '.join(suites)}; add it to `suite` or remove this")
        return self

    @model_validator(mode="after")
    def _check_published_alone(self) -> Self:
        published = [name for name in self.suite if name in PUBLISHED_SUITES]
        if published and len(self.suite) > 1:
            raise ValueError(f"`suite` {published[0]} has a folder of its own; evaluate the others separately")
        return self

    @property
    def is_published(self) -> bool:
        """Whether the suite is one of the published folders."""
        return self.suite[0] in PUBLISHED_SUITES

    def suite_settings(self, suite: str) -> dict[str, Any]:
        """The settings that determine the numbers of a suite, as JSON values."""
        names = {
            CORRUPTED: {"seed"},
            EXTRA_CORRUPTED: {"seed"},
            FGSM: {"epsilon"},
            PGD: {"epsilon", "steps", "step_size", "random_start"} | ({"seed"} if self.random_start else set()),
        }
        return self.model_dump(mode="json", include=names.get(suite, set()) | ({"partial"} if suite in PUBLISHED_SUITES else set()))


def result_name(name: str, suite: str) -> str:
    """The name of a suite's results in a teacher's metrics.json, given the user's `name`: test, test-corruptions, test-imagenet-c."""
    return name if suite in (CLEAN, name) else f"{name}-{suite}"
