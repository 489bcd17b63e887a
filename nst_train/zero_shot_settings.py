"""A zero-shot teacher: an image-text model with the words of the classes. Imports no torch."""

from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from nst_data.errors import UsageError
from nst_data.settings import Settings
from nst_data.sources.class_texts import is_yaml, parse_synonyms, read_synonyms
from nst_data.sources.labels import read_class_names

PLACEHOLDER = "{}"
DEFAULT_PROMPTS = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
"""The prompts that CLIP's authors chose by forward selection from their eighty (openai/CLIP, Prompt_Engineering_for_ImageNet.ipynb)."""


class ZeroShot(Settings):
    """A teacher that needs no training: an image-text model, such as CLIP or SigLIP, and the words of its classes."""

    model: str = Field(
        min_length=1, description="OWNER/NAME[@REVISION] of transformers, hf-hub:OWNER/NAME of OpenCLIP, or local-dir:FOLDER of either."
    )
    class_names: str | list[str] | dict[str, Any] = Field(
        description="The classes: a file with one name per line, a .yaml file with the synonyms of each, or these themselves."
    )
    prompts: str | list[str] | None = Field(
        None, description="Templates of the texts, in which {} stands for the name: a file with one per line, or these themselves."
    )

    @field_validator("class_names")
    @classmethod
    def _check_class_names(cls, value: str | list[str] | dict[str, Any]) -> str | list[str] | dict[str, Any]:
        if not isinstance(value, str):
            parse_synonyms(value, "class_names")
        return value

    @field_validator("prompts")
    @classmethod
    def _check_prompts(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, list):
            _check_templates(value, "prompts", "template")
        return value

    def __str__(self) -> str:
        return self.model

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    @cached_property
    def synonyms(self) -> dict[str, tuple[str, ...]]:
        """The words of each class, by class name and in order. Raises UsageError if the file has none."""
        if not isinstance(self.class_names, str):
            return parse_synonyms(self.class_names, "`class_names`")
        if is_yaml(self.class_names):
            return read_synonyms(self.class_names)
        return parse_synonyms(read_class_names(self.class_names), f"`class_names` {self.class_names}")

    @cached_property
    def templates(self) -> tuple[str, ...]:
        """The templates of `prompts`, or the default ones. Raises UsageError if the file has none."""
        if self.prompts is None:
            return DEFAULT_PROMPTS
        return _read_prompts(self.prompts) if isinstance(self.prompts, str) else tuple(self.prompts)

    def texts(self, name: str) -> list[str]:
        """The texts of a class: each of its words in each template. Only {} is replaced; nothing else has a special meaning."""
        return [template.replace(PLACEHOLDER, synonym) for synonym in self.synonyms[name] for template in self.templates]


def _read_prompts(file: str) -> tuple[str, ...]:
    try:
        text = Path(file).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not in UTF-8"
        raise UsageError(f"`prompts` {file}: {reason}; expected a text file with one template per line") from None
    return _check_templates([line.strip() for line in text.rstrip().split("\n")], f"`prompts` {file}", "line")


def _check_templates(templates: list[str], source: str, unit: str) -> tuple[str, ...]:
    """Raises UsageError for a template without a placeholder for the name."""
    if not templates:
        raise UsageError(f"{source}: expected templates such as 'a photo of a {{}}.', found none")
    for number, template in enumerate(templates, start=1):
        if PLACEHOLDER not in template or not template.isprintable():
            raise UsageError(
                f"{source}: {unit} {number} is {template[:60]!r}; expected a template with {{}} in the place of the class name"
            )
    return tuple(templates)
