"""Where on the Hub a version stands, as this store knows from its own pushes and pulls."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from nst_data.errors import NstError
from nst_data.files import write_text
from nst_data.ownership import beside, owned

METRICS = "metrics.json"  # of a teacher, beside the sealed files too
PLACES = "hub.json"  # beside the sealed files, never published


@dataclass(frozen=True)
class Place:
    """Where a version stands on the Hub: `owner/name`, a tag and the commit that it names."""

    repo: str
    tag: str
    commit: str
    digest: str
    anonymous: bool = False

    @property
    def ref(self) -> str:
        """`owner/name@tag`."""
        return f"{self.repo}@{self.tag}"


def places_of(folder: Path) -> list[Place]:
    """Where the version in a folder was pushed to or pulled from, in that order."""
    path = folder / PLACES
    try:
        return [Place(**one) for one in json.loads(path.read_text("utf-8"))] if path.exists() else []
    except (ValueError, TypeError):
        raise NstError(f"{path}: expected the places of a version on the Hub, found something else; delete the file") from None


def remember_place(folder: Path, place: Place) -> None:
    """Note where a version is on the Hub; the newest stands last."""
    with owned(beside(folder), f"{folder.parent.name}@{folder.name}", wait=True):
        places = [one for one in places_of(folder) if one != place] + [place]
        write_text(folder / PLACES, json.dumps([asdict(one) for one in places], indent=2) + "\n")
