"""All commands and where they are defined; only the one that is called is imported."""

import ast
import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from .completion import with_completion
from .loudness import add_options

_SIGNALS_EPILOG = (
    "Ctrl-C, SIGTERM, SIGUSR1 (SLURM's advance warning) and SIGHUP finish the current step, save a checkpoint and exit with 130, 143, 138 "
    "and 129; the same command resumes from there. A second Ctrl-C exits immediately. Other exit statuses: 0 done, 1 failed, "
    "2 usage error."
)


@dataclass(frozen=True)
class Command:
    """Where a command is defined. It is only imported when it is called, which keeps `nst --help` fast."""

    module: str
    function: str
    epilog: str | None = None
    is_read_only: bool = False
    actions: Mapping[str, str] = field(default_factory=dict)  # the functions of subcommands by name

    def outline(self, name: str) -> TyperCommand:
        """The command with its name and help only, read from the source of its function."""
        tree = ast.parse(Path(__file__).with_name(f"{self.module}.py").read_text("utf-8"))
        (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == self.function)
        group = next(title for title, commands in _GROUPS.items() if name in commands)
        return TyperCommand(name, help=ast.get_docstring(function), rich_help_panel=group)

    def load(self, name: str) -> Any:  # noqa: ANN401 - typer keeps its classes to itself
        """Import and build the command."""
        app = typer.Typer(name=name, add_completion=False, pretty_exceptions_enable=False)
        module = importlib.import_module(f".{self.module}", __package__)
        function = with_completion(name, getattr(module, self.function))
        if self.actions:
            app.callback(no_args_is_help=True, help=function.__doc__)(function)
            for action, function_name in self.actions.items():
                app.command(action)(with_completion(action, getattr(module, function_name)))
        else:
            app.command(name, epilog=self.epilog)(function)
        command = typer.main.get_command(app)
        add_options(command)
        return command


_GROUPS = {
    "Run the loop": {
        "init": Command("init", "init"),
        "run": Command("run_recipe", "run", _SIGNALS_EPILOG),
        "demo": Command("run_recipe", "demo"),
        "schema": Command("schema", "schema", is_read_only=True),
    },
    "Single steps": {
        "label": Command("label", "label"),
        "balance": Command("balance", "balance"),
        "train": Command("train", "train", _SIGNALS_EPILOG),
        "evaluate": Command("evaluate", "evaluate"),
    },
    "Inspect and correct labels": {
        "show": Command("show", "show", is_read_only=True),
        "look": Command("looking", "look"),
        "diff": Command("diff", "diff", is_read_only=True),
        "pick": Command("pick", "pick"),
        "review": Command("review", "review", actions={"freeze": "freeze", "import": "import_file", "export": "export_file"}),
        "embed": Command("embed", "embed"),
    },
    "The store": {
        "list": Command("versions", "list_versions", is_read_only=True),
        "lineage": Command("sharing", "lineage", is_read_only=True),
        "verify": Command("versions", "verify", is_read_only=True),
        "remove": Command("versions", "remove"),
    },
    "Share and exchange": {
        "push": Command("sharing", "push"),
        "pull": Command("sharing", "pull"),
        "copy": Command("sharing", "copy"),
        "adopt": Command("adopt", "adopt"),
        "export": Command("export", "export"),
    },
}
COMMANDS = {name: command for group in _GROUPS.values() for name, command in group.items()}
ALIASES = {"ls": "list"}  # not shown


@functools.cache
def load_command(name: str) -> Any:  # noqa: ANN401 - typer keeps its classes to itself
    """Load the command of a name, or None if there is none."""
    return COMMANDS[name].load(name) if name in COMMANDS else None
