"""Explain YAML syntax errors in plain words, without reading any YAML."""

from yaml import MarkedYAMLError
from yaml.reader import ReaderError

from nst_data.errors import first_line

_EXPLANATIONS = {
    "'\\t'": "a tab where blanks are expected",
    "cannot start any token": "text that begins with %, @ or ` needs quotes",
    "undefined alias": "text that begins with * needs quotes",
    "for the tag": "text that begins with ! needs quotes",
    "unhashable key": "a list or mapping where a key is expected",
    "unknown escape": "a backslash in double quotes needs another; or use single quotes",
    "quoted scalar": "a quote is not closed",
    "parsing a flow": "a bracket is not closed, or a comma is missing",
    "another document": "expected one document, a second one starts",
}  # keyed by a part of PyYAML's message
_MAX_SHOWN_CHARACTERS = 60


def explain_yaml_error(error: Exception) -> tuple[str, str]:
    """(`, line 3`, what is wrong there) for an error raised while reading YAML from text; the first part is empty if no line is known."""
    if isinstance(error, RecursionError):
        return "", "lists or mappings are nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "", "it is not in UTF-8; save it as UTF-8"
    if isinstance(error, ReaderError):
        return "", f"it has the character U+{int(error.character):04X}, which is no text; remove it"
    if not isinstance(error, MarkedYAMLError):
        return "", f"a value in it cannot be read ({first_line(error)}); put text in quotes"
    message = f"{error.context} {error.problem}"
    description = next(
        (description for fragment, description in _EXPLANATIONS.items() if fragment in message), "indentation or punctuation is wrong"
    )
    marks = [error.problem_mark, error.context_mark]
    if "quoted scalar" in message or "simple key" in message:  # reported at the end of the scan, but the mistake is where it starts
        marks.reverse()
    for mark in marks:
        lines = (mark.buffer or "").rstrip("\0").split("\n") if mark else []
        if mark and mark.line < len(lines) and (line := lines[mark.line].strip()):
            return f", line {mark.line + 1}", f"{description} at {line[:_MAX_SHOWN_CHARACTERS]!r}"
    return "", description
