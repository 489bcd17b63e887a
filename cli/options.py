"""Options that several commands share, and options made from settings so that defaults and help stand in one place."""

import functools
import inspect
import json
import os
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel, ValidationError

from nst_data.errors import UsageError
from nst_data.settings import Settings
from nst_data.store import Store

StoreOption = Annotated[
    str | None, typer.Option("--store", metavar="FOLDER", help="Folder with corpora, teachers and runs; else $NST_STORE, else ./nst-store.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
ClassNamesOption = Annotated[
    str | None, typer.Option("--class-names", metavar="FILE", help="One class name a line, for integer labels without names.")
]
ImageColumnOption = Annotated[
    str | None, typer.Option("--image-column", metavar="NAME", help="The column with the images, where a table has several.")
]
StreamOption = Annotated[bool, typer.Option("--stream", help="Read a Hub dataset's parquet files as needed, without downloading them.")]
MODEL_HELP = "name@gen-N in the store, hf-hub:OWNER/NAME\\[@REV], OWNER/NAME of transformers, local-dir:FOLDER, timm name."
_METAVARS = {int: "N", float: "X", str: "TEXT"}


def open_store(path: str | None) -> Store:
    """The store that --store, $NST_STORE or the current folder names."""
    return Store(path or os.environ.get("NST_STORE") or "nst-store")


def print_json(value: Any) -> None:  # noqa: ANN401 - any result
    """A command's result on standard output."""
    print(json.dumps(value, indent=2))


def with_settings(**models: type[Settings]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one option per field of each settings model; it gets the validated settings under the model's name.

    Settings inside settings (such as noise) become options of the same level.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [one for one in inspect.signature(command, eval_str=True).parameters.values() if one.name not in models]
        made = [option for model in models.values() for option in _options(model)]

        @functools.wraps(command)
        def call(**values: Any) -> None:  # noqa: ANN401
            settings = {name: _validated(model, values) for name, model in models.items()}
            command(**{one.name: values[one.name] for one in own}, **settings)

        parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own] + made
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {one.name: one.annotation for one in parameters}
        return call

    return decorate


def _options(model: type[BaseModel]) -> list[inspect.Parameter]:
    options = []
    for name, field in model.model_fields.items():
        if inner := _inner(field.annotation):
            options += _options(inner)
            continue
        default = inspect.Parameter.empty if field.is_required() else field.default
        names = ["--" + name.replace("_", "-")] if field.annotation is bool else []  # no --no-...: every flag is off by default
        kind, metavar = _kind_and_metavar(field.annotation)
        default = None if default in ({}, ()) else default
        option = typer.Option(*names, help=field.description, metavar=metavar)
        annotation = Annotated[kind, option]  # type: ignore[valid-type]
        options.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation))
    return options


def _kind_and_metavar(annotation: Any) -> tuple[Any, str | None]:  # noqa: ANN401 - any type annotation
    """How Typer should read a setting: numbers or a word as text, several values as a list, a mapping as the file that holds it."""
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is dict:
        return str | None, "FILE"
    if origin is tuple and inside[-1] is Ellipsis:
        return list[inside[0]] | None, _METAVARS[inside[0]]  # type: ignore[valid-type]
    if origin in (types.UnionType, typing.Union) and any(typing.get_origin(one) is typing.Literal for one in inside):
        return str, "|".join(["N", *(word for one in inside for word in typing.get_args(one))])
    if _plain(annotation) == tuple[float, float]:
        return annotation, "X X"
    return annotation, _METAVARS.get(_plain(annotation))


def _plain(annotation: Any) -> Any:  # noqa: ANN401 - any type annotation
    """`int` of `int | None`."""
    kinds = [kind for kind in typing.get_args(annotation) if kind is not types.NoneType]
    return kinds[0] if isinstance(annotation, types.UnionType) and len(kinds) == 1 else annotation


def _validated(model: type[Settings], values: dict[str, Any]) -> Settings:
    try:
        return model.model_validate(_nested(model, values))
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        if first["loc"]:
            message = f"--{str(first['loc'][-1]).replace('_', '-')}: {message}, got {first['input']!r}"
        raise UsageError(message) from None


def _nested(model: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if inner := _inner(field.annotation):
            nested[name] = _nested(inner, values)
        elif typing.get_origin(field.annotation) is dict and values[name] is not None:
            nested[name] = _mapping(values[name], name)
        elif values[name] is not None:
            nested[name] = values[name]
    return nested


def _mapping(file: str, name: str) -> dict[str, Any]:
    """A setting that is read from a YAML file. Raises UsageError."""
    import yaml

    try:
        content = yaml.safe_load(Path(file).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"--{name.replace('_', '-')} {file}: {' '.join(str(error).split())}; expected a YAML file") from None
    if not isinstance(content, dict):
        raise UsageError(f"--{name.replace('_', '-')} {file}: expected lines such as `rose: 0.5`, found {type(content).__name__}")
    return {str(key): value for key, value in content.items()}


def _inner(annotation: Any) -> type[BaseModel] | None:  # noqa: ANN401 - any type annotation
    is_model = isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias) and issubclass(annotation, BaseModel)
    return annotation if is_model else None
