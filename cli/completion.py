"""Shell completion beyond commands and options: versions, networks, presets, columns, the words of an option. Does not import torch."""

import contextlib
import importlib.util
import inspect
import io
import itertools
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import typer

Completer = Callable[[typer.Context, str], list[str]]
_SHELL, _IN_BASH = "_NST_COMPLETE", "complete_bash"  # set by Typer's completion scripts
_WORD_BREAKS = ("@", ":")  # characters at which bash splits a word
_REGISTERED = re.compile(rb"^@register_model\s+def (\w+)\(", re.MULTILINE)
_WEIGHTS = re.compile(rb"""^\s+['"](\w+\.\w+)['"]: """, re.MULTILINE)
_MAX_FILES = 1000  # listed in a folder to find its first table
_SOURCES = ("data", "pool", "sources", "labeled", "source", "truth")  # command parameters that name images


def with_completion(command: str, function: Any) -> Any:  # noqa: ANN401 - the function of a command
    """Attach completers to the parameters of a command's function, and return it."""
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        for info in getattr(parameter.annotation, "__metadata__", ()):
            if completer := _BY_NAME.get(f"{command} {name}") or _BY_NAME.get(name) or _metavar_completer(getattr(info, "metavar", None)):
                info.autocompletion = completer
    return function


def _metavar_completer(metavar: str | None) -> Completer | None:
    """A completer for the words in a metavar such as `N|auto|none`."""
    choices = [choice for choice in (metavar or "").split("|") if choice.islower()]
    return _prefix_completer(lambda _: choices) if choices and "|" in str(metavar) else None


def _prefix_completer(suggest: Callable[[typer.Context], Iterable[str]]) -> Completer:
    def complete(context: typer.Context, incomplete: str) -> list[str]:
        return [suggestion for suggestion in suggest(context) if suggestion.startswith(incomplete)]

    return complete


def _version_folders(context: typer.Context, store_folder: str) -> list[Path]:
    """The folders of versions in a local store, sorted by name and number."""
    from nst_data.store.version import Number

    root = Path(context.params.get("store") or os.environ.get("NST_STORE") or "nst-store")
    folders = [folder for folder in root.glob(f"{store_folder}/*/*") if Number.is_valid(folder.name)]
    return sorted(folders, key=lambda folder: (folder.parent.name, Number.parse(folder.name).sort_key))


def _versions(store_folder: str) -> Callable[[typer.Context], Iterable[str]]:
    return lambda context: [f"{folder.parent.name}@{folder.name}" for folder in _version_folders(context, store_folder)]


def _names(store_folder: str) -> Callable[[typer.Context], Iterable[str]]:
    return lambda context: dict.fromkeys(folder.parent.name for folder in _version_folders(context, store_folder))


def _networks(_: typer.Context) -> list[str]:
    """timm's networks and weights, read from its source files, since importing it takes seconds."""
    spec = importlib.util.find_spec("timm")
    names, weights = set[bytes](), set[bytes]()
    for place in spec.submodule_search_locations or () if spec else ():
        for file in Path(place, "models").glob("*.py"):
            text = file.read_bytes()
            names.update(_REGISTERED.findall(text))
            weights.update(_WEIGHTS.findall(text))
    pretrained = {name for name in weights if name.partition(b".")[0] in names and not name.endswith(b".untrained")}
    return sorted(name.decode() for name in names | pretrained)


def _models(context: typer.Context) -> list[str]:
    return [*_versions("teachers")(context), *_networks(context)]


def _presets(_: typer.Context) -> Iterable[str]:
    from nst_train.presets import PRESETS

    return PRESETS


def _suites(_: typer.Context) -> Iterable[str]:
    from nst_train.evaluation_settings import OWN_IMAGE_SUITES, PUBLISHED_SUITES

    return (*OWN_IMAGE_SUITES, *PUBLISHED_SUITES)


def _trackers(_: typer.Context) -> Iterable[str]:
    return ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "none", "swanlab", "tensorboard", "trackio", "wandb")


def _columns(context: typer.Context) -> list[str]:
    """The columns of the first table on disk that the command line names."""
    values = [context.params.get(name) for name in _SOURCES]
    locations = [location for value in values for location in (value if isinstance(value, list | tuple) else [value]) if location]
    locations += [word for word in context.args if not word.startswith("-")]  # words before an option that has no value yet
    for path in map(Path, locations):
        if columns := _columns_of(path):
            return columns
    return []


def _columns_of(file: Path) -> list[str]:
    with contextlib.suppress(Exception):  # a table that cannot be read completes nothing
        if file.is_dir():  # the first entries are enough, however many files it has
            file = min(
                entry for entry in itertools.islice(file.iterdir(), _MAX_FILES) if entry.suffix == ".parquet" and entry.name[0] != "."
            )
        if file.suffix == ".parquet":
            import pyarrow.parquet

            return list(pyarrow.parquet.read_schema(file).names)
        if file.suffix in (".csv", ".tsv"):
            import csv

            with file.open(encoding="utf-8-sig", newline="") as lines:
                return next(csv.reader(lines, delimiter="\t" if file.suffix == ".tsv" else ","))
    return []


_any, _corpora, _teachers = (
    _prefix_completer(_versions("*")),
    _prefix_completer(_versions("corpora")),
    _prefix_completer(_versions("teachers")),
)
_BY_NAME: dict[str, Completer] = {
    **dict.fromkeys(("ref", "refs", "ref2", "before", "after", "what"), _any),
    **dict.fromkeys(("edition", "reviews", "like", "extend", "balance ref", "pick ref"), _corpora),
    **dict.fromkeys(("model", "models", "teacher", "start", "relative_to"), _prefix_completer(_models)),
    **dict.fromkeys(("corpus",), _prefix_completer(_names("corpora"))),
    **{"list name": _prefix_completer(_names("*")), "train name": _prefix_completer(_names("teachers"))},
    **{"preset": _prefix_completer(_presets), "suite": _prefix_completer(_suites), "tracker": _prefix_completer(_trackers)},
    **dict.fromkeys(("image_column", "label_column", "key", "adopt probs"), _prefix_completer(_columns)),
}


def complete_in_bash(run: Callable[[], Any]) -> None:
    """Complete words that contain `@` or `:`, at which bash splits them: join the parts, and cut the answers to the last part."""
    words, cursor = os.environ["COMP_WORDS"].split("\n"), int(os.environ["COMP_CWORD"])
    joined, cut = [""], 0
    for number, word in enumerate(words[: cursor + 1]):
        goes_on = number > 1 and (word in _WORD_BREAKS or words[number - 1] in _WORD_BREAKS)
        cut = len(joined[-1]) + len(word) * (word in _WORD_BREAKS) if goes_on else 0
        joined = [*joined[:-1], joined[-1] + word] if goes_on else [*joined, word]
    os.environ |= {"COMP_WORDS": "\n".join(joined[1:]), "COMP_CWORD": str(len(joined) - 2)}
    with contextlib.redirect_stdout(io.StringIO()) as output:
        try:
            run()
        except SystemExit as end:
            status = end.code
    print(*(line[cut:] for line in output.getvalue().splitlines()), sep="\n")
    raise SystemExit(status)


def is_bash_completion() -> bool:
    """Whether bash is asking for completions of a command line."""
    return os.environ.get(_SHELL) == _IN_BASH and {"COMP_WORDS", "COMP_CWORD"} <= os.environ.keys()
