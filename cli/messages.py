"""Rewording library messages for the command line: the settings and calls that they name become options and commands."""

import ast
import re
from types import SimpleNamespace

from nst_data.progress import Progress, terminal_progress

from .commands import load_command

_SETTING = re.compile(r"(?<!column )`(\w+)`(?! (?:column|\())")  # columns of tables are in backticks too
_CALL = re.compile(r"`([\w.]+\([^`]*\))`")
_RECIPES = ("run", "demo")  # commands that run a recipe
_ANOTHER_NAME = "give the recipe another name, as with --set name=NAME (what stays the same is reused)"
_COMMAND_NAMES = {"versions": "list", "remove_features": "remove"}  # of calls whose command has another name

_current = SimpleNamespace(command="")


def set_command(command: str) -> None:
    """Word all messages from now on for a command."""
    _current.command = command


def cli_progress() -> Progress:
    """Progress of a command on this terminal, with messages reworded for the command line."""
    return terminal_progress(reword_for_cli)


def reword_for_cli(message: str) -> str:
    """Reword a library message: settings that the command takes become its options, and calls that are commands become these.

    `batch_size` becomes --batch-size, `store.remove('net@gen-0')` becomes `nst remove net@gen-0`, and the review page is that of
    `nst look`. For a recipe, `max_unreadable` becomes `run.max_unreadable`.
    """
    command = _current.command
    options = (_recipe_keys() if command in _RECIPES else {}) | _options_by_setting(command)
    message = message.replace("on the review page", "in `nst look`")
    if command in _RECIPES:
        message = message.replace("choose another name or number", _ANOTHER_NAME)
    message = _SETTING.sub(lambda name: options.get(name[1], name[0]), message)
    return _CALL.sub(lambda call: _as_command(call[1]) or call[0], message)


def _options_by_setting(command: str) -> dict[str, str]:
    """The options of a command by setting; for an argument, its name in the help."""
    loaded = load_command(command)
    actions = getattr(loaded, "commands", {}).values()
    parameters = [parameter for action in (loaded, *actions) for parameter in action.params] if loaded else []
    return {
        parameter.name: parameter.opts[0] if parameter.param_type_name == "option" else parameter.metavar or parameter.name.upper()
        for parameter in parameters
    }


def _recipe_keys() -> dict[str, str]:
    """The recipe keys of the run settings, except for names that its `label` section has too."""
    from nst_train.cluster_settings import ClusterSettings
    from nst_train.settings import RunSettings

    return {name: f"`run.{name}`" for name in RunSettings.model_fields if name not in ClusterSettings.model_fields}


def _as_command(call: str) -> str | None:
    """The command for a call: strings anywhere in it become arguments, keywords options. None if the call is not a command."""
    try:
        tree = ast.parse(call, mode="eval").body
    except SyntaxError:
        return None
    if not isinstance(tree, ast.Call):
        return None
    name = tree.func.attr if isinstance(tree.func, ast.Attribute) else ast.unparse(tree.func)
    options = _options_by_setting(name := _COMMAND_NAMES.get(name, name))
    keywords = {str(node.arg): node.value for node in ast.walk(tree) if isinstance(node, ast.keyword)}
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    if not options or keywords.keys() - options.keys():
        return None
    tokens = [node.value for node in texts if node not in keywords.values()]
    for setting, value in keywords.items():
        is_flag = isinstance(value, ast.Constant) and value.value is True
        tokens += [options[setting]] if is_flag else [options[setting], ast.unparse(value).strip("'")]
    return f"`{' '.join(['nst', name, *map(str, tokens)])}`"
