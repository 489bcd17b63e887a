"""What the library says, in the words of the command line: it names settings and calls, here they are options and commands."""

import ast
import re
from types import SimpleNamespace

from nst_data.progress import Progress, on_this_terminal

from .commands import load

_SETTING = re.compile(r"(?<!column )`(\w+)`(?! (?:column|\())")  # a table's columns stand in backticks too
_CALL = re.compile(r"`([\w.]+\([^`]*\))`")
_RECIPES = ("run", "demo")  # commands that run one
_ANOTHER_NAME = "give the recipe another name, as with --set name=NAME (what stays the same is taken over)"
_COMMANDS = {"versions": "list", "remove_features": "remove"}  # of what has another name

_speaking = SimpleNamespace(command="")


def speak_for(command: str) -> None:
    """Say everything from now on in the words of a command."""
    _speaking.command = command


def terminal() -> Progress:
    """What a command shows of its work, in our words."""
    return on_this_terminal(in_our_words)


def in_our_words(message: str) -> str:
    """A message of the library: each setting that the command takes as its option, each call that is a command as that.

    `batch_size` is --batch-size, `store.remove('net@gen-0')` is `nst remove net@gen-0`, the review page is that of `nst look`.
    For a recipe `max_unreadable` is `run.max_unreadable`.
    """
    command = _speaking.command
    options = (_of_recipe() if command in _RECIPES else {}) | _options(command)
    message = message.replace("on the review page", "in `nst look`")
    if command in _RECIPES:
        message = message.replace("choose another name or number", _ANOTHER_NAME)
    message = _SETTING.sub(lambda name: options.get(name[1], name[0]), message)
    return _CALL.sub(lambda call: _as_command(call[1]) or call[0], message)


def _options(command: str) -> dict[str, str]:
    """The options of a command by the settings that they give; of an argument what its help calls it."""
    loaded = load(command)
    actions = getattr(loaded, "commands", {}).values()
    parameters = [one for action in (loaded, *actions) for one in action.params] if loaded else []
    return {one.name: one.opts[0] if one.param_type_name == "option" else one.metavar or one.name.upper() for one in parameters}


def _of_recipe() -> dict[str, str]:
    """Where a recipe has the settings of the machine, as its keys are written, but for a name that its `label` has too."""
    from nst_train.cluster_settings import ClusterSettings
    from nst_train.settings import RunSettings

    return {name: f"`run.{name}`" for name in RunSettings.model_fields if name not in ClusterSettings.model_fields}


def _as_command(call: str) -> str | None:
    """None for what is no call of a command: its texts are the arguments, its keywords the options, wherever in it they stand."""
    try:
        tree = ast.parse(call, mode="eval").body
    except SyntaxError:
        return None
    if not isinstance(tree, ast.Call):
        return None
    name = tree.func.attr if isinstance(tree.func, ast.Attribute) else ast.unparse(tree.func)
    options = _options(name := _COMMANDS.get(name, name))
    given = {str(one.arg): one.value for one in ast.walk(tree) if isinstance(one, ast.keyword)}
    texts = [one for one in ast.walk(tree) if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    if not options or given.keys() - options.keys():
        return None
    words = [one.value for one in texts if one not in given.values()]
    for setting, value in given.items():
        is_flag = isinstance(value, ast.Constant) and value.value is True
        words += [options[setting]] if is_flag else [options[setting], ast.unparse(value).strip("'")]
    return f"`{' '.join(['nst', name, *map(str, words)])}`"
