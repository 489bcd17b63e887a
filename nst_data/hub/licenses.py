"""Licenses as the cards of repositories name them, and what they ask of those who share what was made from them."""

import re
from typing import Any, Literal

import yaml

from nst_data.errors import ODD_YAML
from nst_data.hub.repository import Repository

_NO_COMMERCE = "it allows no commercial use"
_WORDS = {
    "nc": _NO_COMMERCE,
    "noncommercial": _NO_COMMERCE,
    "nd": "it allows nobody to share what is made from it",
    "sa": "what is made from it must be shared under the same license",
}
# The Hub's names of licenses that let everybody share what is made from a work, under other terms too.
_FREE = re.compile(
    r"apache-2\.0|mit|bsd(-[\w-]+)?|cc0-1\.0|cc-by-[\d.]+|unlicense|isc|zlib|pddl|odc-by|cdla-permissive-[\d.]+|bsl-1\.0|wtfpl|ncsa|postgresql"
)

_OPENING, _CLOSING = re.compile(r"\s*---[\r\n]+"), re.compile(r"(?:\r\n|[\r\n])---[^\S\r\n]*(?:\r\n|[\r\n]|\Z)")


def read_front_matter(card: str) -> dict[str, Any]:
    """The YAML of a card, whoever wrote it; nothing where there is none."""
    try:
        content = yaml.load(split_front_matter(card)[0], getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, *ODD_YAML):
        return {}
    return content if isinstance(content, dict) else {}


def split_front_matter(card: str) -> tuple[str, str]:
    """The YAML between the first two lines of dashes, and what follows; no YAML where a card does not begin with it.

    Two searches, each of which goes through the card once: strangers write cards.
    """
    opening = _OPENING.match(card)
    closing = _CLOSING.search(card, opening.end() - 1) if opening else None
    if opening is None or closing is None:
        return "", card
    return card[opening.end() : closing.start()], card[closing.end() :]


def license_at(repo: str, commit: str, kind: Literal["dataset", "model"]) -> str | None:
    """The license in the card of a repository at a commit, of `other` with its name: `other (my-terms)`; None where it names none."""
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined] # httpx or httpx2, by version

    try:  # once: what is wanted works without it
        content = read_front_matter(Repository(repo, kind).text_asked_once("README.md", commit) or "")
    except (OSError, ValueError, httpx.HTTPError):  # what it is offline is an OSError
        return None
    license, name = content.get("license"), content.get("license_name")
    if isinstance(license, list) and license and all(isinstance(one, str) for one in license):
        return " + ".join(license)
    if not isinstance(license, str):
        return None
    return f"other ({name})" if license == "other" and isinstance(name, str) else license


def restriction(license: str) -> str | None:
    """What a license forbids, or asks to read, before what was made from its work is shared; None for one that allows that freely."""
    words = re.split(r"[^a-z]+", license.lower())
    if asked := list(dict.fromkeys(about for word, about in _WORDS.items() if word in words)):
        return " and ".join(asked)
    is_free = all(_FREE.fullmatch(one) for one in license.lower().split(" + "))
    return None if is_free else "read its terms before you share this"


def without_names(license: str) -> str:
    """A license, or several with + between them, without the names of terms of somebody's own, which may tell whose they are."""
    return " + ".join(one.partition(" (")[0] for one in license.split(" + "))
