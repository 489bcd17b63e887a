"""Licenses as named in the cards of repositories, and their conditions for sharing derived work."""

import re
from typing import Any, Literal

import yaml

from nst_data.errors import OTHER_YAML_ERRORS
from nst_data.hub.repository import Repository

_NO_COMMERCE = "it allows no commercial use"
_RESTRICTIONS = {
    "nc": _NO_COMMERCE,
    "noncommercial": _NO_COMMERCE,
    "nd": "it allows nobody to share what is made from it",
    "sa": "what is made from it must be shared under the same license",
}
# The Hub's names of licenses that let anyone share derived work, including under other terms.
_UNRESTRICTED_LICENSES = re.compile(
    r"apache-2\.0|mit|bsd(-[\w-]+)?|cc0-1\.0|cc-by-[\d.]+|unlicense|isc|zlib|pddl|odc-by|cdla-permissive-[\d.]+|bsl-1\.0|wtfpl|ncsa|postgresql"
)

_OPENING, _CLOSING = re.compile(r"\s*---[\r\n]+"), re.compile(r"(?:\r\n|[\r\n])---[^\S\r\n]*(?:\r\n|[\r\n]|\Z)")


def read_front_matter(card: str) -> dict[str, Any]:
    """The YAML metadata of a card, which anybody may have written; empty if there is none that is valid."""
    try:
        content = yaml.load(split_front_matter(card)[0], getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, *OTHER_YAML_ERRORS):
        return {}
    return content if isinstance(content, dict) else {}


def split_front_matter(card: str) -> tuple[str, str]:
    """The YAML between the first two lines of dashes, and the text after it; the YAML is empty if a card does not begin with it.

    Uses two linear searches, since cards are untrusted input.
    """
    opening = _OPENING.match(card)
    closing = _CLOSING.search(card, opening.end() - 1) if opening else None
    if opening is None or closing is None:
        return "", card
    return card[opening.end() : closing.start()], card[closing.end() :]


def license_at(repo: str, commit: str, kind: Literal["dataset", "model"]) -> str | None:
    """The license in the card of a repository at a commit, with its name for `other`, as in `other (my-terms)`; None if there is none."""
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined] # httpx or httpx2, by version

    try:  # no retries: the caller can do without the license
        content = read_front_matter(Repository(repo, kind).read_text_once("README.md", commit) or "")
    except (OSError, ValueError, httpx.HTTPError):  # being offline is an OSError
        return None
    license, name = content.get("license"), content.get("license_name")
    if isinstance(license, list) and license and all(isinstance(entry, str) for entry in license):
        return " + ".join(license)
    if not isinstance(license, str):
        return None
    return f"other ({name})" if license == "other" and isinstance(name, str) else license


def restriction(license: str) -> str | None:
    """The restrictions of a license on sharing derived work, or advice to read its terms; None if it allows sharing freely."""
    words = re.split(r"[^a-z]+", license.lower())
    if demands := list(dict.fromkeys(demand for word, demand in _RESTRICTIONS.items() if word in words)):
        return " and ".join(demands)
    is_free = all(_UNRESTRICTED_LICENSES.fullmatch(part) for part in license.lower().split(" + "))
    return None if is_free else "read its terms before you share this"


def strip_custom_names(license: str) -> str:
    """A license, or several joined by `+`, without names of custom terms, which may reveal whose they are."""
    return " + ".join(part.partition(" (")[0] for part in license.split(" + "))
