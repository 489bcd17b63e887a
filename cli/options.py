"""Options that several commands share, and options made from settings so that defaults and help stand in one place."""

import functools
import inspect
import json
import os
import types
import typing
from collections.abc import Callable
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
        option = typer.Option(*names, help=field.description, metavar=_METAVARS.get(_plain(field.annotation)))
        annotation = Annotated[field.annotation, option]  # type: ignore[name-defined]
        options.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation))
    return options


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
    return {
        name: _nested(inner, values) if (inner := _inner(field.annotation)) else values[name] for name, field in model.model_fields.items()
    }


def _inner(annotation: Any) -> type[BaseModel] | None:  # noqa: ANN401 - any type annotation
    is_model = isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias) and issubclass(annotation, BaseModel)
    return annotation if is_model else None
