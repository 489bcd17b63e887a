"""Class names with their synonyms, from a YAML file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from nst_data.errors import UsageError, brief
from nst_data.yaml_faults import yaml_fault

YAML_SUFFIXES = (".yaml", ".yml")
_MOST_BYTES = 2**26
_EXPECTED = "expected a YAML list of class names, or lines such as `t-shirt: [t-shirt, tee]`"


def is_yaml(file: str) -> bool:
    """Whether class names come from a YAML file rather than a text file with one per line."""
    return Path(file).suffix.lower() in YAML_SUFFIXES


def texts_in_yaml(file: str) -> dict[str, tuple[str, ...]]:
    """Synonyms by class name, in order, from a YAML file that holds a list of names or a mapping from name to synonyms.

    All scalars are read as text: `no` and `1` are names. Raises UsageError if the file cannot be read or holds something else.
    """
    try:
        if Path(file).stat().st_size > _MOST_BYTES:
            raise UsageError(f"`class_names` {file}: more than {_MOST_BYTES // 2**20} MB; {_EXPECTED}")
        text = Path(file).read_text("utf-8-sig")
        tree, content = yaml.compose(text, yaml.BaseLoader), yaml.load(text, yaml.BaseLoader)
    except OSError as error:
        raise UsageError(f"`class_names` {file}: {error.strerror}; {_EXPECTED}") from None
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        line, fault = yaml_fault(error)
        raise UsageError(f"`class_names` {file}{line}: {_EXPECTED}; {fault}") from None
    if isinstance(tree, yaml.MappingNode):  # PyYAML silently keeps the last of two equal keys
        keys = [key.value for key, _ in tree.value]
        if duplicate := _twice(keys):
            raise UsageError(f"`class_names` {file}: {duplicate!r} is listed twice; expected distinct names")
    return texts_of(content, f"`class_names` {file}")


def texts_of(content: Any, what: str) -> dict[str, tuple[str, ...]]:  # noqa: ANN401 - anything a YAML file holds
    """Synonyms by class name; a name without synonyms is its own. Raises UsageError, whose message begins with `what`."""
    if isinstance(content, list | tuple):
        if duplicate := _twice([name for name in content if isinstance(name, str)]):
            raise UsageError(f"{what}: {duplicate!r} is listed twice; expected distinct names")
        content = dict.fromkeys(content, None) if all(isinstance(text, str) for text in content) else None
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise UsageError(f"{what}: {_EXPECTED}, found {'text' if isinstance(content, str) else 'another value'}")
    texts = {name.strip(): _words(name, words, what) for name, words in content.items()}
    if len(texts) < 2:
        raise UsageError(f"{what}: expected at least two distinct class names, found {len(texts)}")
    if odd := next((text for name, words in texts.items() for text in (name, *words) if not text or not text.isprintable()), None):
        raise UsageError(f"{what}: expected names and synonyms of printable characters, found {odd[:40]!r}")
    if "" in texts:
        raise UsageError(f"{what}: one class name is empty")
    return texts


def _twice(names: Sequence[str]) -> str | None:
    """The first name that occurs a second time, or None."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _words(name: str, words: Any, what: str) -> tuple[str, ...]:  # noqa: ANN401 - anything a YAML file holds
    """The synonyms of a class, without duplicates."""
    if words is None or words == "":
        words = [name]
    words = [words] if isinstance(words, str) else words
    if not isinstance(words, list | tuple) or not words or not all(isinstance(word, str) for word in words):
        raise UsageError(f"{what}: {name}: expected its synonyms as a list, such as [t-shirt, tee], found {brief(words)[:40]!r}")
    return tuple(dict.fromkeys(word.strip() for word in words))
