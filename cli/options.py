"""Options that several commands share, and options generated from settings, so that defaults and help are defined in one place."""

import functools
import inspect
import json
import os
import re
import shlex
import types
import typing
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel, ValidationError

from nst_data.errors import UsageError
from nst_data.settings import Settings, describe_validation_error
from nst_train.presets import ENABLED_BY_PRESETS

from .messages import cli_progress

if TYPE_CHECKING:
    from nst_data.sources import Source
    from nst_data.store.inputs import Inputs
    from nst_data.store.manifest import Kind
    from nst_data.store.store import Store, Version
    from nst_train.teacher_names import TeacherName

StoreOption = Annotated[
    str | None,
    typer.Option("--store", metavar="STORE", help="Folder or s3:// address of the store; else $NST_STORE, else ./nst-store."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
ShowSettingsOption = Annotated[
    bool, typer.Option("--show-settings", help="Print every setting and where its value comes from; train nothing.")
]
ClassNamesOption = Annotated[
    str | None, typer.Option("--class-names", metavar="FILE", help="One class name per line, for integer labels without names.")
]
ZeroShotNamesOption = Annotated[
    str | None,
    typer.Option(
        "--class-names",
        metavar="FILE",
        help="One class name per line, or a .yaml with synonyms: for image-text models, and for integer labels without names.",
    ),
]
PromptsOption = Annotated[
    str | None,
    typer.Option("--prompts", metavar="FILE", help="Templates of the texts for an image-text model, one per line, {} for the class name."),
]
LabelColumnOption = Annotated[str | None, typer.Option("--label-column", metavar="NAME", help="Label column; default `label`.")]
ImageColumnOption = Annotated[str | None, typer.Option("--image-column", metavar="NAME", help="Image column, if the table has several.")]
StreamOption = Annotated[bool, typer.Option("--stream", help="Read a Hub dataset's parquet files as needed, without downloading them.")]
HoldoutSeedOption = Annotated[
    int, typer.Option("--holdout-seed", min=0, metavar="N", help="Seed of the --holdout split; in a recipe, its `seed`.")
]
MODEL_HELP = "name@gen-N in the store, hf-hub:OWNER/NAME\\[@REV], OWNER/NAME of a transformers model, local-dir:FOLDER, timm model name."
_OPTIONS = {"start": "--start-from"}  # torchrun takes --start for its own --start-method
_FORMER_OPTIONS = {"start": "--start"}  # former names, still accepted but not shown
_METAVARS = {int: "N", float: "X", str: "TEXT"}


def open_store(path: str | None) -> "Store":
    """Open the store at --store, else $NST_STORE, else ./nst-store."""
    from nst_data.store.store import Store

    return Store(path or os.environ.get("NST_STORE") or "nst-store")


def open_version(store: "Store", ref: str, *kinds: "Kind") -> "Version":
    """Open a version by its reference in the store, or OWNER/NAME[@VERSION] on the Hub, which is pulled first if necessary."""
    if "/" not in ref:
        return store.open(ref, *kinds)
    from nst_data.sharing.pull import pull
    from nst_train.device import this_process

    with this_process().main_process_first():
        return pull(store, ref, progress=cli_progress(), kinds=kinds)


def open_models(store: "Store", names: list[str], class_names: str | None, prompts: str | None, allow_unused: bool) -> "list[TeacherName]":
    """Models by name, image-text models with their class names. Raises UsageError if no model takes the names, unless `allow_unused`."""
    if class_names is None and prompts is not None:
        raise UsageError(f"--prompts {prompts}: class names are missing; add --class-names FILE")
    if class_names is None:
        return list(names)
    from nst_train.classifiers.teachers import with_class_names

    return with_class_names(names, store, class_names, prompts, allow_unused)


def open_labeled_images(location: str, class_names: str | None, models: "Sequence[TeacherName]", **columns: Any) -> "Source":  # noqa: ANN401
    """Open labeled images to score models on. The class names of an image-text model are also used for integer labels, but no others."""
    from nst_data.sources import open_source
    from nst_data.sources.labels import class_numbers, labels_in, read_class_names, rename_classes

    if class_names is None or all(isinstance(model, str) for model in models):
        return open_source(location, labeled=True, class_names=class_names, **columns)
    source, names = open_source(location, labeled=True, **columns), read_class_names(class_names)
    source_names = source.class_names or []
    if class_numbers(source_names) is not None and not set(source_names) <= set(names):
        source.labels, source.class_names = rename_classes(labels_in(source), source_names, source.location, names, class_names)
    return source


def labeled_option(inputs: "Inputs") -> str:
    """The option for labeled images in a hint at how to train on pseudo-labels; empty for a zero-shot teacher, which may have none."""
    return "" if any(teacher.texts for teacher in inputs.teachers.values()) else " --labeled LABELED"


def check_holdout(share: float | None, seed: int) -> None:
    """Raises UsageError for an invalid share, and for a seed without a share."""
    if share is None and seed:
        raise UsageError("--holdout-seed applies to held-out images; add --holdout SHARE, such as 0.2, or remove it")
    if share is not None and not 0 < share < 1:  # checked before anything is opened
        raise UsageError(f"--holdout: expected a share above 0 and below 1, such as 0.2, found {share:g}")


def print_json(value: Any) -> None:  # noqa: ANN401 - any result
    """Print a command's result on standard output."""
    print(json.dumps(value, indent=2))


def with_settings(**models: type[Settings]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one option per field of each settings model, and pass it the validated settings under the model's name.

    Nested settings become options on the same level: those of `noise` by their names, those of `pseudo_noise` as `--pseudo-...`. Only
    values from the command line are passed to a model, which fills in the rest. A command with a parameter `given` also gets these as
    {model: its values on the command line}.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        accepted = inspect.signature(command, eval_str=True).parameters
        own_parameters = [parameter for parameter in accepted.values() if parameter.name not in models and parameter.name != "given"]
        options = [option for model in models.values() for option in _option_parameters(model)]

        @functools.wraps(command)
        def call(context: typer.Context, **values: Any) -> None:  # noqa: ANN401
            typed = {name.removeprefix("former_"): value for name, value in values.items() if _is_on_command_line(context, name)}
            empty_names = [name for name, value in values.items() if value == "" or (isinstance(value, list | tuple) and "" in value)]
            if empty := [name for name in empty_names if _is_on_command_line(context, name)]:
                option = next(parameter.opts[0] for parameter in context.command.params if parameter.name == empty[0])
                raise UsageError(f"{option}: expected a value, found an empty one")  # such as an unset shell variable
            for name, former in _FORMER_OPTIONS.items():
                if _is_on_command_line(context, name) and _is_on_command_line(context, f"former_{name}"):
                    raise UsageError(f"{former} is the old name of {option_name(name)}; pass only one")
            user_values = {name: _nest_values(model, typed) for name, model in models.items()}
            settings: dict[str, Any] = {name: _validate(model, user_values[name], typed) for name, model in models.items()}
            if "given" in accepted:
                settings["given"] = user_values
            command(**{parameter.name: values[parameter.name] for parameter in own_parameters}, **settings)

        parameters = [inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
        parameters += [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own_parameters] + options
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return call

    return decorate


def _is_on_command_line(context: typer.Context, name: str) -> bool:
    """Whether an option was given on the command line, rather than having the default shown in its help."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _option_parameters(model: type[Settings], prefix: str = "") -> list[inspect.Parameter]:
    options = []
    for field_name, field in model.model_fields.items():
        if inner := _nested_model(field.annotation):
            options += _option_parameters(inner, prefix_of(field_name))
            continue
        name = prefix + field_name
        default = None if field.is_required() else field.default  # the model reports a missing value: another setting may imply it
        is_named = field.annotation is bool or name in _OPTIONS  # no --no-... for a flag that is off by default
        names = [option_name(name)] if is_named else []
        if field.annotation == bool | None or (field.annotation is bool and "preset" in model.model_fields and name in ENABLED_BY_PRESETS):
            names = [f"{option_name(name)}/--no-{option_name(name).removeprefix('--')}"]
        kind, metavar = _type_and_metavar(field.annotation)
        default = None if default in ({}, ()) else default
        shown = field.examples[0] if field.examples else True  # a default as a user would write it
        help_text = _settings_to_options(field.description or "", set(model.model_fields))
        option = typer.Option(*names, help=help_text, metavar=metavar, rich_help_panel=model.panel, show_default=shown)
        annotation = Annotated[kind, option]  # type: ignore[valid-type]
        options.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation))
        if name in _FORMER_OPTIONS:
            former = Annotated[kind, typer.Option(_FORMER_OPTIONS[name], hidden=True)]  # type: ignore[valid-type]
            options.append(inspect.Parameter(f"former_{name}", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=former))
    return options


def _type_and_metavar(annotation: Any) -> tuple[Any, str | None]:  # noqa: ANN401 - any type annotation
    """The type that Typer reads a setting as: mostly text, which the settings model validates, so that all errors look alike."""
    origin, inside, plain = typing.get_origin(annotation), typing.get_args(annotation), _without_none(annotation)
    if annotation in (bool, bool | None):
        return annotation, None
    if origin is dict:
        return str | None, "FILE"
    if origin is tuple and inside[-1] is Ellipsis:
        return list[str] | None, _METAVARS[inside[0]]
    if plain == tuple[float, float]:
        return annotation, "X X"  # as numbers: in `--range 0.5 --other 1` Click takes `--other` as the second one, which must be an error
    if origin is typing.Literal:
        return str, "|".join(inside)
    if origin in (types.UnionType, typing.Union) and any(typing.get_origin(member) is typing.Literal for member in inside):
        choices = [choice for member in inside for choice in typing.get_args(member)]
        return str, "|".join(["N"] * (int in inside) + choices)
    return str | None, _METAVARS[plain]


def _without_none(annotation: Any) -> Any:  # noqa: ANN401 - any type annotation
    """`int` for `int | None`."""
    kinds = [kind for kind in typing.get_args(annotation) if kind is not types.NoneType]
    return kinds[0] if isinstance(annotation, types.UnionType) and len(kinds) == 1 else annotation


def _validate(model: type[Settings], values: dict[str, Any], raw_values: dict[str, Any]) -> Settings:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UsageError(_explain(model, error, raw_values)) from None


def _explain(model: type[BaseModel], error: ValidationError, values: dict[str, Any]) -> str:
    """The first error as one line that names the option. Settings in backticks become options."""
    first = error.errors()[0]
    message = re.sub(r"`(\w+)`", lambda name: option_name(name[1]), describe_validation_error(first))
    place, prefix = list(first["loc"]), ""
    while place and (inner := _nested_model(model.model_fields[str(place[0])].annotation)):
        model, place, prefix = inner, place[1:], prefix_of(str(place[0]))
    if not place:
        return message
    name, *inside = map(str, place)
    if first["type"] == "missing":
        expected = (model.model_fields[name].description or "a value").rstrip(".")
        return f"{option_name(name)} is missing: expected {expected[0].lower()}{expected[1:]}"
    file = [values[name]] if typing.get_origin(model.model_fields[name].annotation) is dict else []
    location = ": ".join([" ".join([option_name(prefix + name), *file]), *inside])
    return f"{location}: {message}, found {_shell_quoted(first['input'])}"


def _settings_to_options(text: str, names: Container[str]) -> str:
    """Replace the settings in backticks in a description of settings by their options."""
    return re.sub(r"`(\w+)`", lambda name: option_name(name[1]) if name[1] in names else name[0], text)


def option_name(name: str) -> str:
    """The option of a setting: `--batch-size` for `batch_size`."""
    return _OPTIONS.get(name) or "--" + name.replace("_", "-")


def _shell_quoted(value: Any) -> str:  # noqa: ANN401 - what a user wrote
    return shlex.join(map(str, value if isinstance(value, tuple | list) else [value]))


def prefix_of(name: str) -> str:
    """The prefix of nested settings: `pseudo_` for those in `pseudo_noise`, empty for those in `noise`."""
    return name.removesuffix("noise")


def _nest_values(model: type[BaseModel], values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        value = values.get(prefix + name)
        if inner := _nested_model(field.annotation):
            nested |= {name: inside} if (inside := _nest_values(inner, values, prefix_of(name))) else {}
        elif typing.get_origin(field.annotation) is dict and value is not None:
            nested[name] = _read_mapping(value, option_name(name))
        elif value is not None:
            nested[name] = value
    return nested


def _read_mapping(file: str, option: str) -> dict[str, str]:
    """Read a setting from a YAML file, with all values as text. Raises UsageError."""
    import yaml

    from nst_data.yaml_faults import explain_yaml_error

    expected = "expected a YAML file with lines such as `rose: 0.5`"
    try:
        text = Path(file).read_text("utf-8")
        content, node = yaml.load(text, yaml.BaseLoader), yaml.compose(text, yaml.BaseLoader)
    except OSError as error:
        raise UsageError(f"{option} {file}: {error.strerror}; {expected}") from None
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        line, fault = explain_yaml_error(error)
        raise UsageError(f"{option} {file}{line}: {expected}; {fault}") from None
    if not isinstance(content, dict) or not isinstance(node, yaml.MappingNode):
        actual = "nothing" if content is None else "a list" if isinstance(content, list) else "text"
        raise UsageError(f"{option} {file}: {expected}, found {actual}")
    keys = [key.value for key, _ in node.value]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise UsageError(f"{option} {file}: {twice[0]!r} is listed twice; remove one of the lines")
    return content


def _nested_model(annotation: Any) -> type[Settings] | None:  # noqa: ANN401 - any type annotation
    is_model = isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias) and issubclass(annotation, Settings)
    return annotation if is_model else None
