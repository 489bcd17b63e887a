"""The app, and the one place where an error becomes a line and an exit status.

0 done, 1 failed, 2 wrong use; interrupted: 130 by Ctrl-C, 143 by SIGTERM, 138 by SIGUSR1.
"""

import contextlib
import errno
import os
import signal
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from nst_data.errors import NstError, UsageError
from nst_train.interruption import Interrupted, stop_at_once

from . import balance, diff, evaluate, label, run_recipe, show, train, versions

_NO_FAULT_OF_OURS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT, errno.EIO, errno.ENOTDIR, errno.EEXIST)


_WRONG_USE: Any = typer.BadParameter.__bases__[0]  # Click's UsageError, wherever this version of Typer keeps Click


class _Group(TyperGroup):
    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - typer keeps its context class to itself
        try:
            return super().invoke(ctx)
        except _WRONG_USE as error:
            message, command = error.format_message().rstrip("."), " ".join(filter(None, ["nst", ctx.invoked_subcommand]))
            _fail(f"{message}{' ' if message.endswith('?') else '; '}see `{command} --help`", 2)
        except NstError as error:
            _fail(str(error), 2 if isinstance(error, UsageError) else 1)
        except KeyboardInterrupt as error:
            stopped = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
            _fail(str(stopped), stopped.status)
        except Exception as error:
            if os.strerror(errno.ENOSPC) in str(error):  # Arrow, safetensors and worker processes each wrap it in a class of their own
                _fail("the disk is full; make room and run the same command again, it goes on from what is done", 1)
            if isinstance(error, OSError) and error.filename and error.errno in _NO_FAULT_OF_OURS:
                _fail(f"{error.filename}: {error.strerror}", 1)
            raise


def _fail(message: str, status: int) -> None:
    print(f"nst: {' '.join(message.split())}", file=sys.stderr)
    raise typer.Exit(status)


_STOPS = (
    "Ctrl-C, SIGTERM and SIGUSR1 (SLURM's advance warning) let the step end, write a checkpoint and exit with 130, 143 and 138; "
    "the same command goes on from there. A second Ctrl-C does not wait. Other exit statuses: 0 done, 1 failed, 2 wrong use."
)

app = typer.Typer(
    name="nst",
    cls=_Group,
    help="A data engine for self-training: label a pool, balance the labels, train a noised student, go round again.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("label")(label.label)
app.command("balance")(balance.balance)
app.command("train", epilog=_STOPS)(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("run", epilog=_STOPS)(run_recipe.run)
app.command("demo")(run_recipe.demo)
app.command("list")(versions.list_versions)
app.command("show")(show.show)
app.command("diff")(diff.diff)
app.command("verify")(versions.verify)
app.command("remove")(versions.remove)


@app.callback()
def _version(
    version: bool = typer.Option(
        False, "--version", help="Print the version and exit.", is_eager=True, callback=lambda asked: _print_version(asked)
    ),
) -> None:
    pass


def _print_version(asked: bool) -> None:
    if asked:
        import importlib.metadata

        print(f"nst {importlib.metadata.version('nst')}")
        raise typer.Exit


def run() -> None:
    """The `nst` command."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, stop_at_once)
    if os.environ.get("RANK", "0") != "0":  # set by torchrun and accelerate launch: the first process prints the result
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            app()
    app()
