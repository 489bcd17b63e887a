"""Licenses as the cards of repositories name them, and what they ask of those who share what was made from them."""

import re
from pathlib import Path
from typing import Any, Literal

import yaml

from nst_data.hub.retries import retried

_WORDS = {"nc": "it allows no commercial use", "nd": "it allows nobody to share what is made from it"}
_OF_THEIR_OWN = ("other", "unknown", "openrail", "rail", "llama", "gemma", "c-uda", "deepfloyd")  # license terms beside the usual ones


def read_front_matter(card: str) -> dict[str, Any]:
    """The YAML of a card, whoever wrote it; nothing where there is none."""
    match = re.match(r"\s*---[\r\n]+(.*?)[\r\n]+---\s*(?:[\r\n]|$)", card, re.DOTALL)
    try:
        content = yaml.load(match[1], getattr(yaml, "CSafeLoader", yaml.SafeLoader)) if match else {}
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def license_at(repo: str, commit: str, kind: Literal["dataset", "model"]) -> str | None:
    """The license in the card of a repository at a commit, of `other` with its name: `other (my-terms)`; None where it names none."""
    from huggingface_hub import hf_hub_download

    try:
        card = Path(retried(lambda: hf_hub_download(repo, "README.md", revision=commit, repo_type=kind)))
        content = read_front_matter(card.read_text("utf-8"))
    except (OSError, ValueError):  # EntryNotFoundError and what it is offline are OSErrors
        return None
    license, name = content.get("license"), content.get("license_name")
    if not isinstance(license, str):
        return None
    return f"other ({name})" if license == "other" and isinstance(name, str) else license


def restriction(license: str) -> str | None:
    """What a license forbids, or asks to read, before what was made from its work is shared; None for one that allows that freely."""
    words = re.split(r"[^a-z]+", license.lower())
    forbidden = [about for word, about in _WORDS.items() if word in words]
    if forbidden:
        return " and ".join(forbidden)
    return "read its terms before you share this" if any(word in license.lower() for word in _OF_THEIR_OWN) else None
