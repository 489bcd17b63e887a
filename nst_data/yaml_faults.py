"""What is wrong in text that is no YAML, in plain words. Reads no YAML itself."""

from yaml import MarkedYAMLError
from yaml.reader import ReaderError

from nst_data.errors import first_line

_WORDS = {
    "'\\t'": "a tab stands where blanks are expected",
    "cannot start any token": "text that begins with %, @ or ` needs quotes",
    "undefined alias": "text that begins with * needs quotes",
    "for the tag": "text that begins with ! needs quotes",
    "unhashable key": "a list or mapping stands where a key is expected",
    "unknown escape": "a backslash in double quotes needs another; or use single quotes",
    "quoted scalar": "a quote is not closed",
    "parsing a flow": "a bracket is not closed, or a comma is missing",
    "another document": "expected one document, a second one begins",
}  # by a part of what PyYAML says
_MOST_SHOWN = 60


def yaml_fault(error: Exception) -> tuple[str, str]:
    """(`, line 3`, what is wrong there) of what reading YAML from text raised; the former is empty where no line is known."""
    if isinstance(error, RecursionError):
        return "", "lists or mappings are nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "", "it is not in UTF-8; save it as UTF-8"
    if isinstance(error, ReaderError):
        return "", f"it has the character U+{int(error.character):04X}, which is no text; remove it"
    if not isinstance(error, MarkedYAMLError):
        return "", f"a value in it cannot be read ({first_line(error)}); put text in quotes"
    said = f"{error.context} {error.problem}"
    words = next((words for part, words in _WORDS.items() if part in said), "indentation or punctuation is wrong")
    marks = [error.problem_mark, error.context_mark]
    if "quoted scalar" in said or "simple key" in said:  # which go wrong where they begin, and are given up lines later
        marks.reverse()
    for mark in marks:
        lines = (mark.buffer or "").rstrip("\0").split("\n") if mark else []
        if mark and mark.line < len(lines) and (line := lines[mark.line].strip()):
            return f", line {mark.line + 1}", f"{words} at {line[:_MOST_SHOWN]!r}"
    return "", words
