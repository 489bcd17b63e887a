"""What is slow to find out about images, kept: in a folder of the store and, where that is at an address, there too for other machines."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from nst_data.errors import NstError
from nst_data.store.file_tree import FileTree, MissingError
from nst_data.store.files import clear_abandoned

FOLDER = "runs/indexes"
_unusable: set[str] = set()  # addresses where this process could not read or write
_shared: set[tuple[str, str]] = set()  # files that are at their address, as this process knows


@dataclass(frozen=True)
class Indexes:
    """Files by names that say what they are of, such as a digest. Files of one name at an address have the same content for everybody.

    They are in `folder`; `tree` is that of a store at an address, with which files are shared below `FOLDER`. Where that cannot be read or
    written, each machine finds out for itself.
    """

    folder: Path
    tree: FileTree | None = None

    @classmethod
    def at(cls, place: "Self | Path | None") -> Self | None:
        """Those in a folder; the same for those given already."""
        return cls(place) if isinstance(place, Path) else place

    @property
    def alone(self) -> "Indexes":
        """Those of this machine only."""
        return Indexes(self.folder)

    def find(self, name: str) -> Path | None:
        """Where the file is on this machine, downloaded if only the address has it; None where neither has."""
        path = self.folder / name
        if self.tree is not None and self.tree.address not in _unusable and not path.exists():
            try:
                self.tree.download(f"{FOLDER}/{name}", path)
                _shared.add((self.tree.address, name))
            except (MissingError, OSError):
                pass
            except NstError:
                _unusable.add(self.tree.address)
        return path if path.exists() else None

    def keep(self, name: str, write: Callable[[Path], None]) -> None:
        """Have the file written and shared. In a folder that cannot be written to nothing is kept."""
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            clear_abandoned(self.folder)
            write(self.folder / name)
            self.share(name, name)

    def share(self, name: str, shared_name: str) -> None:
        """Upload a file of this machine under a name that its content belongs to, unless the address has it."""
        if self.tree is None or self.tree.address in _unusable or (self.tree.address, shared_name) in _shared:
            return
        try:
            if self.tree.stat(f"{FOLDER}/{shared_name}") is None:
                self.tree.upload(self.folder / name, f"{FOLDER}/{shared_name}")
            _shared.add((self.tree.address, shared_name))
        except OSError:  # not on this machine any more
            pass
        except NstError:  # many commands need read access only
            _unusable.add(self.tree.address)
