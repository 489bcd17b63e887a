"""Messages as tests quote them: names, values and remedies, with `…` for the words between."""

import re


def pattern(quoted: str) -> str:
    """A regular expression of what stands before, between and after each `…`, in this order on one line."""
    return ".*".join(re.escape(part.strip()) for part in quoted.split("…"))


def mentions(message: str, quoted: str) -> bool:
    return re.search(pattern(quoted), message) is not None


def is_line(message: str, quoted: str) -> bool:
    """Whether the message is that one line, with nothing before or after it."""
    return re.fullmatch(pattern(quoted), message) is not None
