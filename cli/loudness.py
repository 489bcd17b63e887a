"""How much a command reports of its work: `--quiet` nothing, `--verbose` also debug messages. Both work before and after its name."""

import logging
import os
import sys
import tempfile
import traceback
from types import SimpleNamespace
from typing import Annotated, Any

import typer

from nst_data.errors import redact_secrets
from nst_data.progress import escape_unprintable, set_silent

_LIBRARIES = ("nst_data", "nst_train")
_state = SimpleNamespace(is_verbose=False)


def _flag_callback(flag: str) -> Any:  # noqa: ANN401 - a callback of Typer
    def set_flag(context: typer.Context, value: bool) -> None:
        flags: dict[str, bool] = context.meta.setdefault(__name__, {})  # shared by the whole command line
        flags[flag] = value or flags.get(flag, False)
        if all(flags.get(name) for name in ("quiet", "verbose")):
            raise typer.BadParameter("--quiet and --verbose contradict each other; pass only one")
        set_silent(flags.get("quiet", False))
        _set_verbose(flags.get("verbose", False))

    return set_flag


QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print results and errors only.", callback=_flag_callback("quiet"), expose_value=False)
]
VerboseOption = Annotated[
    bool,
    typer.Option(
        *("--verbose", "-v"),
        help="Print debug messages, and tracebacks of unexpected errors.",
        callback=_flag_callback("verbose"),
        expose_value=False,
    ),
]


def add_options(command: Any) -> None:  # noqa: ANN401 - typer keeps its classes to itself
    """Give a command, or a group and each of its commands, these options."""
    app = typer.Typer(add_completion=False)

    @app.command()
    def options(quiet: QuietOption = False, verbose: VerboseOption = False) -> None:
        pass

    flags = [one for one in typer.main.get_command(app).params if one.name in ("quiet", "verbose")]
    for one in (command, *getattr(command, "commands", {}).values()):
        one.params += flags


class _LogPrinter(logging.Handler):
    """Prints log records of the libraries on standard error, worded for the command line."""

    def emit(self, record: logging.LogRecord) -> None:
        from .messages import reword_for_cli

        print(escape_unprintable(reword_for_cli(redact_secrets(record.getMessage()))), file=sys.stderr, flush=True)


_log_printer = _LogPrinter()


def _set_verbose(verbose: bool) -> None:
    _state.is_verbose = verbose
    if os.environ.get("RANK", "0") != "0":
        return
    for name in _LIBRARIES:
        log = logging.getLogger(name)
        log.removeHandler(_log_printer)
        log.propagate = not verbose  # so that a line is not printed twice
        log.setLevel(logging.DEBUG if verbose else logging.NOTSET)
        if verbose:
            log.addHandler(_log_printer)


def describe_unexpected(error: Exception) -> str:
    """The message for an unexpected error; its traceback is printed with `--verbose`, else written to a file."""
    message = f"unexpected {type(error).__name__}{': ' if str(error) else ''}{error}, this is a bug in nst"
    trace = redact_secrets("".join(traceback.format_exception(error)))
    if _state.is_verbose:
        print(trace, file=sys.stderr, end="")
        return message
    try:
        with tempfile.NamedTemporaryFile("w", prefix="nst-", suffix=".txt", delete=False, encoding="utf-8", errors="replace") as file:
            file.write(trace)
    except OSError:
        return f"{message}; --verbose prints the traceback"
    return f"{message}; the traceback is in {file.name}"
