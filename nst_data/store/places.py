"""Where a version is on the Hub, as this store knows from its own pushes and pulls."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from nst_data.errors import NstError
from nst_data.store.files import write_text
from nst_data.store.ownership import hold_ownership, ownership_path

METRICS_NAME = "metrics.json"  # of a teacher, next to the sealed files too
PLACES_NAME = "hub.json"  # next to the sealed files, never published
READ_FOLDER = "read"  # a folder next to the sealed files: the state of the sources when they were read; never on the Hub


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


def read_places(folder: Path) -> list[Place]:
    """Where the version in a folder was pushed to or pulled from, the newest last."""
    path = folder / PLACES_NAME
    try:
        return [Place(**entry) for entry in json.loads(path.read_text("utf-8"))] if path.exists() else []
    except (ValueError, TypeError):
        raise NstError(f"{path}: expected the places of a version on the Hub, found something else; delete the file") from None


def record_place(folder: Path, place: Place) -> None:
    """Record where a version is on the Hub, the newest last. For a known place, whether the version came from it stays as it was."""
    with hold_ownership(ownership_path(folder), f"{folder.parent.name}@{folder.name}", wait=True):
        old_places = read_places(folder)
        matching = [entry for entry in old_places if replace(entry, pulled=place.pulled) == place]
        places = [entry for entry in old_places if entry not in matching] + (matching[:1] or [place])
        write_text(folder / PLACES_NAME, json.dumps([asdict(entry) for entry in places], indent=2) + "\n")


def may_be_pulled(folder: Path) -> bool:
    """Whether a version came from the Hub, or may have: an earlier nst did not record it, and a damaged record says nothing."""
    try:
        return any(place.pulled is not False for place in read_places(folder))
    except NstError:
        return True
