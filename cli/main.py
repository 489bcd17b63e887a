"""The app, and the one place where errors become a line and an exit status.

0 done, 1 failed, 2 usage error; if interrupted, 130 by Ctrl-C, 143 by SIGTERM, 138 by SIGUSR1, 129 by SIGHUP.
"""

import contextlib
import errno
import os
import re
import signal
import sys
import threading
from functools import partial
from types import FrameType
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from nst_data.errors import NstError, UsageError, is_out_of_memory, redact_secrets
from nst_train.interruption import MAX_WAIT_SECONDS, STOP_SIGNALS, Interrupted, should_stop_on, stop_at_once
from nst_train.waiting import wait_passively

from .commands import ALIASES, COMMANDS, load_command
from .completion import complete_in_bash, is_bash_completion
from .loudness import QuietOption, VerboseOption, describe_unexpected
from .messages import reword_for_cli, set_command
from .output import lost_output, null_stream, open_output

_DISK_ERRNOS = (errno.EIO, errno.ESTALE)
_MOUNT_ERRNOS = (errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENODEV, errno.ENXIO)  # of a file; without one of a connection
_USER_ERRNOS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)
_UNSUPPORTED_ERRNOS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK)


_TYPER_REWORDINGS = [
    (re.compile(rf"Invalid value for '([^']+)': Input should be {said}"), rf"\1: expected {words}")
    for said, words in {
        r"a valid integer.*": "a whole number",
        r"a valid number.*": "a number",
        r"greater than or equal to ": "a number of at least ",
        r"less than or equal to ": "a number of at most ",
        r"greater than ": "a number above ",
        r"less than ": "a number below ",
    }.items()
]
_CLICK_USAGE_ERROR: Any = typer.BadParameter.__bases__[0]  # Click's UsageError, wherever this version of Typer keeps Click


class _Group(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401 - typer keeps its context class to itself
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401
        cmd_name = ALIASES.get(cmd_name, cmd_name)
        return COMMANDS[cmd_name].outline(cmd_name) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401
        self.commands = dict.fromkeys(COMMANDS)  # type: ignore[assignment] # for suggestions for a misspelled name
        name, _, rest = super().resolve_command(ctx, [ALIASES.get(args[0], args[0]), *args[1:]])
        set_command(name or "")
        return name, load_command(name or ""), rest

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401
        try:
            return super().parse_args(ctx, args)
        except _CLICK_USAGE_ERROR as error:
            if not error.format_message():  # the help was shown
                raise
            _fail(_usage_message(error, "nst"), 2)

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - typer keeps its context class to itself
        try:
            result = super().invoke(ctx)
            _report_lost_output(COMMANDS[ctx.invoked_subcommand].is_read_only)
            return result
        except _CLICK_USAGE_ERROR as error:
            if not error.format_message():  # the help of a group of commands was shown
                raise SystemExit(2) from None
            _fail(_usage_message(error, _command_name(error.ctx, ctx.invoked_subcommand)), 2)
        except NstError as error:
            _fail(reword_for_cli(str(error)), 2 if isinstance(error, UsageError) else 1)
        except KeyboardInterrupt as error:
            stopped = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
            _fail(str(stopped), stopped.status)
        except Exception as error:
            if os.strerror(errno.ENOSPC) in str(error):  # Arrow, safetensors and worker processes each wrap it in their own class
                _fail("the disk is full; free some space and rerun the same command, which resumes", 1)
            if os.strerror(errno.EFBIG) in str(error):
                _fail("a file exceeds the file system's size limit (FAT: 4 GB); put the store on another disk (--store)", 1)
            if isinstance(error, OSError) and error.errno in _UNSUPPORTED_ERRNOS:
                location = f"{error.filename}: " if error.filename else ""
                _fail(
                    f"{location}operation not supported by the file system ({error.strerror}); put the store on another disk (--store)", 1
                )
            if os.strerror(errno.EMFILE) in str(error):
                _fail("too many open files; raise the limit (`ulimit -n 4096`) and rerun the same command", 1)
            if isinstance(error, OSError) and (error.errno in _DISK_ERRNOS or (error.filename and error.errno in _MOUNT_ERRNOS)):
                location = _user_path(error.filename) if error.filename else "a disk or network folder"
                _fail(f"{location}: {error.strerror}; check that disk or mount, then rerun the same command", 1)
            if isinstance(error, OSError) and error.filename and error.errno in _USER_ERRNOS:
                _fail(f"{_user_path(error.filename)}: {error.strerror}", 1)
            if is_out_of_memory(error):
                _fail("out of memory; reduce --batch-size, workers or threads", 1)
            if isinstance(error, (typer.Exit, typer.Abort)):
                raise
            _fail(describe_unexpected(error), 1)


def _user_path(path: str | bytes | int) -> str:
    """A path, or for a temporary file the folder that it is in, which the user knows."""
    folder, _, name = str(path).rpartition("/")
    return folder if folder and name.startswith(".") else str(path)


def _command_name(ctx: Any, invoked: str | None) -> str:  # noqa: ANN401
    """The command in whose words an error is, such as `nst review freeze`; by default the one that was invoked."""
    names: list[str] = []
    while ctx is not None and ctx.parent is not None:
        names.insert(0, ctx.info_name)
        ctx = ctx.parent
    return " ".join(["nst", *(names or filter(None, [invoked]))])


def _usage_message(error: Any, command: str) -> str:  # noqa: ANN401 - Click's class
    message = error.format_message().rstrip(".")
    for pattern, replacement in _TYPER_REWORDINGS:
        message = pattern.sub(replacement, message)
    return f"{message}{' ' if message.endswith('?') else '; '}see `{command} --help`"


def _report_lost_output(is_failure: bool) -> None:
    """Report that standard output could not be written, which is a failure for a command that makes nothing else."""
    if reason := lost_output():
        message = f"standard output could not be written: {reason}"
        if is_failure:
            _fail(message, 1)
        print(f"nst: {message}; the work itself has completed", file=sys.stderr)


def _fail(message: str, status: int) -> NoReturn:
    from nst_data.progress import escape_unprintable

    print(f"nst: {escape_unprintable(redact_secrets(' '.join(message.split())))}", file=sys.stderr)
    raise typer.Exit(status)


app = typer.Typer(
    name="nst",
    cls=_Group,
    help="A data engine for self-training: label a pool, balance the labels, train a noised student, repeat.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _version(
    version: bool = typer.Option(
        False, "--version", help="Print the version and exit.", is_eager=True, callback=lambda asked: _print_version(asked)
    ),
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    pass


def _print_version(requested: bool) -> None:
    if requested:
        import importlib.metadata

        print(f"nst {importlib.metadata.version('nst')}")
        raise typer.Exit


def run() -> None:
    """The `nst` command."""
    wait_passively()
    open_output()
    for number in filter(should_stop_on, STOP_SIGNALS):
        signal.signal(number, _stop)
    try:
        if os.environ.get("RANK", "0") != "0":  # set by torchrun and accelerate launch: only the first process prints the result
            with null_stream() as silent, contextlib.redirect_stdout(silent):
                app(prog_name="nst")
        run_app = partial(app, prog_name="nst")
        if is_bash_completion():
            complete_in_bash(run_app)
        run_app()
    except SystemExit as end:
        if isinstance(end.code, int) and end.code - 128 in STOP_SIGNALS:
            _exit_after_delay(end.code - 128)
        raise


def _stop(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT:
        signal.signal(number, _stop_now)
    _exit_after_delay(number)
    stop_at_once(number, frame)


def _stop_now(number: int, frame: FrameType | None) -> None:
    """Exit at a second Ctrl-C, without waiting for anything."""
    _exit_interrupted(number)


def _exit_after_delay(number: int) -> None:
    """End this process if it is still waiting after some seconds, such as for a read that never returns."""
    timer = threading.Timer(MAX_WAIT_SECONDS, _exit_interrupted, (number,))
    timer.daemon = True
    timer.start()


def _exit_interrupted(number: int) -> None:
    stopped = Interrupted(number)
    print(f"nst: {stopped}", file=sys.stderr, flush=True)
    os._exit(stopped.status)
