"""Where a version is on the Hub, as this store knows from its own pushes and pulls."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from nst_data.errors import NstError
from nst_data.store.files import write_text
from nst_data.store.ownership import beside, owned

METRICS = "metrics.json"  # of a teacher, next to the sealed files too
PLACES = "hub.json"  # next to the sealed files, never published
READ = "read"  # a folder next to the sealed files: the state of the sources when they were read; never on the Hub


@dataclass(frozen=True)
class Place:
    """Where a version is on the Hub: the repository `owner/name`, a tag, and the commit that the tag points to.

    `pulled` is whether it came from there; None if the place was recorded by an earlier nst, which did not record that.
    """

    repo: str
    tag: str
    commit: str
    digest: str
    anonymous: bool = False
    pulled: bool | None = None

    @property
    def ref(self) -> str:
        """`owner/name@tag`."""
        return f"{self.repo}@{self.tag}"


def places_of(folder: Path) -> list[Place]:
    """Where the version in a folder was pushed to or pulled from, the newest last."""
    path = folder / PLACES
    try:
        return [Place(**entry) for entry in json.loads(path.read_text("utf-8"))] if path.exists() else []
    except (ValueError, TypeError):
        raise NstError(f"{path}: expected the places of a version on the Hub, found something else; delete the file") from None


def remember_place(folder: Path, place: Place) -> None:
    """Record where a version is on the Hub, the newest last. For a known place, whether the version came from it stays as it was."""
    with owned(beside(folder), f"{folder.parent.name}@{folder.name}", wait=True):
        old_places = places_of(folder)
        same = [entry for entry in old_places if replace(entry, pulled=place.pulled) == place]
        places = [entry for entry in old_places if entry not in same] + (same[:1] or [place])
        write_text(folder / PLACES, json.dumps([asdict(entry) for entry in places], indent=2) + "\n")


def may_be_pulled(folder: Path) -> bool:
    """Whether a version came from the Hub, or may have: an earlier nst did not record it, and a damaged record says nothing."""
    try:
        return any(place.pulled is not False for place in places_of(folder))
    except NstError:
        return True
