"""The location of a version on the Hub, and how its inputs are named in public: by links and names, never by local paths."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote

from nst_data.hub.reference import HubReference
from nst_data.store.inputs import Input, is_model_role

_HUB = "https://huggingface.co"
_LOCAL_PATH = re.compile(r"local-dir:|[/~.\\]|[A-Za-z]:[\\/]")
_NAME_SETTINGS = ("exclude_class", "key", "label_column", "probs")
_PART_SUFFIX = re.compile(r" \([^()]*\)$")  # which part of the images, after the source of a result


@dataclass(frozen=True)
class Published:
    """The current or intended location of a version on the Hub, and what the user says about it there."""

    repo: str
    tag: str
    links: Mapping[str, str] = field(default_factory=dict)  # input role to owner/name@revision, for inputs that are on the Hub
    license: str | None = None  # a Hub identifier, or the user's words
    pool_source: str | None = None  # where the pool's images come from, in the user's words
    anonymous: bool = False  # keys omitted and hashes replaced by row numbers
    earlier_card: str = ""  # the card currently in the repository, with its original line ends

    @property
    def ref(self) -> str:
        """owner/name@tag."""
        return f"{self.repo}@{self.tag}"

    @property
    def path(self) -> str:
        """owner/name@tag, quoted as part of a URL."""
        return f"{self.repo}@{quote(self.tag, safe='')}"


@dataclass(frozen=True)
class HubPlace:
    """A repository on the Hub at a revision."""

    repo: str
    revision: str | None
    kind: Literal["dataset", "model"]

    @property
    def url(self) -> str:
        """The URL of its page."""
        tree = f"/tree/{quote(self.revision, safe='')}" if self.revision else ""
        return f"{_HUB}/{'datasets/' if self.kind == 'dataset' else ''}{self.repo}{tree}"


def place_of(role: str, entry: Input, published: Published | None) -> HubPlace | None:
    """Where an input is on the Hub: as found by the push, or as it was read from there. None if it is not known to be there."""
    kind: Literal["dataset", "model"] = "model" if is_model_role(role) else "dataset"
    if published and (link := HubReference.parse_repository(published.links.get(role, ""))):
        return HubPlace(link.repo, link.revision, kind)
    reference = HubReference.parse_dataset(entry.ref)
    if reference is None or not (entry.revision or entry.ref.startswith("hf-hub:")):
        return None
    return HubPlace(reference.repo, entry.revision or reference.revision, kind)


def public_name(ref: str) -> str:
    """A name fit to be shown to others: the last part of a local path, or else the whole name."""
    if not is_local(ref):
        return ref
    return re.split(r"[/\\]", ref.removeprefix("local-dir:").rstrip("/\\"))[-1] or "folder"


def public_setting(name: str, value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Apply `public_name` to every string in the value of a setting, except names of classes and columns, which may look like paths."""
    if isinstance(value, str):
        return value if name in _NAME_SETTINGS else public_name(value)
    if isinstance(value, Mapping):
        return {key: public_setting(key, item) for key, item in value.items()}
    return [public_setting(name, item) for item in value] if isinstance(value, list | tuple) else value


def public_ref(entry: Input) -> str:
    """Apply `public_name` to an input, or to each source if several were joined."""
    return " + ".join(map(public_name, entry.sources or (entry.ref,)))


def is_local(ref: str) -> bool:
    """Whether a source, teacher or setting names a location on this machine."""
    return bool(_LOCAL_PATH.match(ref)) or ("/" in ref and HubReference.parse_dataset(_PART_SUFFIX.sub("", ref)) is None)
