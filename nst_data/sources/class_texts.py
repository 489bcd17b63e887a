"""Class names with their synonyms, from a YAML file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from nst_data.errors import UsageError, short_repr
from nst_data.yaml_faults import explain_yaml_error

YAML_SUFFIXES = (".yaml", ".yml")
_MAX_BYTES = 2**26
_EXPECTED = "expected a YAML list of class names, or lines such as `t-shirt: [t-shirt, tee]`"


def is_yaml(file: str) -> bool:
    """Whether class names come from a YAML file rather than a text file with one per line."""
    return Path(file).suffix.lower() in YAML_SUFFIXES


def read_synonyms(file: str) -> dict[str, tuple[str, ...]]:
    """Synonyms by class name, in order, from a YAML file that holds a list of names or a mapping from name to synonyms.

    All scalars are read as text: `no` and `1` are names. Raises UsageError if the file cannot be read or holds something else.
    """
    try:
        if Path(file).stat().st_size > _MAX_BYTES:
            raise UsageError(f"`class_names` {file}: more than {_MAX_BYTES // 2**20} MB; {_EXPECTED}")
        text = Path(file).read_text("utf-8-sig")
        tree, content = yaml.compose(text, yaml.BaseLoader), yaml.load(text, yaml.BaseLoader)
    except OSError as error:
        raise UsageError(f"`class_names` {file}: {error.strerror}; {_EXPECTED}") from None
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        line, fault = explain_yaml_error(error)
        raise UsageError(f"`class_names` {file}{line}: {_EXPECTED}; {fault}") from None
    if isinstance(tree, yaml.MappingNode):  # PyYAML silently keeps the last of two equal keys
        keys = [key.value for key, _ in tree.value]
        if duplicate := _first_duplicate(keys):
            raise UsageError(f"`class_names` {file}: {duplicate!r} is listed twice; expected distinct names")
    return parse_synonyms(content, f"`class_names` {file}")


def parse_synonyms(content: Any, subject: str) -> dict[str, tuple[str, ...]]:  # noqa: ANN401 - anything a YAML file holds
    """Synonyms by class name; a name without synonyms is its own. Raises UsageError, whose message begins with `subject`."""
    if isinstance(content, list | tuple):
        if duplicate := _first_duplicate([name for name in content if isinstance(name, str)]):
            raise UsageError(f"{subject}: {duplicate!r} is listed twice; expected distinct names")
        content = dict.fromkeys(content, None) if all(isinstance(text, str) for text in content) else None
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise UsageError(f"{subject}: {_EXPECTED}, found {'text' if isinstance(content, str) else 'another value'}")
    texts = {name.strip(): _synonyms_of_class(name, synonyms, subject) for name, synonyms in content.items()}
    if len(texts) < 2:
        raise UsageError(f"{subject}: expected at least two distinct class names, found {len(texts)}")
    if invalid := next(
        (text for name, synonyms in texts.items() for text in (name, *synonyms) if not text or not text.isprintable()), None
    ):
        raise UsageError(f"{subject}: expected names and synonyms of printable characters, found {invalid[:40]!r}")
    if "" in texts:
        raise UsageError(f"{subject}: one class name is empty")
    return texts


def _first_duplicate(names: Sequence[str]) -> str | None:
    """The first name that occurs a second time, or None."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _synonyms_of_class(name: str, synonyms: Any, subject: str) -> tuple[str, ...]:  # noqa: ANN401 - anything a YAML file holds
    """The synonyms of a class, without duplicates."""
    if synonyms is None or synonyms == "":
        synonyms = [name]
    synonyms = [synonyms] if isinstance(synonyms, str) else synonyms
    if not isinstance(synonyms, list | tuple) or not synonyms or not all(isinstance(synonym, str) for synonym in synonyms):
        raise UsageError(f"{subject}: {name}: expected its synonyms as a list, such as [t-shirt, tee], found {short_repr(synonyms)[:40]!r}")
    return tuple(dict.fromkeys(synonym.strip() for synonym in synonyms))
